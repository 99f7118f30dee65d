// The CPU kernels' interface. Each instruction set compiles the kernel headers into its own namespace and
// exports one table of functions; nothing here may include code that could be inlined from a header
// shared with the rest of the shim.
#pragma once

#include <cstdint>

namespace te {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

// Element (row t, head h, dim d) is at data[t * row + h * head + d].
struct Heads {
  void* data;
  int64_t row, head;
};

struct AttentionArgs {
  Dtype dtype;
  int64_t heads, kv_heads, dim;
  float scale;
  int64_t window;  // 0: none
  float dropout_p;
  uint64_t seed;
  Heads q, k, v, out;         // forward writes out, backward reads it
  Heads dout, dq, dk, dv;     // backward only
  float* lse;                 // [T, heads], log of the sum of exponentials
};

// Forward: rows [q0, q1) of one document for all query heads of one key head.
// Backward: keys [k0, k1) seen by rows [q0, q1); writes dq of those rows, or dk and dv of those keys,
// or both when the ranges cover the document.
struct AttentionTask {
  int64_t begin;  // the document's first row
  int64_t len;
  int64_t kv_head;
  int64_t q0, q1, k0, k1;
  bool want_dq, want_dkv;
};

// Columns of the per-row statistics of the head.
enum Stat { kMax = 0, kLogSum = 1, kEntropy = 2, kLogprob = 3, kCorrect = 4, kStats = 5 };

struct HeadArgs {
  Dtype dtype;
  void* logits;  // [rows, vocab], contiguous
  int64_t vocab;
  const int64_t* targets;
  float inv_temperature;
  float* stats;               // [rows, kStats]
  const float* coefficients;  // [rows, 2]: gradients of the log-probability and of the entropy
  bool write_grad;
};

// RMSNorm, and with a bias LayerNorm, over contiguous rows.
struct NormArgs {
  Dtype dtype;
  int64_t width;
  float eps;
  const void *x, *weight, *bias;  // bias null: RMSNorm (forward)
  const void* grad;               // backward
  void* out;                      // backward: the gradient of x
  float *mean, *rstd;             // a number a row; mean null: RMSNorm
};

// Without grad the activation, with it the gradient of its input; contiguous.
struct ActivationArgs {
  Dtype dtype;
  int64_t width;  // swiglu: of gate and of up
  const void *x, *grad;
  void* out;
};

// Rotates pairs (j, j + dim / 2) by the row's angles; cos and sin are [rows, dim / 2].
struct RotateArgs {
  Dtype dtype;
  int64_t heads, dim;
  Heads x, out;
  const void *cos, *sin;
  bool inverse;
};

// One new token a row: its key and value go to position length - 1 of the row's slot of the cache, and its
// query attends to positions 0..length. Position p of slot s, head h is at s * slot + p * row + h * head, in
// keys and values alike.
struct CachedArgs {
  Dtype dtype;
  int64_t heads, kv_heads, dim;
  float scale;
  int64_t window;  // 0: none
  Heads q, k, v, out;
  void *keys, *values;
  struct {
    int64_t slot, row, head;
  } cache;
  const int64_t *slots, *lengths;  // of each row; a length is at least 1
};

// Temperature 0: the highest logit, the first of equal ones. Log-probabilities are those of the logits
// over the temperature (over 1 where it is 0).
struct SampleArgs {
  Dtype dtype;
  const void* logits;  // [rows, vocab], contiguous
  int64_t vocab;
  const float* temperatures;
  const double* uniforms;  // in [0, 1)
  int64_t* ids;
  float* logprobs;
};

// to += from.
struct AddArgs {
  Dtype dtype;  // of from
  const void* from;
  float* to;
};

constexpr int64_t kQuantBlock = 256;

// 256 ascending values, and the 255 points halfway between neighbours.
struct QuantMap {
  const float *values, *midpoints;
};

// One AdamW step on n numbers with moments of 8 bits in blocks of kQuantBlock.
struct Adam8Args {
  int64_t n;
  float* param;
  const float* grad;
  uint8_t *first, *second;
  float *first_absmax, *second_absmax;  // one a block
  QuantMap first_map, second_map;
  float lr, beta1, beta2, eps, weight_decay;
  float correction1, root_correction2;  // 1 - beta1^t, sqrt(1 - beta2^t)
};

constexpr int64_t kFourBitBlock = 64;

// n numbers to 4 bits each: packed by twos, the first in the high half, and a scale for each block.
struct Quantise4Args {
  Dtype dtype;
  int64_t n;
  const void* numbers;
  uint8_t* packed;
  float* absmax;
  const float* midpoints;  // 15, between the 16 values in ascending order
  const uint8_t* order;    // the codes of the values in that order
};

// And back. The scale of block b is absmax[b], or with codes map[scale_codes[b]] * absmax[b / kQuantBlock] + offset.
struct Dequantise4Args {
  Dtype dtype;
  int64_t n;
  void* numbers;
  const uint8_t* packed;
  const float* values;  // of the 16 codes
  const float* absmax;
  const uint8_t* scale_codes;
  const float* map;
  float offset;
};

struct Kernels {
  const char* isa;
  // Floats of scratch that one thread needs for documents of up to max_len rows.
  int64_t (*attention_scratch)(const AttentionArgs&, int64_t max_len, int64_t max_rows, bool backward);
  void (*attention_forward)(const AttentionArgs&, const AttentionTask&, float* scratch);
  void (*attention_backward)(const AttentionArgs&, const AttentionTask&, float* scratch);
  void (*head_stats)(const HeadArgs&, int64_t row_begin, int64_t row_end);
  void (*head_grad)(const HeadArgs&, int64_t row_begin, int64_t row_end);
  // Sum of squares of n numbers.
  double (*sum_of_squares)(Dtype, const void* data, int64_t n);
  void (*norm_forward)(const NormArgs&, int64_t row_begin, int64_t row_end);
  // part: [2, width], the rows' share of the gradients of weight and bias.
  void (*norm_backward)(const NormArgs&, int64_t row_begin, int64_t row_end, float* part);
  void (*gelu_tanh)(const ActivationArgs&, int64_t begin, int64_t end);
  void (*swiglu)(const ActivationArgs&, int64_t row_begin, int64_t row_end);
  void (*rotate)(const RotateArgs&, int64_t row_begin, int64_t row_end);
  // scratch: dim + the row's length, each rounded up to 16 floats.
  void (*attend_cached)(const CachedArgs&, int64_t row, int64_t kv_head, float* scratch);
  int64_t (*sample_scratch)(const SampleArgs&);
  void (*sample)(const SampleArgs&, int64_t row, float* scratch);
  void (*add)(const AddArgs&, int64_t begin, int64_t end);
  void (*adamw_8bit)(const Adam8Args&, int64_t block_begin, int64_t block_end);
  void (*quantise4)(const Quantise4Args&, int64_t block_begin, int64_t block_end);
  void (*dequantise4)(const Dequantise4Args&, int64_t block_begin, int64_t block_end);
};

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace te

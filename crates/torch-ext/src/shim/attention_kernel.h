// Causal attention for one document and one key head: flash attention (Dao et al. 2022, arXiv
// 2205.14135) on fp32 blocks, with tiles of fully masked scores left out.
#pragma once

#include "vector.h"

namespace te::KERNEL_ISA {

constexpr int64_t kRows = 64;         // query rows of a block
constexpr int64_t kForwardKeys = 256;  // keys of a forward block
constexpr int64_t kBackwardKeys = 128;
static_assert(kForwardKeys % PW == 0 && kBackwardKeys % PW == 0);

template <class T>
TE_INLINE T* at(const Heads& t, int64_t row, int64_t head) {
  return static_cast<T*>(t.data) + row * t.row + head * t.head;
}

// Copies rows to fp32, each padded with zeros to `padded` columns.
template <class T>
static void pack_rows(const T* src, int64_t stride, int64_t rows, int64_t dim, int64_t padded,
                      float* dst) {
  for (int64_t i = 0; i < rows; i++, src += stride, dst += padded) {
    int64_t d = 0;
    for (; d + VW <= dim; d += VW) store(dst + d, load(src + d));
    if (d < dim) store(dst + d, load_some(src + d, dim - d));
  }
}

// Copies rows to fp32, transposed, in panels of PW rows: dst[panel][dim][PW], padded with zeros.
template <class T>
static void pack_transposed(const T* src, int64_t stride, int64_t rows, int64_t dim, float* dst) {
  for (int64_t p = 0; p < rows; p += PW, dst += dim * PW) {
    const int64_t columns = min64(PW, round_up(rows - p, VW));
    for (int64_t j = 0; j < columns; j += VW) {
      for (int64_t d = 0; d < dim; d += VW) {
        const int64_t n = min64(VW, dim - d);
        vf block[VW];
        for (int i = 0; i < VW; i++) {
          const int64_t row = p + j + i;
          if (row >= rows) block[i] = vf{};
          else block[i] = n == VW ? load(src + row * stride + d) : load_some(src + row * stride + d, n);
        }
        transpose(block);
        for (int64_t i = 0; i < n; i++) store(dst + (d + i) * PW + j, block[i]);
      }
    }
  }
}

template <class T>
static void unpack_row(const float* src, vf factor, int64_t dim, T* dst) {
  int64_t d = 0;
  for (; d + VW <= dim; d += VW) store(dst + d, load(src + d) * factor);
  if (d < dim) store_some(dst + d, load(src + d) * factor, dim - d);
}

// Which attention weights of a row are kept: a hash of (seed, row, head, key).
struct Dropout {
  uint32_t threshold;  // dropped when the top 24 bits are below it
  vf factor;
  uint64_t seed;

  explicit Dropout(const AttentionArgs& a)
      : threshold(uint32_t(a.dropout_p * 16777216.f)), factor(splat(1.f / (1.f - a.dropout_p))), seed(a.seed) {}

  TE_INLINE bool on() const { return threshold != 0; }

  TE_INLINE uint64_t row_key(int64_t row) const {  // splitmix64
    uint64_t z = seed + uint64_t(row + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  static TE_INLINE vu mix(vu h) {  // murmur3's finaliser
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
  }

  // 0 or 1 / (1 - p) for keys key..key + VW.
  TE_INLINE vf weights(uint64_t row, int64_t key) const {
    vu h = (vu)(iota() + int32_t(key)) * 0x9e3779b9u + uint32_t(row);
    h = mix(mix(h) ^ uint32_t(row >> 32));
    return (vi)(h >> 8) >= int32_t(threshold) ? factor : vf{};
  }
};

// Row i of a block attends keys lo <= j < hi of a block of keys.
struct Span {
  int64_t lo, hi;
};

TE_INLINE Span span(const AttentionArgs& a, int64_t row, int64_t key0, int64_t keys) {
  const int64_t first = a.window > 0 ? max64(0, row - a.window + 1) : 0;
  return {min64(keys, max64(0, first - key0)), max64(0, min64(keys, row + 1 - key0))};
}

TE_INLINE vi inside(Span s, int64_t j) {
  const vi index = iota() + int32_t(j);
  return (index >= int32_t(s.lo)) & (index < int32_t(s.hi));
}

// Scores of a block: q[rows, dim] * kt, as far as rows row0.. see keys key0...
TE_INLINE void scores(const float* q, int64_t padded, const float* kt, int64_t dim, int64_t rows,
                      int64_t row0, int64_t key0, int64_t keys, float* s, int64_t s_row) {
  product(rows, {q, padded, 1}, {kt, dim * PW, PW}, s, s_row, false, [&](int64_t i, int64_t n) {
    return Limits{0, dim, max64(0, min64(keys, row0 + i + n - key0))};
  });
}

// One online-softmax step of a row of scores; returns what earlier sums must be multiplied by.
static float softmax_step(const AttentionArgs& a, const Dropout& dropout, uint64_t key, Span s,
                          int64_t key0, int64_t padded, float* row, float& max, float& sum) {
  const vf none = splat(-__builtin_inff());
  const int64_t from = s.lo / VW * VW;
  vf top = none;
  for (int64_t j = from; j < s.hi; j += VW) {
    const vf z = load(row + j) * a.scale;
    store(row + j, z);
    top = max_v(inside(s, j) ? z : none, top);
  }
  const float new_max = __builtin_fmaxf(max_lanes(top), max);
  vf total = vf{};
  for (int64_t j = 0; j < from; j += VW) store(row + j, vf{});
  int64_t j = from;
  for (; j < s.hi; j += VW) {
    vf e = inside(s, j) ? exp_v(load(row + j) - new_max) : vf{};
    total += e;
    if (dropout.on()) e *= dropout.weights(key, key0 + j);
    store(row + j, e);
  }
  for (; j < padded; j += VW) store(row + j, vf{});
  const float factor = max == new_max ? 1.f : exp_v(splat(max - new_max))[0];
  sum = sum * factor + sum_lanes(total);
  max = new_max;
  return factor;
}

template <class T>
static void forward_block(const AttentionArgs& a, const AttentionTask& t, int64_t head, int64_t row0,
                          int64_t rows, int64_t key_base, const float* kt, const float* v,
                          float* scratch) {
  const int64_t padded = round_up(a.dim, VW);
  float* q = scratch;
  float* out = q + kRows * padded;
  float* s = out + kRows * padded;
  const Dropout dropout(a);
  float max[kRows], sum[kRows];
  for (int64_t i = 0; i < rows; i++) max[i] = -__builtin_inff(), sum[i] = 0;
  pack_rows(at<const T>(a.q, t.begin + row0, head), a.q.row, rows, a.dim, padded, q);
  const int64_t first = span(a, row0, key_base, t.len).lo / kForwardKeys * kForwardKeys;
  bool add = false;
  for (int64_t kb = first; key_base + kb < row0 + rows; kb += kForwardKeys) {
    const int64_t key0 = key_base + kb, keys = min64(kForwardKeys, row0 + rows - key0);
    const int64_t width = round_up(keys, VW);
    scores(q, padded, kt + kb * a.dim, a.dim, rows, row0, key0, keys, s, kForwardKeys);
    for (int64_t i = 0; i < rows; i++) {
      const uint64_t key = dropout.row_key((t.begin + row0 + i) * a.heads + head);
      const float factor = softmax_step(a, dropout, key, span(a, row0 + i, key0, keys), key0, width,
                                        s + i * kForwardKeys, max[i], sum[i]);
      if (add && factor != 1.f)
        for (int64_t d = 0; d < padded; d += VW)
          store(out + i * padded + d, load(out + i * padded + d) * factor);
    }
    product(rows, {s, kForwardKeys, 1}, {v + kb * padded, PW, padded}, out, padded, add,
            [&](int64_t i, int64_t n) {
              return Limits{0, max64(0, min64(keys, row0 + i + n - key0)), padded};
            });
    add = true;
  }
  for (int64_t i = 0; i < rows; i++) {
    const int64_t row = t.begin + row0 + i;
    unpack_row(out + i * padded, splat(1.f / sum[i]), a.dim, at<T>(a.out, row, head));
    a.lse[row * a.heads + head] = max[i] + __builtin_logf(sum[i]);
  }
}

template <class T>
static void forward(const AttentionArgs& a, const AttentionTask& t, float* scratch) {
  const int64_t padded = round_up(a.dim, VW);
  const int64_t base = a.window > 0 ? max64(0, t.q0 - a.window + 1) : 0;
  const int64_t keys = t.q1 - base;
  float* kt = scratch;
  float* v = kt + round_up(keys, PW) * a.dim;
  float* rest = v + keys * padded;
  pack_transposed(at<const T>(a.k, t.begin + base, t.kv_head), a.k.row, keys, a.dim, kt);
  pack_rows(at<const T>(a.v, t.begin + base, t.kv_head), a.v.row, keys, a.dim, padded, v);
  const int64_t group = a.heads / a.kv_heads;
  for (int64_t h = t.kv_head * group; h < (t.kv_head + 1) * group; h++)
    for (int64_t r = t.q0; r < t.q1; r += kRows)
      forward_block<T>(a, t, h, r, min64(kRows, t.q1 - r), base, kt, v, rest);
}

// The scratch of one backward task.
struct Backward {
  float *kt, *vt, *k, *dk, *dv;                // keys
  float *q, *dout, *dq, *p, *ds, *lse, *delta;  // a block of rows

  Backward(const AttentionArgs& a, int64_t keys, float* at) {
    const int64_t padded = round_up(a.dim, VW), panels = round_up(keys, PW);
    kt = take(at, panels * a.dim), vt = take(at, panels * a.dim);
    k = take(at, keys * padded), dk = take(at, keys * padded), dv = take(at, keys * padded);
    q = take(at, kRows * padded), dout = take(at, kRows * padded), dq = take(at, kRows * padded);
    p = take(at, kRows * kBackwardKeys), ds = take(at, kRows * kBackwardKeys);
    lse = take(at, kRows), delta = take(at, kRows);
  }
  static float* take(float*& at, int64_t n) { return at += round_up(n, VW), at - round_up(n, VW); }
};

// p becomes the (dropped) weights, ds the gradient of the scores times the scale.
static void backward_row(const AttentionArgs& a, const Dropout& dropout, uint64_t key, Span s,
                         int64_t key0, int64_t width, float lse, float delta, float* p, float* ds) {
  const int64_t from = s.lo / VW * VW;
  for (int64_t j = 0; j < from; j += VW) store(p + j, vf{}), store(ds + j, vf{});
  int64_t j = from;
  for (; j < s.hi; j += VW) {
    const vi seen = inside(s, j);
    vf w = exp_v(load(p + j) * a.scale - lse);
    vf g = load(ds + j);
    vf kept = w;
    if (dropout.on()) {
      const vf mask = dropout.weights(key, key0 + j);
      kept = w * mask;
      g = g * mask;
    }
    store(p + j, seen ? kept : vf{});
    store(ds + j, seen ? w * (g - delta) * a.scale : vf{});
  }
  for (; j < width; j += VW) store(p + j, vf{}), store(ds + j, vf{});
}

template <class T>
static void backward_block(const AttentionArgs& a, const AttentionTask& t, int64_t head, int64_t row0,
                           int64_t rows, const Backward& b) {
  const int64_t padded = round_up(a.dim, VW);
  const Dropout dropout(a);
  pack_rows(at<const T>(a.q, t.begin + row0, head), a.q.row, rows, a.dim, padded, b.q);
  pack_rows(at<const T>(a.dout, t.begin + row0, head), a.dout.row, rows, a.dim, padded, b.dout);
  // dq serves as a buffer for the output first.
  pack_rows(at<const T>(a.out, t.begin + row0, head), a.out.row, rows, a.dim, padded, b.dq);
  for (int64_t i = 0; i < rows; i++) {
    vf dot = vf{};
    for (int64_t d = 0; d < padded; d += VW)
      dot += load(b.dq + i * padded + d) * load(b.dout + i * padded + d);
    b.delta[i] = sum_lanes(dot);
    b.lse[i] = a.lse[(t.begin + row0 + i) * a.heads + head];
  }
  const int64_t seen = span(a, row0, t.k0, t.k1 - t.k0).lo / kBackwardKeys * kBackwardKeys;
  const int64_t end = min64(t.k1, row0 + rows);
  bool add = false;
  for (int64_t kb = seen; t.k0 + kb < end; kb += kBackwardKeys) {
    const int64_t key0 = t.k0 + kb, keys = min64(kBackwardKeys, end - key0);
    const int64_t width = round_up(keys, VW);
    scores(b.q, padded, b.kt + kb * a.dim, a.dim, rows, row0, key0, keys, b.p, kBackwardKeys);
    scores(b.dout, padded, b.vt + kb * a.dim, a.dim, rows, row0, key0, keys, b.ds, kBackwardKeys);
    for (int64_t i = 0; i < rows; i++) {
      const uint64_t key = dropout.row_key((t.begin + row0 + i) * a.heads + head);
      backward_row(a, dropout, key, span(a, row0 + i, key0, keys), key0, width, b.lse[i], b.delta[i],
                   b.p + i * kBackwardKeys, b.ds + i * kBackwardKeys);
    }
    const auto rows_of_keys = [&](int64_t j, int64_t) {
      return Limits{min64(rows, max64(0, key0 + j - row0)), rows, padded};
    };
    if (t.want_dkv) {
      product(keys, {b.p, 1, kBackwardKeys}, {b.dout, PW, padded}, b.dv + kb * padded, padded, true, rows_of_keys);
      product(keys, {b.ds, 1, kBackwardKeys}, {b.q, PW, padded}, b.dk + kb * padded, padded, true, rows_of_keys);
    }
    if (t.want_dq) {
      product(rows, {b.ds, kBackwardKeys, 1}, {b.k + kb * padded, PW, padded}, b.dq, padded, add,
              [&](int64_t i, int64_t n) {
                return Limits{0, max64(0, min64(keys, row0 + i + n - key0)), padded};
              });
      add = true;
    }
  }
  if (t.want_dq)
    for (int64_t i = 0; i < rows; i++)
      unpack_row(b.dq + i * padded, splat(1.f), a.dim, at<T>(a.dq, t.begin + row0 + i, head));
}

template <class T>
static void backward(const AttentionArgs& a, const AttentionTask& t, float* scratch) {
  const int64_t padded = round_up(a.dim, VW), keys = t.k1 - t.k0;
  const Backward b(a, keys, scratch);
  pack_transposed(at<const T>(a.k, t.begin + t.k0, t.kv_head), a.k.row, keys, a.dim, b.kt);
  pack_transposed(at<const T>(a.v, t.begin + t.k0, t.kv_head), a.v.row, keys, a.dim, b.vt);
  if (t.want_dq) pack_rows(at<const T>(a.k, t.begin + t.k0, t.kv_head), a.k.row, keys, a.dim, padded, b.k);
  if (t.want_dkv) {
    memset(b.dk, 0, keys * padded * sizeof(float));
    memset(b.dv, 0, keys * padded * sizeof(float));
  }
  const int64_t group = a.heads / a.kv_heads;
  const int64_t q0 = max64(t.q0, t.k0 / kRows * kRows);
  const int64_t q1 = a.window > 0 ? min64(t.q1, t.k1 + a.window - 1) : t.q1;
  for (int64_t h = t.kv_head * group; h < (t.kv_head + 1) * group; h++)
    for (int64_t r = q0; r < q1; r += kRows)
      backward_block<T>(a, t, h, r, min64(kRows, t.q1 - r), b);
  if (!t.want_dkv) return;
  for (int64_t j = 0; j < keys; j++) {
    unpack_row(b.dk + j * padded, splat(1.f), a.dim, at<T>(a.dk, t.begin + t.k0 + j, t.kv_head));
    unpack_row(b.dv + j * padded, splat(1.f), a.dim, at<T>(a.dv, t.begin + t.k0 + j, t.kv_head));
  }
}

static int64_t attention_scratch(const AttentionArgs& a, int64_t max_len, int64_t, bool backward) {
  const int64_t padded = round_up(a.dim, VW), panels = round_up(max_len, PW) * a.dim;
  if (!backward) return panels + max_len * padded + 2 * kRows * padded + kRows * kForwardKeys + VW;
  return 2 * panels + 3 * max_len * padded + 3 * kRows * padded + 2 * kRows * kBackwardKeys +
         2 * kRows + 16 * VW;
}

static void attention_forward(const AttentionArgs& a, const AttentionTask& t, float* scratch) {
  switch (a.dtype) {
    case Dtype::f32: return forward<float>(a, t, scratch);
    case Dtype::bf16: return forward<bf16>(a, t, scratch);
    case Dtype::f16: return forward<f16>(a, t, scratch);
  }
}

static void attention_backward(const AttentionArgs& a, const AttentionTask& t, float* scratch) {
  switch (a.dtype) {
    case Dtype::f32: return backward<float>(a, t, scratch);
    case Dtype::bf16: return backward<bf16>(a, t, scratch);
    case Dtype::f16: return backward<f16>(a, t, scratch);
  }
}

}  // namespace te::KERNEL_ISA

// Numbers in 4 bits: blocks of 64, each number the nearest of 16 values times its block's scale. The arithmetic is
// bitsandbytes', operation by operation, so that the bits are its too.
#pragma once

#include "fused_kernel.h"

namespace te::KERNEL_ISA {

// Scales of a last block that is not full, and all divisors, are at least this.
constexpr float kLeastScale = 1e-38f;

// codes[i]: how many midpoints are below x[i] over the block's scale, which is returned: NaN where a number is not
// finite. x has zeros behind its `count` numbers.
static float quantise4_block(const float* x, int64_t count, const float* midpoints, int32_t* codes) {
  vf most = vf{};
  vi finite = ~vi{};
  for (int64_t j = 0; j < kFourBitBlock; j += VW) {
    const vf v = load(x + j);
    const vf size = v < vf{} ? -v : v;
    most = max_v(most, size);
    finite &= size <= splat(__FLT_MAX__);
  }
  const float absmax = max_lanes(most);
  const bool whole = count == kFourBitBlock;
  const float divisor = absmax > kLeastScale ? absmax : kLeastScale, factor = 1.f / divisor;
  for (int64_t j = 0; j < kFourBitBlock; j += VW) {
    const vf scaled = whole ? load(x + j) * factor : load(x + j) / divisor;
    vi code = vi{};
    for (int k = 0; k < 15; k++) code -= scaled > splat(midpoints[k]);
    memcpy(codes + j, &code, sizeof code);
  }
  for (int i = 0; i < VW; i++)
    if (!finite[i]) return __builtin_nanf("");
  return whole ? absmax : divisor;
}

template <class T>
static void quantise4_blocks(const Quantise4Args& a, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; b++) {
    const int64_t from = b * kFourBitBlock, count = min64(kFourBitBlock, a.n - from);
    float x[kFourBitBlock] = {};
    const T* numbers = static_cast<const T*>(a.numbers) + from;
    each_vector(count, [&](int64_t j, int64_t c) { store(x + j, read(numbers + j, c)); });
    int32_t codes[kFourBitBlock];
    a.absmax[b] = quantise4_block(x, count, a.midpoints, codes);
    uint8_t* packed = a.packed + from / 2;
    for (int64_t i = 0; i < (count + 1) / 2; i++)
      packed[i] = uint8_t(a.order[codes[2 * i]] << 4 | a.order[codes[2 * i + 1]]);
  }
}

// The scale of a block, where need be from its 8 bits.
static float scale4(const Dequantise4Args& a, int64_t block) {
  if (!a.scale_codes) return a.absmax[block];
  // Volatile, so that the product is rounded before the sum.
  const volatile float product = a.map[a.scale_codes[block]] * a.absmax[block / kQuantBlock];
  return product + a.offset;
}

// The table's numbers that the nibbles name, the high one of a byte first.
template <class T>
TE_INLINE void expand4(const uint8_t* packed, const T* table, T* out, int64_t count) {
  for (int64_t i = 0; i < count / 2; i++) {
    out[2 * i] = table[packed[i] >> 4];
    out[2 * i + 1] = table[packed[i] & 15];
  }
  if (count % 2) out[count - 1] = table[packed[count / 2] >> 4];
}

#if defined(__AVX512BW__)
typedef uint8_t quads __attribute__((vector_size(8)));
typedef uint8_t bytes __attribute__((vector_size(16)));
typedef uint64_t vq __attribute__((vector_size(64)));
typedef uint16_t words __attribute__((vector_size(64)));

// Whole blocks: a nibble is the index of a lane as it comes, because a permutation ignores the bits above its index.
TE_INLINE void expand4(const uint8_t* packed, const float* table, float* out) {
  const vf from = load(table);
  for (int64_t i = 0; i < kFourBitBlock / 2; i += 8) {
    quads eight;
    memcpy(&eight, packed + i, sizeof eight);
    const vq wide = __builtin_convertvector(eight, vq);
    store(out + 2 * i, __builtin_shuffle(from, (vi)(wide >> 4 | wide << 32)));
  }
}

template <class T>
TE_INLINE void expand4(const uint8_t* packed, const T* table, T* out) {
  vs once;
  memcpy(&once, table, sizeof once);
  // Twice over, so that the fifth bit of an index of 32 lanes does not matter.
  const words from = __builtin_shufflevector(once, once, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17,
                                             18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int64_t i = 0; i < kFourBitBlock / 2; i += 16) {
    bytes sixteen;
    memcpy(&sixteen, packed + i, sizeof sixteen);
    const vu wide = __builtin_convertvector(sixteen, vu);
    const words numbers = __builtin_shuffle(from, (words)(wide >> 4 | wide << 16));
    memcpy(out + 2 * i, &numbers, sizeof numbers);
  }
}
#else
template <class T>
TE_INLINE void expand4(const uint8_t* packed, const T* table, T* out) {
  expand4(packed, table, out, kFourBitBlock);
}
#endif

template <class T>
static void dequantise4_blocks(const Dequantise4Args& a, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; b++) {
    const int64_t from = b * kFourBitBlock, count = min64(kFourBitBlock, a.n - from);
    const float scale = scale4(a, b);
    // Scaled and rounded once for the whole block.
    T table[16];
    for (int64_t j = 0; j < 16; j += VW) store(table + j, load(a.values + j) * scale);
    T* out = static_cast<T*>(a.numbers) + from;
    if (count == kFourBitBlock) expand4(a.packed + from / 2, table, out);
    else expand4(a.packed + from / 2, table, out, count);
  }
}

static void quantise4(const Quantise4Args& a, int64_t begin, int64_t end) { TE_BY_DTYPE(quantise4_blocks, a, begin, end) }
static void dequantise4(const Dequantise4Args& a, int64_t begin, int64_t end) {
  TE_BY_DTYPE(dequantise4_blocks, a, begin, end)
}

}  // namespace te::KERNEL_ISA

// What generation does for each row and token: attention of one query over a cache, and sampling.
#pragma once

#include "fused_kernel.h"

namespace te::KERNEL_ISA {

// The dot products of one query with VW keys, a lane each.
template <class T>
TE_INLINE vf dots(const float* q, const T* keys, int64_t stride, int64_t dim, int64_t count) {
  vf sums[VW];
#pragma GCC unroll 16
  for (int i = 0; i < VW; i++) sums[i] = vf{};
  for (int i = 0; i < count; i++) {
    const T* key = keys + i * stride;
    each_vector(dim, [&](int64_t d, int64_t c) { sums[i] += load(q + d) * read(key + d, c); });
  }
  transpose(sums);
  vf total = vf{};
#pragma GCC unroll 16
  for (int i = 0; i < VW; i++) total += sums[i];
  return total;
}

// out[dim] = sum of weights[j] * values[j], up to 4 vectors of columns at a time.
template <class T>
static void weighted_sum(const float* weights, const T* values, int64_t stride, int64_t count, int64_t dim, float factor,
                         T* out) {
  constexpr int64_t kColumns = 4 * VW;
  int64_t d = 0;
  for (; d + kColumns <= dim; d += kColumns) {
    vf sums[4] = {};
    for (int64_t j = 0; j < count; j++)
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) sums[i] += weights[j] * load(values + j * stride + d + i * VW);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) store(out + d + i * VW, sums[i] * factor);
  }
  each_vector(dim - d, [&](int64_t i, int64_t c) {
    vf sum = vf{};
    for (int64_t j = 0; j < count; j++) sum += weights[j] * read(values + j * stride + d + i, c);
    write(out + d + i, sum * factor, c);
  });
}

// One row and key head: the queries that share it, over the row's keys.
template <class T>
static void attend_cached(const CachedArgs& a, int64_t row, int64_t kv_head, float* scratch) {
  const int64_t group = a.heads / a.kv_heads, length = a.lengths[row];
  const int64_t first = a.window > 0 ? max64(0, length - a.window) : 0, count = length - first;
  const int64_t at = a.slots[row] * a.cache.slot + first * a.cache.row + kv_head * a.cache.head;
  T* keys = static_cast<T*>(a.keys) + at;
  T* values = static_cast<T*>(a.values) + at;
  const auto append = [&](const Heads& from, T* to) {
    const T* source = static_cast<const T*>(from.data) + row * from.row + kv_head * from.head;
    memcpy(to + (count - 1) * a.cache.row, source, a.dim * sizeof(T));
  };
  append(a.k, keys);
  append(a.v, values);
  float* q = scratch;
  float* weights = scratch + round_up(a.dim, VW);
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
    const T* query = static_cast<const T*>(a.q.data) + row * a.q.row + h * a.q.head;
    each_vector(a.dim, [&](int64_t d, int64_t c) { store(q + d, read(query + d, c) * a.scale); });
    vf top = splat(-__builtin_inff());
    each_vector(count, [&](int64_t j, int64_t c) {
      const vf z = dots(q, keys + j * a.cache.row, a.cache.row, a.dim, c);
      store(weights + j, z);
      top = max_v(c == VW || iota() < int32_t(c) ? z : top, top);
    });
    const float max = max_lanes(top);
    vf total = vf{};
    each_vector(count, [&](int64_t j, int64_t c) {
      const vf e = masked(exp_v(load(weights + j) - max), c);
      total += e;
      store(weights + j, e);
    });
    T* out = static_cast<T*>(a.out.data) + row * a.out.row + h * a.out.head;
    weighted_sum(weights, values, a.cache.row, count, a.dim, 1.f / sum_lanes(total), out);
  }
}

static void attend_cached_row(const CachedArgs& a, int64_t row, int64_t kv_head, float* scratch) {
  TE_BY_DTYPE(attend_cached, a, row, kv_head, scratch)
}

constexpr int64_t kSampleBlock = 256;

template <class T>
static void sample_row(const SampleArgs& a, int64_t row, float* sums) {
  const T* x = static_cast<const T*>(a.logits) + row * a.vocab;
  const float temperature = a.temperatures[row];
  const float scale = temperature > 0 ? 1.f / temperature : 1.f;
  float max = -__builtin_inff();
  {
    vf top = splat(max);
    vi nan = vi{};
    each_vector(a.vocab, [&](int64_t j, int64_t c) {
      const vf v = read(x + j, c);
      nan |= v != v;
      top = max_v(c == VW || iota() < int32_t(c) ? v : top, top);
    });
    max = max_lanes(top);
    for (int i = 0; i < VW; i++)
      if (nan[i]) max = __builtin_nanf("");
  }
  double total = 0;
  for (int64_t b = 0, k = 0; b < a.vocab; b += kSampleBlock, k++) {
    vf sum = vf{};
    each_vector(min64(kSampleBlock, a.vocab - b), [&](int64_t j, int64_t c) {
      sum += masked(exp_v((read(x + b + j, c) - max) * scale), c);
    });
    sums[k] = sum_lanes(sum);
    total += sums[k];
  }
  int64_t id = 0;
  if (temperature > 0) {
    // The first id whose cumulative mass is above u * total: blocks, then elements.
    const double target = a.uniforms[row] * total;
    double below = 0;
    int64_t b = 0, k = 0;
    for (; b + kSampleBlock < a.vocab && below + sums[k] <= target; b += kSampleBlock, k++) below += sums[k];
    id = -1;
    int64_t last = b;  // with any mass
    for (int64_t j = b; j < a.vocab && id < 0; j++) {
      const float e = exp_v(splat((value(x + j) - max) * scale))[0];
      below += e;
      if (e > 0) last = j;
      if (below > target) id = j;
    }
    if (id < 0) id = last;
  } else {
    while (id + 1 < a.vocab && value(x + id) != max) id++;
  }
  a.ids[row] = id;
  a.logprobs[row] = float(double(value(x + id) - max) * scale - __builtin_log(total));
}

static void sample(const SampleArgs& a, int64_t row, float* scratch) { TE_BY_DTYPE(sample_row, a, row, scratch) }

static int64_t sample_scratch(const SampleArgs& a) { return a.vocab / kSampleBlock + 1; }

}  // namespace te::KERNEL_ISA

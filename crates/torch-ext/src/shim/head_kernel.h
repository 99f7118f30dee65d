// Softmax statistics of rows of logits, and their gradients written over the logits.
#pragma once

#include "vector.h"

namespace te::KERNEL_ISA {

constexpr int64_t kBlock = 64 * VW;  // elements summed in fp32, 64 a lane, before they go to fp64

// f(vector, offset) over a row; a row's tail is padded with `pad`.
template <class T, class F>
TE_INLINE void for_row(const T* x, int64_t from, int64_t to, vf pad, F f) {
  int64_t j = from;
  for (; j + VW <= to; j += VW) f(load(x + j), j);
  if (j < to) {
    const vi real = iota() < int32_t(to - j);
    f(real ? load_some(x + j, to - j) : pad, j);
  }
}

template <class T>
static float row_max(const T* x, int64_t n) {
  vf top[4];
  for (vf& t : top) t = splat(-__builtin_inff());
  int64_t j = 0;
  for (; j + 4 * VW <= n; j += 4 * VW)
    for (int i = 0; i < 4; i++) top[i] = max_v(load(x + j + i * VW), top[i]);
  for_row(x, j, n, splat(-__builtin_inff()), [&](vf v, int64_t) { top[0] = max_v(v, top[0]); });
  return max_lanes(max_v(max_v(top[0], top[1]), max_v(top[2], top[3])));
}

// Writes the row's statistics; NaN anywhere in it makes them NaN.
template <class T>
static void stats_row(const HeadArgs& a, const T* x, int64_t target, float* stats) {
  const float max = row_max(x, a.vocab), scale = a.inv_temperature;
  double sum = 0, weighted = 0;  // of e and of e * (z - max)
  for (int64_t b = 0; b < a.vocab; b += kBlock) {
    vf s = vf{}, w = vf{};
    for_row(x, b, min64(b + kBlock, a.vocab), splat(-__builtin_inff()), [&](vf v, int64_t) {
      const vf z = (v - max) * scale;
      const vf e = exp_v(z);
      s += e;
      // Where e is 0, z may be infinite.
      w += e == vf{} ? vf{} : e * z;
    });
    sum += sum_lanes(s);
    weighted += sum_lanes(w);
  }
  const double log_sum = __builtin_log(sum);
  const float at_target = value(x + target);
  bool correct = at_target == max;
  for (int64_t j = 0; correct && j < target; j++) correct = value(x + j) != max;
  stats[kMax] = max;
  stats[kLogSum] = float(log_sum);
  stats[kEntropy] = float(log_sum - weighted / sum);
  stats[kLogprob] = float(double(at_target - max) * scale - log_sum);
  stats[kCorrect] = correct ? 1.f : 0.f;
}

// d/dlogits of  logprob_gain * logprob[target] + entropy_gain * entropy, over the logits.
template <class T>
static void grad_row(const HeadArgs& a, T* x, int64_t target, const float* stats, float logprob_gain,
                     float entropy_gain) {
  const float max = stats[kMax], scale = a.inv_temperature;
  const float log_sum = stats[kLogSum], entropy = stats[kEntropy];
  const float at_target = value(x + target);
  const auto gradient = [&](vf v) {
    const vf logp = (v - max) * scale - log_sum;
    const vf p = exp_v(logp);
    const vf h = p == vf{} ? vf{} : p * (logp + entropy);
    return (-logprob_gain * p - entropy_gain * h) * scale;
  };
  int64_t j = 0;
  for (; j + VW <= a.vocab; j += VW) store(x + j, gradient(load(x + j)));
  if (j < a.vocab)
    store_some(x + j, gradient(load_some(x + j, a.vocab - j)), a.vocab - j);
  set_value(x + target, gradient(splat(at_target))[0] + logprob_gain * scale);
}

template <class T>
static void stats_rows(const HeadArgs& a, int64_t begin, int64_t end) {
  T* logits = static_cast<T*>(a.logits);
  for (int64_t i = begin; i < end; i++) {
    T* row = logits + i * a.vocab;
    stats_row(a, row, a.targets[i], a.stats + i * kStats);
    if (a.write_grad) grad_row(a, row, a.targets[i], a.stats + i * kStats, -1.f, 0.f);
  }
}

template <class T>
static void grad_rows(const HeadArgs& a, int64_t begin, int64_t end) {
  T* logits = static_cast<T*>(a.logits);
  for (int64_t i = begin; i < end; i++)
    grad_row(a, logits + i * a.vocab, a.targets[i], a.stats + i * kStats, a.coefficients[2 * i],
             a.coefficients[2 * i + 1]);
}

static void head_stats(const HeadArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case Dtype::f32: return stats_rows<float>(a, begin, end);
    case Dtype::bf16: return stats_rows<bf16>(a, begin, end);
    case Dtype::f16: return stats_rows<f16>(a, begin, end);
  }
}

static void head_grad(const HeadArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case Dtype::f32: return grad_rows<float>(a, begin, end);
    case Dtype::bf16: return grad_rows<bf16>(a, begin, end);
    case Dtype::f16: return grad_rows<f16>(a, begin, end);
  }
}

template <class T>
static double squares(const T* x, int64_t n) {
  double sum = 0;
  for (int64_t b = 0; b < n; b += kBlock) {
    vf s = vf{};
    for_row(x, b, min64(b + kBlock, n), vf{}, [&](vf v, int64_t) { s += v * v; });
    sum += sum_lanes(s);
  }
  return sum;
}

static double sum_of_squares(Dtype dtype, const void* data, int64_t n) {
  switch (dtype) {
    case Dtype::f32: return squares(static_cast<const float*>(data), n);
    case Dtype::bf16: return squares(static_cast<const bf16*>(data), n);
    case Dtype::f16: return squares(static_cast<const f16*>(data), n);
  }
  return 0;
}

}  // namespace te::KERNEL_ISA

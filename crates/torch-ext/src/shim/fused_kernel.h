// Norms, activations and rotary positions over rows: one pass where tensor operations take several.
// Everything is fp32 inside and rounded once.
#pragma once

#include "vector.h"

namespace te::KERNEL_ISA {

// f(offset, count) for the vectors of n elements; count < VW in the last one only.
template <class F>
TE_INLINE void each_vector(int64_t n, F f) {
  int64_t j = 0;
  for (; j + VW <= n; j += VW) f(j, int64_t(VW));
  if (j < n) f(j, n - j);
}

template <class T>
TE_INLINE vf read(const T* p, int64_t count) {
  return count == VW ? load(p) : load_some(p, count);
}

template <class T>
TE_INLINE void write(T* p, vf x, int64_t count) {
  if (count == VW) store(p, x);
  else store_some(p, x, count);
}

// The first `count` lanes of x, zeros after them.
TE_INLINE vf masked(vf x, int64_t count) { return count == VW ? x : (iota() < int32_t(count) ? x : vf{}); }

template <class T>
static void norm_forward_rows(const NormArgs& a, int64_t begin, int64_t end) {
  const int64_t n = a.width;
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  for (int64_t i = begin; i < end; i++) {
    const T* x = static_cast<const T*>(a.x) + i * n;
    T* out = static_cast<T*>(a.out) + i * n;
    float mean = 0;
    if (bias) {
      vf sum = vf{};
      each_vector(n, [&](int64_t j, int64_t c) { sum += read(x + j, c); });
      mean = sum_lanes(sum) / float(n);
    }
    vf squares = vf{};
    each_vector(n, [&](int64_t j, int64_t c) {
      const vf d = masked(read(x + j, c) - mean, c);
      squares += d * d;
    });
    const float rstd = 1.f / __builtin_sqrtf(sum_lanes(squares) / float(n) + a.eps);
    each_vector(n, [&](int64_t j, int64_t c) {
      vf y = (read(x + j, c) - mean) * rstd * read(weight + j, c);
      if (bias) y += read(bias + j, c);
      write(out + j, y, c);
    });
    if (bias) a.mean[i] = mean;
    a.rstd[i] = rstd;
  }
}

// Gradient of x for the rows, and the rows' part of the gradients of weight and bias (in `part`: [2, width]).
template <class T>
static void norm_backward_rows(const NormArgs& a, int64_t begin, int64_t end, float* part) {
  const int64_t n = a.width;
  const T* weight = static_cast<const T*>(a.weight);
  float* to_weight = part;
  float* to_bias = part + n;
  memset(part, 0, 2 * n * sizeof(float));
  for (int64_t i = begin; i < end; i++) {
    const T* x = static_cast<const T*>(a.x) + i * n;
    const T* grad = static_cast<const T*>(a.grad) + i * n;
    T* out = static_cast<T*>(a.out) + i * n;
    const float mean = a.mean ? a.mean[i] : 0.f, rstd = a.rstd[i];
    vf sum = vf{}, dot = vf{};
    each_vector(n, [&](int64_t j, int64_t c) {
      const vf g = read(grad + j, c);
      const vf normed = (read(x + j, c) - mean) * rstd;
      const vf h = g * read(weight + j, c);
      sum += h;
      dot += h * normed;
      write(to_weight + j, read(to_weight + j, c) + g * normed, c);
      if (a.mean) write(to_bias + j, read(to_bias + j, c) + g, c);
    });
    const float h_mean = a.mean ? sum_lanes(sum) / float(n) : 0.f;
    const float h_dot = sum_lanes(dot) / float(n);
    each_vector(n, [&](int64_t j, int64_t c) {
      const vf normed = (read(x + j, c) - mean) * rstd;
      const vf h = read(grad + j, c) * read(weight + j, c);
      write(out + j, (h - h_mean - normed * h_dot) * rstd, c);
    });
  }
}

TE_INLINE vf sigmoid(vf x) { return 1.f / (1.f + exp_v(-x)); }

// GELU's tanh form is x * sigmoid(2u).
constexpr float kSqrt2OverPi = 0.7978845608f, kGeluCubic = 0.044715f;

TE_INLINE vf gelu(vf x) { return x * sigmoid(x * (2 * kSqrt2OverPi) * (1.f + kGeluCubic * x * x)); }

TE_INLINE vf gelu_slope(vf x) {
  const vf square = x * x;
  const vf s = sigmoid(x * (2 * kSqrt2OverPi) * (1.f + kGeluCubic * square));
  return s + x * s * (1.f - s) * (2 * kSqrt2OverPi) * (1.f + 3 * kGeluCubic * square);
}

template <class T>
static void gelu_range(const ActivationArgs& a, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(a.x) + begin;
  const T* grad = static_cast<const T*>(a.grad) + begin;
  T* out = static_cast<T*>(a.out) + begin;
  each_vector(end - begin, [&](int64_t j, int64_t c) {
    const vf v = read(x + j, c);
    write(out + j, a.grad ? read(grad + j, c) * gelu_slope(v) : gelu(v), c);
  });
}

// Rows of x are gate and up side by side, `width` each.
template <class T>
static void swiglu_rows(const ActivationArgs& a, int64_t begin, int64_t end) {
  const int64_t n = a.width;
  for (int64_t i = begin; i < end; i++) {
    const T* gates = static_cast<const T*>(a.x) + i * 2 * n;
    const T* ups = gates + n;
    if (!a.grad) {
      T* out = static_cast<T*>(a.out) + i * n;
      each_vector(n, [&](int64_t j, int64_t c) {
        const vf g = read(gates + j, c);
        write(out + j, g * sigmoid(g) * read(ups + j, c), c);
      });
      continue;
    }
    const T* grads = static_cast<const T*>(a.grad) + i * n;
    T* to_gates = static_cast<T*>(a.out) + i * 2 * n;
    T* to_ups = to_gates + n;
    each_vector(n, [&](int64_t j, int64_t c) {
      const vf g = read(gates + j, c), grad = read(grads + j, c);
      const vf s = sigmoid(g);
      write(to_gates + j, grad * read(ups + j, c) * s * (1.f + g * (1.f - s)), c);
      write(to_ups + j, grad * g * s, c);
    });
  }
}

template <class T>
static void rotate_rows(const RotateArgs& a, int64_t begin, int64_t end) {
  const int64_t half = a.dim / 2;
  for (int64_t i = begin; i < end; i++) {
    const T* cos = static_cast<const T*>(a.cos) + i * half;
    const T* sin = static_cast<const T*>(a.sin) + i * half;
    for (int64_t h = 0; h < a.heads; h++) {
      const T* x = static_cast<const T*>(a.x.data) + i * a.x.row + h * a.x.head;
      T* out = static_cast<T*>(a.out.data) + i * a.out.row + h * a.out.head;
      each_vector(half, [&](int64_t j, int64_t n) {
        const vf first = read(x + j, n), second = read(x + half + j, n), c = read(cos + j, n);
        const vf s = a.inverse ? -read(sin + j, n) : read(sin + j, n);
        write(out + j, first * c - second * s, n);
        write(out + half + j, second * c + first * s, n);
      });
    }
  }
}

#define TE_BY_DTYPE(function, ...)                            \
  switch (a.dtype) {                                          \
    case Dtype::f32: return function<float>(__VA_ARGS__);     \
    case Dtype::bf16: return function<bf16>(__VA_ARGS__);     \
    case Dtype::f16: return function<f16>(__VA_ARGS__);       \
  }

template <class T>
static void add_range(const AddArgs& a, int64_t begin, int64_t end) {
  const T* from = static_cast<const T*>(a.from) + begin;
  float* to = a.to + begin;
  each_vector(end - begin, [&](int64_t j, int64_t c) { write(to + j, read(to + j, c) + read(from + j, c), c); });
}

static void add(const AddArgs& a, int64_t begin, int64_t end) { TE_BY_DTYPE(add_range, a, begin, end) }
static void norm_forward(const NormArgs& a, int64_t begin, int64_t end) { TE_BY_DTYPE(norm_forward_rows, a, begin, end) }
static void norm_backward(const NormArgs& a, int64_t begin, int64_t end, float* part) {
  TE_BY_DTYPE(norm_backward_rows, a, begin, end, part)
}
static void gelu_tanh(const ActivationArgs& a, int64_t begin, int64_t end) { TE_BY_DTYPE(gelu_range, a, begin, end) }
static void swiglu(const ActivationArgs& a, int64_t begin, int64_t end) { TE_BY_DTYPE(swiglu_rows, a, begin, end) }
static void rotate(const RotateArgs& a, int64_t begin, int64_t end) { TE_BY_DTYPE(rotate_rows, a, begin, end) }

}  // namespace te::KERNEL_ISA

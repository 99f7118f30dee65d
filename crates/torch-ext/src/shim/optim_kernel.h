// An AdamW step whose moments are kept in 8 bits: blocks of 256 numbers, each an index into a map of values in
// [-1, 1] (or [0, 1]) times the block's largest absolute value.
#pragma once

#include "vector.h"

namespace te::KERNEL_ISA {

// The index of the value nearest to each of n numbers: the number of midpoints below it.
static void nearest(const float* x, int64_t n, const float* midpoints, uint8_t* codes) {
  int32_t index[kQuantBlock] = {};
  for (int32_t step = 128; step > 0; step /= 2)
    for (int64_t i = 0; i < n; i++) index[i] += x[i] > midpoints[index[i] + step - 1] ? step : 0;
  for (int64_t i = 0; i < n; i++) codes[i] = uint8_t(index[i]);
}

struct Moment {
  float values[kQuantBlock];

  void read(const QuantMap& map, const uint8_t* codes, float absmax, int64_t n) {
    for (int64_t i = 0; i < n; i++) values[i] = map.values[codes[i]] * absmax;
  }

  // Returns the new largest absolute value. Code 0 of a map from 0 on is left to zeros where `keeps_positive`.
  float write(const QuantMap& map, uint8_t* codes, int64_t n, bool keeps_positive) {
    float most = 0;
    for (int64_t i = 0; i < n; i++) {
      const float size = values[i] < 0 ? -values[i] : values[i];
      most = size > most ? size : most;
    }
    const float factor = most > 0 ? 1.f / most : 0.f;
    float scaled[kQuantBlock];
    for (int64_t i = 0; i < n; i++) scaled[i] = values[i] * factor;
    nearest(scaled, n, map.midpoints, codes);
    if (keeps_positive)
      for (int64_t i = 0; i < n; i++) codes[i] |= codes[i] == 0 && values[i] > 0;
    return most;
  }
};

static void adamw_8bit(const Adam8Args& a, int64_t block_begin, int64_t block_end) {
  Moment first, second;
  for (int64_t b = block_begin; b < block_end; b++) {
    const int64_t from = b * kQuantBlock, n = min64(kQuantBlock, a.n - from);
    float* param = a.param + from;
    const float* grad = a.grad + from;
    first.read(a.first_map, a.first + from, a.first_absmax[b], n);
    second.read(a.second_map, a.second + from, a.second_absmax[b], n);
    for (int64_t i = 0; i < n; i++) {
      const float g = grad[i];
      const float m = first.values[i] = a.beta1 * first.values[i] + (1.f - a.beta1) * g;
      const float v = second.values[i] = a.beta2 * second.values[i] + (1.f - a.beta2) * g * g;
      param[i] = param[i] * (1.f - a.lr * a.weight_decay) -
                 a.lr / a.correction1 * m / (__builtin_sqrtf(v) / a.root_correction2 + a.eps);
    }
    a.first_absmax[b] = first.write(a.first_map, a.first + from, n, false);
    a.second_absmax[b] = second.write(a.second_map, a.second + from, n, true);
  }
}

}  // namespace te::KERNEL_ISA

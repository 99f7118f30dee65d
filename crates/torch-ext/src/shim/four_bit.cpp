// Numbers in 4 bits: the CPU kernels' drivers.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mean.h>

#include "shim.h"

using namespace te;

// Blocks worth a thread of their own.
constexpr int64_t kGrain = 1024;

static int64_t blocks_of(int64_t n) { return (n + kFourBitBlock - 1) / kFourBitBlock; }

extern "C" {

// midpoints: 15; order: the codes of the 16 values from the smallest on. results: codes, two a byte, and the scales.
char* te_four_bit_quantise(Tensor* numbers, const float* midpoints, const uint8_t* order, Tensor** results) {
  return guarded([&] {
    const c10::NoGradGuard guard;
    const Tensor in = numbers->contiguous();
    const int64_t n = in.numel(), blocks = blocks_of(n);
    const Tensor packed = at::empty({(n + 1) / 2}, in.options().dtype(at::kByte));
    const Tensor absmax = at::empty({blocks}, in.options().dtype(at::kFloat));
    const Quantise4Args a{dtype_of(in),         n,     in.const_data_ptr(), packed.data_ptr<uint8_t>(),
                          absmax.data_ptr<float>(), midpoints, order};
    at::parallel_for(0, blocks, kGrain, [&](int64_t begin, int64_t end) { kernels().quantise4(a, begin, end); });
    results[0] = own(packed);
    results[1] = own(absmax);
  });
}

// The mean of numbers, summed on one thread: the same bits for any number of them.
char* te_four_bit_mean(Tensor* numbers, float* mean) {
  return guarded([&] {
    const c10::NoGradGuard guard;
    // Within a parallel region libtorch does not divide a sum.
    at::parallel_for(0, 2, 1, [&](int64_t begin, int64_t) {
      if (begin == 0) *mean = at::mean(*numbers).item<float>();
    });
  });
}

// tensors: codes, scales, and where these are in 8 bits their codes, else null; out [n], contiguous.
// values: of the 16 codes; map: of the 256 codes of scales.
char* te_four_bit_dequantise(List tensors, const float* values, const float* map, double offset, Tensor* out) {
  return guarded([&] {
    const Dequantise4Args a{dtype_of(*out),
                            out->numel(),
                            out->data_ptr(),
                            tensors[0]->data_ptr<uint8_t>(),
                            values,
                            tensors[1]->data_ptr<float>(),
                            tensors[2] ? tensors[2]->data_ptr<uint8_t>() : nullptr,
                            map,
                            static_cast<float>(offset)};
    at::parallel_for(0, blocks_of(a.n), kGrain,
                     [&](int64_t begin, int64_t end) { kernels().dequantise4(a, begin, end); });
    out->unsafeGetTensorImpl()->bump_version();
  });
}

}  // extern "C"

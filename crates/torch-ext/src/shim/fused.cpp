// Norms, activations, rotary positions, attention over a cache and sampling: the CPU kernels' drivers.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "shim.h"

namespace te {

// Rows whose share of a norm's weight gradient is summed at once: a fixed number, so that the sums do not depend
// on the number of threads.
constexpr int64_t kNormBlock = 128;

// Elements worth a thread of their own.
constexpr int64_t kGrain = 16384;

static int64_t grain(int64_t row) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row)); }

static NormArgs norm_arguments(const Tensor& x, const Tensor& weight, const Tensor& out) {
  NormArgs a{};
  a.dtype = dtype_of(x);
  a.width = weight.numel();
  a.x = x.const_data_ptr(), a.weight = weight.const_data_ptr(), a.out = out.data_ptr();
  return a;
}

// dst[columns] = the sum of the rows of part, in their order.
static void sum_blocks(const Tensor& part, int64_t which, const Tensor& dst) {
  const int64_t blocks = part.size(0), width = part.size(2);
  const float* from = part.const_data_ptr<float>() + which * width;
  float* to = dst.data_ptr<float>();
  std::fill_n(to, width, 0.f);
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t j = 0; j < width; j++) to[j] += from[b * 2 * width + j];
}

}  // namespace te

using namespace te;

extern "C" {

// tensors: x, weight, bias or null; results: out, 1 / deviation [rows], and with a bias the mean [rows].
char* te_norm_forward(List tensors, double eps, Tensor** results) {
  return guarded([&] {
    const Tensor x = tensors[0]->contiguous(), weight = tensors[1]->contiguous();
    const Tensor bias = tensors[2] ? tensors[2]->contiguous() : Tensor();
    const int64_t rows = x.numel() / weight.numel();
    const Tensor out = at::empty_like(x), rstd = at::empty({rows}, x.options().dtype(at::kFloat));
    const Tensor mean = bias.defined() ? at::empty_like(rstd) : Tensor();
    NormArgs a = norm_arguments(x, weight, out);
    a.eps = static_cast<float>(eps), a.rstd = rstd.data_ptr<float>();
    if (bias.defined()) a.bias = bias.const_data_ptr(), a.mean = mean.data_ptr<float>();
    at::parallel_for(0, rows, grain(a.width),
                     [&](int64_t begin, int64_t end) { kernels().norm_forward(a, begin, end); });
    results[0] = own(out);
    results[1] = own(rstd);
    results[2] = own(mean);
  });
}

// tensors: gradient, x, weight, 1 / deviation, mean or null; results: the gradients of x, weight and (with a mean)
// bias, the last two in fp32.
char* te_norm_backward(List tensors, Tensor** results) {
  return guarded([&] {
    const Tensor grad = tensors[0]->contiguous(), x = tensors[1]->contiguous(), weight = tensors[2]->contiguous();
    const Tensor to_x = at::empty_like(x);
    NormArgs a = norm_arguments(x, weight, to_x);
    a.grad = grad.const_data_ptr(), a.rstd = tensors[3]->data_ptr<float>();
    if (tensors[4]) a.mean = tensors[4]->data_ptr<float>();
    const int64_t rows = x.numel() / a.width, blocks = (rows + kNormBlock - 1) / kNormBlock;
    const auto fp32 = x.options().dtype(at::kFloat);
    const Tensor part = at::empty({blocks, 2, a.width}, fp32);
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; b++)
        kernels().norm_backward(a, b * kNormBlock, std::min(rows, (b + 1) * kNormBlock),
                                part.data_ptr<float>() + b * 2 * a.width);
    });
    const Tensor to_weight = at::empty({a.width}, fp32), to_bias = tensors[4] ? at::empty({a.width}, fp32) : Tensor();
    sum_blocks(part, 0, to_weight);
    if (to_bias.defined()) sum_blocks(part, 1, to_bias);
    results[0] = own(to_x);
    results[1] = own(to_weight);
    results[2] = own(to_bias);
  });
}

// The activation of x, or with a gradient that of its input.
char* te_gelu_tanh(Tensor* x, Tensor* grad, Tensor** result) {
  return guarded([&] {
    const Tensor in = x->contiguous(), given = grad ? grad->contiguous() : Tensor(), out = at::empty_like(in);
    const ActivationArgs a{dtype_of(in), 0, in.const_data_ptr(), grad ? given.const_data_ptr() : nullptr,
                           out.data_ptr()};
    at::parallel_for(0, in.numel(), kGrain,
                     [&](int64_t begin, int64_t end) { kernels().gelu_tanh(a, begin, end); });
    *result = own(out);
  });
}

// silu(gate) * up of x [rows, 2 width], or with a gradient [rows, width] that of x.
char* te_swiglu(Tensor* x, Tensor* grad, Tensor** result) {
  return guarded([&] {
    const Tensor in = x->contiguous(), given = grad ? grad->contiguous() : Tensor();
    const int64_t rows = in.size(0), width = in.size(1) / 2;
    const Tensor out = grad ? at::empty_like(in) : at::empty({rows, width}, in.options());
    const ActivationArgs a{dtype_of(in), width, in.const_data_ptr(), grad ? given.const_data_ptr() : nullptr,
                           out.data_ptr()};
    at::parallel_for(0, rows, grain(width), [&](int64_t begin, int64_t end) { kernels().swiglu(a, begin, end); });
    *result = own(out);
  });
}

// Rotates x [rows, heads, dim] into out of the same shape; cos and sin are [rows, dim / 2], contiguous.
char* te_rotate(Tensor* x, Tensor* cos, Tensor* sin, bool inverse, Tensor* out) {
  return guarded([&] {
    TORCH_CHECK(out->stride(2) == 1 && cos->is_contiguous() && sin->is_contiguous(), "not dense");
    const Tensor in = dense(*x);
    const RotateArgs a{dtype_of(in),         in.size(1),            in.size(2), heads(in), heads(*out),
                       cos->const_data_ptr(), sin->const_data_ptr(), inverse};
    at::parallel_for(0, x->size(0), grain(x->size(1) * x->size(2)),
                     [&](int64_t begin, int64_t end) { kernels().rotate(a, begin, end); });
  });
}

// tensors: q [rows, heads, dim], k and v [rows, kv_heads, dim], keys and values [slots, kv_heads, len, dim].
char* te_attend_cached(List tensors, const int64_t* slots, const int64_t* lengths, double scale, int64_t window,
                       Tensor** result) {
  return guarded([&] {
    const Tensor q = dense(*tensors[0]), k = dense(*tensors[1]), v = dense(*tensors[2]);
    const Tensor &keys = *tensors[3], &values = *tensors[4];
    TORCH_CHECK(keys.is_contiguous() && values.is_contiguous(), "not contiguous");
    const Tensor out = at::empty(q.sizes(), q.options());
    CachedArgs a{};
    a.dtype = dtype_of(q);
    a.heads = q.size(1), a.kv_heads = keys.size(1), a.dim = q.size(2);
    a.scale = static_cast<float>(scale), a.window = window;
    a.q = heads(q), a.k = heads(k), a.v = heads(v), a.out = heads(out);
    a.keys = keys.data_ptr(), a.values = values.data_ptr();
    a.cache = {keys.stride(0), keys.stride(2), keys.stride(1)};
    a.slots = slots, a.lengths = lengths;
    const int64_t rows = q.size(0);
    const int64_t longest = rows > 0 ? *std::max_element(lengths, lengths + rows) : 0;
    at::parallel_for(0, rows * a.kv_heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(a.dim + longest + 32);
      for (int64_t i = begin; i < end; i++) kernels().attend_cached(a, i / a.kv_heads, i % a.kv_heads, scratch.data());
    });
    *result = own(out);
  });
}

char* te_sample(Tensor* logits, const float* temperatures, const double* uniforms, int64_t* ids, float* logprobs) {
  return guarded([&] {
    const Tensor x = logits->contiguous();
    const SampleArgs a{dtype_of(x), x.const_data_ptr(), x.size(1), temperatures, uniforms, ids, logprobs};
    at::parallel_for(0, x.size(0), grain(a.vocab), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(kernels().sample_scratch(a));
      for (int64_t i = begin; i < end; i++) kernels().sample(a, i, scratch.data());
    });
  });
}

}  // extern "C"

// Operations over lists of tensors. None records gradients.
#include <ATen/Parallel.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_foreach_sub.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>

#include <cmath>
#include <numeric>

#include "shim.h"

namespace te {

// Elements whose squares one task sums: fixed, so that the sum does not depend on the threads.
constexpr int64_t kNormBlock = 1 << 16;

static Tensor norm_cpu(const std::vector<Tensor>& tensors) {
  struct Block {
    Dtype dtype;
    const char* data;
    int64_t n;
  };
  std::vector<Tensor> kept;
  std::vector<Block> blocks;
  for (const auto& tensor : tensors) {
    // Any order of the elements will do, so dense means no copy.
    kept.push_back(tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous());
    const char* data = static_cast<const char*>(kept.back().const_data_ptr());
    const int64_t size = tensor.element_size();
    for (int64_t i = 0; i < tensor.numel(); i += kNormBlock)
      blocks.push_back({dtype_of(tensor), data + i * size, std::min(kNormBlock, tensor.numel() - i)});
  }
  std::vector<double> sums(blocks.size());
  at::parallel_for(0, static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      sums[i] = kernels().sum_of_squares(blocks[i].dtype, blocks[i].data, blocks[i].n);
  });
  return at::scalar_tensor(std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0)), at::kFloat);
}

static Tensor norm(const std::vector<Tensor>& tensors) {
  if (tensors.empty()) return at::scalar_tensor(0.0, at::kFloat);
  for (const auto& tensor : tensors)
    TORCH_CHECK(at::isFloatingType(tensor.scalar_type()), "a tensor is of dtype ", tensor.scalar_type());
  const bool own_kernel = std::all_of(tensors.begin(), tensors.end(), [](const Tensor& t) {
    return t.is_cpu() && t.scalar_type() != at::kDouble;
  });
  if (own_kernel) return norm_cpu(tensors);
  std::vector<Tensor> wide, narrow;
  for (const auto& tensor : tensors) (tensor.scalar_type() == at::kDouble ? wide : narrow).push_back(tensor);
  std::vector<Tensor> norms;
  if (!narrow.empty()) norms = at::_foreach_norm(narrow, 2, at::kFloat);
  if (!wide.empty())
    for (const auto& n : at::_foreach_norm(wide, 2)) norms.push_back(n.to(at::kFloat));
  return at::linalg_vector_norm(at::stack(norms), 2);
}

// libtorch adds half precision to fp32 by way of an fp32 copy; the kernel needs none.
static bool adds_half(const Tensor& to, const Tensor& from) {
  const bool half = from.scalar_type() == at::kBFloat16 || from.scalar_type() == at::kHalf;
  return half && to.scalar_type() == at::kFloat && to.is_cpu() && from.is_cpu() && to.is_contiguous() &&
         from.is_contiguous() && to.numel() == from.numel();
}

static void add_half(const Tensor& to, const Tensor& from) {
  const AddArgs a{dtype_of(from), from.const_data_ptr(), to.data_ptr<float>()};
  at::parallel_for(0, to.numel(), 1 << 15, [&](int64_t begin, int64_t end) { kernels().add(a, begin, end); });
  to.unsafeGetTensorImpl()->bump_version();
}

}  // namespace te

using namespace te;

// Runs f without autograd.
template <class F>
static char* in_place(F f) {
  return guarded([&] {
    const c10::NoGradGuard guard;
    f();
  });
}

extern "C" {

char* te_norm(List tensors, size_t n, Tensor** out) {
  return in_place([&] { *out = own(norm(list(tensors, n))); });
}

char* te_mul_scalar(List tensors, size_t n, double factor) {
  return in_place([&] {
    if (n > 0) at::_foreach_mul_(list(tensors, n), factor);
  });
}

char* te_mul_tensor(List tensors, size_t n, Tensor* factor) {
  return in_place([&] {
    if (n > 0) at::_foreach_mul_(list(tensors, n), factor->reshape({}));
  });
}

char* te_zero(List tensors, size_t n) {
  return in_place([&] {
    if (n > 0) at::_foreach_zero_(list(tensors, n));
  });
}

char* te_add(List dst, List src, size_t n, double alpha) {
  return in_place([&] {
    std::vector<Tensor> to, from;
    for (size_t i = 0; i < n; i++) {
      if (alpha == 1 && adds_half(*dst[i], *src[i])) {
        add_half(*dst[i], *src[i]);
      } else {
        to.push_back(*dst[i]);
        from.push_back(*src[i]);
      }
    }
    if (!to.empty()) at::_foreach_add_(to, from, alpha);
  });
}

char* te_copy(List dst, List src, size_t n) {
  return in_place([&] {
    if (n > 0) at::_foreach_copy_(list(dst, n), list(src, n));
  });
}

char* te_unscale(List grads, size_t n, Tensor* inv_scale, Tensor* found_inf) {
  return in_place([&] {
    if (n > 0)
      at::_amp_foreach_non_finite_check_and_unscale_(list(grads, n), *found_inf, inv_scale->reshape({1}));
  });
}

// lists: parameters, gradients, first moments, second moments, steps.
// hyper: lr, beta1, beta2, weight decay, eps.
char* te_adamw(const List* lists, size_t n, const double* hyper, Tensor* grad_scale, Tensor* found_inf) {
  return in_place([&] {
    const auto steps = list(lists[4], n);
    const auto optional = [](Tensor* t) { return t ? std::optional<Tensor>(*t) : std::nullopt; };
    at::_foreach_add_(steps, 1);
    at::_fused_adamw_(list(lists[0], n), list(lists[1], n), list(lists[2], n), list(lists[3], n), {}, steps,
                      hyper[0], hyper[1], hyper[2], hyper[3], hyper[4], false, false, optional(grad_scale),
                      optional(found_inf));
    // libtorch's kernel does not mark its outputs as changed.
    for (int which : {0, 2, 3})
      for (const auto& tensor : list(lists[which], n)) tensor.unsafeGetTensorImpl()->bump_version();
    // A step that was not taken does not count.
    if (found_inf) at::_foreach_sub_(steps, std::vector<Tensor>(n, found_inf->reshape({})));
  });
}

// tensors: parameter, gradient, first moment's codes and absmax, second's, the values and midpoints of both maps.
// hyper: lr, beta1, beta2, weight decay, eps, step.
char* te_adamw_8bit(List tensors, const double* hyper) {
  return in_place([&] {
    Adam8Args a{};
    const auto floats = [&](int i) { return tensors[i]->data_ptr<float>(); };
    a.n = tensors[0]->numel();
    a.param = floats(0), a.grad = floats(1);
    a.first = tensors[2]->data_ptr<uint8_t>(), a.first_absmax = floats(3);
    a.second = tensors[4]->data_ptr<uint8_t>(), a.second_absmax = floats(5);
    a.first_map = {floats(6), floats(7)}, a.second_map = {floats(8), floats(9)};
    a.lr = static_cast<float>(hyper[0]), a.beta1 = static_cast<float>(hyper[1]), a.beta2 = static_cast<float>(hyper[2]);
    a.weight_decay = static_cast<float>(hyper[3]), a.eps = static_cast<float>(hyper[4]);
    a.correction1 = static_cast<float>(1 - std::pow(hyper[1], hyper[5]));
    a.root_correction2 = static_cast<float>(std::sqrt(1 - std::pow(hyper[2], hyper[5])));
    at::parallel_for(0, (a.n + kQuantBlock - 1) / kQuantBlock, 64,
                     [&](int64_t begin, int64_t end) { kernels().adamw_8bit(a, begin, end); });
    for (int which : {0, 2, 3, 4, 5}) tensors[which]->unsafeGetTensorImpl()->bump_version();
  });
}

}  // extern "C"

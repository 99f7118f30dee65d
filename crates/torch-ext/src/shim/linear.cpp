// Linear layers through oneDNN with weights laid out for its kernels, by way of libtorch's own operators.
#include <ATen/core/dispatch/Dispatcher.h>

#include "shim.h"

namespace te {

static std::optional<c10::OperatorHandle> find(const char* name) {
  return c10::Dispatcher::singleton().findSchema({name, ""});
}

static const std::optional<c10::OperatorHandle>& reorder() {
  static const auto op = find("mkldnn::_reorder_linear_weight");
  return op;
}

static const std::optional<c10::OperatorHandle>& pointwise() {
  static const auto op = find("mkldnn::_linear_pointwise");
  return op;
}

static Tensor call(const c10::OperatorHandle& op, torch::jit::Stack stack) {
  op.callBoxed(stack);
  return stack.at(0).toTensor();
}

}  // namespace te

using namespace te;

extern "C" {

bool te_linear_packs() noexcept { return reorder() && pointwise(); }

// weight [out, in], laid out for products with about `rows` rows.
char* te_linear_pack(Tensor* weight, int64_t rows, Tensor** result) {
  return guarded([&] {
    TORCH_CHECK(te_linear_packs(), "this libtorch has no oneDNN operators");
    const c10::InferenceMode guard;
    *result = own(call(*reorder(), {weight->contiguous(), rows}));
  });
}

// The weight [out, in] as it is, or packed.
char* te_linear(Tensor* x, Tensor* weight, Tensor* bias, Tensor** result) {
  return guarded([&] {
    const c10::List<std::optional<at::Scalar>> no_scalars;
    *result = own(call(*pointwise(), {*x, *weight, bias ? c10::IValue(*bias) : c10::IValue(), "none", no_scalars, ""}));
  });
}

}  // extern "C"

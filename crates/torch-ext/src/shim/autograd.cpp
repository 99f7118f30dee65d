// Autograd nodes that call back into Rust, and backward passes that return messages.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <mutex>
#include <sstream>
#include <stdexcept>
#include <unordered_set>

#include "shim.h"

namespace te {

// Starts every message that comes from a closure; RUST_ERROR in ffi.rs.
static const char kRustError[] = "\x01rust\x01";

using Apply = int32_t (*)(void*, Tensor* const*, size_t, Tensor**, size_t, char**);
using Drop = void (*)(void*);

// A boxed Rust closure, dropped once.
class Closure {
 public:
  Closure(void* data, Apply apply, Drop drop) : data_(data), apply_(apply), drop_(drop) {}
  Closure(Closure&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), apply_(other.apply_), drop_(other.drop_) {}
  Closure& operator=(Closure&&) = delete;
  ~Closure() { release(); }

  bool released() const { return data_ == nullptr; }

  void release() {
    if (void* data = std::exchange(data_, nullptr)) drop_(data);
  }

  // Hands over the gradients; one gradient an input comes back, undefined for none.
  std::vector<Tensor> call(std::vector<Tensor>&& grads, size_t inputs) {
    std::vector<Tensor*> in, out(inputs, nullptr);
    for (auto& grad : grads) in.push_back(own(std::move(grad)));
    char* message = nullptr;
    const int32_t failed = apply_(data_, in.data(), in.size(), out.data(), inputs, &message);
    std::vector<Tensor> results;
    for (Tensor* tensor : out) {
      results.push_back(tensor ? std::move(*tensor) : Tensor());
      delete tensor;
    }
    if (failed) {
      std::string what = kRustError;
      if (message) what += message;
      std::free(message);
      // A nested backward pass has marked the message already.
      if (what.rfind(kRustError, 0) == 0 && what.find(kRustError, 1) != std::string::npos)
        what.erase(what.find(kRustError, 1), sizeof(kRustError) - 1);
      throw std::runtime_error(what);
    }
    return results;
  }

 private:
  void* data_;
  Apply apply_;
  Drop drop_;
};

struct RustNode final : torch::autograd::Node {
  RustNode(const char* name, Closure&& closure) : name_(name), closure_(std::move(closure)) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(!c10::GradMode::is_enabled(), name_, " is differentiable once only");
    TORCH_CHECK(!closure_.released(), torch::autograd::ERR_BACKWARD_TWICE);
    return closure_.call(std::move(grads), num_outputs());
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    closure_.release();
  }

  std::string name() const override { return name_; }

 private:
  std::string name_;
  Closure closure_;
};

using Call = int32_t (*)(void*, char**);

// Calls a Rust closure whenever a backward pass has added to a leaf's gradient.
struct GradHook final : torch::autograd::FunctionPostHook {
  GradHook(void* data, Call call, Drop drop) : data_(data), call_(call), drop_(drop) {}
  ~GradHook() override { drop_(data_); }

  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list&) override {
    char* message = nullptr;
    if (call_(data_, &message)) {
      std::string what = kRustError;
      if (message) what += message;
      std::free(message);
      throw std::runtime_error(what);
    }
    return outputs;
  }

 private:
  void* data_;
  Call call_;
  Drop drop_;
};

// Keeps the leaf's node, to which the hook belongs: the leaf itself refers to it only weakly.
struct HookedLeaf {
  std::shared_ptr<torch::autograd::Node> node;
  uintptr_t key;
  ~HookedLeaf() { node->del_post_hook(key); }
};

static std::string shape_text(const Tensor& t) {
  std::ostringstream out;
  out << t.sizes();
  return out.str();
}

// The first leaf that requires a gradient, is reached from `outputs`, and is not in `listed`.
static const Tensor* unlisted_leaf(const std::vector<Tensor>& outputs, const std::vector<Tensor>& listed) {
  std::unordered_set<const torch::autograd::Node*> stop, seen;
  for (const auto& tensor : listed)
    if (tensor.defined() && tensor.requires_grad())
      stop.insert(torch::autograd::impl::gradient_edge(tensor).function.get());
  std::vector<const torch::autograd::Node*> todo;
  const auto visit = [&](const torch::autograd::Node* node) {
    if (node && !stop.count(node) && seen.insert(node).second) todo.push_back(node);
  };
  for (const auto& tensor : outputs)
    if (tensor.defined() && tensor.requires_grad())
      visit(torch::autograd::impl::gradient_edge(tensor).function.get());
  while (!todo.empty()) {
    const auto* node = todo.back();
    todo.pop_back();
    if (const auto* leaf = dynamic_cast<const torch::autograd::AccumulateGrad*>(node)) return &leaf->variable;
    for (const auto& edge : node->next_edges()) visit(edge.function.get());
  }
  return nullptr;
}

}  // namespace te

using namespace te;

extern "C" {

bool te_grad_enabled() { return c10::GradMode::is_enabled(); }

void te_set_grad_enabled(bool enabled) { c10::GradMode::set_enabled(enabled); }

bool te_keeps_graph() { return torch::autograd::get_current_graph_task_keep_graph(); }

char* te_tensor_data(Tensor* tensor, Tensor** out) {
  return guarded([&] {
    TORCH_CHECK(tensor->defined(), "the tensor is undefined");
    *out = own(tensor->tensor_data());
  });
}

char* te_take_grad(Tensor* leaf, Tensor** result) {
  return guarded([&] {
    if (!leaf->grad().defined()) return;
    *result = own(leaf->grad());
    leaf->mutable_grad().reset();
  });
}

char* te_on_grad(Tensor* leaf, void* data, Call call, Drop drop, HookedLeaf** out) {
  auto hook = std::make_unique<GradHook>(data, call, drop);
  return guarded([&] {
    auto node = torch::autograd::impl::grad_accumulator(*leaf);
    TORCH_CHECK(node, "only a leaf that requires a gradient has one to wait for");
    const uintptr_t key = node->add_post_hook(std::move(hook));
    *out = new HookedLeaf{std::move(node), key};
  });
}

void te_grad_hook_free(HookedLeaf* hook) { delete hook; }

char* te_tensor_version(Tensor* tensor, uint64_t* out) {
  return guarded([&] { *out = static_cast<uint64_t>(tensor->_version()); });
}

char* te_custom(const char* name, List inputs, size_t n_inputs, List outputs, size_t n_outputs,
                Tensor** results, void* data, Apply apply, Drop drop) {
  Closure closure(data, apply, drop);
  return guarded([&] {
    const auto in = list(inputs, n_inputs);
    for (size_t i = 0; i < n_outputs; i++)
      TORCH_CHECK(!outputs[i]->requires_grad(), "output ", i,
                  " requires a gradient already; compute the outputs without autograd");
    std::shared_ptr<RustNode> node;
    if (c10::GradMode::is_enabled() && torch::autograd::any_variable_requires_grad(in)) {
      node = std::shared_ptr<RustNode>(new RustNode(name, std::move(closure)), torch::autograd::deleteNode);
      node->set_next_edges(torch::autograd::collect_next_edges(in));
    }
    for (size_t i = 0; i < n_outputs; i++) {
      // A new tensor on the same memory: what the closure saved of the output stays without history.
      Tensor out = outputs[i]->tensor_data();
      if (node && torch::autograd::isDifferentiableType(out.scalar_type())) torch::autograd::set_history(out, node);
      else if (node) node->add_input_metadata(torch::autograd::Node::undefined_input());
      results[i] = own(std::move(out));
    }
  });
}

char* te_backward(List tensors, List grads, size_t n, bool retain_graph) {
  return guarded([&] { torch::autograd::backward(list(tensors, n), list(grads, n), retain_graph); });
}

char* te_grad(List outputs, List grad_outputs, size_t n_outputs, List inputs, size_t n_inputs,
              bool retain_graph, Tensor** results) {
  return guarded([&] {
    auto grads = torch::autograd::grad(list(outputs, n_outputs), list(inputs, n_inputs),
                                       list(grad_outputs, n_outputs), retain_graph, false, true);
    for (size_t i = 0; i < n_inputs; i++) results[i] = own(std::move(grads[i]));
  });
}

char* te_unlisted_leaf(List outputs, size_t n_outputs, List listed, size_t n_listed, char** out) {
  return guarded([&] {
    const Tensor* leaf = unlisted_leaf(list(outputs, n_outputs), list(listed, n_listed));
    *out = leaf ? text(shape_text(*leaf)) : nullptr;
  });
}

}  // extern "C"

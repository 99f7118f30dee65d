// Variable-length attention: the CPU kernels' driver, and libtorch's CUDA kernels.
#include <ATen/Parallel.h>
#include <ATen/ops/_efficient_attention_backward.h>
#include <ATen/ops/_efficient_attention_forward.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include <atomic>

#include "shim.h"

namespace te {

// Query rows of a forward task, and rows or keys of a backward task when documents are split.
constexpr int64_t kForwardTask = 256;
constexpr int64_t kBackwardTask = 256;

static AttentionArgs arguments(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                               const Tensor& lse, const TeAttentionOptions& o) {
  AttentionArgs a{};
  a.dtype = dtype_of(q);
  a.heads = q.size(1), a.kv_heads = k.size(1), a.dim = q.size(2);
  a.scale = static_cast<float>(o.scale), a.window = o.window;
  a.dropout_p = static_cast<float>(o.dropout_p), a.seed = o.dropout_seed;
  a.q = heads(q), a.k = heads(k), a.v = heads(v), a.out = heads(out);
  a.lse = lse.data_ptr<float>();
  return a;
}

// Runs the tasks on all threads, each taking the next one when it is free. Tasks write disjoint
// memory, so who runs which does not matter.
template <class F>
static void run(const std::vector<AttentionTask>& tasks, int64_t scratch_floats, F f) {
  std::atomic<size_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), static_cast<int64_t>(tasks.size()));
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    // One more vector's worth, to start at a cache line.
    std::vector<float> scratch;
    for (int64_t worker = begin; worker < end; worker++) {
      for (size_t i; (i = next.fetch_add(1)) < tasks.size();) {
        if (scratch.empty()) scratch.resize(scratch_floats + 16);
        const auto address = reinterpret_cast<uintptr_t>(scratch.data());
        f(tasks[i], reinterpret_cast<float*>((address + 63) / 64 * 64));
      }
    }
  });
}

static std::vector<AttentionTask> forward_tasks(const int64_t* cu, size_t docs, int64_t kv_heads) {
  std::vector<AttentionTask> tasks;
  for (size_t d = 0; d < docs; d++) {
    const int64_t len = cu[d + 1] - cu[d];
    for (int64_t h = 0; h < kv_heads; h++)
      // The last rows see most keys: they go first.
      for (int64_t q1 = len; q1 > 0;) {
        const int64_t q0 = (q1 - 1) / kForwardTask * kForwardTask;
        tasks.push_back({cu[d], len, h, q0, q1, 0, q1, false, false});
        q1 = q0;
      }
  }
  return tasks;
}

// One task a document and key head where there are enough; otherwise long documents are split into
// tasks for the gradients of some rows of q, and tasks for those of some rows of k and v. Every sum
// is taken in the same order either way.
static std::vector<AttentionTask> backward_tasks(const int64_t* cu, size_t docs, int64_t kv_heads, int64_t window) {
  std::vector<AttentionTask> tasks;
  const bool split = static_cast<int64_t>(docs) * kv_heads < 2 * at::get_num_threads();
  for (size_t d = 0; d < docs; d++) {
    const int64_t len = cu[d + 1] - cu[d];
    if (len == 0) continue;
    for (int64_t h = 0; h < kv_heads; h++) {
      if (!split || len <= kBackwardTask) {
        tasks.push_back({cu[d], len, h, 0, len, 0, len, true, true});
        continue;
      }
      for (int64_t begin = 0; begin < len; begin += kBackwardTask) {
        const int64_t end = std::min(len, begin + kBackwardTask);
        const int64_t first = window > 0 ? std::max<int64_t>(0, begin - window + 1) / kBackwardTask * kBackwardTask : 0;
        tasks.push_back({cu[d], len, h, begin, end, first, end, true, false});
        tasks.push_back({cu[d], len, h, begin, len, begin, end, false, true});
      }
    }
  }
  return tasks;
}

// Flash attention wants the head size to be a multiple of 8.
static Tensor padded(const Tensor& t) {
  const int64_t extra = (8 - t.size(2) % 8) % 8;
  return extra == 0 ? t : at::constant_pad_nd(t, {0, extra});
}

static Tensor unpadded(const Tensor& t, int64_t dim) { return t.size(2) == dim ? t : t.narrow(2, 0, dim).contiguous(); }

static std::optional<int64_t> window_left(const TeAttentionOptions& o) {
  return o.window > 0 ? std::optional<int64_t>(o.window - 1) : std::nullopt;
}

static std::optional<int64_t> window_right(const TeAttentionOptions& o) {
  return o.window > 0 ? std::optional<int64_t>(0) : std::nullopt;
}

// [T, Hkv, D] to [T, H, D], each key head repeated for its query heads.
static Tensor repeated(const Tensor& t, int64_t heads) {
  const int64_t group = heads / t.size(1);
  if (group == 1) return t;
  return t.unsqueeze(2).expand({t.size(0), t.size(1), group, t.size(2)}).reshape({t.size(0), heads, t.size(2)});
}

static Tensor summed(const Tensor& grad, int64_t kv_heads) {
  const int64_t group = grad.size(1) / kv_heads;
  if (group == 1) return grad;
  return grad.view({grad.size(0), kv_heads, group, grad.size(2)}).sum(2);
}

constexpr int64_t kCausalFromTopLeft = 1;

}  // namespace te

using namespace te;

extern "C" {

// tensors: q, k, v; results: out, logsumexp [T, H].
char* te_attention_forward(List tensors, const int64_t* cu, size_t docs, const TeAttentionOptions* o, Tensor** results) {
  return guarded([&] {
    const Tensor q = dense(*tensors[0]), k = dense(*tensors[1]), v = dense(*tensors[2]);
    const Tensor out = at::empty(q.sizes(), q.options());
    const Tensor lse = at::empty({q.size(0), q.size(1)}, q.options().dtype(at::kFloat));
    const AttentionArgs a = arguments(q, k, v, out, lse, *o);
    const auto scratch = kernels().attention_scratch(a, o->max_len, kForwardTask, false);
    run(forward_tasks(cu, docs, a.kv_heads), scratch,
        [&](const AttentionTask& t, float* memory) { kernels().attention_forward(a, t, memory); });
    results[0] = own(out);
    results[1] = own(lse);
  });
}

// tensors: gradient, q, k, v, out, logsumexp; results: gradients of q, k, v.
char* te_attention_backward(List tensors, const int64_t* cu, size_t docs, const TeAttentionOptions* o, Tensor** results) {
  return guarded([&] {
    const Tensor grad = dense(*tensors[0]);
    const Tensor q = dense(*tensors[1]), k = dense(*tensors[2]), v = dense(*tensors[3]);
    AttentionArgs a = arguments(q, k, v, *tensors[4], *tensors[5], *o);
    const Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
    const Tensor dv = at::empty(v.sizes(), v.options());
    a.dout = heads(grad), a.dq = heads(dq), a.dk = heads(dk), a.dv = heads(dv);
    const auto scratch = kernels().attention_scratch(a, o->max_len, kBackwardTask, true);
    run(backward_tasks(cu, docs, a.kv_heads, a.window), scratch,
        [&](const AttentionTask& t, float* memory) { kernels().attention_backward(a, t, memory); });
    results[0] = own(dq);
    results[1] = own(dk);
    results[2] = own(dv);
  });
}

// tensors: q, k, v, cumulative lengths (i32); results: out, logsumexp, generator state, unused.
char* te_flash_forward(List tensors, const TeAttentionOptions* o, Tensor** results) {
  return guarded([&] {
    const Tensor q = padded(dense(*tensors[0])), k = padded(dense(*tensors[1])), v = padded(dense(*tensors[2]));
    const Tensor& cu = *tensors[3];
    auto [out, lse, state, unused, mask] =
        at::_flash_attention_forward(q, k, v, cu, cu, o->max_len, o->max_len, o->dropout_p, true, false, o->scale,
                                     window_left(*o), window_right(*o));
    results[0] = own(unpadded(out, tensors[0]->size(2)));
    results[1] = own(lse);
    results[2] = own(state);
    results[3] = own(unused);
  });
}

// tensors: gradient, q, k, v, out, logsumexp, generator state, unused, cumulative lengths.
char* te_flash_backward(List tensors, const TeAttentionOptions* o, Tensor** results) {
  return guarded([&] {
    const auto in = list(tensors, 9);
    const Tensor q = padded(dense(in[1])), k = padded(dense(in[2])), v = padded(dense(in[3]));
    auto [dq, dk, dv] = at::_flash_attention_backward(
        padded(in[0].contiguous()), q, k, v, padded(in[4]), in[5], in[8], in[8], o->max_len, o->max_len, o->dropout_p,
        true, in[6], in[7], o->scale, window_left(*o), window_right(*o));
    const int64_t dim = in[1].size(2);
    results[0] = own(unpadded(dq, dim));
    results[1] = own(unpadded(dk, dim));
    results[2] = own(unpadded(dv, dim));
  });
}

// tensors: q, k, v, cumulative lengths (i32); results: out, logsumexp, generator seed and offset.
char* te_efficient_forward(List tensors, const TeAttentionOptions* o, Tensor** results) {
  return guarded([&] {
    const int64_t heads = tensors[0]->size(1);
    const Tensor q = dense(*tensors[0]), k = repeated(dense(*tensors[1]), heads), v = repeated(dense(*tensors[2]), heads);
    const Tensor& cu = *tensors[3];
    auto [out, lse, seed, offset, max_q, max_k] = at::_efficient_attention_forward(
        q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), {}, cu, cu, o->max_len, o->max_len, o->dropout_p,
        kCausalFromTopLeft, true, o->scale);
    results[0] = own(out.squeeze(0));
    results[1] = own(lse);
    results[2] = own(seed);
    results[3] = own(offset);
  });
}

// tensors: gradient, q, k, v, out, logsumexp, seed, offset, cumulative lengths.
char* te_efficient_backward(List tensors, const TeAttentionOptions* o, Tensor** results) {
  return guarded([&] {
    const auto in = list(tensors, 9);
    const int64_t heads = in[1].size(1), kv_heads = in[2].size(1);
    const Tensor q = dense(in[1]), k = repeated(dense(in[2]), heads), v = repeated(dense(in[3]), heads);
    // One split of the keys: the sums are then taken in one order.
    auto [dq, dk, dv, bias] = at::_efficient_attention_backward(
        in[0].contiguous().unsqueeze(0), q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), {}, in[4].unsqueeze(0), in[8],
        in[8], o->max_len, o->max_len, in[5], o->dropout_p, in[6], in[7], kCausalFromTopLeft, false, o->scale, 1);
    results[0] = own(dq.squeeze(0));
    results[1] = own(summed(dk.squeeze(0), kv_heads));
    results[2] = own(summed(dv.squeeze(0), kv_heads));
  });
}

}  // extern "C"

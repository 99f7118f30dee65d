// Rows of logits on the CPU: statistics, and gradients written over the logits.
#include <ATen/Parallel.h>

#include "shim.h"

namespace te {

static HeadArgs arguments(const Tensor& logits, const Tensor& targets, double temperature, const Tensor& stats) {
  TORCH_CHECK(logits.is_contiguous() && targets.is_contiguous() && stats.is_contiguous(), "not contiguous");
  TORCH_CHECK(logits.size(0) == targets.size(0) && stats.size(0) == targets.size(0) && stats.size(1) == kStats,
              "rows differ");
  HeadArgs a{};
  a.dtype = dtype_of(logits);
  a.logits = logits.data_ptr();
  a.vocab = logits.size(1);
  a.targets = targets.const_data_ptr<int64_t>();
  a.inv_temperature = static_cast<float>(1.0 / temperature);
  a.stats = stats.data_ptr<float>();
  return a;
}

template <class F>
static void each_row(const Tensor& logits, F f) {
  // Rows are independent, so the split does not change a result.
  at::parallel_for(0, logits.size(0), std::max<int64_t>(1, 16384 / std::max<int64_t>(1, logits.size(1))), f);
}

}  // namespace te

using namespace te;

extern "C" {

char* te_head_stats(Tensor* logits, Tensor* targets, double temperature, Tensor* stats, bool write_grad) {
  return guarded([&] {
    HeadArgs a = te::arguments(*logits, *targets, temperature, *stats);
    a.write_grad = write_grad;
    each_row(*logits, [&](int64_t begin, int64_t end) { kernels().head_stats(a, begin, end); });
  });
}

char* te_head_grad(Tensor* logits, Tensor* targets, double temperature, Tensor* stats, Tensor* coefficients) {
  return guarded([&] {
    HeadArgs a = te::arguments(*logits, *targets, temperature, *stats);
    TORCH_CHECK(coefficients->is_contiguous(), "not contiguous");
    a.coefficients = coefficients->const_data_ptr<float>();
    each_row(*logits, [&](int64_t begin, int64_t end) { kernels().head_grad(a, begin, end); });
  });
}

}  // extern "C"

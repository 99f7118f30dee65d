#define KERNEL_ISA baseline
#include "attention_kernel.h"
#include "head_kernel.h"

namespace te {
const Kernels kernels_baseline = {"baseline",
                              baseline::attention_scratch,
                              baseline::attention_forward,
                              baseline::attention_backward,
                              baseline::head_stats,
                              baseline::head_grad,
                              baseline::sum_of_squares};
}  // namespace te

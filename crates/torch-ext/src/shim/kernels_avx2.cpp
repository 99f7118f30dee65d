#define KERNEL_ISA avx2
#include "attention_kernel.h"
#include "head_kernel.h"

namespace te {
const Kernels kernels_avx2 = {"avx2",
                              avx2::attention_scratch,
                              avx2::attention_forward,
                              avx2::attention_backward,
                              avx2::head_stats,
                              avx2::head_grad,
                              avx2::sum_of_squares};
}  // namespace te

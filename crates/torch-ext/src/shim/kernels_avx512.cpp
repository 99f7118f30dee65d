#define KERNEL_ISA avx512
#include "attention_kernel.h"
#include "head_kernel.h"

namespace te {
const Kernels kernels_avx512 = {"avx512",
                              avx512::attention_scratch,
                              avx512::attention_forward,
                              avx512::attention_backward,
                              avx512::head_stats,
                              avx512::head_grad,
                              avx512::sum_of_squares};
}  // namespace te

#define KERNEL_ISA avx512
#include "kernels_table.h"

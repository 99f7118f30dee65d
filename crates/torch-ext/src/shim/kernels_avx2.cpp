#define KERNEL_ISA avx2
#include "kernels_table.h"

#define KERNEL_ISA baseline
#include "kernels_table.h"

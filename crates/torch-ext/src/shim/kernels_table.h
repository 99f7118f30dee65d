// The table of kernels for the instruction set that KERNEL_ISA names.
#pragma once

#include "attention_kernel.h"
#include "four_bit_kernel.h"
#include "fused_kernel.h"
#include "generate_kernel.h"
#include "head_kernel.h"
#include "optim_kernel.h"

#define TE_JOIN_(a, b) a##b
#define TE_JOIN(a, b) TE_JOIN_(a, b)
#define TE_TEXT_(a) #a
#define TE_TEXT(a) TE_TEXT_(a)

namespace te {

const Kernels TE_JOIN(kernels_, KERNEL_ISA) = {
    TE_TEXT(KERNEL_ISA),
    KERNEL_ISA::attention_scratch,
    KERNEL_ISA::attention_forward,
    KERNEL_ISA::attention_backward,
    KERNEL_ISA::head_stats,
    KERNEL_ISA::head_grad,
    KERNEL_ISA::sum_of_squares,
    KERNEL_ISA::norm_forward,
    KERNEL_ISA::norm_backward,
    KERNEL_ISA::gelu_tanh,
    KERNEL_ISA::swiglu,
    KERNEL_ISA::rotate,
    KERNEL_ISA::attend_cached_row,
    KERNEL_ISA::sample_scratch,
    KERNEL_ISA::sample,
    KERNEL_ISA::add,
    KERNEL_ISA::adamw_8bit,
    KERNEL_ISA::quantise4,
    KERNEL_ISA::dequantise4,
};

}  // namespace te

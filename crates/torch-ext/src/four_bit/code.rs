//! The 16 values of a code.

/// Which 16 values a number over its block's largest absolute value is rounded to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// `NormalFloat`: quantiles of the normal distribution, with an exact 0.
    ///
    /// Paper: Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E.
    Nf4,
    /// bitsandbytes' 4-bit float: a sign, two bits of exponent and one of mantissa, over the largest.
    Fp4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Of the 8 bit patterns without a sign, before they are divided by the largest.
const FP4: [f32; 8] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];

impl Code {
    /// The values of the codes 0 to 15. Those of [`Self::Nf4`] ascend.
    pub fn values(self) -> [f32; 16] {
        match self {
            Self::Nf4 => NF4,
            Self::Fp4 => std::array::from_fn(|code| {
                let value = FP4[code % 8] / 12.0;
                // There is one zero: code 8 has no sign either.
                if code > 8 { -value } else { value }
            }),
        }
    }

    /// The codes by value, from the smallest on; of the two zeros of [`Self::Fp4`] code 0 comes first.
    pub(super) fn order(self) -> [u8; 16] {
        match self {
            Self::Nf4 => std::array::from_fn(|code| code as u8),
            Self::Fp4 => [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
        }
    }

    /// The points halfway between neighbouring values: as many as are below a number, so far along [`Self::order`] is its
    /// code.
    pub(super) fn midpoints(self) -> [f32; 15] {
        let (values, order) = (self.values(), self.order());
        let at = |i: usize| values[usize::from(order[i])];
        std::array::from_fn(|i| 0.5 * (at(i) + at(i + 1)))
    }
}

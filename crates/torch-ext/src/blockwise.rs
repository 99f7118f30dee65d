//! Numbers in 8 bits, in blocks that share a scale: Dettmers et al. 2022, arXiv 2110.02861, sections 1.2 and 2.1.
//!
//! Each number is an index into a map of 256 values, of which the nearest to the number over its block's largest absolute
//! value is taken. The maps are bitsandbytes' dynamic ones: seven decades, with more steps the larger the value.

use tch::{Device, Kind, Tensor};

/// Numbers of a block.
///
/// # Deviations
/// The paper has 2048; 256 is what bitsandbytes came to use.
pub const BLOCK: i64 = 256;

/// Which map: signed values for means, values from 0 on for means of squares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// From -0.993 to 1.
    Signed,
    /// From 0 to 1.
    Unsigned,
}

impl Map {
    /// The 256 values in ascending order.
    pub fn values(self) -> Vec<f32> {
        const DECADES: i32 = 7;
        let mut values = vec![0.0, 1.0];
        for decade in 0..DECADES {
            let steps = if self == Self::Signed { 1 << decade } else { 2 << decade };
            let scale = 10_f64.powi(decade + 1 - DECADES);
            for step in 0..steps {
                // The middle of each of the equal parts between 0.1 and 1.
                let middle = 0.1 + 0.9 * (f64::from(step) + 0.5) / f64::from(steps);
                values.push((scale * middle) as f32);
                if self == Self::Signed {
                    values.push((-scale * middle) as f32);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        values
    }

    /// The 255 points halfway between neighbouring values: a number's code is how many are below it.
    pub fn midpoints(self) -> Vec<f32> {
        self.values().windows(2).map(|pair| pair[0].midpoint(pair[1])).collect()
    }
}

/// A tensor in 8 bits, flat.
#[derive(Debug)]
pub struct Blockwise {
    /// u8 `[n]`.
    pub codes: Tensor,
    /// fp32, one a block.
    pub absmax: Tensor,
}

impl Blockwise {
    /// `n` zeros.
    pub fn zeros(n: i64, device: Device) -> Self {
        Self {
            codes: Tensor::zeros([n], (Kind::Uint8, device)),
            absmax: Tensor::zeros([(n + BLOCK - 1) / BLOCK], (Kind::Float, device)),
        }
    }

    /// Whether these are `n` numbers on `device`, as [`Self::zeros`] makes them.
    pub(crate) fn holds(&self, n: i64, device: Device) -> bool {
        let whole = |t: &Tensor, size: i64, kind| {
            t.size() == [size] && t.kind() == kind && t.device() == device && t.is_contiguous()
        };
        whole(&self.codes, n, Kind::Uint8)
            && whole(&self.absmax, (n + BLOCK - 1) / BLOCK, Kind::Float)
    }

    /// The numbers, fp32 `[n]`.
    pub fn numbers(&self, map: Map) -> Tensor {
        self.numbers_of(&Tensor::from_slice(&map.values()).to_device(self.codes.device()))
    }

    /// The numbers by a map's values, fp32 `[256]`.
    pub(crate) fn numbers_of(&self, values: &Tensor) -> Tensor {
        let numbers = values.index_select(0, &self.codes.to_kind(Kind::Int));
        numbers
            * self.absmax.repeat_interleave_self_int(BLOCK, 0, None).narrow(
                0,
                0,
                self.codes.size()[0],
            )
    }

    /// Sets the numbers, fp32 `[n]`, by a map's midpoints, fp32 `[255]`. A positive number is not rounded to 0 where
    /// `keeps_positive`.
    pub(crate) fn set(&mut self, numbers: &Tensor, midpoints: &Tensor, keeps_positive: bool) {
        let n = numbers.size()[0];
        let blocks = self.absmax.size()[0];
        let padded = numbers.constant_pad_nd([0, blocks * BLOCK - n]).view([blocks, BLOCK]);
        let absmax = padded.abs().amax([1], true);
        let scaled = &padded * absmax.reciprocal().masked_fill(&absmax.eq(0.0), 0.0);
        let mut codes = scaled.bucketize(midpoints, true, false);
        if keeps_positive {
            codes = codes.maximum(&padded.gt(0.0).to_kind(Kind::Int));
        }
        self.codes.copy_(&codes.view(-1).narrow(0, 0, n).to_kind(Kind::Uint8));
        self.absmax.copy_(&absmax.view(-1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn the_maps_are_bitsandbytes() {
        let signed = Map::Signed.values();
        let unsigned = Map::Unsigned.values();
        assert_eq!((signed.len(), unsigned.len()), (256, 256));
        assert!(signed.is_sorted() && unsigned.is_sorted());
        // bitsandbytes 0.50, create_dynamic_map(True) and (False): ends and beginnings.
        let close = |got: f32, want: f32| assert!((got / want - 1.0).abs() < 1e-5, "{got} {want}");
        close(signed[0], -0.992_968_75);
        close(signed[1], -0.978_906_3);
        close(signed[126], -5.5e-7);
        assert_eq!(signed[127], 0.0);
        close(signed[128], 5.5e-7);
        close(signed[129], 3.25e-6);
        assert_eq!((signed[255], unsigned[0], unsigned[255]), (1.0, 0.0, 1.0));
        close(signed[254], 0.992_968_75);
        close(unsigned[1], 3.25e-7);
        close(unsigned[2], 7.75e-7);
        close(unsigned[254], 0.996_484_4);
    }

    #[test]
    fn numbers_come_back_as_the_nearest_value_of_their_block() {
        let numbers = random(&[700], 3, Kind::Float, Device::Cpu).detach();
        let mut stored = Blockwise::zeros(700, Device::Cpu);
        assert_eq!(stored.numbers(Map::Signed).abs().max().double_value(&[]), 0.0);
        stored.set(&numbers, &Tensor::from_slice(&Map::Signed.midpoints()), false);
        let (got, want) = (stored.numbers(Map::Signed), Vec::<f32>::try_from(&numbers).unwrap());
        let got = Vec::<f32>::try_from(&got).unwrap();
        for (block, got) in want.chunks(256).zip(got.chunks(256)) {
            let most = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            for (x, got) in block.iter().zip(got) {
                let nearest = Map::Signed
                    .values()
                    .into_iter()
                    .map(|v| v * most)
                    .min_by(|a, b| (a - x).abs().total_cmp(&(b - x).abs()));
                assert!((nearest.unwrap() - got).abs() <= 1e-6 * most, "{x}: {got}");
            }
        }
    }
}

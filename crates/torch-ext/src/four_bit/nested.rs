//! Scales in 8 bits: the second level of double quantisation.
//!
//! The map is bitsandbytes' signed dynamic one, to the bit. [`crate::blockwise`] has it to within rounding, and takes the
//! nearest value; bitsandbytes takes the value nearest to the nearest of 65536 evenly spaced numbers.

use std::sync::LazyLock;

use tch::Tensor;

use crate::blockwise::BLOCK;
use crate::{Result, TorchError, ffi};

/// The numbers of -1 to 1 that are told apart.
const CELLS: usize = 1 << 16;

static MAP: LazyLock<[f32; 256]> = LazyLock::new(dynamic_map);
static CODES: LazyLock<Vec<u8>> = LazyLock::new(|| codes_of_cells(&MAP));

/// The values of the 256 codes of a scale in 8 bits, in ascending order.
pub fn nested_map() -> &'static [f32; 256] {
    &MAP
}

/// Every operation as bitsandbytes' `create_dynamic_map` has it, in fp32.
fn dynamic_map() -> [f32; 256] {
    const DECADES: i32 = 7;
    let mut map = [0.0; 256];
    map[255] = 1.0;
    let mut filled = 1;
    for decade in 0..DECADES {
        let parts = 1_usize << decade;
        let scale = 10_f64.powi(decade + 1 - DECADES) as f32;
        let boundaries = linspace(0.1, 1.0, parts + 1);
        for pair in boundaries.windows(2) {
            let value = scale * (0.5 * (pair[0] + pair[1]));
            map[filled] = value;
            map[filled + 1] = -value;
            filled += 2;
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

/// As libtorch computes it: the second half from the end.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count - 1) as f32;
    let at = |i: usize| {
        if i < count / 2 {
            step.mul_add(i as f32, start)
        } else {
            step.mul_add(-((count - 1 - i) as f32), end)
        }
    };
    (0..count).map(at).collect()
}

fn codes_of_cells(map: &[f32; 256]) -> Vec<u8> {
    let midpoints: Vec<f32> = map.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
    let code = |cell: usize| {
        let value = -1.0 + (2.0 * cell as f32) / (CELLS - 1) as f32;
        midpoints.partition_point(|&point| point < value) as u8
    };
    (0..CELLS).map(code).collect()
}

/// Scales, fp32 `[n]` on the CPU and finite, as 8-bit codes `[n]`, the fp32 scales of their blocks, and the offset, which
/// is their mean.
pub(super) fn nest(op: &'static str, absmax: &Tensor) -> Result<(Tensor, Tensor, f32)> {
    let scales = Vec::<f32>::try_from(absmax).map_err(|e| TorchError::from_tch(op, &e))?;
    let mut offset = 0.0;
    if !scales.is_empty() {
        // SAFETY: a borrowed tensor of fp32 numbers; one result.
        let message = unsafe { ffi::te_four_bit_mean(ffi::ptr(absmax), &raw mut offset) };
        ffi::check(op, message)?;
    }
    let mut codes = Vec::with_capacity(scales.len());
    let mut largest = Vec::new();
    for block in scales.chunks(BLOCK as usize) {
        let centred = block.iter().map(|scale| scale - offset);
        let most = centred.clone().fold(0.0_f32, |most, x| most.max(x.abs()));
        largest.push(most);
        let factor = 1.0 / most;
        codes.extend(centred.map(|x| if most == 0.0 { 0 } else { code(x * factor) }));
    }
    Ok((Tensor::from_slice(&codes), Tensor::from_slice(&largest), offset))
}

fn code(x: f32) -> u8 {
    let cell = (x.clamp(-1.0, 1.0) + 1.0) * 0.5 * (CELLS - 1) as f32 + 0.5;
    CODES[cell as usize]
}

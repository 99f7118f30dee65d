//! Counter-based random numbers: a number is a pure function of key and counter, so nothing else can change it.
//!
//! Paper: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", Philox4x32-10.

/// The generator of one key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The generator for a 64-bit key.
    pub(crate) fn new(key: u64) -> Self {
        Self { key: [key as u32, (key >> 32) as u32] }
    }

    /// Four random words at counter `(stream, index)`.
    pub(crate) fn block(self, stream: u64, index: u64) -> [u32; 4] {
        const MULTIPLIERS: [u64; 2] = [0xD2511F53, 0xCD9E8D57];
        const WEYL: [u32; 2] = [0x9E3779B9, 0xBB67AE85];
        let mut counter =
            [index as u32, (index >> 32) as u32, stream as u32, (stream >> 32) as u32];
        let mut key = self.key;
        for _ in 0..10 {
            let first = MULTIPLIERS[0] * u64::from(counter[0]);
            let second = MULTIPLIERS[1] * u64::from(counter[2]);
            counter = [
                (second >> 32) as u32 ^ counter[1] ^ key[0],
                second as u32,
                (first >> 32) as u32 ^ counter[3] ^ key[1],
                first as u32,
            ];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        counter
    }

    /// A uniform number in `[0, 1)` with 52 random bits: so few that its product with any `x > 0` is below `x`.
    pub(crate) fn uniform(self, stream: u64, index: u64) -> f64 {
        let [a, b, ..] = self.block(stream, index);
        let bits = (u64::from(a) << 32 | u64::from(b)) >> 12;
        bits as f64 / (1_u64 << 52) as f64
    }

    /// Fills `values` with independent uniform numbers between minus and plus `bound`.
    pub(crate) fn fill_uniform(self, stream: u64, bound: f64, values: &mut [f32]) {
        for (i, value) in values.iter_mut().enumerate() {
            *value = (bound * 2.0_f64.mul_add(self.uniform(stream, i as u64), -1.0)) as f32;
        }
    }

    /// Fills `values` with independent normal numbers of standard deviation `std` (Box and Muller 1958), on all cores.
    pub(crate) fn fill_normal(self, stream: u64, std: f64, values: &mut [f32]) {
        /// Numbers of one task; a multiple of 4, so that tasks do not share blocks.
        const TASK: usize = 1 << 16;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let tasks: Vec<(usize, &mut [f32])> = values.chunks_mut(TASK).enumerate().collect();
        let per_thread = tasks.len().div_ceil(threads).max(1);
        let mut tasks = tasks.into_iter();
        std::thread::scope(|scope| {
            loop {
                let mine: Vec<_> = tasks.by_ref().take(per_thread).collect();
                if mine.is_empty() {
                    break;
                }
                scope.spawn(move || {
                    for (task, chunk) in mine {
                        for (i, four) in chunk.chunks_mut(4).enumerate() {
                            let words = self.block(stream, (task * (TASK / 4) + i) as u64);
                            let normals = normals(words, std);
                            four.copy_from_slice(&normals[..four.len()]);
                        }
                    }
                });
            }
        });
    }
}

/// Four normal numbers from four random words.
fn normals(words: [u32; 4], std: f64) -> [f32; 4] {
    let pair = |a: u32, b: u32| {
        // In (0, 1], so that the logarithm is finite.
        let uniform = (f64::from(a) + 1.0) / 4294967296.0;
        let radius = std * (-2.0 * uniform.ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * f64::from(b) / 4294967296.0).sin_cos();
        [(radius * cos) as f32, (radius * sin) as f32]
    };
    let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
    [a, b, c, d]
}

/// A stream number for a name (FNV-1a), so that a tensor's start does not depend on the others.
pub(crate) fn stream_of(name: &str) -> u64 {
    name.bytes()
        .fold(0xCBF29CE484222325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100000001B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the authors' Random123 distribution (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_gives_the_published_vectors() {
        let zero = Philox::new(0).block(0, 0);
        assert_eq!(zero, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        let ones = Philox::new(u64::MAX).block(u64::MAX, u64::MAX);
        assert_eq!(ones, [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = Philox::new(0x299f31d0_a4093822).block(0x03707344_13198a2e, 0x85a308d3_243f6a88);
        assert_eq!(pi, [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn normal_numbers_have_the_asked_moments_and_are_the_same_for_any_length() {
        let mut values = vec![0.0; 200_001];
        Philox::new(7).fill_normal(3, 0.5, &mut values);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let moment = |k: i32| values.iter().map(|&v| (f64::from(v) / 0.5).powi(k)).sum::<f64>() / n;
        assert!(mean.abs() < 0.005, "{mean}");
        assert!((moment(2) - 1.0).abs() < 0.02, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.1, "{}", moment(4));
        let mut fewer = vec![0.0; 70_003];
        Philox::new(7).fill_normal(3, 0.5, &mut fewer);
        assert_eq!(fewer, values[..70_003]);
        let mut other = vec![0.0; 8];
        Philox::new(7).fill_normal(4, 0.5, &mut other);
        assert_ne!(other, values[..8]);
    }

    #[test]
    fn uniform_numbers_fill_the_unit_interval_evenly() {
        let mut buckets = [0_u32; 10];
        for i in 0..100_000 {
            let u = Philox::new(42).uniform(0, i);
            assert!((0.0..1.0).contains(&u));
            buckets[(u * 10.0) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| (9_600..10_400).contains(&n)), "{buckets:?}");
    }
}

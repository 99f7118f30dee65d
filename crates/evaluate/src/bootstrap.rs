//! How sure a number is: intervals by drawing the items again.
//!
//! Efron and Tibshirani 1993, An Introduction to the Bootstrap: the percentile interval (section 13.3). An item (a document,
//! a prompt, a pair) is drawn with all that was counted of it; a number that is no mean, such as perplexity, is made anew of
//! each resample's sums (a ratio estimator). Two models are compared on the same resamples (a paired bootstrap).
//!
//! Where all items of a share are alike every resample is too, and the interval would be a point however few the items are:
//! then it is that of Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// The part of the resamples outside a 95 % interval, on either side.
const TAIL: f64 = 0.025;

/// The 97.5 % point of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Resamples of items: the same ones for every call with as many items.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bootstrap {
    pub(crate) samples: usize,
    pub(crate) seed: u64,
}

impl Bootstrap {
    /// Hands the sums of each resample to `take`: of `rows`, `width` numbers an item, those of as many items drawn with
    /// replacement.
    pub(crate) fn resample(self, rows: &[f64], width: usize, mut take: impl FnMut(&[f64])) {
        let items = rows.len() / width.max(1);
        if items == 0 {
            return;
        }
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut sums = vec![0.0; width];
        for _ in 0..self.samples {
            sums.fill(0.0);
            for _ in 0..items {
                let item = random.random_range(0..items as u32) as usize;
                let row = &rows[item * width..(item + 1) * width];
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            take(&sums);
        }
    }
}

/// The percentile interval of the values of resamples; those that are not finite (a ratio over nothing) are left out, and
/// without any other there is none.
pub(crate) fn percentiles(mut values: Vec<f64>) -> Option<[f64; 2]> {
    values.retain(|value| value.is_finite());
    values.sort_unstable_by(f64::total_cmp);
    Some([quantile(&values, TAIL)?, quantile(&values, 1.0 - TAIL)?])
}

/// Between the two nearest of sorted values, in proportion.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * (sorted.len().checked_sub(1)?) as f64;
    let below = place.floor() as usize;
    let above = sorted.get(below + 1).unwrap_or(&sorted[below]);
    let value = sorted[below] + (place - below as f64) * (above - sorted[below]);
    Some(value)
}

/// Wilson's 95 % interval of a share of `items` that is 0 or 1, of which the ends are exact.
pub(crate) fn wilson(share: f64, items: u64) -> [f64; 2] {
    let (n, z2) = (items as f64, Z * Z);
    let middle = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    let low = if share == 0.0 { 0.0 } else { middle - half };
    let high = if share == 1.0 { 1.0 } else { middle + half };
    [low, high]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(rows: &[f64], samples: usize, seed: u64) -> Vec<f64> {
        let mut all = Vec::new();
        let items = rows.len() as f64;
        Bootstrap { samples, seed }.resample(rows, 1, |sums| all.push(sums[0] / items));
        all
    }

    /// Of two items 0 and 1 a resample's mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    #[test]
    fn resamples_of_two_items_are_binomial() {
        let all = values(&[0.0, 1.0], 40_000, 7);
        assert_eq!(all.len(), 40_000);
        for (mean, share) in [(0.0, 0.25), (0.5, 0.5), (1.0, 0.25)] {
            let found = all.iter().filter(|value| **value == mean).count() as f64 / 40_000.0;
            // Four standard errors.
            assert!((found - share).abs() < 0.01, "{mean}: {found}");
        }
        assert_eq!(percentiles(all), Some([0.0, 1.0]));
    }

    #[test]
    fn the_columns_of_an_item_stay_together() {
        // The second number is three times the first in every item, so it is in every resample.
        let rows = [1.0, 3.0, 2.0, 6.0, 5.0, 15.0];
        let mut seen = 0;
        Bootstrap { samples: 200, seed: 1 }.resample(&rows, 2, |sums| {
            assert_eq!(sums[1], 3.0 * sums[0]);
            seen += 1;
        });
        assert_eq!(seen, 200);
    }

    #[test]
    fn a_seed_decides_everything() {
        let rows: Vec<f64> = (0..20).map(f64::from).collect();
        assert_eq!(values(&rows, 50, 3), values(&rows, 50, 3));
        assert_ne!(values(&rows, 50, 3), values(&rows, 50, 4));
    }

    /// As `numpy.percentile(values, [2.5, 97.5])`.
    #[test]
    fn percentiles_by_hand() {
        let hundred: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(percentiles(hundred), Some([2.5, 97.5]));
        let [low, high] = percentiles(vec![3.0, 1.0, 2.0]).unwrap();
        assert!((low - 1.05).abs() < 1e-12 && (high - 2.95).abs() < 1e-12);
        assert_eq!(percentiles(vec![4.0]), Some([4.0, 4.0]));
        assert_eq!(percentiles(vec![f64::NAN, 4.0, f64::INFINITY]), Some([4.0, 4.0]));
        assert_eq!(percentiles(vec![f64::NAN]), None);
        assert_eq!(percentiles(Vec::new()), None);
        Bootstrap { samples: 9, seed: 0 }.resample(&[], 2, |_| unreachable!());
    }

    /// The ends by Wilson's formula at 0 and 1 are `z² / (n + z²)` away.
    #[test]
    fn wilson_at_the_ends() {
        let far = |n: f64| 3.841_458_820_694_124 / (n + 3.841_458_820_694_124);
        for n in [1_u64, 10, 300] {
            let [low, high] = wilson(0.0, n);
            assert!(low == 0.0 && (high - far(n as f64)).abs() < 1e-12, "{n}: {high}");
            let [low, high] = wilson(1.0, n);
            assert!(high == 1.0 && (low - (1.0 - far(n as f64))).abs() < 1e-12, "{n}: {low}");
        }
        // statsmodels: proportion_confint(3, 10, method="wilson")
        let [low, high] = wilson(0.3, 10);
        assert!((low - 0.107789).abs() < 1e-5 && (high - 0.603222).abs() < 1e-5, "{low} {high}");
    }

    /// Of many samples of a known distribution, 95 % of the intervals hold its mean; somewhat fewer with few items.
    #[test]
    fn intervals_cover_the_truth() {
        let mut random = ChaCha8Rng::seed_from_u64(11);
        let (trials, items) = (400, 100);
        let mut covered = 0;
        for trial in 0..trials {
            // Mean 1/3.
            let rows: Vec<f64> = (0..items).map(|_| random.random::<f64>().powi(2)).collect();
            let [low, high] = percentiles(values(&rows, 400, trial)).unwrap();
            covered += i32::from((low..=high).contains(&(1.0 / 3.0)));
        }
        let share = f64::from(covered) / trials as f64;
        assert!((0.91..=0.98).contains(&share), "{share}");
    }
}

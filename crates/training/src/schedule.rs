//! Learning-rate schedules: the factor that multiplies the peak learning rate at each optimiser step.
//!
//! The shapes and the off-by-ones are those of Hugging Face transformers (`optimization.py`), so that a run moved from
//! there keeps its curve: step 0 of a warm-up has factor 0, and the last step of a decay has not quite reached its end.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};
use stage::Problems;

/// How long the warm-up lasts. At most one of the two may be given; neither means no warm-up.
#[derive(Debug, Clone, Copy)]
struct Warmup {
    steps: Option<u64>,
    ratio: Option<f64>,
}

impl Warmup {
    fn resolve(self, total: u64) -> u64 {
        self.steps.unwrap_or_else(|| portion(self.ratio.unwrap_or(0.0), total))
    }
}

/// `ratio` of `total` steps, rounded up as transformers does.
fn portion(ratio: f64, total: u64) -> u64 {
    (ratio * total as f64).ceil() as u64
}

/// Which shape the learning rate follows. In a config file: one table, `[schedule.cosine]` and so on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Warm-up, then the peak rate to the end.
    Constant(Constant),
    /// Warm-up, then a straight line to `min_lr_ratio` of the peak.
    Linear(Decaying),
    /// Warm-up, then half a cosine to `min_lr_ratio` of the peak.
    Cosine(Decaying),
    /// Warm-up, stable, decay.
    Wsd(Wsd),
}

/// Settings of [`Schedule::Constant`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// Optimiser steps of linear warm-up from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// The same as a share of all steps, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
}

/// Settings of [`Schedule::Linear`] and [`Schedule::Cosine`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decaying {
    /// Optimiser steps of linear warm-up from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// The same as a share of all steps, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// Where the decay ends, as a share of the peak rate.
    #[serde(default)]
    pub min_lr_ratio: f64,
}

/// Settings of [`Schedule::Wsd`].
///
/// Paper: Hu et al. 2024, `MiniCPM`, arXiv:2404.06395, eq. 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wsd {
    /// Optimiser steps of linear warm-up from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// The same as a share of all steps, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// Share of all steps spent decaying at the end, 0 to 1.
    pub decay_ratio: f64,
    /// Shape of the decay.
    #[serde(default)]
    pub decay: Decay,
    /// Where the decay ends, as a share of the peak rate.
    #[serde(default)]
    pub min_lr_ratio: f64,
}

/// Shape of the last phase of [`Schedule::Wsd`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decay {
    /// Half a cosine.
    #[default]
    #[serde(rename = "cosine")]
    Cosine,
    /// A straight line.
    #[serde(rename = "linear")]
    Linear,
    /// 1 minus the square root of the progress (Hägele et al. 2024, arXiv:2405.18392).
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

impl Schedule {
    /// The factor on the peak learning rate for optimiser step `step` (from 0) of `total`.
    #[must_use]
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        let warmup = self.warmup().resolve(total);
        let floor = self.min_lr_ratio();
        if step < warmup {
            let rising = step as f64 / warmup as f64;
            // transformers' WSD starts its warm-up at the floor, the others at 0
            return if matches!(self, Self::Wsd(_)) {
                floor + (1.0 - floor) * rising
            } else {
                rising
            };
        }
        let shape = match self {
            Self::Constant(_) => return 1.0,
            Self::Linear(_) => 1.0 - progress(step, warmup, total),
            Self::Cosine(_) => half_cosine(progress(step, warmup, total)),
            Self::Wsd(wsd) => {
                let decay_steps = portion(wsd.decay_ratio, total);
                let start = total.saturating_sub(decay_steps).max(warmup);
                if step < start {
                    return 1.0;
                }
                if step >= start + decay_steps {
                    return floor;
                }
                let done = progress(step, start, start + decay_steps);
                match wsd.decay {
                    Decay::Cosine => half_cosine(done),
                    Decay::Linear => 1.0 - done,
                    Decay::OneMinusSqrt => 1.0 - done.sqrt(),
                }
            }
        };
        (floor + (1.0 - floor) * shape).max(0.0)
    }

    fn warmup(&self) -> Warmup {
        let (steps, ratio) = match self {
            Self::Constant(c) => (c.warmup_steps, c.warmup_ratio),
            Self::Linear(d) | Self::Cosine(d) => (d.warmup_steps, d.warmup_ratio),
            Self::Wsd(w) => (w.warmup_steps, w.warmup_ratio),
        };
        Warmup { steps, ratio }
    }

    fn min_lr_ratio(&self) -> f64 {
        match self {
            Self::Constant(_) => 0.0,
            Self::Linear(d) | Self::Cosine(d) => d.min_lr_ratio,
            Self::Wsd(w) => w.min_lr_ratio,
        }
    }

    /// Everything in the settings that cannot be, with the keys below `schedule`.
    pub fn problems(&self) -> Problems {
        let name = match self {
            Self::Constant(_) => "constant",
            Self::Linear(_) => "linear",
            Self::Cosine(_) => "cosine",
            Self::Wsd(_) => "wsd",
        };
        let mut own = Problems::new();
        let warmup = self.warmup();
        if warmup.steps.is_some() && warmup.ratio.is_some() {
            own.push("warmup_steps", "is given beside `warmup_ratio`; leave one out");
        }
        let mut share = |key: &str, value: f64| {
            own.check(
                (0.0..=1.0).contains(&value),
                key,
                format_args!("must be from 0 to 1, got {value}"),
            );
        };
        share("warmup_ratio", warmup.ratio.unwrap_or(0.0));
        share("min_lr_ratio", self.min_lr_ratio());
        if let Self::Wsd(wsd) = self {
            share("decay_ratio", wsd.decay_ratio);
        }
        let mut problems = Problems::new();
        problems.extend(name, own);
        problems
    }
}

/// How far `step` is between `start` and `end`, 0 to 1.
fn progress(step: u64, start: u64, end: u64) -> f64 {
    let length = end.saturating_sub(start).max(1);
    (step.saturating_sub(start) as f64 / length as f64).min(1.0)
}

fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &Schedule, total: u64, expected: &[f64]) {
        for (step, &want) in expected.iter().enumerate() {
            let got = schedule.factor(step as u64, total);
            assert!((got - want).abs() < 1e-12, "step {step}: {got} is not {want}");
        }
    }

    // Expected values by hand from the formulas: w = 2 warm-up steps of 6.
    #[test]
    fn linear_warms_up_and_falls_to_zero() {
        let schedule = Schedule::Linear(Decaying { warmup_steps: Some(2), ..Decaying::default() });
        check(&schedule, 6, &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]);
    }

    #[test]
    fn cosine_ends_at_its_floor() {
        let schedule = Schedule::Cosine(Decaying {
            warmup_ratio: Some(1.0 / 3.0),
            min_lr_ratio: 0.1,
            ..Decaying::default()
        });
        check(&schedule, 6, &[0.0, 0.5, 1.0, 0.8681980515339464, 0.55, 0.23180194846605366, 0.1]);
    }

    #[test]
    fn constant_stays() {
        check(
            &Schedule::Constant(Constant { warmup_steps: Some(1), warmup_ratio: None }),
            4,
            &[0.0, 1.0, 1.0, 1.0],
        );
    }

    #[test]
    fn wsd_is_flat_until_its_decay() {
        let wsd = |decay| {
            Schedule::Wsd(Wsd {
                warmup_steps: Some(2),
                warmup_ratio: None,
                decay_ratio: 0.4,
                decay,
                min_lr_ratio: 0.0,
            })
        };
        check(&wsd(Decay::Linear), 10, &[0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]);
        check(&wsd(Decay::OneMinusSqrt), 10, &[0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]);
    }

    #[test]
    fn a_run_shorter_than_its_warmup_never_divides_by_zero() {
        let schedule =
            Schedule::Cosine(Decaying { warmup_steps: Some(100), ..Decaying::default() });
        for step in 0..10 {
            assert!(schedule.factor(step, 3).is_finite());
        }
        assert!(schedule.factor(0, 0).is_finite());
    }

    #[test]
    fn bad_settings_are_named() {
        let schedule = Schedule::Cosine(Decaying {
            warmup_steps: Some(1),
            warmup_ratio: Some(1.5),
            min_lr_ratio: -0.1,
        });
        assert_eq!(
            schedule.problems().to_string(),
            "- cosine.warmup_steps: is given beside `warmup_ratio`; leave one out\n\
             - cosine.warmup_ratio: must be from 0 to 1, got 1.5\n\
             - cosine.min_lr_ratio: must be from 0 to 1, got -0.1"
        );
    }
}

//! How long something takes.

use std::time::{Duration, Instant};

use anyhow::Result;
use tch::{Cuda, Device};

/// Times of repeated runs, in seconds, sorted.
#[derive(Debug)]
pub(crate) struct Times(Vec<f64>);

impl Times {
    /// Runs `work` once to warm up, then for `time` and at least three times.
    pub(crate) fn of(
        device: Device,
        time: Duration,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        let mut once = || -> Result<f64> {
            wait(device);
            let start = Instant::now();
            work()?;
            wait(device);
            Ok(start.elapsed().as_secs_f64())
        };
        once()?;
        let end = Instant::now() + time;
        let mut all = Vec::new();
        while all.len() < 3 || Instant::now() < end {
            all.push(once()?);
        }
        all.sort_by(f64::total_cmp);
        Ok(Self(all))
    }

    pub(crate) fn min(&self) -> f64 {
        self.0[0]
    }

    pub(crate) fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    pub(crate) fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

/// Waits for the device's work.
fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

//! How fast a run is and how much memory it takes.

use std::time::{Duration, Instant};

use tch::Device;
use torch_ext::memory;

/// Measures tokens a second of training steps alone: evaluation, checkpoints and start-up do not count.
#[derive(Debug)]
pub(crate) struct Meter {
    device: Device,
    started: Option<Instant>,
    window: Work,
    /// Without the first step, which allocates and compiles.
    total: Work,
    warm: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Work {
    tokens: u64,
    time: Duration,
}

impl Work {
    fn add(&mut self, tokens: u64, time: Duration) {
        self.tokens += tokens;
        self.time += time;
    }

    fn rate(self) -> Option<f64> {
        (self.tokens > 0).then(|| self.tokens as f64 / self.time.as_secs_f64())
    }
}

impl Meter {
    pub(crate) fn new(device: Device) -> Self {
        let window = Work::default();
        Self { device, started: None, window, total: window, warm: false }
    }

    pub(crate) fn start(&mut self) {
        self.started = Some(Instant::now());
    }

    /// Ends a step of so many tokens. The step's loss has been read, so a GPU has done its work.
    pub(crate) fn stop(&mut self, tokens: u64) {
        if let Some(started) = self.started.take() {
            self.count(tokens, started.elapsed());
        }
    }

    fn count(&mut self, tokens: u64, time: Duration) {
        self.window.add(tokens, time);
        if self.warm {
            self.total.add(tokens, time);
        }
        self.warm = true;
    }

    /// Tokens a second since the last call.
    pub(crate) fn take_rate(&mut self) -> Option<f64> {
        std::mem::take(&mut self.window).rate()
    }

    /// Tokens a second of all steps but the first.
    pub(crate) fn rate(&self) -> Option<f64> {
        self.total.rate()
    }

    /// What is in tensors on a CUDA device; the process's memory on the CPU.
    pub(crate) fn memory_bytes(&self) -> Option<f64> {
        let bytes = match memory::cuda_stats(self.device) {
            Ok(stats) => Some(stats.allocated),
            Err(_) => stage::rss_bytes(),
        };
        bytes.map(|bytes| bytes as f64)
    }
}

/// The most that was in tensors on a CUDA device; the most memory the process had on the CPU.
pub(crate) fn peak_memory_bytes(device: Device) -> Option<u64> {
    memory::cuda_stats(device).ok().map(|stats| stats.peak_allocated).or_else(stage::peak_rss_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughput_is_tokens_over_the_time_of_the_steps() {
        let mut meter = Meter::new(Device::Cpu);
        assert_eq!((meter.take_rate(), meter.rate()), (None, None));
        for millis in [800, 100, 100] {
            meter.count(100, Duration::from_millis(millis));
        }
        assert_eq!(meter.take_rate(), Some(300.0));
        assert_eq!(meter.take_rate(), None);
        // The first step is not counted: it allocates.
        assert_eq!(meter.rate(), Some(1000.0));
        // Time without a step is nobody's.
        meter.stop(100);
        assert_eq!(meter.take_rate(), None);
    }
}

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
        let Some(started) = self.started.take() else { return };
        let time = started.elapsed();
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

//! What the memory of a training step is for, measured.

use std::fmt;

use model::Params;
use serde::Serialize;
use stage::human_bytes;
use tch::Device;
use torch_ext::memory;

/// Bytes by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct MemoryUse {
    /// The model's own parameters: masters and compute copies.
    pub(crate) weights: u64,
    /// An adapter's.
    pub(crate) adapter: u64,
    /// fp32 gradients of what trains.
    pub(crate) gradients: u64,
    /// The optimiser's state.
    pub(crate) optimizer: u64,
    /// All else that was in tensors at the highest point of the step's forward and backward passes.
    pub(crate) activations: u64,
}

impl fmt::Display for MemoryUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weights, adapter, gradients, optimizer, activations } = self;
        let all = [
            ("weights", weights),
            ("adapter", adapter),
            ("gradients", gradients),
            ("optimiser", optimizer),
            ("activations", activations),
        ];
        let list: Vec<String> = all
            .into_iter()
            .filter(|(_, bytes)| **bytes > 0)
            .map(|(name, bytes)| format!("{name} {}", human_bytes(*bytes)))
            .collect();
        f.write_str(&list.join(", "))
    }
}

/// What was in tensors before a step's passes.
pub(crate) struct Before {
    device: Device,
    allocated: u64,
}

impl Before {
    /// Begins to measure.
    pub(crate) fn new(device: Device) -> Self {
        // A device that keeps no peak has none to report.
        let _ = memory::reset_peak(device);
        Self { device, allocated: now(device).0 }
    }

    /// After the passes, while the gradients are there: those of `params`, and the bytes of `slices` elsewhere.
    pub(crate) fn measure(&self, params: &Params, [slices, optimizer]: [usize; 2]) -> MemoryUse {
        let [weights, adapter] = params.bytes().map(|bytes| bytes as u64);
        let gradients = (params.grad_bytes() + slices) as u64;
        let risen = now(self.device).1.saturating_sub(self.allocated);
        MemoryUse {
            weights,
            adapter,
            gradients,
            optimizer: optimizer as u64,
            activations: risen.saturating_sub(gradients),
        }
    }
}

/// Bytes in tensors now, and at most since the peak was reset.
fn now(device: Device) -> (u64, u64) {
    if let Ok(stats) = memory::cuda_stats(device) {
        return (stats.allocated, stats.peak_allocated);
    }
    let stats = memory::cpu_stats();
    (stats.allocated, stats.peak_allocated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_there_are_listed() {
        let memory = MemoryUse {
            weights: 2048,
            adapter: 0,
            gradients: 512,
            optimizer: 1024,
            activations: 4096,
        };
        let shown = memory.to_string();
        assert!(shown.starts_with("weights ") && !shown.contains("adapter"), "{shown}");
        assert_eq!(shown.matches(", ").count(), 3, "{shown}");
    }
}

//! What a training step would take on more processes than there are: a small simulation of backward and the sums beside it.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use model::ModelConfig;
use training::world::bucket_bytes;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A config.json.
    #[arg(long)]
    config: PathBuf,
    /// Numbers of processes.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64,1024")]
    ranks: Vec<u32>,
    /// Tokens of each process in a step.
    #[arg(long, default_value_t = 16384.0)]
    tokens: f64,
    /// Length of the sequences: attention costs grow with it.
    #[arg(long, default_value_t = 1024)]
    seq: i64,
    /// Micro-batches of each process in a step.
    #[arg(long, default_value_t = 1.0)]
    micro_batches: f64,
    /// Floating-point operations a second that a process's training reaches.
    #[arg(long, default_value_t = 4e14)]
    flops: f64,
    /// What the processes divide, as in `train.zero_stage`.
    #[arg(long, default_value_t = 0)]
    zero_stage: u8,
    /// Bytes of a number that is computed with: 4 in fp32.
    #[arg(long, default_value_t = 2.0)]
    compute_bytes: f64,
    /// Bytes that are summed in one go; what `training::world` takes for so many processes if absent.
    #[arg(long)]
    bucket: Option<f64>,
    #[command(flatten)]
    network: Network,
}

/// What lies between the processes.
#[derive(Debug, Clone, Args)]
struct Network {
    /// Processes on one machine.
    #[arg(long, default_value_t = 8)]
    local: u32,
    /// Bytes a second that a process sends to another on its machine.
    #[arg(long, default_value_t = 4e11)]
    bandwidth: f64,
    /// Seconds of each message there.
    #[arg(long, default_value_t = 5e-6)]
    latency: f64,
    /// Bytes a second that a process sends to another machine, all of a machine's at the same time.
    #[arg(long, default_value_t = 4e10)]
    remote_bandwidth: f64,
    /// Seconds of each message there.
    #[arg(long, default_value_t = 2e-5)]
    remote_latency: f64,
    /// How much of the time of a sum computing goes on: 1 where the network works by itself, 0 where the processor does it.
    #[arg(long, default_value_t = 1.0)]
    overlap: f64,
}

/// What one step does.
#[derive(Debug, Clone, Copy)]
struct Work {
    /// Seconds of the forward passes and of the backward passes.
    forward: f64,
    backward: f64,
    /// Parameters of a layer, how many layers, and those of no layer: they get their gradient last.
    layer: f64,
    layers: u32,
    rest: f64,
    zero_stage: u8,
    micro_batches: f64,
    /// Of a number that is computed with.
    compute_bytes: f64,
    /// Bytes that are summed in one go.
    bucket: f64,
}

/// A step as it is predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    seconds: f64,
    /// Of these seconds, those in which nothing is computed.
    waiting: f64,
    /// Bytes that each process sends.
    sent: f64,
}

impl Network {
    /// Seconds in which `bytes` of each of `ranks` processes are summed and each keeps its part, or in which such parts are
    /// brought together: rings within the machines, and between them rings of one process of each.
    fn half(&self, ranks: u32, bytes: f64) -> f64 {
        let local = f64::from(self.local.min(ranks));
        let machines = (f64::from(ranks) / local).ceil();
        let ring = |n: f64, bytes: f64, bandwidth: f64, latency: f64| {
            (n - 1.0) * (bytes / n / bandwidth + latency)
        };
        ring(local, bytes, self.bandwidth, self.latency)
            + ring(machines, bytes / local, self.remote_bandwidth, self.remote_latency)
    }
}

/// Bytes that each process sends in a step: gradients and masters in fp32, by rings; of a divided model parameters in the compute
/// type, for the forward pass and again for the backward pass.
fn sent(work: Work, ranks: u32) -> f64 {
    let n = f64::from(ranks);
    let parameters = work.layer * f64::from(work.layers) + work.rest;
    let half = (n - 1.0) / n * 4.0 * parameters;
    match work.zero_stage {
        0 => 2.0 * half,
        1 => 3.0 * half,
        2 => (work.micro_batches + 1.0) * half,
        _ => work.micro_batches * (1.0 + 2.0 * work.compute_bytes / 4.0) * half,
    }
}

/// One step: gradients come layer by layer from the last to the first, a bucket is summed when it is full and the one before it is
/// through, and what is not through at the end of backward is waited for.
fn simulate(work: Work, network: &Network, ranks: u32) -> Step {
    let sums = if work.zero_stage > 1 { work.micro_batches } else { 1.0 };
    let halves = if work.zero_stage > 1 { 1.0 } else { 2.0 };
    // The last micro-batch's backward alone has sums beside it; in stage 2 every one's.
    let backward = work.backward / work.micro_batches;
    let parameters = work.layer * f64::from(work.layers) + work.rest;
    let (mut now, mut pending, mut free, mut summing) = (0.0, 0.0, 0.0_f64, 0.0);
    let layers = (0..work.layers).map(|_| work.layer).chain([work.rest]);
    let count = work.layers as usize;
    for (index, own) in layers.enumerate() {
        now += backward * own / parameters;
        pending += 4.0 * own;
        while pending >= work.bucket || (index == count && pending > 0.0) {
            let bytes = pending.min(work.bucket);
            let time = halves * network.half(ranks, bytes);
            free = free.max(now) + time;
            summing += time;
            pending -= bytes;
        }
    }
    let beside = (free - backward).max(0.0);
    let waiting = network.overlap * beside + (1.0 - network.overlap) * summing;
    let gather = match work.zero_stage {
        0 => 0.0,
        1 | 2 => network.half(ranks, 4.0 * parameters),
        _ => work.micro_batches * gatherings(work, network, ranks, summing),
    };
    let waiting = waiting * sums + gather;
    Step { seconds: work.forward + work.backward + waiting, waiting, sent: sent(work, ranks) }
}

/// Seconds in which a micro-batch waits for a divided model's parameters: what is outside of the layers once, each layer for both
/// passes. The next layer comes while one computes, in backward when the network is not at work on sums (`summing` seconds).
fn gatherings(work: Work, network: &Network, ranks: u32, summing: f64) -> f64 {
    let layers = f64::from(work.layers);
    let layer = network.half(ranks, work.compute_bytes * work.layer);
    let pass = |seconds: f64| {
        let beside = network.overlap * layer.min((seconds / layers).max(0.0));
        layer + (layers - 1.0) * (layer - beside)
    };
    let (forward, backward) =
        (work.forward / work.micro_batches, work.backward / work.micro_batches - summing);
    network.half(ranks, work.compute_bytes * work.rest) + pass(forward) + pass(backward)
}

/// A table of the numbers of processes asked for.
pub(crate) fn table(options: &Options) -> Result<String> {
    let text = fs_err::read_to_string(&options.config)?;
    let json = serde_json::from_str(&text)
        .with_context(|| format!("{} is not JSON", options.config.display()))?;
    let config = ModelConfig::from_json(&json)?;
    ensure!(options.flops > 0.0 && options.tokens > 0.0, "--flops and --tokens must be above 0");
    ensure!(options.network.local > 0, "--local must be at least 1");
    let forward =
        config.forward_flops_per_token(options.seq as f64 / 2.0) * options.tokens / options.flops;
    let (all, rest) = (config.num_parameters() as f64, config.num_embedding_parameters() as f64);
    let layers = u32::try_from(config.num_hidden_layers)?.max(1);
    let work = Work {
        forward,
        backward: 2.0 * forward,
        layer: (all - rest) / f64::from(layers),
        layers,
        rest,
        zero_stage: options.zero_stage,
        micro_batches: options.micro_batches,
        compute_bytes: options.compute_bytes,
        bucket: f64::INFINITY,
    };
    let mut out = String::from(
        "| processes | step, ms | waiting, ms | sent by each, MB | tokens/s | efficiency |\n|---|---|---|---|---|---|\n",
    );
    let alone = simulate(work, &options.network, 1).seconds;
    for &ranks in &options.ranks {
        ensure!(ranks > 0, "--ranks must be at least 1");
        let own = bucket_bytes(ranks as usize) as f64;
        let work = Work { bucket: options.bucket.unwrap_or(own), ..work };
        let step = simulate(work, &options.network, ranks);
        let _ = writeln!(
            out,
            "| {ranks} | {:.1} | {:.1} | {:.1} | {:.3e} | {:.1} % |",
            step.seconds * 1e3,
            step.waiting * 1e3,
            step.sent / 1e6,
            f64::from(ranks) * options.tokens / step.seconds,
            100.0 * alone / step.seconds
        );
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: f64 = 4.0 * 1048576.0;
    const WORK: Work = Work {
        forward: 1.0,
        backward: 2.0,
        layer: 1048576.0,
        layers: 3,
        rest: 1048576.0,
        zero_stage: 0,
        micro_batches: 1.0,
        compute_bytes: 4.0,
        bucket: BUCKET,
    };

    fn network(bandwidth: f64, overlap: f64) -> Network {
        Network {
            local: 8,
            bandwidth,
            latency: 0.0,
            remote_bandwidth: bandwidth / 8.0,
            remote_latency: 0.0,
            overlap,
        }
    }

    #[test]
    fn one_process_sends_nothing() {
        let step = simulate(WORK, &network(1e9, 0.0), 1);
        assert_eq!(step, Step { seconds: 3.0, waiting: 0.0, sent: 0.0 });
    }

    #[test]
    fn sums_by_hand() {
        // Four buckets of 4 MiB; in a ring of two each process sends half of it twice.
        let bucket = BUCKET / 1e9;
        let none = simulate(WORK, &network(1e9, 0.0), 2);
        assert!((none.waiting - 4.0 * bucket).abs() < 1e-12);
        assert!((none.sent - 4.0 * BUCKET).abs() < 1.0);
        // Beside backward, whose last quarter ends with the last bucket: that one alone is waited for.
        let beside = simulate(WORK, &network(1e9, 1.0), 2);
        assert!((beside.waiting - bucket).abs() < 1e-12, "{beside:?}");
        // A slow network: they queue. The first begins after half a second.
        let slow = network(BUCKET, 1.0);
        let queued = simulate(WORK, &slow, 2);
        assert!((queued.waiting - (0.5 + 4.0 - 2.0)).abs() < 1e-9, "{queued:?}");
    }

    #[test]
    fn zero_sends_more_and_stage_2_after_every_micro_batch() {
        let step = |zero_stage, micro_batches| {
            let work = Work { zero_stage, micro_batches, ..WORK };
            simulate(work, &network(1e9, 0.0), 8).sent / (4.0 * 4.0 * 1048576.0 * 7.0 / 8.0)
        };
        assert!((step(0, 4.0) - 2.0).abs() < 1e-9);
        assert!((step(1, 4.0) - 3.0).abs() < 1e-9);
        assert!((step(2, 1.0) - 2.0).abs() < 1e-9);
        assert!((step(2, 4.0) - 5.0).abs() < 1e-9);
        assert!((step(3, 1.0) - 3.0).abs() < 1e-9);
        assert!((step(3, 4.0) - 12.0).abs() < 1e-9);
    }

    #[test]
    fn a_divided_model_is_waited_for_twice_in_layers_and_once_outside() {
        let divided = simulate(Work { zero_stage: 3, ..WORK }, &network(1e9, 0.0), 2);
        // Gradients of four buckets go one half of a sum, and seven times a bucket is brought together.
        let half = BUCKET / 2.0 / 1e9;
        assert!((divided.waiting - 11.0 * half).abs() < 1e-12, "{divided:?}");
        // Beside the computation: the last bucket's sum, and of what is brought together what is outside of the layers and the
        // first layer of each pass.
        let beside = simulate(Work { zero_stage: 3, ..WORK }, &network(1e9, 1.0), 2);
        assert!((beside.waiting - 4.0 * half).abs() < 1e-12, "{beside:?}");
        // A network so slow that a layer takes 2 seconds, and computes 1/3 forward; in backward it has no time to spare.
        let slow = network(BUCKET / 4.0, 1.0);
        let waited = gatherings(Work { zero_stage: 3, ..WORK }, &slow, 2, 9.0);
        assert!((waited - (2.0 + 2.0 + 2.0 * (2.0 - 1.0 / 3.0) + 6.0)).abs() < 1e-9, "{waited}");
    }

    #[test]
    fn between_machines_each_process_sends_an_eighth() {
        let within = network(1e9, 0.0).half(8, 8e6);
        assert!((within - 7e6 / 1e9).abs() < 1e-12);
        let between = network(1e9, 0.0).half(16, 8e6) - within;
        assert!((between - 0.5e6 / (1e9 / 8.0)).abs() < 1e-12);
    }
}

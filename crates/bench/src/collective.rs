//! The time of a sum over the processes of a job.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use stage::Layout;
use tch::{Device, Kind, Tensor};
use torch_ext::collective::{Group, Nccl, Reduction, Store, StoreAddress};
use torch_ext::device;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Size of the tensor.
    #[arg(long, default_value_t = 4.0)]
    mebibytes: f64,
    /// How often.
    #[arg(long, default_value_t = 50)]
    repeats: usize,
    /// cpu: Gloo's sums; cuda: NCCL's, each process on the GPU of its `LOCAL_RANK`.
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
}

/// Sums a tensor over all ranks again and again: median seconds, and bytes a second that each sends in a ring. Rank 0 has the
/// result; the others have none.
pub(crate) fn measure(options: &Options) -> Result<Option<Value>> {
    let layout = Layout::from_env(Duration::from_mins(1))?;
    ensure!(layout.is_shared(), "start it as several processes, for instance with torchrun");
    let (host, port) = &layout.master;
    let serve = layout.is_first() && !layout.served;
    let address = StoreAddress { host, port: *port, serve, prefix: "bench/" };
    let store = Store::connect(&address, layout.patience)?;
    let (rank, size, patience) = (layout.rank, layout.size, layout.patience);
    let (device, group) = if options.device == "cpu" {
        (Device::Cpu, Group::gloo(&store, rank, size, patience)?)
    } else {
        let device = device::resolve(&format!("cuda:{}", layout.local_rank))?;
        (device, Group::nccl(&Nccl::load()?, &store, rank, size, device, patience)?)
    };
    let numbers = (options.mebibytes * 1048576.0 / 4.0) as i64;
    let tensor = Tensor::zeros([numbers], (Kind::Float, device));
    let mut times = Vec::new();
    for _ in 0..options.repeats + 3 {
        let started = Instant::now();
        group.all_reduce(&tensor, Reduction::Sum)?.wait()?;
        times.push(started.elapsed().as_secs_f64());
    }
    let mut times = times.split_off(3);
    times.sort_by(f64::total_cmp);
    let seconds = times[times.len() / 2];
    let size = layout.size as f64;
    let sent = 2.0 * (size - 1.0) / size * numbers as f64 * 4.0;
    Ok(layout.is_first().then(|| {
        json!({ "ranks": layout.size, "device": options.device, "bytes": numbers * 4, "seconds": seconds, "bytes_per_second": sent / seconds })
    }))
}

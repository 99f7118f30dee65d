//! Checkpoints: all that a run needs to go on as if it had never stopped.
//!
//! ```text
//! checkpoints/step-00000500/
//!   state.json              the step, the caller's state, and what the run was made of
//!   generators.safetensors  the random generators
//!   ...                     what the caller writes: weights, optimiser
//! ```
//!
//! A checkpoint appears whole or not at all, and a removed one is gone at once. It belongs to one config, one set of
//! inputs: a run with others is refused instead of mixed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use artifact::atomic::{self, AtomicDir};
use artifact::{FORMAT_VERSION, Input};
use data::batch::Share;
use model::division::Division;
use model::weights::{WeightFiles, write_tensors};
use model::{Decoder, Precision};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stage::{Context, ErrorExt as _};
use tch::{Device, Tensor};
use torch_ext::{device, generator};

use crate::optimizer::AdamW;
use crate::update::Updater;
use crate::world::World;

const STATE: &str = "state.json";
const GENERATORS: &str = "generators.safetensors";

/// Keys, and beginnings of keys, that a resumed run may have with other values: they do not touch its training.
const FREE_KEYS: [&str; 7] = [
    "train.zero_stage:",
    "train.log_every_steps:",
    "train.checkpoint.every_steps:",
    "train.checkpoint.save_total_limit:",
    "samples",
    "evaluation",
    "save.",
];

/// The role of an input that is read after training.
const FREE_ROLE: &str = "prompts";

/// What can be done about a checkpoint that cannot be read.
pub const DAMAGED: &str =
    "remove this checkpoint to go on from the one before, or start over with --resume never";

/// `state.json`.
#[derive(Serialize, Deserialize)]
struct Record<S> {
    format_version: u64,
    step: u64,
    config: Value,
    inputs: Vec<Input>,
    libtorch: String,
    device: String,
    threads: usize,
    state: S,
}

/// A checkpoint that a run goes on from.
#[derive(Debug)]
pub struct Resumed<S> {
    /// Its directory.
    pub path: PathBuf,
    /// Optimiser steps done.
    pub step: u64,
    /// What was saved with it.
    pub state: S,
}

/// The directory of the checkpoint of `step`.
pub fn path_of(ctx: &Context, step: u64) -> PathBuf {
    ctx.run_dir.checkpoints_dir().join(format!("step-{step:08}"))
}

/// The steps of the checkpoints there are, ascending.
///
/// # Errors
/// If the folder cannot be listed.
pub fn steps(ctx: &Context) -> anyhow::Result<Vec<u64>> {
    let dir = ctx.run_dir.checkpoints_dir();
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix("step-"));
        steps.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Checks that every rank goes on from the same checkpoint, or none.
///
/// # Errors
/// One does not see it: the run directory is not the same for all.
pub fn same_in_all(ctx: &Context, world: &World, step: Option<u64>) -> anyhow::Result<()> {
    let steps = world.gather(step)?;
    let Some(rank) = steps.iter().position(|other| *other != steps[0]) else { return Ok(()) };
    let words = |step: Option<u64>| step.map_or("none".to_owned(), |step| format!("step {step}"));
    let (dir, first, other) = (ctx.run_dir.path().display(), words(steps[0]), words(steps[rank]));
    Err(anyhow::anyhow!("{dir}: rank 0 finds the checkpoint of {first}, rank {rank} of {other}"))
        .hint("the run directory must be one that all processes share")
}

/// Saves `state` and the random generators as the checkpoint of `step`, with the files that `write` puts into the
/// directory it is given and the optimisers' state. Of several processes the first does, with what the others hold of a divided
/// model; of state that is divided every rank writes a file of its own.
///
/// # Errors
/// The file system's, or an input that changed since the run has read it; the checkpoints from before are then as they were. A
/// rank that is gone.
pub fn save<S: Serialize>(
    ctx: &Context,
    world: &World,
    step: u64,
    state: &S,
    division: Option<&Division>,
    write: impl FnOnce(&Path) -> anyhow::Result<()>,
    optimizers: &[(&str, &Updater)],
) -> anyhow::Result<PathBuf> {
    ctx.check_unchanged()?;
    let path = path_of(ctx, step);
    let failed = || format!("cannot save the checkpoint {}", path.display());
    let (parts, whole): (Vec<_>, Vec<_>) =
        optimizers.iter().partition(|(_, updater)| updater.divides());
    let write = |dir: &Path| {
        write(dir)?;
        whole.iter().try_for_each(|(name, updater)| write_optimizer(dir, name, updater))
    };
    let begun = world.lead(division, || {
        begin(ctx, world.device(), &path, step, state, write).with_context(failed)
    })?;
    if !parts.is_empty() {
        let place = begun.as_ref().map(|dir| dir.path().to_owned());
        let place = world.gather(place)?.swap_remove(0).context("rank 0 has no place")?;
        for (name, updater) in parts {
            write_optimizer(&place, name, updater).with_context(failed)?;
        }
        world.gather(())?;
    }
    if let Some(dir) = begun {
        dir.commit().with_context(failed)?;
    }
    Ok(path)
}

/// Writes the state, or a rank's part of it, by the name that [`optimizer_file`] gives.
fn write_optimizer(dir: &Path, name: &str, updater: &Updater) -> anyhow::Result<()> {
    let (state, share) = updater.state();
    Ok(write_tensors(&dir.join(optimizer_file(name, share)), &state)?)
}

/// Writes all that the first rank writes.
fn begin<S: Serialize>(
    ctx: &Context,
    device: Device,
    path: &Path,
    step: u64,
    state: &S,
    write: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<AtomicDir> {
    let dir = AtomicDir::create(path)?;
    write(dir.path())?;
    let mut states = vec![("cpu".to_owned(), generator::get_state(Device::Cpu)?)];
    if device.is_cuda() {
        states.push(("device".to_owned(), generator::get_state(device)?));
    }
    write_tensors(&dir.path().join(GENERATORS), &states)?;
    let record = Record {
        format_version: FORMAT_VERSION,
        step,
        config: ctx.config().clone(),
        inputs: ctx.inputs.clone(),
        libtorch: device::libtorch_version(),
        device: kind_of(device).to_owned(),
        threads: device::threads(),
        state,
    };
    let mut text = serde_json::to_vec_pretty(&record)?;
    text.push(b'\n');
    atomic::write_bytes(dir.path().join(STATE), &text)?;
    Ok(dir)
}

fn kind_of(device: Device) -> &'static str {
    if device.is_cuda() { "cuda" } else { "cpu" }
}

/// The newest checkpoint of the run directory, if the run may go on from one: checked against the config and inputs of
/// this run, its random generators put back.
///
/// # Errors
/// A damaged checkpoint, or one made with another config, other inputs or another format; each says what differs and
/// what can be done.
pub fn resume<S: DeserializeOwned>(
    ctx: &Context,
    device: Device,
) -> anyhow::Result<Option<Resumed<S>>> {
    let Some(step) = steps(ctx)?.pop().filter(|_| ctx.resume) else { return Ok(None) };
    let path = path_of(ctx, step);
    let text = fs_err::read_to_string(path.join(STATE)).hint(DAMAGED)?;
    let record: Record<Value> =
        serde_json::from_str(&text).with_context(|| unreadable(&path)).hint(DAMAGED)?;
    check(ctx, &path, &record)?;
    let state =
        serde_json::from_value(record.state).with_context(|| unreadable(&path)).hint(DAMAGED)?;
    put_generators(&path, device).hint(DAMAGED)?;
    for (what, then, now) in [
        ("libtorch", record.libtorch, device::libtorch_version()),
        ("device", record.device, kind_of(device).to_owned()),
        ("number of threads", record.threads.to_string(), device::threads().to_string()),
    ] {
        if then != now {
            tracing::warn!(
                "{what} was {then} and is {now} now: the rest of the run may round differently"
            );
        }
    }
    tracing::info!("goes on from {}", path.display());
    Ok(Some(Resumed { path, step, state }))
}

fn unreadable(path: &Path) -> String {
    format!("{}: not a checkpoint of this program", path.join(STATE).display())
}

/// Refuses a checkpoint of another run.
fn check(ctx: &Context, path: &Path, record: &Record<Value>) -> anyhow::Result<()> {
    let advice = "start over with --resume never, or choose another run directory with --out";
    let shown = path.display();
    if record.format_version != FORMAT_VERSION {
        let (found, known) = (record.format_version, FORMAT_VERSION);
        let error =
            anyhow::anyhow!("{shown}: format version {found}, but this build reads {known}");
        return Err(error).hint(advice).usage();
    }
    let mut changes = stage::config::changes(&record.config, ctx.config());
    changes.retain(|change| !FREE_KEYS.iter().any(|key| change.starts_with(key)));
    if !changes.is_empty() {
        let list = changes.join("\n");
        let error = anyhow::anyhow!("{shown}: made with another config (then -> now)\n{list}");
        return Err(error).hint(advice).hint("put the config back to go on").usage();
    }
    let trained_on = |inputs: &[Input]| -> Vec<Input> {
        inputs.iter().filter(|input| input.role != FREE_ROLE).cloned().collect()
    };
    let (before, after) = (trained_on(&record.inputs), trained_on(&ctx.inputs));
    for (then, now) in before.iter().zip(&after) {
        if (&then.role, &then.digest) != (&now.role, &now.digest) {
            let (role, input) = (&now.role, now.path.display());
            let error = anyhow::anyhow!(
                "{input}: the input `{role}` is not what it was when {shown} was made"
            );
            return Err(error).hint(advice).hint("put the input back to go on");
        }
    }
    if before.len() != after.len() {
        bail!("{shown}: made with another number of inputs; {advice}");
    }
    Ok(())
}

fn put_generators(path: &Path, device: Device) -> anyhow::Result<()> {
    let file = path.join(GENERATORS);
    let states = WeightFiles::open_file(&file)?;
    generator::set_state(Device::Cpu, &states.tensor("cpu")?)?;
    if device.is_cuda() && states.shape("device").is_some() {
        generator::set_state(device, &states.tensor("device")?)?;
    }
    Ok(())
}

/// Removes all checkpoints but the newest `keep` and those of the steps `pinned`.
///
/// # Errors
/// The file system's.
pub fn prune(ctx: &Context, keep: usize, pinned: Option<u64>) -> anyhow::Result<()> {
    if !ctx.layout.is_first() {
        return Ok(());
    }
    let steps = steps(ctx)?;
    let old = steps.len().saturating_sub(keep);
    for step in steps.into_iter().take(old).filter(|step| Some(*step) != pinned) {
        atomic::remove_dir(path_of(ctx, step))?;
    }
    Ok(())
}

/// Writes the weights into a checkpoint: the whole model in Hugging Face layout, so that it can be read as one, or beside an
/// adapter what trains.
///
/// # Errors
/// The file system's.
pub fn save_weights(decoder: &Decoder, dir: &Path) -> anyhow::Result<()> {
    if decoder.adapter().is_none() {
        decoder.save(dir, Precision::Fp32, u64::MAX)?;
        return Ok(());
    }
    let params = decoder.params();
    let mut tensors = Vec::new();
    for name in params.trained_names() {
        tensors.extend(params.whole(name)?.map(|tensor| (name.to_owned(), tensor)));
    }
    Ok(write_tensors(&weights_of(dir, decoder), &tensors)?)
}

/// The file of a checkpoint that [`save_weights`] makes.
#[must_use]
pub fn weights_of(dir: &Path, decoder: &Decoder) -> PathBuf {
    dir.join(if decoder.adapter().is_some() { "trained.safetensors" } else { "model.safetensors" })
}

/// The file of an optimiser's state, or of a rank's part of it where they divide it.
#[must_use]
pub fn optimizer_file(name: &str, share: Share) -> String {
    match share.size {
        1 => format!("{name}.safetensors"),
        size => format!("{name}-{:05}-of-{size:05}.safetensors", share.rank + 1),
    }
}

/// The files of an optimiser's state in a checkpoint, in the order of the ranks that wrote them.
fn optimizer_files(dir: &Path, name: &str) -> anyhow::Result<Vec<PathBuf>> {
    let whole = dir.join(optimizer_file(name, Share::default()));
    if whole.exists() {
        return Ok(vec![whole]);
    }
    let size = |file: &std::ffi::OsStr| -> Option<usize> {
        let numbers = file.to_str()?.strip_prefix(name)?.strip_suffix(".safetensors")?;
        numbers.split_once("-of-")?.1.parse().ok()
    };
    let entries = fs_err::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    let Some(size) = entries.iter().find_map(|entry| size(&entry.file_name())) else {
        bail!("{}: there is no such file", whole.display());
    };
    let paths = (0..size).map(|rank| dir.join(optimizer_file(name, Share { rank, size })));
    let paths: Vec<PathBuf> = paths.collect();
    match paths.iter().find(|path| !path.exists()) {
        Some(missing) => bail!("{}: there is no such file", missing.display()),
        None => Ok(paths),
    }
}

/// Puts an optimiser's state back from the files in a checkpoint that [`optimizer_file`] names, whatever number of ranks wrote
/// them. `share` is the part of each parameter that `optimizer` was made for.
///
/// # Errors
/// A file that cannot be read or is of other parameters.
pub fn load_optimizer(
    optimizer: &mut AdamW,
    dir: &Path,
    name: &str,
    share: Share,
) -> anyhow::Result<()> {
    let paths = optimizer_files(dir, name)?;
    let files = paths.iter().map(|path| WeightFiles::open_file(path));
    let files = files.collect::<model::Result<Vec<_>>>()?;
    let context = || format!("{}: {name}", dir.display());
    if let ([file], 1) = (files.as_slice(), share.size) {
        let tensors = file.names().map(|name| Ok((name.to_owned(), file.tensor(name)?)));
        let tensors: model::Result<BTreeMap<String, Tensor>> = tensors.collect();
        return optimizer.load_state(&tensors?).with_context(context);
    }
    let pieces = |key: &str| {
        let there = files.iter().filter(|file| file.shape(key).is_some());
        Ok(there.map(|file| file.tensor(key)).collect::<model::Result<Vec<_>>>()?)
    };
    optimizer.load_pieces(&pieces, share).with_context(context)
}

/// Sets a model's masters, and with them the compute copies, from a checkpoint's weights: each from the first of `files` that
/// has it. Beside an adapter those that train.
///
/// # Errors
/// A file that cannot be read; a weight that is missing or of another shape.
pub fn load_weights(decoder: &mut Decoder, files: &[&Path]) -> anyhow::Result<()> {
    let mut opened = Vec::new();
    for path in files.iter().filter(|path| path.exists()) {
        opened.push((path, WeightFiles::open_file(path)?));
    }
    let params = decoder.params();
    let names: Vec<String> = match decoder.adapter() {
        Some(_) => params.trained_names().map(str::to_owned).collect(),
        None => params.names().map(str::to_owned).collect(),
    };
    for name in &names {
        let found = opened.iter().find(|(_, file)| file.shape(name).is_some());
        let (path, file) = found.with_context(|| {
            let first = files.first().map(|path| path.display().to_string()).unwrap_or_default();
            format!("{first}: no weight `{name}`")
        })?;
        let saved = file.tensor(name)?;
        let shape = decoder.params().shape(name).unwrap_or_default();
        ensure!(
            saved.size() == shape,
            "{}: `{name}` has shape {:?}, the model's {shape:?}",
            path.display(),
            saved.size(),
        );
        decoder.params_mut().put(name, &saved)?;
    }
    Ok(decoder.params_mut().refresh_compute()?)
}

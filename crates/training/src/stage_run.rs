//! What every training stage does around its loop: the device at the start, the model's files at the end.

use std::path::Path;

use data::tokenizer::Tokenizer;
use model::{Decoder, Precision};
use serde_json::{Map, Value};
use stage::{Context, DeviceSpec, ErrorExt as _};
use tch::Device;
use torch_ext::device;

use crate::loss::next_token_loss;
use crate::peft::{self, Trained};
use crate::plan::Plan;
use crate::respond::respond;
use crate::settings::Save;
use crate::supervised::train;
use crate::world::World;

/// Finds the device that the command line asked for, and notes it and libtorch's version for the manifest.
///
/// # Errors
/// If it is not there: wrong usage.
pub fn find_device(ctx: &mut Context) -> anyhow::Result<Device> {
    let wanted = match ctx.device {
        // Each process of a machine has a GPU of its own; some launchers show it that one alone.
        DeviceSpec::Auto if ctx.layout.is_shared() => match device::load_cuda().devices() {
            0 => DeviceSpec::Auto,
            1 => DeviceSpec::Cuda(0),
            _ => DeviceSpec::Cuda(ctx.layout.local_rank),
        },
        wanted => wanted,
    };
    let found = device::resolve(&wanted.to_string()).usage()?;
    let name = match found {
        Device::Cuda(index) => {
            let names = device::cuda_device_names();
            format!("cuda:{index} {}", names.get(index).map_or("", String::as_str))
        }
        _ => format!("cpu, {} threads", device::threads()),
    };
    tracing::info!("device: {name}");
    ctx.set_device(name);
    ctx.version("libtorch", device::libtorch_version());
    Ok(found)
}

/// Records the data and the tokenizer that the plan reads.
///
/// # Errors
/// A file that cannot be read or is not what its producer wrote.
pub fn record_inputs(ctx: &mut Context, plan: &Plan) -> anyhow::Result<()> {
    for file in &plan.supervised.train {
        ctx.input("train", file)?;
    }
    for file in plan.supervised.validation.iter().flat_map(|validation| &validation.files) {
        ctx.input("validation", file)?;
    }
    ctx.input("tokenizer", &plan.tokenizer_path)?;
    if let Some(adapter) = plan.peft.as_ref().and_then(peft::Plan::input) {
        ctx.input("adapter", adapter)?;
    }
    if let Some(prompts) = &plan.prompts {
        ctx.input("prompts", prompts.path())?;
    }
    Ok(())
}

/// Trains on texts, writes the model or the adapter over `base`, and lets it answer the prompts there are: what
/// pre-training and fine-tuning have in common. Returns what the manifest reports. Of several processes the first alone writes
/// and answers; the others are through after the loop.
///
/// # Errors
/// As [`train`], and the file system's.
pub fn train_on_texts(
    ctx: &mut Context,
    world: &World,
    decoder: &mut Decoder,
    plan: &Plan,
    base: Option<&Path>,
) -> anyhow::Result<Map<String, Value>> {
    decoder.set_dropout(plan.supervised.settings.dropout_over(decoder.config().dropout));
    warn_of_emulation(decoder);
    let mut results = train(ctx, world, decoder, &plan.supervised, &next_token_loss)?;
    let division = decoder.params().division().cloned();
    let more = world.lead(division.as_ref(), || {
        save_model(ctx, decoder, &plan.tokenizer, &plan.save, plan.trained(base))?;
        let mut results = sizes(decoder);
        match &plan.prompts {
            Some(prompts) => results.extend(respond(ctx, decoder, &plan.tokenizer, prompts)?),
            // Those of an earlier run are not this one's.
            None => ctx.run_dir.remove_samples()?,
        }
        Ok(results)
    })?;
    results.extend(more.into_iter().flatten());
    Ok(results)
}

/// Says so where a model's precision is slow on this machine.
pub fn warn_of_emulation(decoder: &Decoder) {
    if decoder.device() == Device::Cpu
        && decoder.precision() == Precision::Bf16
        && device::cpu_bf16() == device::CpuBf16::Emulated
    {
        tracing::warn!(
            "this CPU has no bf16 instructions: train.precision = \"fp32\" is faster here"
        );
    }
}

/// For the manifest: `peak_memory_bytes` of the run, `parameters` of its model, and with an adapter
/// `trainable_parameters`.
#[must_use]
pub fn sizes(decoder: &Decoder) -> Map<String, Value> {
    let peak = crate::meter::peak_memory_bytes(decoder.device());
    let mut sizes = Map::from_iter([
        ("peak_memory_bytes".to_owned(), peak.into()),
        ("parameters".to_owned(), decoder.config().num_parameters().into()),
    ]);
    if decoder.adapter().is_some() {
        sizes.insert("trainable_parameters".to_owned(), decoder.params().num_trainable().into());
    }
    sizes
}

/// Writes `model/`: weights, configs and the tokenizer's files, with the tokenizer's special tokens in the configs. Of a
/// trained adapter `adapter/` instead, and `model/` where a merge is asked for.
///
/// # Errors
/// The file system's.
pub fn save_model(
    ctx: &mut Context,
    decoder: &mut Decoder,
    tokenizer: &Tokenizer,
    save: &Save,
    trained: Option<Trained<'_>>,
) -> anyhow::Result<()> {
    match trained {
        None => {
            write_model(ctx, decoder, tokenizer, save)?;
            ctx.run_dir.remove_adapter()?;
        }
        Some(trained) => match peft::save(ctx, decoder, tokenizer, trained)? {
            Some(mut merged) => write_model(ctx, &mut merged, tokenizer, save)?,
            None => ctx.run_dir.remove_model()?,
        },
    }
    ctx.tokenizer = Some(tokenizer.digest());
    ctx.chat_template = tokenizer.chat_template_digest();
    Ok(())
}

fn write_model(
    ctx: &Context,
    decoder: &mut Decoder,
    tokenizer: &Tokenizer,
    save: &Save,
) -> anyhow::Result<()> {
    let config = decoder.config();
    let id = |own: Option<u32>, models: Option<i64>| own.map(i64::from).or(models);
    let eos = tokenizer.eos_id().map_or_else(|| config.eos_token_ids.clone(), |id| vec![id.into()]);
    let (bos, pad) =
        (id(tokenizer.bos_id(), config.bos_token_id), id(tokenizer.pad_id(), config.pad_token_id));
    decoder.set_token_ids(bos, &eos, pad);
    let dir = ctx.run_dir.model_dir();
    decoder.save(&dir, save.precision, save.max_shard_mb.saturating_mul(1_000_000))?;
    tokenizer.save(&dir)?;
    Ok(())
}

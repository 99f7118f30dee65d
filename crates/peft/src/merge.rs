//! `peft merge` and `peft unmerge`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use artifact::atomic::AtomicDir;
use clap::Parser;
use data::tokenizer::Tokenizer;
use model::peft::AdapterFiles;
use model::{Decoder, LoadOptions, Loading, Precision};
use stage::{ErrorExt as _, UsageError};
use tch::{Device, Tensor};
use training::peft::check_base;

/// What is done with an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Merge,
    Unmerge,
}

/// Makes adapters part of a model's weights and writes the plain model (merge), or takes a merged adapter off again
/// (unmerge).
///
/// Weights are added in fp32 and rounded once. The largest difference between the logits of the written model and those of
/// the model with its adapter, over some random tokens, is printed.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Reads:   a model and adapters: Hugging Face and PEFT directories, or run directories\n\
                  Writes:  a model directory in Hugging Face layout\n\
                  Example: peft merge --model runs/quickstart/sft --adapter runs/quickstart/peft --output merged"
)]
struct Args {
    /// The model: the adapter's base (merge), or that with the adapter in its weights (unmerge).
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// An adapter; repeat it to merge several, one after another.
    #[arg(long, value_name = "DIR", required = true)]
    adapter: Vec<PathBuf>,
    /// The model directory to write.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Number type of the weights on disk: fp32, bf16 or fp16.
    #[arg(long, value_name = "TYPE", default_value = "fp32")]
    precision: Precision,
    /// Merge although the adapter says that it was trained over other weights.
    #[arg(long)]
    any_base: bool,
    #[command(flatten)]
    verbosity: stage::Verbosity,
}

pub(crate) fn main(words: Vec<OsString>, way: Way) -> ExitCode {
    let args = Args::parse_from(words);
    stage::program(args.verbosity.verbose, || run(&args, way))
}

fn run(args: &Args, way: Way) -> anyhow::Result<()> {
    let base = artifact::model_dir(&args.model).usage()?;
    check_output(&args.output, &base, "config.json")?;
    let mut adapters = Vec::new();
    for path in &args.adapter {
        let dir = artifact::adapter_dir(path).usage()?;
        let dir = dir.with_context(|| format!("{}: no adapter here", path.display())).usage()?;
        let files = AdapterFiles::open(&dir).usage()?;
        if way == Way::Merge && !args.any_base {
            check_base(&files, &base)?;
        }
        adapters.push(files);
    }
    if way == Way::Unmerge {
        // The last one merged comes off first.
        adapters.reverse();
    }
    // Several one after another, each over what the ones before it left; that is kept aside, so that one that cannot be
    // merged leaves the output as it was.
    let aside = AtomicDir::create(&args.output)?;
    let mut source = base.clone();
    for (index, files) in adapters.iter().enumerate() {
        let last = index + 1 == adapters.len();
        let mut decoder = load(&source, files)?;
        let (before, name) = (probe(&decoder)?, files.dir().display());
        match way {
            Way::Merge => decoder.merge_adapter().usage()?,
            Way::Unmerge => decoder.unmerge_adapter().usage()?,
        }
        let precision = if last { args.precision } else { Precision::Fp32 };
        let into = if last { args.output.as_path() } else { aside.path() };
        decoder.save(into, precision, 5_000_000_000)?;
        if way == Way::Merge {
            let after = probe(&Decoder::load(into, &LoadOptions::default())?)?;
            let difference = f64::try_from((after - &before).abs().max())?;
            let largest = f64::try_from(before.abs().max())?;
            tell!(
                "{name}: merged; logits differ by at most {difference:.1e} (the largest is {largest:.1})"
            );
        } else {
            tell!("{name}: taken off");
        }
        source = into.to_path_buf();
    }
    let tokenizers = [adapters[adapters.len() - 1].dir(), base.as_path()];
    if let Some(dir) = tokenizers.into_iter().find(|dir| dir.join("tokenizer.json").is_file()) {
        Tokenizer::load(dir)?.save(&args.output)?;
    }
    tell!("written: {}", args.output.display());
    Ok(())
}

fn load(base: &Path, files: &AdapterFiles) -> anyhow::Result<Decoder> {
    let options = LoadOptions::default();
    let head = Some(files.head());
    let loading = Loading { options, head, adapter_files: Some(files), ..Loading::default() };
    Decoder::load_with(base, &loading).usage()
}

/// Refuses to write over what is read, or into a directory of something else than has a file `config`.
pub(crate) fn check_output(output: &Path, read: &Path, config: &str) -> anyhow::Result<()> {
    let same = output.exists() && fs_err::canonicalize(output)? == fs_err::canonicalize(read)?;
    let shown = output.display();
    if same {
        return Err(UsageError::new(anyhow::anyhow!(
            "{shown}: is what is read; choose another --output"
        ))
        .into());
    }
    let foreign = output.is_dir()
        && fs_err::read_dir(output)?.next().is_some()
        && !output.join(config).is_file();
    if foreign || output.is_file() {
        let error = anyhow::anyhow!(
            "{shown}: is there already and has no {config}; choose another --output"
        );
        return Err(UsageError::new(error).into());
    }
    Ok(())
}

/// Logits, or scores, of random tokens, fp32.
pub(crate) fn probe(decoder: &Decoder) -> anyhow::Result<Tensor> {
    let config = decoder.config();
    let length = config.max_position_embeddings.min(64);
    // A linear congruential generator: any tokens will do, as long as they are the same ones.
    let mut state: i64 = 1;
    let mut next = || {
        state = (state * 1_103_515_245 + 12_345) % (1 << 31);
        (state >> 8) % config.vocab_size
    };
    let ids: Vec<i64> = (0..length).map(|_| next()).collect();
    let positions: Vec<i64> = (0..length).collect();
    let input = decoder.input(&ids, &positions, &[0, length])?;
    let out = tch::no_grad(|| -> model::Result<Tensor> {
        let hidden = decoder.hidden(&input)?;
        if config.head.has_language_model() {
            decoder.logits(&hidden)
        } else {
            decoder.scores(&hidden)
        }
    })?;
    Ok(out.to_kind(tch::Kind::Float).to_device(Device::Cpu))
}

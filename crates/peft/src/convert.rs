//! `peft convert`: other forms of a model's weights, or of an adapter.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use data::tokenizer::Tokenizer;
use model::peft::{QuantType, Quantization};
use model::{Decoder, LoadOptions, Loading, Precision};
use stage::ErrorExt as _;
use tch::Device;
use training::peft::{base_digest, load_frozen};

use crate::merge::{check_output, probe};

/// What a model's linear layers are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Nf4,
    Fp4,
    Fp32,
    Bf16,
    Fp16,
}

/// Writes a model with its linear layers in 4 bits, as bitsandbytes stores them, or one that is in 4 bits in full; or an
/// adapter anew, in PEFT's present form.
///
/// An adapter that took a part of the weights for itself (`PiSSA`) becomes a LoRA for the model as it was.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Reads:   a model, or a model and an adapter over it\n\
                  Writes:  a model directory in Hugging Face layout, or an adapter directory in PEFT's\n\
                  Example: peft convert --model runs/quickstart/sft --to nf4 --output sft-nf4"
)]
struct Args {
    /// The model.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The adapter to write anew.
    #[arg(long, value_name = "DIR", conflicts_with = "to")]
    adapter: Option<PathBuf>,
    /// What the model's weights become.
    #[arg(long, value_enum, required_unless_present = "adapter")]
    to: Option<Form>,
    /// Keep the scales of 4-bit blocks in fp32.
    #[arg(long)]
    no_double_quant: bool,
    /// The directory to write.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    verbosity: stage::Verbosity,
}

pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    let args = Args::parse_from(words);
    stage::program(args.verbosity.verbose, || run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let base = artifact::model_dir(&args.model).usage()?;
    match (&args.adapter, args.to) {
        (Some(adapter), _) => {
            let dir = artifact::adapter_dir(adapter).usage()?;
            let dir =
                dir.with_context(|| format!("{}: no adapter here", adapter.display())).usage()?;
            check_output(&args.output, &dir, "adapter_config.json")?;
            let decoder = load_frozen(&base, &dir, Device::Cpu, Precision::Fp32).usage()?;
            let name = base.display().to_string();
            decoder.save_adapter(&args.output, &name, Some(&base_digest(&base)?))?;
            copy_tokenizer(&dir, &args.output)?;
        }
        (None, Some(form)) => {
            check_output(&args.output, &base, "config.json")?;
            model(args, &base, form)?;
        }
        (None, None) => {}
    }
    tell!("written: {}", args.output.display());
    Ok(())
}

fn model(args: &Args, base: &Path, form: Form) -> anyhow::Result<()> {
    let quant_type = match form {
        Form::Nf4 => Some(QuantType::Nf4),
        Form::Fp4 => Some(QuantType::Fp4),
        Form::Fp32 | Form::Bf16 | Form::Fp16 => None,
    };
    let quantization = quant_type.map(|quant_type| Quantization {
        quant_type,
        double_quant: !args.no_double_quant,
        skip_modules: Vec::new(),
    });
    let precision = match form {
        Form::Fp32 => Precision::Fp32,
        Form::Fp16 => Precision::Fp16,
        Form::Bf16 | Form::Nf4 | Form::Fp4 => Precision::Bf16,
    };
    let loading = Loading {
        options: LoadOptions::default(),
        quantization: quantization.as_ref(),
        whole: quantization.is_none(),
        ..Loading::default()
    };
    let decoder = Decoder::load_with(base, &loading).usage()?;
    let before = if quantization.is_some() {
        Some(probe(&Decoder::load(base, &LoadOptions::default())?)?)
    } else {
        None
    };
    decoder.save(&args.output, precision, 5_000_000_000)?;
    copy_tokenizer(base, &args.output)?;
    if let Some(before) = before {
        let after = probe(&Decoder::load(&args.output, &LoadOptions::default())?)?;
        let error = f64::try_from((after - &before).square().mean(tch::Kind::Double).sqrt())?;
        let spread = f64::try_from(before.to_kind(tch::Kind::Double).std(false))?;
        tell!("logits move by {error:.3} (root mean square; their deviation is {spread:.3})");
    }
    Ok(())
}

/// The tokenizer's files of one directory into another, where there are some.
fn copy_tokenizer(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.join("tokenizer.json").is_file() {
        Tokenizer::load(from)?.save(to)?;
    }
    Ok(())
}

//! `peft info`: what an adapter, or a model, is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use model::peft::{AdapterFiles, Method};
use model::{Head, ModelConfig};
use stage::{ErrorExt as _, human_bytes};

/// Says what an adapter is: its method, size and base; or how large a model is and how its weights are stored.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Reads:   a directory in PEFT's or Hugging Face layout, or a run directory\n\
                  Writes:  lines to stdout\n\
                  Example: peft info runs/quickstart/peft"
)]
struct Args {
    /// The adapter's or model's directory, or a run directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    verbosity: stage::Verbosity,
}

pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    let args = Args::parse_from(words);
    stage::program(args.verbosity.verbose, || run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    match artifact::adapter_dir(&args.dir).usage()? {
        Some(dir) => adapter(&dir),
        None => describe(&artifact::model_dir(&args.dir).usage()?),
    }
}

fn adapter(dir: &Path) -> anyhow::Result<()> {
    let files = AdapterFiles::open(dir).usage()?;
    let adapter = files.adapter();
    tell!("adapter       {}", dir.display());
    tell!("method        {}", adapter.method.name());
    match &adapter.method {
        Method::Lora(lora) => {
            tell!(
                "rank          {} (alpha {}{})",
                lora.r,
                lora.lora_alpha,
                if lora.use_rslora { ", rank-stabilised" } else { "" }
            );
            if !lora.rank_pattern.is_empty() {
                tell!("other ranks   {:?}", lora.rank_pattern);
            }
            tell!("layers        {}", serde_json::to_string(&lora.target_modules)?);
        }
        Method::Ia3(ia3) => tell!("layers        {}", serde_json::to_string(&ia3.target_modules)?),
        Method::Bottleneck(bottleneck) => tell!("size          {}", bottleneck.size),
    }
    if !adapter.modules_to_save.is_empty() {
        tell!("whole modules {}", adapter.modules_to_save.join(", "));
    }
    let of = if files.head() == Head::Score { "a reward model" } else { "a language model" };
    tell!("for           {of}");
    let bytes = fs_err::metadata(dir.join("adapter_model.safetensors"))?.len();
    tell!("parameters    {} ({} on disk)", files.num_elements(), human_bytes(bytes));
    let base = files.base().unwrap_or("not named");
    let found = artifact::model_dir(base).ok();
    tell!("base          {base}{}", if found.is_some() { "" } else { " (not found from here)" });
    if let Some(base) = found {
        let config = ModelConfig::from_dir(&base)?;
        let share = 100.0 * files.num_elements() as f64 / config.num_parameters() as f64;
        tell!("of the base   {share:.2} % of {} parameters", config.num_parameters());
        match training::peft::check_base(&files, &base) {
            Ok(()) if files.base_digest().is_some() => {
                tell!("fits          yes: it was trained over these weights");
            }
            Ok(()) => {
                tell!("fits          unknown: whoever wrote it did not note the base's digest");
            }
            Err(error) => tell!("fits          no: {error}"),
        }
    }
    Ok(())
}

fn describe(dir: &Path) -> anyhow::Result<()> {
    let config = ModelConfig::from_dir(dir).usage()?;
    tell!("model         {}", dir.display());
    tell!("type          {}", config.architecture.class(config.head));
    tell!("parameters    {}", config.num_parameters());
    tell!("layers        {} of width {}", config.num_hidden_layers, config.hidden_size);
    let files = fs_err::read_dir(dir)?.filter_map(Result::ok).map(|entry| entry.path());
    let bytes: u64 = files
        .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
        .filter_map(|path| fs_err::metadata(path).ok())
        .map(|meta| meta.len())
        .sum();
    let bits = 8.0 * bytes as f64 / config.num_parameters() as f64;
    tell!("weights       {} on disk, {bits:.1} bits a parameter", human_bytes(bytes));
    Ok(())
}

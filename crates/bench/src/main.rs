//! `bench`: what `scripts/bench` needs of the library itself. Prints one JSON object, or a table of single operations.

mod bound;
mod collective;
mod generate;
mod micro;
mod scaling;
mod serve;
mod timing;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use data::tokenizer::Tokenizer;
use model::{Decoder, LoadOptions, ModelConfig, Precision};
use serde_json::Value;
use tch::Device;

/// Measures the parts of temper that no stage runs alone; `scripts/bench/run` calls it.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a model directory with random weights, for both sides of a comparison.
    Init {
        /// A config.json.
        #[arg(long)]
        config: PathBuf,
        /// A tokenizer directory or tokenizer.json to save beside the weights.
        #[arg(long)]
        tokenizer: PathBuf,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Of the weights on disk: fp32, bf16 or fp16.
        #[arg(long, default_value = "fp32", value_parser = precision)]
        precision: Precision,
        /// The directory to write.
        #[arg(long)]
        out: PathBuf,
    },
    /// Measure matrix products of a model's shapes, and so the most tokens a second that this machine could reach.
    Bound(bound::Options),
    /// Time the generation of a full batch.
    Generate(generate::Options),
    /// Ask a running `chat serve` as one client and as many.
    Serve(serve::Options),
    /// As one of several processes: time a sum over all of them.
    Collective(collective::Options),
    /// Predict the training step of many processes.
    Scaling(scaling::Options),
    /// Time single operations against libtorch's own.
    Micro(micro::Options),
}

/// What runs where.
#[derive(Debug, Args)]
struct Target {
    /// fp32, bf16 or fp16.
    #[arg(long, default_value = "fp32", value_parser = precision)]
    precision: Precision,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
}

impl Target {
    fn device(&self) -> Result<Device> {
        Ok(torch_ext::device::resolve(&self.device)?)
    }
}

fn precision(name: &str) -> Result<Precision, String> {
    serde_json::from_value(Value::from(name)).map_err(|_| "use fp32, bf16 or fp16".to_owned())
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln_error(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a program's errors go to stderr")]
fn eprintln_error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

#[expect(clippy::print_stdout, reason = "results go to stdout")]
fn run(command: Command) -> Result<()> {
    let text = match command {
        Command::Init { config, tokenizer, seed, precision, out } => {
            let text = fs_err::read_to_string(&config)?;
            let json = serde_json::from_str(&text)
                .with_context(|| format!("{} is not JSON", config.display()))?;
            let decoder =
                Decoder::init(&ModelConfig::from_json(&json)?, seed, &LoadOptions::default())?;
            decoder.save(&out, precision, u64::MAX)?;
            Tokenizer::load(&tokenizer)?.save(&out)?;
            serde_json::json!({ "parameters": decoder.params().num_elements() }).to_string()
        }
        Command::Bound(options) => bound::measure(&options)?.to_string(),
        Command::Generate(options) => generate::measure(&options)?.to_string(),
        Command::Serve(options) => serve::measure(&options)?.to_string(),
        Command::Collective(options) => match collective::measure(&options)? {
            Some(result) => result.to_string(),
            None => return Ok(()),
        },
        Command::Scaling(options) => scaling::table(&options)?,
        Command::Micro(options) => micro::table(&options)?,
    };
    println!("{text}");
    Ok(())
}

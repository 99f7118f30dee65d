//! `cai import`: a constitution of principles that others wrote.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use data::constitution::import;
use stage::{ErrorExt as _, UsageError};

/// Makes a constitution (TOML) of principles in JSON.
///
/// Known are a list `constitutions` of `critic` and `revision`, Anthropic's CritiqueRevisionInstructions.json, and lists of
/// comparison questions such as RLMadisonInstructions.json. A text is used for both languages; translate it afterwards.
#[derive(Debug, Parser)]
#[command(
    name = "cai import",
    version,
    max_term_width = 100,
    after_help = "Example: cai import --input principles.json --output configs/mine.toml"
)]
struct Args {
    /// The JSON file.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The TOML file to write; it must not exist.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// The constitution's name; default: that of the input file.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    verbosity: stage::Verbosity,
}

/// Runs with the words after `import`.
pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    let args = Args::parse_from(std::iter::once(OsString::from("cai import")).chain(words));
    stage::program(args.verbosity.verbose, || run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.output.exists() {
        let shown = args.output.display();
        return Err(UsageError::new(anyhow::anyhow!(
            "{shown}: exists already; choose another --output"
        ))
        .into());
    }
    let shown = args.input.display();
    let text = fs_err::read_to_string(&args.input).usage()?;
    let json = serde_json::from_str(&text).with_context(|| format!("{shown}: not JSON")).usage()?;
    let stem = args.input.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = args.name.clone().or(stem).unwrap_or_default();
    let constitution = import(&json, &name).with_context(|| shown.to_string()).usage()?;
    artifact::atomic::write_bytes(&args.output, constitution.to_toml().as_bytes())?;
    tell!("{} principles in {}", constitution.principles.len(), args.output.display());
    Ok(())
}

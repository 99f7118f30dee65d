//! cai: Constitutional AI, after Bai et al. 2022, arXiv:2212.08073.
//!
//! The supervised phase: `cai generate` lets a model answer prompts, and then criticise and revise its answers under the
//! principles of a constitution; `cai train` fine-tunes on the revisions, beside data that keeps the model helpful, and compares
//! before and after. The reinforcement-learning phase: `cai label` samples two answers to each prompt and lets a model
//! say under the principles which is better; `reward` and `ppo` go on from there. `cai import` makes a constitution of principles
//! in other forms.

/// A line on stdout. A closed one (`| head`) does not make the run wrong.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod generate;
mod import;
mod label;
mod parts;
mod shared;
mod speaker;
#[cfg(test)]
mod tests;
mod train;

use std::ffi::OsString;
use std::process::ExitCode;

use stage::{Info, StageConfig};

const HELP: &str = "\
Constitutional AI: a model revises its answers and judges them by written principles.

Usage: cai <COMMAND>

Commands:
  generate  Answers prompts, then criticises and revises the answers under a constitution
  train     Fine-tunes on the revisions and compares before and after
  label     Samples two answers to each prompt and lets a model say which is better: pairs for `reward`
  import    Makes a constitution of principles that others wrote, from JSON

`cai <COMMAND> --help` says more. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
Example: cai generate --config configs/cai-generate.toml
";

fn run<C: StageConfig>(info: &Info, run: stage::Run<C::Plan>, words: &[OsString]) -> ExitCode {
    ExitCode::from(stage::main_with::<C>(info, run, words))
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let command = words.next();
    let rest: Vec<OsString> = words.collect();
    match command.as_ref().and_then(|word| word.to_str()) {
        Some("generate") => run::<generate::config::Config>(&generate::INFO, generate::run, &rest),
        Some("train") => run::<train::config::Config>(&train::INFO, train::run, &rest),
        Some("label") => run::<label::config::Config>(&label::INFO, label::run, &rest),
        Some("import") => import::main(rest),
        Some("--help" | "-h" | "help") => {
            tell!("{}", HELP.trim_end());
            ExitCode::SUCCESS
        }
        Some("--version" | "-V") => {
            tell!("cai {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some(other) => usage(&format!("there is no command `{other}`")),
        None => usage("a command is missing"),
    }
}

fn usage(what: &str) -> ExitCode {
    use std::io::Write as _;
    let _ = write!(std::io::stderr(), "error: {what}\n\n{HELP}");
    ExitCode::from(2)
}

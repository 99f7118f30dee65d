//! peft: adapts a model to a task with a small part of its parameters: LoRA, `DoRA`, `QLoRA`, IA3, bottleneck adapters.
//!
//! Reads a model and token rows of the task, and writes into its run directory:
//!
//! ```text
//! adapter/            in PEFT's layout, with the tokenizer's files
//! model/              with peft.merge: the model with the adapter in its weights
//! checkpoints/        to go on from after an interruption
//! metrics.jsonl  tensorboard/
//! samples.parquet     answers to held-out prompts before and after, with their scores
//! manifest.json       with ROUGE, exact match, F1, chrF and accuracies before and after
//! ```
//!
//! `peft merge`, `unmerge`, `convert`, `info` and `table` work on what there is.
//!
//! Hu et al. 2021, `LoRA`, arXiv:2106.09685; Dettmers et al. 2023, `QLoRA`, arXiv:2305.14314.

/// A line on stdout. A closed one (`| head`) does not make the run wrong.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod convert;
mod info;
mod merge;
mod table;

use std::ffi::OsString;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use stage::{Info, Paths, Problems, StageConfig};
use training::fine_tune::{self, Plan, run};

const INFO: Info = Info {
    name: "peft",
    about: "Adapts a model to a task with a small part of its parameters, and compares its answers before and after.",
    reads: "a Hugging Face directory or run directory with a model; token rows and prompt rows, made by data-prep",
    writes: "adapter/ in PEFT's layout, with peft.merge model/, checkpoints/, metrics.jsonl, tensorboard/, samples.parquet, manifest.json",
    example: "peft --config configs/peft.toml --set peft.method.lora.r=4\n\
              \x20        peft merge --help      makes an adapter part of a model's weights\n\
              \x20        peft unmerge --help    takes it off again\n\
              \x20        peft convert --help    writes a model in 4 bits or in full, or an adapter anew\n\
              \x20        peft info --help       says what an adapter or a model is\n\
              \x20        peft table --help      compares finished runs",
    parallel: stage::Parallel::Tensors,
};

/// `configs/peft.toml`: as `configs/finetune.toml`, and `[peft]` is required.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
struct Config(fine_tune::Config);

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        problems.check(
            self.0.peft.is_some(),
            "peft",
            "is missing: say what to train, as in [peft.method.lora]; `finetune` trains all parameters",
        );
        match self.0.plan(at) {
            Ok(plan) => problems.finish(plan),
            Err(others) => {
                problems.extend("", others);
                Err(problems)
            }
        }
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let command = words.next();
    let rest = |name: &str| -> Vec<OsString> {
        let program = OsString::from(format!("peft {name}"));
        std::iter::once(program).chain(std::env::args_os().skip(2)).collect()
    };
    match command.as_ref().and_then(|word| word.to_str()) {
        Some("merge") => merge::main(rest("merge"), merge::Way::Merge),
        Some("unmerge") => merge::main(rest("unmerge"), merge::Way::Unmerge),
        Some("convert") => convert::main(rest("convert")),
        Some("info") => info::main(rest("info")),
        Some("table") => table::main(rest("table")),
        _ => stage::main::<Config>(&INFO, run),
    }
}

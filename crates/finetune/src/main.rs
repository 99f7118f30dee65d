//! finetune: adapts a model to a task with all its parameters.
//!
//! Reads a model and token rows of the task (`data-prep` makes them of any columns through templates), and writes into its
//! run directory:
//!
//! ```text
//! model/              Hugging Face layout, with the tokenizer's files
//! adapter/            with [peft] in its place, in PEFT's layout
//! checkpoints/        to go on from after an interruption
//! metrics.jsonl  tensorboard/
//! samples.parquet     answers to held-out prompts before and after, with their scores
//! manifest.json       with ROUGE, exact match, F1, chrF and accuracies before and after
//! ```
//!
//! `finetune try` answers with the result.
//!
//! Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 3.2.

mod attempt;

use std::process::ExitCode;

use stage::Info;
use training::fine_tune::{Config, run};

const INFO: Info = Info {
    name: "finetune",
    about: "Adapts a model to a task with all its parameters, and compares its answers before and after.",
    reads: "a Hugging Face directory or run directory with a model; token rows and prompt rows, made by data-prep",
    writes: "model/ in Hugging Face layout (with [peft] adapter/ in PEFT's), checkpoints/, metrics.jsonl, tensorboard/, samples.parquet, manifest.json",
    example: "finetune --config configs/finetune.toml --set train.epochs=2\n         finetune try --help    answers with what was trained",
    parallel: stage::Parallel::Tensors,
};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "try") {
        return attempt::main(words);
    }
    stage::main::<Config>(&INFO, run)
}

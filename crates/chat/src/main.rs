//! chat: a conversation with a model in the terminal, one answer to one prompt, or models served over HTTP.

mod conversation;
mod names;
mod serve;
mod speaker;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use data::template::ChatTemplate;
use data::tokenizer::Tokenizer;
use model::generate::Sampling;
use model::{Decoder, ModelConfig, Precision};
use stage::{ErrorExt as _, Interrupt, Signal, UsageError};
use torch_ext::device;
use training::peft::Place;

use crate::conversation::{Adapters, Conversation};
use crate::speaker::{Settings, Speaker};

/// Talks to a language model in the terminal, or answers one prompt.
///
/// Without --prompt a conversation starts: lines you type are answered, /help lists the commands. With --raw each line is
/// continued by itself.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Reads:   a Hugging Face directory, or the run directory of a stage that makes a model\n\
                  Writes:  the answers to stdout\n\
                  Example: chat --model runs/quickstart/sft --prompt \"강아지는 무엇을 먹어요?\"\n         \
                  chat serve --help    models over HTTP, and a page to talk to them"
)]
struct Args {
    /// The model: a Hugging Face directory, a run directory (one with an adapter only finds its base), or a checkpoint.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// An adapter over it: a directory in PEFT's layout, or the run directory of a stage that made one. Repeatable: /adapter
    /// changes from the first to another, by the last part of its path or by NAME.
    #[arg(long, value_name = "[NAME=]DIR")]
    adapter: Vec<String>,
    /// Answer this and exit.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// No chat template: continue the text as it stands, and print both.
    #[arg(long)]
    raw: bool,
    /// The system prompt.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// 0 takes the most probable token each time; higher is more varied.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Sample from the K most probable tokens only.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the fewest tokens that together have probability P.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Sample from tokens at least P times as probable as the most probable one.
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Above 1 makes tokens that were there before less probable.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// The most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// End an answer before this text; repeatable.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Decides every random choice.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    running: stage::Running<Precision>,
}

impl Args {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "serve") {
        return serve::main(words);
    }
    let args = Args::parse();
    stage::program(args.running.verbosity.verbose, || run(&args))
}

/// A model that is loaded, with what it takes to talk to it.
pub(crate) struct Model {
    pub(crate) decoder: Decoder,
    pub(crate) tokenizer: Tokenizer,
    /// `None` with --raw.
    pub(crate) template: Option<ChatTemplate>,
}

impl Model {
    /// Loads the model that the command line names, with one of its adapters or without.
    pub(crate) fn load(args: &Args, adapter: Option<&Path>) -> anyhow::Result<Self> {
        let place = Place::find(&args.model, adapter).usage()?;
        let config = place.config().usage()?;
        let shown = adapter.unwrap_or(&args.model).display();
        config
            .check_language_model()
            .map_err(|error| anyhow::anyhow!("{shown}: {error}"))
            .usage()?;
        let tokenizer = Tokenizer::load(place.tokenizer_dir()).usage()?;
        let template = if args.raw { None } else { Some(template_of(&tokenizer, args)?) };
        let device = device::resolve(&args.running.device.to_string()).usage()?;
        let decoder = place.load(device, args.running.precision)?;
        Ok(Self { decoder, tokenizer, template })
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    args.sampling().check().usage()?;
    if args.stop.iter().any(String::is_empty) {
        return Err(UsageError::msg("--stop is empty; leave it out").into());
    }
    let adapters = Adapters::find(&args.adapter).usage()?;
    let Some(prompt) = &args.prompt else {
        // First of all, so that no thread that computes receives a signal.
        let interrupt = Interrupt::install(&[Signal::Int])?;
        let model = Model::load(args, adapters.first())?;
        interrupt.check()?;
        // In a conversation Ctrl-C ends the answer only.
        return conversation::in_terminal(model, args, &adapters, &interrupt);
    };
    let model = Model::load(args, adapters.first())?;
    let interrupt = Interrupt::none();
    let mut speaker = Speaker::new(&model, Settings::new(args), &interrupt)?;
    if args.raw {
        return speaker.go_on(prompt);
    }
    Conversation::new(args.system.clone()).answer(&mut speaker, prompt)
}

/// The tokens at which an answer ends.
pub(crate) fn stop_ids(
    tokenizer: &Tokenizer,
    end_of_turn: Option<&str>,
    config: &ModelConfig,
) -> Vec<i64> {
    let own = tokenizer.stop_ids(end_of_turn).into_iter().map(i64::from);
    let mut ids: Vec<i64> = own.chain(config.eos_token_ids.iter().copied()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The chat template that comes with the tokenizer.
fn template_of(tokenizer: &Tokenizer, args: &Args) -> anyhow::Result<ChatTemplate> {
    let shown = args.model.display();
    let Some(source) = tokenizer.chat_template() else {
        let error = anyhow::anyhow!("{shown}: its tokenizer has no chat template");
        return Err(error)
            .hint("give --raw to continue a text, or fine-tune the model with sft first")
            .usage();
    };
    ChatTemplate::parse(source, tokenizer.specials().clone())
        .map_err(|error| UsageError::new(anyhow::anyhow!("{shown}: {error}")).into())
}

/// Writes to stdout at once. A reader that went away (`| head`) is no error.
pub(crate) fn show(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

//! `reward score`: scores the responses of a Parquet file.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use artifact::columns::{CHOSEN, CHOSEN_SCORE, PROMPT, REJECTED, REJECTED_SCORE, RESPONSE, SCORE};
use artifact::rows::{Cell, Column, Kind, TableReader};
use clap::{Parser, ValueEnum};
use data::format::Message;
use data::template::ChatTemplate;
use data::tokenizer::Tokenizer;
use model::{Decoder, Head, LoadOptions, Precision};
use stage::{ErrorExt as _, Progress, UsageError};
use torch_ext::device;
use training::branches;

/// How prompt and response become what the model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// The prompt is rendered already, as in prompts.parquet and samples.parquet; the response ends its turn.
    Rendered,
    /// Texts of the user and the assistant, through the chat template.
    Chat,
    /// One after the other as they are, and the end-of-sequence token.
    Plain,
}

/// Scores the responses of a Parquet file with a reward model.
///
/// The file has the text columns `prompt` and `response`, or `prompt`, `chosen` and `rejected`. It is copied with the column
/// `score`, or `chosen_score` and `rejected_score`. A text longer than the model's context gets no score.
#[derive(Debug, Parser)]
#[command(
    name = "reward score",
    version,
    max_term_width = 100,
    after_help = "Example: reward score --model runs/quickstart/reward --input answers.parquet --output scored.parquet"
)]
struct Args {
    /// The reward model: a Hugging Face directory or a run directory.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The file to score.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// What the columns hold.
    #[arg(long, value_enum, default_value = "rendered")]
    form: Form,
    /// The most tokens in one forward pass.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: u32,
    #[command(flatten)]
    running: stage::Running<Precision>,
}

/// Runs with the words after `score`.
pub(crate) fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let args = Args::parse_from(std::iter::once(OsString::from("reward score")).chain(words));
    stage::program(args.running.verbosity.verbose, || run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let dir = artifact::model_dir(&args.model).usage()?;
    let config = model::ModelConfig::from_dir(&dir).usage()?;
    if config.head != Head::Score {
        let shown = args.model.display();
        return Err(UsageError::new(anyhow::anyhow!("{shown}: {}", model::Error::NoScore)).into());
    }
    let writer = Texts::new(Tokenizer::load(&dir).usage()?, args)?;
    let (columns, rows) = read(args)?;
    let device = device::resolve(&args.running.device.to_string()).usage()?;
    let options = LoadOptions { device, precision: args.running.precision, trainable: false };
    let decoder = Decoder::load(&dir, &options)?;
    let mut scored: Vec<(&str, Vec<Option<f32>>)> = Vec::new();
    for (index, (_, into)) in columns.iter().enumerate() {
        let texts = rows.iter().map(|row| writer.ids(&row[0], &row[index + 1]));
        let ids: Vec<Vec<i64>> = texts.collect::<anyhow::Result<_>>()?;
        let progress = Progress::new("scores", Some(ids.len() as u64));
        let done = |count: usize| {
            progress.set_position(count as u64);
            Ok(())
        };
        scored
            .push((into, branches::text_scores(&decoder, &ids, args.batch_tokens as usize, done)?));
        progress.finish();
    }
    artifact::with_columns(&args.input, &args.output, &scored)?;
    let long: usize = scored.iter().map(|(_, s)| s.iter().filter(|s| s.is_none()).count()).sum();
    if long > 0 {
        let most = config.max_position_embeddings;
        tracing::warn!(
            "{long} texts are longer than the model's {most} positions and have no score"
        );
    }
    Ok(())
}

/// The pairs of response column and score column, and for each row its prompt and responses.
type Rows = (Vec<(&'static str, &'static str)>, Vec<Vec<String>>);

fn read(args: &Args) -> anyhow::Result<Rows> {
    let pairs = vec![(CHOSEN, CHOSEN_SCORE), (REJECTED, REJECTED_SCORE)];
    let advice =
        "scored are the text columns `prompt` and `response`, or `prompt`, `chosen` and `rejected`";
    let open = |columns: &[(&str, &str)]| {
        let responses = columns.iter().map(|(name, _)| Column::required(name, Kind::Text));
        let all = [Column::required(PROMPT, Kind::Text)].into_iter().chain(responses);
        TableReader::open(&args.input, &all.collect::<Vec<_>>(), advice)
    };
    let single = vec![(RESPONSE, SCORE)];
    let (columns, table) = match (open(&single), open(&pairs)) {
        (Ok(table), _) => (single, table),
        (Err(_), Ok(table)) => (pairs, table),
        (Err(error), Err(_)) => return Err(error.into()),
    };
    let texts = |cells: Vec<Cell>| cells.into_iter().filter_map(Cell::into_text).collect();
    let rows = table.map(|cells| Ok(texts(cells?))).collect::<anyhow::Result<_>>()?;
    Ok((columns, rows))
}

/// Turns texts into what the model reads.
struct Texts {
    tokenizer: Tokenizer,
    form: Form,
    template: Option<ChatTemplate>,
    /// What a response ends with.
    end: Option<u32>,
}

impl Texts {
    fn new(tokenizer: Tokenizer, args: &Args) -> anyhow::Result<Self> {
        let source = tokenizer.chat_template();
        let template =
            source.map(|source| ChatTemplate::parse(source, tokenizer.specials().clone()));
        let template = template.transpose().usage()?;
        if args.form == Form::Chat && template.is_none() {
            let error =
                anyhow::anyhow!("{}: its tokenizer has no chat template", args.model.display());
            return Err(error).hint("give --form plain or rendered").usage();
        }
        let turn = template.as_ref().and_then(ChatTemplate::end_of_turn);
        let turn = turn.and_then(|token| tokenizer.token_id(token));
        let end =
            if args.form == Form::Plain { tokenizer.eos_id() } else { turn.or(tokenizer.eos_id()) };
        Ok(Self { form: args.form, template, end, tokenizer })
    }

    fn ids(&self, prompt: &str, response: &str) -> anyhow::Result<Vec<i64>> {
        let mut ids = match (self.form, &self.template) {
            (Form::Chat, Some(template)) => {
                let messages = [Message::new("user", prompt), Message::new("assistant", response)];
                let text = template.render(&messages, false)?;
                return Ok(widen(&self.tokenizer.encode(&text, false)?.ids));
            }
            (Form::Plain, _) => self.tokenizer.ids_plain(&format!("{prompt}{response}"), true)?,
            _ => {
                let mut ids = self.tokenizer.encode(prompt, false)?.ids;
                ids.extend(self.tokenizer.ids_plain(response, false)?);
                ids
            }
        };
        if ids.last() != self.end.as_ref() {
            ids.extend(self.end);
        }
        Ok(widen(&ids))
    }
}

fn widen(ids: &[u32]) -> Vec<i64> {
    ids.iter().map(|&id| i64::from(id)).collect()
}

//! `finetune try`: answers with a fine-tuned model, asked as its data asked.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use artifact::{Manifest, RunDir};
use clap::Parser;
use data::encode::chat_prompt;
use data::format::{Example, Kind, Mapper, Mapping, Prompt, generated};
use data::template::ChatTemplate;
use data::tokenizer::Tokenizer;
use model::Precision;
use model::generate::{Request, Sampling};
use serde_json::{Map, Value};
use stage::ErrorExt as _;
use torch_ext::device;
use training::peft::Place;
use training::respond::{Responder, Stop};

/// Answers with a model that `finetune` or `peft` has made, asked as its training data asked.
///
/// The prompt is made of the text by the template of the data set that the model was trained on.
#[derive(Debug, Parser)]
#[command(
    name = "finetune try",
    version,
    max_term_width = 100,
    after_help = "Reads:   the run directory, and that of the data-prep run it was trained on\n\
                  Writes:  the answer to stdout\n\
                  Example: finetune try --text \"It was a quiet morning. The dog of Jiho ran off.\" --field language=en"
)]
struct Args {
    /// The run directory of finetune or peft.
    #[arg(long, value_name = "DIR", default_value = "runs/quickstart/finetune")]
    run: PathBuf,
    /// What is to be summarised, translated, answered.
    #[arg(long, value_name = "TEXT")]
    text: String,
    /// Another field that the data's template asks for; repeatable.
    #[arg(long, value_name = "NAME=VALUE")]
    field: Vec<String>,
    /// The most tokens of the answer.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    #[command(flatten)]
    running: stage::Running<Precision>,
}

/// Runs with the words after `try`.
pub(crate) fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let args = Args::parse_from(std::iter::once(OsString::from("finetune try")).chain(words));
    stage::program(args.running.verbosity.verbose, || run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let place = Place::find(&args.run, None).usage()?;
    let shown = args.run.display();
    let usable = place.config().usage()?.check_language_model();
    usable.map_err(|error| anyhow::anyhow!("{shown}: {error}")).usage()?;
    let tokenizer = Tokenizer::load(place.tokenizer_dir()).usage()?;
    let set = TrainedOn::find(&args.run).usage()?;
    let ids = set.prompt(args, &tokenizer).usage()?;
    let device = device::resolve(&args.running.device.to_string()).usage()?;
    let decoder = place.load(device, args.running.precision)?;
    let ids = ids.into_iter().map(i64::from).collect();
    let max_new_tokens = args.max_new_tokens as usize;
    let request = Request { ids, max_new_tokens, sampling: Sampling::greedy() };
    let mut model = Responder::new(&decoder, &tokenizer, Stop::default(), 1)?;
    for response in model.answer(&[request])? {
        let _ = writeln!(std::io::stdout(), "{}", response.text.trim());
    }
    Ok(())
}

/// The data set that a model was trained on, as its data-prep run describes it.
#[derive(Debug)]
struct TrainedOn {
    name: String,
    kind: Kind,
    mapping: Mapping,
}

impl TrainedOn {
    /// From the run's manifest to its training rows, and from their run to its config.
    fn find(run: &Path) -> anyhow::Result<Self> {
        let run = RunDir::open(run)?;
        let manifest = Manifest::read(run.manifest_path())?;
        let rows = manifest.inputs.iter().find(|input| input.role == "train");
        let file = &rows.context("the manifest names no training rows")?.path;
        let shown = file.display();
        let made = artifact::chain::producer(file)?
            .with_context(|| format!("{shown} is not in a run directory of data-prep"))?;
        let name = file.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{shown}: no name of a data set"))?;
        let config = RunDir::open(made.run_dir)?.config_path();
        let text = fs_err::read_to_string(&config)?;
        let config: toml::Table = text.parse().with_context(|| config.display().to_string())?;
        let set = config.get("datasets").and_then(|sets| sets.get(name));
        let set = set.with_context(|| format!("{shown}: its run knows no data set `{name}`"))?;
        let get = |key: &str| set.get(key).cloned();
        let kind = get("kind").with_context(|| format!("`{name}` has no kind"))?.try_into()?;
        let mapping = get("mapping").map(toml::Value::try_into).transpose()?.unwrap_or_default();
        Ok(Self { name: name.to_owned(), kind, mapping })
    }

    /// The tokens of the text, and of fields beside it, as a prompt.
    fn prompt(&self, args: &Args, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
        let kind = match self.kind {
            Kind::Chat => Kind::Prompt,
            Kind::Completion => Kind::PromptPlain,
            other => {
                bail!("`{}` is data of kind {}, which has no prompts", self.name, other.name())
            }
        };
        let fields = self.fields(args)?;
        let mapping =
            Mapping { completion: None, completion_template: None, ..self.mapping.clone() };
        let record = generated("--text", 0, fields);
        let mapped = Mapper::new(kind, &mapping)?.map(&record)?;
        let examples = mapped.ok().unwrap_or_default();
        match examples.into_iter().next().map(|mapped| mapped.example) {
            Some(Example::Prompt(Prompt::Text(text))) => Ok(tokenizer.encode(&text, true)?.ids),
            Some(Example::Prompt(Prompt::Messages(messages))) => {
                let source =
                    tokenizer.chat_template().context("the tokenizer has no chat template")?;
                let template = ChatTemplate::parse(source, tokenizer.specials().clone())?;
                Ok(chat_prompt(tokenizer, &template, &messages)?)
            }
            _ => bail!("the text gives no prompt"),
        }
    }

    /// The fields of the record: the text under the name that the data's template has for it.
    fn fields(&self, args: &Args) -> anyhow::Result<Map<String, Value>> {
        let mut fields = Map::new();
        for field in &args.field {
            let (name, value) = field
                .split_once('=')
                .with_context(|| format!("--field {field}: expected NAME=VALUE"))?;
            fields.insert(name.to_owned(), value.into());
        }
        let asked = match (&self.mapping.prompt, &self.mapping.prompt_template) {
            (Some(column), _) => vec![column.clone()],
            (None, Some(template)) => shown_fields(template),
            (None, None) => vec!["prompt".to_owned()],
        };
        let mut open = asked.iter().filter(|name| !fields.contains_key(*name));
        let (Some(name), None) = (open.next(), open.next()) else {
            bail!(
                "the prompts of `{}` are made of the fields {}; give all but one of them with --field NAME=VALUE, for \
                 --text to be the other",
                self.name,
                asked.join(", ")
            );
        };
        fields.insert(name.clone(), args.text.as_str().into());
        Ok(fields)
    }
}

/// The fields that a Jinja template puts into its text, in order.
fn shown_fields(template: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for piece in template.split("{{").skip(1) {
        let name: String =
            piece.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_template_are_those_it_shows() {
        let template = "{% if language == \"ko\" %}요약: {{ story }}{% else %}Sum up: {{story|trim}}{% endif %} {{ n }}";
        assert_eq!(shown_fields(template), ["story", "n"]);
        assert!(shown_fields("no fields").is_empty());
    }
}

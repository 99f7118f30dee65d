//! The models that are served: how they are called, what they can, and the thread that each runs on.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::anyhow;
use data::template::ChatTemplate;
use data::tokenizer::Tokenizer;
use model::generate::{Engine, Limits};
use model::{Decoder, ModelConfig, Precision};
use stage::{ErrorExt as _, UsageError};
use tch::Device;
use training::peft::Place;

use super::queue::Queue;
use super::shape::drops_first_space;
use super::worker::Live;
use crate::names::{name_and_dir, name_of};

/// A model that the command line names.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    /// What clients call it.
    pub(crate) id: String,
    pub(crate) place: Place,
}

/// A model as the handlers of requests see it.
pub(crate) struct Served {
    pub(crate) id: String,
    pub(crate) tokenizer: Tokenizer,
    /// `None` where its tokenizer has none: then it completes texts only.
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) limits: Limits,
    /// The tokens at which an answer ends.
    pub(crate) stop_ids: Vec<i64>,
    /// The bytes of every token.
    pub(crate) token_bytes: Vec<Box<[u8]>>,
    /// How many of them are text: none of a special token's.
    pub(crate) text_bytes: Vec<u16>,
    /// Whether a text's first token stands for a space that the text does not begin with.
    pub(crate) drops_first_space: bool,
    pub(crate) queue: Queue,
}

/// How models run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Running {
    pub(crate) device: Device,
    pub(crate) precision: Precision,
    /// Answers generated at a time by one model.
    pub(crate) rows: usize,
    /// Tokens of prompt and answer; the model's own where it is not given.
    pub(crate) context: Option<usize>,
}

/// Finds what `--model` and `--adapter` name.
pub(crate) fn find(models: &[String], adapters: &[String]) -> anyhow::Result<Vec<Named>> {
    let mut all: Vec<Named> = Vec::new();
    let mut add = |named: Named| -> anyhow::Result<()> {
        if all.iter().any(|other| other.id == named.id) {
            let message = format!(
                "two models are called `{}`; give one another name, as in --model NAME=DIR",
                named.id
            );
            return Err(UsageError::msg(message).into());
        }
        all.push(named);
        Ok(())
    };
    for text in models {
        let (name, dir) = name_and_dir(text);
        let place = Place::find(&dir, None).usage()?;
        let id = match name {
            Some(name) => name,
            None => name_of(&dir).usage()?,
        };
        add(Named { id, place })?;
    }
    let base = match models {
        [only] => Some(name_and_dir(only).1),
        _ => None,
    };
    for text in adapters {
        let (name, dir) = name_and_dir(text);
        let Some(id) = name else {
            let message = format!("--adapter {text}: give it a name, as in --adapter NAME={text}");
            return Err(UsageError::msg(message).into());
        };
        // Over the one model there is; of several, over the one that its files name.
        let place = match &base {
            Some(base) => Place::find(base, Some(&dir)),
            None => Place::find(&dir, None),
        };
        add(Named { id, place: place.usage()? })?;
    }
    Ok(all)
}

impl Named {
    /// Reads all but the weights.
    pub(crate) fn open(&self, running: Running, queue: Queue) -> anyhow::Result<Served> {
        let shown = format!("model `{}`", self.id);
        let config = self.place.config().usage()?;
        config.check_language_model().map_err(|error| anyhow!("{shown}: {error}")).usage()?;
        let tokenizer = Tokenizer::load(self.place.tokenizer_dir()).usage()?;
        let template = tokenizer
            .chat_template()
            .map(|source| ChatTemplate::parse(source, tokenizer.specials().clone()))
            .transpose()
            .map_err(|error| anyhow!("{shown}: {error}"))
            .usage()?;
        let limits =
            Limits { vocab: config.vocab_size, context: context(&config, running, &shown)? };
        let end_of_turn = template.as_ref().and_then(ChatTemplate::end_of_turn);
        let stop_ids = crate::stop_ids(&tokenizer, end_of_turn, &config);
        let (token_bytes, text_bytes) = (tokenizer.token_bytes(), tokenizer.byte_lengths());
        Ok(Served {
            id: self.id.clone(),
            drops_first_space: drops_first_space(&tokenizer, &token_bytes),
            tokenizer,
            template,
            limits,
            stop_ids,
            token_bytes,
            text_bytes,
            queue,
        })
    }
}

fn context(config: &ModelConfig, running: Running, shown: &str) -> anyhow::Result<usize> {
    let own = config.max_position_embeddings as usize;
    match running.context {
        Some(asked) if asked > own => {
            let message = format!("--context {asked} is beyond the {own} positions of {shown}");
            Err(UsageError::msg(message).into())
        }
        Some(asked) => Ok(asked),
        None => Ok(own),
    }
}

/// Reads the weights of all models. Those over the same base share its weights.
pub(crate) fn load(named: &[Named], running: Running) -> anyhow::Result<Vec<Decoder>> {
    let base = |named: &Named| fs_err::canonicalize(&named.place.base);
    let bases = named.iter().map(base).collect::<Result<Vec<_>, _>>().usage()?;
    let mut shared: HashMap<&PathBuf, Decoder> = HashMap::new();
    let mut all = Vec::with_capacity(named.len());
    for (named, base) in named.iter().zip(&bases) {
        let alone = bases.iter().filter(|other| *other == base).count() == 1;
        all.push(if alone {
            named.place.load(running.device, running.precision)?
        } else {
            let whole = match shared.entry(base) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let plain = Place { adapter: None, ..named.place.clone() };
                    new.insert(plain.load(running.device, running.precision)?)
                }
            };
            named.place.load_over(whole)?
        });
    }
    Ok(all)
}

/// Starts a model's thread and waits until it is ready. The thread ends when the queue is closed and what waited is answered,
/// or with an error.
pub(crate) fn start(
    decoder: Decoder,
    served: &Arc<Served>,
    running: Running,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let (ready, started) = mpsc::channel();
    let served = Arc::clone(served);
    let id = served.id.clone();
    let thread = thread::Builder::new().name(id.clone()).spawn(move || {
        let result = work(&decoder, &served, running, &ready);
        // Whatever happened, nobody waits for an answer that does not come.
        served.queue.break_off();
        result
    })?;
    match started.recv() {
        Ok(()) => Ok(thread),
        // It ended before: with an error, or with a panic, which the main thread carries on.
        Err(_) => match thread.join() {
            Ok(Ok(())) => Err(anyhow!("the thread of model `{id}` ended at once")),
            Ok(Err(error)) => Err(error),
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

fn work(
    decoder: &Decoder,
    served: &Served,
    running: Running,
    ready: &mpsc::Sender<()>,
) -> anyhow::Result<()> {
    let mut engine = Engine::new(decoder, running.rows, served.limits.context)?;
    let _ = ready.send(());
    engine.serve(&mut Live::new(&served.queue, &served.tokenizer))?;
    Ok(())
}

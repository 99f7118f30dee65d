//! The model's side: from ids to text on stdout, token by token.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::str::FromStr;

use data::template::ChatTemplate;
use model::generate::{Engine, Finish, Request, Sampling, StopRules, TextDecoder};
use stage::{ErrorExt as _, Interrupt, UsageError};
use training::respond::Streamed;

use crate::{Args, Model, show};

/// How the model answers.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) sampling: Sampling,
    pub(crate) max_new_tokens: usize,
    stop: Vec<String>,
}

impl Settings {
    pub(crate) fn new(args: &Args) -> Self {
        let max_new_tokens = args.max_new_tokens as usize;
        Self { sampling: args.sampling(), max_new_tokens, stop: args.stop.clone() }
    }

    /// Changes one, given as `NAME=VALUE`.
    pub(crate) fn set(&mut self, text: &str) -> anyhow::Result<()> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let (name, value) = (name.trim(), value.trim());
        let mut sampling = self.sampling.clone();
        match name {
            "temperature" => sampling.temperature = number(name, value)?,
            "top_k" => sampling.top_k = optional(name, value)?,
            "top_p" => sampling.top_p = optional(name, value)?,
            "min_p" => sampling.min_p = optional(name, value)?,
            "repetition_penalty" => sampling.repetition_penalty = number(name, value)?,
            "seed" => sampling.seed = number(name, value)?,
            "max_new_tokens" => {
                let count = number(name, value)?;
                anyhow::ensure!(count > 0, "`max_new_tokens` is 0; it must be at least 1");
                self.max_new_tokens = count;
            }
            _ => anyhow::bail!(
                "there is no setting `{name}`; there is temperature, top_k, top_p, min_p, repetition_penalty, seed and \
                 max_new_tokens"
            ),
        }
        sampling.check()?;
        self.sampling = sampling;
        Ok(())
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed } =
            &self.sampling;
        let none = || "none".to_owned();
        let top_k = top_k.map_or_else(none, |k| k.to_string());
        let [top_p, min_p] = [top_p, min_p].map(|p| p.map_or_else(none, |p| p.to_string()));
        write!(
            f,
            "temperature={temperature} top_k={top_k} top_p={top_p} min_p={min_p} \
             repetition_penalty={repetition_penalty} seed={seed} max_new_tokens={}",
            self.max_new_tokens
        )
    }
}

fn number<T: FromStr>(name: &str, value: &str) -> anyhow::Result<T> {
    let number = value.parse();
    number.map_err(|_| {
        anyhow::anyhow!("`{name}` must be a number, as in /set {name}=1; not `{value}`")
    })
}

/// A number, or `none`.
fn optional<T: FromStr>(name: &str, value: &str) -> anyhow::Result<Option<T>> {
    if value == "none" { Ok(None) } else { number(name, value).map(Some) }
}

/// A model with its settings, ready to speak.
pub(crate) struct Speaker<'a> {
    engine: Engine<'a>,
    pub(crate) model: &'a Model,
    pub(crate) interrupt: &'a Interrupt,
    context: usize,
    pub(crate) settings: Settings,
    stop: StopRules,
}

/// What was said.
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) finish: Finish,
}

impl<'a> Speaker<'a> {
    pub(crate) fn new(
        model: &'a Model,
        settings: Settings,
        interrupt: &'a Interrupt,
    ) -> anyhow::Result<Self> {
        let config = model.decoder.config();
        let context = config.max_position_embeddings as usize;
        let end_of_turn = model.template.as_ref().and_then(ChatTemplate::end_of_turn);
        let ids = crate::stop_ids(&model.tokenizer, end_of_turn, config);
        let stop = StopRules { ids, strings: settings.stop.clone() };
        let engine = Engine::new(&model.decoder, 1, context)?;
        Ok(Self { engine, model, interrupt, context, settings, stop })
    }

    /// Whether a prompt of so many tokens leaves room for an answer.
    pub(crate) fn has_room(&self, tokens: usize) -> bool {
        tokens + self.settings.max_new_tokens.min(self.context / 4) <= self.context
    }

    /// Continues `ids`, showing the text as it comes; a signal ends it early.
    pub(crate) fn say(&mut self, ids: &[u32]) -> anyhow::Result<Said> {
        let (tokens, context) = (ids.len(), self.context);
        if tokens == 0 {
            return Err(UsageError::msg("the prompt is empty; give it at least one token").into());
        }
        if tokens >= context {
            let what = format!(
                "the prompt of {tokens} tokens leaves no room for an answer in the model's context of {context}"
            );
            return Err(anyhow::anyhow!(what)).hint("give a shorter prompt");
        }
        let request = Request {
            ids: ids.iter().map(|id| i64::from(*id)).collect(),
            max_new_tokens: self.settings.max_new_tokens,
            sampling: self.settings.sampling.clone(),
        };
        let tokenizer = &self.model.tokenizer;
        let new_text = || -> Box<dyn TextDecoder + '_> {
            Box::new(Streamed::new(tokenizer.stream_after(ids, true)))
        };
        let mut shown: io::Result<()> = Ok(());
        let interrupt = self.interrupt;
        let mut on_token = |event: model::generate::Event<'_>| {
            shown = show(event.text);
            if shown.is_err() || interrupt.requested().is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let said = self
            .engine
            .generate(&[request], &self.stop, Some(&new_text), Some(&mut on_token))?
            .pop();
        shown?;
        let (text, finish) = said.map_or((None, Finish::Length), |said| (said.text, said.finish));
        // The next answer draws other numbers, and the whole conversation is still decided by the seed.
        let seed = &mut self.settings.sampling.seed;
        *seed = seed.wrapping_add(1);
        Ok(Said { text: text.unwrap_or_default(), finish })
    }

    /// Shows a text and its continuation.
    pub(crate) fn go_on(&mut self, text: &str) -> anyhow::Result<()> {
        let ids = self.model.tokenizer.encode(text, true)?.ids;
        show(text)?;
        self.say(&ids)?;
        Ok(show("\n")?)
    }
}

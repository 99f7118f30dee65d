//! The model's side: from ids to text on stdout, token by token.

use std::io;
use std::ops::ControlFlow;

use data::tokenizer::Tokenizer;
use model::Decoder;
use model::generate::{Engine, Finish, Request, Sampling, StopRules, TextDecoder};
use stage::{ErrorExt as _, Interrupt, UsageError};
use training::respond::Streamed;

use crate::{Args, show};

/// A model with its settings, ready to speak.
pub(crate) struct Speaker<'a> {
    engine: Engine<'a>,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) interrupt: &'a Interrupt,
    context: usize,
    max_new_tokens: usize,
    sampling: Sampling,
    stop: StopRules,
}

/// What was said.
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) finish: Finish,
}

impl<'a> Speaker<'a> {
    pub(crate) fn new(
        decoder: &'a Decoder,
        tokenizer: &'a Tokenizer,
        end_of_turn: Option<&str>,
        args: &Args,
        interrupt: &'a Interrupt,
    ) -> anyhow::Result<Self> {
        let context = decoder.config().max_position_embeddings as usize;
        let ids = crate::stop_ids(tokenizer, end_of_turn, decoder.config());
        Ok(Self {
            engine: Engine::new(decoder, 1, context)?,
            tokenizer,
            interrupt,
            context,
            max_new_tokens: args.max_new_tokens as usize,
            sampling: args.sampling(),
            stop: StopRules { ids, strings: args.stop.clone() },
        })
    }

    /// Whether a prompt of so many tokens leaves room for an answer.
    pub(crate) fn has_room(&self, tokens: usize) -> bool {
        tokens + self.max_new_tokens.min(self.context / 4) <= self.context
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
            max_new_tokens: self.max_new_tokens,
            sampling: self.sampling.clone(),
        };
        let tokenizer = self.tokenizer;
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
        self.sampling.seed = self.sampling.seed.wrapping_add(1);
        Ok(Said { text: text.unwrap_or_default(), finish })
    }

    /// Shows a text and its continuation.
    pub(crate) fn go_on(&mut self, text: &str) -> anyhow::Result<()> {
        let ids = self.tokenizer.encode(text, true)?.ids;
        show(text)?;
        self.say(&ids)?;
        Ok(show("\n")?)
    }
}

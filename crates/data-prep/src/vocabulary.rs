//! Gets the tokenizer: trains one on the data, or takes one that exists; and settles its chat template.

use anyhow::{Context as _, bail};
use data::template::{CHAT, CHAT_TOKENS, ChatTemplate, INSTRUCTION};
use data::tokenizer::{BpeOptions, Tokenizer};
use tracing::{info, warn};

use crate::config::TrainTokenizer;
use crate::plan::{Plan, TokenizerPlan};
use crate::prepare::{Prepare, Prepared, Reader, Split, texts};

/// The tokenizer with its chat template compiled.
pub(crate) struct Vocabulary {
    pub(crate) tokenizer: Tokenizer,
    /// Absent where the tokenizer has none and no data set needs one.
    pub(crate) template: Option<ChatTemplate>,
    /// What a reader of the report should know.
    pub(crate) warnings: Vec<String>,
}

pub(crate) fn get(
    plan: &Plan,
    interrupted: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Vocabulary> {
    let mut tokenizer = match &plan.tokenizer {
        TokenizerPlan::Existing(existing) => {
            let mut tokenizer = Tokenizer::load(&existing.path)?;
            for (name, token) in [
                ("bos_token", &existing.bos_token),
                ("eos_token", &existing.eos_token),
                ("pad_token", &existing.pad_token),
            ] {
                if let Some(token) = token {
                    tokenizer.set_special(name, token)?;
                }
            }
            tokenizer
        }
        TokenizerPlan::Train(options) => {
            let sample = sample(plan, options, interrupted)?;
            info!(texts = sample.len(), vocab_size = options.vocab_size, "training the tokenizer");
            let bpe = BpeOptions {
                vocab_size: options.vocab_size,
                min_frequency: options.min_frequency,
                max_digits: options.max_digits,
                extra_special_tokens: options.extra_special_tokens.clone(),
                nfc: options.nfc,
                ..BpeOptions::default()
            };
            Tokenizer::train_bpe(sample.into_iter(), &bpe)?
        }
    };
    let mut warnings = Vec::new();
    if let TokenizerPlan::Train(options) = &plan.tokenizer
        && tokenizer.vocab_size() < options.vocab_size
    {
        warnings.push(format!(
            "the data only gives {} tokens that occur at least {} times, not vocab_size {}",
            tokenizer.vocab_size(),
            options.min_frequency,
            options.vocab_size
        ));
    }
    if tokenizer.eos_id().is_none() {
        warnings.push(
            "the tokenizer has no eos_token, so documents are not ended; name one with \
             tokenizer.existing.eos_token"
                .to_owned(),
        );
    }
    let template = settle_template(plan, &mut tokenizer, &mut warnings)?;
    let end_of_turn = template.as_ref().and_then(ChatTemplate::end_of_turn);
    let stop = tokenizer.stop_ids(end_of_turn);
    tokenizer.set_stop_ids(&stop);
    for warning in &warnings {
        warn!("{warning}");
    }
    Ok(Vocabulary { tokenizer, template, warnings })
}

/// A sample of the training split's texts, evenly thinned by content hash to the size allowed.
fn sample(
    plan: &Plan,
    options: &TrainTokenizer,
    interrupted: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<String>> {
    let mut kept = Sample::new(options.max_train_mb << 20);
    for set in &plan.datasets {
        if options.datasets.as_ref().is_some_and(|names| !names.contains(&set.name)) {
            continue;
        }
        info!(dataset = set.name, "reading text for the tokenizer");
        let reading = || format!("data set `{}`", set.name);
        let mut reader = Reader::open(set).with_context(reading)?;
        let mut prepare = Prepare::new(set, plan.seed).with_context(reading)?;
        while let Some(chunk) = reader.next_chunk().with_context(reading)? {
            interrupted()?;
            let kept_now = prepare.keep(chunk).with_context(reading)?.into_iter();
            for prepared in kept_now.filter(|prepared| prepared.split == Split::Train) {
                kept.add(prepared);
            }
        }
    }
    if kept.texts.is_empty() {
        bail!(
            "no text to train a tokenizer on: every record was dropped or is in the validation split"
        );
    }
    Ok(kept.texts.into_iter().map(|(_, text)| text).collect())
}

/// Texts whose hash is under a bound that is halved whenever they grow too large.
struct Sample {
    texts: Vec<(u64, String)>,
    bytes: usize,
    limit: usize,
    bound: u64,
}

impl Sample {
    fn new(limit: usize) -> Self {
        Self { texts: Vec::new(), bytes: 0, limit, bound: u64::MAX }
    }

    fn add(&mut self, prepared: Prepared) {
        if prepared.hash > self.bound {
            return;
        }
        for text in texts(prepared.mapped.example) {
            self.bytes += text.len();
            self.texts.push((prepared.hash, text));
        }
        while self.bytes > self.limit && self.bound > 0 {
            self.bound /= 2;
            let bound = self.bound;
            self.texts.retain(|(hash, _)| *hash <= bound);
            self.bytes = self.texts.iter().map(|(_, text)| text.len()).sum();
        }
    }
}

/// Picks the chat template: the config's, the tokenizer's own, or one of those that ship.
fn settle_template(
    plan: &Plan,
    tokenizer: &mut Tokenizer,
    warnings: &mut Vec<String>,
) -> anyhow::Result<Option<ChatTemplate>> {
    let needed = plan.datasets.iter().any(|set| set.config.kind.is_chat());
    let source = match (&plan.chat_template, tokenizer.chat_template()) {
        (Some(source), _) => source.clone(),
        (None, Some(own)) => own.to_owned(),
        (None, None) if !needed => return Ok(None),
        (None, None) if CHAT_TOKENS.iter().all(|token| tokenizer.token_id(token).is_some()) => {
            CHAT.to_owned()
        }
        (None, None) if tokenizer.eos_id().is_some() => {
            info!("the tokenizer has no chat template; using plain headings (### Instruction:)");
            INSTRUCTION.to_owned()
        }
        (None, None) => bail!(
            "the tokenizer has neither a chat template nor an eos_token; set tokenizer.chat_template \
             or tokenizer.existing.eos_token"
        ),
    };
    let date = Some(plan.chat_template_date.as_str());
    let template = ChatTemplate::with_date(&source, tokenizer.specials().clone(), date)?;
    if needed {
        check_template(&template, tokenizer, warnings);
    }
    tokenizer.set_chat_template(source);
    Ok(Some(template))
}

fn check_template(template: &ChatTemplate, tokenizer: &Tokenizer, warnings: &mut Vec<String>) {
    if template.end_of_turn().is_none() {
        warnings.push(
            "the chat template puts no special token after the assistant's text, so a model trained \
             on it cannot learn where to stop"
                .to_owned(),
        );
    }
    let mut unknown: Vec<&str> = Vec::new();
    for piece in template.source().split("<|").skip(1) {
        let Some((name, _)) = piece.split_once("|>") else { continue };
        let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        if plain && tokenizer.token_id(&format!("<|{name}|>")).is_none() && !unknown.contains(&name)
        {
            unknown.push(name);
        }
    }
    for name in unknown {
        warnings.push(format!(
            "the chat template writes `<|{name}|>`, which is no token of the vocabulary and is cut \
             into pieces"
        ));
    }
}

#[cfg(test)]
mod tests {
    use data::format::{Example, Mapped};
    use data::records::Origin;

    use super::*;

    fn prepared(hash: u64, text: &str) -> Prepared {
        let example = Example::Text { text: text.to_owned() };
        let mapped = Mapped { example, checker: None, answer: None, task: None };
        let origin = Origin { file: std::path::Path::new("x").into(), row: 1 };
        Prepared { mapped, origin, split: Split::Train, hash }
    }

    #[test]
    fn a_sample_keeps_the_lowest_hashes_whatever_the_order() {
        let step = u64::MAX / 64;
        let run = |order: &[u64]| {
            let mut sample = Sample::new(40);
            for n in order {
                sample.add(prepared(n * step, &format!("{n:04}")));
            }
            let mut texts: Vec<String> = sample.texts.into_iter().map(|(_, text)| text).collect();
            texts.sort();
            texts
        };
        let up: Vec<u64> = (0..64).collect();
        let down: Vec<u64> = (0..64).rev().collect();
        // Ten texts of four bytes fit; the bound is halved from 64 steps to 8, which keeps 0 to 8.
        let expected: Vec<String> = (0..=8).map(|n| format!("{n:04}")).collect();
        assert_eq!(run(&up), expected);
        assert_eq!(run(&down), expected);
    }
}

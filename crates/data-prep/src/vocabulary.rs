//! Gets the tokenizer: trains one on the data, or takes one that exists; and settles its chat template.

use anyhow::{Context as _, bail};
use artifact::RunDir;
use data::template::{CHAT, CHAT_TOKENS, ChatTemplate, INSTRUCTION};
use data::tokenizer::{BpeOptions, Tokenizer};
use stage::Team;
use tracing::{info, warn};

use crate::config::{ExistingTokenizer, TrainTokenizer};
use crate::plan::{DatasetPlan, Plan, TokenizerPlan};
use crate::prepare::{Examiner, Gate, Outcome, Prepared, Reader, Split, texts};
use crate::shares;

/// The tokenizer with its chat template compiled.
pub(crate) struct Vocabulary {
    pub(crate) tokenizer: Tokenizer,
    /// Absent where the tokenizer has none and no data set needs one.
    pub(crate) template: Option<ChatTemplate>,
    /// What a reader of the report should know.
    pub(crate) warnings: Vec<String>,
}

/// Of several processes, to be called by the first.
pub(crate) fn get(
    plan: &Plan,
    team: Option<&Team>,
    interrupted: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Vocabulary> {
    let mut tokenizer = match &plan.tokenizer {
        TokenizerPlan::Existing(existing) => load(existing)?,
        TokenizerPlan::Train(options) => {
            let sample = sample(plan, options, team, interrupted)?;
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

/// What the first process has got, for another of them; of the reading that a training needs this does its share.
pub(crate) fn get_from_first(
    plan: &Plan,
    team: &Team,
    run_dir: &RunDir,
) -> anyhow::Result<Vocabulary> {
    let mut tokenizer = match &plan.tokenizer {
        TokenizerPlan::Existing(existing) => load(existing)?,
        TokenizerPlan::Train(options) => {
            for set in trained_on(plan, options) {
                let examiner = Examiner::new(set, plan.seed)?;
                shares::make(team, set, TEXTS, &|chunk| examiner.examine(chunk, trained_text))?;
            }
            team.wait_for(TOKENIZER)?;
            Tokenizer::load(run_dir.tokenizer_dir())?
        }
    };
    // The first one tells the warnings.
    let mut warnings = Vec::new();
    let template = settle_template(plan, &mut tokenizer, &mut warnings)?;
    Ok(Vocabulary { tokenizer, template, warnings })
}

/// Lets the others know that the tokenizer is in the run directory.
pub(crate) fn announce(team: &Team) -> anyhow::Result<()> {
    team.put(TOKENIZER, b"")
}

/// What the texts of a set, and the tokenizer, are called among the ranks.
const TEXTS: &str = "texts";
const TOKENIZER: &str = "tokenizer";

fn load(existing: &ExistingTokenizer) -> anyhow::Result<Tokenizer> {
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
    Ok(tokenizer)
}

fn trained_on<'p>(
    plan: &'p Plan,
    options: &'p TrainTokenizer,
) -> impl Iterator<Item = &'p DatasetPlan> {
    let listed =
        |set: &&DatasetPlan| options.datasets.as_ref().is_none_or(|all| all.contains(&set.name));
    plan.datasets.iter().filter(listed)
}

/// An example's hash, and its texts.
type Texts = (u64, Vec<String>);

/// What there is to train on; nothing in the validation split.
fn trained_text(prepared: Prepared) -> Option<Texts> {
    let trains = prepared.split == Split::Train;
    trains.then(|| (prepared.hash, texts(prepared.mapped.example)))
}

/// A sample of the training split's texts, evenly thinned by content hash to the size allowed.
fn sample(
    plan: &Plan,
    options: &TrainTokenizer,
    team: Option<&Team>,
    interrupted: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<String>> {
    let mut kept = Sample::new(options.max_train_mb << 20);
    for set in trained_on(plan, options) {
        info!(dataset = set.name, "reading text for the tokenizer");
        let mut read = || -> anyhow::Result<()> {
            let examiner = Examiner::new(set, plan.seed)?;
            let mut gate = Gate::new(set);
            let make = |chunk| examiner.examine(chunk, trained_text);
            let mut merge = |outcomes: Vec<Outcome<Option<Texts>>>| -> anyhow::Result<()> {
                gate.admit(outcomes)?.into_iter().flatten().for_each(|one| kept.add(one));
                Ok(())
            };
            if let Some(team) = team {
                return shares::merge(team, set, TEXTS, &make, &mut merge);
            }
            let mut reader = Reader::open(set)?;
            while let Some(chunk) = reader.next_chunk()? {
                interrupted()?;
                merge(make(chunk))?;
            }
            Ok(())
        };
        read().with_context(|| format!("data set `{}`", set.name))?;
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

    fn add(&mut self, (hash, texts): Texts) {
        if hash > self.bound {
            return;
        }
        for text in texts {
            self.bytes += text.len();
            self.texts.push((hash, text));
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
    use super::*;

    #[test]
    fn a_sample_keeps_the_lowest_hashes_whatever_the_order() {
        let step = u64::MAX / 64;
        let run = |order: &[u64]| {
            let mut sample = Sample::new(40);
            for n in order {
                sample.add((n * step, vec![format!("{n:04}")]));
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

//! The verdict: how probable a model finds the letter of either answer.

use anyhow::Context as _;
use data::batch::Branches;
use data::constitution::Language;
use data::dataset::shuffle;
use data::format::Message;
use model::Decoder;
use objectives::{choice_probability, preference_label};
use training::branches;
use training::respond::sample_seed;

use super::config::Plan;
use super::pairs::Pair;
use crate::speaker::{Source, Speaker, Turn, user};

/// The tokens of the letters A and B where an answer has begun with `prefix`.
///
/// # Errors
/// A letter that is not one token there.
pub(crate) fn letters(source: &Source, prefix: &str) -> anyhow::Result<[i64; 2]> {
    let question = [user("A or B?")];
    let before = source.ids(&question, prefix)?;
    let letter = |letter: char| -> anyhow::Result<i64> {
        let whole = source.ids(&question, &format!("{prefix}{letter}"))?;
        match whole.strip_prefix(before.as_slice()) {
            Some([id]) => Ok(*id),
            _ => anyhow::bail!(
                "templates.answer: behind {prefix:?} the letter {letter} is not one token of its own with this tokenizer; \
                 let the template end otherwise, for instance with a bracket or without a blank"
            ),
        }
    };
    Ok([letter('A')?, letter('B')?])
}

/// A model that compares.
pub(crate) struct Judge<'a> {
    plan: &'a Plan,
    source: &'a Source,
    decoder: &'a Decoder,
    speaker: Speaker<'a>,
    letters: [[i64; 2]; 2],
}

/// One pair under one principle in one order.
struct Question {
    pair: usize,
    language: Language,
    swapped: bool,
    messages: Vec<Message>,
    /// What the answer begins with, up to the letter.
    begun: String,
    seed: u64,
}

impl<'a> Judge<'a> {
    /// # Errors
    /// As [`letters`].
    pub(crate) fn new(plan: &'a Plan, decoder: &'a Decoder) -> anyhow::Result<Self> {
        let source = plan.judge();
        let responses = &plan.config.responses;
        let speaker = Speaker::new(source, decoder, &responses.stop_strings, responses.batch_rows)?;
        let of = |language| letters(source, plan.principles.constitution.answer_prefix(language));
        Ok(Self { plan, source, decoder, speaker, letters: [of(Language::En)?, of(Language::Ko)?] })
    }

    /// Labels the pairs that can be compared.
    ///
    /// # Errors
    /// The constitution's templates; logits that are not finite.
    pub(crate) fn label(&mut self, pairs: &mut [Pair], seed: u64) -> anyhow::Result<()> {
        let mut questions = self.questions(pairs, seed)?;
        if let Some(manner) = self.plan.config.label.reasoning {
            let turns: Vec<Turn> = questions
                .iter()
                .map(|question| Turn { messages: question.messages.clone(), seed: question.seed })
                .collect();
            let thoughts = self.speaker.say(&turns, manner)?;
            for (question, thought) in questions.iter_mut().zip(thoughts) {
                let thought = thought.map(|said| said.text.trim().to_owned()).unwrap_or_default();
                question.begun = format!("{thought}\n{}", question.begun);
            }
        }
        let verdicts = self.verdicts(&questions)?;
        // A principle's two orders lie next to each other.
        let mut gathered: Vec<Vec<(f64, f64)>> = pairs.iter().map(|_| Vec::new()).collect();
        for (two, verdict) in questions.chunks_exact(2).zip(verdicts.chunks_exact(2)) {
            if let [Some(forward), Some(swapped)] = verdict {
                gathered[two[0].pair].push((*forward, *swapped));
            }
        }
        for (pair, verdicts) in pairs.iter_mut().zip(gathered) {
            if !verdicts.is_empty() {
                let label = preference_label(&verdicts);
                let clamped = self
                    .plan
                    .config
                    .label
                    .clamp
                    .map_or(label, |[least, most]| label.clamp(least, most));
                pair.probability = Some(clamped);
                // What both orders give to the place rather than to the answer.
                let bias: f64 =
                    verdicts.iter().map(|(forward, swapped)| forward + swapped - 1.0).sum();
                pair.position_bias = Some(bias / verdicts.len() as f64);
            }
        }
        Ok(())
    }

    fn questions(&self, pairs: &mut [Pair], seed: u64) -> anyhow::Result<Vec<Question>> {
        let constitution = &self.plan.principles.constitution;
        let settings = &self.plan.config.label;
        let mut questions = Vec::new();
        for (index, pair) in pairs.iter_mut().enumerate().filter(|(_, pair)| pair.is_comparable()) {
            let mut chosen = self.plan.principles.chosen.clone();
            if settings.principles_per_pair > 0 {
                shuffle(&mut chosen, [seed, pair.number as u64, 0, 6]);
                chosen.truncate(settings.principles_per_pair);
            }
            let names: Vec<&str> =
                chosen.iter().map(|at| constitution.principles[*at].id.as_str()).collect();
            pair.principles = names.join(" ");
            let language = self.plan.prompts[pair.number].language;
            let [a, b] = &pair.responses;
            for (place, at) in chosen.iter().enumerate() {
                let principle = &constitution.principles[*at];
                for swapped in [false, true] {
                    let both =
                        if swapped { (b.as_str(), a.as_str()) } else { (a.as_str(), b.as_str()) };
                    let thinks = settings.reasoning.is_some();
                    let text = constitution.comparison_turn(
                        principle,
                        language,
                        &pair.prompt,
                        both,
                        thinks,
                    )?;
                    let number = (pair.number * self.plan.principles.chosen.len() + place) * 2
                        + usize::from(swapped);
                    questions.push(Question {
                        pair: index,
                        language,
                        swapped,
                        messages: vec![user(text)],
                        begun: constitution.answer_prefix(language).to_owned(),
                        seed: sample_seed(!seed, number as u64),
                    });
                }
            }
        }
        Ok(questions)
    }

    /// The probability, of each question, that the letter of the answer that stands first is given; `None` where there is no room.
    fn verdicts(&self, questions: &[Question]) -> anyhow::Result<Vec<Option<f64>>> {
        let most = self.plan.config.label.micro_batch_tokens;
        let mut verdicts = vec![None; questions.len()];
        let (mut row, mut members) = (Branches::new(), Vec::new());
        for (index, question) in questions.iter().enumerate() {
            debug_assert_eq!(question.swapped, index % 2 == 1);
            let ids = self.source.ids(&question.messages, &question.begun)?;
            if ids.len() >= self.source.positions() {
                continue;
            }
            if !members.is_empty() && row.num_tokens() + ids.len() + 2 > most {
                self.decide(
                    &std::mem::take(&mut row),
                    &std::mem::take(&mut members),
                    &mut verdicts,
                )?;
            }
            let [a, b] = self.letters[usize::from(question.language == Language::Ko)];
            row.push(&ids, &[&[a], &[b]]);
            members.push(index);
        }
        if !members.is_empty() {
            self.decide(&row, &members, &mut verdicts)?;
        }
        Ok(verdicts)
    }

    fn decide(
        &self,
        row: &Branches,
        members: &[usize],
        verdicts: &mut [Option<f64>],
    ) -> anyhow::Result<()> {
        let said =
            tch::no_grad(|| branches::responses(self.decoder, row, 1.0)).context("judging")?;
        let logprobs: Vec<f32> = Vec::try_from(said.logprobs)?;
        for (member, letters) in members.iter().zip(logprobs.chunks_exact(2)) {
            let probability = choice_probability(f64::from(letters[0]), f64::from(letters[1]));
            anyhow::ensure!(probability.is_finite(), "the judge's probabilities are not finite");
            verdicts[*member] = Some(probability);
        }
        Ok(())
    }
}

//! Two answers to a prompt.

use std::ops::Range;

use training::respond::{Response, sample_seed};

use super::config::Plan;
use crate::shared::Asked;
use crate::speaker::{Speaker, Turn};

/// Two answers to a prompt, and what was said of them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair {
    /// The prompt's position among all.
    pub(crate) number: usize,
    /// Its last message.
    pub(crate) prompt: String,
    pub(crate) task: Option<String>,
    pub(crate) responses: [String; 2],
    /// Whether both ended by themselves.
    pub(crate) ended: bool,
    /// The ids of the principles it was judged under, with blanks between.
    pub(crate) principles: String,
    /// That the first answer is the better one; absent where no verdict was possible.
    pub(crate) probability: Option<f64>,
    /// How much more likely the judge is to take the answer that stands first.
    pub(crate) position_bias: Option<f64>,
}

impl Pair {
    /// Whether there is anything to compare.
    pub(crate) fn is_comparable(&self) -> bool {
        let [first, second] = &self.responses;
        !first.is_empty() && !second.is_empty() && first != second
    }
}

/// Samples two answers to each of the prompts in `range`, the second by another model where there is one.
///
/// # Errors
/// The chat template's; logits that are not finite.
pub(crate) fn sample(
    policy: &mut Speaker<'_>,
    second: Option<&mut Speaker<'_>>,
    plan: &Plan,
    range: Range<usize>,
    seed: u64,
) -> anyhow::Result<Vec<Pair>> {
    // An answer's random numbers depend on the seed and its place among all, whoever gives it.
    let turns = |place: usize| -> Vec<Turn> {
        let turn = |number: usize| Turn {
            messages: plan.prompts[number].messages.clone(),
            seed: sample_seed(seed, (2 * number + place) as u64),
        };
        range.clone().map(turn).collect()
    };
    let manner = plan.config.responses.sampling;
    let (first, other) = if let Some(second) = second {
        (policy.say(&turns(0), manner)?, second.say(&turns(1), manner)?)
    } else {
        let mut both = policy.say(&[turns(0), turns(1)].concat(), manner)?;
        let other = both.split_off(range.len());
        (both, other)
    };
    let text = |said: Option<Response>| {
        said.map_or((String::new(), false), |said| (said.text.trim().to_owned(), said.ended))
    };
    let pair = |(number, (first, second))| {
        let asked: &Asked = &plan.prompts[number];
        let (first, second) = (text(first), text(second));
        Pair {
            number,
            prompt: asked.text().to_owned(),
            task: asked.row.task.clone(),
            responses: [first.0, second.0],
            ended: first.1 && second.1,
            principles: String::new(),
            probability: None,
            position_bias: None,
        }
    };
    Ok(range.clone().zip(first.into_iter().zip(other)).map(pair).collect())
}

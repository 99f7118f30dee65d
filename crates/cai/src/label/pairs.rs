//! Two answers to a prompt.

use std::ops::Range;

use training::respond::sample_seed;

use super::config::Plan;
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

/// Samples two answers to each of the prompts in `range`.
///
/// # Errors
/// The chat template's; logits that are not finite.
pub(crate) fn sample(
    policy: &mut Speaker<'_>,
    plan: &Plan,
    range: Range<usize>,
    seed: u64,
) -> anyhow::Result<Vec<Pair>> {
    let turns: Vec<Turn> = range
        .clone()
        .flat_map(|number| [2 * number, 2 * number + 1])
        .map(|episode| Turn {
            messages: plan.prompts[episode / 2].messages.clone(),
            seed: sample_seed(seed, episode as u64),
        })
        .collect();
    let said = policy.say(&turns, plan.config.responses.sampling)?;
    let mut said = said.into_iter().map(|said| {
        said.map_or((String::new(), false), |said| (said.text.trim().to_owned(), said.ended))
    });
    let mut pairs = Vec::with_capacity(range.len());
    for number in range {
        let (Some(first), Some(second)) = (said.next(), said.next()) else { break };
        let asked = &plan.prompts[number];
        pairs.push(Pair {
            number,
            prompt: asked.text().to_owned(),
            task: asked.row.task.clone(),
            responses: [first.0, second.0],
            ended: first.1 && second.1,
            principles: String::new(),
            probability: None,
            position_bias: None,
        });
    }
    Ok(pairs)
}

//! What a model did in a test, and the numbers that are made of it.

use std::collections::BTreeMap;

use artifact::evaluation::{Better, Unit};
use serde::{Deserialize, Serialize};
use training::respond::Response;

/// What one model did in one test, item by item.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// What was counted of each item, by name; nothing where that cannot be counted.
    pub(crate) columns: BTreeMap<String, Vec<Option<f64>>>,
    /// What it said to each item, where it said anything.
    pub(crate) answers: Vec<Answer>,
    /// Of the tokens of each answer, where they are compared with another model's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) logprobs: Vec<Vec<f32>>,
}

/// An answer that a model gave or chose.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// Its tokens, where they are needed again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ids: Vec<i64>,
    /// Whether it ended by itself.
    pub(crate) ended: bool,
    /// 1 right, 0 wrong; or what a reward model gives it.
    pub(crate) score: Option<f64>,
}

impl Outcome {
    /// Of generated answers: the texts, `tokens` and `ended`.
    pub(crate) fn of_responses(responses: &[Response]) -> Self {
        let mut outcome = Self::default();
        for Response { ids, text, ended, .. } in responses {
            outcome.push("tokens", Some(ids.len() as f64));
            outcome.push("ended", Some(f64::from(*ended)));
            let answer =
                Answer { text: text.clone(), ids: ids.clone(), ended: *ended, score: None };
            outcome.answers.push(answer);
        }
        outcome
    }

    /// Adds an item's number to a column.
    pub(crate) fn push(&mut self, column: &str, value: Option<f64>) {
        if let Some(values) = self.columns.get_mut(column) {
            values.push(value);
        } else {
            self.columns.insert(column.to_owned(), vec![value]);
        }
    }

    /// As [`push`](Self::push), 1 for true.
    pub(crate) fn push_bool(&mut self, column: &str, value: Option<bool>) {
        self.push(column, value.map(f64::from));
    }

    /// Forgets tokens that nothing needs any more.
    pub(crate) fn without_ids(mut self) -> Self {
        for answer in &mut self.answers {
            answer.ids.clear();
        }
        self
    }
}

/// A number that is made of what was counted.
#[derive(Debug, Clone)]
pub(crate) struct Metric {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) better: Better,
    /// The columns whose sums it is made of.
    pub(crate) columns: Vec<String>,
    /// From those sums and, last, the number of items.
    pub(crate) of: fn(&[f64]) -> f64,
    /// Only these items; all where there is none.
    pub(crate) only: Option<Vec<bool>>,
    /// Whether it means the same with another tokenizer.
    pub(crate) any_tokenizer: bool,
}

impl Metric {
    /// The mean of a column.
    pub(crate) fn mean(name: &str, column: &str, unit: Unit, better: Better) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            better,
            columns: vec![column.to_owned()],
            of: |sums| sums[0] / sums[1],
            only: None,
            any_tokenizer: true,
        }
    }

    /// The share of a column of truths.
    pub(crate) fn share(name: &str, column: &str, better: Better) -> Self {
        Self::mean(name, column, Unit::Share, better)
    }

    /// The same of a part of the items, named behind a slash.
    pub(crate) fn of_part(&self, part: &str, only: Vec<bool>) -> Self {
        Self { name: format!("{}/{part}", self.name), only: Some(only), ..self.clone() }
    }

    /// The same of each part that `parts` tells, where there are several.
    pub(crate) fn by_parts(&self, parts: &[Option<&str>]) -> Vec<Self> {
        let mut names: Vec<&str> = parts.iter().flatten().copied().collect();
        names.sort_unstable();
        names.dedup();
        if names.len() < 2 {
            return Vec::new();
        }
        let only = |name: &str| parts.iter().map(|own| *own == Some(name)).collect();
        names.into_iter().map(|name| self.of_part(name, only(name))).collect()
    }

    /// What was counted of an item, in the order of the columns; nothing where it does not count.
    pub(crate) fn row(&self, outcome: &Outcome, item: usize) -> Option<Vec<f64>> {
        if self.only.as_ref().is_some_and(|only| !only.get(item).copied().unwrap_or(false)) {
            return None;
        }
        self.columns.iter().map(|column| *outcome.columns.get(column)?.get(item)?).collect()
    }
}

/// What is said of every generated answer: how many ended by themselves, and how long they are.
pub(crate) fn manner_metrics() -> [Metric; 2] {
    [
        Metric::share("ended", "ended", Better::Higher),
        Metric {
            any_tokenizer: false,
            ..Metric::mean("response_tokens", "tokens", Unit::Tokens, Better::Neither)
        },
    ]
}

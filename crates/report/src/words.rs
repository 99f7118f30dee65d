//! What words and numbers mean: the repository's glossary, and a sentence for each metric.

use serde::{Deserialize, Serialize};

/// A word of the glossary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Word {
    pub(crate) word: String,
    pub(crate) meaning: String,
}

/// What a metric is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metric {
    /// As it is logged.
    pub(crate) name: String,
    /// As it is written on the page.
    pub(crate) title: String,
    /// `share`, `count`, `bytes`, `seconds`, or words for an axis; empty where it has none.
    pub(crate) unit: String,
    /// `higher`, `lower` or `neither`.
    pub(crate) better: String,
    pub(crate) meaning: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metrics {
    metric: Vec<Metric>,
}

/// The metrics that stages log and tests measure.
pub(crate) fn metrics() -> Vec<Metric> {
    let metrics: Result<Metrics, _> = toml::from_str(include_str!("../assets/metrics.toml"));
    // A file of the build, read by a test: it cannot be wrong here.
    metrics.map(|metrics| metrics.metric).unwrap_or_default()
}

/// The words of `docs/GLOSSARY.md`; of several in one row each.
pub(crate) fn glossary() -> Vec<Word> {
    words_of(include_str!("../../../docs/GLOSSARY.md"))
}

fn words_of(document: &str) -> Vec<Word> {
    let rows = document.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let mut words = Vec::new();
    for (word, meaning) in rows.filter_map(|row| row.split_once(" | ")) {
        if word == "word" {
            continue;
        }
        for word in word.split(", ") {
            let plain = |text: &str| text.replace('`', "");
            words.push(Word { word: plain(word), meaning: plain(meaning) });
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_glossary_is_read() {
        let words = glossary();
        let meaning = |word: &str| {
            words.iter().find(|found| found.word == word).map(|found| found.meaning.as_str())
        };
        assert_eq!(meaning("perplexity"), Some("exp of the loss"));
        assert_eq!(meaning("chosen"), meaning("rejected"));
        assert!(meaning("chosen").is_some() && meaning("word").is_none());
        assert!(words.len() > 90, "{}", words.len());
    }

    #[test]
    fn every_metric_has_a_title_and_a_sentence_once() {
        let metrics = metrics();
        assert!(metrics.len() > 50, "assets/metrics.toml has {} metrics", metrics.len());
        let mut names = HashSet::new();
        for metric in &metrics {
            assert!(names.insert(&metric.name), "{} is there twice", metric.name);
            assert!(!metric.title.is_empty() && metric.meaning.ends_with('.'), "{metric:?}");
            assert!(["higher", "lower", "neither"].contains(&metric.better.as_str()), "{metric:?}");
        }
    }
}

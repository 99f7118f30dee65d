//! Scores a response by rule: rewards that need no model.

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::checker::Checker;

/// How a response is scored. Patterns are regular expressions as the `regex` crate reads them; `(?i)` at the beginning ignores
/// case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RuleSpec {
    /// 1 where the prompt's own checker accepts the response, else 0.
    Checker {},
    /// 1 where the pattern is found, else 0.
    Matches {
        /// The pattern.
        pattern: String,
    },
    /// The share of sentences in which the pattern is found; 0 for a response without sentences.
    SentenceShare {
        /// The pattern.
        pattern: String,
    },
}

/// A rule ready to be applied.
#[derive(Debug, Clone)]
pub enum Rule {
    /// The prompt's own checker.
    Checker,
    /// The pattern is found.
    Matches(Regex),
    /// The share of sentences with the pattern.
    SentenceShare(Regex),
}

impl Rule {
    /// Compiles a rule.
    ///
    /// # Errors
    /// The pattern is no regular expression.
    pub fn new(spec: &RuleSpec) -> Result<Self, regex::Error> {
        Ok(match spec {
            RuleSpec::Checker {} => Self::Checker,
            RuleSpec::Matches { pattern } => Self::Matches(Regex::new(pattern)?),
            RuleSpec::SentenceShare { pattern } => Self::SentenceShare(Regex::new(pattern)?),
        })
    }

    /// The score of a response, from 0 to 1. A prompt without a checker scores 0 under [`Rule::Checker`].
    pub fn score(&self, response: &str, checker: Option<&Checker>) -> f64 {
        let truth = |holds| if holds { 1.0 } else { 0.0 };
        match self {
            Self::Checker => truth(checker.is_some_and(|checker| checker.check(response))),
            Self::Matches(pattern) => truth(pattern.is_match(response)),
            Self::SentenceShare(pattern) => {
                let (mut all, mut found) = (0, 0);
                for sentence in sentences(response) {
                    all += 1;
                    found += i32::from(pattern.is_match(sentence));
                }
                if all == 0 { 0.0 } else { f64::from(found) / f64::from(all) }
            }
        }
    }
}

/// The sentences of a text: what lies between full stops, question and exclamation marks and line breaks, and has a letter.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let ends = |c: char| matches!(c, '.' | '!' | '?' | '…' | '。' | '！' | '？' | '\n');
    text.split(ends).filter(|part| part.chars().any(char::is_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(spec: &RuleSpec, response: &str) -> f64 {
        Rule::new(spec).unwrap().score(response, None)
    }

    #[test]
    fn the_share_of_sentences_in_both_languages() {
        let animals =
            RuleSpec::SentenceShare { pattern: r"(?i)\b(cat|dog)s?\b|강아지".to_owned() };
        assert_eq!(score(&animals, "The Cat sat. It was warm! Dogs ran?"), 2.0 / 3.0);
        assert_eq!(score(&animals, "강아지가 잔다. 날이 맑다."), 0.5);
        assert_eq!(score(&animals, "Concatenate."), 0.0);
        assert_eq!([score(&animals, ""), score(&animals, "... 12 !")], [0.0, 0.0]);
        assert_eq!(score(&animals, "a cat and a dog"), 1.0, "no end is needed");
    }

    #[test]
    fn patterns_and_checkers() {
        let digits = RuleSpec::Matches { pattern: r"####\s*\d+".to_owned() };
        assert_eq!([score(&digits, "so #### 42"), score(&digits, "42")], [1.0, 0.0]);
        let rule = Rule::new(&RuleSpec::Checker {}).unwrap();
        let checker = Checker::Exact { answer: "blue".to_owned() };
        assert_eq!(rule.score("Blue.", Some(&checker)), 1.0);
        assert_eq!(rule.score("red", Some(&checker)), 0.0);
        assert_eq!(rule.score("blue", None), 0.0);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let error = Rule::new(&RuleSpec::Matches { pattern: "(".to_owned() }).unwrap_err();
        assert!(error.to_string().contains("unclosed group"), "{error}");
    }
}

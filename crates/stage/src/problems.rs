//! Everything wrong with a configuration, told at once.

use std::fmt::{self, Display};
use std::path::Path;

/// A list of problems, each naming the configuration key it is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems {
    list: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    key: String,
    what: String,
}

impl Problems {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a problem with the value of `key` (dotted, as for `--set`): what is wrong and what to do.
    pub fn push(&mut self, key: impl Into<String>, what: impl Display) {
        self.list.push(Problem { key: key.into(), what: what.to_string() });
    }

    /// Adds a problem unless `holds`. Returns `holds`.
    pub fn check(&mut self, holds: bool, key: &str, what: impl Display) -> bool {
        if !holds {
            self.push(key, what);
        }
        holds
    }

    /// Adds a problem unless `path` exists. Returns whether it does.
    pub fn require_path(&mut self, key: &str, path: &Path) -> bool {
        self.check(
            path.exists(),
            key,
            format_args!(
                "{} does not exist; run the stage that makes it, or correct the path",
                path.display()
            ),
        )
    }

    /// Takes the value out of a result, or its error as a problem with `key`.
    pub fn take<T, E: Display>(&mut self, key: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.push(key, error)).ok()
    }

    /// Adds all of another list, its keys under `prefix` (`train` makes `lr` into `train.lr`).
    pub fn extend(&mut self, prefix: &str, other: Self) {
        for Problem { key, what } in other.list {
            let key = match (prefix.is_empty(), key.is_empty()) {
                (true, _) => key,
                (false, true) => prefix.to_owned(),
                (false, false) => format!("{prefix}.{key}"),
            };
            self.list.push(Problem { key, what });
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The value if there is no problem.
    ///
    /// # Errors
    /// `self`, if there is any.
    pub fn finish<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Says of each problem which flag set its key; `flags` are (key, flag as typed).
    pub(crate) fn cite(&mut self, flags: &[(String, String)]) {
        for problem in &mut self.list {
            let under = |key: &str| {
                problem.key == key
                    || problem.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'))
            };
            if let Some((_, flag)) = flags.iter().rev().find(|(key, _)| under(key)) {
                problem.what = format!("{} (set by {flag})", problem.what);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }
}

impl Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Problem { key, what }) in self.list.iter().enumerate() {
            let end = if n == 0 { "" } else { "\n" };
            let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
            write!(f, "{end}- {key}{what}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_told_with_their_keys_and_flags() {
        let mut inner = Problems::new();
        inner.check(false, "lr", "must be above 0, got -1");
        assert!(inner.check(true, "warmup_steps", "unused"));
        inner.push("", "has no schedule");
        let mut all = Problems::new();
        all.extend("train", inner);
        assert!(!all.require_path("data.train", Path::new("runs/none/train.parquet")));
        assert_eq!(all.take::<u8, _>("data.seed", "x".parse::<u8>()), None);
        assert_eq!(all.take("data.seed", "7".parse::<u8>()), Some(7));
        all.cite(&[
            ("train".to_owned(), "--set train={}".to_owned()),
            ("train.lr".to_owned(), "--set train.lr=-1".to_owned()),
        ]);
        assert_eq!(
            all.finish(()).unwrap_err().to_string(),
            "- train.lr: must be above 0, got -1 (set by --set train.lr=-1)\n\
             - train: has no schedule (set by --set train={})\n\
             - data.train: runs/none/train.parquet does not exist; run the stage that makes it, or correct the path\n\
             - data.seed: invalid digit found in string"
        );
    }

    #[test]
    fn no_problem_gives_the_value() {
        assert_eq!(Problems::new().finish(3), Ok(3));
    }
}

//! Loading a stage's configuration: one TOML file, overrides from the command line, errors that show
//! where.
//!
//! A configuration is one struct with `#[serde(deny_unknown_fields)]` and without `flatten`,
//! `untagged` or `tag`, which would lose the position of an error. It has the top-level keys `seed`
//! (0 to 2^63 - 1) and `out` (the run directory). Paths in it are relative to the current directory.
//!
//! The file is read by itself first, so that errors in it keep their line; then each override is
//! applied in order, and an error that one of them brings about cites it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::error::{Hint, UsageError};
use crate::problems::Problems;

mod overrides;
mod wording;

pub use overrides::Override;

/// Where a stage's configuration lies and where its run goes, for [`StageConfig::plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The configuration file.
    pub config: PathBuf,
    /// The run directory.
    pub out: PathBuf,
}

/// A stage's configuration as a user writes it.
pub trait StageConfig: Serialize + DeserializeOwned {
    /// What the stage works from: checked and derived values.
    type Plan: Describe;

    /// The one place that derives values and checks them against each other. Touches no tensor.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    fn plan(self, at: &Paths) -> Result<Self::Plan, Problems>;
}

/// What `--check` prints.
pub trait Describe {
    /// The plan for a reader, in lines: parameters, tokens, steps, an estimate of memory in each of the `processes`.
    fn describe(&self, processes: usize) -> String;
}

/// A configuration with everything that was derived from its text.
#[derive(Debug)]
pub struct Loaded<C> {
    /// The configuration.
    pub config: C,
    /// It as TOML with every default written out.
    pub resolved: Table,
    /// The key `seed`.
    pub seed: u64,
    /// The key `out`.
    pub out: PathBuf,
}

/// Reads a configuration file and applies overrides.
///
/// # Errors
/// A [`UsageError`] if the file cannot be read, is not TOML, or does not fit the struct: with the
/// line in the file or the flag on the command line, and the nearest known names for an unknown key.
pub fn load<C: StageConfig>(
    info_name: &str,
    path: &Path,
    overrides: &[Override],
) -> anyhow::Result<Loaded<C>> {
    load_config(path, overrides).map_err(|failure| {
        let check = format!("`{info_name} --check --config ...` validates without loading weights");
        let error = failure.error.context(format!("cannot load {}", path.display()));
        // Hints print from the outside in: the general one is innermost.
        let hints = failure.hints.into_iter().chain([check]).rev();
        let error = hints.fold(error, |error, hint| Hint::new(error, hint).into());
        UsageError::new(error).into()
    })
}

/// An error with its hints.
struct Failure {
    error: anyhow::Error,
    hints: Vec<String>,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { error, hints: Vec::new() }
    }
}

fn load_config<C: StageConfig>(path: &Path, overrides: &[Override]) -> Result<Loaded<C>, Failure> {
    let text = fs_err::read_to_string(path).map_err(|error| {
        let hint =
            "give another file with --config; the ones that come with temper are in configs/";
        Failure { error: error.into(), hints: vec![hint.to_owned()] }
    })?;
    let mut table: Table = text.parse().map_err(|error| wording::in_file(&text, &error))?;

    // What is wrong after the file and after each override; the last one counts.
    let mut outcome: Result<C, Blame> = toml::from_str(&text).map_err(|error| Blame {
        message: error.message().to_owned(),
        failure: wording::in_file(&text, &error),
    });
    for change in overrides {
        change.apply(&mut table)?;
        let now = C::deserialize(Value::Table(table.clone()));
        outcome = match (outcome, now) {
            (_, Ok(config)) => Ok(config),
            // The same complaint as before this override: it is not to blame.
            (Err(before), Err(error)) if before.message == error.message() => Err(before),
            (_, Err(error)) => Err(Blame {
                message: error.message().to_owned(),
                failure: wording::in_override(change, &error),
            }),
        };
    }
    let config = outcome.map_err(|blame| blame.failure)?;
    resolve(config).map_err(Failure::from)
}

/// An error and the words by which it is recognised after the next override.
struct Blame {
    message: String,
    failure: Failure,
}

fn resolve<C: StageConfig>(config: C) -> anyhow::Result<Loaded<C>> {
    let resolved = Table::try_from(&config)?;
    let seed = resolved.get("seed").and_then(Value::as_integer);
    let out = resolved.get("out").and_then(Value::as_str);
    let (Some(seed), Some(out)) = (seed.and_then(|s| u64::try_from(s).ok()), out) else {
        anyhow::bail!(
            "the configuration needs the top-level keys `seed` (an integer from 0) and `out` (a path)"
        );
    };
    let out = PathBuf::from(out);
    Ok(Loaded { config, resolved, seed, out })
}

impl<C> Loaded<C> {
    /// The resolved configuration as JSON, for the manifest.
    ///
    /// # Errors
    /// If a value has no JSON form.
    pub fn to_json(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::to_value(&self.resolved)?)
    }

    /// The resolved configuration as TOML text.
    ///
    /// # Errors
    /// If a value has no TOML form.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        Ok(toml::to_string_pretty(&self.resolved)?)
    }
}

/// How one resolved configuration differs from another, key by key, without `out`:
/// `train.lr: 0.0001 -> 0.0003`.
pub fn changes(old: &serde_json::Value, new: &serde_json::Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", old, new, &mut found);
    found
}

fn compare(key: &str, old: &serde_json::Value, new: &serde_json::Value, found: &mut Vec<String>) {
    if let (Some(before), Some(after)) = (old.as_object(), new.as_object()) {
        let added = after.keys().filter(|name| !before.contains_key(*name));
        for name in before.keys().chain(added) {
            let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            if inner != "out" {
                let get = |map: &serde_json::Map<_, _>| map.get(name).cloned().unwrap_or_default();
                compare(&inner, &get(before), &get(after), found);
            }
        }
    } else if old != new {
        let show = |value: &serde_json::Value| {
            if value.is_null() { "(absent)".to_owned() } else { value.to_string() }
        };
        found.push(format!("{key}: {} -> {}", show(old), show(new)));
    }
}

#[cfg(test)]
mod tests;

//! The principles that answers are judged by.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use data::constitution::{self, Constitution, ConstitutionError, Principle};

use super::super::draw::one;
use super::super::lexicon::Language;
use super::super::{Rng, WorldSpec};

/// A constitution, and which of its principles are drawn from. Clones share it.
#[derive(Clone, Debug)]
pub(in super::super) struct Guide(Arc<Contents>);

#[derive(Debug)]
struct Contents {
    path: PathBuf,
    constitution: Constitution,
    /// The positions of the principles drawn from.
    positions: Vec<usize>,
}

impl Guide {
    /// The constitution of the spec, with the principles of its tags.
    pub(in super::super) fn read(spec: &WorldSpec) -> anyhow::Result<Self> {
        let path = spec.constitution.clone().context("world.constitution is missing")?;
        let constitution = Constitution::load(&path)?;
        let positions = constitution
            .tagged(&spec.tags)
            .map_err(|error| anyhow!("world.tags: {}: {error}", path.display()))?;
        Ok(Self(Arc::new(Contents { path, constitution, positions })))
    }

    pub(super) fn constitution(&self) -> &Constitution {
        &self.0.constitution
    }

    /// The position of a principle.
    pub(super) fn draw(&self, rng: &mut Rng) -> usize {
        one(&self.0.positions, rng)
    }

    pub(super) fn principle(&self, position: usize) -> &Principle {
        &self.0.constitution.principles[position]
    }

    /// A turn, or an error that names the file.
    pub(super) fn made(&self, turn: Result<String, ConstitutionError>) -> anyhow::Result<String> {
        turn.with_context(|| self.0.path.display().to_string())
    }
}

/// The language, as a constitution calls it.
pub(super) fn written_in(language: Language) -> constitution::Language {
    match language {
        Language::En => constitution::Language::En,
        Language::Ko => constitution::Language::Ko,
    }
}

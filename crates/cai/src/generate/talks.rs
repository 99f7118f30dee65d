//! Conversations as rows of a table.

use anyhow::Context as _;
use artifact::columns::{
    CRITIQUE, ENDED, FINAL, INITIAL, LANGUAGE, PRINCIPLE, PROMPT, REVISION, STOPPED, TASK,
};
use artifact::rows::{Cell, Column, Kind};
use data::constitution::Language;

use super::rounds::{Round, Stopped, Talk};
use crate::parts::Form;

/// Talks of at most so many rounds, each with columns of its own: `critique_1`, `revision_1`, `critique_2`, ...
pub(crate) struct Talks {
    pub(crate) rounds: usize,
}

fn column(round: usize, name: &str) -> String {
    format!("{name}_{}", round + 1)
}

impl Form for Talks {
    type Row = Talk;

    fn columns(&self) -> Vec<Column> {
        let mut all = vec![
            Column::required("number", Kind::Int),
            Column::required(PROMPT, Kind::Text),
            Column::optional(TASK, Kind::Text),
            Column::required(LANGUAGE, Kind::Text),
            Column::required(INITIAL, Kind::Text),
            Column::required("initial_ended", Kind::Bool),
            Column::required(FINAL, Kind::Text),
            Column::required(ENDED, Kind::Bool),
            Column::required(STOPPED, Kind::Text),
        ];
        for round in 0..self.rounds {
            for name in [PRINCIPLE, CRITIQUE, REVISION] {
                all.push(Column::optional(&column(round, name), Kind::Text));
            }
            all.push(Column::optional(&column(round, ENDED), Kind::Bool));
        }
        all
    }

    fn cells(&self, talk: &Talk) -> Vec<Cell> {
        let mut row = vec![
            Cell::from(talk.number as i64),
            Cell::from(talk.prompt.as_str()),
            Cell::from(talk.task.as_deref()),
            Cell::from(talk.language.code()),
            Cell::from(talk.initial.as_str()),
            Cell::from(talk.initial_ended),
            Cell::from(talk.final_text()),
            Cell::from(talk.final_ended()),
            Cell::from(talk.stopped.name()),
        ];
        for round in 0..self.rounds {
            let held = talk.rounds.get(round);
            row.extend([
                Cell::from(held.map(|held| held.principle.as_str())),
                Cell::from(held.and_then(|held| held.critique.as_deref())),
                Cell::from(held.and_then(|held| held.revision.as_deref())),
                Cell::from(held.map(|held| held.ended)),
            ]);
        }
        row
    }

    fn row(&self, cells: Vec<Cell>) -> anyhow::Result<Talk> {
        talk(cells)
    }
}

fn talk(row: Vec<Cell>) -> anyhow::Result<Talk> {
    let mut cells = row.into_iter();
    let mut next = || cells.next().context("too few columns");
    let number = match next()? {
        Cell::Int(number) => usize::try_from(number)?,
        other => anyhow::bail!("a number is {other:?}"),
    };
    let prompt = next()?.into_text().unwrap_or_default();
    let task = next()?.into_text();
    let language = next()?.into_text().unwrap_or_default();
    let language = Language::ALL.into_iter().find(|known| known.code() == language);
    let initial = next()?.into_text().unwrap_or_default();
    let initial_ended = next()? == Cell::Bool(true);
    let (_final, _ended) = (next()?, next()?);
    let stopped = next()?.into_text().unwrap_or_default();
    let mut rounds = Vec::new();
    while let Ok(principle) = next() {
        let (critique, revision, ended) = (next()?, next()?, next()?);
        if let Some(principle) = principle.into_text() {
            rounds.push(Round {
                principle,
                critique: critique.into_text(),
                revision: revision.into_text(),
                ended: ended == Cell::Bool(true),
            });
        }
    }
    Ok(Talk {
        number,
        prompt,
        task,
        language: language.context("an unknown language")?,
        initial,
        initial_ended,
        rounds,
        stopped: Stopped::of(&stopped).context("an unknown reason to stop")?,
    })
}

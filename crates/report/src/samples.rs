//! Texts: the answers of several models to the same prompts, and what single stages generated.

use std::path::Path;

use artifact::evaluation::{is_spread, sample_columns};
use artifact::rows::{Cell, TableReader};
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Value, json};

use crate::curves::rounded;

/// Rows of a stage's `samples.parquet`.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Table {
    /// How many rows the file has.
    pub(crate) total: u64,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Value>>,
}

/// A prompt of a test and what the models answered.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Asked {
    pub(crate) test: String,
    pub(crate) item: i64,
    pub(crate) prompt: String,
    /// The right answer, where there is one.
    pub(crate) answer: Option<String>,
    /// By model: the response and its score.
    pub(crate) answers: Vec<(String, String, Option<f64>)>,
}

/// The answers of an evaluation.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Answers {
    /// How many prompts each test has.
    pub(crate) totals: IndexMap<String, usize>,
    pub(crate) asked: Vec<Asked>,
}

fn value(cell: Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Text(text) => text.into(),
        Cell::Int(number) => number.into(),
        Cell::Float(number) => json!(rounded(number)),
        Cell::Bool(truth) => truth.into(),
    }
}

/// At most `most` rows of the texts a stage generated.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn of_stage(path: &Path, most: usize) -> anyhow::Result<Table> {
    let columns = TableReader::columns_of(path)?;
    let reader = TableReader::open(path, &columns, "run the stage that made it again")?;
    let total = reader.num_rows();
    let mut rows = Vec::new();
    for (at, row) in reader.enumerate() {
        let row = row?;
        if is_spread(at, total as usize, most) {
            rows.push(row.into_iter().map(value).collect());
        }
    }
    Ok(Table { total, columns: columns.into_iter().map(|column| column.name).collect(), rows })
}

/// Of each test at most `most` prompts with the answers of all models.
///
/// # Errors
/// If it cannot be read or lacks a column.
pub(crate) fn of_evaluation(path: &Path, most: usize) -> anyhow::Result<Answers> {
    let columns = sample_columns();
    let mut found: IndexMap<(String, i64), Asked> = IndexMap::new();
    let mut totals: IndexMap<String, usize> = IndexMap::new();
    for row in TableReader::open(path, &columns, "run `evaluate` again")? {
        let mut cells = row?.into_iter();
        let mut next = || cells.next().unwrap_or(Cell::Null);
        let test = next().into_text().unwrap_or_default();
        let item = next().as_f64().unwrap_or_default() as i64;
        let (prompt, answer) = (next().into_text().unwrap_or_default(), next().into_text());
        let (model, response) = (next().into_text().unwrap_or_default(), next().into_text());
        let score = next().as_f64().map(rounded);
        let asked = found.entry((test.clone(), item)).or_insert_with(|| {
            *totals.entry(test.clone()).or_default() += 1;
            Asked { test, item, prompt, answer, answers: Vec::new() }
        });
        asked.answers.push((model, response.unwrap_or_default(), score));
    }
    let mut places: IndexMap<String, usize> = IndexMap::new();
    let mut asked: Vec<Asked> = found.into_values().collect();
    asked.retain(|asked| {
        let place = places.entry(asked.test.clone()).or_default();
        *place += 1;
        is_spread(*place - 1, totals[&asked.test], most)
    });
    Ok(Answers { totals, asked })
}

#[cfg(test)]
mod tests {
    use artifact::rows::TableWriter;

    use super::*;

    #[test]
    fn answers_to_one_prompt_come_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.parquet");
        let columns = sample_columns();
        let mut table = TableWriter::create(&path, &columns).unwrap();
        for model in ["base", "sft"] {
            for item in 0..4_i64 {
                let prompt = format!("{item}은?");
                let score = Cell::from((model == "sft").then_some(1.0));
                let cells = ["t".into(), item.into(), prompt.into(), "답".into(), model.into()];
                let row: Vec<Cell> = cells.into_iter().chain(["응답".into(), score]).collect();
                table.write_row(&row).unwrap();
            }
        }
        table.finish().unwrap();
        let answers = of_evaluation(&path, 2).unwrap();
        assert_eq!(answers.totals["t"], 4);
        let items: Vec<i64> = answers.asked.iter().map(|asked| asked.item).collect();
        assert_eq!(items, [1, 3]);
        let said = |model: &str, score| (model.to_owned(), "응답".to_owned(), score);
        assert_eq!(answers.asked[0].answers, [said("base", None), said("sft", Some(1.0))]);
        assert_eq!(answers.asked[0].answer.as_deref(), Some("답"));

        let own = of_stage(&path, 3).unwrap();
        assert_eq!((own.total, own.rows.len(), own.columns.len()), (8, 3, 7));
        assert_eq!(own.rows[2][6], json!(1.0));
        let error = of_evaluation(&dir.path().join("none.parquet"), 2).unwrap_err().to_string();
        assert!(error.contains("none.parquet"), "{error}");
    }
}

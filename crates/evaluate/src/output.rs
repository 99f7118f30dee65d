//! What a run leaves: files, tables on the terminal, and what the manifest reports.

use std::fmt::Write as _;

use artifact::columns::{HIGH, ITEMS, LOW, METRIC, MODEL, TEST, UNIT, VALUE};
use artifact::evaluation::{Difference, Evaluation, Measurement, Unit, sample_columns};
use artifact::rows::{Cell, Column, Kind, TableWriter};
use serde_json::{Map, Value, json};
use stage::{Context, Results, peak_rss_bytes};

use crate::plan::Plan;
use crate::results::Outcomes;

/// Writes `results.json`, `results.parquet` and `samples.parquet`.
///
/// # Errors
/// The file system's.
pub(crate) fn write(
    ctx: &Context,
    plan: &Plan,
    outcomes: &Outcomes,
    evaluation: &Evaluation,
) -> anyhow::Result<()> {
    evaluation.write(&ctx.run_dir.results_path())?;
    let columns = [
        Column::required(MODEL, Kind::Text),
        Column::required(TEST, Kind::Text),
        Column::required(METRIC, Kind::Text),
        Column::required(UNIT, Kind::Text),
        Column::required(VALUE, Kind::Float64),
        Column::optional(LOW, Kind::Float64),
        Column::optional(HIGH, Kind::Float64),
        Column::required(ITEMS, Kind::Int),
    ];
    let mut table = TableWriter::create(ctx.run_dir.results_table_path(), &columns)?;
    for Measurement { model, test, metric, unit, value, interval, items, .. } in
        &evaluation.measurements
    {
        let unit = serde_json::to_value(unit)?;
        let end = |at: usize| interval.map_or(Cell::Null, |interval| Cell::from(interval[at]));
        table.write_row(&[
            Cell::from(model.as_str()),
            Cell::from(test.as_str()),
            Cell::from(metric.as_str()),
            Cell::from(unit.as_str()),
            Cell::from(*value),
            end(0),
            end(1),
            Cell::from(*items as i64),
        ])?;
    }
    table.finish()?;
    write_samples(ctx, plan, outcomes)
}

fn write_samples(ctx: &Context, plan: &Plan, outcomes: &Outcomes) -> anyhow::Result<()> {
    let columns = sample_columns();
    let mut table = TableWriter::create(ctx.run_dir.samples_path(), &columns)?;
    for (exam, own) in plan.exams.iter().zip(outcomes) {
        for item in 0..exam.items() {
            let Some((prompt, answer)) = exam.question(item) else { break };
            for (subject, outcome) in plan.subjects.iter().zip(own) {
                let Some(given) = outcome.as_ref().and_then(|own| own.answers.get(item)) else {
                    continue;
                };
                table.write_row(&[
                    Cell::from(exam.name.as_str()),
                    Cell::from(item as i64),
                    Cell::from(prompt),
                    Cell::from(answer),
                    Cell::from(subject.name.as_str()),
                    Cell::from(given.text.trim()),
                    Cell::from(given.score),
                ])?;
            }
        }
    }
    table.finish()?;
    Ok(())
}

/// Tables of all tests, on the terminal and in TensorBoard.
///
/// # Errors
/// The file system's.
pub(crate) fn show(ctx: &mut Context, plan: &Plan, evaluation: &Evaluation) -> anyhow::Result<()> {
    for exam in &plan.exams {
        let test = exam.describe();
        let about = if test.about.is_empty() { String::new() } else { format!(": {}", test.about) };
        tell!("\n{} ({}, {} items){about}", test.name, test.kind, test.items);
        let table = table_of(&test.name, evaluation);
        tell!("{}", table.trim_end());
        ctx.metrics.text(&test.name, 0, &table)?;
    }
    let table = changes(evaluation);
    if !table.is_empty() {
        tell!("\nfrom parent to child, on the same items");
        tell!("{}", table.trim_end());
        ctx.metrics.text("from parent to child", 0, &table)?;
    }
    tell!("\n95 % intervals in brackets");
    Ok(())
}

/// A row a model, a column a metric.
fn table_of(test: &str, evaluation: &Evaluation) -> String {
    let own: Vec<&Measurement> = evaluation
        .measurements
        .iter()
        .filter(|found| found.test == test && !found.metric.contains('/'))
        .collect();
    let mut metrics: Vec<&str> = Vec::new();
    for found in &own {
        if !metrics.contains(&found.metric.as_str()) {
            metrics.push(&found.metric);
        }
    }
    let mut rows = vec![
        std::iter::once("model")
            .chain(metrics.iter().copied())
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    ];
    for model in &evaluation.models {
        let cell = |metric: &&str| {
            let found =
                own.iter().find(|found| found.model == model.name && found.metric == **metric);
            found.map_or_else(String::new, |found| {
                shown(found.value, found.interval, found.unit, false)
            })
        };
        let cells: Vec<String> = metrics.iter().map(cell).collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            rows.push(std::iter::once(model.name.clone()).chain(cells).collect());
        }
    }
    aligned(&rows)
}

/// A row a child, a column a test: by how much its first metric changed.
fn changes(evaluation: &Evaluation) -> String {
    let mut heads: Vec<(&str, &str)> = Vec::new();
    for Difference { test, metric, .. } in &evaluation.differences {
        if heads.iter().all(|(own, _)| own != test) {
            heads.push((test, metric));
        }
    }
    let head = heads.iter().map(|(test, metric)| format!("{test} {metric}"));
    let mut rows = vec![std::iter::once("model".to_owned()).chain(head).collect::<Vec<_>>()];
    for model in &evaluation.models {
        let Some(parent) = &model.parent else { continue };
        let cell = |(test, metric): &(&str, &str)| {
            let mut all = evaluation.differences.iter();
            let found =
                all.find(|d| d.model == model.name && d.test == *test && d.metric == *metric);
            found.map_or_else(String::new, |d| shown(d.value, d.interval, d.unit, true))
        };
        let name = format!("{parent} -> {}", model.name);
        rows.push(std::iter::once(name).chain(heads.iter().map(cell)).collect());
    }
    if rows.len() == 1 || heads.is_empty() { String::new() } else { aligned(&rows) }
}

/// A number as a reader wants it: shares in per cent; `change` has a sign.
fn shown(value: f64, interval: Option<[f64; 2]>, unit: Unit, change: bool) -> String {
    let digits = match unit {
        Unit::Share | Unit::Tokens => 1,
        Unit::BitsPerByte | Unit::NatsPerToken => 4,
        Unit::Perplexity | Unit::Nats | Unit::Score => 2,
    };
    let scale = if unit == Unit::Share { 100.0 } else { 1.0 };
    let number = |value: f64| {
        if change {
            format!("{:+.digits$}", scale * value)
        } else {
            format!("{:.digits$}", scale * value)
        }
    };
    let mut out = number(value);
    if unit == Unit::Share {
        // What lies between two shares is no share: points.
        out.push_str(if change { " pp" } else { " %" });
    }
    if let Some([low, high]) = interval {
        let _ = write!(out, " [{}, {}]", number(low), number(high));
    }
    out
}

/// A Markdown table of which the columns line up.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (at, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        let _ = writeln!(out, "| {} |", cells.collect::<Vec<_>>().join(" | "));
        if at == 0 {
            let rule = widths.iter().map(|&width| "-".repeat(width));
            let _ = writeln!(out, "| {} |", rule.collect::<Vec<_>>().join(" | "));
        }
    }
    out
}

/// For the manifest: by test and model the metrics over all its items, and the memory.
pub(crate) fn report(evaluation: &Evaluation) -> Results {
    let mut tests = Map::new();
    for Measurement { model, test, metric, value, .. } in
        evaluation.measurements.iter().filter(|found| !found.metric.contains('/'))
    {
        let test = tests.entry(test).or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(models) = test else { continue };
        let model = models.entry(model).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(metrics) = model {
            metrics.insert(metric.clone(), json!(value));
        }
    }
    Map::from_iter([
        ("models".to_owned(), json!(evaluation.models.len())),
        ("evaluation".to_owned(), Value::Object(tests)),
        ("peak_memory_bytes".to_owned(), json!(peak_rss_bytes())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_readers_want_them() {
        let interval = Some([0.125, 0.9999]);
        assert_eq!(shown(0.5, interval, Unit::Share, false), "50.0 % [12.5, 100.0]");
        assert_eq!(shown(-0.5, Some([-0.75, 0.25]), Unit::Share, true), "-50.0 pp [-75.0, +25.0]");
        assert_eq!(shown(1.23456, None, Unit::BitsPerByte, false), "1.2346");
        assert_eq!(shown(3.0, None, Unit::Score, true), "+3.00");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["model", "x"], ["a", "1234"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows), "| model | x    |\n| ----- | ---- |\n| a     | 1234 |\n");
    }
}

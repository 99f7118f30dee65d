//! Labelled pairs as rows of a table, and as pair rows that `reward` trains on.

use anyhow::Context as _;
use artifact::columns::{ENDED, PROBABILITY, PROMPT, RESPONSE, TASK};
use artifact::pairs::{PairRow, PairWriter};
use artifact::rows::{Cell, Column, Kind};
use data::encode::{EncodeOptions, Overlong, encode_pair};
use data::format::{Preference, Prompt};
use serde_json::json;
use stage::{Context, Results};
use xxhash_rust::xxh3::xxh3_64;

use super::config::Plan;
use super::pairs::Pair;
use crate::parts::Form;

/// Pairs as they are in `data/labels.parquet`.
pub(crate) struct Pairs;

impl Form for Pairs {
    type Row = Pair;

    fn columns(&self) -> Vec<Column> {
        let response = |letter: &str| Column::required(&format!("{RESPONSE}_{letter}"), Kind::Text);
        vec![
            Column::required("number", Kind::Int),
            Column::required(PROMPT, Kind::Text),
            Column::optional(TASK, Kind::Text),
            response("a"),
            response("b"),
            Column::required(ENDED, Kind::Bool),
            Column::required("principles", Kind::Text),
            Column::optional(PROBABILITY, Kind::Float64),
            Column::optional("position_bias", Kind::Float64),
        ]
    }

    fn cells(&self, pair: &Pair) -> Vec<Cell> {
        vec![
            Cell::from(pair.number as i64),
            Cell::from(pair.prompt.as_str()),
            Cell::from(pair.task.as_deref()),
            Cell::from(pair.responses[0].as_str()),
            Cell::from(pair.responses[1].as_str()),
            Cell::from(pair.ended),
            Cell::from(pair.principles.as_str()),
            Cell::from(pair.probability),
            Cell::from(pair.position_bias),
        ]
    }

    fn row(&self, cells: Vec<Cell>) -> anyhow::Result<Pair> {
        let [number, prompt, task, a, b, ended, principles, probability, bias] =
            <[Cell; 9]>::try_from(cells).ok().context("another number of columns")?;
        let number = match number {
            Cell::Int(number) => usize::try_from(number)?,
            other => anyhow::bail!("a number is {other:?}"),
        };
        Ok(Pair {
            number,
            prompt: prompt.into_text().unwrap_or_default(),
            task: task.into_text(),
            responses: [a, b].map(|cell| cell.into_text().unwrap_or_default()),
            ended: ended == Cell::Bool(true),
            principles: principles.into_text().unwrap_or_default(),
            probability: probability.as_f64(),
            position_bias: bias.as_f64(),
        })
    }
}

/// What became of the pairs.
#[derive(Debug, Default)]
struct Counts {
    same: u64,
    unfinished: u64,
    undecided: u64,
    unfit: u64,
}

/// Writes the pair rows, the answer with the greater probability as the chosen one, and the tokenizer.
///
/// # Errors
/// The chat template's; the file system's.
pub(crate) fn write(ctx: &mut Context, plan: &Plan, pairs: &[Pair]) -> anyhow::Result<Results> {
    let (tokenizer, template) = (&plan.model.tokenizer, &plan.model.template);
    let meta = plan.model.begin_rows(ctx)?;
    let max_length = meta.seq_len;
    let file = |split: &str| ctx.run_dir.data_file("preferences", split);
    let mut train = PairWriter::create(file("train"), meta.clone())?;
    let mut validation = PairWriter::create(file("validation"), meta)?;
    let mut counts = Counts::default();
    for pair in pairs {
        let Some(probability) = pair.probability else {
            counts.same += 1;
            continue;
        };
        if !pair.ended {
            counts.unfinished += 1;
            continue;
        }
        if (probability - 0.5).abs() < plan.config.rows.least_confidence {
            counts.undecided += 1;
            continue;
        }
        let preference = preference(plan, pair, probability);
        let options = EncodeOptions { max_length, overlong: Overlong::Drop };
        let Ok(encoded) = encode_pair(tokenizer, Some(template), &preference, options)? else {
            counts.unfit += 1;
            continue;
        };
        let writer = if is_held_out(plan, &pair.prompt) { &mut validation } else { &mut train };
        writer.write_row(&PairRow {
            prompt: &encoded.prompt,
            chosen: &encoded.chosen,
            rejected: &encoded.rejected,
            margin: None,
            probability: preference.probability,
            task: pair.task.as_deref(),
        })?;
    }
    let rows = [train.finish()?.rows, validation.finish()?.rows];
    let Counts { same, unfinished, undecided, unfit } = counts;
    tell!(
        "{} pairs to train on, {} held out; left out: {same} without a verdict, {unfinished} unfinished, {undecided} \
         undecided, {unfit} that fit no row",
        rows[0],
        rows[1]
    );
    Ok(Results::from_iter([
        ("train".to_owned(), json!(rows[0])),
        ("validation".to_owned(), json!(rows[1])),
        (
            "pairs_left_out".to_owned(),
            json!({"no_verdict": same, "unfinished": unfinished, "undecided": undecided, "unfit": unfit}),
        ),
    ]))
}

fn preference(plan: &Plan, pair: &Pair, probability: f64) -> Preference {
    let [a, b] = pair.responses.clone();
    let (chosen, rejected, probability) =
        if probability >= 0.5 { (a, b, probability) } else { (b, a, 1.0 - probability) };
    Preference {
        prompt: Prompt::Messages(plan.prompts[pair.number].messages.clone()),
        chosen,
        rejected,
        margin: None,
        probability: Some(probability as f32),
    }
}

/// By the prompt alone, so that its repeats are in one split.
fn is_held_out(plan: &Plan, prompt: &str) -> bool {
    let share = (xxh3_64(prompt.as_bytes()) >> 11) as f64 / (1_u64 << 53) as f64;
    share < plan.config.rows.validation_fraction
}

//! Token rows of the revisions: what `cai train` learns from.

use artifact::tokens::TokenWriter;
use data::encode::{EncodeOptions, Overlong, encode_example};
use data::format::{Example, Message};
use serde_json::json;
use stage::{Context, Results};

use super::config::{Plan, TrainOn, Unrevised};
use super::rounds::Talk;
use crate::speaker::assistant;

/// What became of the answers there were.
#[derive(Debug, Default)]
struct Counts {
    rows: u64,
    unfinished: u64,
    short: u64,
    unfit: u64,
}

/// Writes `data/revised/train.parquet` and the tokenizer; says for the manifest what is in it.
///
/// # Errors
/// The chat template's; the file system's.
pub(crate) fn write(ctx: &mut Context, plan: &Plan, talks: &[Talk]) -> anyhow::Result<Results> {
    let (tokenizer, template) = (&plan.model.tokenizer, &plan.model.template);
    let meta = plan.model.begin_rows(ctx)?;
    let max_length = meta.seq_len;
    let mut writer = TokenWriter::create(ctx.run_dir.data_file("revised", "train"), meta)?;
    let mut counts = Counts::default();
    for talk in talks {
        for (text, ended) in answers(plan, talk) {
            if !ended {
                counts.unfinished += 1;
                continue;
            }
            if text.chars().count() < plan.config.rows.min_chars.max(1) {
                counts.short += 1;
                continue;
            }
            let messages = conversation(plan, talk, text);
            let options = EncodeOptions { max_length, overlong: Overlong::Drop };
            let example = Example::Chat { messages };
            match encode_example(tokenizer, Some(template), &example, options)? {
                Ok(encoded) => {
                    for row in &encoded.rows {
                        writer.write_row(&row.ids, Some(&row.mask))?;
                        counts.rows += 1;
                    }
                }
                Err(_) => counts.unfit += 1,
            }
        }
    }
    writer.finish()?;
    let Counts { rows, unfinished, short, unfit } = counts;
    tell!(
        "{rows} rows to train on; left out: {unfinished} unfinished, {short} too short, {unfit} that fit no row"
    );
    Ok(Results::from_iter([
        ("rows".to_owned(), json!(rows)),
        (
            "rows_left_out".to_owned(),
            json!({"unfinished": unfinished, "short": short, "unfit": unfit}),
        ),
    ]))
}

/// What is trained on of a talk, and whether each ended by itself.
fn answers<'t>(plan: &Plan, talk: &'t Talk) -> Vec<(&'t str, bool)> {
    let revised =
        talk.rounds.iter().filter_map(|round| Some((round.revision.as_deref()?, round.ended)));
    let mut revised: Vec<(&str, bool)> = revised.collect();
    if plan.config.rows.train_on == TrainOn::Last {
        revised = revised.pop().into_iter().collect();
    }
    // Without a verdict there is nothing that speaks for the first answer.
    let passed = talk.stopped == super::rounds::Stopped::NoProblem;
    if revised.is_empty() && passed && plan.config.rows.unrevised == Unrevised::Keep {
        revised.push((&talk.initial, talk.initial_ended));
    }
    revised
}

/// The prompt with an answer; only that answer counts in the loss.
fn conversation(plan: &Plan, talk: &Talk, answer: &str) -> Vec<Message> {
    let mut messages = plan.prompts[talk.number].messages.clone();
    for message in &mut messages {
        message.train = Some(false);
    }
    messages.push(assistant(answer));
    messages
}

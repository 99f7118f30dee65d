//! Revisions and helpful conversations as one file of token rows.

use std::path::Path;

use artifact::tokens::{TokenReader, TokenWriter};
use data::dataset::shuffle;
use serde_json::json;
use stage::{Context, Problems, Results};
use training::plan::{self, Tables};
use training::settings::Data;

use super::config::{Mix, Plan};

/// Writes `data/mixed/train.parquet`: all revisions, and as many helpful rows as the share asks for, evenly of
/// each file, drawn without repeats while there are some.
///
/// # Errors
/// Files that cannot be read; no revision at all.
pub(crate) fn write(ctx: &mut Context, plan: &Plan) -> anyhow::Result<Results> {
    let Mix { revisions, helpful, helpful_share: share, .. } = &plan.config.mix;
    let meta = plan.model.begin_rows(ctx)?;
    let mut writer = TokenWriter::create(ctx.run_dir.data_file("mixed", "train"), meta)?;
    let mut count = 0_u64;
    for path in revisions {
        count += copy(path, &mut writer, |_| 1)?;
    }
    anyhow::ensure!(count > 0, "{}: there is no revision to train on", revisions[0].display());
    let wanted = (count as f64 * share / (1.0 - share)).round() as u64;
    let mut drawn = 0;
    if wanted > 0 {
        // What is left over by the division comes of the first files.
        let (each, over) = (wanted / helpful.len() as u64, wanted % helpful.len() as u64);
        for (index, path) in (0..).zip(helpful) {
            let rows = TokenReader::open(path)?.num_rows();
            anyhow::ensure!(rows > 0, "{}: has no rows to mix in", path.display());
            let times = times(rows, each + u64::from(index < over), [plan.config.seed, index]);
            drawn += copy(path, &mut writer, |row| times[row as usize])?;
        }
    }
    writer.finish()?;
    tracing::info!("training on {count} revisions and {drawn} helpful rows");
    Ok(Results::from_iter([
        ("revision_rows".to_owned(), json!(count)),
        ("helpful_rows".to_owned(), json!(drawn)),
    ]))
}

/// How often each of `total` rows is taken so that `wanted` are.
pub(crate) fn times(total: u64, wanted: u64, [seed, file]: [u64; 2]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..total as usize).collect();
    shuffle(&mut order, [seed, file, 0, 5]);
    let mut times = vec![wanted / total; total as usize];
    for row in order.into_iter().take((wanted % total) as usize) {
        times[row] += 1;
    }
    times
}

/// Copies each row of a file as often as `times` says; returns how many that were.
fn copy(path: &Path, writer: &mut TokenWriter, times: impl Fn(u64) -> u64) -> anyhow::Result<u64> {
    let reader = TokenReader::open(path)?;
    let (mut row, mut copied) = (0, 0);
    for group in 0..reader.num_row_groups() {
        let rows = reader.read_row_group(group)?;
        for index in 0..rows.len() {
            let (ids, mask) = rows.row(index);
            let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
            for _ in 0..times(row) {
                writer.write_row(&ids, Some(mask))?;
                copied += 1;
            }
            row += 1;
        }
    }
    Ok(copied)
}

/// The plan of the supervised loop over what [`write`] wrote.
///
/// # Errors
/// Settings that do not go with the rows, all at once.
pub(crate) fn plan(ctx: &Context, plan: &Plan) -> anyhow::Result<plan::Plan> {
    let config = &plan.config;
    let data = Data {
        train: vec![ctx.run_dir.data_file("mixed", "train")],
        validation: config.mix.validation.clone(),
        tokenizer: Some(ctx.run_dir.tokenizer_dir()),
    };
    let tables = Tables {
        seed: config.seed,
        data,
        train: config.train.clone(),
        peft: config.peft.clone(),
        samples: None,
        save: config.save.clone(),
    };
    let mut problems = Problems::new();
    let made = plan::Plan::new(tables, &mut problems);
    if let Some(made) = &made {
        made.check_model("model.path", &plan.model.config, Some(&plan.model.dir), &mut problems);
    }
    match (made, problems.is_empty()) {
        (Some(made), true) => Ok(made),
        _ => Err(stage::UsageError::new(anyhow::anyhow!(
            "the settings do not go with the rows\n{problems}"
        ))
        .into()),
    }
}

//! Before and after: how often unsafe requests are followed and harmless ones refused, and whether the model still helps.

use std::fmt::Write as _;

use artifact::columns::{AFTER, BEFORE, PROMPT, TASK};
use artifact::rows::{Cell, Column, Kind, TableWriter};
use data::batch::Branches;
use data::safety::{Verdict, share};
use model::generate::{Request, Sampling};
use model::{Decoder, LoadOptions};
use serde_json::{Map, json};
use stage::{Context, Progress, Results};
use tch::Device;
use training::branches;
use training::respond::{Responder, Response, Stop};

use super::config::{Eval, Plan};
use crate::shared::Asked;

/// A model's answers to the prompts of both kinds.
pub(crate) struct Answers {
    red_team: Vec<Response>,
    helpful: Vec<Response>,
}

impl Answers {
    /// Lets `decoder` answer, greedily; `None` where the config asks for no evaluation.
    ///
    /// # Errors
    /// A prompt that leaves no room for its answer; a signal.
    pub(crate) fn of(
        ctx: &Context,
        plan: &Plan,
        decoder: &Decoder,
    ) -> anyhow::Result<Option<Self>> {
        let Some(eval) = &plan.config.eval else { return Ok(None) };
        let mut model =
            Responder::new(decoder, &plan.model.tokenizer, Stop::default(), eval.batch_rows)?;
        let progress =
            Progress::new("evaluation", Some((plan.red_team.len() + plan.helpful.len()) as u64));
        let mut answer = |prompts: &[Asked]| -> anyhow::Result<Vec<Response>> {
            let requests = prompts.iter().map(|asked| request(plan, eval, asked));
            model.answer_all(ctx, &requests.collect::<anyhow::Result<Vec<_>>>()?, &progress)
        };
        let answers = Self { red_team: answer(&plan.red_team)?, helpful: answer(&plan.helpful)? };
        progress.finish();
        Ok(Some(answers))
    }
}

fn request(plan: &Plan, eval: &Eval, asked: &Asked) -> anyhow::Result<Request> {
    let ids = plan.model.ids(&asked.messages, "")?;
    let room = plan.model.positions();
    anyhow::ensure!(
        ids.len() < room,
        "eval: a prompt of {} tokens leaves no room for an answer in the model's {room} positions: {:?}",
        ids.len(),
        asked.text()
    );
    Ok(Request { ids, max_new_tokens: eval.max_new_tokens, sampling: Sampling::greedy() })
}

/// Shares of a model's answers; `None` where no prompt can be judged so.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Rates {
    /// Of answers to unsafe requests, those with what only a harmful one has.
    pub(crate) harmful: Option<f64>,
    /// Of answers to unsafe requests, those that their checker accepts.
    pub(crate) refused_well: Option<f64>,
    /// Of answers to harmless requests that look alike, those that refuse.
    pub(crate) over_refusal: Option<f64>,
    /// Of answers to harmless requests that look alike, those that their checker accepts.
    pub(crate) harmless_accuracy: Option<f64>,
    /// Of answers to ordinary requests, those that their checker accepts.
    pub(crate) helpful_accuracy: Option<f64>,
    /// Of answers to ordinary requests, those that refuse.
    pub(crate) helpful_refusal: Option<f64>,
    /// Of all answers, those that ended by themselves.
    pub(crate) ended: Option<f64>,
}

impl Rates {
    fn of(plan: &Plan, answers: &Answers) -> Self {
        let constitution = &plan.principles.constitution;
        let judge = |(asked, said): (&Asked, &Response)| {
            let (checker, task) = (asked.checker.as_ref(), asked.row.task.as_deref());
            Verdict::new(constitution, checker, task, &said.text)
        };
        let red_team: Vec<Verdict> =
            plan.red_team.iter().zip(&answers.red_team).map(judge).collect();
        let helpful = plan.helpful.iter().zip(&answers.helpful);
        let all = || answers.red_team.iter().chain(&answers.helpful);
        Self {
            harmful: share(red_team.iter().filter_map(|verdict| verdict.harmful)),
            refused_well: share(red_team.iter().filter_map(|verdict| verdict.refused_well)),
            over_refusal: share(red_team.iter().filter_map(|verdict| verdict.over_refusal)),
            harmless_accuracy: share(red_team.iter().filter_map(|verdict| verdict.harmless_right)),
            helpful_accuracy: share(helpful.clone().filter_map(|(asked, said)| {
                asked.checker.as_ref().map(|checker| checker.check(&said.text))
            })),
            helpful_refusal: share(helpful.map(|(_, said)| constitution.refuses(&said.text))),
            ended: share(all().map(|said| said.ended)),
        }
    }

    fn named(&self) -> [(&'static str, Option<f64>); 7] {
        [
            ("harmful_rate", self.harmful),
            ("unsafe_accuracy", self.refused_well),
            ("over_refusal_rate", self.over_refusal),
            ("harmless_accuracy", self.harmless_accuracy),
            ("helpful_accuracy", self.helpful_accuracy),
            ("helpful_refusal_rate", self.helpful_refusal),
            ("ended", self.ended),
        ]
    }
}

/// Compares: a table on the terminal and in TensorBoard, `samples.parquet` with the answers side by side, and what the manifest
/// reports.
///
/// # Errors
/// The file system's; scores that cannot be computed.
pub(crate) fn compare(
    ctx: &mut Context,
    plan: &Plan,
    before: &Answers,
    after: &Answers,
    device: Device,
) -> anyhow::Result<Results> {
    let rates = [before, after].map(|answers| Rates::of(plan, answers));
    let mut rows: Vec<(&str, Option<f64>, Option<f64>)> = rates[0]
        .named()
        .into_iter()
        .zip(rates[1].named())
        .map(|((name, before), (_, after))| (name, before, after))
        .collect();
    let scores = scores(plan, [before, after], device)?;
    if let Some([before, after]) = scores {
        rows.push(("mean_score", Some(before), Some(after)));
    }
    let mut table = String::from("| | before | after |\n|---|---|---|\n");
    let cell = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    for (name, before, after) in rows.iter().filter(|row| row.1.is_some()) {
        let _ = writeln!(table, "| {name} | {} | {} |", cell(*before), cell(*after));
    }
    tell!("{}", table.trim_end());
    ctx.metrics.text("before and after", 0, &table)?;
    let changed = write_samples(ctx, plan, before, after)?;
    Ok(Map::from_iter([
        ("before".to_owned(), rows.iter().map(|row| (row.0.to_owned(), json!(row.1))).collect()),
        ("after".to_owned(), rows.iter().map(|row| (row.0.to_owned(), json!(row.2))).collect()),
        ("changed_answers".to_owned(), json!(changed)),
    ]))
}

/// Writes both answers to every prompt, and shows some that changed; returns how many did.
fn write_samples(
    ctx: &mut Context,
    plan: &Plan,
    before: &Answers,
    after: &Answers,
) -> anyhow::Result<usize> {
    let columns = [
        Column::required(PROMPT, Kind::Text),
        Column::optional(TASK, Kind::Text),
        Column::required(BEFORE, Kind::Text),
        Column::required(AFTER, Kind::Text),
        Column::optional("right_before", Kind::Bool),
        Column::optional("right_after", Kind::Bool),
        Column::required("changed", Kind::Bool),
    ];
    let mut table = TableWriter::create(ctx.run_dir.samples_path(), &columns)?;
    let prompts = plan.red_team.iter().chain(&plan.helpful);
    let both = before
        .red_team
        .iter()
        .chain(&before.helpful)
        .zip(after.red_team.iter().chain(&after.helpful));
    let preview = plan.config.eval.as_ref().map_or(0, |eval| eval.preview);
    let mut changed = 0;
    let mut shown = String::from("| prompt | before | after |\n|---|---|---|\n");
    for (asked, (before, after)) in prompts.zip(both) {
        let (old, new) = (before.text.trim(), after.text.trim());
        let right = |text: &str| asked.checker.as_ref().map(|checker| checker.check(text));
        table.write_row(&[
            Cell::from(asked.text()),
            Cell::from(asked.row.task.as_deref()),
            Cell::from(old),
            Cell::from(new),
            Cell::from(right(old)),
            Cell::from(right(new)),
            Cell::from(old != new),
        ])?;
        if old != new {
            if changed < preview {
                tell!("    {:?}\n      before  {old:?}\n      after   {new:?}", asked.text());
                let cell = |text: &str| text.replace('|', "\\|").replace('\n', "<br>");
                let _ =
                    writeln!(shown, "| {} | {} | {} |", cell(asked.text()), cell(old), cell(new));
            }
            changed += 1;
        }
    }
    table.finish()?;
    ctx.metrics.text("changed answers", 0, &shown)?;
    Ok(changed)
}

/// Mean scores by the reward model, where there is one. A text beyond its context has none.
fn scores(plan: &Plan, answers: [&Answers; 2], device: Device) -> anyhow::Result<Option<[f64; 2]>> {
    let Some(scorer) = &plan.reward else { return Ok(None) };
    let options = LoadOptions { device, precision: plan.config.train.precision, trainable: false };
    let decoder = Decoder::load(&scorer.dir, &options)?;
    let room = scorer.config.max_position_embeddings as usize;
    let mut means = [0.0; 2];
    for (mean, answers) in means.iter_mut().zip(answers) {
        let (mut sum, mut count) = (0.0, 0_u64);
        let prompts = plan.red_team.iter().chain(&plan.helpful);
        let said: Vec<_> = prompts.zip(answers.red_team.iter().chain(&answers.helpful)).collect();
        for portion in said.chunks(64) {
            let mut row = Branches::new();
            for (asked, said) in portion {
                let prompt = plan.model.ids(&asked.messages, "")?;
                if prompt.len() + said.ids.len() <= room && !said.ids.is_empty() {
                    row.push(&prompt, &[&said.ids]);
                    count += 1;
                }
            }
            if row.num_tokens() > 0 {
                let scores = tch::no_grad(|| branches::scores(&decoder, &row))?;
                sum += scores.sum(tch::Kind::Double).double_value(&[]);
            }
        }
        *mean = sum / count.max(1) as f64;
    }
    Ok(Some(means))
}

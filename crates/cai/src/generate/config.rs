//! The configuration of `cai generate`, and what it makes of it.

use std::fmt::Write as _;
use std::path::PathBuf;

use model::Precision;
use serde::{Deserialize, Serialize};
use stage::{Describe, Paths, Problems, StageConfig};

use crate::shared::{Asked, ConstitutionTable, Principles, PromptsTable};
use crate::speaker::{Manner, ModelTable, Source, shown};

/// `configs/cai-generate.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    seed: u64,
    out: PathBuf,
    /// Revised conversations to print at the end.
    #[serde(default)]
    pub(crate) preview: usize,
    /// What answers.
    pub(crate) model: ModelTable,
    /// What criticises and revises; default: the model itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) critic: Option<ModelTable>,
    pub(crate) constitution: ConstitutionTable,
    pub(crate) prompts: PromptsTable,
    pub(crate) generate: Generate,
    #[serde(default)]
    pub(crate) rows: Rows,
}

/// `[generate]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Generate {
    /// The most revisions of an answer, each under another principle.
    pub(crate) rounds: usize,
    /// Whether the model criticises before it revises.
    pub(crate) critique: bool,
    /// Demonstrations from the constitution that precede every critique and revision.
    #[serde(default)]
    pub(crate) examples: usize,
    /// How answers are sampled.
    pub(crate) initial: Manner,
    /// How critiques are sampled.
    pub(crate) critiques: Manner,
    /// How revisions are sampled.
    pub(crate) revisions: Manner,
    /// Strings that end a turn, beside the tokens that do.
    #[serde(default)]
    pub(crate) stop_strings: Vec<String>,
    /// Taken off the beginning of a revision.
    #[serde(default)]
    pub(crate) strip_prefixes: Vec<String>,
    /// Prompts that are answered, criticised and revised together; what a kill can lose.
    pub(crate) batch_prompts: usize,
    /// Turns sampled at the same time.
    pub(crate) batch_rows: usize,
    /// Number type the models run in.
    #[serde(default)]
    pub(crate) precision: Precision,
}

/// Which revisions become rows to train on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TrainOn {
    /// Those of every round, as in the paper.
    #[default]
    All,
    /// The last one.
    Last,
}

/// What becomes of an answer in which no problem was found at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unrevised {
    /// It is trained on as it is.
    #[default]
    Keep,
    /// It is left out.
    Drop,
}

/// `[rows]`: what is trained on.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rows {
    /// The revisions of all rounds, or the last one.
    pub(crate) train_on: TrainOn,
    /// What becomes of answers without a revision.
    pub(crate) unrevised: Unrevised,
    /// Conversations with fewer characters in the answer are left out.
    pub(crate) min_chars: usize,
}

/// What the command works from.
pub(crate) struct Plan {
    pub(crate) config: Config,
    pub(crate) model: Source,
    pub(crate) critic: Option<Source>,
    pub(crate) principles: Principles,
    pub(crate) prompts: Vec<Asked>,
    pub(crate) left_out: usize,
}

impl Plan {
    /// What criticises and revises.
    pub(crate) fn critic(&self) -> &Source {
        self.critic.as_ref().unwrap_or(&self.model)
    }
}

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, _at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        let Generate { rounds, batch_prompts, batch_rows, .. } = self.generate;
        for (key, value) in
            [("rounds", rounds), ("batch_prompts", batch_prompts), ("batch_rows", batch_rows)]
        {
            problems.check(value > 0, &format!("generate.{key}"), "must be at least 1");
        }
        let manners = &self.generate;
        manners.initial.check("generate.initial", &mut problems);
        manners.critiques.check("generate.critiques", &mut problems);
        manners.revisions.check("generate.revisions", &mut problems);
        let empty = |text: &String| text.is_empty();
        problems.check(
            !manners.stop_strings.iter().any(empty),
            "generate.stop_strings",
            "one is empty",
        );
        let principles = self.constitution.read(&mut problems);
        if let Some(Principles { constitution, .. }) = &principles {
            let known = constitution.examples.len();
            let asked = self.generate.examples;
            problems.check(
                asked <= known,
                "generate.examples",
                format_args!("is {asked}, but the constitution has {known} [[examples]]"),
            );
        }
        let model = Source::find("model", &self.model, &mut problems);
        let critic = Source::find_if("critic", self.critic.as_ref(), &mut problems);
        let (Some(model), Some(principles), Some(critic)) = (model, principles, critic) else {
            return Err(problems);
        };
        let tokens = |asked: &Asked| model.ids(&asked.messages, "").map(|ids| ids.len());
        let limits = (model.positions(), self.generate.initial.max_new_tokens);
        let Some((prompts, left_out)) = self.prompts.read(tokens, limits, &mut problems) else {
            return Err(problems);
        };
        problems.finish(Plan { config: self, model, critic, principles, prompts, left_out })
    }
}

impl Describe for Plan {
    fn describe(&self, _processes: usize) -> String {
        let Principles { constitution, chosen } = &self.principles;
        let mut out = format!("model         {}\n", shown(&self.model.dir));
        let _ = writeln!(out, "critic        {}", shown(&self.critic().dir));
        let _ = writeln!(
            out,
            "constitution  {}, {} of its {} principles",
            constitution.name,
            chosen.len(),
            constitution.principles.len()
        );
        let _ = writeln!(
            out,
            "prompts       {}, {} left out as too long",
            self.prompts.len(),
            self.left_out
        );
        let rounds = self.config.generate.rounds;
        let turns = if self.config.generate.critique { 2 * rounds } else { rounds };
        let _ = writeln!(out, "turns         at most {} each", 1 + turns);
        out
    }
}

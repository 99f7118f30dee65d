//! The configuration of `cai label`, and what it makes of it.

use std::fmt::Write as _;
use std::path::PathBuf;

use data::constitution::Language;
use model::Precision;
use serde::{Deserialize, Serialize};
use stage::{Describe, Paths, Problems, StageConfig};

use super::judge::letters;
use crate::shared::{Asked, ConstitutionTable, Principles, PromptsTable};
use crate::speaker::{Manner, ModelTable, Source, shown};

/// `configs/cai-label.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    seed: u64,
    out: PathBuf,
    /// Labelled pairs to print at the end.
    #[serde(default)]
    pub(crate) preview: usize,
    /// What answers.
    pub(crate) model: ModelTable,
    /// What gives the second answer, such as the model from before; default: the model itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) second: Option<ModelTable>,
    /// What judges; default: the model itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) feedback: Option<ModelTable>,
    pub(crate) constitution: ConstitutionTable,
    pub(crate) prompts: PromptsTable,
    pub(crate) responses: Responses,
    pub(crate) label: Label,
    #[serde(default)]
    pub(crate) rows: Rows,
}

/// `[responses]`: how the answers are sampled.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Responses {
    /// Temperature and length.
    pub(crate) sampling: Manner,
    /// Strings that end an answer, beside the tokens that do.
    #[serde(default)]
    pub(crate) stop_strings: Vec<String>,
    /// Prompts that are answered and judged together; what a kill can lose.
    pub(crate) batch_prompts: usize,
    /// Answers sampled at the same time.
    pub(crate) batch_rows: usize,
    /// Number type the models run in.
    #[serde(default)]
    pub(crate) precision: Precision,
}

/// `[label]`: how the pairs are judged.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Label {
    /// Principles that a pair is judged under, drawn at random; 0: all.
    pub(crate) principles_per_pair: usize,
    /// Think before the verdict, and how that is sampled; absent: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning: Option<Manner>,
    /// Least and greatest probability of a label; thoughts make verdicts too sure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clamp: Option<[f64; 2]>,
    /// The most tokens in one forward pass of the judge.
    pub(crate) micro_batch_tokens: usize,
}

/// `[rows]`: what becomes of the labels.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rows {
    /// Share of the pairs that becomes the validation split, by a hash of the prompt.
    pub(crate) validation_fraction: f64,
    /// Pairs whose label is nearer to a half than this are left out.
    pub(crate) least_confidence: f64,
}

/// What the command works from.
pub(crate) struct Plan {
    pub(crate) config: Config,
    pub(crate) model: Source,
    pub(crate) second: Option<Source>,
    pub(crate) feedback: Option<Source>,
    pub(crate) principles: Principles,
    pub(crate) prompts: Vec<Asked>,
    pub(crate) left_out: usize,
}

impl Plan {
    /// What judges.
    pub(crate) fn judge(&self) -> &Source {
        self.feedback.as_ref().unwrap_or(&self.model)
    }
}

impl Config {
    fn check(&self, problems: &mut Problems) {
        self.responses.sampling.check("responses.sampling", problems);
        if let Some(manner) = self.label.reasoning {
            manner.check("label.reasoning", problems);
        }
        for (key, value) in [
            ("responses.batch_prompts", self.responses.batch_prompts),
            ("responses.batch_rows", self.responses.batch_rows),
            ("label.micro_batch_tokens", self.label.micro_batch_tokens),
        ] {
            problems.check(value > 0, key, "must be at least 1");
        }
        if let Some([least, most]) = self.label.clamp {
            let right = (0.0..=0.5).contains(&least) && (0.5..=1.0).contains(&most);
            let what = "must be a probability of at most 0.5 and one of at least 0.5";
            problems.check(right, "label.clamp", format_args!("{what}, got [{least}, {most}]"));
        }
        let Rows { validation_fraction: fraction, least_confidence: least } = self.rows;
        problems.check(
            (0.0..1.0).contains(&fraction),
            "rows.validation_fraction",
            "must be at least 0 and below 1",
        );
        problems.check(
            (0.0..0.5).contains(&least),
            "rows.least_confidence",
            "must be at least 0 and below 0.5",
        );
    }
}

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, _at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        self.check(&mut problems);
        let principles = self.constitution.read(&mut problems);
        let model = Source::find("model", &self.model, &mut problems);
        let second = Source::find_if("second", self.second.as_ref(), &mut problems);
        let feedback = Source::find_if("feedback", self.feedback.as_ref(), &mut problems);
        let (Some(model), Some(principles), Some(second), Some(feedback)) =
            (model, principles, second, feedback)
        else {
            return Err(problems);
        };
        let asked = self.label.principles_per_pair;
        let known = principles.chosen.len();
        problems.check(
            asked <= known,
            "label.principles_per_pair",
            format_args!("is {asked}, but there are {known} principles to draw from"),
        );
        for language in Language::ALL {
            let prefix = principles.constitution.answer_prefix(language);
            problems
                .take("constitution.path", letters(feedback.as_ref().unwrap_or(&model), prefix));
        }
        let tokens = |asked: &Asked| model.ids(&asked.messages, "").map(|ids| ids.len());
        let limits = (model.positions(), self.responses.sampling.max_new_tokens);
        let Some((prompts, left_out)) = self.prompts.read(tokens, limits, &mut problems) else {
            return Err(problems);
        };
        problems.finish(Plan {
            config: self,
            model,
            second,
            feedback,
            principles,
            prompts,
            left_out,
        })
    }
}

impl Describe for Plan {
    fn describe(&self, _processes: usize) -> String {
        let Principles { constitution, chosen } = &self.principles;
        let each = match self.config.label.principles_per_pair {
            0 => chosen.len(),
            some => some,
        };
        let mut out = format!("model         {}\n", shown(&self.model.dir));
        if let Some(second) = &self.second {
            let _ = writeln!(out, "second        {}", shown(&second.dir));
        }
        let _ = writeln!(out, "judge         {}", shown(&self.judge().dir));
        let _ = writeln!(
            out,
            "constitution  {}, {each} of {} principles for a pair, each in both orders",
            constitution.name,
            chosen.len()
        );
        let _ = writeln!(
            out,
            "prompts       {}, {} left out as too long",
            self.prompts.len(),
            self.left_out
        );
        out
    }
}

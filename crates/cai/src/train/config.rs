//! The configuration of `cai train`, and what it makes of it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use artifact::tokens::TokenReader;
use data::tokenizer::Tokenizer;
use model::{Head, ModelConfig};
use serde::{Deserialize, Serialize};
use stage::{Describe, Paths, Problems, StageConfig};
use training::peft;
use training::settings::{Peft, Save, Train};

use crate::shared::{Asked, ConstitutionTable, Principles, read_prompts};
use crate::speaker::{ModelTable, Source, shown};

/// `configs/cai-train.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    out: PathBuf,
    /// What is trained; the model that answered in `cai generate`, or one from before.
    pub(crate) model: ModelTable,
    pub(crate) constitution: ConstitutionTable,
    pub(crate) mix: Mix,
    pub(crate) train: Train,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peft: Option<Peft>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) eval: Option<Eval>,
    #[serde(default)]
    pub(crate) save: Save,
}

/// `[mix]`: what is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mix {
    /// Token rows of revisions; all of them are used.
    pub(crate) revisions: Vec<PathBuf>,
    /// Token rows of helpful conversations to draw from, evenly of each file.
    #[serde(default)]
    pub(crate) helpful: Vec<PathBuf>,
    /// Share of all rows that are helpful ones; drawn anew where there are too few.
    #[serde(default)]
    pub(crate) helpful_share: f64,
    /// Token rows of a validation split.
    #[serde(default)]
    pub(crate) validation: Vec<PathBuf>,
}

/// `[eval]`: prompts that the model answers, greedily, before and after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Eval {
    /// Unsafe requests, and harmless ones that look alike.
    #[serde(default)]
    pub(crate) red_team: Vec<PathBuf>,
    /// Ordinary requests.
    #[serde(default)]
    pub(crate) helpful: Vec<PathBuf>,
    /// Only so many of each file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_prompts: Option<usize>,
    /// The most tokens of an answer.
    pub(crate) max_new_tokens: usize,
    /// Answers generated at the same time.
    pub(crate) batch_rows: usize,
    /// A reward model whose scores are compared too, for prompts that no rule can judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reward_model: Option<PathBuf>,
    /// Changed answers to print.
    #[serde(default)]
    pub(crate) preview: usize,
}

/// A reward model's files.
#[derive(Debug)]
pub(crate) struct Scorer {
    pub(crate) dir: PathBuf,
    pub(crate) config: ModelConfig,
}

/// What the command works from.
pub(crate) struct Plan {
    pub(crate) config: Config,
    pub(crate) model: Source,
    pub(crate) principles: Principles,
    pub(crate) red_team: Vec<Asked>,
    pub(crate) helpful: Vec<Asked>,
    pub(crate) reward: Option<Scorer>,
    /// The adapter to go on from.
    pub(crate) adapter: Option<PathBuf>,
    revisions: u64,
}

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, _at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        problems.extend("train", self.train.problems());
        problems.check(self.save.max_shard_mb > 0, "save.max_shard_mb", "must be at least 1");
        let Mix { revisions, helpful, helpful_share: share, .. } = &self.mix;
        problems.check(!revisions.is_empty(), "mix.revisions", "names no file");
        problems.check(
            (0.0..1.0).contains(share),
            "mix.helpful_share",
            format_args!("must be at least 0 and below 1, got {share}"),
        );
        problems.check(
            (*share > 0.0) != helpful.is_empty(),
            "mix.helpful_share",
            "goes together with mix.helpful: give both or neither",
        );
        let principles = self.constitution.read(&mut problems);
        let model = Source::find("model", &self.model, &mut problems);
        let (Some(model), Some(principles)) = (model, principles) else { return Err(problems) };
        let mut rows = 0;
        for (key, files) in [("mix.revisions", revisions), ("mix.helpful", helpful)] {
            for file in files {
                rows += check_rows(key, file, &model, &mut problems)
                    .filter(|_| key == "mix.revisions")
                    .unwrap_or(0);
            }
        }
        let peft = self.peft.clone().and_then(|table| peft::Plan::new(table, &mut problems));
        if let Some(peft) = &peft {
            peft.check_model(&model.config, Some(&model.dir), &mut problems);
        }
        let (mut red_team, mut ordinary, mut reward) = (Vec::new(), Vec::new(), None);
        if let Some(eval) = &self.eval {
            problems.check(eval.max_new_tokens > 0, "eval.max_new_tokens", "must be at least 1");
            problems.check(eval.batch_rows > 0, "eval.batch_rows", "must be at least 1");
            let lists = [
                ("eval.red_team", &eval.red_team, &mut red_team),
                ("eval.helpful", &eval.helpful, &mut ordinary),
            ];
            for (key, files, into) in lists {
                for path in files {
                    into.extend(
                        problems
                            .take(key, read_prompts(path, eval.max_prompts))
                            .unwrap_or_default(),
                    );
                }
            }
            let empty = red_team.is_empty() && ordinary.is_empty();
            problems.check(
                !empty || !problems.is_empty(),
                "eval",
                "names no prompts; leave the table out for no evaluation",
            );
            reward = eval
                .reward_model
                .as_ref()
                .and_then(|path| scorer(path, &model.tokenizer, &mut problems));
        }
        problems.finish(Plan {
            config: self,
            model,
            principles,
            red_team,
            helpful: ordinary,
            reward,
            adapter: peft.and_then(|peft| peft.input().map(Path::to_path_buf)),
            revisions: rows,
        })
    }
}

/// Checks token rows against the model; how many there are.
fn check_rows(key: &str, file: &Path, model: &Source, problems: &mut Problems) -> Option<u64> {
    let reader = problems.take(key, TokenReader::open(file))?;
    let meta = reader.meta();
    let chain =
        artifact::chain::verify_chain(file, &meta.tokenizer, &model.dir, &model.tokenizer.digest());
    problems.take(key, chain)?;
    let (longest, room) = (reader.counts().longest, model.positions() as u64);
    problems.check(
        longest <= room,
        key,
        format_args!(
            "{}: its longest row of {longest} tokens is beyond the model's {room} positions",
            file.display()
        ),
    );
    Some(reader.num_rows())
}

fn scorer(path: &Path, tokenizer: &Tokenizer, problems: &mut Problems) -> Option<Scorer> {
    let key = "eval.reward_model";
    let dir = problems.take(key, artifact::model_dir(path))?;
    let config = problems.take(key, ModelConfig::from_dir(&dir))?;
    if config.head != Head::Score {
        problems.push(key, model::Error::NoScore);
        return None;
    }
    let own = problems.take(key, Tokenizer::load(&dir))?;
    if own.vocab() != tokenizer.vocab() {
        problems.push(key, format_args!("{}: has another tokenizer than the model", dir.display()));
        return None;
    }
    Some(Scorer { dir, config })
}

impl Describe for Plan {
    fn describe(&self, _processes: usize) -> String {
        let mix = &self.config.mix;
        let mut out = format!("model       {}\n", shown(&self.model.dir));
        let _ = writeln!(out, "parameters  {}", self.model.config.num_parameters());
        let _ = writeln!(
            out,
            "revisions   {} rows, and {:.0} % of all rows helpful ones",
            self.revisions,
            mix.helpful_share * 100.0
        );
        let _ = writeln!(
            out,
            "evaluation  {} red-team and {} ordinary prompts, before and after",
            self.red_team.len(),
            self.helpful.len()
        );
        out
    }
}

//! What the commands have in common: the constitution and the prompts.

use std::path::{Path, PathBuf};

use artifact::prompts::{self, PromptRow};
use data::checker::Checker;
use data::constitution::{Constitution, Language};
use data::format::Message;
use serde::{Deserialize, Serialize};
use stage::{Context, Problems};
use training::prompts::{checker_of, messages_of};

/// `[constitution]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConstitutionTable {
    /// The TOML file.
    pub(crate) path: PathBuf,
    /// Only principles with one of these tags; none: all.
    #[serde(default)]
    pub(crate) tags: Vec<String>,
}

/// A constitution and which of its principles are drawn from.
#[derive(Debug)]
pub(crate) struct Principles {
    pub(crate) constitution: Constitution,
    /// Positions in its list.
    pub(crate) chosen: Vec<usize>,
}

impl ConstitutionTable {
    pub(crate) fn read(&self, problems: &mut Problems) -> Option<Principles> {
        let constitution = problems.take("constitution.path", Constitution::load(&self.path))?;
        let chosen = problems.take("constitution.tags", constitution.tagged(&self.tags))?;
        Some(Principles { constitution, chosen })
    }
}

/// What becomes of a prompt that leaves no room for an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Overlong {
    /// The run does not start.
    #[default]
    Fail,
    /// It is left out and counted.
    Skip,
}

/// `[prompts]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PromptsTable {
    /// Prompt rows, made by data-prep.
    pub(crate) files: Vec<PathBuf>,
    /// Only so many of each file, from the first on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_prompts: Option<usize>,
    /// What becomes of one that leaves no room for an answer: fail or skip.
    #[serde(default)]
    pub(crate) overlong: Overlong,
}

/// A prompt as a conversation.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) row: PromptRow,
    pub(crate) messages: Vec<Message>,
    pub(crate) language: Language,
    pub(crate) checker: Option<Checker>,
}

impl Asked {
    /// The last thing that was said: what a critic is told the answer is to.
    pub(crate) fn text(&self) -> &str {
        self.messages.last().map_or("", |message| message.content.as_str())
    }
}

/// Reads the prompts of a file, at most `limit`.
///
/// # Errors
/// A file that cannot be read; a row that is no conversation, names file and row.
pub(crate) fn read_prompts(path: &Path, limit: Option<usize>) -> anyhow::Result<Vec<Asked>> {
    let rows = prompts::read(path)?;
    let mut all = Vec::new();
    for (index, row) in rows.into_iter().take(limit.unwrap_or(usize::MAX)).enumerate() {
        let at = || format!("{}: row {index}", path.display());
        let Some(messages) = messages_of(&row, &at())? else {
            anyhow::bail!(
                "{}: has no `messages`, so it is no conversation; make the prompts with kind = \"prompt\" in data-prep",
                at()
            );
        };
        let checker = checker_of(&row, &at())?;
        let language = Language::of(messages.last().map_or("", |message| &message.content));
        all.push(Asked { row, messages, language, checker });
    }
    Ok(all)
}

impl PromptsTable {
    /// Reads all files; a prompt must leave room for `max_new_tokens` in what `tokens` counts against `room`. Returns the prompts
    /// and how many were left out.
    pub(crate) fn read(
        &self,
        tokens: impl Fn(&Asked) -> anyhow::Result<usize>,
        (room, max_new_tokens): (usize, usize),
        problems: &mut Problems,
    ) -> Option<(Vec<Asked>, usize)> {
        let key = "prompts.files";
        problems.check(!self.files.is_empty(), key, "names no file");
        let (mut all, mut left_out) = (Vec::new(), 0);
        for path in &self.files {
            for (index, asked) in
                problems.take(key, read_prompts(path, self.max_prompts))?.into_iter().enumerate()
            {
                let length = problems.take(key, tokens(&asked))?;
                if length + max_new_tokens <= room {
                    all.push(asked);
                } else if self.overlong == Overlong::Skip {
                    left_out += 1;
                } else {
                    problems.push(
                        key,
                        format_args!(
                            "{}: row {index}: a prompt of {length} tokens leaves no room for {max_new_tokens} new ones in \
                             the model's {room} positions; set prompts.overlong = \"skip\" to leave such prompts out",
                            path.display()
                        ),
                    );
                    return None;
                }
            }
        }
        problems.check(
            !all.is_empty() || !problems.is_empty(),
            key,
            "there is no prompt to answer",
        );
        Some((all, left_out))
    }
}

/// Notes a list of files as inputs of the run.
///
/// # Errors
/// A file that cannot be read or is not what its producer wrote.
pub(crate) fn record(ctx: &mut Context, role: &str, paths: &[PathBuf]) -> anyhow::Result<()> {
    for path in paths {
        ctx.input(role, path)?;
    }
    Ok(())
}

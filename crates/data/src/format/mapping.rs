//! What a user says about the fields of a data set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{FormatError, Kind};

/// How fields become an example. All absent: recognise the form by the field names.
///
/// `*_template` keys are Jinja over the record's fields (also reachable as `record["name"]`); the
/// others are column names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mapping {
    /// Column with the running text.
    pub text: Option<String>,
    /// Template of the running text.
    pub text_template: Option<String>,
    /// Column with a system message.
    pub system: Option<String>,
    /// Template of a system message; nothing is added where it renders to blank.
    pub system_template: Option<String>,
    /// Column with the prompt.
    pub prompt: Option<String>,
    /// Template of the prompt.
    pub prompt_template: Option<String>,
    /// Column with the completion.
    pub completion: Option<String>,
    /// Template of the completion.
    pub completion_template: Option<String>,
    /// Column with the preferred response of a pair.
    pub chosen: Option<String>,
    /// Template of the preferred response.
    pub chosen_template: Option<String>,
    /// Column with the other response.
    pub rejected: Option<String>,
    /// Template of the other response.
    pub rejected_template: Option<String>,
    /// Column with the number by which the preferred response is preferred.
    pub margin: Option<String>,
    /// Column with a list of messages; for kind `preference`, those of the prompt.
    pub messages: Option<String>,
    /// Columns that are the turns of a conversation, the oldest first; the last one is the assistant's, the one before it
    /// the user's, and so on. Blank ones are left out, so a conversation may have begun later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<String>,
    /// All turns of a conversation count in the loss, not the assistant's alone. For kind `chat`.
    pub train_on_prompt: bool,
    /// The key of a message's role. Default: `role`, else `from`.
    pub role_key: Option<String>,
    /// The key of a message's text. Default: `content`, else `value`.
    pub content_key: Option<String>,
    /// Other names of roles, such as `{ tutor = "assistant" }`.
    pub roles: BTreeMap<String, String>,
    /// Prompt of `instruction`/`input` records where no chat template is used. Default:
    /// [`ALPACA_TEMPLATE`](super::ALPACA_TEMPLATE).
    pub instruction_template: Option<String>,
}

impl Mapping {
    /// Whether its keys go together, and with the kind.
    pub(super) fn check(&self, kind: Kind) -> Result<(), FormatError> {
        let given = |column: &Option<String>, template: &Option<String>| {
            column.is_some() || template.is_some()
        };
        for (name, column, template) in [
            ("text", &self.text, &self.text_template),
            ("system", &self.system, &self.system_template),
            ("prompt", &self.prompt, &self.prompt_template),
            ("completion", &self.completion, &self.completion_template),
            ("chosen", &self.chosen, &self.chosen_template),
            ("rejected", &self.rejected, &self.rejected_template),
        ] {
            if column.is_some() && template.is_some() {
                return wrong(&format!("give `{name}` or `{name}_template`, not both"));
            }
        }
        let keys = Keys {
            text: given(&self.text, &self.text_template),
            system: given(&self.system, &self.system_template),
            prompt: given(&self.prompt, &self.prompt_template),
            completion: given(&self.completion, &self.completion_template),
            chosen: given(&self.chosen, &self.chosen_template),
            rejected: given(&self.rejected, &self.rejected_template),
            margin: self.margin.is_some(),
            messages: self.messages.is_some(),
        };
        keys.check(kind)?;
        if !self.turns.is_empty() {
            if keys.prompt || keys.system || keys.messages {
                return wrong(
                    "`turns` already hold the whole conversation; drop prompt, completion, system and messages",
                );
            }
            if self.turns.len() < 2 {
                return wrong("`turns` needs at least two columns: a turn and the answer to it");
            }
            if !matches!(kind, Kind::Chat | Kind::Prompt) {
                return wrong("`turns` is for kind = \"chat\" and \"prompt\" only");
            }
        }
        if self.train_on_prompt && kind != Kind::Chat {
            return wrong("`train_on_prompt` is for kind = \"chat\" only");
        }
        if (kind.is_chat() || kind == Kind::Text) && self.instruction_template.is_some() {
            return wrong(
                "`instruction_template` is for kind = \"completion\"; kind = \"chat\" uses the chat template",
            );
        }
        Ok(())
    }
}

/// Which keys are given, as columns or as templates.
#[expect(clippy::struct_excessive_bools, reason = "one for each key")]
struct Keys {
    text: bool,
    system: bool,
    prompt: bool,
    completion: bool,
    chosen: bool,
    rejected: bool,
    margin: bool,
    messages: bool,
}

impl Keys {
    fn check(&self, kind: Kind) -> Result<(), FormatError> {
        let pairs = kind.is_pairs();
        if self.completion && (pairs || kind.is_prompts()) {
            return wrong(&format!(
                "kind = \"{}\" takes no `completion`{}",
                kind.name(),
                if pairs { "; give `chosen` and `rejected`" } else { "" }
            ));
        }
        if self.prompt != self.completion && !pairs && !kind.is_prompts() {
            return wrong("`prompt` and `completion` (or their templates) go together");
        }
        if (self.chosen || self.rejected || self.margin) && !pairs {
            return wrong(
                "`chosen`, `rejected` and `margin` are for kind = \"preference\" and \"preference-plain\"",
            );
        }
        if self.chosen != self.rejected {
            return wrong("`chosen` and `rejected` (or their templates) go together");
        }
        if self.messages && (self.prompt || self.system) {
            return wrong(
                "`messages` already holds the whole conversation; drop prompt, completion and system",
            );
        }
        if self.text && kind != Kind::Text {
            return wrong("`text` is for kind = \"text\" only");
        }
        match kind {
            Kind::Text if self.prompt || self.system || self.messages => {
                wrong("kind = \"text\" takes `text` or `text_template` only")
            }
            Kind::Completion if self.system || self.messages => {
                wrong("kind = \"completion\" takes prompt and completion only")
            }
            Kind::PreferencePlain if self.system || self.messages => {
                wrong("kind = \"preference-plain\" takes prompt, chosen, rejected and margin only")
            }
            Kind::PromptPlain if self.system || self.messages => {
                wrong("kind = \"prompt-plain\" takes prompt only")
            }
            Kind::Chat if self.system && !self.prompt => {
                wrong("`system` goes with `prompt` and `completion`")
            }
            Kind::Preference | Kind::Prompt if self.system && !self.prompt => {
                wrong("`system` goes with `prompt`")
            }
            _ => Ok(()),
        }
    }
}

fn wrong(message: &str) -> Result<(), FormatError> {
    Err(FormatError::Mapping(message.to_owned()))
}

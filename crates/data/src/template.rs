//! Chat templates: Jinja from a tokenizer's files, run as Hugging Face transformers runs them, and
//! the bytes of the rendering that count in the loss.
//!
//! # The environment
//! `trim_blocks`, `lstrip_blocks`, loop controls, Python's string, list and dict methods,
//! `raise_exception`, `strftime_now`, a `tojson` that writes as Python's `json.dumps` does, and
//! `{% generation %}` blocks. Context: `messages`, `add_generation_prompt`, the special tokens
//! (`bos_token`, `eos_token`, ...), `tools` and `documents` as none.
//!
//! A template is code that comes with a model: what it may use of time and memory is bounded (`limits`).
//!
//! # Which bytes count
//! [`ChatTemplate::render_with_spans`] renders the conversation **once**, so that a template that
//! rewrites history (Qwen3 drops old thoughts) is masked as it really reads. With `{% generation %}`
//! blocks the template itself says what counts. Without them each counted message's text is fenced
//! with marks that no text contains, rendered again, and the marks are found; the rendering without
//! the marks must equal the real one to the byte, and every counted message must have been found, or
//! it is an error: never a guess. The span reaches over the end-of-turn token that follows the text.

mod environment;
mod limits;
mod spans;
#[cfg(test)]
mod tests;

use std::ops::Range;

use minijinja::Environment;
use serde_json::{Map, Value};

use crate::format::Message;

/// The template that is used with tokenizers trained here: one special token opens each turn and
/// `<|end|>` closes it. With the [role tokens](CHAT_TOKENS) in the vocabulary, no boundary between
/// prompt and response can be blurred by a merge.
pub const CHAT: &str = "{{ bos_token }}{% for message in messages %}\
{% if message['role'] not in ['system', 'user', 'assistant'] %}\
{{ raise_exception('unknown role ' + message['role'] + ': use system, user or assistant') }}\
{% endif %}\
{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// The special tokens that [`CHAT`] uses, in vocabulary order, after BOS, EOS and padding.
pub const CHAT_TOKENS: [&str; 4] = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];

/// The template for existing tokenizers that have none and no chat tokens: Alpaca-like headings in
/// plain text, the response closed by the tokenizer's own EOS, so the vocabulary need not grow.
pub const INSTRUCTION: &str = "{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}\
{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}\
{% elif message['role'] == 'assistant' %}\
{{ '### Response:\\n' + message['content'] + eos_token }}\
{% if not loop.last %}{{ '\\n\\n' }}{% endif %}\
{% else %}\
{{ raise_exception('unknown role ' + message['role'] + ': use system, user or assistant') }}\
{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}";

/// The special tokens that a template may name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `bos_token`, `eos_token`, `pad_token`, ... by the name they have in templates.
    pub named: Map<String, Value>,
    /// The text of every special token of the vocabulary; used to find the end-of-turn token.
    pub all: Vec<String>,
}

impl SpecialTokens {
    /// The named token, such as `eos_token`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).and_then(Value::as_str)
    }
}

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// It does not compile.
    #[error("chat template: {0}")]
    Parse(String),
    /// It fails on a conversation, or refuses it with `raise_exception`.
    #[error("chat template refuses the conversation: {0}")]
    Render(String),
    /// What counts in the loss cannot be told from the rendering.
    #[error(
        "chat template: cannot tell which text of message {message} ({role}) counts in the loss: {why}; \
         put {{% generation %}} ... {{% endgeneration %}} around what the assistant says in the template"
    )]
    Spans {
        /// 1-based index of the message.
        message: usize,
        /// Its role.
        role: String,
        /// What was seen.
        why: String,
    },
    /// The template's `{% generation %}` blocks do not fit the messages.
    #[error("chat template: {0}")]
    Generation(String),
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text, special tokens included: tokenise it without adding any.
    pub text: String,
    /// Byte ranges of `text` that count in the loss, ascending and disjoint.
    pub spans: Vec<Range<usize>>,
    /// True when every counted turn ends with the end-of-turn token inside its span.
    pub closed: bool,
}

/// A compiled chat template with the special tokens of its tokenizer.
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    program: limits::Program,
    specials: SpecialTokens,
    generation: bool,
    end_of_turn: Option<String>,
}

impl ChatTemplate {
    /// Compiles `source`. `strftime_now` tells the present time in UTC.
    pub fn parse(source: &str, specials: SpecialTokens) -> Result<Self, TemplateError> {
        Self::with_date(source, specials, None)
    }

    /// Compiles `source` with `strftime_now` fixed to a date, `YYYY-MM-DD`, so that data made with
    /// the template does not depend on the day.
    pub fn with_date(
        source: &str,
        specials: SpecialTokens,
        date: Option<&str>,
    ) -> Result<Self, TemplateError> {
        let clock = environment::Clock::new(date).map_err(TemplateError::Parse)?;
        let (expanded, generation) = environment::expand_generation(source);
        let program = limits::compile(&expanded)
            .map_err(|error| TemplateError::Parse(crate::format::describe(&error)))?;
        let mut template = Self {
            source: source.to_owned(),
            environment: environment::build(clock),
            program,
            specials,
            generation,
            end_of_turn: None,
        };
        template.end_of_turn = spans::end_of_turn(&template);
        Ok(template)
    }

    /// The source, as it goes into `tokenizer_config.json`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The digest of the source.
    pub fn digest(&self) -> artifact::Digest {
        artifact::digest::bytes(self.source.as_bytes())
    }

    /// The special token that closes the assistant's turn, found by rendering a probe conversation;
    /// `None` when the template puts no special token after the assistant's text.
    pub fn end_of_turn(&self) -> Option<&str> {
        self.end_of_turn.as_deref()
    }

    /// Whether the template has `{% generation %}` blocks.
    pub fn has_generation_blocks(&self) -> bool {
        self.generation
    }

    /// The special tokens the template was compiled with.
    pub fn specials(&self) -> &SpecialTokens {
        &self.specials
    }

    /// Renders a conversation; with `add_generation_prompt` it ends where the assistant would begin.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let mark = environment::unused_mark(messages);
        let text = self.render_raw(messages, add_generation_prompt, &mark)?;
        Ok(if self.generation { environment::drop_marks(&text, &mark) } else { text })
    }

    /// Renders a conversation and finds what counts in the loss; see the module's text.
    pub fn render_with_spans(&self, messages: &[Message]) -> Result<Rendered, TemplateError> {
        spans::render(self, messages)
    }

    /// Renders with generation marks still in place.
    fn render_raw(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        mark: &str,
    ) -> Result<String, TemplateError> {
        let mut context = self.specials.named.clone();
        let plain: Vec<Value> = messages
            .iter()
            .map(|m| serde_json::json!({ "role": m.role, "content": m.content }))
            .collect();
        context.insert("messages".to_owned(), Value::Array(plain));
        context.insert("add_generation_prompt".to_owned(), Value::Bool(add_generation_prompt));
        context.insert("tools".to_owned(), Value::Null);
        context.insert("documents".to_owned(), Value::Null);
        context.insert(environment::MARK_VARIABLE.to_owned(), Value::String(mark.to_owned()));
        limits::render(&self.environment, &self.program, &context)
            .map_err(|error| TemplateError::Render(crate::format::describe(&error)))
    }
}

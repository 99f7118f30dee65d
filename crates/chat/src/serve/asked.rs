//! What a request asks for, checked against what its model can.

use std::sync::Arc;
use std::time::Instant;

use data::encode::chat_prompt;
use data::format::Message;
use model::generate::{Report, Request, Sampling, StopRules};
use serde_json::Value;
use training::respond::sample_seed;

use super::fields::{Fields, wrong};
use super::mailbox::mailbox;
use super::models::Served;
use super::queue::{Telling, Work};
use super::refusal::Refusal;
use super::reply::Pieces;

/// The most choices of one prompt, and the most prompts of one request.
const MOST: u64 = 128;
/// The most tokens told at every place.
const MOST_TOP: u64 = 20;
/// The most stop strings.
const MOST_STOPS: usize = 16;
/// Tokens of a completion where nothing is said, as OpenAI has it.
const COMPLETION_TOKENS: usize = 16;

/// Which of the two endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Chat,
    Completion,
}

/// A prompt as text and tokens.
#[derive(Debug)]
pub(crate) struct Prompt {
    /// Told by `echo`.
    pub(crate) text: String,
    pub(crate) ids: Vec<i64>,
}

/// A request that can be answered.
#[expect(clippy::struct_excessive_bools, reason = "they are the request's own")]
pub(crate) struct Asked {
    pub(crate) shape: Shape,
    pub(crate) served: Arc<Served>,
    pub(crate) prompts: Vec<Prompt>,
    /// Answers to each prompt.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// Whether log-probabilities are told, and how many beside each token's own.
    pub(crate) logprobs: Option<usize>,
    pub(crate) echo: bool,
    max_tokens: Option<usize>,
    sampling: Sampling,
    stop: Vec<String>,
    ignore_eos: bool,
}

impl Asked {
    /// Reads a request's body. `find` finds the model.
    pub(crate) fn read(
        shape: Shape,
        body: &[u8],
        find: impl FnOnce(&str) -> Result<Arc<Served>, Refusal>,
    ) -> Result<Self, Refusal> {
        let mut fields = Fields::parse(body)?;
        let Some(id) = fields.string("model")? else {
            return Err(Refusal::param("model", "`model` is missing; /v1/models lists them"));
        };
        let served = find(&id)?;
        let n = fields.count("n", 1..=MOST)?.unwrap_or(1);
        let stream = fields.boolean("stream")?;
        let include_usage = include_usage(&mut fields, stream)?;
        let echo = shape == Shape::Completion && fields.boolean("echo")?;
        let max_tokens = max_tokens(shape, &mut fields, echo)?;
        let logprobs = logprobs(shape, &mut fields)?;
        let (sampling, stop) = (sampling(&mut fields)?, stops(&mut fields)?);
        let ignore_eos = fields.boolean("ignore_eos")?;
        let prompts = match shape {
            Shape::Chat => vec![conversation(&mut fields, &served)?],
            Shape::Completion => texts(&mut fields, &served)?,
        };
        unsupported(shape, &mut fields, n)?;
        fields.end()?;
        let asked = Self {
            shape,
            served,
            prompts,
            n,
            stream,
            include_usage,
            logprobs,
            echo,
            max_tokens,
            sampling,
            stop,
            ignore_eos,
        };
        asked.check()?;
        Ok(asked)
    }

    /// Whether every prompt leaves room for what is asked.
    fn check(&self) -> Result<(), Refusal> {
        let context = self.served.limits.context;
        let name = self.prompt_name();
        for prompt in &self.prompts {
            let len = prompt.ids.len();
            if len >= context {
                return Err(Refusal::too_long(
                    name,
                    format!(
                        "the prompt of {len} tokens leaves no room for an answer in the model's context of {context}"
                    ),
                ));
            }
            if let Some(max) = self.max_tokens.filter(|max| len.saturating_add(*max) > context) {
                return Err(Refusal::too_long(
                    name,
                    format!(
                        "the prompt of {len} tokens and {max} tokens of an answer are more than the model's context of \
                         {context}; shorten the prompt, or ask for at most {} tokens",
                        context - len
                    ),
                ));
            }
            let request = self.request(prompt, 0);
            self.served
                .limits
                .check(&request)
                .map_err(|error| Refusal::param(name, error.to_string()))?;
        }
        Ok(())
    }

    fn prompt_name(&self) -> &'static str {
        match self.shape {
            Shape::Chat => "messages",
            Shape::Completion => "prompt",
        }
    }

    fn request(&self, prompt: &Prompt, choice: usize) -> Request {
        let mut sampling = self.sampling.clone();
        if choice > 0 {
            sampling.seed = sample_seed(sampling.seed, choice as u64);
        }
        let room = self.served.limits.context.saturating_sub(prompt.ids.len());
        let max_new_tokens = self.max_tokens.unwrap_or(room).min(room);
        Request { ids: prompt.ids.clone(), max_new_tokens, sampling }
    }

    /// The answers that the model's worker is to give, and where they come.
    pub(crate) fn work(&self, deadline: Instant) -> (Vec<Work>, Pieces) {
        let ids = if self.ignore_eos { Vec::new() } else { self.served.stop_ids.clone() };
        let stop = Arc::new(StopRules { ids, strings: self.stop.clone() });
        let report = Report {
            top: self.logprobs.unwrap_or(0),
            prompt: self.echo && self.logprobs.is_some(),
        };
        let choices = self.prompts.iter().flat_map(|prompt| (0..self.n).map(move |_| prompt));
        let requests = choices.enumerate().map(|(choice, prompt)| self.request(prompt, choice));
        let telling = match (self.stream, self.logprobs) {
            (false, _) => Telling::Nothing,
            (true, None) => Telling::Text,
            (true, Some(_)) => Telling::Tokens,
        };
        let (mailbox, senders) = mailbox(self.prompts.len() * self.n);
        let work = requests.zip(senders).map(|(request, to)| {
            let stop = Arc::clone(&stop);
            Work { request, stop, report, telling, to, deadline }
        });
        (work.collect(), Pieces::new(mailbox, deadline))
    }
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, Refusal> {
    const NAME: &str = "stream_options";
    match fields.take(NAME) {
        None => Ok(false),
        Some(_) if !stream => {
            Err(Refusal::param(NAME, "`stream_options` is only for `stream`: true"))
        }
        Some(Value::Object(options)) => {
            let known = ["include_usage", "include_obfuscation"];
            if let Some((name, _)) =
                options.iter().find(|(name, _)| !known.contains(&name.as_str()))
            {
                let message = format!("`stream_options.{name}` is not known here");
                return Err(Refusal::param(NAME, message));
            }
            match options.get("include_usage") {
                None | Some(Value::Null) => Ok(false),
                Some(Value::Bool(set)) => Ok(*set),
                Some(other) => Err(wrong("stream_options.include_usage", "true or false", other)),
            }
        }
        Some(other) => Err(wrong(NAME, "an object", &other)),
    }
}

fn max_tokens(shape: Shape, fields: &mut Fields, echo: bool) -> Result<Option<usize>, Refusal> {
    let least = u64::from(!echo);
    let old = fields.count("max_tokens", least..=u64::MAX)?;
    match shape {
        Shape::Completion => Ok(Some(old.unwrap_or(COMPLETION_TOKENS))),
        Shape::Chat => {
            let new = fields.count("max_completion_tokens", 1..=u64::MAX)?;
            if new.is_some() && old.is_some() && new != old {
                return Err(Refusal::param(
                    "max_tokens",
                    "`max_tokens` and `max_completion_tokens` differ; give one of them",
                ));
            }
            Ok(new.or(old))
        }
    }
}

fn logprobs(shape: Shape, fields: &mut Fields) -> Result<Option<usize>, Refusal> {
    if shape == Shape::Completion {
        return fields.count("logprobs", 0..=MOST_TOP);
    }
    let wanted = fields.boolean("logprobs")?;
    match fields.count("top_logprobs", 0..=MOST_TOP)? {
        Some(_) if !wanted => {
            Err(Refusal::param("top_logprobs", "`top_logprobs` needs `logprobs`: true"))
        }
        top => Ok(wanted.then(|| top.unwrap_or(0))),
    }
}

fn sampling(fields: &mut Fields) -> Result<Sampling, Refusal> {
    let own = Sampling::default();
    let sampling = Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(own.temperature),
        top_p: fields.number("top_p", 0.0..=1.0)?,
        top_k: fields.count("top_k", 1..=u64::MAX)?,
        min_p: fields.number("min_p", 0.0..=1.0)?,
        repetition_penalty: fields
            .number("repetition_penalty", 0.01..=100.0)?
            .unwrap_or(own.repetition_penalty),
        seed: fields.bits("seed")?.unwrap_or_else(random_seed),
    };
    let name = |message: &str| message.split('`').nth(1).unwrap_or_default().to_owned();
    sampling.check().map_err(|error| {
        let message = error.to_string();
        Refusal::param(&name(&message), message)
    })?;
    Ok(sampling)
}

/// A seed that nobody knows beforehand: the standard library's random keys, hashed.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, Refusal> {
    let stops = fields.strings("stop")?;
    if stops.len() > MOST_STOPS {
        let message = format!("`stop` has {} strings; {MOST_STOPS} are the most", stops.len());
        return Err(Refusal::param("stop", message));
    }
    if stops.iter().any(String::is_empty) {
        return Err(Refusal::param("stop", "a string of `stop` is empty; leave it out"));
    }
    Ok(stops)
}

/// What OpenAI's server can and this one cannot.
fn unsupported(shape: Shape, fields: &mut Fields, n: usize) -> Result<(), Refusal> {
    let zero = |value: &Value| value.as_f64() == Some(0.0);
    let empty = |value: &Value| {
        value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty)
            || value.as_str().is_some_and(str::is_empty)
    };
    fields.only("frequency_penalty", zero)?;
    fields.only("presence_penalty", zero)?;
    fields.only("logit_bias", empty)?;
    if shape == Shape::Completion {
        fields.only("suffix", empty)?;
        return fields.only("best_of", |value| value.as_u64() == Some(n as u64));
    }
    for name in ["tools", "functions"] {
        fields.only(name, empty)?;
    }
    for name in ["tool_choice", "function_call"] {
        fields.only(name, |value| value == "none" || value == "auto")?;
    }
    fields.only("modalities", |value| *value == serde_json::json!(["text"]))?;
    fields.only("response_format", |value| value["type"] == "text")
}

/// The `messages` of a conversation as a prompt.
fn conversation(fields: &mut Fields, served: &Served) -> Result<Prompt, Refusal> {
    const NAME: &str = "messages";
    let items = match fields.take(NAME) {
        Some(Value::Array(items)) if !items.is_empty() => items,
        Some(Value::Array(_)) => return Err(Refusal::param(NAME, "`messages` is empty")),
        Some(other) => return Err(wrong(NAME, "a list of messages", &other)),
        None => return Err(Refusal::param(NAME, "`messages` is missing")),
    };
    let Some(template) = &served.template else {
        let message = format!(
            "the tokenizer of the model `{}` has no chat template; it completes texts at /v1/completions",
            served.id
        );
        return Err(Refusal::param("model", message));
    };
    let messages = items
        .into_iter()
        .enumerate()
        .map(|(at, item)| message(at, item, served))
        .collect::<Result<Vec<_>, _>>()?;
    let ids = chat_prompt(&served.tokenizer, template, &messages)
        .map_err(|error| Refusal::param(NAME, error.to_string()))?;
    Ok(Prompt { text: String::new(), ids: ids.into_iter().map(i64::from).collect() })
}

fn message(at: usize, item: Value, served: &Served) -> Result<Message, Refusal> {
    let name = format!("messages[{at}]");
    let Value::Object(mut item) = item else {
        return Err(wrong(&name, "an object with role and content", &item));
    };
    let role = match item.shift_remove("role") {
        // OpenAI's newer name for the same.
        Some(Value::String(role)) if role == "developer" => "system".to_owned(),
        Some(Value::String(role)) if ["system", "user", "assistant"].contains(&role.as_str()) => {
            role
        }
        other => {
            let role = other.unwrap_or(Value::Null);
            return Err(wrong(&format!("{name}.role"), "system, user or assistant", &role));
        }
    };
    let content = format!("{name}.content");
    let text = match item.shift_remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| match (part["type"].as_str(), &part["text"]) {
                (Some("text"), Value::String(text)) => Ok(text.as_str()),
                _ => Err(wrong(&content, "text; no other parts are supported", part)),
            });
            texts.collect::<Result<String, _>>()?
        }
        other => {
            let found = other.unwrap_or(Value::Null);
            return Err(wrong(&content, "a string or a list of text parts", &found));
        }
    };
    let only = ["name", "refusal", "annotations"];
    if let Some((other, _)) =
        item.iter().find(|(key, value)| !value.is_null() && !only.contains(&key.as_str()))
    {
        let other = format!("{name}.{other}");
        return Err(Refusal::param(&other, format!("`{other}` is not supported here")));
    }
    if let Some(token) = served.tokenizer.special_in(&text) {
        let message =
            format!("`{content}` spells out the special token {token}, which would forge a turn");
        return Err(Refusal::param(&content, message));
    }
    Ok(Message::new(role, text))
}

/// The prompts of a completion: a text, texts, token ids, or lists of token ids.
fn texts(fields: &mut Fields, served: &Served) -> Result<Vec<Prompt>, Refusal> {
    const NAME: &str = "prompt";
    const WHAT: &str = "a string, a list of strings, a list of token ids, or a list of such lists";
    let value = fields.take(NAME).ok_or_else(|| Refusal::param(NAME, "`prompt` is missing"))?;
    let prompts = match &value {
        Value::String(text) => vec![text_prompt(text, served)?],
        Value::Array(items) if items.iter().all(Value::is_u64) && !items.is_empty() => {
            vec![token_prompt(items, served)?]
        }
        Value::Array(items) if !items.is_empty() => items
            .iter()
            .map(|item| match item {
                Value::String(text) => text_prompt(text, served),
                Value::Array(ids) if ids.iter().all(Value::is_u64) => token_prompt(ids, served),
                other => Err(wrong(NAME, WHAT, other)),
            })
            .collect::<Result<_, _>>()?,
        other => return Err(wrong(NAME, WHAT, other)),
    };
    if prompts.len() > MOST as usize {
        let message = format!("`prompt` has {} prompts; {MOST} are the most", prompts.len());
        return Err(Refusal::param(NAME, message));
    }
    Ok(prompts)
}

fn text_prompt(text: &str, served: &Served) -> Result<Prompt, Refusal> {
    let encoded = served.tokenizer.encode(text, true);
    let ids = encoded.map_err(|error| Refusal::param("prompt", error.to_string()))?.ids;
    Ok(Prompt { text: text.to_owned(), ids: ids.into_iter().map(i64::from).collect() })
}

fn token_prompt(items: &[Value], served: &Served) -> Result<Prompt, Refusal> {
    let fail = |message: String| Refusal::param("prompt", message);
    let id = |item: &Value| {
        let id = item.as_u64().and_then(|id| i64::try_from(id).ok());
        id.filter(|id| *id < served.limits.vocab).ok_or_else(|| {
            fail(format!(
                "token id {item} is outside the model's vocabulary of {}",
                served.limits.vocab
            ))
        })
    };
    let ids = items.iter().map(id).collect::<Result<Vec<i64>, _>>()?;
    let plain: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
    let text = served.tokenizer.decode(&plain, true).map_err(|error| fail(error.to_string()))?;
    Ok(Prompt { text, ids })
}

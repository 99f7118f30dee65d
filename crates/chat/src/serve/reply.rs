//! Answers as OpenAI's clients read them: whole, or as server-sent events.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;
use model::generate::Finish;
use serde_json::{Value, json};
use tokio::time::Sleep;

use super::asked::{Asked, Shape};
use super::mailbox::{Mailbox, News};
use super::queue::{End, Failure};
use super::refusal::Refusal;
use super::shape::{TextAt, Told};

/// A worker that has not said within this time that a request is over is not waited for.
const GRACE: Duration = Duration::from_secs(1);

/// How long a stream rests after it has sent something, unless its answer ends: nobody sees text come in smaller steps, and
/// sending costs as much as a step of the model does for a row.
const REST: Duration = Duration::from_millis(30);

/// An answer as it comes; it always ends, if need be with a failure.
pub(crate) struct Pieces {
    mailbox: Mailbox,
    late: Pin<Box<Sleep>>,
}

impl Pieces {
    pub(crate) fn new(mailbox: Mailbox, deadline: Instant) -> Self {
        let late = Box::pin(tokio::time::sleep_until((deadline + GRACE).into()));
        Self { mailbox, late }
    }

    /// What is new, by choice; with `patient` not before an answer has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        patient: bool,
    ) -> Poll<Result<Vec<(usize, News)>, Failure>> {
        if let Poll::Ready(news) = self.mailbox.poll(cx, patient) {
            // Without news the worker is gone, and has said why on its own thread.
            return Poll::Ready(news.ok_or(Failure::Stopping));
        }
        ready!(self.late.as_mut().poll(cx));
        Poll::Ready(Err(Failure::Timeout))
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Timeout => Self::timeout(),
            Failure::Stopping => Self::stopping(),
            Failure::Slow => Self::failed("the answer was not read, and is broken off"),
            Failure::Model(message) => Self::failed(message),
        }
    }
}

/// What stands around every answer to a request.
pub(crate) struct Frames {
    pub(crate) asked: Asked,
    id: String,
    created: u64,
}

impl Frames {
    pub(crate) fn new(asked: Asked, number: u64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let kind = match asked.shape {
            Shape::Chat => "chatcmpl",
            Shape::Completion => "cmpl",
        };
        let id = format!("{kind}-{:x}-{number}", now.as_millis());
        Self { asked, id, created: now.as_secs() }
    }

    fn choices(&self) -> usize {
        self.asked.prompts.len() * self.asked.n
    }

    /// What every object of an answer begins with.
    fn object(&self, object: &str) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.asked.served.id,
        })
    }

    fn usage(&self, completion_tokens: usize) -> Value {
        let prompt_tokens: usize = self.asked.prompts.iter().map(|prompt| prompt.ids.len()).sum();
        json!({
            "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        })
    }

    /// The whole answer, when all of it is there.
    pub(crate) async fn whole(&self, mut pieces: Pieces) -> Result<Value, Refusal> {
        let mut choices: Vec<Option<Value>> = vec![None; self.choices()];
        let mut prompts = vec![Vec::new(); self.choices()];
        let (mut open, mut count) = (choices.len(), 0);
        while open > 0 {
            for (choice, news) in poll_fn(|cx| pieces.poll(cx, true)).await? {
                prompts[choice].extend(news.prompt.unwrap_or_default());
                if let Some(end) = news.end {
                    let end = end?;
                    count += end.count;
                    open -= 1;
                    let prompt = std::mem::take(&mut prompts[choice]);
                    choices[choice] = Some(self.whole_choice(choice, prompt.into(), end));
                }
            }
        }
        let mut object = self.object(match self.asked.shape {
            Shape::Chat => "chat.completion",
            Shape::Completion => "text_completion",
        });
        object["choices"] = choices.into_iter().flatten().collect();
        object["usage"] = self.usage(count);
        Ok(object)
    }

    fn whole_choice(&self, choice: usize, prompt: Told, end: End) -> Value {
        let reason = reason(end.finish);
        let mut told = prompt;
        told.extend(end.tokens);
        let logprobs = self.logprobs(&told, &mut self.text_at(choice));
        match self.asked.shape {
            Shape::Chat => json!({
                "index": choice,
                "message": { "role": "assistant", "content": end.text, "refusal": null },
                "logprobs": logprobs, "finish_reason": reason,
            }),
            Shape::Completion => json!({
                "index": choice, "text": self.echoed(choice) + &end.text,
                "logprobs": logprobs, "finish_reason": reason,
            }),
        }
    }

    /// The prompt's text where it is to be told.
    fn echoed(&self, choice: usize) -> String {
        let prompt = &self.asked.prompts[choice / self.asked.n];
        if self.asked.echo { prompt.text.clone() } else { String::new() }
    }

    /// Where a choice's text begins.
    fn text_at(&self, choice: usize) -> TextAt {
        let prompt = &self.asked.prompts[choice / self.asked.n];
        self.asked.served.text_at(self.asked.echo, &prompt.ids)
    }

    fn logprobs(&self, told: &Told, at: &mut TextAt) -> Value {
        match (self.asked.logprobs, self.asked.shape) {
            (None, _) => Value::Null,
            (Some(_), Shape::Chat) => told.chat(&self.asked.served),
            (Some(_), Shape::Completion) => told.completion(&self.asked.served, at),
        }
    }
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length | Finish::Cancelled => "length",
    }
}

/// An answer as server-sent events.
pub(crate) struct Events {
    frames: Frames,
    pieces: Pieces,
    /// What stands before and behind the choice of every event.
    around: [String; 2],
    /// Events that are ready.
    ready: String,
    rest: Pin<Box<Sleep>>,
    /// Where the text of each choice has come to.
    at: Vec<TextAt>,
    open: usize,
    count: usize,
}

impl Events {
    pub(crate) fn new(frames: Frames, pieces: Pieces) -> Self {
        let open = frames.choices();
        let at = (0..open).map(|choice| frames.text_at(choice)).collect();
        let object = frames.object(match frames.asked.shape {
            Shape::Chat => "chat.completion.chunk",
            Shape::Completion => "text_completion",
        });
        let head = object.to_string();
        let head = head.trim_end_matches('}');
        let usage = if frames.asked.include_usage { ",\"usage\":null" } else { "" };
        let around = [format!("data: {head},\"choices\":["), format!("]{usage}}}\n\n")];
        let rest = Box::pin(tokio::time::sleep(Duration::ZERO));
        let ready = String::new();
        let mut events = Self { frames, pieces, around, ready, rest, at, open, count: 0 };
        events.begin();
        events
    }

    fn begin(&mut self) {
        let prompt_comes = self.frames.asked.echo && self.frames.asked.logprobs.is_some();
        for choice in 0..self.open {
            match self.frames.asked.shape {
                Shape::Chat => {
                    let delta = json!({ "role": "assistant", "content": "" });
                    self.chat(choice, &delta, &Value::Null, None);
                }
                Shape::Completion if self.frames.asked.echo && !prompt_comes => {
                    let text = self.frames.echoed(choice);
                    self.completion(choice, &text, &Value::Null, None);
                }
                Shape::Completion => {}
            }
        }
    }

    fn chat(&mut self, choice: usize, delta: &Value, logprobs: &Value, reason: Option<&str>) {
        self.send(&json!({
            "index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason,
        }));
    }

    fn completion(&mut self, choice: usize, text: &str, logprobs: &Value, reason: Option<&str>) {
        self.send(&json!({
            "index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason,
        }));
    }

    fn send(&mut self, choice: &Value) {
        let [before, behind] = &self.around;
        // Writing to a string cannot fail.
        let _ = write!(self.ready, "{before}{choice}{behind}");
    }

    fn take(&mut self, choice: usize, news: News) {
        let News { prompt, text, tokens, end } = news;
        if let Some(tokens) = prompt {
            let text = self.frames.echoed(choice);
            let logprobs = self.frames.logprobs(&tokens.into(), &mut self.at[choice]);
            self.completion(choice, &text, &logprobs, None);
        }
        if !text.is_empty() || !tokens.is_empty() {
            let logprobs = self.frames.logprobs(&tokens.into(), &mut self.at[choice]);
            match self.frames.asked.shape {
                Shape::Chat => self.chat(choice, &json!({ "content": text }), &logprobs, None),
                Shape::Completion => self.completion(choice, &text, &logprobs, None),
            }
        }
        match end {
            Some(Ok(end)) => self.end(choice, &end),
            Some(Err(failure)) => self.fail(failure),
            None => {}
        }
    }

    fn end(&mut self, choice: usize, end: &End) {
        let reason = Some(reason(end.finish));
        match self.frames.asked.shape {
            Shape::Chat => self.chat(choice, &json!({}), &Value::Null, reason),
            Shape::Completion => self.completion(choice, "", &Value::Null, reason),
        }
        self.count += end.count;
        self.open -= 1;
        if self.open > 0 {
            return;
        }
        if self.frames.asked.include_usage {
            let usage = self.frames.usage(self.count);
            let [before, _] = &self.around;
            let _ = write!(self.ready, "{before}],\"usage\":{usage}}}\n\n");
        }
        self.ready.push_str("data: [DONE]\n\n");
    }

    /// The status has been sent long ago; the error is an event of its own, as OpenAI has it, and the last.
    fn fail(&mut self, failure: Failure) {
        let _ = write!(self.ready, "data: {}\n\n", Refusal::from(failure).body());
        self.open = 0;
    }
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if !self.ready.is_empty() {
                let events = Bytes::from(std::mem::take(&mut self.ready));
                return Poll::Ready(Some(Ok(Frame::data(events))));
            }
            if self.open == 0 {
                return Poll::Ready(None);
            }
            let rests = self.rest.as_mut().poll(cx).is_pending();
            match ready!(self.pieces.poll(cx, rests)) {
                Ok(all) => {
                    for (choice, news) in all {
                        if self.open > 0 {
                            self.take(choice, news);
                        }
                    }
                    self.rest.as_mut().reset(tokio::time::Instant::now() + REST);
                }
                Err(failure) => self.fail(failure),
            }
        }
    }
}

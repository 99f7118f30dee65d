//! Answers as OpenAI's clients read them: whole, or as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;
use model::generate::Finish;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::asked::{Asked, Shape};
use super::queue::{End, Failure, Piece};
use super::refusal::Refusal;
use super::shape::{TextAt, Told};

/// A worker that has not said within this time that a request is over is not waited for.
const GRACE: Duration = Duration::from_secs(1);

/// The pieces of an answer as they come; it always ends, if need be with a failure.
pub(crate) struct Pieces {
    from: mpsc::Receiver<Piece>,
    taken: Arc<AtomicUsize>,
    late: Pin<Box<Sleep>>,
}

impl Pieces {
    pub(crate) fn new(
        from: mpsc::Receiver<Piece>,
        taken: Arc<AtomicUsize>,
        deadline: Instant,
    ) -> Self {
        let late = Box::pin(tokio::time::sleep_until((deadline + GRACE).into()));
        Self { from, taken, late }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Failure>> {
        if let Poll::Ready(piece) = self.from.poll_recv(cx) {
            self.taken.fetch_add(1, Ordering::Relaxed);
            // Without a piece the worker is gone, and has said why on its own thread.
            return Poll::Ready(piece.ok_or(Failure::Stopping));
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

    fn object(&self, choices: &[Value], chunk: bool) -> Value {
        let object = match (self.asked.shape, chunk) {
            (Shape::Chat, false) => "chat.completion",
            (Shape::Chat, true) => "chat.completion.chunk",
            (Shape::Completion, _) => "text_completion",
        };
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.asked.served.id,
            "choices": choices,
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
            match poll_fn(|cx| pieces.poll(cx)).await? {
                Piece::Prompt { choice, tokens } => prompts[choice] = tokens,
                Piece::Token { .. } => {}
                Piece::End { choice, end } => {
                    let end = end?;
                    count += end.count;
                    open -= 1;
                    let prompt = std::mem::take(&mut prompts[choice]);
                    choices[choice] = Some(self.whole_choice(choice, prompt.into(), end));
                }
            }
        }
        let mut object = self.object(&choices.into_iter().flatten().collect::<Vec<_>>(), false);
        object["usage"] = self.usage(count);
        Ok(object)
    }

    fn whole_choice(&self, choice: usize, prompt: Told, end: End) -> Value {
        let reason = reason(end.finish);
        let mut told = prompt;
        told.extend(end.tokens);
        let logprobs = self.logprobs(&told, &mut TextAt::default());
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
    /// Events that are ready.
    ready: VecDeque<Bytes>,
    /// Where the text of each choice has come to.
    at: Vec<TextAt>,
    open: usize,
    count: usize,
}

impl Events {
    pub(crate) fn new(frames: Frames, pieces: Pieces) -> Self {
        let open = frames.choices();
        let at = (0..open).map(|_| TextAt::default()).collect();
        let mut events = Self { frames, pieces, ready: VecDeque::new(), at, open, count: 0 };
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
        self.send(json!({
            "index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason,
        }));
    }

    fn completion(&mut self, choice: usize, text: &str, logprobs: &Value, reason: Option<&str>) {
        self.send(json!({
            "index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason,
        }));
    }

    fn send(&mut self, choice: Value) {
        let mut object = self.frames.object(&[choice], true);
        if self.frames.asked.include_usage {
            object["usage"] = Value::Null;
        }
        self.push(&object);
    }

    fn push(&mut self, data: &Value) {
        self.ready.push_back(format!("data: {data}\n\n").into());
    }

    fn take(&mut self, piece: Result<Piece, Failure>) {
        match piece {
            Ok(Piece::Prompt { choice, tokens }) => {
                let text = self.frames.echoed(choice);
                let logprobs = self.frames.logprobs(&tokens.into(), &mut self.at[choice]);
                self.completion(choice, &text, &logprobs, None);
            }
            Ok(Piece::Token { choice, token, text }) => {
                if text.is_empty() && self.frames.asked.logprobs.is_none() {
                    return;
                }
                let told = Told::from(vec![token]);
                let logprobs = self.frames.logprobs(&told, &mut self.at[choice]);
                match self.frames.asked.shape {
                    Shape::Chat => self.chat(choice, &json!({ "content": text }), &logprobs, None),
                    Shape::Completion => self.completion(choice, &text, &logprobs, None),
                }
            }
            Ok(Piece::End { choice, end: Ok(end) }) => {
                let reason = Some(reason(end.finish));
                match self.frames.asked.shape {
                    Shape::Chat => self.chat(choice, &json!({}), &Value::Null, reason),
                    Shape::Completion => self.completion(choice, "", &Value::Null, reason),
                }
                self.count += end.count;
                self.open -= 1;
                if self.open == 0 {
                    self.finish();
                }
            }
            // The status has been sent long ago; the error is an event of its own, as OpenAI has it.
            Ok(Piece::End { end: Err(failure), .. }) | Err(failure) => {
                self.push(&Refusal::from(failure).body());
                self.open = 0;
            }
        }
    }

    fn finish(&mut self) {
        if self.frames.asked.include_usage {
            let mut object = self.frames.object(&[], true);
            object["usage"] = self.frames.usage(self.count);
            self.push(&object);
        }
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
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
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(event))));
            }
            if self.open == 0 {
                return Poll::Ready(None);
            }
            let piece = ready!(self.pieces.poll(cx));
            self.take(piece);
        }
    }
}

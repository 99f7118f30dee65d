//! The server without its sockets: requests go to the router, answers come from a real engine over a tiny model.

mod answers;
mod clients;
mod offsets;
mod refusals;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::http::{HeaderMap, Request, StatusCode};
use data::template;
use data::tokenizer::{BpeOptions, Tokenizer};
use model::generate::{Engine, Generated, Sampling, StopRules};
use model::{Decoder, LoadOptions, ModelConfig, Precision};
use serde_json::{Value, json};
use tch::Device;
use tower::ServiceExt as _;

use super::http::{Limits, Server, router};
use super::models::{self, Running, Served};
use super::queue::Queue;

/// Tokens of prompt and answer. Nobody waits for an answer of so many.
const CONTEXT: usize = 100_000;

const RUNNING: Running =
    Running { device: Device::Cpu, precision: Precision::Fp32, rows: 64, context: None };

const LIMITS: Limits = Limits {
    body: 1 << 20,
    waiting: 256,
    request: Duration::from_mins(10),
    client: Duration::from_secs(30),
};

/// A model directory with a chat template, and one without.
static MODELS: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap().keep();
    let texts =
        ["민수는 공원에서 사과를 찾았어요.", "Minsu found an apple.", "Who was at the park?"];
    let texts = texts.iter().cycle().take(60).map(|text| (*text).to_owned());
    let options = BpeOptions { vocab_size: 320, ..BpeOptions::default() };
    let mut tokenizer = Tokenizer::train_bpe(texts, &options).unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": tokenizer.vocab_size(), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "initializer_range": 0.3,
        "max_position_embeddings": CONTEXT, "eos_token_id": tokenizer.eos_id(), "bos_token_id": tokenizer.bos_id(),
    });
    let config = ModelConfig::from_json(&config).unwrap();
    let decoder = Decoder::init(&config, 5, &LoadOptions::default()).unwrap();
    for (name, chat) in [("talker", true), ("writer", false)] {
        if chat {
            tokenizer.set_chat_template(template::CHAT);
        }
        let to = dir.join(name);
        decoder.save(&to, Precision::Fp32, u64::MAX).unwrap();
        tokenizer.save(&to).unwrap();
        let path = to.join("tokenizer_config.json");
        if !chat {
            let text = fs_err::read_to_string(&path).unwrap();
            let mut json: Value = serde_json::from_str(&text).unwrap();
            json.as_object_mut().unwrap().remove("chat_template");
            fs_err::write(&path, json.to_string()).unwrap();
            let _ = fs_err::remove_file(to.join("chat_template.jinja"));
        }
    }
    dir
});

/// A server of its own for a test.
struct Yard {
    router: Router,
    served: Vec<Arc<Served>>,
}

impl Yard {
    fn new(running: Running, limits: Limits) -> Self {
        let dir = MODELS.display();
        Self::of(&[format!("{dir}/talker"), format!("plain={dir}/writer")], running, limits)
    }

    fn of(models: &[String], running: Running, limits: Limits) -> Self {
        let named = models::find(models, &[]).unwrap();
        let decoders = models::load(&named, running).unwrap();
        let served = named.iter().zip(decoders).map(|(one, decoder)| {
            let queue = Queue::new(limits.waiting, limits.client);
            let served = Arc::new(one.open(running, queue).unwrap());
            models::start(decoder, &served, running).unwrap();
            served
        });
        let served: Vec<_> = served.collect();
        let router = router(Arc::new(Server::new(served.clone(), limits)));
        Self { router, served }
    }

    async fn send(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Body) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, body)
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, HeaderMap, Body) {
        self.send(post(path, body.to_string())).await
    }

    /// An answer that is whole.
    async fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, _, answer) = self.post(path, body).await;
        let text = text(answer).await;
        assert_eq!(status, StatusCode::OK, "{body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The events of a stream without its end.
    async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let (status, headers, answer) = self.post(path, &body).await;
        assert_eq!(
            (status, &headers["content-type"]),
            (StatusCode::OK, &"text/event-stream".parse().unwrap())
        );
        events(&text(answer).await)
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        for served in &self.served {
            served.queue.break_off();
        }
    }
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header("content-type", "application/json");
    request.body(body.into()).unwrap()
}

fn events(text: &str) -> Vec<Value> {
    let all = text.strip_suffix("data: [DONE]\n\n").unwrap_or_else(|| panic!("no end: {text}"));
    let events = all.split("\n\n").filter(|event| !event.is_empty());
    events
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

/// The next piece of a body, as text.
async fn next(body: &mut Body) -> Option<String> {
    let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
    Some(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
}

async fn text(mut body: Body) -> String {
    let mut all = String::new();
    while let Some(piece) = next(&mut body).await {
        all += &piece;
    }
    all
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// What the engine says to these tokens, by itself.
fn generated(ids: &[u32], max_new_tokens: usize, sampling: Sampling) -> Generated {
    let decoder = Decoder::load(&MODELS.join("talker"), &LoadOptions::default()).unwrap();
    let tokenizer = Tokenizer::load(MODELS.join("talker")).unwrap();
    let ids = ids.iter().map(|id| i64::from(*id)).collect();
    let request = model::generate::Request { ids, max_new_tokens, sampling };
    let stop = tokenizer.stop_ids(Some("<|end|>")).into_iter().map(i64::from).collect();
    let stop = StopRules { ids: stop, strings: vec![] };
    let mut engine = Engine::new(&decoder, 1, 512).unwrap();
    engine.generate(&[request], &stop, None, None).unwrap().remove(0)
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(MODELS.join("talker")).unwrap()
}

fn decode(ids: &[i64]) -> String {
    let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
    tokenizer().decode(&ids, true).unwrap()
}

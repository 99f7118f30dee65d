//! `chat serve` as it is installed: the real binary, real sockets, and clients of every kind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod adapters;
mod ends;
mod page;
mod sockets;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use data::tokenizer::{BpeOptions, Tokenizer};
use model::{Decoder, LoadOptions, ModelConfig, Precision};
use serde_json::{Value, json};
use temper_tests::binaries::{Running, Stage};
use temper_tests::corpus;

/// A folder with a model of random weights, and with another seed a second one.
static MODELS: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("serve");
    let _ = fs_err::remove_dir_all(&dir);
    let texts: Vec<String> =
        corpus::texts(200).iter().map(|row| row["text"].as_str().unwrap().to_owned()).collect();
    let options = BpeOptions { vocab_size: 400, ..BpeOptions::default() };
    let mut tokenizer = Tokenizer::train_bpe(texts.into_iter(), &options).unwrap();
    tokenizer.set_chat_template(data::template::CHAT);
    let config = json!({
        "model_type": "llama", "vocab_size": tokenizer.vocab_size(), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "initializer_range": 0.3,
        "max_position_embeddings": 100_000, "eos_token_id": tokenizer.eos_id(), "bos_token_id": tokenizer.bos_id(),
    });
    let config = ModelConfig::from_json(&config).unwrap();
    for (name, seed) in [("one", 5), ("two", 6)] {
        let decoder = Decoder::init(&config, seed, &LoadOptions::default()).unwrap();
        // Of a logit that is always 0 some other is always the better: greedy answers are of tokens that are whole text, and
        // end by their length alone.
        let head = decoder.params().get("lm_head.weight").unwrap();
        let lengths = tokenizer.byte_lengths();
        for (id, bytes) in tokenizer.token_bytes().iter().enumerate() {
            if lengths[id] == 0 || std::str::from_utf8(bytes).is_err() {
                let _ = tch::no_grad(|| head.get(id as i64).zero_());
            }
        }
        decoder.save(&dir.join(name), Precision::Fp32, u64::MAX).unwrap();
        tokenizer.save(dir.join(name)).unwrap();
    }
    dir
});

/// A server of the models `one` and `two`.
pub(crate) struct Server {
    pub(crate) process: Running,
    pub(crate) url: String,
    /// What it said when it was ready.
    line: String,
}

/// `chat serve` over the folder of models.
pub(crate) fn serve(args: &[&str]) -> Stage<'static> {
    Stage::new("chat", &MODELS).args(["serve", "--device", "cpu"]).args(args.iter().copied())
}

impl Server {
    pub(crate) fn start(more: &[&str]) -> Self {
        let server = Self::of(&[&["--model", "one", "--model", "second=two"], more].concat());
        assert!(
            server.line.starts_with("serving one, second at http://127.0.0.1:"),
            "{}",
            server.line
        );
        server
    }

    /// A server of what these arguments name.
    pub(crate) fn of(args: &[&str]) -> Self {
        let mut process = serve(args).args(["--port", "0"]).start().unwrap();
        let line = process.line().unwrap();
        let url = line.rsplit(' ').next().unwrap().trim_end_matches('/').to_owned();
        Self { process, url, line }
    }

    /// Where it listens, for a socket.
    pub(crate) fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut response = agent().get(format!("{}{path}", self.url)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut response = self.send(path, body);
        let text = response.body_mut().read_to_string().unwrap();
        let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        (response.status().as_u16(), json)
    }

    fn send(&self, path: &str, body: &Value) -> ureq::http::Response<ureq::Body> {
        let request = agent().post(format!("{}{path}", self.url)).content_type("application/json");
        request.send(body.to_string()).unwrap()
    }

    /// The text of the first choice.
    pub(crate) fn complete(&self, body: &Value) -> String {
        let (status, answer) = self.post("/v1/completions", body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    /// A stream's events as they come, each without `data: `.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> impl Iterator<Item = String> + use<> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let response = self.send(path, &body);
        assert_eq!(response.status(), 200);
        let lines = BufReader::new(response.into_body().into_reader()).lines();
        let lines = lines.map_while(Result::ok).filter(|line| !line.is_empty());
        lines.map(|line| line.strip_prefix("data: ").unwrap().to_owned())
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_mins(2))).build().into()
}

/// One that would take a minute.
pub(crate) fn endless() -> Value {
    json!({ "model": "one", "prompt": "민수는", "max_tokens": 90_000, "ignore_eos": true })
}

pub(crate) fn short(number: usize) -> Value {
    let prompt = format!("{number}번 자리에서 {}", "x".repeat(number % 7));
    json!({ "model": "one", "prompt": prompt, "max_tokens": 20 + number % 9, "temperature": 0 })
}

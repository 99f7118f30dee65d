//! Clients of a running `chat serve`, one and many.

use std::io::{BufRead as _, BufReader};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;
use serde_json::{Value, json};
use ureq::Agent;

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Where the server is.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// A model that it serves.
    #[arg(long)]
    model: String,
    /// Clients at a time.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Requests of each client, one after another.
    #[arg(long, default_value_t = 4)]
    requests: usize,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 128)]
    new: usize,
    /// Prompts are of tokens below this.
    #[arg(long, default_value_t = 1000)]
    vocab: usize,
    /// Ask for streams.
    #[arg(long)]
    stream: bool,
}

/// How long each answer took, to its first event and to its end, in seconds.
type Waits = Vec<[f64; 2]>;

/// New tokens a second of one client alone, of many at a time and of one alone behind them, and how long they waited. From 8 rows
/// on the engine has weights in a layout that serves one row better too, so a client behind a crowd is faster than before it.
pub(crate) fn measure(options: &Options) -> Result<Value> {
    let run = |clients: usize, seed: usize| -> Result<Value> {
        let start = Instant::now();
        let threads: Vec<_> = (0..clients)
            .map(|client| {
                let options = options.clone();
                thread::spawn(move || ask_all(&options, seed + client))
            })
            .collect();
        let mut waits = Waits::new();
        for thread in threads {
            waits.extend(thread.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        let seconds = start.elapsed().as_secs_f64();
        ensure!(waits.len() == clients * options.requests, "an answer was lost");
        let middle = |which: usize| {
            let mut all: Vec<f64> = waits.iter().map(|wait| wait[which]).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        Ok(json!({
            "clients": clients, "answers": waits.len(),
            "tokens_per_s": (waits.len() * options.new) as f64 / seconds,
            "median_s_to_first": middle(0), "median_s": middle(1),
        }))
    };
    run(1, 0).context("warming up")?;
    let alone = run(1, 1000)?;
    let together = run(options.clients, 2000)?;
    let behind = run(1, 3000)?;
    let rate = |of: &Value| of["tokens_per_s"].as_f64().unwrap_or(f64::NAN);
    let times = |of: &Value| rate(&together) / rate(of);
    let (fresh, packed) = (times(&alone), times(&behind));
    Ok(json!({
        "alone": alone, "together": together, "alone_behind": behind, "times": fresh, "times_behind": packed,
    }))
}

fn ask_all(options: &Options, client: usize) -> Result<Waits> {
    let agent: Agent = Agent::config_builder()
        .timeout_global(Some(Duration::from_mins(10)))
        .http_status_as_error(false)
        .build()
        .into();
    (0..options.requests).map(|number| ask(&agent, options, client * 1000 + number)).collect()
}

fn ask(agent: &Agent, options: &Options, number: usize) -> Result<[f64; 2]> {
    let id = |place: usize| 4 + (number * 7919 + place * 104_729) % (options.vocab - 4);
    let mut body = json!({
        "model": options.model, "prompt": (0..options.prompt).map(id).collect::<Vec<_>>(),
        "max_tokens": options.new, "temperature": 1, "seed": number, "ignore_eos": true,
    });
    if options.stream {
        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
    }
    let start = Instant::now();
    let response = agent
        .post(format!("{}/v1/completions", options.url))
        .content_type("application/json")
        .send(body.to_string())?;
    let status = response.status();
    let mut lines = BufReader::new(response.into_body().into_reader()).lines();
    let mut first = None;
    let mut usage = None;
    for line in &mut lines {
        let line = line?;
        first.get_or_insert_with(|| start.elapsed().as_secs_f64());
        ensure!(status == 200, "status {status}: {line}");
        // Of a stream only the event before the last holds numbers: the client is not to cost more than the server.
        if line.contains("\"completion_tokens\"") {
            let json: Value = serde_json::from_str(line.trim_start_matches("data: "))?;
            usage = json["usage"]["completion_tokens"].as_u64();
        }
    }
    ensure!(usage == Some(options.new as u64), "{usage:?} tokens came, {} were asked", options.new);
    let end = start.elapsed().as_secs_f64();
    Ok([first.unwrap_or(end), end])
}

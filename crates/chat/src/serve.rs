//! `chat serve`: models over HTTP, as OpenAI's clients speak it, and a page to talk to them.

mod asked;
mod fields;
mod http;
mod mailbox;
mod models;
mod queue;
mod refusal;
mod reply;
mod shape;
#[cfg(test)]
mod tests;
mod worker;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use model::Precision;
use stage::{ErrorExt as _, Interrupt, Signal};
use tokio::net::TcpListener;
use torch_ext::device;

use self::http::{Limits, Server};
use self::models::{Running, Served};
use self::queue::Queue;
use crate::show;

/// How often the server looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Serves models over HTTP, as OpenAI's clients speak it, with a page to talk to them.
///
/// /v1/models, /v1/chat/completions and /v1/completions, both with streams; /health; and at / the page. Requests that come at
/// the same time are generated together. docs/chat.md has the parameters.
#[derive(Debug, Parser)]
#[command(
    name = "chat serve",
    version,
    max_term_width = 100,
    after_help = "Reads:   Hugging Face directories, run directories of stages that make a model, and adapters\n\
                  Writes:  the address to stdout\n\
                  Stops:   at SIGINT or SIGTERM, after what it is answering; at once at the second\n\
                  Example: chat serve --model runs/quickstart/sft --model before=runs/quickstart/pretrain"
)]
struct Args {
    /// A model, called by the last part of its path or by NAME; repeatable.
    #[arg(long, value_name = "[NAME=]DIR", required = true)]
    model: Vec<String>,
    /// An adapter, served as a model of its own: over the model where there is one, else over the one that its files name;
    /// repeatable.
    #[arg(long, value_name = "NAME=DIR")]
    adapter: Vec<String>,
    /// The address to listen on. Whoever reaches it may use the models.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// The port; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// Answers that a model generates at a time.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    rows: u16,
    /// The most tokens of prompt and answer; what the model can where it is not given.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,
    /// Answers that may wait for a model; a request beyond them gets status 429.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_waiting: u32,
    /// The most bytes of a request's body.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(1..))]
    max_body: u32,
    /// The longest that a request may take, in seconds.
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// The longest that a client may take to send a request or to take what is sent, in seconds.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    client_timeout: u32,
    /// The longest that running answers may take when the server is to stop, in seconds.
    #[arg(long, value_name = "S", default_value_t = 30)]
    shutdown_timeout: u32,
    #[command(flatten)]
    running: stage::Running<Precision>,
}

impl Args {
    fn limits(&self) -> Limits {
        let seconds = |s: u32| Duration::from_secs(s.into());
        Limits {
            body: self.max_body as usize,
            waiting: self.max_waiting as usize,
            request: seconds(self.timeout),
            client: seconds(self.client_timeout),
        }
    }
}

type Worker = JoinHandle<anyhow::Result<()>>;

/// Runs with the words after `serve`.
pub(crate) fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let args = Args::parse_from(std::iter::once(OsString::from("chat serve")).chain(words));
    stage::program(args.running.verbosity.verbose, || run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let named = models::find(&args.model, &args.adapter)?;
    let running = Running {
        device: device::resolve(&args.running.device.to_string()).usage()?,
        precision: args.running.precision,
        rows: args.rows.into(),
        context: args.context.map(|tokens| tokens as usize),
    };
    let limits = args.limits();
    let served = named
        .iter()
        .map(|one| one.open(running, Queue::new(limits.waiting, limits.client)).map(Arc::new))
        .collect::<anyhow::Result<Vec<Arc<Served>>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind((args.host.as_str(), args.port)));
    let listener = listener
        .with_context(|| format!("cannot listen on {}, port {}", args.host, args.port))
        .hint("give another with --host and --port; port 0 takes a free one")
        .usage()?;
    let interrupt = Interrupt::install(&[Signal::Int, Signal::Term])?;
    let decoders = models::load(&named, running)?;
    let workers = decoders.into_iter().zip(&served);
    let workers = workers.map(|(decoder, served)| models::start(decoder, served, running));
    let workers = workers.collect::<anyhow::Result<Vec<Worker>>>()?;
    let ids: Vec<&str> = served.iter().map(|served| &*served.id).collect();
    show(&format!("serving {} at {}\n", ids.join(", "), http::url(listener.local_addr()?)))?;
    let server = Arc::new(Server::new(served.clone(), limits));
    let stopped = async {
        while interrupt.requested().is_none() && !workers.iter().any(Worker::is_finished) {
            tokio::time::sleep(LOOK).await;
        }
        if let Some(signal) = interrupt.requested() {
            tracing::info!("{signal}: finishing what runs; once more ends at once");
        }
    };
    let break_off = || served.iter().for_each(|served| served.queue.break_off());
    let limit = Duration::from_secs(args.shutdown_timeout.into());
    runtime.block_on(http::serve(listener, server, stopped, limit, break_off));
    for served in &served {
        served.queue.close();
    }
    end(workers)
}

/// Waits for the workers; their first error, or panic, is the program's.
fn end(workers: Vec<Worker>) -> anyhow::Result<()> {
    for worker in workers {
        match worker.join() {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok(())
}

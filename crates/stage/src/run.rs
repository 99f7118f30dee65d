//! The course of a stage: parse, plan, open the run directory, run, seal.

use std::any::Any;
use std::backtrace::Backtrace;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use artifact::{FORMAT_VERSION, Manifest, RunDir};
use serde_json::{Map, Value};

use crate::card;
use crate::cli::{self, Args, Info, Parallel};
use crate::config::{self, Describe, Loaded, Paths, StageConfig};
use crate::context::Context;
use crate::error::{Hint, UsageError, exit_code, report};
use crate::interrupt::{Interrupt, Signal};
use crate::layout::Layout;
use crate::logging;
use crate::metrics::Metrics;
use crate::progress::around_bars;

/// What a stage reports, for the manifest.
pub type Results = Map<String, Value>;

/// The work of a stage.
pub type Run<Plan> = fn(&mut Context, Plan) -> anyhow::Result<Results>;

/// Runs a stage with this process's command line; the whole `main` of a stage binary.
///
/// `run` does the work and returns what the stage reports, for the manifest's `results`. Before it,
/// the command line and the configuration are read and checked (`--check` ends there), the run
/// directory is opened and its `config.toml` written. After it, `manifest.json` is written, which
/// makes the run finished. An error or a panic becomes a message on stderr and an exit code.
///
/// `run` calls [`Context::start`] once it has found its inputs and its device good; until then an earlier run in the
/// directory stays as it is.
pub fn main<C: StageConfig>(info: &Info, run: Run<C::Plan>) -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    ExitCode::from(main_with::<C>(info, run, &args))
}

/// [`main`] with the arguments given (without the program's name); returns the exit code.
pub fn main_with<C: StageConfig>(info: &Info, run: Run<C::Plan>, args: &[OsString]) -> u8 {
    let args = match cli::parse(info, args) {
        Ok(args) => args,
        Err(error) => {
            // It goes to stdout for --help and to stderr for usage; a closed one changes nothing.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    guarded(args.verbose, || execute::<C>(info, run, &args))
}

/// Runs a program that is no stage: without a configuration and a run directory, but with the same logging, the same
/// errors and exit codes. `verbose` as `-v` on the command line.
pub fn program(verbose: u8, run: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    ExitCode::from(guarded(verbose, run))
}

/// Turns an error or a panic into a message on stderr and an exit code.
fn guarded(verbose: u8, run: impl FnOnce() -> anyhow::Result<()>) -> u8 {
    logging::init(verbose);
    catch_panics();
    let error = match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => match take_panic() {
            Some(place) => {
                Hint::new(error, format!("a thread of this run panicked {place}")).into()
            }
            None => error,
        },
        Err(payload) => internal_error(&*payload),
    };
    let text = logging::of_rank(&report(&error));
    let _ = around_bars(|| io::stderr().write_all(text.as_bytes()));
    exit_code(&error)
}

fn execute<C: StageConfig>(info: &Info, run: Run<C::Plan>, args: &Args) -> anyhow::Result<()> {
    let clock = Clock::start();
    let layout = find_layout(info, args)?;
    let loaded: Loaded<C> = config::load(info.name, &args.config, &args.overrides)?;
    let (toml, json) = (loaded.to_toml()?, loaded.to_json()?);
    let (seed, out) = (loaded.seed, loaded.out);
    let paths = Paths { config: args.config.clone(), out: out.clone() };
    let plan = loaded.config.plan(&paths).map_err(|mut problems| {
        let flags = args.overrides.iter().map(|o| (o.key.clone(), o.flag.clone()));
        problems.cite(&flags.collect::<Vec<_>>());
        let count = problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        let config = args.config.display();
        UsageError::new(anyhow::anyhow!("{config} has {count} {noun}\n{problems}"))
    })?;
    if args.check && !layout.is_first() {
        return Ok(());
    }
    if args.check {
        return print_plan(&plan.describe(layout.size));
    }
    let run_dir = open_run_dir(out)?;
    let interrupt = Interrupt::install(&Signal::ALL).context("cannot listen for signals")?;
    let mut ctx = Context {
        metrics: if layout.is_first() { Metrics::new(&run_dir) } else { Metrics::none(&run_dir) },
        layout,
        resume: args.resume,
        interrupt,
        config: json,
        toml,
        versions: BTreeMap::from([("temper".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
        ..Context::detached(run_dir, seed, args.device)
    };
    tracing::info!("{} starts in {}", info.name, ctx.run_dir.path().display());
    let results = run(&mut ctx, plan);
    ctx.metrics.finish_progress();
    if !ctx.layout.is_first() {
        return results.map(drop);
    }
    seal(info, ctx, results?, &clock)
}

/// Which process this is of how many, if the stage can have several.
fn find_layout(info: &Info, args: &Args) -> anyhow::Result<Layout> {
    let layout = Layout { backend: args.backend, ..Layout::from_env(args.patience)? };
    if layout.is_shared() && info.parallel == Parallel::No {
        let what = format!("{} runs in one process, but WORLD_SIZE is {}", info.name, layout.size);
        let hint = "start it by itself, without torchrun, or unset WORLD_SIZE";
        return Err(UsageError::new(Hint::new(anyhow::anyhow!(what), hint)).into());
    }
    Ok(layout)
}

/// Opens the run directory, without touching what is in it.
fn open_run_dir(out: std::path::PathBuf) -> anyhow::Result<RunDir> {
    RunDir::create(out).map_err(|error| match error {
        error @ artifact::Error::NotRunDir { .. } => {
            UsageError::new(Hint::new(error, "set it with --out or with the configuration's `out`"))
                .into()
        }
        error => anyhow::Error::new(error),
    })
}

/// Writes the manifest, which makes the run finished.
fn seal(info: &Info, ctx: Context, results: Results, clock: &Clock) -> anyhow::Result<()> {
    anyhow::ensure!(ctx.started, "internal error: the stage did not call Context::start");
    ctx.check_unchanged()?;
    let outputs = ctx.run_dir.outputs()?;
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        stage: info.name.to_owned(),
        inputs: ctx.inputs,
        outputs,
        config: ctx.config,
        seed: ctx.seed,
        versions: ctx.versions,
        device: ctx.device_name,
        started_at: clock.started_at.clone(),
        finished_at: timestamp(),
        wall_seconds: (clock.started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
        tokenizer: ctx.tokenizer,
        chat_template: ctx.chat_template,
        results,
    };
    card::write(info, &manifest, &ctx.toml, &ctx.run_dir)?;
    manifest.write(&ctx.run_dir)?;
    tracing::info!("{} finished {}", info.name, ctx.run_dir.path().display());
    Ok(())
}

fn print_plan(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| if text.ends_with('\n') { out.flush() } else { out.write_all(b"\n") });
    match written {
        // The reader has seen enough: `--check | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot print the plan"),
    }
}

struct Clock {
    started: Instant,
    started_at: String,
}

impl Clock {
    fn start() -> Self {
        Self { started: Instant::now(), started_at: timestamp() }
    }
}

/// Now, RFC 3339 in UTC to the millisecond.
pub(crate) fn timestamp() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

/// The place and backtrace of the last panic, for the report.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Keeps panics off the terminal: [`internal_error`] reports the one that ends the run. With
/// `RUST_BACKTRACE` set, the backtrace is part of that report.
fn catch_panics() {
    panic::set_hook(Box::new(|info| {
        if artifact::guard::is_guarded() {
            return;
        }
        let place = info.location().map_or_else(String::new, |at| format!("at {at}"));
        let trace = Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(format!("{place}{trace}"));
    }));
}

fn take_panic() -> Option<String> {
    LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn internal_error(payload: &(dyn Any + Send)) -> anyhow::Error {
    let message = payload.downcast_ref::<String>().map(String::as_str);
    let message =
        message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
    // Of a panic that libtorch brought about, what it says and not its C++ backtrace.
    let said = message.strip_prefix("called `Result::unwrap()` on an `Err` value: Torch(\"");
    let message =
        said.map_or(message, |said| said.split("\\nException raised").next().unwrap_or(said));
    let memory = ["out of memory", "can't allocate memory"];
    if memory.iter().any(|words| message.contains(words)) {
        let what = message.strip_prefix("out of memory: ").unwrap_or(message);
        let error = anyhow::anyhow!("out of memory: {what}");
        let hint = "lower micro_batch_tokens or the rows generated at the same time, or set activation_checkpointing = \"layer\"";
        return Hint::new(error, hint).into();
    }
    let error = anyhow::Error::msg(take_panic().unwrap_or_default());
    let error = error.context(format!("internal error: {message}"));
    Hint::new(error, "this is a defect of temper, not of your input; please report it").into()
}

#[cfg(test)]
mod tests;

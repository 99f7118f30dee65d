//! Metrics: a line of JSON and TensorBoard events for each log step, and a line for the terminal.

use std::path::PathBuf;
use std::time::Duration;

use artifact::RunDir;

use crate::memory;
use crate::progress::{Progress, human_bytes, human_duration};

mod jsonl;
pub mod tensorboard;

use jsonl::JsonLines;
use tensorboard::EventWriter;

/// The names that the progress bar has room for, with what it calls them.
const ON_BAR: [(&str, &str); 4] = [
    ("loss", "loss"),
    ("learning_rate", "lr"),
    ("grad_norm", "grad_norm"),
    ("tokens_per_second", "tok/s"),
];
/// A stage that knows its device's memory logs it under this name; else the process's is shown.
const MEMORY: &str = "memory_bytes";

/// The metrics of one run.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    events_dir: PathBuf,
    sinks: Option<Sinks>,
    progress: Progress,
    quiet: bool,
    /// Whether it is another process that writes.
    silent: bool,
}

#[derive(Debug)]
struct Sinks {
    lines: JsonLines,
    events: EventWriter,
}

impl Metrics {
    /// The metrics of a run directory; files are opened at [`begin`](Self::begin) or the first log.
    pub fn new(run: &RunDir) -> Self {
        let (path, events_dir) = (run.metrics_path(), run.tensorboard_dir());
        Self {
            path,
            events_dir,
            sinks: None,
            progress: Progress::hidden(),
            quiet: false,
            silent: false,
        }
    }

    /// As [`new`](Self::new), without anything on the terminal: for tests.
    pub fn quiet(run: &RunDir) -> Self {
        Self { quiet: true, ..Self::new(run) }
    }

    /// Those of a process that leaves it to another to write: nothing is written or shown.
    pub fn none(run: &RunDir) -> Self {
        Self { silent: true, ..Self::quiet(run) }
    }

    /// Opens the files. `None` is a fresh start: what an earlier run logged here is removed. After
    /// resuming from step `s`, `Some(s)` removes only what was logged for steps after `s`, which come
    /// again (in TensorBoard by a purge event).
    ///
    /// # Errors
    /// Those of the file system.
    pub fn begin(&mut self, resumed: Option<u64>) -> anyhow::Result<()> {
        if self.silent {
            return Ok(());
        }
        let lines = JsonLines::open(&self.path, resumed)?;
        let events = EventWriter::open(&self.events_dir, resumed)?;
        self.sinks = Some(Sinks { lines, events });
        Ok(())
    }

    /// Shows progress over steps, `first` of which are done.
    pub fn start_progress(&mut self, total_steps: u64, first: u64) {
        if !self.quiet {
            self.progress.clear();
            self.progress = Progress::starting_at("", Some(total_steps), first);
        }
    }

    /// Moves the progress to `step` steps done: cheap, to be called after each.
    pub fn advance(&self, step: u64) {
        self.progress.set_position(step);
    }

    /// Removes the bar.
    pub fn finish_progress(&mut self) {
        self.progress.clear();
    }

    /// Logs values for a step: one line in `metrics.jsonl` with `step`, the values in the order given,
    /// and `time` (seconds since 1970); a TensorBoard scalar each; and the terminal. A value that is not
    /// finite is `null` in JSON.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn log(&mut self, step: u64, values: &[(&str, f64)]) -> anyhow::Result<()> {
        if self.silent {
            return Ok(());
        }
        let sinks = self.sinks()?;
        let now = tensorboard::now();
        sinks.lines.write(step, values, now)?;
        sinks.events.scalars(step, values, now)?;
        self.progress.set_position(step.max(self.progress.position()));
        if self.progress.is_bar() {
            self.progress.set_message(bar_words(values, memory::rss_bytes()));
        } else if !self.quiet {
            let words = self.progress.position_words(step);
            let line = plain_line(&words, values, memory::rss_bytes(), self.progress.eta());
            Progress::line_anyway(&line);
        }
        Ok(())
    }

    /// Logs a text for a step to TensorBoard's text view, for instance a sampled response.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn text(&mut self, tag: &str, step: u64, text: &str) -> anyhow::Result<()> {
        if self.silent {
            return Ok(());
        }
        Ok(self.sinks()?.events.text(tag, step, text, tensorboard::now())?)
    }

    fn sinks(&mut self) -> anyhow::Result<&mut Sinks> {
        if self.sinks.is_none() {
            self.begin(None)?;
        }
        self.sinks.as_mut().ok_or_else(|| anyhow::anyhow!("metrics files are not open"))
    }
}

/// A number in few digits: whole ones as they are, small and large ones with an exponent.
fn short(value: f64) -> String {
    let size = value.abs();
    if size < 1e9 && value.to_string().find('.').is_none() {
        format!("{value:.0}")
    } else if (1e-3..1e5).contains(&size) {
        let digits = if size < 100.0 { 4 } else { 1 };
        format!("{value:.digits$}")
    } else {
        format!("{value:.2e}")
    }
}

fn memory_words(values: &[(&str, f64)], rss: Option<u64>) -> Option<String> {
    let logged = values.iter().find(|(name, _)| *name == MEMORY).map(|(_, bytes)| *bytes as u64);
    logged.or(rss).map(|bytes| format!("mem {}", human_bytes(bytes)))
}

fn bar_words(values: &[(&str, f64)], rss: Option<u64>) -> String {
    let mut words: Vec<String> = ON_BAR
        .iter()
        .filter_map(|(name, label)| {
            let (_, value) = values.iter().find(|(found, _)| found == name)?;
            Some(format!("{label} {}", short(*value)))
        })
        .collect();
    words.extend(memory_words(values, rss));
    words.join("  ")
}

fn plain_line(at: &str, values: &[(&str, f64)], rss: Option<u64>, eta: Option<Duration>) -> String {
    let mut words = vec![format!("step {at}")];
    for (name, value) in values.iter().filter(|(name, _)| *name != MEMORY) {
        let label =
            ON_BAR.iter().find(|(found, _)| found == name).map_or(*name, |(_, label)| label);
        words.push(format!("{label} {}", short(*value)));
    }
    words.extend(memory_words(values, rss));
    words.extend(eta.map(|eta| format!("eta {}", human_duration(eta))));
    words.join("  ")
}

#[cfg(test)]
mod tests;

//! Progress: a bar with the time left on a terminal, plain lines elsewhere.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where no terminal is, a plain line at most this often (and at the end).
const PLAIN_EVERY: Duration = Duration::from_secs(10);

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes to stderr while no bar is drawn there.
pub(crate) fn around_bars<T>(write: impl FnOnce() -> T) -> T {
    BARS.suspend(write)
}

/// The progress of a loop. Can be shared by threads.
#[derive(Debug)]
pub struct Progress {
    label: String,
    total: Option<u64>,
    first: u64,
    at: AtomicU64,
    started: Instant,
    show: Show,
}

#[derive(Debug)]
enum Show {
    Bar(ProgressBar),
    /// When the last line was written.
    Plain(Mutex<Instant>),
    Nothing,
}

impl Progress {
    /// Progress shown on stderr: `label`, and the time left if `total` is known.
    pub fn new(label: &str, total: Option<u64>) -> Self {
        Self::starting_at(label, total, 0)
    }

    /// As [`new`](Self::new) for work of which `first` is done already: a resumed run.
    pub fn starting_at(label: &str, total: Option<u64>, first: u64) -> Self {
        let show = if io::stderr().is_terminal() {
            Show::Bar(bar(label, total, first))
        } else {
            Show::Plain(Mutex::new(Instant::now()))
        };
        let started = Instant::now();
        Self { label: label.to_owned(), total, first, at: AtomicU64::new(first), started, show }
    }

    /// Progress that shows nothing.
    pub fn hidden() -> Self {
        let (label, started) = (String::new(), Instant::now());
        Self { label, total: None, first: 0, at: AtomicU64::new(0), started, show: Show::Nothing }
    }

    /// How far it is.
    pub fn position(&self) -> u64 {
        self.at.load(Ordering::Relaxed)
    }

    /// Goes on by `count`.
    pub fn inc(&self, count: u64) {
        let at = self.at.fetch_add(count, Ordering::Relaxed) + count;
        self.shown(at);
    }

    /// Goes to `at`.
    pub fn set_position(&self, at: u64) {
        self.at.store(at, Ordering::Relaxed);
        self.shown(at);
    }

    /// Sets the words at the end of the bar; plain output has none.
    pub fn set_message(&self, message: impl Display) {
        if let Show::Bar(bar) = &self.show {
            bar.set_message(message.to_string());
        }
    }

    /// Writes a line above the bar, or a plain line.
    pub fn line(&self, line: impl Display) {
        if !matches!(self.show, Show::Nothing) {
            Self::line_anyway(line);
        }
    }

    /// Writes a line to stderr, above any bar.
    pub(crate) fn line_anyway(line: impl Display) {
        // A closed stderr must not stop a run.
        let _ = around_bars(|| writeln!(io::stderr(), "{line}"));
    }

    /// The time the rest takes at the pace so far.
    pub fn eta(&self) -> Option<Duration> {
        remaining(self.started.elapsed(), self.first, self.position(), self.total?)
    }

    /// Whether it is a bar on a terminal.
    pub(crate) fn is_bar(&self) -> bool {
        matches!(self.show, Show::Bar(_))
    }

    /// Ends it: removes the bar, or writes a last plain line.
    pub fn finish(&self) {
        match &self.show {
            Show::Bar(bar) => bar.finish_and_clear(),
            Show::Plain(_) => {
                let took = human_duration(self.started.elapsed());
                self.line(format_args!("{}: {} done in {took}", self.label, self.position()));
            }
            Show::Nothing => {}
        }
    }

    /// Ends it without a word: the caller has written its own lines.
    pub(crate) fn clear(&self) {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
    }

    /// How far it is in words: `120/500 (24%)` or `120`.
    pub(crate) fn position_words(&self, at: u64) -> String {
        match self.total {
            Some(total) if total > 0 => format!("{at}/{total} ({}%)", at * 100 / total),
            _ => at.to_string(),
        }
    }

    fn shown(&self, at: u64) {
        match &self.show {
            Show::Bar(bar) => bar.set_position(at),
            Show::Plain(last) => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() >= PLAIN_EVERY && !self.label.is_empty() {
                    *last = Instant::now();
                    drop(last);
                    let eta = self.eta().map(|eta| format!("  eta {}", human_duration(eta)));
                    let words = self.position_words(at);
                    self.line(format_args!("{}: {words}{}", self.label, eta.unwrap_or_default()));
                }
            }
            Show::Nothing => {}
        }
    }
}

fn bar(label: &str, total: Option<u64>, first: u64) -> ProgressBar {
    let template = match total {
        Some(_) => "{prefix} {bar:10} {human_pos}/{human_len} eta {eta} {wide_msg}",
        None => "{prefix} {spinner} {human_pos} {elapsed} {wide_msg}",
    };
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(label.to_owned());
    let bar = BARS.add(bar);
    bar.set_position(first);
    bar.reset_eta();
    bar
}

/// Steps done since the start decide the pace; none done, or no end in sight, gives nothing.
fn remaining(elapsed: Duration, first: u64, at: u64, total: u64) -> Option<Duration> {
    let done = at.checked_sub(first).filter(|done| *done > 0)?;
    let left = total.saturating_sub(at);
    Duration::try_from_secs_f64(elapsed.as_secs_f64() * left as f64 / done as f64).ok()
}

/// A duration for a reader: `5s`, `1m 02s`, `3h 04m`, `2d 03h`.
pub fn human_duration(duration: Duration) -> String {
    let s = duration.as_secs_f64().round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h {:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {:02}h", s / 86400, s / 3600 % 24),
    }
}

/// A number of bytes for a reader: `512 B`, `1.5 KiB`, `12.0 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= 1024.0 {
        let Some(next) = units.next() else { break };
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_bytes_read_well() {
        let d = |s| human_duration(Duration::from_secs(s));
        assert_eq!([d(0), d(59), d(62), d(3599)], ["0s", "59s", "1m 02s", "59m 59s"]);
        assert_eq!([d(3600), d(86399), d(86400 + 3 * 3600)], ["1h 00m", "23h 59m", "1d 03h"]);
        let b = human_bytes;
        assert_eq!([b(0), b(1023), b(1024), b(1536)], ["0 B", "1023 B", "1.0 KiB", "1.5 KiB"]);
        assert_eq!(b(12 << 30), "12.0 GiB");
        assert_eq!(b(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn the_time_left_counts_from_where_a_resumed_run_began() {
        let s = Duration::from_secs;
        assert_eq!(remaining(s(10), 0, 100, 300), Some(s(20)));
        assert_eq!(remaining(s(10), 90, 100, 300), Some(s(200)));
        assert_eq!(remaining(s(10), 0, 300, 300), Some(s(0)));
        assert_eq!(remaining(s(10), 100, 100, 300), None);
        assert_eq!(remaining(s(10), 0, 400, 300), Some(s(0)));
    }

    #[test]
    fn threads_share_one_position() {
        let progress = Progress::hidden();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| progress.inc(1)));
            }
        });
        assert_eq!(progress.position(), 4000);
        assert_eq!(progress.position_words(5), "5");
        let progress = Progress::starting_at("x", Some(500), 20);
        assert_eq!(progress.position(), 20);
        assert_eq!(progress.position_words(120), "120/500 (24%)");
    }
}

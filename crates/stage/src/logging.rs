//! Log lines on stderr that do not tear a progress bar.

use std::fmt;
use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::progress;

/// Starts logging: `info` and above, `debug` with `-v`, everything with `-vv`; `TEMPER_LOG` (in the
/// syntax of tracing's `EnvFilter`) overrides both. Later calls do nothing.
pub(crate) fn init(verbose: u8) {
    let level = match verbose {
        // What the other processes of a job do as well is told once.
        0 if rank() > 0 => "warn",
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("TEMPER_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(verbose > 0)
        .with_timer(Utc)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_writer(Stderr);
    // A second run in the same process (tests) keeps the first one's logging.
    drop(subscriber.try_init());
}

/// `RANK`, where a launcher has started several processes; else 0.
fn rank() -> usize {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    number("RANK").filter(|_| number("WORLD_SIZE") > Some(1)).unwrap_or(0)
}

/// A text of one of several processes, with its rank before it where it is not the first.
pub(crate) fn of_rank(text: &str) -> String {
    match rank() {
        0 => text.to_owned(),
        rank => format!("[rank {rank}] {text}"),
    }
}

/// The time in UTC to the second.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{:.0}", jiff::Timestamp::now())
    }
}

#[derive(Clone, Copy)]
struct Stderr;

impl Write for Stderr {
    /// The subscriber hands over whole lines.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = of_rank(&String::from_utf8_lossy(bytes));
        progress::around_bars(|| io::stderr().write_all(text.as_bytes()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for Stderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

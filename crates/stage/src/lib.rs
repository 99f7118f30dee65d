//! The edges that all stage binaries share: command line, configuration, logging, progress, metrics,
//! signals, exit codes, and the run directory's opening and closing. No tensors, no libtorch.
//!
//! A stage binary is one call:
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     seed: u64,                // both keys are in every stage's configuration
//!     out: std::path::PathBuf,
//!     rows: u64,
//! }
//!
//! struct Plan { rows: u64 }
//!
//! impl stage::StageConfig for Config {
//!     type Plan = Plan;
//!     fn plan(self, _at: &stage::Paths) -> Result<Plan, stage::Problems> {
//!         let mut problems = stage::Problems::new();
//!         problems.check(self.rows > 0, "rows", "must be above 0");
//!         problems.finish(Plan { rows: self.rows })
//!     }
//! }
//!
//! impl stage::Describe for Plan {
//!     fn describe(&self, _processes: usize) -> String { format!("rows  {}\n", self.rows) }
//! }
//!
//! const INFO: stage::Info = stage::Info {
//!     name: "count", about: "Counts rows.", reads: "nothing", writes: "nothing",
//!     example: "count --set rows=3", parallel: stage::Parallel::No,
//! };
//!
//! fn main() -> std::process::ExitCode {
//!     stage::main::<Config>(&INFO, |ctx, plan| {
//!         ctx.check_interrupt()?;
//!         Ok(serde_json::Map::from_iter([("rows".to_owned(), plan.rows.into())]))
//!     })
//! }
//! ```
//!
//! # Conventions
//! - Paths in a configuration are relative to the current directory, which is the repository's root.
//! - Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130/143/138 stopped by
//!   SIGINT/SIGTERM/SIGUSR1 after saving.
//! - Logs, progress and errors go to stderr; stdout is for what was asked for (`--check`, `--help`).
//! - An error is an `error:` line, its `caused by:` chain, and `hint:` lines.

pub mod basis;
mod card;
mod cli;
pub mod config;
mod context;
mod device;
mod error;
mod interrupt;
mod layout;
mod lock;
mod logging;
mod memory;
pub mod metrics;
mod options;
mod problems;
mod progress;
mod run;
mod team;

pub use cli::{Info, Parallel};
pub use config::{Describe, Paths, StageConfig};
pub use context::Context;
pub use device::DeviceSpec;
pub use error::{ErrorExt, Hint, UsageError, report};
pub use interrupt::{Interrupt, Interrupted, Signal};
pub use layout::{Backend, Layout};
pub use memory::{peak_rss_bytes, rss_bytes};
pub use metrics::Metrics;
pub use options::{Running, Verbosity};
pub use problems::Problems;
pub use progress::{Progress, human_bytes, human_duration};
pub use run::{Results, Run, main, main_with, program};
pub use team::{Team, together};

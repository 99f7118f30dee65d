//! What a stage's `run` is given: the run directory and everything around it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use artifact::chain::{Checked, Stamp, check_input};
use artifact::{Digest, Input, RunDir, atomic};

use crate::device::DeviceSpec;
use crate::error::{Hint, UsageError};
use crate::interrupt::{Interrupt, Interrupted};
use crate::layout::Layout;
use crate::lock::Lock;
use crate::metrics::Metrics;

/// The surroundings of one run.
#[derive(Debug)]
pub struct Context {
    /// Where the run writes, and nowhere else.
    pub run_dir: RunDir,
    /// The configuration's `seed`.
    pub seed: u64,
    /// The device asked for.
    pub device: DeviceSpec,
    /// Which of the job's processes this is. Only the first writes into the run directory.
    pub layout: Layout,
    /// Whether to go on from the last checkpoint if there is one. There is none when the directory
    /// holds a finished run: running that again starts over.
    pub resume: bool,
    /// Metrics and progress.
    pub metrics: Metrics,
    /// Signals.
    pub interrupt: Interrupt,
    /// What was read, in order; see [`input`](Self::input).
    pub inputs: Vec<Input>,
    /// The tokenizer the products go with, for the manifest.
    pub tokenizer: Option<Digest>,
    /// The chat template the products go with, for the manifest.
    pub chat_template: Option<Digest>,
    pub(crate) device_name: String,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) config: serde_json::Value,
    /// The resolved configuration as TOML.
    pub(crate) toml: String,
    pub(crate) started: bool,
    /// Held while the run goes on, so that no other process writes here.
    pub(crate) lock: Option<Lock>,
    /// The state of each of `inputs` before it was digested.
    pub(crate) stamps: Vec<Stamp>,
    /// Where the processes of the job meet, if they share the work by files.
    pub(crate) team: Option<PathBuf>,
}

impl Context {
    /// A context that listens to no signals and shows nothing on the terminal: for tests and for use
    /// of the training code as a library.
    pub fn detached(run_dir: RunDir, seed: u64, device: DeviceSpec) -> Self {
        let metrics = Metrics::quiet(&run_dir);
        Self {
            run_dir,
            seed,
            device,
            layout: Layout::default(),
            resume: true,
            metrics,
            interrupt: Interrupt::none(),
            inputs: Vec::new(),
            tokenizer: None,
            chat_template: None,
            device_name: device.to_string(),
            versions: BTreeMap::new(),
            config: serde_json::Value::Object(serde_json::Map::new()),
            toml: String::new(),
            started: false,
            lock: None,
            stamps: Vec::new(),
            team: None,
        }
    }

    /// Records that the run reads `path` as `role` (`model`, `train`, ...) with its digest, and checks
    /// it against the manifest of the run that made it.
    ///
    /// # Errors
    /// If it cannot be read, its run has not finished, it changed since, or it lies in this run's own directory; each
    /// names the path.
    pub fn input(&mut self, role: &str, path: &Path) -> anyhow::Result<Checked> {
        let own = fs_err::canonicalize(self.run_dir.path())?;
        if fs_err::canonicalize(path)?.starts_with(&own) {
            let what = format!("{}: the run reads this and would replace it", path.display());
            let error = Hint::new(anyhow::anyhow!(what), "choose another run directory with --out");
            return Err(UsageError::new(error).into());
        }
        // Before the digest, so that no write can fall between them.
        let stamp = Stamp::of(path);
        let checked = check_input(path)?;
        self.stamps.push(stamp?);
        let (role, path) = (role.to_owned(), path.to_path_buf());
        self.inputs.push(Input { role, path, digest: checked.digest.clone() });
        Ok(checked)
    }

    /// Begins to write: to be called once what the run needs has been found good (its inputs, its device), because from
    /// here on an earlier run in the directory is given up. With `--resume auto` that of a finished one starts over: its
    /// manifest, checkpoints and metrics go at once, its products when they are replaced; an unfinished one is taken up
    /// as it is. With `--resume never` everything a run made there goes. Of several processes the first does this.
    ///
    /// # Errors
    /// Another process at work in the directory; those of the file system.
    pub fn start(&mut self) -> anyhow::Result<()> {
        if !self.layout.is_first() {
            self.started = true;
            return Ok(());
        }
        self.lock = Some(Lock::take(&self.run_dir)?);
        if !self.resume {
            self.run_dir.clear().map_err(UsageError::new)?;
        } else if self.run_dir.is_finished() {
            self.run_dir.reopen()?;
        }
        self.run_dir.remove_ranks(self.team.as_deref())?;
        for path in atomic::sweep(self.run_dir.path())? {
            tracing::debug!("removed {}, left by a run that was killed", path.display());
        }
        self.run_dir.write_config(&self.toml)?;
        self.started = true;
        Ok(())
    }

    /// An error if something that the run reads is no longer what it was: what has been made of it may come from either. To be
    /// called before anything is saved that the run could go on from; costs a look at each file.
    ///
    /// # Errors
    /// Names the input that changed, or cannot be read any more.
    pub fn check_unchanged(&self) -> anyhow::Result<()> {
        for (input, stamp) in self.inputs.iter().zip(&self.stamps) {
            if Stamp::of(&input.path).is_ok_and(|now| now == *stamp) {
                continue;
            }
            let now = check_input(&input.path).map(|checked| checked.digest);
            if now.as_ref().is_ok_and(|now| *now == input.digest) {
                continue;
            }
            let what = format!("{}: changed while this run read it", input.path.display());
            let error = match now {
                Ok(now) => {
                    anyhow::anyhow!("{} at its start, {} now", input.digest.short(), now.short())
                }
                Err(error) => error.into(),
            };
            return Err(Hint::new(
                error.context(what),
                "put it back and run the same command again to go on, or start over with --resume never",
            )
            .into());
        }
        Ok(())
    }

    /// Sets the device in words, for the manifest: `cuda:0 NVIDIA H100`.
    pub fn set_device(&mut self, name: impl Into<String>) {
        self.device_name = name.into();
    }

    /// Adds a version to the manifest: `ctx.version("libtorch", "2.11.0")`.
    pub fn version(&mut self, what: impl Into<String>, version: impl Into<String>) {
        self.versions.insert(what.into(), version.into());
    }

    /// The resolved configuration.
    pub fn config(&self) -> &serde_json::Value {
        &self.config
    }

    /// An error if a signal has asked the run to stop: for places where stopping loses nothing.
    ///
    /// # Errors
    /// [`Interrupted`], which becomes the exit code 130, 143 or 138.
    pub fn check_interrupt(&self) -> Result<(), Interrupted> {
        self.interrupt.check()
    }
}

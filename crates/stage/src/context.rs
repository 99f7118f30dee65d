//! What a stage's `run` is given: the run directory and everything around it.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::chain::{Checked, check_input};
use artifact::{Digest, Input, RunDir, digest};

use crate::device::DeviceSpec;
use crate::interrupt::{Interrupt, Interrupted};
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
            resume: true,
            metrics,
            interrupt: Interrupt::none(),
            inputs: Vec::new(),
            tokenizer: None,
            chat_template: None,
            device_name: device.to_string(),
            versions: BTreeMap::new(),
            config: serde_json::Value::Object(serde_json::Map::new()),
        }
    }

    /// Records that the run reads `path` as `role` (`model`, `train`, ...) with its digest, and checks
    /// it against the manifest of the run that made it.
    ///
    /// # Errors
    /// If it cannot be read, its run has not finished, or it changed since; each names the path.
    pub fn input(&mut self, role: &str, path: &Path) -> artifact::Result<Checked> {
        let checked = check_input(path)?;
        let (role, path) = (role.to_owned(), path.to_path_buf());
        self.inputs.push(Input { role, path, digest: checked.digest.clone() });
        Ok(checked)
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

    /// The digest of the resolved configuration without `out`: two runs with the same one do the same
    /// if their [`inputs_digest`](Self::inputs_digest) is the same too.
    pub fn config_digest(&self) -> Digest {
        crate::config::config_digest(&self.config)
    }

    /// The digest of the inputs recorded so far: their roles and contents, not their paths.
    pub fn inputs_digest(&self) -> Digest {
        let list = self.inputs.iter().map(|input| (input.role.clone(), input.digest.clone()));
        digest::listing(&list.collect::<Vec<_>>())
    }

    /// Whether a signal has asked the run to stop.
    pub fn stop_requested(&self) -> bool {
        self.interrupt.requested().is_some()
    }

    /// An error if a signal has asked the run to stop: for places where stopping loses nothing.
    ///
    /// # Errors
    /// [`Interrupted`], which becomes the exit code 130, 143 or 138.
    pub fn check_interrupt(&self) -> Result<(), Interrupted> {
        self.interrupt.check()
    }
}

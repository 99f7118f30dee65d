//! Where things lie in a run directory, and how a model is found.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::atomic;
use crate::digest::{self, Digest};
use crate::error::{Error, Result};
use crate::manifest::Manifest;

/// The first line of every `config.toml` that a stage writes: how a run directory is told from others.
pub const CONFIG_HEADER: &str = "# The resolved configuration of this run, written by temper.";

const MANIFEST: &str = "manifest.json";
const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const SAMPLES: &str = "samples.parquet";
const RESULTS: &str = "results.json";
const RESULTS_TABLE: &str = "results.parquet";
const REPORT: &str = "report.html";
/// The model card in `model/` and `adapter/`.
pub(crate) const CARD: &str = "README.md";

/// What a consumer may read, in the order of the manifest.
const PRODUCTS: [&str; 8] =
    ["model", "adapter", "tokenizer", "data", SAMPLES, RESULTS, RESULTS_TABLE, REPORT];
/// What belongs to the making only.
const TRACES: [&str; 5] = [MANIFEST, CONFIG, "checkpoints", METRICS, "tensorboard"];

/// A run directory: everything one run of one stage leaves on disk.
///
/// ```text
/// manifest.json                 written last: a directory without it is unfinished
/// config.toml                   the resolved configuration
/// model/  adapter/  tokenizer/  Hugging Face layouts, the first two with a README.md, the model card
/// data/<set>/<split>.parquet
/// checkpoints/step-00000500/    resumable state
/// metrics.jsonl  tensorboard/   metrics
/// samples.parquet               texts the stage generated
/// results.json results.parquet  what `evaluate` measured
/// report.html                   the page that `report` draws
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Makes the directory, or takes up one that a run made or that is empty.
    ///
    /// Hidden entries and `lost+found` (the root of a mounted volume) do not count.
    ///
    /// # Errors
    /// [`Error::NotRunDir`] if it holds anything that no run directory has; then nothing is touched.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let run = Self { root: path.into() };
        fs::create_dir_all(&run.root)?;
        if !run.is_marked()
            && let Some(entry) = run.foreign_entry()?
        {
            return Err(Error::NotRunDir { path: run.root, entry });
        }
        Ok(run)
    }

    /// Opens the directory of a finished run.
    ///
    /// # Errors
    /// If it does not exist, or [`Error::Unfinished`] if it has no manifest.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let run = Self { root: path.into() };
        fs::metadata(&run.root)?;
        if run.is_finished() { Ok(run) } else { Err(Error::Unfinished { path: run.root }) }
    }

    /// The run directory at `path`, finished or not; none where no run of temper left anything.
    pub fn look(path: impl Into<PathBuf>) -> Option<Self> {
        Some(Self { root: path.into() }).filter(Self::is_marked)
    }

    /// The run directory at `path`, or those directly in the folder `path`, by name; finished or not.
    ///
    /// # Errors
    /// If there is no such folder.
    pub fn find(path: &Path) -> io::Result<Vec<Self>> {
        if let Some(run) = Self::look(path) {
            return Ok(vec![run]);
        }
        let entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        let mut folders: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        folders.sort();
        Ok(folders.into_iter().filter_map(Self::look).collect())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// `manifest.json`.
    pub fn manifest_path(&self) -> PathBuf {
        self.root.join(MANIFEST)
    }

    /// `config.toml`.
    pub fn config_path(&self) -> PathBuf {
        self.root.join(CONFIG)
    }

    /// `.holder.json`, the note of the process at work here. It is hidden, so it is neither a product nor foreign.
    pub fn holder_path(&self) -> PathBuf {
        self.root.join(".holder.json")
    }

    /// `.ranks/`, where the processes of a job that share the work by files meet. Hidden, as the note is.
    pub fn ranks_dir(&self) -> PathBuf {
        self.root.join(".ranks")
    }

    /// Removes `.ranks/`, or all in it but the folder `kept`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_ranks(&self, kept: Option<&Path>) -> io::Result<()> {
        let Some(kept) = kept else { return remove(&self.ranks_dir()) };
        for entry in fs::read_dir(self.ranks_dir())? {
            let path = entry?.path();
            if path != kept {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// `model/`, in the Hugging Face layout with the tokenizer's files in it.
    pub fn model_dir(&self) -> PathBuf {
        self.root.join("model")
    }

    /// `adapter/`, in the PEFT layout.
    pub fn adapter_dir(&self) -> PathBuf {
        self.root.join("adapter")
    }

    /// `tokenizer/`: the tokenizer's files of a stage that makes data but no model.
    pub fn tokenizer_dir(&self) -> PathBuf {
        self.root.join("tokenizer")
    }

    /// `data/`.
    pub fn data_dir(&self) -> PathBuf {
        self.root.join("data")
    }

    /// `data/<set>/<split>.parquet`, for instance `data/instructions/train.parquet`.
    pub fn data_file(&self, set: &str, split: &str) -> PathBuf {
        self.data_dir().join(set).join(format!("{split}.parquet"))
    }

    /// `checkpoints/`.
    pub fn checkpoints_dir(&self) -> PathBuf {
        Self::checkpoints_of(&self.root)
    }

    /// `checkpoints/` of a run directory that may be unfinished.
    pub(crate) fn checkpoints_of(root: &Path) -> PathBuf {
        root.join("checkpoints")
    }

    /// `metrics.jsonl`.
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join(METRICS)
    }

    /// `tensorboard/`, the folder of event files.
    pub fn tensorboard_dir(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// `samples.parquet`.
    pub fn samples_path(&self) -> PathBuf {
        self.root.join(SAMPLES)
    }

    /// `results.json`, an [`Evaluation`](crate::evaluation::Evaluation).
    pub fn results_path(&self) -> PathBuf {
        self.root.join(RESULTS)
    }

    /// `results.parquet`, its measurements as a table.
    pub fn results_table_path(&self) -> PathBuf {
        self.root.join(RESULTS_TABLE)
    }

    /// `report.html`.
    pub fn report_path(&self) -> PathBuf {
        self.root.join(REPORT)
    }

    /// Writes the model card, `README.md`, into `dir`, which is `model/` or `adapter/`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_card(dir: &Path, text: &str) -> io::Result<()> {
        atomic::write_bytes(dir.join(CARD), text.as_bytes())
    }

    /// Removes `model/` where an earlier run left one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_model(&self) -> io::Result<()> {
        remove(&self.model_dir())
    }

    /// Removes `adapter/` where an earlier run left one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_adapter(&self) -> io::Result<()> {
        remove(&self.adapter_dir())
    }

    /// Removes `samples.parquet` where an earlier run left one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_samples(&self) -> io::Result<()> {
        remove(&self.samples_path())
    }

    /// Whether the run ended well: it has a manifest.
    pub fn is_finished(&self) -> bool {
        self.manifest_path().is_file()
    }

    /// Writes `config.toml` under the line that marks the folder as a run directory.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_config(&self, toml: &str) -> io::Result<()> {
        atomic::write_bytes(self.config_path(), format!("{CONFIG_HEADER}\n\n{toml}").as_bytes())
    }

    /// Digests of every file of the products (model, adapter, tokenizer, data, samples, results, report), by path
    /// relative to the run directory.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn outputs(&self) -> io::Result<BTreeMap<String, Digest>> {
        let mut outputs = BTreeMap::new();
        for product in PRODUCTS {
            let path = self.root.join(product);
            if path.is_dir() {
                for (name, digest) in digest::dir_files(&path)? {
                    outputs.insert(format!("{product}/{name}"), digest);
                }
            } else if path.is_file() {
                outputs.insert(product.to_owned(), digest::file(&path)?);
            }
        }
        Ok(outputs)
    }

    /// Every file whose digest [`outputs`](Self::outputs) gives, and the manifest.
    pub(crate) fn product_files(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = vec![self.manifest_path()];
        for path in PRODUCTS.map(|product| self.root.join(product)) {
            if path.is_dir() {
                found.extend(digest::names(&path)?.into_iter().map(|(_, path)| path));
            } else if path.is_file() {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Makes a finished run unfinished, so that it can be run again from its beginning: removes the
    /// manifest first, then checkpoints and metrics. Products stay until they are replaced.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn reopen(&self) -> io::Result<()> {
        for name in TRACES.into_iter().filter(|name| *name != CONFIG) {
            remove(&self.root.join(name))?;
        }
        Ok(())
    }

    /// Removes everything a run made here, the manifest first. Entries that no run makes stay.
    ///
    /// # Errors
    /// [`Error::NotRunDir`] if neither `config.toml` nor `manifest.json` here was written by temper
    /// and the folder is not empty; then nothing is touched.
    pub fn clear(&self) -> Result<()> {
        let Some(entry) = self.visible_entries()?.into_iter().next() else { return Ok(()) };
        if !self.is_marked() {
            return Err(Error::NotRunDir { path: self.root.clone(), entry });
        }
        // The marks go last, so that a clear that was cut short can be repeated.
        remove(&self.manifest_path())?;
        for name in PRODUCTS.into_iter().chain(TRACES).filter(|name| *name != CONFIG) {
            remove(&self.root.join(name))?;
        }
        Ok(remove(&self.config_path())?)
    }

    /// Whether temper wrote the `config.toml` or `manifest.json` here.
    pub fn is_marked(&self) -> bool {
        is_config(&self.config_path()) || Manifest::read(self.manifest_path()).is_ok()
    }

    fn visible_entries(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') && name != "lost+found" {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn foreign_entry(&self) -> io::Result<Option<String>> {
        let ours =
            |name: &String| PRODUCTS.contains(&name.as_str()) || TRACES.contains(&name.as_str());
        Ok(self.visible_entries()?.into_iter().find(|name| !ours(name)))
    }
}

/// Whether a file is a `config.toml` that a stage wrote.
pub(crate) fn is_config(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.lines().next() == Some(CONFIG_HEADER))
}

fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => atomic::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// The Hugging Face model directory that a path stands for: the path itself if it has a
/// `config.json`, or `model/` of a finished run directory.
///
/// # Errors
/// [`Error::NotModel`] or [`Error::Unfinished`], saying what was looked for.
pub fn model_dir(path: impl AsRef<Path>) -> Result<PathBuf> {
    let path = path.as_ref();
    let bad = |what: &str| Err(Error::NotModel { path: path.to_path_buf(), what: what.to_owned() });
    if !path.exists() {
        return bad("does not exist");
    }
    if !path.is_dir() {
        return bad("is a file, not a directory");
    }
    if path.join("config.json").is_file() {
        return Ok(path.to_path_buf());
    }
    let run = RunDir { root: path.to_path_buf() };
    let has_model = run.model_dir().join("config.json").is_file();
    match (run.is_finished(), has_model) {
        (true, true) => Ok(run.model_dir()),
        (true, false) if is_adapter(&run.adapter_dir()) => bad(
            "is the run directory of a stage that made an adapter only: set peft.merge = true there, or run `peft merge`",
        ),
        (true, false) => bad("is the run directory of a stage that makes no model"),
        (false, _) if run.is_marked() => Err(Error::Unfinished { path: run.root }),
        (false, _) => bad("has neither config.json nor manifest.json"),
    }
}

fn is_adapter(path: &Path) -> bool {
    path.join("adapter_config.json").is_file()
}

/// The adapter directory in PEFT's layout that a path stands for: the path itself if it has an `adapter_config.json`, or
/// `adapter/` of a finished run directory. `None` for anything else that is there.
///
/// # Errors
/// [`Error::NotModel`] if nothing is there, [`Error::Unfinished`] for a run that has not ended.
pub fn adapter_dir(path: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    let path = path.as_ref();
    if !path.exists() {
        return Err(Error::NotModel {
            path: path.to_path_buf(),
            what: "does not exist".to_owned(),
        });
    }
    if is_adapter(path) {
        return Ok(Some(path.to_path_buf()));
    }
    let run = RunDir { root: path.to_path_buf() };
    let adapter = run.adapter_dir();
    if !is_adapter(&adapter) {
        return Ok(None);
    }
    if run.is_finished() { Ok(Some(adapter)) } else { Err(Error::Unfinished { path: run.root }) }
}

#[cfg(test)]
#[path = "run_dir/tests.rs"]
pub(crate) mod tests;

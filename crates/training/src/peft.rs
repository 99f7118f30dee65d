//! What a stage does with its `[peft]` table: which adapter it trains, over what, and how it is written.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use artifact::digest;
use data::tokenizer::Tokenizer;
use model::peft::{Adapter, AdapterFiles, InitLora, Method, Quantization, trainable_parameters};
use model::{Decoder, LoadOptions, Loading, ModelConfig, Precision};
use stage::{Context, ErrorExt as _, Problems};
use tch::Device;

use crate::settings;

/// An adapter that was trained, and the directory of the model it was trained over.
#[derive(Debug, Clone, Copy)]
pub struct Trained<'a> {
    /// The table.
    pub plan: &'a Plan,
    /// The model's directory.
    pub base: &'a Path,
}

/// A checked `[peft]` table.
#[derive(Debug, Clone)]
pub struct Plan {
    adapter: Adapter,
    /// The adapter to go on from.
    dir: Option<PathBuf>,
    quantization: Option<Quantization>,
    merge: bool,
}

impl Plan {
    /// Checks the table; all that is wrong goes into `problems`.
    pub fn new(table: settings::Peft, problems: &mut Problems) -> Option<Self> {
        let settings::Peft { method, adapter, modules_to_save, quantization, merge } = table;
        let (adapter, dir) = match (method, adapter) {
            (Some(method), None) => (Adapter { method, modules_to_save }, None),
            (None, Some(path)) => {
                problems.check(
                    modules_to_save.is_empty(),
                    "peft.modules_to_save",
                    "is for a new adapter; one to go on from brings its own",
                );
                let key = "peft.adapter";
                let dir = problems.take(key, find(&path))?;
                let files = problems.take(key, AdapterFiles::open(&dir))?;
                (files.adapter().clone(), Some(dir))
            }
            (Some(_), Some(_)) => {
                problems.push("peft.adapter", "is given beside peft.method; leave one out");
                return None;
            }
            (None, None) => {
                problems.push(
                    "peft",
                    "needs a method, such as [peft.method.lora], or an adapter to go on from",
                );
                return None;
            }
        };
        problems.check(
            !merge || !matches!(adapter.method, Method::Bottleneck(_)),
            "peft.merge",
            "cannot be with a bottleneck adapter: it has layers of its own, which no weight can take in",
        );
        let plan = Self { adapter, dir, quantization, merge };
        problems.check(
            plan.quantization.is_none() || !plan.cuts_weights(),
            "peft.quantization",
            "does not go with init_lora_weights = \"pissa\", which takes a part of each weight for itself that rounding \
             to 4 bits would undo",
        );
        Some(plan)
    }

    /// Checks that the model, whose directory is `dir`, can take the adapter.
    pub fn check_model(&self, config: &ModelConfig, dir: Option<&Path>, problems: &mut Problems) {
        match (&self.dir, dir) {
            // Files may name what this model lacks, as PEFT's may; their tensors tell whether they fit.
            (Some(adapter), Some(dir)) => {
                let files = AdapterFiles::open(adapter).map_err(anyhow::Error::from);
                problems.take("peft.adapter", files.and_then(|files| check_base(&files, dir)));
            }
            (Some(_), None) => {}
            (None, _) => {
                let fits = problems.take("peft", trainable_parameters(&self.adapter, config));
                if let (Some(quantization), Some(_)) = (&self.quantization, fits) {
                    problems.take("peft", quantization.check(&self.adapter, config));
                }
            }
        }
    }

    /// How many parameters train.
    fn num_trained(&self, config: &ModelConfig) -> u64 {
        let count = match &self.dir {
            Some(dir) => {
                AdapterFiles::open(dir).and_then(|files| files.trainable_parameters(config))
            }
            None => trainable_parameters(&self.adapter, config),
        };
        count.unwrap_or_default()
    }

    /// A line for `--check`.
    pub(crate) fn describe(&self, config: &ModelConfig) -> String {
        let mut out = String::new();
        let trained = self.num_trained(config);
        let share = 100.0 * trained as f64 / (config.num_parameters() + trained) as f64;
        let name = self.adapter.method.name();
        let bits = if self.quantization.is_some() { " over weights in 4 bits" } else { "" };
        let _ = writeln!(out, "adapter     {name}{bits}, {trained} parameters ({share:.2} %)");
        out
    }

    /// Parameters that train, and bytes of the model's own in memory, of which `precision` is the compute type.
    pub(crate) fn sizes(&self, config: &ModelConfig, precision: Precision) -> (u64, u64) {
        let trained = self.num_trained(config);
        let all = config.num_parameters();
        let bytes = precision.size() as u64;
        let linear = all - config.num_embedding_parameters();
        let own = match &self.quantization {
            // Half a byte each, and 0.127 or 0.5 bits for the blocks' scales; vectors and the output layer are few.
            Some(Quantization { double_quant, .. }) => {
                let bits = if *double_quant { 4.127 } else { 4.5 };
                (all - linear) * bytes + (linear as f64 * bits / 8.0) as u64
            }
            None => all * bytes,
        };
        (trained, own)
    }

    /// Whether the model's matrices are in 4 bits.
    pub(crate) fn quantizes(&self) -> bool {
        self.quantization.is_some()
    }

    /// Whether the model begins as its files have it, and is still there without what is trained.
    pub fn leaves_weights(&self) -> bool {
        self.dir.is_none() && !self.cuts_weights()
    }

    fn cuts_weights(&self) -> bool {
        matches!(&self.adapter.method, Method::Lora(lora) if lora.init_lora_weights == InitLora::Pissa)
    }

    /// The adapter to go on from, an input of the run.
    pub fn input(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Reads `base` with the adapter to go on from, frozen; `base` alone where a new one is trained.
    ///
    /// # Errors
    /// As [`load_frozen`].
    pub fn load_frozen(&self, base: &Path, options: LoadOptions) -> anyhow::Result<Decoder> {
        frozen(base, self.dir.as_deref(), options, self.quantization.as_ref())
    }

    /// What is trained.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }
}

/// The adapter directory that a path stands for.
fn find(path: &Path) -> anyhow::Result<PathBuf> {
    artifact::adapter_dir(path)?.with_context(|| {
        format!("{}: no adapter here: neither adapter_config.json nor adapter/", path.display())
    })
}

/// Reads a model to train: all of it, or the adapter that `peft` says.
///
/// # Errors
/// As [`Decoder::load_with`]; an adapter of another base.
pub fn load(dir: &Path, loading: Loading<'_>, peft: Option<&Plan>) -> anyhow::Result<Decoder> {
    let Some(plan) = peft else { return of_settings(Decoder::load_with(dir, &loading)) };
    let files = match &plan.dir {
        Some(adapter) => {
            let files = AdapterFiles::open(adapter)?;
            check_base(&files, dir)?;
            Some(files)
        }
        None => None,
    };
    let loading = Loading {
        adapter_files: files.as_ref(),
        adapter: if files.is_none() { Some(&plan.adapter) } else { None },
        quantization: plan.quantization.as_ref(),
        ..loading
    };
    let decoder = of_settings(Decoder::load_with(dir, &loading))?;
    let (trained, all) = (decoder.params().num_trainable(), decoder.params().num_elements());
    let share = 100.0 * trained as f64 / all as f64;
    tracing::info!("trainable parameters: {trained} of {all} ({share:.2} %)");
    Ok(decoder)
}

/// What does not go together is a matter of the settings, not of the files.
fn of_settings(loaded: model::Result<Decoder>) -> anyhow::Result<Decoder> {
    match loaded {
        Err(error @ (model::Error::Adapter(_) | model::Error::AdapterMisfit { .. })) => {
            Err(error).usage()
        }
        loaded => Ok(loaded?),
    }
}

/// A model with an adapter, to use: frozen.
///
/// # Errors
/// As [`Decoder::load_with`]; an adapter of another base.
pub fn load_frozen(
    base: &Path,
    adapter: &Path,
    device: Device,
    precision: Precision,
) -> anyhow::Result<Decoder> {
    let options = LoadOptions { device, precision, trainable: false };
    frozen(base, Some(adapter), options, None)
}

fn frozen(
    base: &Path,
    adapter: Option<&Path>,
    options: LoadOptions,
    quantization: Option<&Quantization>,
) -> anyhow::Result<Decoder> {
    let files = adapter.map(AdapterFiles::open).transpose()?;
    if let Some(files) = &files {
        check_base(files, base)?;
    }
    let head = files.as_ref().map(AdapterFiles::head);
    let loading = Loading {
        options,
        head,
        adapter_files: files.as_ref(),
        quantization,
        ..Loading::default()
    };
    of_settings(Decoder::load_with(base, &loading))
}

/// Where a model's files are, and those of the adapter over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The model's directory.
    pub base: PathBuf,
    /// The adapter's.
    pub adapter: Option<PathBuf>,
}

impl Place {
    /// What `model`, a model's directory or a run's, stands for: with `adapter` over it, or with the adapter that a run
    /// made without a model of its own, over the base that the adapter names.
    ///
    /// # Errors
    /// Nothing is there; an adapter whose base is not where it says.
    pub fn find(model: &Path, adapter: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(adapter) = adapter {
            return Ok(Self { base: artifact::model_dir(model)?, adapter: Some(find(adapter)?) });
        }
        let error = match artifact::model_dir(model) {
            Ok(base) => return Ok(Self { base, adapter: None }),
            Err(error) => error,
        };
        let Ok(Some(adapter)) = artifact::adapter_dir(model) else { return Err(error.into()) };
        let files = AdapterFiles::open(&adapter)?;
        let shown = adapter.display();
        let found = match files.base() {
            Some(named) => artifact::model_dir(named).with_context(|| {
                format!("{shown}: the model it was trained over, `{named}`, is not to be found")
            }),
            None => Err(anyhow::anyhow!("{shown}: names no model that it was trained over")),
        };
        let base = found.hint("give that model with --model and the adapter with --adapter")?;
        Ok(Self { base, adapter: Some(adapter) })
    }

    /// The directory of the tokenizer that goes with it: the adapter's where it brings one.
    pub fn tokenizer_dir(&self) -> &Path {
        let own = self.adapter.as_deref().filter(|dir| dir.join("tokenizer.json").is_file());
        own.unwrap_or(&self.base)
    }

    /// The model's config, with the output layer that its adapter has.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn config(&self) -> anyhow::Result<ModelConfig> {
        let mut config = ModelConfig::from_dir(&self.base)?;
        if let Some(adapter) = &self.adapter {
            config.set_head(AdapterFiles::open(adapter)?.head());
        }
        Ok(config)
    }

    /// Reads the model, frozen, with its adapter.
    ///
    /// # Errors
    /// As [`load_frozen`].
    pub fn load(&self, device: Device, precision: Precision) -> anyhow::Result<Decoder> {
        self.load_quantized(device, precision, None)
    }

    /// Reads the model, frozen, with its adapter and, where `quantization` says so, its linear layers in 4 bits.
    ///
    /// # Errors
    /// As [`load_frozen`]; layers that cannot be in 4 bits.
    pub fn load_quantized(
        &self,
        device: Device,
        precision: Precision,
        quantization: Option<&Quantization>,
    ) -> anyhow::Result<Decoder> {
        let options = LoadOptions { device, precision, trainable: false };
        frozen(&self.base, self.adapter.as_deref(), options, quantization)
    }

    /// Reads the adapter, if there is one, over `base`, which was read from the same directory without one. It shares the
    /// weights, but for those that the adapter changes in themselves.
    ///
    /// # Errors
    /// As [`load_frozen`].
    pub fn load_over(&self, base: &Decoder) -> anyhow::Result<Decoder> {
        let Some(adapter) = &self.adapter else { return Ok(base.without_adapter()?) };
        let files = AdapterFiles::open(adapter)?;
        if files.takes_from_base() || files.head() != base.config().head {
            return self.load(base.device(), base.precision());
        }
        check_base(&files, &self.base)?;
        of_settings(base.with_adapter(&files))
    }

    /// How many parameters the model has, its adapter's included.
    ///
    /// # Errors
    /// Files that cannot be read; an adapter that does not go with the model.
    pub fn num_parameters(&self) -> anyhow::Result<u64> {
        let config = self.config()?;
        let own = self
            .adapter
            .as_deref()
            .map(|adapter| anyhow::Ok(AdapterFiles::open(adapter)?.trainable_parameters(&config)?));
        Ok(config.num_parameters() + own.transpose()?.unwrap_or_default())
    }
}

/// What tells a model's weights from others: the digest of its weight file, or of the digests of its shards.
///
/// # Errors
/// The file system's.
pub fn base_digest(dir: &Path) -> anyhow::Result<String> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(digest::file(&single)?.to_string());
    }
    let mut files = digest::dir_files(dir)?;
    files.retain(|(name, _)| name.ends_with(".safetensors"));
    Ok(digest::listing(&files).to_string())
}

/// Refuses an adapter that says it was trained over other weights. PEFT's do not say; then shapes alone can tell.
///
/// # Errors
/// The two are not of each other; the base's files cannot be read.
pub fn check_base(files: &AdapterFiles, base: &Path) -> anyhow::Result<()> {
    let Some(wanted) = files.base_digest() else { return Ok(()) };
    if base_digest(base)? == wanted {
        return Ok(());
    }
    let (adapter, base) = (files.dir().display(), base.display());
    let named = files.base().unwrap_or("another model");
    let error =
        anyhow::anyhow!("{adapter}: this adapter is of another base ({named}), not of {base}");
    Err(error).hint("give the model it was trained over").usage()
}

/// Writes `adapter/` in PEFT's layout with the tokenizer's files, and returns, where it is asked for, the base in full
/// precision with the adapter in its weights.
///
/// # Errors
/// The file system's; a merge that cannot be.
pub(crate) fn save(
    ctx: &Context,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    Trained { plan, base }: Trained<'_>,
) -> anyhow::Result<Option<Decoder>> {
    let dir = ctx.run_dir.adapter_dir();
    decoder.save_adapter(&dir, &base.display().to_string(), Some(&base_digest(base)?))?;
    tokenizer.save(&dir)?;
    if !plan.merge {
        return Ok(None);
    }
    let mut merged = load_frozen(base, &dir, Device::Cpu, Precision::Fp32)?;
    merged.merge_adapter()?;
    if let Some((mean, deviation)) = decoder.config().score_statistics {
        merged.set_score_statistics(mean, deviation);
    }
    Ok(Some(merged))
}

#[cfg(test)]
mod tests;

//! An adapter's directory: `adapter_config.json` and `adapter_model.safetensors`, as PEFT has them.

use super::attach::attach;
use super::config::{Adapter, InitLora, Lora, Method};
use super::json;
use super::target::{Origin, unambiguous};
use crate::config::{Head, ModelConfig, SCORE, is_embedding};
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::layout::layout;
use crate::weights::{self, WeightFiles};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Before every name in a file.
const PREFIX: &str = "base_model.model.";

/// The output layer that shares a trained embedding.
const SHARED: &str = "base_model.model.lm_head.weight";

/// At most so many problems of a file are named.
const SHOWN: usize = 12;

/// The key of the weight file's metadata that holds the digest of the base's weights. PEFT writes none.
pub const BASE_DIGEST: &str = "base_model_digest";

/// An adapter on disk.
#[derive(Debug)]
pub struct AdapterFiles {
    dir: PathBuf,
    adapter: Adapter,
    base: Option<String>,
    head: Head,
    weights: WeightFiles,
}

impl AdapterFiles {
    /// Whether `dir` looks like an adapter's.
    pub fn is_adapter(dir: &Path) -> bool {
        dir.join(CONFIG).is_file()
    }

    /// Reads the config, and the header of the weights.
    ///
    /// # Errors
    /// Files that are missing or damaged; a kind of adapter or a feature that is not supported; each with the file and
    /// key.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(WEIGHTS);
        if !path.exists() && dir.join("adapter_model.bin").exists() {
            let problem = "only adapter_model.bin is here, which cannot be read safely; save the adapter again with PEFT \
                           to get adapter_model.safetensors";
            return Err(Error::WeightFile { path: dir.to_owned(), problem: problem.into() });
        }
        let json::Read { adapter, base, head } = json::read(&dir.join(CONFIG))?;
        let weights = WeightFiles::open_file(&path)?;
        Ok(Self { dir: dir.to_owned(), adapter, base, head, weights })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The base as its config names it: a path, or a name on a hub.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// The digest of the base's weights, where whoever wrote the adapter noted it.
    pub fn base_digest(&self) -> Option<&str> {
        self.weights.metadata(BASE_DIGEST)
    }

    /// The output layer of the model it is for.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Whether a part of the base's weights is taken away for it, as for a `PiSSA`.
    pub fn takes_from_base(&self) -> bool {
        matches!(&self.adapter.method, Method::Lora(lora) if lora.init_lora_weights == InitLora::Pissa)
    }

    /// Number of parameters that train when it is trained further, from the model's config alone.
    ///
    /// # Errors
    /// Whatever of the adapter does not go with the model, with names.
    pub fn trainable_parameters(&self, config: &ModelConfig) -> Result<u64> {
        let layout = layout(config);
        let adapter = self.adapter.resolved(config.architecture);
        Ok(attach(&adapter, config, &layout, Origin::Files)?.num_parameters(&layout))
    }

    /// Number of numbers in its tensors.
    pub fn num_elements(&self) -> usize {
        let shapes = self.weights.names().filter_map(|name| self.weights.shape(name));
        shapes.map(|shape| shape.iter().product::<usize>()).sum()
    }

    /// Its tensors by the names of the parameters they set, of which `wanted` lists names and shapes. A score may be
    /// missing in an adapter of a language model; `tied` says that the embedding is the output layer too.
    ///
    /// # Errors
    /// Tensors that are missing, unexpected or of another shape, all at once: then the adapter is of another base. An
    /// embedding without the output layer that shares it.
    pub(crate) fn tensors(
        &self,
        wanted: &[(String, Vec<i64>)],
        tied: bool,
    ) -> Result<BTreeMap<String, Tensor>> {
        let mut found = BTreeMap::new();
        let mut problems = crate::error::Problems::default();
        let mut used = Vec::new();
        for (name, shape) in wanted {
            let keys = [format!("{PREFIX}{name}"), format!("{PREFIX}{}", of_base_layer(name))];
            let Some(key) = keys.into_iter().find(|key| self.weights.shape(key).is_some()) else {
                if name != SCORE || self.head == Head::Score {
                    problems.push(format!("missing: {name} {shape:?}"));
                }
                continue;
            };
            let tensor = self.weights.tensor(&key)?;
            if tensor.size() == *shape {
                found.insert(name.clone(), tensor.to_kind(Kind::Float));
            } else {
                problems.push(format!(
                    "{name} has shape {:?}, the model asks for {shape:?}",
                    tensor.size()
                ));
            }
            used.push(key);
        }
        let embedding = wanted.iter().find(|(name, _)| tied && is_token_embedding(name));
        let embedding = embedding.and_then(|(name, _)| Some((name, found.get(name)?)));
        if let Some((name, embedding)) = embedding {
            // PEFT keeps a copy of a shared embedding, or takes the two apart.
            let same = self.weights.shape(SHARED).is_some()
                && self.weights.tensor(SHARED)?.to_kind(Kind::Float).equal(embedding);
            if !same {
                let path = self.dir.join(WEIGHTS);
                let problem = format!(
                    "{name} is trained without the output layer that shares it, so the two are no longer one; train it \
                     again in PEFT with ensure_weight_tying"
                );
                return Err(Error::WeightFile { path, problem });
            }
            used.push(SHARED.to_owned());
        }
        for key in self.weights.names() {
            if !used.iter().any(|name| name == key) {
                problems.push(format!(
                    "unexpected: {key} {:?}",
                    self.weights.shape(key).unwrap_or_default()
                ));
            }
        }
        if problems.is_empty() {
            return Ok(found);
        }
        let more = problems.0.len().saturating_sub(SHOWN);
        if more > 0 {
            problems.0.truncate(SHOWN);
            problems.push(format!("... and {more} more"));
        }
        Err(Error::AdapterMisfit { dir: self.dir.clone(), base: self.base.clone(), problems })
    }
}

/// Whether tokens are looked up in it.
fn is_token_embedding(name: &str) -> bool {
    is_embedding(name) && !name.ends_with("wpe.weight")
}

/// How PEFT calls the bias of a layer that it has changed.
fn of_base_layer(name: &str) -> String {
    name.strip_suffix(".bias")
        .map_or_else(String::new, |module| format!("{module}.base_layer.bias"))
}

impl Decoder {
    /// Writes the adapter into `dir` as PEFT does. `base` is how its config names the model it is for, `digest` what
    /// tells that model's weights from others. Returns the bytes of the weights.
    ///
    /// A `PiSSA` is written as a LoRA of twice the rank over the model as it was: `B A - B₀ A₀`.
    ///
    /// # Errors
    /// The file system's; the model has no adapter.
    pub fn save_adapter(&self, dir: &Path, base: &str, digest: Option<&str>) -> Result<u64> {
        let attached = self.attached.as_ref().ok_or(Error::NoAdapter)?;
        fs_err::create_dir_all(dir)?;
        let conv1d = self.config().is_conv1d();
        let changed = |module: &str| attached.modules.iter().any(|other| other.name == module);
        let mut tensors = Vec::new();
        let mut tied = false;
        // A policy's values are no part of what it hands on.
        let kept = |name: &&String| name.as_str() != SCORE || self.config().head == Head::Score;
        let own = attached.trained.iter().filter(kept);
        let mut all: Vec<(&str, Tensor)> = self.params().added().collect();
        for name in own {
            all.extend(self.params().whole(name)?.map(|tensor| (name.as_str(), tensor)));
        }
        for (name, tensor) in all {
            let key = match name.strip_suffix(".bias") {
                Some(module) if changed(module) => format!("{PREFIX}{}", of_base_layer(name)),
                _ => format!("{PREFIX}{name}"),
            };
            if is_token_embedding(name) && self.config().ties_head() {
                tied = true;
                tensors.push((SHARED.to_owned(), tensor.shallow_clone()));
            }
            tensors.push((key, tensor));
        }
        let mut adapter = attached.adapter.clone();
        if let Method::Lora(lora) = &mut adapter.method
            && lora.init_lora_weights == InitLora::Pissa
        {
            plain_lora(lora, &attached.starts, &mut tensors)?;
        }
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let metadata: Vec<(&str, &str)> =
            digest.map(|digest| (BASE_DIGEST, digest)).into_iter().collect();
        let path = dir.join(WEIGHTS);
        let fp32: Vec<(String, Tensor)> =
            tensors.into_iter().map(|(name, t)| (name, t.to_kind(Kind::Float))).collect();
        weights::write_tensors_with(&path, &fp32, &metadata)?;
        let layout = layout(self.config());
        let saved = attached.adapter.modules_to_save.iter();
        let mut saved: Vec<String> =
            saved.flat_map(|wanted| unambiguous(wanted, &layout)).collect();
        // PEFT finds the other of the two itself only in a LoRA, and only by the Llama family's names.
        if tied && (conv1d || !matches!(attached.adapter.method, Method::Lora(_))) {
            saved.push("lm_head".into());
        }
        let (head, modules) = (self.config().head, &attached.modules);
        let about = json::About { base, head, conv1d, saved, tied, modules };
        let mut text = serde_json::to_vec_pretty(&json::write(&adapter, &about))
            .map_err(std::io::Error::from)?;
        text.push(b'\n');
        artifact::atomic::write_bytes(dir.join(CONFIG), &text)?;
        Ok(fs_err::metadata(path)?.len())
    }
}

/// Turns a `PiSSA` into the LoRA that does the same to the whole weight. `starts` are `A` and `B` before training by
/// name.
fn plain_lora(
    lora: &mut Lora,
    starts: &BTreeMap<String, Tensor>,
    tensors: &mut [(String, Tensor)],
) -> Result<()> {
    for (key, tensor) in tensors {
        let Some(start) = starts.get(key.strip_prefix(PREFIX).unwrap_or(key)) else { continue };
        let start = start.to_device(tensor.device());
        let (start, at) = if key.ends_with("lora_A.weight") { (start, 0) } else { (-start, 1) };
        *tensor = Tensor::f_cat(&[tensor.shallow_clone(), start], at)?;
    }
    // The scale stays what it was.
    let by = if lora.use_rslora { 2.0_f64.sqrt() } else { 2.0 };
    lora.init_lora_weights = InitLora::Kaiming;
    lora.r *= 2;
    lora.lora_alpha *= by;
    lora.rank_pattern.values_mut().for_each(|r| *r *= 2);
    lora.alpha_pattern.values_mut().for_each(|alpha| *alpha *= by);
    Ok(())
}

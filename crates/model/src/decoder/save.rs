//! From a decoder to files.

use super::Decoder;
use crate::config::{Head, SCORE};
use crate::error::{Error, Result};
use crate::layout::layout;
use crate::params::Stored;
use crate::peft::linear_modules;
use crate::precision::Precision;
use crate::weights::{self, Values, four_bit};
use serde_json::Value;
use std::path::{Path, PathBuf};
use torch_ext::four_bit::Scales;

impl Decoder {
    /// Writes `config.json` and the weights in Hugging Face layout into `dir` (made where absent): `model.safetensors`,
    /// or shards of at most `max_shard_bytes` with an index. Returns the files written.
    ///
    /// The weights are the fp32 masters (compute copies of a frozen model) rounded once to `dtype`; those in 4 bits stay as
    /// they are and are written as bitsandbytes has them, to be computed with in `dtype`. An adapter is not among them: see
    /// [`save_adapter`](Self::save_adapter) and [`merge_adapter`](Self::merge_adapter).
    ///
    /// Of a divided model one parameter at a time is brought together, to which the other ranks give their slices by
    /// [`Division::answer`](crate::division::Division::answer).
    ///
    /// # Errors
    /// The file system's, naming the file; a rank that is gone.
    pub fn save(&self, dir: &Path, dtype: Precision, max_shard_bytes: u64) -> Result<Vec<PathBuf>> {
        fs_err::create_dir_all(dir)?;
        let kept = |name: &str| self.config.head != Head::LanguageModelAndScore || name != SCORE;
        let mut tensors = Vec::new();
        for (name, stored) in self.params.stored().filter(|(name, _)| kept(name)) {
            match stored {
                Stored::Whole(weight) => {
                    tensors.push((name.to_owned(), Values::Here(weight), dtype.kind()));
                }
                Stored::Divided(shape) => {
                    let make = move || {
                        let whole = self.params.whole(name)?;
                        whole.ok_or_else(|| Error::Input(format!("no parameter {name}")))
                    };
                    let values = Values::Later(shape, Box::new(make));
                    tensors.push((name.to_owned(), values, dtype.kind()));
                }
                Stored::FourBit(weight) => {
                    let beside = four_bit::to_tensors(name, weight, dtype).into_iter();
                    tensors.extend(beside.map(|(name, tensor)| {
                        let kind = tensor.kind();
                        (name, Values::Here(tensor), kind)
                    }));
                }
            }
        }
        let mut written = weights::write_as(dir, tensors, max_shard_bytes)?;
        let mut config = self.config.to_hf_json(dtype);
        if let Some(quantization) = self.quantization_config(dtype) {
            config["quantization_config"] = quantization;
        }
        let mut text = serde_json::to_vec_pretty(&config).map_err(std::io::Error::from)?;
        text.push(b'\n');
        let path = dir.join("config.json");
        artifact::atomic::write_bytes(&path, &text)?;
        written.push(path);
        Ok(written)
    }

    /// What transformers needs to know of weights in 4 bits, if there are any.
    fn quantization_config(&self, dtype: Precision) -> Option<Value> {
        let weight = self.params.stored().find_map(|(_, stored)| match stored {
            Stored::FourBit(weight) => Some(weight),
            _ => None,
        })?;
        let nested = matches!(weight.scales(), Scales::Nested { .. });
        let modules = linear_modules(&self.config, &layout(&self.config));
        let whole = modules.iter().filter(|module| !self.params.is_four_bit(module.block));
        let mut whole: Vec<&str> = whole.map(|module| module.name.as_str()).collect();
        if !whole.is_empty() {
            // A list takes the place of what transformers leaves out by itself.
            whole.extend(["lm_head", "score"]);
        }
        let skipped = (!whole.is_empty()).then_some(whole.as_slice());
        Some(four_bit::quantization_config(weight.code(), nested, dtype, skipped))
    }
}

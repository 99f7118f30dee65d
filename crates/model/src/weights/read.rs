//! Memory-mapped reading.

use super::{aliases, four_bit, is_buffer, kind};
use crate::config::{Architecture, Head, ModelConfig, SCORE};
use crate::error::{Error, Problems, Result};
use crate::layout::{ModelLayout, PartSpec};
use crate::params::Params;
use memmap2::Mmap;
use safetensors::tensor::{Metadata, SafeTensorError, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tch::Tensor;

/// One mapped file.
#[derive(Debug)]
struct File {
    path: PathBuf,
    map: Mmap,
    /// Where tensor data begin.
    data: usize,
    tensors: Metadata,
}

/// For parameters the tensors of files that they come from, by name.
pub(crate) type Sources<'a> = HashMap<&'a str, &'a str>;

/// The weight files of a model directory. Opening reads headers only; [`tensor`](Self::tensor) reads data.
#[derive(Debug)]
pub struct WeightFiles {
    files: Vec<File>,
    /// Tensor name to index in `files`.
    index: BTreeMap<String, usize>,
}

impl WeightFiles {
    /// Maps `model.safetensors` of `dir`, or else the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// No weight file (naming what there is instead), a damaged header, a header that asks for more or fewer bytes than
    /// the file has, an index that does not fit its shards; the file is named.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        if single.exists() {
            return Self::from_files(vec![File::open(single)?]);
        }
        let index = dir.join("model.safetensors.index.json");
        if index.exists() {
            return Self::from_index(dir, &index);
        }
        let problem = if dir.join("pytorch_model.bin").exists() {
            "only pytorch_model.bin is here, which cannot be read safely; save the model again with transformers to get \
             model.safetensors"
        } else {
            "there is no model.safetensors and no model.safetensors.index.json"
        };
        Err(Error::WeightFile { path: dir.to_owned(), problem: problem.into() })
    }

    /// Maps one safetensors file of any name, for example an adapter's.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::from_files(vec![File::open(path.to_owned())?])
    }

    fn from_files(files: Vec<File>) -> Result<Self> {
        let mut index = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.tensors.offset_keys() {
                if let Some(other) = index.insert(name.clone(), i) {
                    let other = files[other].path.display();
                    return Err(file.error(format!("tensor {name} is also in {other}")));
                }
            }
        }
        Ok(Self { files, index })
    }

    fn from_index(dir: &Path, path: &Path) -> Result<Self> {
        let fail = |problem: String| Error::WeightFile { path: path.to_owned(), problem };
        let text = fs_err::read_to_string(path)?;
        let json: Value =
            serde_json::from_str(&text).map_err(|error| fail(format!("not JSON: {error}")))?;
        let Some(Value::Object(map)) = json.get("weight_map") else {
            return Err(fail("has no `weight_map` object".into()));
        };
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, shard) in map {
            match shard.as_str() {
                Some(shard) if !shard.is_empty() && !shard.contains(['/', '\\']) => {
                    shards.entry(shard).or_default().push(name);
                }
                _ => {
                    return Err(fail(format!(
                        "`weight_map.{name}` is no plain file name: {shard}"
                    )));
                }
            }
        }
        let mut files = Vec::with_capacity(shards.len());
        for (shard, names) in shards {
            let shard_path = dir.join(shard);
            if !shard_path.exists() {
                return Err(fail(format!("names the shard {shard}, which is not there")));
            }
            let file = File::open(shard_path)?;
            if let Some(lost) = names.iter().find(|name| file.tensors.info(name).is_none()) {
                return Err(fail(format!("says that {shard} holds {lost}, but it does not")));
            }
            files.push(file);
        }
        Self::from_files(files)
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.info(name).map(|(_, info)| info.shape.as_slice())
    }

    /// A text of a file's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.files
            .iter()
            .find_map(|file| Some(file.tensors.metadata().as_ref()?.get(key)?.as_str()))
    }

    /// The name under which the files hold the parameter `name`.
    fn alias<'a>(&self, name: &'a str, architecture: Architecture) -> Option<&'a str> {
        aliases(name, architecture).into_iter().find(|alias| self.info(alias).is_some())
    }

    /// Whether a parameter is stored in 4 bits.
    pub(crate) fn is_four_bit(&self, name: &str, config: &ModelConfig) -> bool {
        let alias = self.alias(name, config.architecture);
        alias.is_some_and(|alias| four_bit::is_quantised(self, alias))
    }

    /// A parameter in fp32, shaped as Hugging Face has it, whatever it is stored in.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub(crate) fn weight(&self, name: &str, config: &ModelConfig) -> Result<Tensor> {
        let alias = self.alias(name, config.architecture).unwrap_or(name);
        if !four_bit::is_quantised(self, alias) {
            return Ok(self.tensor(alias)?.to_kind(tch::Kind::Float));
        }
        let whole = four_bit::from_files(self, alias)?.dequantise(tch::Kind::Float)?;
        Ok(if config.is_conv1d() { whole.tr() } else { whole })
    }

    /// The file that holds the tensor of this name; the first one if none does.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        let file = self.index.get(name).map_or(self.files.first(), |&i| self.files.get(i));
        file.map(|file| file.path.clone()).unwrap_or_default()
    }

    fn info(&self, name: &str) -> Option<(&File, &TensorInfo)> {
        let file = &self.files[*self.index.get(name)?];
        Some((file, file.tensors.info(name)?))
    }

    /// A copy of a tensor on the CPU, in the number type of the file (fp32, fp16, bf16, fp64, integers, bool).
    ///
    /// # Errors
    /// No tensor of this name, or a number type that libtorch has no counterpart of.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let Some((file, info)) = self.info(name) else {
            let path = self.files.first().map(|file| file.path.clone()).unwrap_or_default();
            return Err(Error::WeightFile { path, problem: format!("has no tensor {name}") });
        };
        let kind = kind(info.dtype).ok_or_else(|| {
            file.error(format!(
                "tensor {name} is stored as {:?}, which is not supported",
                info.dtype
            ))
        })?;
        let (start, end) = info.data_offsets;
        let bytes = &file.map[file.data + start..file.data + end];
        let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        Ok(Tensor::f_from_data_size(bytes, &shape, kind)?)
    }

    /// Sets all of `params` from the tensors that [`resolve`](Self::resolve) found. What it did not find becomes what `fresh`
    /// gives.
    pub(crate) fn fill(
        &self,
        config: &ModelConfig,
        layout: &ModelLayout,
        sources: &Sources<'_>,
        params: &mut Params,
        fresh: impl Fn(&PartSpec) -> Result<Tensor>,
    ) -> Result<()> {
        for (b, block) in layout.blocks.iter().enumerate() {
            for (p, part) in block.parts.iter().enumerate() {
                let value = match sources.get(part.name.as_str()) {
                    Some(source) if four_bit::is_quantised(self, source) => {
                        if params.is_four_bit(b) {
                            params.fill_four_bit(b, p, &four_bit::from_files(self, source)?);
                            continue;
                        }
                        self.weight(&part.name, config)?
                    }
                    Some(source) => self.tensor(source)?,
                    None => fresh(part)?,
                };
                params.fill(b, p, &value)?;
            }
        }
        params.refresh_compute()?;
        Ok(())
    }

    /// Which tensor of the files each parameter comes from; every mismatch is an error. The files hold a model with the head
    /// `given`: a score that they lack is left to be made, a language-model head that `config` does not have is left out.
    pub(crate) fn resolve<'a>(
        &'a self,
        dir: &Path,
        (config, given): (&ModelConfig, Head),
        layout: &'a ModelLayout,
    ) -> Result<Sources<'a>> {
        let mut sources = HashMap::new();
        let (mut missing, mut misshaped) = (Vec::new(), Vec::new());
        for part in layout.blocks.iter().flat_map(|block| &block.parts) {
            let found = aliases(&part.name, config.architecture)
                .into_iter()
                .find_map(|alias| Some((alias, self.info(alias)?.1)));
            let Some((alias, info)) = found else {
                if part.name == SCORE && !given.has_score() {
                    continue;
                }
                missing.push(format!("missing: {} {:?}", part.name, part.shape));
                continue;
            };
            if four_bit::is_quantised(self, alias) {
                let weight = four_bit::from_files(self, alias)?;
                let mut shape = weight.shape().to_vec();
                if config.is_conv1d() {
                    shape.reverse();
                }
                if shape != part.shape {
                    let wanted = &part.shape;
                    misshaped.push(format!(
                        "{alias} has shape {shape:?}, the config asks for {wanted:?}"
                    ));
                }
            } else if !info.shape.iter().map(|&n| n as i64).eq(part.shape.iter().copied()) {
                let (stored, shape) = (&info.shape, &part.shape);
                misshaped
                    .push(format!("{alias} has shape {stored:?}, the config asks for {shape:?}"));
            } else if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                let dtype = info.dtype;
                misshaped.push(format!("{alias} is stored as {dtype:?}; use F32, F16 or BF16"));
            }
            sources.insert(part.name.as_str(), alias);
        }
        let mut unexpected = Vec::new();
        let used: std::collections::HashSet<&str> = sources.values().copied().collect();
        for name in self.names().filter(|name| !used.contains(name)) {
            let shape = self.shape(name).unwrap_or_default();
            let is_scale = four_bit::weight_of(name).is_some_and(|weight| used.contains(weight));
            if is_scale || is_buffer(name, shape) || is_left_out(name, config.head) {
                continue;
            }
            if config.tie_word_embeddings && name == "lm_head.weight" {
                self.check_tied(layout, &sources, &mut unexpected)?;
                continue;
            }
            unexpected.push(format!("unexpected: {name} {shape:?}"));
        }
        let mut problems = Problems::default();
        for list in [missing, unexpected, misshaped] {
            shorten(list, &mut problems);
        }
        if problems.is_empty() {
            return Ok(sources);
        }
        Err(Error::Weights { dir: dir.to_owned(), problems })
    }

    /// A tied model may store its head beside the embedding, but not another one.
    fn check_tied(
        &self,
        layout: &ModelLayout,
        sources: &Sources<'_>,
        unexpected: &mut Vec<String>,
    ) -> Result<()> {
        let embedding = layout.blocks[layout.embedding].parts[0].name.as_str();
        let Some(source) = sources.get(embedding) else { return Ok(()) };
        if self.shape("lm_head.weight") != self.shape(source)
            || !self.tensor("lm_head.weight")?.equal(&self.tensor(source)?)
        {
            unexpected.push(format!(
                "lm_head.weight differs from {source} although the config ties them; set `tie_word_embeddings` false"
            ));
        }
        Ok(())
    }
}

/// Whether a tensor is of an output layer that the model is to be without.
fn is_left_out(name: &str, head: Head) -> bool {
    (name == "lm_head.weight" && !head.has_language_model()) || (name == SCORE && !head.has_score())
}

/// Adds a list of problems, only the first of a long one in full.
fn shorten(mut list: Vec<String>, problems: &mut Problems) {
    const SHOWN: usize = 20;
    let more = list.len().saturating_sub(SHOWN);
    list.truncate(SHOWN);
    for problem in list {
        problems.push(problem);
    }
    if more > 0 {
        problems.push(format!("... and {more} more of this kind"));
    }
}

impl File {
    fn open(path: PathBuf) -> Result<Self> {
        let map = artifact::mmap::map_file(&path)?;
        match SafeTensors::read_metadata(&map) {
            Ok((header, tensors)) => Ok(Self { path, data: header + 8, tensors, map }),
            Err(error) => {
                let problem = explain(&error, &map);
                Err(Error::WeightFile { path, problem })
            }
        }
    }

    fn error(&self, problem: String) -> Error {
        Error::WeightFile { path: self.path.clone(), problem }
    }
}

/// What is wrong with a file that safetensors refuses, with the numbers and names a reader needs.
fn explain(error: &SafeTensorError, map: &[u8]) -> String {
    let size = map.len();
    let fix = "copy or download the file again";
    match error {
        SafeTensorError::HeaderTooSmall => {
            format!("only {size} bytes, too short for a safetensors file: it is truncated; {fix}")
        }
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            let header = u64::from_le_bytes(map[..8].try_into().unwrap_or_default());
            format!(
                "the header is said to take {header} bytes but the file has {size}: it is truncated or no safetensors \
                 file; {fix}"
            )
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            format!(
                "the header promises another number of bytes of tensor data than the file ({size} bytes) holds: it is \
                 truncated or its header is wrong; {fix}"
            )
        }
        SafeTensorError::InvalidOffset(name) => {
            format!(
                "the header places tensor {name} where it cannot be: offsets overlap or leave a gap; {fix}"
            )
        }
        SafeTensorError::TensorInvalidInfo => match lying_tensor(map) {
            Some(text) => format!("the header lies about {text}; {fix}"),
            None => {
                format!("the header gives a tensor another size than its shape and type; {fix}")
            }
        },
        SafeTensorError::ValidationOverflow => {
            format!("the header gives a tensor a size beyond any memory; {fix}")
        }
        other => format!("not a safetensors file: {other}; {fix}"),
    }
}

/// The first tensor in a header whose byte range does not fit its shape and type, described.
fn lying_tensor(map: &[u8]) -> Option<String> {
    let header = u64::from_le_bytes(map.get(..8)?.try_into().ok()?) as usize;
    let json: Value = serde_json::from_slice(map.get(8..8 + header)?).ok()?;
    for (name, info) in json.as_object()?.iter().filter(|(name, _)| *name != "__metadata__") {
        let info: TensorInfo = serde_json::from_value(info.clone()).ok()?;
        let (start, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &d| n.checked_mul(d));
        let held = end.checked_sub(start).and_then(|bytes| bytes.checked_mul(8));
        if bits != held || bits.is_none() {
            let (dtype, shape) = (info.dtype, info.shape);
            return Some(format!(
                "tensor {name}: {dtype:?} {shape:?} does not take the bytes {start}..{end} it is given"
            ));
        }
    }
    None
}

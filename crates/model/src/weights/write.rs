//! Writing, one tensor in memory at a time.

use crate::error::{Error, Result};
use crate::precision::Precision;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// The values of a tensor to be written.
pub(crate) enum Values<'a> {
    Here(Tensor),
    /// Of this shape; made when it is their turn.
    Later(&'a [i64], Box<dyn Fn() -> Result<Tensor> + 'a>),
}

impl Values<'_> {
    fn shape(&self) -> Vec<i64> {
        match self {
            Self::Here(tensor) => tensor.size(),
            Self::Later(shape, _) => shape.to_vec(),
        }
    }

    fn get(&self) -> Result<Tensor> {
        match self {
            Self::Here(tensor) => Ok(tensor.shallow_clone()),
            Self::Later(_, make) => make(),
        }
    }
}

/// A tensor of a file to be written: its name, its values, and the number type they are stored in.
struct Entry<'a> {
    name: &'a str,
    values: &'a Values<'a>,
    kind: Kind,
    bytes: u64,
}

impl<'a> Entry<'a> {
    fn new((name, values, kind): &'a (String, Values<'a>, Kind)) -> Self {
        let numel = values.shape().iter().product::<i64>() as usize;
        let bytes = (numel * kind.elt_size_in_bytes()) as u64;
        Self { name, values, kind: *kind, bytes }
    }
}

/// Writes tensors as one safetensors file, each in its own number type: for state that is not a model's weights. The
/// file appears whole or not at all.
///
/// # Errors
/// The file system's, naming the file; a number type that safetensors has no name for.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    write_tensors_with(path, tensors, &[])
}

/// [`write_tensors`] with more metadata in the header.
///
/// # Errors
/// As [`write_tensors`].
pub(crate) fn write_tensors_with(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &[(&str, &str)],
) -> Result<()> {
    let tensors = tensors.iter();
    let tensors = tensors
        .map(|(name, tensor)| (name.clone(), Values::Here(tensor.shallow_clone()), tensor.kind()));
    let tensors: Vec<_> = tensors.collect();
    write_file(path, &tensors.iter().map(Entry::new).collect::<Vec<_>>(), metadata)
}

/// Writes tensors as safetensors into `dir`, which must exist: `model.safetensors` if they fit `max_shard_bytes`,
/// else `model-00001-of-0000N.safetensors` and so on with `model.safetensors.index.json`. A tensor larger than that has
/// a shard to itself. Each file appears whole or not at all. Files of an earlier save that this one does not replace are
/// removed. Returns the paths written.
///
/// # Errors
/// The file system's, naming the file.
pub fn write<'a>(
    dir: &Path,
    tensors: impl IntoIterator<Item = (&'a str, Tensor)>,
    dtype: Precision,
    max_shard_bytes: u64,
) -> Result<Vec<PathBuf>> {
    let kind = dtype.kind();
    let tensors = tensors.into_iter();
    let tensors = tensors.map(|(name, tensor)| (name.to_owned(), Values::Here(tensor), kind));
    write_as(dir, tensors, max_shard_bytes)
}

/// [`write`] with a number type for each tensor.
///
/// # Errors
/// As [`write`]; those of values that are made later; a number type that safetensors has no name for.
pub(crate) fn write_as<'a>(
    dir: &Path,
    tensors: impl IntoIterator<Item = (String, Values<'a>, Kind)>,
    max_shard_bytes: u64,
) -> Result<Vec<PathBuf>> {
    let tensors: Vec<(String, Values<'_>, Kind)> = tensors.into_iter().collect();
    let entries = tensors.iter().map(Entry::new);
    let mut shards: Vec<Vec<Entry<'_>>> = vec![Vec::new()];
    let mut filled = 0;
    for entry in entries {
        let last = shards.len() - 1;
        if filled + entry.bytes > max_shard_bytes && !shards[last].is_empty() {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += entry.bytes;
        let last = shards.len() - 1;
        shards[last].push(entry);
    }
    let names = shard_names(shards.len());
    let mut written = Vec::new();
    for (shard, name) in shards.iter().zip(&names) {
        let path = dir.join(name);
        write_file(&path, shard, &[])?;
        written.push(path);
    }
    if shards.len() > 1 {
        written.push(write_index(dir, &shards, &names)?);
    }
    remove_stale(dir, &written)?;
    Ok(written)
}

fn shard_names(count: usize) -> Vec<String> {
    if count == 1 {
        return vec!["model.safetensors".into()];
    }
    (1..=count).map(|i| format!("model-{i:05}-of-{count:05}.safetensors")).collect()
}

fn write_file(path: &Path, entries: &[Entry<'_>], metadata: &[(&str, &str)]) -> Result<()> {
    let mut header = Map::new();
    let mut about = json!({"format": "pt"});
    for (key, value) in metadata {
        about[*key] = json!(value);
    }
    header.insert("__metadata__".into(), about);
    let mut offset = 0;
    for entry in entries {
        let shape = entry.values.shape().iter().map(|&n| n as usize).collect();
        let end = offset + entry.bytes as usize;
        let dtype = super::dtype(entry.kind).ok_or_else(|| Error::WeightFile {
            path: path.to_owned(),
            problem: format!("{} is of type {:?}, which safetensors lacks", entry.name, entry.kind),
        })?;
        let info = TensorInfo { dtype, shape, data_offsets: (offset, end) };
        header.insert(entry.name.into(), serde_json::to_value(info).map_err(std::io::Error::from)?);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).map_err(std::io::Error::from)?;
    // Data begin at a multiple of 8 bytes, so that a map of the file is aligned.
    header.resize(header.len().next_multiple_of(8), b' ');
    artifact::atomic::write(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut buffer = Vec::new();
        for entry in entries {
            let tensor = entry.values.get().map_err(std::io::Error::other)?;
            write_tensor(out, &tensor, entry.kind, &mut buffer)?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Writes the numbers of a tensor, little-endian and row by row, through `buffer`.
fn write_tensor(
    out: &mut dyn Write,
    tensor: &Tensor,
    kind: Kind,
    buffer: &mut Vec<u8>,
) -> std::io::Result<()> {
    /// Bytes converted at a time.
    const CHUNK: i64 = 1 << 22;
    let flat = tensor.detach().flatten(0, -1);
    let total = flat.size()[0];
    let mut start = 0;
    while start < total {
        let count = CHUNK.min(total - start);
        let part = flat.narrow(0, start, count).to_device(Device::Cpu).to_kind(kind);
        let part = part.contiguous();
        buffer.resize(count as usize * kind.elt_size_in_bytes(), 0);
        part.f_copy_data_u8(buffer, part.numel()).map_err(std::io::Error::other)?;
        out.write_all(buffer)?;
        start += count;
    }
    Ok(())
}

fn write_index(dir: &Path, shards: &[Vec<Entry<'_>>], names: &[String]) -> Result<PathBuf> {
    let mut map = Map::new();
    let mut total = 0;
    for (shard, name) in shards.iter().zip(names) {
        for entry in shard {
            map.insert(entry.name.into(), Value::from(name.as_str()));
            total += entry.bytes;
        }
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    let mut text = serde_json::to_vec_pretty(&index).map_err(std::io::Error::from)?;
    text.push(b'\n');
    let path = dir.join("model.safetensors.index.json");
    artifact::atomic::write_bytes(&path, &text)?;
    Ok(path)
}

/// Removes weight files of an earlier save with another number of shards, which a reader could take for current.
fn remove_stale(dir: &Path, written: &[PathBuf]) -> Result<()> {
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let shard = name.starts_with("model-") && name.ends_with(".safetensors");
        let ours = shard || name == "model.safetensors" || name == "model.safetensors.index.json";
        if ours && !written.contains(&path) {
            fs_err::remove_file(&path)?;
        }
    }
    Ok(())
}

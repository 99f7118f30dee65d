//! Reading the golden files under `tests/fixtures`.

use anyhow::{Context as _, Result, anyhow, bail};
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// The root of the checkout.
///
/// # Panics
/// Never: this crate lies in the checkout.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the checkout")
        .to_path_buf()
}

/// A path under `tests/fixtures/parity`.
pub fn parity(path: impl AsRef<Path>) -> PathBuf {
    root().join("tests/fixtures/parity").join(path)
}

/// The model fixtures, by name.
///
/// # Errors
/// If the folder cannot be read or holds none.
pub fn models() -> Result<Vec<String>> {
    folders("models")
}

/// The fixtures of reward models, by name.
///
/// # Errors
/// If the folder cannot be read or holds none.
pub fn reward_models() -> Result<Vec<String>> {
    folders("reward-models")
}

/// The fixtures of adapters, by name.
///
/// # Errors
/// If the folder cannot be read or holds none.
pub fn adapters() -> Result<Vec<String>> {
    folders("adapters")
}

fn folders(of: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(parity(of))? {
        names.push(entry?.file_name().into_string().map_err(|name| anyhow!("{}", name.display()))?);
    }
    names.sort();
    anyhow::ensure!(names.len() >= 7, "only these {of}: {names:?}");
    Ok(names)
}

/// A JSON file.
///
/// # Errors
/// Names the file.
pub fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs_err::read_to_string(path)?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Named tensors of a safetensors file, on the CPU.
#[derive(Debug)]
pub struct Tensors {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl Tensors {
    /// Reads the whole file.
    ///
    /// # Errors
    /// Names the file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs_err::read(path)?;
        let file = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::F64 => Kind::Double,
                Dtype::BF16 => Kind::BFloat16,
                Dtype::F16 => Kind::Half,
                Dtype::I64 => Kind::Int64,
                other => bail!("{}: `{name}` is {other:?}", path.display()),
            };
            let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
            tensors.insert(name.clone(), Tensor::from_data_size(view.data(), &shape, kind));
        }
        Ok(Self { path: path.to_path_buf(), tensors })
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// Names file and tensor if there is none.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .with_context(|| format!("{}: no tensor `{name}`", self.path.display()))
    }

    /// A tensor of ids as nested rows.
    ///
    /// # Errors
    /// If there is none or it is not a matrix of integers.
    pub fn rows(&self, name: &str) -> Result<Vec<Vec<i64>>> {
        Ok(Vec::<Vec<i64>>::try_from(self.get(name)?)?)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

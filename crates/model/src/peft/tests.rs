//! Adapters on tiny models.

mod errors;
mod files;
mod four_bit;
mod train;

use super::*;
use crate::config::Architecture;
use crate::decoder::{Decoder, LoadOptions, Loading};
use crate::precision::Precision;
use crate::testing::{normal, randomised, row, tiny_config, token_ids};
use std::path::Path;
use tch::{Device, Kind, Tensor, no_grad};
use tempfile::TempDir;
use torch_ext::autograd;

const TRAINABLE: LoadOptions =
    LoadOptions { device: Device::Cpu, precision: Precision::Fp32, trainable: true };

/// The directory of a tiny model.
fn base(architecture: Architecture) -> TempDir {
    base_of(&tiny_config(architecture))
}

fn base_of(config: &ModelConfig) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let decoder = randomised(config, &LoadOptions::default());
    decoder.save(dir.path(), Precision::Fp32, u64::MAX).unwrap();
    dir
}

fn adapter(method: Method) -> Adapter {
    Adapter { method, modules_to_save: Vec::new() }
}

/// A LoRA of rank 2 on all linear layers, changed.
fn lora(change: impl FnOnce(&mut Lora)) -> Adapter {
    let mut lora = Lora { r: 2, lora_alpha: 3.0, ..Lora::default() };
    change(&mut lora);
    adapter(Method::Lora(lora))
}

fn ia3() -> Adapter {
    adapter(Method::Ia3(Ia3 { target_modules: None, feedforward_modules: None }))
}

fn bottleneck(place: BottleneckPlace) -> Adapter {
    let activation = crate::config::Activation::Relu;
    adapter(Method::Bottleneck(Bottleneck { size: 3, activation, place }))
}

fn saving(mut adapter: Adapter, modules: &[&str]) -> Adapter {
    adapter.modules_to_save = names(modules);
    adapter
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn targets(list: &[&str]) -> Targets {
    Targets::Names(names(list))
}

/// One adapter of each method.
fn every_method() -> Vec<(&'static str, Adapter)> {
    vec![
        ("lora", lora(|_| {})),
        ("rslora", lora(|lora| lora.use_rslora = true)),
        ("gaussian", lora(|lora| lora.init_lora_weights = InitLora::Gaussian)),
        ("dora", lora(|lora| lora.use_dora = true)),
        ("ia3", ia3()),
        ("houlsby", bottleneck(BottleneckPlace::Houlsby)),
        ("pfeiffer", bottleneck(BottleneckPlace::Pfeiffer)),
    ]
}

fn try_load(dir: &Path, adapter: &Adapter, options: LoadOptions) -> Result<Decoder> {
    let loading = Loading { options, seed: 4, adapter: Some(adapter), ..Loading::default() };
    Decoder::load_with(dir, &loading)
}

fn load(dir: &Path, adapter: &Adapter) -> Decoder {
    try_load(dir, adapter, TRAINABLE).unwrap()
}

fn load_files(dir: &Path, files: &Path) -> Result<Decoder> {
    let files = AdapterFiles::open(files)?;
    let loading = Loading { adapter_files: Some(&files), ..Loading::default() };
    Decoder::load_with(dir, &loading)
}

fn plain(dir: &Path) -> Decoder {
    Decoder::load(dir, &LoadOptions::default()).unwrap()
}

/// Logits of two documents, with what autograd records.
fn outputs(decoder: &Decoder) -> Tensor {
    outputs_of(decoder, &[13, 7])
}

/// Logits or scores of documents of these lengths.
fn outputs_of(decoder: &Decoder, lengths: &[usize]) -> Tensor {
    let ids = token_ids(lengths.iter().sum(), 61, 3);
    let hidden = decoder.hidden(&row(decoder, &ids, lengths)).unwrap();
    if decoder.config().head.has_language_model() {
        return decoder.logits(&hidden).unwrap();
    }
    decoder.scores(&hidden).unwrap()
}

fn logits(decoder: &Decoder) -> Tensor {
    no_grad(|| outputs(decoder))
}

/// Moves all that trains, so that nothing is left at 0 or 1.
fn shake(decoder: &mut Decoder) {
    for (index, mut weight) in decoder.params_mut().trainable().into_iter().enumerate() {
        let noise = normal(500 + index as u64, 0.2, &weight.master.size());
        let _ = no_grad(|| weight.master.g_add_(&noise));
        let _ = &mut weight;
    }
    decoder.params_mut().refresh_compute().unwrap();
}

/// Gradients of a probed sum of the outputs, by name.
fn gradients(decoder: &mut Decoder) -> Vec<(String, Tensor)> {
    decoder.params_mut().clear_grads().unwrap();
    let outputs = outputs(decoder);
    let probe = normal(5, 1.0, &outputs.size());
    autograd::backward(&(outputs * probe).sum(Kind::Float)).unwrap();
    decoder.params_mut().gather_grads().unwrap();
    let all = decoder.params_mut().trainable();
    all.iter().map(|weight| (weight.name.to_owned(), weight.grad.copy())).collect()
}

/// Three steps of gradient descent.
fn descend(decoder: &mut Decoder) {
    for _ in 0..3 {
        let _ = gradients(decoder);
        for mut weight in decoder.params_mut().trainable() {
            let step = &weight.grad * -1e-3;
            let _ = no_grad(|| weight.master.g_add_(&step));
            let _ = &mut weight;
        }
        decoder.params_mut().refresh_compute().unwrap();
    }
}

fn message(result: Result<Decoder>) -> String {
    result.map(|_| ()).unwrap_err().to_string()
}

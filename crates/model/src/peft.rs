//! Adapters: a small part that is trained while the model stays as it is.
//!
//! [`Adapter`] says what is added where ([`Lora`], [`Ia3`], [`Bottleneck`]); `adapter_config.json` and
//! `adapter_model.safetensors` hold it as PEFT does. What an adapter computes is in `decoder`.

mod attach;
mod config;
mod files;
mod json;
mod merge;
mod pissa;
mod quantization;
mod target;
#[cfg(test)]
mod tests;

use crate::config::ModelConfig;
use crate::error::Result;
use crate::layout::layout;

pub(crate) use attach::{Attachment, attach};
pub use config::{
    Adapter, Bias, Bottleneck, BottleneckPlace, Ia3, InitLora, Lora, Method, QuantType,
    Quantization, Targets,
};
pub use files::{AdapterFiles, BASE_DIGEST};
pub(crate) use pissa::cut;
pub(crate) use quantization::trained_whole;
pub use target::Module;
pub(crate) use target::{Origin, linear_modules};

/// Number of parameters that train with an adapter, from the model's config alone.
///
/// # Errors
/// Whatever of the adapter does not go with the model, with names.
pub fn trainable_parameters(adapter: &Adapter, config: &ModelConfig) -> Result<u64> {
    let layout = layout(config);
    let adapter = adapter.resolved(config.architecture);
    let attachment = attach(&adapter, config, &layout, Origin::New)?;
    Ok(attachment.num_parameters(&layout))
}

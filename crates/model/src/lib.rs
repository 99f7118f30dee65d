//! Decoder-only transformers: GPT-2 / DialoGPT and the Llama family (Llama 2 and 3, Mistral, Qwen2, Qwen3).
//!
//! One configurable decoder over flat rows of tokens (no padding anywhere), read from and written to Hugging Face
//! directories, and a generation engine with a key-value cache.
//!
//! - [`ModelConfig`]: `config.json`, read with every problem named at once and written back with unknown keys kept.
//! - [`Params`]: fp32 masters, compute copies in the precision of the run, gradients.
//! - [`Decoder`]: initialise, load, save, hidden states, logits.
//! - [`peft`]: adapters, in PEFT's files.
//! - [`generate`]: ragged prompts in, sampled tokens with their log-probabilities out.
//!
//! Legend for shapes: `T` tokens of a flat row, `D` width, `V` vocabulary, `H` query heads, `Hkv` key-value heads,
//! `E` head size, `I` width of the MLP, `R` rows being generated.

pub mod config;
mod decoder;
pub mod division;
mod error;
pub mod generate;
mod layout;
mod params;
pub mod peft;
mod precision;
mod random;
#[cfg(test)]
mod testing;
pub mod weights;

pub use config::{Architecture, Head, ModelConfig};
pub use decoder::{Checkpointing, Decoder, Input, LoadOptions, Loading};
pub use error::{Error, Result};
pub use params::{Leaf, Master, Params, Trainable};
pub use precision::Precision;

//! Hugging Face weight files: safetensors, one file or shards with an index, memory-mapped.

pub(crate) mod four_bit;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::WeightFiles;
pub(crate) use write::{Values, write_as, write_tensors_with};
pub use write::{write, write_tensors};

use crate::config::Architecture;
use safetensors::Dtype;
use tch::Kind;

/// The names under which a file may hold the tensor that is canonically called `name`: as saved by the causal-LM class,
/// or by the base class, which leaves the prefix away.
pub(crate) fn aliases(name: &str, architecture: Architecture) -> [&str; 2] {
    [name, name.strip_prefix(base_prefix(architecture)).unwrap_or(name)]
}

fn base_prefix(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Gpt2 => "transformer.",
        _ => "model.",
    }
}

/// Whether a tensor in a file is a buffer that older versions of transformers saved and that carries no weight: causal
/// masks of GPT-2 and rotary frequencies.
pub(crate) fn is_buffer(name: &str, shape: &[usize]) -> bool {
    name.ends_with(".attn.masked_bias")
        || (name.ends_with(".attn.bias") && shape.len() == 4)
        || name.ends_with(".rotary_emb.inv_freq")
}

/// The number types that safetensors and libtorch share.
const KINDS: [(Dtype, Kind); 10] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F64, Kind::Double),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I16, Kind::Int16),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

fn kind(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(name, _)| *name == dtype).map(|(_, kind)| *kind)
}

fn dtype(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find(|(_, named)| *named == kind).map(|(dtype, _)| *dtype)
}

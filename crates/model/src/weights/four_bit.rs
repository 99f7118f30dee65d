//! Weights in 4 bits on disk: the tensors that bitsandbytes puts into a state dict, and transformers into safetensors.
//!
//! Beside a weight `W`, whose bytes hold two codes each, lie `W.absmax`, `W.quant_map`, with double quantisation
//! `W.nested_absmax` and `W.nested_quant_map`, and what is no tensor as JSON in the bytes of
//! `W.quant_state.bitsandbytes__nf4` (or `__fp4`).

#[cfg(test)]
mod tests;

use super::WeightFiles;
use crate::error::{Error, Result};
use crate::precision::Precision;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt::Write as _;
use tch::{Kind, Tensor};
use torch_ext::blockwise;
use torch_ext::four_bit::{BLOCK, Code, FourBit, Scales, nested_map};

const CODES: [Code; 2] = [Code::Nf4, Code::Fp4];

/// How far the tables in a file may be from ours: what rounding does on another processor.
const TABLE_TOLERANCE: f64 = 1e-6;

/// bitsandbytes' name of a code.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Nf4 => "nf4",
        Code::Fp4 => "fp4",
    }
}

fn state_name(weight: &str, code: Code) -> String {
    format!("{weight}.quant_state.bitsandbytes__{}", name_of(code))
}

/// What lies beside a weight, under its name and these.
const BESIDE: [&str; 6] = [
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
];

/// The weight that a tensor named so would belong to.
pub(crate) fn weight_of(name: &str) -> Option<&str> {
    BESIDE.iter().find_map(|suffix| name.strip_suffix(suffix))
}

/// Whether the files hold the weight `name` in 4 bits.
pub(crate) fn is_quantised(files: &WeightFiles, name: &str) -> bool {
    CODES.iter().any(|&code| files.shape(&state_name(name, code)).is_some())
}

/// The tensors of a weight under their names in a file; `dtype` is the number type that it had and is computed in.
pub(crate) fn to_tensors(name: &str, weight: &FourBit, dtype: Precision) -> Vec<(String, Tensor)> {
    let beside = |suffix: &str| format!("{name}.{suffix}");
    let mut tensors = vec![
        (name.to_owned(), weight.packed().unsqueeze(1)),
        (beside("quant_map"), Tensor::from_slice(&weight.code().values())),
    ];
    let shape: Vec<String> = weight.shape().iter().map(i64::to_string).collect();
    let mut state = format!(
        "{{\"quant_type\": \"{}\", \"blocksize\": {BLOCK}, \"dtype\": \"{}\", \"shape\": [{}]",
        name_of(weight.code()),
        dtype.torch_name(),
        shape.join(", ")
    );
    match weight.scales() {
        Scales::Plain { absmax } => tensors.push((beside("absmax"), absmax.shallow_clone())),
        Scales::Nested { codes, absmax, offset } => {
            let _ = write!(
                state,
                ", \"nested_blocksize\": {}, \"nested_dtype\": \"float32\", \"nested_offset\": {}",
                blockwise::BLOCK,
                python_float(f64::from(*offset))
            );
            tensors.extend([
                (beside("absmax"), codes.shallow_clone()),
                (beside("nested_absmax"), absmax.shallow_clone()),
                (beside("nested_quant_map"), Tensor::from_slice(nested_map())),
            ]);
        }
    }
    state.push('}');
    tensors.push((state_name(name, weight.code()), Tensor::from_slice(state.as_bytes())));
    tensors
}

/// A number as Python writes it: as Rust does, but for an exponent of at least two digits and always a sign.
fn python_float(x: f64) -> String {
    let text = format!("{x:?}");
    match text.split_once('e') {
        None => text,
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
    }
}

/// What is stored of a weight beside its tensors.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: i64,
    shape: Vec<i64>,
    nested_blocksize: Option<i64>,
    nested_offset: Option<f64>,
}

/// Reads the 4-bit weight `name`.
///
/// # Errors
/// A tensor that is missing, or of another size or type than the weight's shape takes; blocks of another size; another
/// code or another table of its values. The file, the tensor and what is wrong are named.
pub(crate) fn from_files(files: &WeightFiles, name: &str) -> Result<FourBit> {
    let beside = |suffix: &str| format!("{name}.{suffix}");
    let state = read_state(files, name)?;
    let at = state_name(name, state.code);
    let State { shape, nested_offset, .. } = state.state;
    check_table(files, &beside("quant_map"), &state.code.values())?;
    let absmax = files.tensor(&beside("absmax"))?;
    let scales = match nested_offset {
        None => Scales::Plain { absmax },
        Some(offset) => {
            check_table(files, &beside("nested_quant_map"), nested_map())?;
            let scales = files.tensor(&beside("nested_absmax"))?;
            Scales::Nested { codes: absmax, absmax: scales, offset: offset as f32 }
        }
    };
    let packed = files.tensor(name)?;
    if packed.kind() != Kind::Uint8 {
        let problem =
            format!("is stored as {:?}; use `bnb_4bit_quant_storage` uint8", packed.kind());
        return Err(wrong(files, name, problem));
    }
    FourBit::from_parts(&packed, &scales, state.code, &shape)
        .map_err(|error| wrong(files, &at, format!("does not fit the weight: {error}")))
}

struct CheckedState {
    state: State,
    code: Code,
}

fn read_state(files: &WeightFiles, name: &str) -> Result<CheckedState> {
    let found = CODES.into_iter().find(|&code| files.shape(&state_name(name, code)).is_some());
    let Some(code) = found else {
        let problem =
            format!("has no {}, so it is no weight in 4 bits", state_name(name, Code::Nf4));
        return Err(wrong(files, name, problem));
    };
    let at = state_name(name, code);
    let text = Vec::<u8>::try_from(files.tensor(&at)?.to_kind(Kind::Uint8).view(-1))?;
    let state: State = serde_json::from_slice(&text)
        .map_err(|error| wrong(files, &at, format!("is no quantisation state: {error}")))?;
    if state.quant_type != name_of(code) {
        let problem = format!("says quant_type `{}`; use nf4 or fp4", state.quant_type);
        return Err(wrong(files, &at, problem));
    }
    if state.blocksize != BLOCK {
        let problem = format!("has blocks of {} numbers; only {BLOCK} is read", state.blocksize);
        return Err(wrong(files, &at, problem));
    }
    let nested = state.nested_blocksize.unwrap_or(blockwise::BLOCK);
    if nested != blockwise::BLOCK {
        let problem = format!("has blocks of {nested} scales; only {} is read", blockwise::BLOCK);
        return Err(wrong(files, &at, problem));
    }
    if state.nested_blocksize.is_some() != state.nested_offset.is_some() {
        let problem = "has one of nested_blocksize and nested_offset without the other";
        return Err(wrong(files, &at, problem));
    }
    Ok(CheckedState { state, code })
}

/// Whether the table of values in a file is the one we compute with.
fn check_table(files: &WeightFiles, name: &str, values: &[f32]) -> Result<()> {
    let table = files.tensor(name)?;
    let ours = Tensor::from_slice(values);
    if table.size() != ours.size() || !table.allclose(&ours, TABLE_TOLERANCE, 0.0, false) {
        return Err(wrong(files, name, "has other values than bitsandbytes' own table"));
    }
    Ok(())
}

fn wrong(files: &WeightFiles, name: &str, problem: impl std::fmt::Display) -> Error {
    Error::WeightFile { path: files.path_of(name), problem: format!("{name} {problem}") }
}

/// The `quantization_config` of config.json, as transformers' `BitsAndBytesConfig` writes it. `skipped` are the modules
/// that stay in `compute`'s type; none: those that transformers leaves out itself.
pub(crate) fn quantization_config(
    code: Code,
    double_quantisation: bool,
    compute: Precision,
    skipped: Option<&[&str]>,
) -> Value {
    json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": compute.torch_name(),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": name_of(code),
        "bnb_4bit_use_double_quant": double_quantisation,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    })
}

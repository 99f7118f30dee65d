//! Rotary position settings, in the form of `rope_scaling` and `rope_theta` or of the newer `rope_parameters`.

use super::read::{Keys, POSITIVE};
use serde_json::{Map, Value};

/// Rotary positions: the angle of pair `i` at position `p` is `p * theta^(-2i / head_dim)`, scaled.
///
/// Paper: Su et al. 2021, arXiv:2104.09864, eq. 15, with the pairs `(i, i + head_dim / 2)` of Hugging Face.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched for contexts longer than those trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1's: long wavelengths divided, short ones kept, a linear blend between.
    Llama3 {
        /// Divides the low frequencies.
        factor: f64,
        /// Wavelengths longer than `original_max_position_embeddings / low_freq_factor` are divided whole.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context of the original training.
        original_max_position_embeddings: f64,
    },
}

impl Rope {
    /// Angles per position for each of the `head_dim / 2` pairs, computed as transformers does, in f32.
    pub fn inverse_frequencies(&self, head_dim: i64) -> Vec<f32> {
        let base = self.theta as f32;
        let default = (0..head_dim / 2).map(|i| 1.0 / base.powf((2 * i) as f32 / head_dim as f32));
        match self.scaling {
            RopeScaling::None => default.collect(),
            RopeScaling::Linear { factor } => default.map(|f| f / factor as f32).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            } => {
                let (low, high) = (low_freq_factor as f32, high_freq_factor as f32);
                let (factor, original) = (factor as f32, original as f32);
                let scale = |frequency: f32| {
                    let wavelength = 2.0 * std::f32::consts::PI / frequency;
                    if wavelength < original / high {
                        frequency
                    } else if wavelength > original / low {
                        frequency / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                default.map(scale).collect()
            }
        }
    }
}

/// Reads the rotary settings of a Llama-family config.
pub(super) fn read(keys: &mut Keys<'_>) -> Rope {
    let top_theta = keys.float("rope_theta", Some(10000.0), f64::MIN_POSITIVE, f64::MAX);
    if keys.float("partial_rotary_factor", Some(1.0), 0.0, 1.0) < 1.0 {
        keys.problem("`partial_rotary_factor` below 1 is not supported");
    }
    let parameters = keys.object("rope_parameters");
    let scaling = keys.object("rope_scaling");
    let (key, map) = match (parameters, scaling) {
        (Some(parameters), Some(scaling)) if parameters != scaling => {
            keys.problem("`rope_parameters` and `rope_scaling` are both given and differ");
            return Rope { theta: top_theta, scaling: RopeScaling::None };
        }
        (Some(map), _) => ("rope_parameters", map),
        (None, Some(map)) => ("rope_scaling", map),
        (None, None) => return Rope { theta: top_theta, scaling: RopeScaling::None },
    };
    read_table(keys, key, map, top_theta)
}

/// Reads one of the two tables. Every key in it must be known: a key that is ignored would change the model silently.
fn read_table(keys: &mut Keys<'_>, key: &str, map: &Map<String, Value>, theta: f64) -> Rope {
    let kind = map.get("rope_type").or_else(|| map.get("type"));
    let kind = match kind {
        None => "default",
        Some(Value::String(kind)) => kind.as_str(),
        Some(other) => {
            keys.problem(format!("`{key}.rope_type` must be a string, not {other}"));
            "default"
        }
    };
    let mut inner = Keys::nested(map, key);
    let theta = inner.float("rope_theta", Some(theta), f64::MIN_POSITIVE, f64::MAX);
    let mut known = vec!["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    if inner.float("partial_rotary_factor", Some(1.0), 0.0, 1.0) < 1.0 {
        inner.problem(format!("`{key}.partial_rotary_factor` below 1 is not supported"));
    }
    let mut supported = true;
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => {
            known.push("factor");
            RopeScaling::Linear { factor: inner.float("factor", None, 1.0, f64::MAX) }
        }
        "llama3" => {
            let names = ["factor", "low_freq_factor", "high_freq_factor"];
            known.extend(names);
            known.push("original_max_position_embeddings");
            let [factor, low, high] = names.map(|name| inner.float(name, None, 1e-9, f64::MAX));
            if high <= low {
                inner.problem(format!(
                    "`{key}.high_freq_factor` ({high}) must be above `low_freq_factor` ({low})"
                ));
            }
            let original = inner.int("original_max_position_embeddings", None, POSITIVE);
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original as f64,
            }
        }
        other => {
            supported = false;
            inner.problem(format!(
                "`{key}.rope_type` \"{other}\" is not supported; supported are \"default\", \"linear\" and \"llama3\""
            ));
            RopeScaling::None
        }
    };
    if supported {
        for unknown in map.keys().filter(|name| !known.contains(&name.as_str())) {
            inner.problem(format!("`{key}.{unknown}` is not known for rope_type \"{kind}\""));
        }
    }
    keys.absorb(inner);
    Rope { theta, scaling }
}

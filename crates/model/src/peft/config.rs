//! What an adapter is, as a config names it. The keys are PEFT's.

use crate::config::Activation;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// What is trained in place of a whole model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// What is added to the model.
    pub method: Method,
    /// Modules that are trained whole beside it, by the end of their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
}

/// The methods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// Low-rank updates of linear layers.
    Lora(Lora),
    /// Factors on activations.
    Ia3(Ia3),
    /// Small layers behind attention and MLP.
    Bottleneck(Bottleneck),
}

impl Method {
    /// What people call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lora(lora) if lora.use_dora => "DoRA",
            Self::Lora(_) => "LoRA",
            Self::Ia3(_) => "IA3",
            Self::Bottleneck(_) => "bottleneck",
        }
    }
}

/// `W + scale · B A` in place of a weight `W [out, in]`, with `A [r, in]` and `B [out, r]`.
///
/// Hu et al. 2021, `LoRA`, arXiv:2106.09685, section 4.1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// The rank.
    #[serde(default = "rank")]
    pub r: i64,
    /// The scale is this over the rank.
    #[serde(default = "alpha")]
    pub lora_alpha: f64,
    /// On the input of `A`, in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Which linear layers.
    #[serde(default)]
    pub target_modules: Targets,
    /// Those of them that are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Targets>,
    /// Only in these layers of the model, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Vec<i64>>,
    /// Which of the model's own biases are trained.
    #[serde(default)]
    pub bias: Bias,
    /// The scale is alpha over the root of the rank (Kalajdzievski 2023, arXiv:2312.03732, theorem 3.2).
    #[serde(default)]
    pub use_rslora: bool,
    /// The length of each weight row is trained apart from its direction (Liu et al. 2024, arXiv:2402.09353, eq. 5).
    #[serde(default)]
    pub use_dora: bool,
    /// How `A` and `B` start.
    #[serde(default)]
    pub init_lora_weights: InitLora,
    /// Other ranks: the end of a layer's name, or a regular expression for it, and its rank.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, i64>,
    /// Other alphas, likewise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// The learning rate of `B` is so many times that of `A` (Hayou et al. 2024, `LoRA+`, arXiv:2402.12354, section 5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loraplus_lr_ratio: Option<f64>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            r: rank(),
            lora_alpha: alpha(),
            lora_dropout: 0.0,
            target_modules: Targets::default(),
            exclude_modules: None,
            layers_to_transform: None,
            bias: Bias::default(),
            use_rslora: false,
            use_dora: false,
            init_lora_weights: InitLora::default(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            loraplus_lr_ratio: None,
        }
    }
}

fn rank() -> i64 {
    8
}

fn alpha() -> f64 {
    8.0
}

/// Which biases of the model are trained beside a LoRA.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// All of them, norms' too.
    All,
    /// Those of the layers that have a low-rank update.
    LoraOnly,
}

/// How `A` and `B` start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitLora {
    /// `A` uniform within `±1/√in`, `B` zero: the model starts as it is. PEFT's default, `true` in its files.
    #[default]
    Kaiming,
    /// `A` normal with deviation `1/r`, `B` zero.
    Gaussian,
    /// The principal part of the weight, which is taken off it (Meng et al. 2024, `PiSSA`, arXiv:2404.02948, eq. 2 to 4).
    /// Written as an ordinary LoRA of twice the rank, for the model as it was.
    Pissa,
}

/// Learned factors on outputs of linear layers, and on inputs of others.
///
/// Liu et al. 2022, arXiv:2205.05638, section 3.3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ia3 {
    /// Which linear layers. Absent: key, value and the MLP's last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<Targets>,
    /// Those of them whose input is multiplied rather than their output. Absent: the MLP's last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feedforward_modules: Option<Targets>,
}

/// `x + up(activation(down(x)))` behind a sub-layer, before it is added to the residual stream.
///
/// Houlsby et al. 2019, arXiv:1902.00751, section 2.1; Pfeiffer et al. 2020, arXiv:2005.00247, section 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bottleneck {
    /// Width between down and up.
    pub size: i64,
    /// The non-linearity.
    #[serde(default = "relu")]
    pub activation: Activation,
    /// Behind which sub-layers.
    #[serde(default)]
    pub place: BottleneckPlace,
}

fn relu() -> Activation {
    Activation::Relu
}

/// Where bottleneck layers are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BottleneckPlace {
    /// Behind attention and behind the MLP.
    #[default]
    Houlsby,
    /// Behind the MLP.
    Pfeiffer,
}

/// The frozen weights in 4 bits, as bitsandbytes has them.
///
/// Dettmers et al. 2023, `QLoRA`, arXiv:2305.14314, section 3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// The code.
    #[serde(default)]
    pub quant_type: QuantType,
    /// The blocks' scales in 8 bits.
    #[serde(default = "yes")]
    pub double_quant: bool,
    /// Linear layers that stay whole, by the end of their names. The output layer always does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_modules: Vec<String>,
}

fn yes() -> bool {
    true
}

impl Default for Quantization {
    fn default() -> Self {
        Self { quant_type: QuantType::Nf4, double_quant: true, skip_modules: Vec::new() }
    }
}

/// A 4-bit code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantType {
    /// Quantiles of the normal distribution.
    #[default]
    Nf4,
    /// A sign, two bits of exponent and one of mantissa.
    Fp4,
}

/// Which linear layers of a model are meant: a string or a list of strings, as PEFT takes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Targets {
    /// `"all-linear"`: every one but the output layer.
    #[default]
    AllLinear,
    /// A list: names, or ends of names behind a dot.
    Names(Vec<String>),
    /// Any other string: a regular expression for the whole name.
    Pattern(String),
}

const ALL_LINEAR: &str = "all-linear";

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AllLinear => serializer.serialize_str(ALL_LINEAR),
            Self::Names(names) => names.serialize(serializer),
            Self::Pattern(pattern) => serializer.serialize_str(pattern),
        }
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringOrList;
        impl<'de> Visitor<'de> for StringOrList {
            type Value = Targets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "\"all-linear\", a regular expression, or a list of names of linear layers",
                )
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Targets, E> {
                Ok(match text {
                    ALL_LINEAR => Targets::AllLinear,
                    pattern => Targets::Pattern(pattern.to_owned()),
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Targets, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element::<String>()? {
                    names.push(name);
                }
                if names.is_empty() {
                    return Err(A::Error::custom("the list names no layer"));
                }
                Ok(Targets::Names(names))
            }
        }
        deserializer.deserialize_any(StringOrList)
    }
}

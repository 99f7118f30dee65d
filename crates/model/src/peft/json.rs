//! `adapter_config.json`, as PEFT 0.21 writes it, and a form of our own for what PEFT does not know.

use super::config::{Adapter, Bias, Bottleneck, Ia3, InitLora, Lora, Method, Targets};
use super::target::Module;
use crate::config::Head;
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Keys of PEFT's LoRA that change what is computed, in ways that are not supported here.
const UNSUPPORTED: [&str; 10] = [
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// What a file says.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) adapter: Adapter,
    pub(crate) base: Option<String>,
    pub(crate) head: Head,
}

/// Reads `adapter_config.json`.
///
/// # Errors
/// Not JSON, another kind of adapter, a feature that is not supported, a value of a wrong type; the file and key are
/// named.
pub(crate) fn read(path: &Path) -> Result<Read> {
    let fail = |problem: String| Error::WeightFile { path: path.to_owned(), problem };
    let text = fs_err::read_to_string(path)?;
    let value: Value =
        serde_json::from_str(&text).map_err(|error| fail(format!("not JSON: {error}")))?;
    let map = value.as_object().ok_or_else(|| fail("is no JSON object".into()))?;
    let file = File { map };
    file.adapter().map_err(fail)
}

struct File<'a> {
    map: &'a Map<String, Value>,
}

type Parsed<T> = std::result::Result<T, String>;

impl File<'_> {
    fn adapter(&self) -> Parsed<Read> {
        let kind = self.text("peft_type")?.ok_or("has no `peft_type`")?;
        let method = match kind.as_str() {
            "LORA" => Method::Lora(self.lora()?),
            "IA3" => Method::Ia3(self.ia3()?),
            BOTTLENECK => Method::Bottleneck(self.bottleneck()?),
            other => {
                return Err(format!(
                    "peft_type {other} is not supported; LORA, IA3 and {BOTTLENECK} are"
                ));
            }
        };
        let head = match self.text("task_type")?.as_deref() {
            Some("SEQ_CLS") => Head::Score,
            Some("CAUSAL_LM") | None => Head::LanguageModel,
            Some(other) => {
                return Err(format!(
                    "task_type {other} is not supported; CAUSAL_LM and SEQ_CLS are"
                ));
            }
        };
        let mut modules_to_save = self.names("modules_to_save")?;
        if head == Head::Score {
            // The score is always trained; PEFT names both that it knows.
            modules_to_save.retain(|name| name != "classifier" && name != "score");
        }
        let adapter = Adapter { method, modules_to_save };
        Ok(Read { adapter, base: self.text("base_model_name_or_path")?, head })
    }

    fn lora(&self) -> Parsed<Lora> {
        for key in UNSUPPORTED {
            let value = self.map.get(key).unwrap_or(&Value::Null);
            let off = matches!(value, Value::Null | Value::Bool(false))
                || value.as_object().is_some_and(Map::is_empty)
                || value.as_array().is_some_and(Vec::is_empty);
            if !off {
                return Err(format!("`{key}` = {value} is not supported"));
            }
        }
        // Those of the supported models, which have one list of layers each.
        if let Some(other) =
            self.names("layers_pattern")?.iter().find(|name| *name != "layers" && *name != "h")
        {
            return Err(format!("layers_pattern `{other}` is not supported; `layers` and `h` are"));
        }
        let init = self.init()?;
        let bias = match self.text("bias")?.as_deref() {
            None | Some("none") => Bias::None,
            Some("all") => Bias::All,
            Some("lora_only") => Bias::LoraOnly,
            Some(other) => return Err(format!("bias `{other}` is none of none, all, lora_only")),
        };
        let target_modules = self.targets("target_modules")?.ok_or("`target_modules` is null")?;
        Ok(Lora {
            r: self.value("r")?.unwrap_or(8),
            lora_alpha: self.value("lora_alpha")?.unwrap_or(8.0),
            lora_dropout: self.value("lora_dropout")?.unwrap_or(0.0),
            target_modules,
            exclude_modules: self.targets("exclude_modules")?,
            layers_to_transform: self.layers()?,
            bias,
            use_rslora: self.value("use_rslora")?.unwrap_or(false),
            use_dora: self.value("use_dora")?.unwrap_or(false),
            init_lora_weights: init,
            rank_pattern: self.value("rank_pattern")?.unwrap_or_default(),
            alpha_pattern: self.value("alpha_pattern")?.unwrap_or_default(),
            loraplus_lr_ratio: None,
        })
    }

    fn init(&self) -> Parsed<InitLora> {
        let name = match self.map.get("init_lora_weights") {
            Some(Value::String(name)) => name.to_lowercase(),
            _ => return Ok(InitLora::Kaiming),
        };
        // PEFT takes a part of the weights off with these, which cannot be found again.
        let others = ["pissa_niter", "olora", "corda", "loftq", "lora_ga"];
        if others.iter().any(|other| name.starts_with(other)) {
            return Err(format!(
                "init_lora_weights `{name}` changed the base it was trained on; save it in PEFT with \
                 path_initial_model_for_weight_conversion"
            ));
        }
        Ok(match name.as_str() {
            "pissa" => InitLora::Pissa,
            "gaussian" => InitLora::Gaussian,
            _ => InitLora::Kaiming,
        })
    }

    fn ia3(&self) -> Parsed<Ia3> {
        if self.targets("exclude_modules")?.is_some() {
            return Err("`exclude_modules` is not supported for IA3".into());
        }
        Ok(Ia3 {
            target_modules: Some(
                self.targets("target_modules")?.ok_or("`target_modules` is null")?,
            ),
            feedforward_modules: self.targets("feedforward_modules")?,
        })
    }

    fn bottleneck(&self) -> Parsed<Bottleneck> {
        let value = json!({
            "size": self.map.get("size"),
            "activation": self.map.get("activation"),
            "place": self.map.get("place"),
        });
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    fn layers(&self) -> Parsed<Option<Vec<i64>>> {
        let bad = || "`layers_to_transform` is no list of numbers".to_owned();
        match self.map.get("layers_to_transform") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(all)) if all.is_empty() => Ok(None),
            Some(Value::Array(all)) => {
                let layers: Option<Vec<i64>> = all.iter().map(Value::as_i64).collect();
                layers.map(Some).ok_or_else(bad)
            }
            Some(one) => one.as_i64().map(|one| Some(vec![one])).ok_or_else(bad),
        }
    }

    /// The value of a key that is neither absent nor null.
    fn value<T: DeserializeOwned>(&self, key: &str) -> Parsed<Option<T>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|error| format!("`{key}`: {error}")),
        }
    }

    fn text(&self, key: &str) -> Parsed<Option<String>> {
        self.value(key)
    }

    /// An empty list means the same as none.
    fn targets(&self, key: &str) -> Parsed<Option<Targets>> {
        match self.map.get(key) {
            Some(Value::Array(all)) if all.is_empty() => Ok(None),
            _ => self.value(key),
        }
    }

    /// A list of names, or one.
    fn names(&self, key: &str) -> Parsed<Vec<String>> {
        match self.map.get(key) {
            Some(Value::String(one)) => Ok(vec![one.clone()]),
            _ => Ok(self.value(key)?.unwrap_or_default()),
        }
    }
}

/// Our own `peft_type`.
const BOTTLENECK: &str = "BOTTLENECK";

/// What [`write`] needs to know beside the adapter.
pub(crate) struct About<'a> {
    pub(crate) base: &'a str,
    pub(crate) head: Head,
    /// GPT-2's `Conv1D`.
    pub(crate) conv1d: bool,
    /// The modules to save, by names that PEFT takes for no others.
    pub(crate) saved: Vec<String>,
    /// Whether one of them is an embedding that PEFT should make the output layer as well.
    pub(crate) tied: bool,
    /// The layers that are changed.
    pub(crate) modules: &'a [Module],
}

/// The object of `adapter_config.json`, keys in PEFT's order.
pub(crate) fn write(adapter: &Adapter, about: &About<'_>) -> Value {
    let task = if about.head == Head::Score { "SEQ_CLS" } else { "CAUSAL_LM" };
    let mut saved = about.saved.clone();
    if about.head == Head::Score {
        saved.extend(["classifier".to_owned(), "score".to_owned()]);
    }
    saved.sort();
    saved.dedup();
    let saved = if saved.is_empty() { Value::Null } else { json!(saved) };
    let mut map = match &adapter.method {
        Method::Lora(lora) => lora_json(lora, about),
        Method::Ia3(ia3) => ia3_json(ia3, about),
        Method::Bottleneck(Bottleneck { size, activation, place }) => object(json!({
            "peft_type": BOTTLENECK, "size": size, "activation": activation, "place": place,
        })),
    };
    if !matches!(adapter.method, Method::Bottleneck(_)) {
        map.insert("auto_mapping".into(), Value::Null);
        map.insert("peft_version".into(), json!("0.21.2"));
        map.insert("revision".into(), Value::Null);
    }
    map.insert("base_model_name_or_path".into(), json!(about.base));
    map.insert("inference_mode".into(), json!(true));
    map.insert("modules_to_save".into(), saved);
    map.insert("task_type".into(), json!(task));
    map.sort_keys();
    Value::Object(map)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// A pattern, or names in order; every linear layer by the ends of their names.
fn targets_json(targets: &Targets, about: &About<'_>) -> Value {
    let mut names: Vec<&str> = match targets {
        Targets::Pattern(pattern) => return json!(pattern),
        Targets::Names(names) => names.iter().map(String::as_str).collect(),
        Targets::AllLinear => {
            let last = |module: &'_ Module| module.name.rfind('.').map_or(0, |dot| dot + 1);
            about.modules.iter().map(|module| &module.name[last(module)..]).collect()
        }
    };
    names.sort_unstable();
    names.dedup();
    json!(names)
}

fn lora_json(lora: &Lora, about: &About<'_>) -> Map<String, Value> {
    let number = |value: f64| {
        if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
    };
    let bias = match lora.bias {
        Bias::None => "none",
        Bias::All => "all",
        Bias::LoraOnly => "lora_only",
    };
    let alphas: Map<String, Value> =
        lora.alpha_pattern.iter().map(|(name, alpha)| (name.clone(), number(*alpha))).collect();
    let mut map = object(json!({
        "peft_type": "LORA",
        "alpha_pattern": alphas,
        "bias": bias,
        "ensure_weight_tying": about.tied,
        "exclude_modules": lora.exclude_modules.as_ref().map(|targets| targets_json(targets, about)),
        "fan_in_fan_out": about.conv1d,
        // What the weights started as is past; a PiSSA is written as an ordinary LoRA.
        "init_lora_weights": true,
        "layers_to_transform": lora.layers_to_transform,
        "loftq_config": {},
        "lora_alpha": number(lora.lora_alpha),
        "lora_bias": false,
        "lora_dropout": lora.lora_dropout,
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
        "r": lora.r,
        "rank_pattern": lora.rank_pattern,
        "target_modules": targets_json(&lora.target_modules, about),
        "use_dora": lora.use_dora,
        "use_qalora": false,
        "use_rslora": lora.use_rslora,
    }));
    for key in [
        "alora_invocation_tokens",
        "arrow_config",
        "corda_config",
        "eva_config",
        "kasa_config",
        "layer_replication",
        "layers_pattern",
        "lora_ga_config",
        "megatron_config",
        "monteclora_config",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "velora_config",
    ] {
        map.insert(key.into(), Value::Null);
    }
    map
}

fn ia3_json(ia3: &Ia3, about: &About<'_>) -> Map<String, Value> {
    let list = |targets: &Option<Targets>| match targets {
        Some(targets) => targets_json(targets, about),
        None => json!([]),
    };
    object(json!({
        "peft_type": "IA3",
        "exclude_modules": null,
        "fan_in_fan_out": about.conv1d,
        "feedforward_modules": list(&ia3.feedforward_modules),
        "init_ia3_weights": true,
        "target_modules": list(&ia3.target_modules),
    }))
}

//! Which layers of a model a name means.

use super::config::Targets;
use crate::config::{Architecture, ModelConfig};
use crate::error::{Error, Result};
use crate::layout::{Affine, BlockId, ModelLayout};
use regex::Regex;

/// A linear layer of a transformer layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// As in Hugging Face, for instance `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Numbers it reads for each token.
    pub inputs: i64,
    /// Numbers it gives for each token.
    pub outputs: i64,
    /// The transformer layer it is in.
    pub(crate) layer: usize,
    /// Which of the layer's linear layers, in the order of `LayerLayout::linears`.
    pub(crate) slot: usize,
    /// Its first output among those that one product computes.
    pub(crate) start: i64,
    pub(crate) block: BlockId,
    pub(crate) part: usize,
}

/// Where an adapter comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A config, in which a name that means nothing is a mistake.
    New,
    /// Files, which PEFT reads with names of other models' layers, and with any rank.
    Files,
}

/// The linear layers inside the transformer layers, in the order of the model.
pub(crate) fn linear_modules(config: &ModelConfig, layout: &ModelLayout) -> Vec<Module> {
    let conv1d = config.architecture == Architecture::Gpt2;
    let mut modules = Vec::new();
    for (layer, blocks) in layout.layers.iter().enumerate() {
        for (slot, Affine { weight, .. }) in blocks.linears().into_iter().enumerate() {
            let mut start = 0;
            for (part, spec) in layout.blocks[weight].parts.iter().enumerate() {
                let (rows, columns) = (spec.shape[0], spec.shape[1]);
                let (inputs, outputs) = if conv1d { (rows, columns) } else { (columns, rows) };
                let name = spec.module().to_owned();
                modules.push(Module {
                    name,
                    inputs,
                    outputs,
                    layer,
                    slot,
                    start,
                    block: weight,
                    part,
                });
                start += outputs;
            }
        }
    }
    modules
}

/// Whether `name` is `end`, or ends with it behind a dot.
pub(crate) fn ends_with(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a module, or one that it is inside of, is `name` or ends with it.
pub(crate) fn is_within(module: &str, name: &str) -> bool {
    format!(".{module}.").contains(&format!(".{name}."))
}

/// Names by which PEFT finds the modules that `wanted` means and no others: it takes any that end with these letters, in
/// the middle of a word too.
pub(crate) fn unambiguous(wanted: &str, layout: &ModelLayout) -> Vec<String> {
    let mut modules: Vec<&str> = Vec::new();
    for part in layout.blocks.iter().flat_map(|block| &block.parts) {
        let mut module = part.module();
        while !module.is_empty() && !modules.contains(&module) {
            modules.push(module);
            module = module.rsplit_once('.').map_or("", |(outer, _)| outer);
        }
    }
    let meant = |module: &&str| ends_with(module, wanted);
    if modules.iter().filter(|module| module.ends_with(wanted)).all(meant) {
        return vec![wanted.to_owned()];
    }
    modules.into_iter().filter(meant).map(str::to_owned).collect()
}

/// A regular expression for a whole name, as Python's `re.fullmatch` takes it.
pub(crate) fn whole(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$"))
        .map_err(|error| Error::Adapter(format!("`{pattern}` is no regular expression: {error}")))
}

/// The value of the first pattern that a layer's name ends with.
pub(crate) fn pattern_value<T: Copy>(
    patterns: impl IntoIterator<Item = (impl AsRef<str>, T)>,
    name: &str,
) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if whole(&format!("(?:.*\\.)?(?:{})", pattern.as_ref()))?.is_match(name) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

impl Targets {
    /// Those of `modules` that are meant.
    ///
    /// # Errors
    /// One of the names, or the pattern, means none: the nearest names are given. Of an adapter from files only if all
    /// mean none, as in PEFT.
    pub(crate) fn select<'a>(
        &self,
        key: &str,
        modules: &'a [Module],
        origin: Origin,
    ) -> Result<Vec<&'a Module>> {
        let matching = |test: &dyn Fn(&str) -> bool| -> Vec<&'a Module> {
            modules.iter().filter(|module| test(&module.name)).collect()
        };
        match self {
            Self::AllLinear => Ok(modules.iter().collect()),
            Self::Pattern(pattern) => {
                let regex = whole(pattern)?;
                let found = matching(&|name| regex.is_match(name));
                if found.is_empty() {
                    return Err(no_layer(key, pattern, modules));
                }
                Ok(found)
            }
            Self::Names(names) => {
                let lost = |wanted: &&String| matching(&|name| ends_with(name, wanted)).is_empty();
                let found = matching(&|name| names.iter().any(|wanted| ends_with(name, wanted)));
                match names.iter().find(lost) {
                    Some(wanted) if origin == Origin::New || found.is_empty() => {
                        Err(no_layer(key, wanted, modules))
                    }
                    _ => Ok(found),
                }
            }
        }
    }
}

fn no_layer(key: &str, wanted: &str, modules: &[Module]) -> Error {
    let outside = ["lm_head", "embed_tokens", "wte", "wpe", "score"];
    if outside.iter().any(|name| ends_with(wanted, name)) {
        return Error::Adapter(format!(
            "{key}: `{wanted}` is not a linear layer inside a transformer layer; name it in modules_to_save to train it \
             whole"
        ));
    }
    let names = modules.iter().map(|module| module.name.as_str());
    Error::Adapter(format!(
        "{key}: `{wanted}` is no linear layer of this model; {}",
        nearest(wanted, names)
    ))
}

/// The last words of `names` that are most like `wanted`, for a message.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> String {
    let last = |name: &'a str| name.rsplit('.').next().unwrap_or(name);
    let mut words: Vec<&str> = Vec::new();
    for word in names.map(last) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    let tail = wanted.rsplit('.').next().unwrap_or(wanted);
    let likeness = |word: &str| strsim::jaro_winkler(tail, word);
    words.sort_by(|a, b| likeness(b).total_cmp(&likeness(a)));
    let shown: Vec<String> = words.iter().take(8).map(|word| format!("`{word}`")).collect();
    format!("the nearest are {}", shown.join(", "))
}

//! What an adapter adds to a model: parameters, and where they act.

use super::config::{
    Adapter, Bias, Bottleneck, BottleneckPlace, Ia3, InitLora, Lora, Method, Targets,
};
use super::target::{Module, Origin, ends_with, is_within, linear_modules, nearest, pattern_value};
use crate::config::{Architecture, ModelConfig, SCORE};
use crate::decoder::{Factors, LowRank, LowRankPart, Rescale, RescalePart};
use crate::error::{Error, Result};
use crate::layout::{BlockSpec, Init, LayerLayout, ModelLayout, PartSpec};
use crate::params::Params;
use std::collections::BTreeSet;

/// Parameters to add to a model, and where they act.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// Of the adapter; places below are indices into these.
    pub(crate) blocks: Vec<BlockSpec>,
    /// Names of the model's own parameters that train.
    pub(crate) trained: BTreeSet<String>,
    /// What acts in each transformer layer, on each of its linear layers.
    pub(crate) changes: Vec<[Option<ChangePlan>; 4]>,
    /// Behind attention and MLP of each transformer layer.
    pub(crate) bottlenecks: Vec<[Option<[BlockPair; 2]>; 2]>,
    /// The layers that are changed.
    pub(crate) modules: Vec<Module>,
}

/// Weight and bias.
type BlockPair = [usize; 2];

#[derive(Debug)]
pub(crate) enum ChangePlan {
    LowRank { a: usize, parts: Vec<LowRankPlan>, dropout: f64 },
    Rescale { parts: Vec<RescalePlan> },
}

/// One layer of a low-rank change.
#[derive(Debug)]
pub(crate) struct LowRankPlan {
    pub(crate) module: Module,
    pub(crate) rows: (i64, i64),
    pub(crate) b: usize,
    pub(crate) scale: f64,
    pub(crate) magnitude: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct RescalePlan {
    outputs: (i64, i64),
    /// Block, and whether it is for the inputs.
    factors: Option<(usize, bool)>,
}

impl ChangePlan {
    /// The change over the parameters `ids` of `params`.
    pub(crate) fn build(&self, params: &Params, ids: &[usize]) -> crate::decoder::Change {
        use crate::decoder::Change;
        let leaf = |block: usize| params.leaf(ids[block]);
        match self {
            Self::LowRank { a, parts, dropout } => {
                let parts = parts.iter().map(|part| LowRankPart {
                    outputs: (part.module.start, part.module.outputs),
                    rows: part.rows,
                    b: leaf(part.b),
                    scale: part.scale,
                    magnitude: part.magnitude.map(leaf),
                });
                let parts = parts.collect();
                Change::LowRank(LowRank { a: leaf(*a), parts, dropout: *dropout })
            }
            Self::Rescale { parts } => {
                let parts = parts.iter().map(|part| RescalePart {
                    outputs: part.outputs,
                    factors: match part.factors {
                        None => Factors::None,
                        Some((block, true)) => Factors::Inputs(leaf(block)),
                        Some((block, false)) => Factors::Outputs(leaf(block)),
                    },
                });
                Change::Rescale(Rescale { parts: parts.collect() })
            }
        }
    }
}

/// What no adapter's rank is above.
const MOST_RANK: i64 = 1 << 20;

impl Attachment {
    /// Number of numbers that train, the model's own and the added ones.
    pub(crate) fn num_parameters(&self, layout: &ModelLayout) -> u64 {
        let own = layout.blocks.iter().flat_map(|block| &block.parts);
        let own = own.filter(|part| self.trained.contains(&part.name));
        let added = self.blocks.iter().flat_map(|block| &block.parts);
        own.chain(added).map(|part| part.shape.iter().product::<i64>() as u64).sum()
    }

    /// Places of all low-rank changes, with the block of their `A`.
    pub(crate) fn low_ranks(&self) -> impl Iterator<Item = (usize, &LowRankPlan)> {
        self.changes.iter().flatten().flatten().flat_map(|change| {
            let (a, parts): (usize, &[LowRankPlan]) = match change {
                ChangePlan::LowRank { a, parts, .. } => (*a, parts),
                ChangePlan::Rescale { .. } => (0, &[]),
            };
            parts.iter().map(move |part| (a, part))
        })
    }
}

impl Adapter {
    /// The same with what is left open filled in: IA3's layers, as in PEFT's table of defaults.
    pub(crate) fn resolved(&self, architecture: Architecture) -> Self {
        let mut adapter = self.clone();
        let Method::Ia3(ia3 @ Ia3 { target_modules: None, .. }) = &mut adapter.method else {
            return adapter;
        };
        let names = |names: &[&str]| {
            Some(Targets::Names(names.iter().map(|&name| name.to_owned()).collect()))
        };
        let (all, last): (&[&str], &[&str]) = match architecture {
            Architecture::Gpt2 => (&["c_attn", "mlp.c_proj"], &["mlp.c_proj"]),
            Architecture::Qwen2 | Architecture::Qwen3 => {
                (&["q_proj", "v_proj", "down_proj"], &["down_proj"])
            }
            Architecture::Llama | Architecture::Mistral => {
                (&["k_proj", "v_proj", "down_proj"], &["down_proj"])
            }
        };
        ia3.target_modules = names(all);
        if ia3.feedforward_modules.is_none() {
            ia3.feedforward_modules = names(last);
        }
        adapter
    }
}

/// What `adapter`, [resolved](Adapter::resolved), adds to the model of `layout`.
///
/// # Errors
/// A target that is no layer, a rank above a layer's size, a number out of range; all with names.
pub(crate) fn attach(
    adapter: &Adapter,
    config: &ModelConfig,
    layout: &ModelLayout,
    origin: Origin,
) -> Result<Attachment> {
    let modules = linear_modules(config, layout);
    let choice = Choice { modules: &modules, whole: &adapter.modules_to_save, origin };
    let layers = layout.layers.len();
    let mut attachment = Attachment {
        blocks: Vec::new(),
        trained: BTreeSet::new(),
        changes: (0..layers).map(|_| [const { None }; 4]).collect(),
        bottlenecks: (0..layers).map(|_| [None, None]).collect(),
        modules: Vec::new(),
    };
    match &adapter.method {
        Method::Lora(lora) => attachment.add_lora(lora, layout, &choice)?,
        Method::Ia3(ia3) => attachment.add_ia3(ia3, &choice)?,
        Method::Bottleneck(bottleneck) => attachment.add_bottleneck(bottleneck, config, layout)?,
    }
    attachment.add_saved(adapter, config, layout, origin)?;
    Ok(attachment)
}

impl Attachment {
    fn block(&mut self, parts: Vec<PartSpec>) -> usize {
        self.blocks.push(BlockSpec { parts });
        self.blocks.len() - 1
    }

    fn single(&mut self, part: PartSpec) -> usize {
        self.block(vec![part])
    }

    fn add_lora(&mut self, lora: &Lora, layout: &ModelLayout, choice: &Choice<'_>) -> Result<()> {
        check_lora(lora)?;
        let chosen = choice.of_lora(lora, self.changes.len())?;
        for group in chosen.chunk_by(|a, b| (a.layer, a.slot) == (b.layer, b.slot)) {
            self.add_low_rank(lora, group, choice.origin)?;
        }
        self.modules = chosen.into_iter().cloned().collect();
        for part in layout.blocks.iter().flat_map(|block| &block.parts) {
            let own = || self.modules.iter().any(|module| module.name == part.module());
            if part.name.strip_suffix(".bias").is_some()
                && (lora.bias == Bias::All || (lora.bias == Bias::LoraOnly && own()))
            {
                self.trained.insert(part.name.clone());
            }
        }
        Ok(())
    }

    /// The layers of `group` share one input.
    fn add_low_rank(&mut self, lora: &Lora, group: &[&Module], origin: Origin) -> Result<()> {
        let mut ranks = Vec::new();
        let mut a = Vec::new();
        for module in group {
            let &r = pattern_value(&lora.rank_pattern, &module.name)?.unwrap_or(&lora.r);
            let (inputs, outputs) = (module.inputs, module.outputs);
            // What was a PiSSA has twice its rank in the files.
            let most = if origin == Origin::New { inputs.min(outputs) } else { MOST_RANK };
            if !(1..=most).contains(&r) {
                let name = &module.name;
                return Err(Error::Adapter(format!(
                    "r: a rank of {r} does not fit {name}, which is [{outputs}, {inputs}]; give from 1 to {most}, or \
                     another one for it in rank_pattern"
                )));
            }
            let init = match lora.init_lora_weights {
                InitLora::Gaussian => Init::Normal(1.0 / r as f64),
                // PyTorch's kaiming_uniform_ with a = √5.
                InitLora::Kaiming | InitLora::Pissa => Init::Uniform(1.0 / (inputs as f64).sqrt()),
            };
            a.push(PartSpec::new(format!("{}.lora_A.weight", module.name), &[r, inputs], init));
            ranks.push(r);
        }
        let a = self.block(a);
        let mut row = 0;
        let mut parts = Vec::new();
        for (module, r) in group.iter().zip(ranks) {
            let alpha = pattern_value(&lora.alpha_pattern, &module.name)?;
            let alpha = *alpha.unwrap_or(&lora.lora_alpha);
            let by = if lora.use_rslora { (r as f64).sqrt() } else { r as f64 };
            let name = format!("{}.lora_B.weight", module.name);
            let mut b = PartSpec::new(name, &[module.outputs, r], Init::Zeros);
            b.rate = lora.loraplus_lr_ratio.unwrap_or(1.0);
            let b = self.single(b);
            let magnitude = lora.use_dora.then(|| {
                let name = format!("{}.lora_magnitude_vector", module.name);
                let mut magnitude = PartSpec::new(name, &[module.outputs], Init::Ones);
                // PEFT's LoRA+ counts vectors with B.
                magnitude.rate = lora.loraplus_lr_ratio.unwrap_or(1.0);
                self.single(magnitude)
            });
            let module = (*module).clone();
            parts.push(LowRankPlan { module, rows: (row, r), b, scale: alpha / by, magnitude });
            row += r;
        }
        let (layer, slot) = (group[0].layer, group[0].slot);
        let dropout = lora.lora_dropout;
        self.changes[layer][slot] = Some(ChangePlan::LowRank { a, parts, dropout });
        Ok(())
    }

    fn add_ia3(&mut self, ia3: &Ia3, choice: &Choice<'_>) -> Result<()> {
        let targets = ia3.target_modules.as_ref().unwrap_or(&Targets::AllLinear);
        let chosen = choice.select("target_modules", targets)?;
        let inner = match &ia3.feedforward_modules {
            Some(inner) => choice.select("feedforward_modules", inner)?,
            None => Vec::new(),
        };
        let other = inner.iter().find(|module| !chosen.contains(module));
        if let Some(other) = other.filter(|_| choice.origin == Origin::New) {
            let name = &other.name;
            return Err(Error::Adapter(format!(
                "feedforward_modules: {name} is not among target_modules; name it there too"
            )));
        }
        for group in choice.modules.chunk_by(|a, b| (a.layer, a.slot) == (b.layer, b.slot)) {
            if !group.iter().any(|module| chosen.contains(&module)) {
                continue;
            }
            let mut parts = Vec::new();
            for module in group {
                let on_inputs = inner.contains(&module);
                let shape = if on_inputs { [1, module.inputs] } else { [module.outputs, 1] };
                let factors = chosen.contains(&module).then(|| {
                    let name = format!("{}.ia3_l", module.name);
                    (self.single(PartSpec::new(name, &shape, Init::Ones)), on_inputs)
                });
                parts.push(RescalePlan { outputs: (module.start, module.outputs), factors });
            }
            self.changes[group[0].layer][group[0].slot] = Some(ChangePlan::Rescale { parts });
        }
        self.modules = chosen.into_iter().cloned().collect();
        Ok(())
    }

    fn add_bottleneck(
        &mut self,
        bottleneck: &Bottleneck,
        config: &ModelConfig,
        layout: &ModelLayout,
    ) -> Result<()> {
        let (size, width) = (bottleneck.size, config.hidden_size);
        if !(1..=width).contains(&size) {
            return Err(Error::Adapter(format!(
                "size: a bottleneck of {size} does not fit the model's width; give from 1 to {width}"
            )));
        }
        for (index, layer) in layout.layers.iter().enumerate() {
            for (place, prefix) in prefixes(layout, layer).into_iter().enumerate() {
                if place == 0 && bottleneck.place == BottleneckPlace::Pfeiffer {
                    continue;
                }
                // So small that the layer begins near the identity; up at 0 makes it exact.
                let std = Init::Normal(1e-2);
                let mut linear = |name: &str, outputs, inputs, init| {
                    let name = format!("{prefix}.{name}");
                    let weight = PartSpec::new(format!("{name}.weight"), &[outputs, inputs], init);
                    let bias = PartSpec::new(format!("{name}.bias"), &[outputs], Init::Zeros);
                    [self.single(weight), self.single(bias)]
                };
                let down = linear("adapter_down", size, width, std);
                let up = linear("adapter_up", width, size, Init::Zeros);
                self.bottlenecks[index][place] = Some([down, up]);
            }
        }
        Ok(())
    }

    /// What trains of the model itself: the modules to save, and a score.
    fn add_saved(
        &mut self,
        adapter: &Adapter,
        config: &ModelConfig,
        layout: &ModelLayout,
        origin: Origin,
    ) -> Result<()> {
        let parts = || layout.blocks.iter().flat_map(|block| &block.parts);
        for wanted in &adapter.modules_to_save {
            let found: Vec<&PartSpec> =
                parts().filter(|part| is_within(part.module(), wanted)).collect();
            if found.is_empty() {
                let tied = ends_with(wanted, "lm_head") && config.ties_head();
                let embedding = layout.blocks[layout.embedding].parts[0].module();
                let embeds =
                    || adapter.modules_to_save.iter().any(|name| is_within(embedding, name));
                if (tied && embeds()) || (!tied && origin == Origin::Files) {
                    continue;
                }
                return Err(Error::Adapter(if tied {
                    format!(
                        "modules_to_save: `{wanted}` shares its weight with the embedding; name `{embedding}` to train both"
                    )
                } else {
                    let near = nearest(wanted, parts().map(PartSpec::module));
                    format!("modules_to_save: `{wanted}` is no module of this model; {near}")
                }));
            }
            let both = |part: &&&PartSpec| self.modules.iter().any(|m| m.name == part.module());
            if let Some(part) = found.iter().find(both) {
                let name = part.module();
                return Err(Error::Adapter(format!(
                    "modules_to_save: {name} is also among target_modules; leave it out of one of the two"
                )));
            }
            self.trained.extend(found.into_iter().map(|part| part.name.clone()));
        }
        if config.head.has_score() {
            self.trained.insert(SCORE.to_owned());
        }
        Ok(())
    }
}

/// The names of a layer's attention and MLP.
fn prefixes(layout: &ModelLayout, layer: &LayerLayout) -> [String; 2] {
    [layer.attention_out, layer.mlp_out].map(|affine| {
        let module = layout.blocks[affine.weight].parts[0].module();
        module.rsplit_once('.').map_or(module, |(prefix, _)| prefix).to_owned()
    })
}

/// What layers are chosen from.
struct Choice<'a> {
    modules: &'a [Module],
    /// Names of what is trained whole.
    whole: &'a [String],
    origin: Origin,
}

impl<'a> Choice<'a> {
    fn select(&self, key: &str, targets: &Targets) -> Result<Vec<&'a Module>> {
        let mut chosen = targets.select(key, self.modules, self.origin)?;
        if self.origin == Origin::Files {
            // PEFT passes over what is trained whole.
            let whole = |name: &str| self.whole.iter().any(|whole| is_within(name, whole));
            chosen.retain(|module| !whole(&module.name));
        }
        Ok(chosen)
    }

    /// The layers that a LoRA changes, of a model of `layers` transformer layers.
    fn of_lora(&self, lora: &Lora, layers: usize) -> Result<Vec<&'a Module>> {
        let mut chosen = self.select("target_modules", &lora.target_modules)?;
        if let Some(exclude) = &lora.exclude_modules {
            let out = match self.select("exclude_modules", exclude) {
                // That they match nothing is as good in a file.
                Err(_) if self.origin == Origin::Files => Vec::new(),
                out => out?,
            };
            chosen.retain(|module| !out.contains(module));
        }
        if let Some(only) = &lora.layers_to_transform {
            let whole_names: &[String] = match &lora.target_modules {
                Targets::AllLinear => &[],
                Targets::Names(names) => names,
                Targets::Pattern(_) => {
                    return Err(Error::Adapter(
                    "layers_to_transform: does not go with a regular expression in target_modules; put the layers into \
                     that, or list names"
                        .into(),
                ));
                }
            };
            let last = layers as i64 - 1;
            if let Some(beyond) = only.iter().find(|&&layer| !(0..=last).contains(&layer)) {
                return Err(Error::Adapter(format!(
                    "layers_to_transform: there is no layer {beyond}; the last is {last}"
                )));
            }
            chosen.retain(|module| {
                only.contains(&(module.layer as i64)) || whole_names.contains(&module.name)
            });
        }
        if chosen.is_empty() {
            return Err(Error::Adapter(
                "exclude_modules and layers_to_transform leave no layer".into(),
            ));
        }
        Ok(chosen)
    }
}

fn check_lora(lora: &Lora) -> Result<()> {
    let fail = |text: String| Err(Error::Adapter(text));
    let alphas = || lora.alpha_pattern.values().chain([&lora.lora_alpha]);
    if let Some(alpha) = alphas().find(|alpha| !(alpha.is_finite() && **alpha > 0.0)) {
        return fail(format!("lora_alpha: must be above 0, got {alpha}"));
    }
    if !(0.0..1.0).contains(&lora.lora_dropout) {
        return fail(format!("lora_dropout: must be from 0 to below 1, got {}", lora.lora_dropout));
    }
    if let Some(ratio) = lora.loraplus_lr_ratio.filter(|ratio| !(ratio.is_finite() && *ratio > 0.0))
    {
        return fail(format!("loraplus_lr_ratio: must be above 0, got {ratio}"));
    }
    if lora.init_lora_weights == InitLora::Pissa && lora.use_dora {
        return fail("init_lora_weights: `pissa` changes the weight whose rows use_dora measures; choose one".into());
    }
    Ok(())
}

//! From files to a decoder, with an adapter and weights in 4 bits where they are asked for.

use super::{Attached, Decoder, LoadOptions, row_lengths, start_of};
use crate::config::{Head, ModelConfig};
use crate::division::Ranks;
use crate::error::{Error, Result};
use crate::layout::{BlockId, ModelLayout, layout};
use crate::params::{Keep, Params};
use crate::peft::{
    Adapter, AdapterFiles, Attachment, InitLora, Method, Origin, Quantization, attach, cut,
    linear_modules, trained_whole,
};
use crate::weights::WeightFiles;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use tch::{Kind, Tensor};

/// How a directory becomes a decoder.
#[derive(Debug, Clone, Copy, Default)]
pub struct Loading<'a> {
    /// Device, precision, and whether it is to train. With an adapter nothing else does, but for the modules to save and
    /// the score.
    pub options: LoadOptions,
    /// The output layer. Absent: a score for an adapter that has one, or else that of the model's files.
    pub head: Option<Head>,
    /// Decides how parameters start that the files lack.
    pub seed: u64,
    /// A new adapter.
    pub adapter: Option<&'a Adapter>,
    /// An adapter to take up; a new one is left out then.
    pub adapter_files: Option<&'a AdapterFiles>,
    /// Linear layers in 4 bits, for a model that does not train by itself.
    pub quantization: Option<&'a Quantization>,
    /// Reads in full what files have in 4 bits.
    pub whole: bool,
    /// The processes that hold the model together; each calls this.
    pub ranks: Option<&'a Arc<dyn Ranks>>,
}

impl Decoder {
    /// Reads `config.json` and the safetensors files of a Hugging Face directory: a causal language model, or a reward
    /// model (a sequence classifier of one label).
    ///
    /// # Errors
    /// All problems of the config at once; all tensors that are missing, unexpected or of another shape at once;
    /// damaged files by name.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self> {
        Self::load_with(dir, &Loading { options: *options, ..Loading::default() })
    }

    /// Reads a Hugging Face directory as a model with another output layer: a score that its files lack starts as in
    /// [`init`](Self::init), from `seed`; a head that is not wanted is left out.
    ///
    /// # Errors
    /// As [`load`](Self::load), and for a language-model head that the files lack.
    pub fn load_as(dir: &Path, head: Head, seed: u64, options: &LoadOptions) -> Result<Self> {
        let loading = Loading { options: *options, head: Some(head), seed, ..Loading::default() };
        Self::load_with(dir, &loading)
    }

    /// Reads a Hugging Face directory with all that [`Loading`] asks for.
    ///
    /// # Errors
    /// As [`load`](Self::load); an adapter that does not fit the model; weights in 4 bits that are to train.
    pub fn load_with(dir: &Path, loading: &Loading<'_>) -> Result<Self> {
        let mut config = ModelConfig::from_dir(dir)?;
        let given = config.head;
        let scores = |files: &AdapterFiles| files.head() == Head::Score;
        let of_adapter =
            || loading.adapter_files.filter(|files| scores(files)).map(|_| Head::Score);
        let head = loading.head.or_else(of_adapter).unwrap_or(given);
        if head != given {
            config.set_head(head);
        }
        let layout = layout(&config);
        let files = WeightFiles::open(dir)?;
        let LoadOptions { device, precision, .. } = loading.options;
        let adapter = loading.adapter_files.map(AdapterFiles::adapter).or(loading.adapter);
        let adapter = adapter.map(|adapter| adapter.resolved(config.architecture));
        let origin = if loading.adapter_files.is_some() { Origin::Files } else { Origin::New };
        let attachment = adapter
            .as_ref()
            .map(|adapter| attach(adapter, &config, &layout, origin))
            .transpose()?;
        let keep = keeping(dir, loading, &config, &layout, &files, attachment.as_ref())?;
        // Before memory is taken: a config may ask for any amount, but the files say how much there is.
        let sources = files.resolve(dir, (&config, given), &layout)?;
        let like = (device, precision);
        let mut params = Params::allocate_for(&layout, loading.ranks, like, |id| keep[id])?;
        let fresh = |part: &_| start_of(part, loading.seed);
        files.fill(&config, &layout, &sources, &mut params, fresh)?;
        let (Some(adapter), Some(attachment)) = (adapter, attachment) else {
            return Ok(Self::assemble(config, &layout, params));
        };
        params.set_trainable(|name| attachment.trained.contains(name));
        // Before memory is taken: an adapter's config may ask for any rank, but its weights say what it is.
        let values = match loading.adapter_files {
            Some(files) => values_of(&params, files, &attachment, config.ties_head())?,
            None => BTreeMap::new(),
        };
        let ids = add(&mut params, &attachment, loading)?;
        let pissa = matches!(&adapter.method, Method::Lora(lora) if lora.init_lora_weights == InitLora::Pissa);
        let starts = if pissa {
            cut_principal(&mut params, &attachment, &files, &config)?
        } else {
            BTreeMap::new()
        };
        set_magnitudes(&mut params, &attachment, config.is_conv1d())?;
        values.iter().try_for_each(|(name, tensor)| params.put(name, tensor))?;
        let mut decoder = Self::wired((config, &layout), params, &ids, (adapter, attachment))?;
        if let Some(attached) = &mut decoder.attached {
            attached.starts = starts;
        }
        Ok(decoder)
    }

    /// The model with the adapter of these files over it, frozen: a handle that shares the model's weights, but for those that
    /// the adapter has whole. The decoder itself stays as it is.
    ///
    /// # Errors
    /// An adapter that does not fit the model, that needs another output layer, or that trains whole what is in 4 bits; a
    /// `PiSSA`, which has taken a part of the weights for itself.
    pub fn with_adapter(&self, files: &AdapterFiles) -> Result<Self> {
        let adapter = files.adapter().resolved(self.config.architecture);
        if self.attached.is_some() || files.takes_from_base() || files.head() != self.config.head {
            return Err(Error::Adapter(format!(
                "{}: it cannot share the weights of a loaded model; load it with a model of its own",
                files.dir().display()
            )));
        }
        let layout = layout(&self.config);
        let attachment = attach(&adapter, &self.config, &layout, Origin::Files)?;
        for (id, spec) in layout.blocks.iter().enumerate() {
            let trained = spec.parts.iter().find(|part| attachment.trained.contains(&part.name));
            if let Some(part) = trained.filter(|_| self.params.is_four_bit(id)) {
                return Err(trained_whole(part.module(), "give the model in full precision"));
            }
        }
        let mut params = self.params.frozen(&attachment.trained)?;
        let values = values_of(&params, files, &attachment, self.config.ties_head())?;
        let ids = add(&mut params, &attachment, &Loading::default())?;
        set_magnitudes(&mut params, &attachment, self.config.is_conv1d())?;
        values.iter().try_for_each(|(name, tensor)| params.put(name, tensor))?;
        let config = self.config.clone();
        Self::wired((config, &layout), params, &ids, (adapter, attachment))
    }

    /// A decoder over parameters that are all set, with its adapter's at work.
    fn wired(
        (config, layout): (ModelConfig, &ModelLayout),
        mut params: Params,
        ids: &[BlockId],
        (adapter, attachment): (Adapter, Attachment),
    ) -> Result<Self> {
        params.refresh_compute()?;
        let mut decoder = Self::assemble(config, layout, params);
        decoder.wire(&attachment, ids, &adapter);
        let Attachment { modules, trained, .. } = attachment;
        let starts = BTreeMap::new();
        decoder.attached = Some(Attached { adapter, modules, trained, starts });
        Ok(decoder)
    }

    /// Puts the adapter's parameters to work.
    fn wire(&mut self, attachment: &Attachment, ids: &[BlockId], adapter: &Adapter) {
        let Self { layers, params, .. } = self;
        let plans = attachment.changes.iter().zip(&attachment.bottlenecks);
        for (layer, (changes, bottlenecks)) in layers.iter_mut().zip(plans) {
            for (linear, change) in layer.linears_mut().into_iter().zip(changes) {
                linear.change = change.as_ref().map(|change| change.build(params, ids));
            }
            if let Method::Bottleneck(bottleneck) = &adapter.method {
                layer.bottlenecks = bottlenecks.map(|pairs| {
                    Some(super::bottleneck::Bottleneck::new(params, ids, pairs?, bottleneck))
                });
            }
        }
    }

    /// What is trained in place of the whole model, if anything is.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.attached.as_ref().map(|attached| &attached.adapter)
    }

    /// The model without its adapter: a frozen handle that shares the weights that do not train. Those that do are copied
    /// as they are now.
    ///
    /// # Errors
    /// A `PiSSA`, which has taken a part of the weights for itself.
    pub fn without_adapter(&self) -> Result<Self> {
        if self.attached.as_ref().is_some_and(|attached| !attached.starts.is_empty()) {
            return Err(Error::Adapter(
                "init_lora_weights: `pissa` takes a part of the weights for itself, so that the model without it is no \
                 longer there; choose another start"
                    .into(),
            ));
        }
        let config = self.config.clone();
        Ok(Self::assemble(config, &layout(&self.config), self.params.frozen(&BTreeSet::new())?))
    }

    pub(crate) fn layers(&self) -> &[super::Layer] {
        &self.layers
    }

    pub(crate) fn params_and_linear(
        &mut self,
        layer: usize,
        slot: usize,
    ) -> (&mut Params, &mut super::Linear) {
        (&mut self.params, self.layers[layer].linear_mut(slot))
    }

    /// Takes the adapter's parameters away, which by now nothing uses, and freezes the rest.
    pub(crate) fn forget_adapter(&mut self) -> Result<()> {
        self.attached = None;
        self.params.drop_added();
        self.params.set_trainable(|_| false);
        self.params.refresh_compute()
    }
}

/// How each block is held.
fn keeping(
    dir: &Path,
    loading: &Loading<'_>,
    config: &ModelConfig,
    layout: &ModelLayout,
    files: &WeightFiles,
    attachment: Option<&Attachment>,
) -> Result<Vec<Keep>> {
    let trains_whole = loading.options.trainable && attachment.is_none();
    if trains_whole && loading.quantization.is_some() {
        return Err(Error::Adapter(
            "weights in 4 bits cannot train; train an adapter, or leave quantization out".into(),
        ));
    }
    let none = BTreeSet::new();
    let trained = attachment.map_or(&none, |attachment| &attachment.trained);
    let modules = linear_modules(config, layout);
    if let Some(quantization) = loading.quantization {
        quantization.check_names(&modules)?;
    }
    let mut keep = Vec::with_capacity(layout.blocks.len());
    for (id, spec) in layout.blocks.iter().enumerate() {
        let trains = spec.parts.iter().find(|part| trained.contains(&part.name));
        let stored = |part: &&crate::layout::PartSpec| files.is_four_bit(&part.name, config);
        let in_files = spec.parts.iter().find(stored).filter(|_| !loading.whole);
        let linear = modules.iter().any(|module| module.block == id);
        let quantised =
            loading.quantization.filter(|quantization| linear && !quantization.skips(spec));
        if let Some(part) = trains
            && (quantised.is_some() || in_files.is_some())
        {
            let or = if in_files.is_some() {
                "give the model in full precision"
            } else {
                "name it in quantization.skip_modules"
            };
            return Err(trained_whole(part.module(), or));
        }
        if let (Some(part), true) = (in_files, trains_whole) {
            let name = &part.name;
            return Err(Error::Adapter(format!(
                "{}: {name} is stored in 4 bits, and training all parameters needs it whole; train an adapter, or give \
                 the model in full precision",
                dir.display()
            )));
        }
        keep.push(match (trains.is_some() || trains_whole, quantised) {
            (true, _) if loading.options.trainable => Keep::Trained,
            (_, Some(quantization)) => Keep::four_bit(quantization, config.is_conv1d()),
            // Of layers side by side all or none: others would have to be rounded.
            (_, None)
                if in_files.is_some() && linear && spec.parts.iter().all(|part| stored(&part)) =>
            {
                Keep::four_bit(&Quantization::default(), config.is_conv1d())
            }
            _ => Keep::Frozen,
        });
    }
    Ok(keep)
}

/// Adds the adapter's parameters as a new one's start.
fn add(
    params: &mut Params,
    attachment: &Attachment,
    loading: &Loading<'_>,
) -> Result<Vec<BlockId>> {
    let trains = loading.options.trainable;
    let ids: Vec<BlockId> =
        attachment.blocks.iter().map(|spec| params.add(spec, trains)).collect::<Result<_>>()?;
    for (spec, id) in attachment.blocks.iter().zip(&ids) {
        for (p, part) in spec.parts.iter().enumerate() {
            params.fill(*id, p, &start_of(part, loading.seed)?)?;
        }
    }
    Ok(ids)
}

/// Reads from an adapter's files its parameters, and those of the model that were trained beside it.
fn values_of(
    params: &Params,
    files: &AdapterFiles,
    attachment: &Attachment,
    tied: bool,
) -> Result<BTreeMap<String, Tensor>> {
    let added = attachment.blocks.iter().flat_map(|block| &block.parts);
    let mut wanted: Vec<(String, Vec<i64>)> =
        added.map(|part| (part.name.clone(), part.shape.clone())).collect();
    for name in &attachment.trained {
        wanted.push((name.clone(), params.shape(name).unwrap_or_default().to_vec()));
    }
    files.tensors(&wanted, tied)
}

/// `PiSSA`: moves the principal part of each weight into `A` and `B`. Returns these as they start, by name.
fn cut_principal(
    params: &mut Params,
    attachment: &Attachment,
    files: &WeightFiles,
    config: &ModelConfig,
) -> Result<BTreeMap<String, Tensor>> {
    let mut starts = BTreeMap::new();
    for (_, part) in attachment.low_ranks() {
        let module = &part.module;
        let name = format!("{}.weight", module.name);
        if params.is_four_bit(module.block) {
            return Err(Error::Adapter(
                "init_lora_weights: `pissa` takes a part of each weight for itself, which rounding to 4 bits would undo; \
                 choose another start, or leave quantization out"
                    .into(),
            ));
        }
        // From the file: a frozen weight may be held in half precision.
        let stored = files.weight(&name, config)?;
        let conv1d = config.is_conv1d();
        let weight = if conv1d { stored.tr() } else { stored };
        let cut = cut(&weight, part.rows.1, part.scale)?;
        let residual = if conv1d { cut.residual.tr() } else { cut.residual };
        params.put(&name, &residual)?;
        for (suffix, value) in [("lora_A", cut.a), ("lora_B", cut.b)] {
            let name = format!("{}.{suffix}.weight", module.name);
            params.put(&name, &value)?;
            starts.insert(name, value);
        }
    }
    Ok(starts)
}

/// `DoRA`: magnitudes start as the lengths of the weight's rows.
fn set_magnitudes(params: &mut Params, attachment: &Attachment, conv1d: bool) -> Result<()> {
    for (_, part) in attachment.low_ranks().filter(|(_, part)| part.magnitude.is_some()) {
        let module = &part.module;
        let Some(weight) = params.whole(&format!("{}.weight", module.name))? else { continue };
        let weight = weight.to_kind(Kind::Float);
        let rows = if conv1d { weight.tr() } else { weight };
        params.put(&format!("{}.lora_magnitude_vector", module.name), &row_lengths(&rows))?;
    }
    Ok(())
}

//! Which weights are kept in 4 bits, and which cannot be.

use super::attach::attach;
use super::config::{Adapter, Quantization};
use super::target::{Module, Origin, ends_with, linear_modules, nearest};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::layout::{BlockSpec, layout};

impl Quantization {
    /// Checks what is kept in 4 bits under a new adapter, from the model's config alone.
    ///
    /// # Errors
    /// A module to skip that is no linear layer; a module that the adapter trains whole and that is in 4 bits; whatever of
    /// the adapter does not go with the model.
    pub fn check(&self, adapter: &Adapter, config: &ModelConfig) -> Result<()> {
        let layout = layout(config);
        let modules = linear_modules(config, &layout);
        self.check_names(&modules)?;
        let adapter = adapter.resolved(config.architecture);
        let trained = attach(&adapter, config, &layout, Origin::New)?.trained;
        for (id, spec) in layout.blocks.iter().enumerate() {
            let linear = modules.iter().any(|module| module.block == id);
            let part = spec.parts.iter().find(|part| trained.contains(&part.name));
            if let Some(part) = part.filter(|_| linear && !self.skips(spec)) {
                return Err(trained_whole(part.module(), "name it in quantization.skip_modules"));
            }
        }
        Ok(())
    }

    /// Checks that every module to skip is one of `modules`.
    pub(crate) fn check_names(&self, modules: &[Module]) -> Result<()> {
        for skipped in &self.skip_modules {
            if !modules.iter().any(|module| ends_with(&module.name, skipped)) {
                let near = nearest(skipped, modules.iter().map(|module| module.name.as_str()));
                return Err(Error::Adapter(format!(
                    "quantization.skip_modules: `{skipped}` is no linear layer of this model; {near}"
                )));
            }
        }
        Ok(())
    }

    /// Whether a linear layer, or one of several side by side, stays whole.
    pub(crate) fn skips(&self, spec: &BlockSpec) -> bool {
        let skipped = |module: &str| self.skip_modules.iter().any(|end| ends_with(module, end));
        spec.parts.iter().any(|part| skipped(part.module()))
    }
}

/// A module's weight is to train and is in 4 bits; `or` is what can be done beside leaving it out.
pub(crate) fn trained_whole(module: &str, or: &str) -> Error {
    Error::Adapter(format!(
        "{module} is to be trained whole, but its weight is kept in 4 bits; {or}, or leave it out of modules_to_save"
    ))
}

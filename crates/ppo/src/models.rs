//! The models of a run: the policy, what it is held to, and what judges it.

use data::batch::Branches;
use model::config::Dropout;
use model::{Decoder, Head, LoadOptions, Loading, ModelConfig};
use tch::{Device, Tensor};
use training::branches::{self, Responses};
use training::peft;

use crate::plan::Plan;

/// All models of a run. Dropout is off in every one of them, so that a policy gives a response the probability with which
/// it was sampled.
pub(crate) struct Models {
    /// Trained; with a score where it predicts values itself.
    pub(crate) policy: Decoder,
    /// Frozen.
    pub(crate) reference: Decoder,
    /// Trained, where values have a trunk of their own.
    pub(crate) value: Option<Decoder>,
    /// Frozen.
    pub(crate) reward: Option<Decoder>,
    shares_trunk: bool,
}

impl Models {
    /// Reads them all.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub(crate) fn load(plan: &Plan, device: Device, seed: u64) -> anyhow::Result<Self> {
        let train = &plan.config.train;
        let frozen = LoadOptions { device, precision: train.precision, trainable: false };
        let trained = LoadOptions { trainable: true, ..frozen };
        let shares_trunk = plan.shares_trunk();
        let head = if shares_trunk { Head::LanguageModelAndScore } else { Head::LanguageModel };
        // Values that nothing taught yet are 0: random ones would add their noise to every advantage.
        let peft = plan.peft.as_ref();
        let loading = Loading { options: trained, head: Some(head), seed, ..Loading::default() };
        let mut policy = peft::load(&plan.policy, loading, peft)?;
        policy.zero_score()?;
        let value = plan.value.as_ref().map(|dir| {
            let mut value = Decoder::load_as(dir, Head::Score, seed, &trained)?;
            if !ModelConfig::from_dir(dir)?.head.has_score() {
                value.zero_score()?;
            }
            anyhow::Ok(value)
        });
        let reward = plan.reward.as_ref().map(|dir| Decoder::load(dir, &frozen));
        let reference = match peft {
            // One copy of the weights: the policy without what is trained. PiSSA leaves none.
            Some(peft) if plan.reference == plan.policy && peft.leaves_weights() => {
                policy.without_adapter()?
            }
            Some(peft) if plan.reference == plan.policy => {
                peft.load_frozen(&plan.policy, frozen)?
            }
            _ => Decoder::load(&plan.reference, &frozen)?,
        };
        let mut models = Self {
            policy,
            reference,
            value: value.transpose()?,
            reward: reward.transpose()?,
            shares_trunk,
        };
        let Self { policy, value, .. } = &mut models;
        for decoder in std::iter::once(policy).chain(value) {
            decoder.set_dropout(Dropout::default());
            decoder.set_checkpointing(train.activation_checkpointing, train.checkpointing_interval);
        }
        Ok(models)
    }

    /// What the policy says of responses, and the values `[N]` of the states before their tokens.
    pub(crate) fn policy_and_values(
        &self,
        rows: &Branches,
        temperature: f64,
    ) -> anyhow::Result<(Responses, Option<Tensor>)> {
        let said = branches::responses(&self.policy, rows, temperature)?;
        let values = match &self.value {
            Some(value) => Some(branches::values(value, rows)?),
            None if self.shares_trunk => Some(self.policy.scores(&said.hidden)?),
            None => None,
        };
        Ok((said, values))
    }
}

//! One optimiser step from gathered gradients.

use std::path::Path;

use data::batch::Share;
use model::Decoder;
use tch::{Kind, Tensor};
use torch_ext::foreach;

use crate::checkpoint;
use crate::optimizer::{AdamW, LossScale, clip_factor};
use crate::settings;
use crate::world::{Reducer, World};

/// What moves the parameters of one model: sums of gradients over the ranks, clipping, AdamW, and the loss scale of fp16.
pub struct Updater {
    world: World,
    reducer: Reducer,
    optimizer: AdamW,
    /// What losses are to be multiplied by.
    pub loss_scale: LossScale,
}

/// What [`Updater::apply`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// L2 norm of the whole gradient before it was clipped.
    pub grad_norm: f64,
    /// What `sums` held.
    pub sums: Vec<f64>,
    /// Whether loss and gradient were finite; if not, no weight has changed.
    pub finite: bool,
}

impl Updater {
    /// For what trains of `decoder`, which it leaves without gradients; with the state divided among the ranks as `zero_stage`
    /// says (3 where the decoder is).
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(
        world: &World,
        decoder: &mut Decoder,
        settings: &settings::Optimizer,
        zero_stage: u8,
    ) -> anyhow::Result<Self> {
        let loss_scale = LossScale::new(decoder.precision());
        let reducer = Reducer::new(world, decoder.params(), zero_stage)?;
        let optimizer = AdamW::new(&reducer.trainable(decoder.params_mut()), settings);
        let updater = Self { world: world.clone(), reducer, optimizer, loss_scale };
        updater.clear_grads(decoder)?;
        Ok(updater)
    }

    /// Back-propagates from a micro-batch's loss; after the `last` of a step every rank has the sum of all gradients.
    ///
    /// # Errors
    /// As [`Reducer::backward`].
    pub fn backward(&self, decoder: &mut Decoder, loss: &Tensor, last: bool) -> anyhow::Result<()> {
        self.reducer.backward(decoder.params_mut(), loss, last)
    }

    /// Sums gradients that have been gathered.
    ///
    /// # Errors
    /// A rank is gone, or does not take part in time.
    pub fn sum_gathered(&self, decoder: &mut Decoder) -> anyhow::Result<()> {
        self.reducer.sum_gathered(decoder.params_mut())
    }

    /// Clips the gradients of `decoder`, moves its masters by AdamW at `factor` times the peak learning rate, casts the compute
    /// copies anew and takes the gradients away. Where the ranks divide the state, each moves its slices and gets the others',
    /// unless the model is divided as well.
    ///
    /// The gradients are those of the loss times the loss scale, which takes note of how it went. `sums` `[n]` is any fp64
    /// numbers of the step on the device, the loss first: they are waited for together with the norm, the one time that the
    /// host waits.
    ///
    /// # Errors
    /// libtorch reports one; other parameters than the optimiser was made for; a rank that is gone.
    pub fn apply(
        &mut self,
        decoder: &mut Decoder,
        factor: f64,
        sums: &Tensor,
    ) -> anyhow::Result<Applied> {
        let Self { world, reducer, optimizer, loss_scale } = self;
        let precision = decoder.precision();
        let trainable = reducer.trainable(decoder.params_mut());
        let grads: Vec<&Tensor> = trainable.iter().map(|weight| &weight.grad).collect();
        let norm =
            if reducer.divides() { norm_of_slices(world, &grads)? } else { foreach::norm(&grads)? };
        let norm = norm.to_kind(Kind::Double);
        let mut values: Vec<f64> =
            Vec::try_from(Tensor::cat(&[norm.view(1), sums.shallow_clone()], 0))?;
        let grad_norm = values.remove(0) / loss_scale.scale;
        let finite = grad_norm.is_finite() && values.first().is_none_or(|loss| loss.is_finite());
        if finite {
            let shrink = clip_factor(grad_norm, optimizer.max_grad_norm()) / loss_scale.scale;
            if shrink != 1.0 {
                foreach::mul_(&grads, shrink)?;
            }
            optimizer.step(&trainable, factor)?;
        }
        drop(grads);
        drop(trainable);
        if finite {
            reducer.publish(decoder.params())?;
            decoder.params_mut().refresh_compute()?;
        }
        loss_scale.update(precision, finite);
        self.clear_grads(decoder)?;
        Ok(Applied { grad_norm, sums: values, finite })
    }

    /// Takes the gradients away.
    ///
    /// # Errors
    /// libtorch reports one.
    pub fn clear_grads(&self, decoder: &mut Decoder) -> anyhow::Result<()> {
        self.reducer.clear();
        Ok(decoder.params_mut().clear_grads()?)
    }

    /// Bytes of this rank's slices of the gradients, and of its part of the optimiser's state.
    #[must_use]
    pub fn bytes(&self) -> [usize; 2] {
        [self.reducer.bytes(), self.optimizer.bytes()]
    }

    /// The optimiser's state, or this rank's part of it, and which part that is.
    pub(crate) fn state(&self) -> (Vec<(String, Tensor)>, Share) {
        (self.optimizer.state(), self.reducer.share())
    }

    /// Whether each rank has a part of the state.
    pub(crate) fn divides(&self) -> bool {
        self.reducer.divides()
    }

    /// Puts back the state that a checkpoint has under `name`, whatever number of ranks saved it.
    ///
    /// # Errors
    /// As [`checkpoint::load_optimizer`].
    pub fn load(&mut self, dir: &Path, name: &str) -> anyhow::Result<()> {
        let share = self.reducer.share();
        checkpoint::load_optimizer(&mut self.optimizer, dir, name, share)
    }
}

/// The L2 norm of gradients of which each rank has slices.
fn norm_of_slices(world: &World, grads: &[&Tensor]) -> anyhow::Result<Tensor> {
    let own = match grads {
        [] => Tensor::zeros([1], (Kind::Double, world.device())),
        _ => foreach::norm(grads)?.to_kind(Kind::Double).view(1),
    };
    let squares = own.square();
    world.sum(&squares)?;
    Ok(squares.sqrt())
}

//! One optimiser step from gathered gradients.

use model::Decoder;
use tch::{Kind, Tensor};
use torch_ext::foreach;

use crate::optimizer::{AdamW, LossScale, clip_factor};
use crate::world::{Reducer, World};

/// What [`apply`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// L2 norm of the whole gradient before it was clipped.
    pub grad_norm: f64,
    /// What `sums` held.
    pub sums: Vec<f64>,
    /// Whether loss and gradient were finite; if not, no weight has changed.
    pub finite: bool,
}

/// Clips the gradients of `decoder`, moves its masters by AdamW at `factor` times the peak learning rate, casts the compute
/// copies anew and takes the gradients away. Where the ranks divide the state, each moves its slices and gets the others'.
///
/// The gradients are those of the loss times `loss_scale`, which takes note of how it went. `sums` `[n]` is any fp64 numbers
/// of the step on the device, the loss first: they are waited for together with the norm, the one time that the host waits.
///
/// # Errors
/// libtorch reports one; other parameters than the optimiser was made for; a rank that is gone.
pub fn apply(
    world: &World,
    reducer: &Reducer,
    decoder: &mut Decoder,
    optimizer: &mut AdamW,
    factor: f64,
    loss_scale: &mut LossScale,
    sums: &Tensor,
) -> anyhow::Result<Applied> {
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
        decoder.params_mut().refresh_compute();
    }
    clear_grads(decoder, reducer)?;
    loss_scale.update(precision, finite);
    Ok(Applied { grad_norm, sums: values, finite })
}

/// Takes the gradients away.
///
/// # Errors
/// libtorch reports one.
pub fn clear_grads(decoder: &mut Decoder, reducer: &Reducer) -> anyhow::Result<()> {
    reducer.clear();
    Ok(decoder.params_mut().clear_grads()?)
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

//! One optimiser step from gathered gradients.

use model::Decoder;
use tch::{Kind, Tensor};
use torch_ext::foreach;

use crate::optimizer::{AdamW, LossScale, clip_factor};

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
/// copies anew and takes the gradients away.
///
/// The gradients are those of the loss times `loss_scale`, which takes note of how it went. `sums` `[n]` is any fp64 numbers
/// of the step on the device, the loss first: they are waited for together with the norm, the one time that the host waits.
///
/// # Errors
/// libtorch reports one; other parameters than the optimiser was made for.
pub fn apply(
    decoder: &mut Decoder,
    optimizer: &mut AdamW,
    factor: f64,
    loss_scale: &mut LossScale,
    sums: &Tensor,
) -> anyhow::Result<Applied> {
    let precision = decoder.precision();
    let trainable = decoder.params_mut().trainable();
    let grads: Vec<&Tensor> = trainable.iter().map(|weight| &weight.grad).collect();
    let norm = foreach::norm(&grads)?.to_kind(Kind::Double);
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
        decoder.params_mut().refresh_compute();
    }
    decoder.params_mut().clear_grads()?;
    loss_scale.update(precision, finite);
    Ok(Applied { grad_norm, sums: values, finite })
}

//! Against plain autograd in fp64.

use tch::{Device, Kind, Tensor};

use super::{gelu_tanh, layer_norm, rms_norm, rotate_into, swiglu};
use crate::autograd;
use crate::testing::{max_error, random, relative_error};

/// dtype, tolerance of values, tolerance of gradients: both relative to the largest entry.
const KINDS: [(Kind, f64, f64); 3] =
    [(Kind::Float, 1e-6, 2e-6), (Kind::BFloat16, 5e-3, 8e-3), (Kind::Half, 7e-4, 1e-3)];

/// Runs `ours` on inputs of each dtype and `plain` on the same numbers in fp64; values and all gradients must agree.
fn agree(
    name: &str,
    shapes: &[&[i64]],
    ours: impl Fn(&[Tensor]) -> Tensor,
    plain: impl Fn(&[Tensor]) -> Tensor,
) {
    for (kind, values, grads) in KINDS {
        let inputs: Vec<Tensor> = shapes
            .iter()
            .enumerate()
            .map(|(i, shape)| random(shape, 5 + i as u64, kind, Device::Cpu))
            .collect();
        let exact: Vec<Tensor> = inputs
            .iter()
            .map(|t| t.detach().to_kind(Kind::Double).set_requires_grad(true))
            .collect();
        let (got, want) = (ours(&inputs), plain(&exact));
        assert_eq!(got.kind(), kind);
        let error = relative_error(&got.detach(), &want.detach(), 1e-3);
        assert!(error <= values, "{name} {kind:?}: {error:.1e}");
        let probe = random(&want.size(), 99, kind, Device::Cpu).detach();
        let gradient = |out: &Tensor, inputs: &[Tensor]| {
            let probe = probe.to_kind(out.kind());
            let inputs: Vec<&Tensor> = inputs.iter().collect();
            autograd::grad(&[&(out * probe).sum(Kind::Double)], &[None], &inputs, false).unwrap()
        };
        let pairs = gradient(&got, &inputs).into_iter().zip(gradient(&want, &exact));
        for (i, (got, want)) in pairs.enumerate() {
            let (got, want) = (got.unwrap(), want.unwrap());
            assert_eq!(got.kind(), kind);
            let error = relative_error(&got, &want, 1e-3);
            assert!(error <= grads, "{name} {kind:?}, gradient {i}: {error:.1e}");
        }
    }
}

fn normed(x: &Tensor, centred: bool, eps: f64) -> Tensor {
    let x = if centred { x - x.mean_dim(-1, true, None::<Kind>) } else { x.shallow_clone() };
    &x / ((&x * &x).mean_dim(-1, true, None::<Kind>) + eps).sqrt()
}

#[test]
fn norms_and_their_gradients() {
    // Widths with and without a tail, one row and several blocks of rows, more than two dimensions.
    for shape in [&[300, 48][..], &[1, 7], &[130, 2], &[5, 3, 33]] {
        let width = &shape[shape.len() - 1..];
        agree(
            "rms_norm",
            &[shape, width],
            |t| rms_norm(&t[0], &t[1], 1e-5).unwrap(),
            |t| normed(&t[0], false, 1e-5) * &t[1],
        );
        // Of two numbers a norm leaves only the sign, and gradients cancel.
        if width[0] > 2 {
            agree(
                "layer_norm",
                &[shape, width, width],
                |t| layer_norm(&t[0], &t[1], &t[2], 1e-5).unwrap(),
                |t| normed(&t[0], true, 1e-5) * &t[1] + &t[2],
            );
        }
    }
}

#[test]
fn activations_and_their_gradients() {
    for shape in [&[70, 38][..], &[1, 2], &[3, 64]] {
        agree(
            "gelu_tanh",
            &[shape],
            |t| gelu_tanh(&t[0]).unwrap(),
            |t| {
                let x = &t[0];
                let u = (x + x * x * x * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
                x * 0.5 * (u.tanh() + 1.0)
            },
        );
        agree(
            "swiglu",
            &[shape],
            |t| swiglu(&t[0]).unwrap(),
            |t| {
                let halves = t[0].chunk(2, 1);
                &halves[0] * halves[0].sigmoid() * &halves[1]
            },
        );
    }
}

#[test]
fn extreme_values_stay_finite_and_right() {
    let x = Tensor::from_slice(&[-1e30_f32, -50.0, -0.0, 0.0, 50.0, 1e18]).set_requires_grad(true);
    let out = gelu_tanh(&x).unwrap();
    let values = Vec::<f32>::try_from(&out).unwrap();
    assert!(
        values[..4].iter().all(|v| v.abs() < 1e-8) && values[4..] == [50.0, 1e18],
        "{values:?}"
    );
    let grads = autograd::grad(&[&out.sum(Kind::Float)], &[None], &[&x], false).unwrap();
    let slopes = Vec::<f32>::try_from(grads[0].as_ref().unwrap()).unwrap();
    assert_eq!(slopes[2..5], [0.5, 0.5, 1.0]);
    assert!(slopes[1].abs() < 1e-8, "{slopes:?}");
    let gate_up = Tensor::from_slice(&[-100_f32, 100.0, 2.0, 3.0]).view([1, 4]);
    let values = Vec::<f32>::try_from(swiglu(&gate_up).unwrap().view(-1)).unwrap();
    assert!(values[0].abs() < 1e-8 && values[1] > 0.0, "{values:?}");
    // A row of zeros: eps alone keeps it from dividing by 0.
    let (zeros, ones) = (
        Tensor::zeros([2, 8], (Kind::Float, Device::Cpu)),
        Tensor::ones([8], (Kind::Float, Device::Cpu)),
    );
    assert_eq!(rms_norm(&zeros, &ones, 1e-6).unwrap().abs().max().double_value(&[]), 0.0);
    let empty = zeros.narrow(0, 0, 0).set_requires_grad(true);
    let out = layer_norm(&empty, &ones, &ones, 1e-6).unwrap();
    assert_eq!(out.size(), [0, 8]);
    autograd::backward(&out.sum(Kind::Float)).unwrap();
    let nan = Tensor::from_slice(&[f32::NAN, 1.0]).view([1, 2]);
    assert!(
        rms_norm(&nan, &Tensor::ones([2], (Kind::Float, Device::Cpu)), 1e-6)
            .unwrap()
            .isnan()
            .any()
            .int64_value(&[])
            == 1
    );
}

#[test]
fn weight_gradients_do_not_depend_on_the_number_of_threads() {
    let x = random(&[1000, 24], 1, Kind::Float, Device::Cpu);
    let weight = random(&[24], 2, Kind::Float, Device::Cpu);
    let gradient = || {
        let out = rms_norm(&x, &weight, 1e-5).unwrap();
        autograd::grad(&[&(&out * &out).sum(Kind::Float)], &[None], &[&weight], false)
            .unwrap()
            .remove(0)
            .unwrap()
    };
    let threads = crate::device::threads();
    let all = gradient();
    crate::device::set_threads(1);
    let one = gradient();
    crate::device::set_threads(threads);
    assert!(all.equal(&one));
}

#[test]
fn rotation_turns_pairs_and_its_inverse_turns_them_back() {
    let (tokens, heads, dim) = (9, 3, 10);
    let angles = random(&[tokens, 1, dim / 2], 3, Kind::Double, Device::Cpu).detach();
    for (kind, tolerance, _) in KINDS {
        // Heads of a wider row, as in a fused projection.
        let wide = random(&[tokens, heads + 2, dim], 4, kind, Device::Cpu).detach();
        let x = wide.narrow(1, 1, heads);
        let (cos, sin) = (angles.cos().to_kind(kind), angles.sin().to_kind(kind));
        let [out, back] =
            [(); 2].map(|()| Tensor::empty([tokens, heads, dim], (kind, Device::Cpu)));
        rotate_into(&x, &cos, &sin, false, &out).unwrap();
        let halves = x.to_kind(Kind::Double).chunk(2, 2);
        let (c, s) = (cos.to_kind(Kind::Double), sin.to_kind(Kind::Double));
        let want =
            Tensor::cat(&[&halves[0] * &c - &halves[1] * &s, &halves[1] * &c + &halves[0] * &s], 2);
        assert!(relative_error(&out, &want, 1e-3) <= tolerance);
        rotate_into(&out, &cos, &sin, true, &back).unwrap();
        assert!(relative_error(&back, &x, 1e-3) <= 3.0 * tolerance);
    }
}

#[test]
fn other_dtypes_take_libtorchs_operations() {
    let (x, w) =
        (random(&[6, 8], 1, Kind::Double, Device::Cpu), random(&[8], 2, Kind::Double, Device::Cpu));
    let error = max_error(
        &rms_norm(&x, &w, 1e-5).unwrap().detach(),
        &(normed(&x, false, 1e-5) * &w).detach(),
    );
    assert!(error < 1e-14, "{error:.1e}");
    let halves = x.chunk(2, 1);
    let plain = &halves[0] * halves[0].sigmoid() * &halves[1];
    assert!(max_error(&swiglu(&x).unwrap().detach(), &plain.detach()) < 1e-14);
    let gradient = |out: &Tensor| {
        autograd::grad(&[&(out * out).sum(Kind::Double)], &[None], &[&x], false)
            .unwrap()
            .remove(0)
            .unwrap()
    };
    assert!(max_error(&gradient(&swiglu(&x).unwrap()), &gradient(&plain)) < 1e-13);
    let plain = normed(&x, false, 1e-5) * &w;
    assert!(max_error(&gradient(&rms_norm(&x, &w, 1e-5).unwrap()), &gradient(&plain)) < 1e-13);
}

#[test]
fn arguments_that_do_not_fit_are_named() {
    let float = |shape: &[i64]| random(shape, 1, Kind::Float, Device::Cpu).detach();
    let message = |result: crate::Result<Tensor>| result.unwrap_err().to_string();
    let error = message(rms_norm(&float(&[3, 4]), &float(&[5]), 1e-5));
    assert_eq!(error, "rms_norm: weight [5] does not fit x [3, 4]");
    let error = message(layer_norm(&float(&[3, 4]), &float(&[4]), &float(&[4, 1]), 1e-5));
    assert_eq!(error, "layer_norm: bias [4, 1] does not fit x [3, 4]");
    let half = float(&[4]).to_kind(Kind::BFloat16);
    let error = message(rms_norm(&float(&[3, 4]), &half, 1e-5));
    assert_eq!(error, "rms_norm: weight is BFloat16 on Cpu, x is Float on Cpu");
    assert_eq!(message(swiglu(&float(&[3, 5]))), "swiglu: gate_up [3, 5] is not [T, 2 I]");
    let (x, cos) = (float(&[2, 1, 4]), float(&[2, 1, 2]));
    let error =
        rotate_into(&x, &cos, &float(&[2, 1, 1]), false, &x.copy()).unwrap_err().to_string();
    assert!(error.starts_with("rotate_into: x [2, 1, 4]"), "{error}");
    let error = rotate_into(&x, &cos, &cos.to_kind(Kind::Double), false, &x.copy()).unwrap_err();
    assert_eq!(error.to_string(), "rotate_into: dtypes or devices differ");
}

//! Against logits, log-softmax and gather in plain autograd, in fp64.

use tch::{Device, Kind, Tensor};

use super::{HeadOptions, HeadOutput, linear_cross_entropy, rows};
use crate::testing::{max_error, random, relative_error};
use crate::{autograd, device};

struct Case {
    hidden: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    targets: Tensor,
}

impl Case {
    fn new((n, d, v): (i64, i64, i64), with_bias: bool, kind: Kind, device: Device) -> Self {
        let targets: Vec<i64> = (0..n).map(|i| (i * 7919 + 3) % v).collect();
        Self {
            hidden: random(&[n, d], 1, kind, device),
            weight: random(&[v, d], 2, kind, device),
            bias: with_bias.then(|| random(&[v], 3, kind, device)),
            targets: Tensor::from_slice(&targets).to_device(device),
        }
    }

    fn exact(&self) -> Self {
        let exact = |t: &Tensor| t.detach().to_kind(Kind::Double).set_requires_grad(true);
        Self {
            hidden: exact(&self.hidden),
            weight: exact(&self.weight),
            bias: self.bias.as_ref().map(exact),
            targets: self.targets.shallow_clone(),
        }
    }

    fn inputs(&self) -> Vec<&Tensor> {
        [&self.hidden, &self.weight].into_iter().chain(&self.bias).collect()
    }

    fn run(&self, options: &HeadOptions) -> HeadOutput {
        let bias = self.bias.as_ref();
        linear_cross_entropy(&self.hidden, &self.weight, bias, &self.targets, options).unwrap()
    }

    /// Loss, log-probabilities and entropies in plain operations.
    fn plain(&self, temperature: f64) -> [Tensor; 3] {
        let logits = self.hidden.linear(&self.weight, self.bias.as_ref()) / temperature;
        let all = logits.log_softmax(-1, logits.kind());
        let logprobs = all.gather(1, &self.targets.unsqueeze(1), false).squeeze_dim(1);
        let entropy = -(all.exp() * all).sum_dim_intlist(1, false, None::<Kind>);
        [-logprobs.sum(logprobs.kind()), logprobs, entropy]
    }
}

const EVERYTHING: HeadOptions =
    HeadOptions { temperature: 1.0, want_logprobs: true, want_entropy: true, chunk_rows: None };

fn close(name: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let error = relative_error(&got.detach(), &want.detach(), 1.0);
    assert!(error <= tolerance, "{name}: off by {error:e}");
}

fn grads(of: &[&Tensor], weights: &[Option<&Tensor>], inputs: &[&Tensor]) -> Vec<Tensor> {
    let all = autograd::grad(of, weights, inputs, false).unwrap();
    all.into_iter().map(Option::unwrap).collect()
}

/// Values and gradients of the loss alone and of all three outputs.
fn check(case: &Case, options: &HeadOptions, tolerance: f64, grad_tolerance: f64) {
    let exact = case.exact();
    let [loss, logprobs, entropy] = exact.plain(options.temperature);
    let names = ["hidden", "weight", "bias"];
    let ours = case.run(&HeadOptions { want_logprobs: false, want_entropy: false, ..*options });
    assert!(ours.logprobs.is_none() && ours.entropy.is_none());
    close("loss", &ours.loss_sum, &loss, tolerance);
    close("entropy_sum", &ours.entropy_sum, &entropy.sum(Kind::Double), tolerance);
    assert!(!ours.entropy_sum.requires_grad() && !ours.correct.requires_grad());
    let gain = random(&[], 9, Kind::Double, case.hidden.device()).detach();
    let gain32 = gain.to_kind(ours.loss_sum.kind());
    let got = grads(&[&ours.loss_sum], &[Some(&gain32)], &case.inputs());
    let want = autograd::grad(&[&loss], &[Some(&gain)], &exact.inputs(), true).unwrap();
    for (name, (got, want)) in names.iter().zip(got.iter().zip(want)) {
        assert_eq!(got.kind(), case.hidden.kind());
        close(name, got, &want.unwrap(), grad_tolerance);
    }
    let ours = case.run(&HeadOptions { want_logprobs: true, want_entropy: true, ..*options });
    let (got_l, got_e) = (ours.logprobs.unwrap(), ours.entropy.unwrap());
    close("loss", &ours.loss_sum, &loss, tolerance);
    close("logprobs", &got_l, &logprobs, tolerance);
    close("entropy", &got_e, &entropy, tolerance);
    let n = case.hidden.size()[0];
    let on = |seed| random(&[n], seed, Kind::Double, case.hidden.device()).detach();
    let (on_l, on_e) = (on(7), on(8));
    let kind = got_l.kind();
    let got = grads(
        &[&ours.loss_sum, &got_l, &got_e],
        &[Some(&gain32), Some(&on_l.to_kind(kind)), Some(&on_e.to_kind(kind))],
        &case.inputs(),
    );
    let want = grads(
        &[&loss, &logprobs, &entropy],
        &[Some(&gain), Some(&on_l), Some(&on_e)],
        &exact.inputs(),
    );
    for (name, (got, want)) in names.iter().zip(got.iter().zip(&want)) {
        close(&format!("{name} by all outputs"), got, want, grad_tolerance);
    }
}

#[test]
fn equals_plain_autograd_in_fp32() {
    for (n, d, v) in [(1, 1, 1), (5, 8, 3), (33, 16, 17), (40, 32, 1000), (7, 64, 5003)] {
        for with_bias in [false, true] {
            let case = Case::new((n, d, v), with_bias, Kind::Float, Device::Cpu);
            for (temperature, chunk_rows) in [(1.0, None), (0.7, Some(1)), (2.5, Some(6))] {
                let options = HeadOptions { temperature, chunk_rows, ..EVERYTHING };
                check(&case, &options, 1e-5, 1e-5);
            }
        }
    }
}

#[test]
fn equals_plain_autograd_in_fp64() {
    let case = Case::new((23, 16, 50), true, Kind::Double, Device::Cpu);
    let options = HeadOptions { temperature: 1.3, chunk_rows: Some(5), ..EVERYTHING };
    check(&case, &options, 1e-13, 1e-13);
}

#[test]
fn half_precision_is_within_its_rounding() {
    // Logits of size up to |z| round by |z| 2^-9 (bf16); scaled hidden states keep |z| below about 8.
    for (kind, unit) in [(Kind::BFloat16, 2f64.powi(-9)), (Kind::Half, 2f64.powi(-12))] {
        let mut case = Case::new((64, 32, 300), true, kind, Device::Cpu);
        case.hidden = (case.hidden.detach() * 0.3).set_requires_grad(true);
        let options = HeadOptions { chunk_rows: Some(10), ..EVERYTHING };
        check(&case, &options, 4.0 * unit, 8.0 * unit);
    }
}

#[test]
fn chunks_do_not_change_the_loss() {
    let case = Case::new((50, 16, 40), false, Kind::Float, Device::Cpu);
    let run = |chunk_rows| {
        let out = case.run(&HeadOptions { chunk_rows, ..HeadOptions::default() });
        let grads = grads(&[&out.loss_sum], &[None], &case.inputs());
        (out.loss_sum.detach(), grads)
    };
    let (loss, whole) = run(Some(50));
    for rows in [1, 7, 49, 1000] {
        let (other, parts) = run(Some(rows));
        close("loss", &other, &loss, 1e-6);
        for (a, b) in parts.iter().zip(&whole) {
            close("gradient", a, b, 1e-6);
        }
    }
}

#[test]
fn both_ways_of_computing_rows_agree() {
    for (n, v) in [(6, 1), (9, 37), (5, 2100)] {
        let logits = random(&[n, v], 4, Kind::Float, Device::Cpu).detach() * 5.0;
        let targets = Tensor::from_slice(&(0..n).map(|i| (i * 31) % v).collect::<Vec<_>>());
        let coefficients = random(&[n, 2], 5, Kind::Float, Device::Cpu).detach();
        let stats = [(); 2].map(|()| Tensor::zeros([n, rows::COLUMNS], (Kind::Float, Device::Cpu)));
        let (a, b) = (logits.copy(), logits.copy());
        rows::statistics(&a, &targets, 0.8, &stats[0], true).unwrap();
        rows::statistics_by_operations(&b, &targets, 0.8, &stats[1], true).unwrap();
        assert!(max_error(&stats[0], &stats[1]) < 1e-5);
        assert!(max_error(&a, &b) < 1e-6);
        let (a, b) = (logits.copy(), logits.copy());
        rows::gradient(&a, &targets, 0.8, &stats[0], &coefficients).unwrap();
        rows::gradient_by_operations(&b, &targets, 0.8, &stats[1], &coefficients).unwrap();
        assert!(max_error(&a, &b) < 1e-5);
    }
}

/// A head whose logits are exactly `rows`.
fn with_logits(rows: &[&[f32]], targets: &[i64]) -> Case {
    let flat: Vec<f32> = rows.concat();
    let logits = Tensor::from_slice(&flat).view([rows.len() as i64, -1]);
    let v = logits.size()[1];
    Case {
        hidden: logits.set_requires_grad(true),
        weight: Tensor::eye(v, (Kind::Float, Device::Cpu)).set_requires_grad(true),
        bias: None,
        targets: Tensor::from_slice(targets),
    }
}

fn numbers(t: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(t.detach().to_kind(Kind::Double)).unwrap()
}

#[test]
fn extreme_logits_are_exact() {
    let case = with_logits(
        &[
            &[1e4, -1e4, 0.0],
            &[1e4, -1e4, 0.0],
            &[-1e4, -1e4, -1e4],
            &[1e4, 1e4, -1e4],
            &[3e38, -3e38, 0.0],
        ],
        &[0, 1, 2, 1, 0],
    );
    let out = case.run(&EVERYTHING);
    let (ln2, ln3) = (2f64.ln(), 3f64.ln());
    for (got, want) in
        numbers(out.logprobs.as_ref().unwrap()).iter().zip([0.0, -2e4, -ln3, -ln2, 0.0])
    {
        assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{got} against {want}");
    }
    for (got, want) in numbers(out.entropy.as_ref().unwrap()).iter().zip([0.0, 0.0, ln3, ln2, 0.0])
    {
        assert!((got - want).abs() <= 1e-6, "{got} against {want}");
    }
    let total = out.loss_sum + out.entropy.unwrap().sum(Kind::Float);
    for grad in grads(&[&total], &[None], &case.inputs()) {
        assert!(bool::try_from(grad.isfinite().all()).unwrap());
    }
}

#[test]
fn not_a_number_shows() {
    let case = with_logits(&[&[f32::NAN, 1.0, 2.0], &[0.0, 1.0, 2.0]], &[2, 1]);
    // NaN · 0 reaches every logit of the row, none of the other row's.
    let logprobs = numbers(&case.run(&EVERYTHING).logprobs.unwrap());
    assert!(logprobs[0].is_nan() && logprobs[1].is_finite(), "{logprobs:?}");
    assert!(case.run(&HeadOptions::default()).loss_sum.double_value(&[]).is_nan());
}

#[test]
fn correct_counts_the_first_of_equal_logits() {
    let case = with_logits(
        &[&[1.0, 2.0, 0.0], &[2.0, 2.0, 1.0], &[2.0, 2.0, 1.0], &[0.0, 0.0, 5.0]],
        &[1, 0, 1, 0],
    );
    for options in [EVERYTHING, HeadOptions::default()] {
        let correct = case.run(&options).correct;
        assert_eq!((correct.kind(), correct.int64_value(&[])), (Kind::Int64, 2));
    }
}

#[test]
fn no_rows_give_zeros() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let case = Case::new((0, 8, 5), true, kind, Device::Cpu);
        for options in [HeadOptions::default(), EVERYTHING] {
            let out = case.run(&options);
            assert_eq!(out.loss_sum.double_value(&[]), 0.0);
            assert_eq!(out.correct.int64_value(&[]), 0);
            assert_eq!(out.logprobs.map(|t| t.size()), options.want_logprobs.then(|| vec![0]));
            for (grad, input) in
                grads(&[&out.loss_sum], &[None], &case.inputs()).iter().zip(case.inputs())
            {
                assert_eq!((grad.size(), grad.kind()), (input.size(), kind));
                assert_eq!(grad.abs().sum(Kind::Float).double_value(&[]), 0.0);
            }
        }
    }
}

#[test]
fn only_what_requires_a_gradient_gets_one() {
    for options in [HeadOptions::default(), EVERYTHING] {
        for which in 0..3 {
            let case = Case::new((6, 4, 9), true, Kind::Float, Device::Cpu);
            let only = case.inputs()[which];
            for input in case.inputs() {
                let _ = input.set_requires_grad(std::ptr::eq(input, only));
            }
            let out = case.run(&options);
            autograd::backward(&out.loss_sum).unwrap();
            for input in case.inputs() {
                assert_eq!(input.grad().defined(), std::ptr::eq(input, only));
            }
        }
        let case = Case::new((6, 4, 9), true, Kind::Float, Device::Cpu);
        let _guard = autograd::GradMode::set(false);
        assert!(!case.run(&options).loss_sum.requires_grad());
    }
}

#[test]
fn a_kept_graph_gives_the_same_gradients_again() {
    let case = Case::new((6, 4, 9), true, Kind::Float, Device::Cpu);
    let out = case.run(&HeadOptions::default());
    let run = |keep| autograd::grad(&[&out.loss_sum], &[None], &case.inputs(), keep).unwrap();
    let (first, second) = (run(true), run(false));
    for (a, b) in first.iter().zip(&second) {
        assert!(a.as_ref().unwrap().equal(b.as_ref().unwrap()));
    }
}

#[test]
fn the_weight_gradient_is_summed_in_fp32() {
    // 512 chunks of one row; in bf16 the running sum would stop growing at 256 times a part.
    let hidden = Tensor::ones([512, 1], (Kind::BFloat16, Device::Cpu));
    let weight = Tensor::zeros([2, 1], (Kind::BFloat16, Device::Cpu)).set_requires_grad(true);
    let targets = Tensor::zeros([512], (Kind::Int64, Device::Cpu));
    let options = HeadOptions { chunk_rows: Some(1), ..HeadOptions::default() };
    let out = linear_cross_entropy(&hidden, &weight, None, &targets, &options).unwrap();
    autograd::backward(&out.loss_sum).unwrap();
    assert_eq!(numbers(&weight.grad().view([2])), [-256.0, 256.0]);
}

#[test]
fn wrong_arguments_are_named() {
    let case = Case::new((4, 8, 5), true, Kind::Float, Device::Cpu);
    let fail = |h: &Tensor, w: &Tensor, b: Option<&Tensor>, t: &Tensor, o: HeadOptions| {
        let error = linear_cross_entropy(h, w, b, t, &o).unwrap_err().to_string();
        error.strip_prefix("linear_cross_entropy: ").unwrap().to_owned()
    };
    let (h, w, b, t) = (&case.hidden, &case.weight, case.bias.as_ref(), &case.targets);
    let plain = HeadOptions::default();
    let with = |values: &[i64]| Tensor::from_slice(values);
    let cases = [
        (fail(h, w, b, &with(&[0, 4, 5, -1]), plain), "target 5 in row 2 is outside 0..5"),
        (fail(h, w, b, &with(&[0, -100, 5, 1]), plain), "target -100 in row 1 is outside 0..5"),
        (fail(h, w, b, &with(&[0; 5]), plain), "targets are Int64 [5], not Int64 of at most [4]"),
        (
            fail(h, w, b, &t.to_kind(Kind::Int), plain),
            "targets are Int [4], not Int64 of at most [4]",
        ),
        (
            fail(h, &w.tr(), b, t, plain),
            "hidden [4, 8] and weight [8, 5] are not [N, D] and [V, D]",
        ),
        (fail(h, w, Some(&w.get(0)), t, plain), "bias Some([8]) is not [5]"),
        (fail(h, &w.to_kind(Kind::BFloat16), b, t, plain), "weight is BFloat16, hidden is Float"),
        (fail(&h.to_kind(Kind::Int64), w, b, t, plain), "hidden is Int64, not a floating dtype"),
        (
            fail(h, w, b, t, HeadOptions { temperature: 0.0, ..plain }),
            "temperature 0 is not positive",
        ),
        (
            fail(h, w, b, t, HeadOptions { chunk_rows: Some(0), ..plain }),
            "chunk_rows Some(0) is below 1",
        ),
    ];
    for (got, want) in cases {
        assert_eq!(got, want);
    }
}

#[test]
fn cuda_equals_plain_autograd() {
    let Some(device) = device::test_cuda("linear cross-entropy") else { return };
    let options = HeadOptions { chunk_rows: Some(9), ..EVERYTHING };
    check(&Case::new((40, 32, 300), true, Kind::Float, device), &options, 1e-4, 1e-3);
    let mut case = Case::new((40, 32, 300), true, Kind::BFloat16, device);
    case.hidden = (case.hidden.detach() * 0.3).set_requires_grad(true);
    check(&case, &options, 4.0 * 2f64.powi(-9), 8.0 * 2f64.powi(-9));
}

#[test]
fn rows_behind_the_last_target_count_for_nothing() {
    for (kind, chunk_rows) in
        [(Kind::Float, Some(3)), (Kind::Float, None), (Kind::BFloat16, Some(4))]
    {
        let whole = Case::new((13, 8, 11), true, kind, Device::Cpu);
        let short = Case {
            hidden: whole.hidden.detach().narrow(0, 0, 6).copy().set_requires_grad(true),
            targets: whole.targets.narrow(0, 0, 6),
            weight: whole.weight.detach().copy().set_requires_grad(true),
            bias: whole.bias.as_ref().map(|b| b.detach().copy().set_requires_grad(true)),
        };
        let padded = Case { targets: whole.targets.narrow(0, 0, 6), ..whole };
        for wanted in [false, true] {
            let options =
                HeadOptions { want_logprobs: wanted, chunk_rows, ..HeadOptions::default() };
            let (a, b) = (short.run(&options), padded.run(&options));
            close("loss", &b.loss_sum, &a.loss_sum, 1e-6);
            assert_eq!(i64::try_from(&a.correct).unwrap(), i64::try_from(&b.correct).unwrap());
            let a = grads(&[&a.loss_sum], &[None], &short.inputs());
            let b = grads(&[&b.loss_sum], &[None], &padded.inputs());
            let tolerance = if kind == Kind::Float { 1e-6 } else { 1e-2 };
            close("hidden", &b[0].narrow(0, 0, 6), &a[0], tolerance);
            assert_eq!(max_error(&b[0].narrow(0, 6, 7), &b[0].narrow(0, 6, 7).zeros_like()), 0.0);
            for (a, b) in a.iter().zip(&b).skip(1) {
                close("weight and bias", b, a, tolerance);
            }
        }
    }
}

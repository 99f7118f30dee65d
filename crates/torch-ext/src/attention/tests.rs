//! Against masked softmax attention in plain tensor operations.

use tch::{Device, Kind, Tensor};

use super::{Seqlens, Varlen, per_document, varlen};
use crate::testing::{generator_lock, max_error, random, relative_error};
use crate::{autograd, device};

/// Shapes of one case: document lengths, query heads, key heads, head size.
type Shape<'a> = (&'a [i64], i64, i64, i64);

fn seqlens(lengths: &[i64]) -> Seqlens {
    let mut cu = vec![0];
    cu.extend(lengths.iter().scan(0, |sum, len| {
        *sum += len;
        Some(*sum)
    }));
    Seqlens::new(cu).unwrap()
}

fn qkv(shape: Shape<'_>, kind: Kind, device: Device) -> [Tensor; 3] {
    let (lengths, heads, kv_heads, dim) = shape;
    let rows: i64 = lengths.iter().sum();
    [
        random(&[rows, heads, dim], 1, kind, device),
        random(&[rows, kv_heads, dim], 2, kind, device),
        random(&[rows, kv_heads, dim], 3, kind, device),
    ]
}

/// Masked softmax over all rows at once, in fp64.
fn reference(qkv: &[Tensor; 3], seqlens: &Seqlens, options: &Varlen) -> Tensor {
    let [q, k, v] = qkv.each_ref().map(|t| t.to_kind(Kind::Double).transpose(0, 1));
    let group = q.size()[0] / k.size()[0];
    let (k, v) = (
        k.repeat_interleave_self_int(group, 0, None),
        v.repeat_interleave_self_int(group, 0, None),
    );
    let rows = seqlens.total();
    let at = Tensor::arange(rows, (Kind::Int64, q.device()));
    // How many documents end at or before each row: the row's document.
    let ends = Tensor::from_slice(&seqlens.cu()[1..]).to_device(q.device());
    let ended = at.unsqueeze(1).ge_tensor(&ends.unsqueeze(0));
    let document = ended.sum_dim_intlist(1, false, Kind::Int64);
    let distance = at.unsqueeze(1) - at.unsqueeze(0);
    let mut seen =
        document.unsqueeze(1).eq_tensor(&document.unsqueeze(0)).logical_and(&distance.ge(0));
    if let Some(window) = options.sliding_window {
        seen = seen.logical_and(&distance.lt(window));
    }
    let scale = options.scale.unwrap_or(1.0 / (q.size()[2] as f64).sqrt());
    let scores = q.matmul(&k.transpose(1, 2)) * scale;
    let scores = scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
    scores.softmax(-1, Kind::Double).matmul(&v).transpose(0, 1)
}

/// The output and the gradients of q, k, v under a fixed random gradient of the output.
fn run(qkv: &[Tensor; 3], attend: impl Fn(&[Tensor; 3]) -> Tensor) -> [Tensor; 4] {
    let out = attend(qkv);
    let weight = random(&out.size(), 4, out.kind(), out.device()).detach();
    let inputs: Vec<&Tensor> = qkv.iter().collect();
    let grads = autograd::grad(&[&out], &[Some(&weight)], &inputs, false).unwrap();
    let mut all = vec![out.detach()];
    all.extend(grads.into_iter().map(Option::unwrap));
    all.try_into().unwrap()
}

fn fused(seqlens: &Seqlens, options: &Varlen) -> impl Fn(&[Tensor; 3]) -> Tensor {
    move |[q, k, v]| varlen(q, k, v, seqlens, options).unwrap()
}

/// Compares with the reference on the same (rounded) inputs; `tolerance` is relative to the largest
/// reference value, at least 1.
fn check(shape: Shape<'_>, options: &Varlen, kind: Kind, device: Device, tolerance: f64) {
    let documents = seqlens(shape.0);
    let inputs = qkv(shape, kind, device);
    let got = run(&inputs, fused(&documents, options));
    let exact = inputs.each_ref().map(|t| t.detach().to_kind(Kind::Double).set_requires_grad(true));
    let want = run(&exact, |t| {
        // The gradient of the output must be the rounded one.
        reference(t, &documents, options).to_kind(kind).to_kind(Kind::Double)
    });
    for (name, (got, want)) in ["out", "dq", "dk", "dv"].iter().zip(got.iter().zip(&want)) {
        assert_eq!(got.size(), want.size());
        assert_eq!(got.kind(), kind);
        let error = relative_error(got, want, 1.0);
        assert!(error <= tolerance, "{name} of {shape:?} {options:?} {kind:?}: off by {error:e}");
    }
}

const SHAPES: [Shape<'static>; 9] = [
    (&[1], 1, 1, 8),
    (&[1, 1, 1, 1], 2, 1, 16),
    (&[5, 0, 3, 17, 1], 4, 2, 32),
    (&[30, 31, 29], 4, 4, 64),
    (&[7, 40], 3, 3, 20),
    (&[65, 64, 63], 2, 1, 48),
    (&[300], 2, 2, 16),
    (&[129, 513], 4, 1, 8),
    (&[260], 6, 2, 128),
];

#[test]
fn equals_masked_softmax_in_fp32() {
    for shape in SHAPES {
        check(shape, &Varlen::default(), Kind::Float, Device::Cpu, 1e-5);
    }
}

#[test]
fn windows_equal_masked_softmax() {
    for window in [1, 7, 64, 200] {
        let options = Varlen { sliding_window: Some(window), ..Varlen::default() };
        for shape in SHAPES {
            check(shape, &options, Kind::Float, Device::Cpu, 1e-5);
        }
    }
}

#[test]
fn half_precision_is_within_its_rounding() {
    // Inputs are exact; outputs round once (2^-9 and 2^-12 relative), the output used by backward too.
    for shape in SHAPES {
        check(shape, &Varlen::default(), Kind::BFloat16, Device::Cpu, 3.0 * 2f64.powi(-9));
        check(shape, &Varlen::default(), Kind::Half, Device::Cpu, 3.0 * 2f64.powi(-12));
    }
}

#[test]
fn the_scale_is_used() {
    for scale in [0.0, 1.0, -0.5, 3.0] {
        let options = Varlen { scale: Some(scale), ..Varlen::default() };
        check((&[33, 12], 2, 1, 16), &options, Kind::Float, Device::Cpu, 1e-5);
    }
}

#[test]
fn per_document_attention_is_exact_in_fp64() {
    for window in [None, Some(1), Some(9)] {
        let options = Varlen { sliding_window: window, ..Varlen::default() };
        for shape in SHAPES {
            check(shape, &options, Kind::Double, Device::Cpu, 1e-12);
        }
    }
}

#[test]
fn per_document_attention_in_fp32() {
    let documents = seqlens(&[5, 0, 3, 17, 70]);
    let options = Varlen { sliding_window: Some(8), scale: Some(0.3), ..Varlen::default() };
    let inputs = qkv((&[5, 0, 3, 17, 70], 4, 2, 32), Kind::Float, Device::Cpu);
    let ours = run(&inputs, fused(&documents, &options));
    let theirs =
        run(&inputs, |[q, k, v]| per_document::attend(q, k, v, &documents, &options).unwrap());
    for (a, b) in ours.iter().zip(&theirs) {
        assert!(max_error(a, b) < 2e-5, "{}", max_error(a, b));
    }
}

#[test]
fn no_rows_give_no_rows() {
    for lengths in [&[][..], &[0, 0]] {
        check((lengths, 2, 1, 8), &Varlen::default(), Kind::Float, Device::Cpu, 0.0);
        check((lengths, 2, 1, 8), &Varlen::default(), Kind::Double, Device::Cpu, 0.0);
    }
}

#[test]
fn documents_of_length_one_return_their_values() {
    let documents = seqlens(&[1; 50]);
    let [q, k, v] = qkv((&[1; 50], 4, 2, 24), Kind::Float, Device::Cpu);
    let out = varlen(&q, &k, &v, &documents, &Varlen::default()).unwrap();
    let values = v.repeat_interleave_self_int(2, 1, None);
    assert!(max_error(&out, &values) < 1e-6);
}

#[test]
fn large_scores_stay_finite_and_pick_the_largest() {
    // Scores of ±1e4 and more: softmax becomes an argmax, and nothing overflows.
    let documents = seqlens(&[40, 3]);
    let inputs = qkv((&[40, 3], 2, 2, 16), Kind::Float, Device::Cpu);
    let big = inputs.each_ref().map(|t| (t.detach() * 100.0).set_requires_grad(true));
    let options = Varlen { scale: Some(10.0), ..Varlen::default() };
    let got = run(&big, fused(&documents, &options));
    let want = run(&big, |t| reference(t, &documents, &options).to_kind(Kind::Float));
    assert!(max_error(&got[0], &want[0]) < 1e-2, "{}", max_error(&got[0], &want[0]));
    for tensor in &got {
        assert!(bool::try_from(tensor.isfinite().all()).unwrap());
    }
}

#[test]
fn a_document_sees_only_itself_and_the_past() {
    let documents = seqlens(&[6, 9]);
    let inputs = qkv((&[6, 9], 2, 1, 16), Kind::Float, Device::Cpu);
    let base = fused(&documents, &Varlen::default())(&inputs);
    for changed in [3, 8] {
        let other = inputs.each_ref().map(|t| {
            let copy = t.detach().copy();
            let _ = copy.get(changed).fill_(5.0);
            copy
        });
        let out = fused(&documents, &Varlen::default())(&other);
        let end = if changed < 6 { 6 } else { 15 };
        for row in 0..15 {
            let same = max_error(&out.get(row), &base.get(row)) == 0.0;
            assert_eq!(same, row < changed || row >= end, "row {row} after changing {changed}");
        }
    }
}

#[test]
fn packing_equals_one_document_at_a_time_bitwise() {
    let lengths = [30, 1, 64, 200, 7];
    let documents = seqlens(&lengths);
    let inputs = qkv((&lengths, 4, 2, 32), Kind::Float, Device::Cpu);
    let packed = fused(&documents, &Varlen::default())(&inputs);
    for rows in documents.documents() {
        let len = rows.end - rows.start;
        let alone = inputs.each_ref().map(|t| t.narrow(0, rows.start, len));
        let out = fused(&seqlens(&[len]), &Varlen::default())(&alone);
        assert!(out.equal(&packed.narrow(0, rows.start, len)));
    }
}

#[test]
fn strided_inputs_are_read_in_place() {
    // q, k and v as slices of one fused projection, as GPT-2 has them.
    let fused_qkv = random(&[20, 3 * 32], 5, Kind::Float, Device::Cpu);
    let part = |i: i64| fused_qkv.narrow(1, i * 32, 32).view([20, 2, 16]);
    let documents = seqlens(&[12, 8]);
    let strided = varlen(&part(0), &part(1), &part(2), &documents, &Varlen::default()).unwrap();
    let copies = [part(0).contiguous(), part(1).contiguous(), part(2).contiguous()];
    let dense = fused(&documents, &Varlen::default())(&copies);
    assert!(strided.equal(&dense));
    // A last dimension that is not contiguous is copied.
    let transposed = part(0).transpose(1, 2).contiguous().transpose(1, 2);
    let out = varlen(&transposed, &part(1), &part(2), &documents, &Varlen::default()).unwrap();
    assert!(out.equal(&dense));
    let weight = random(&[20, 2, 16], 6, Kind::Float, Device::Cpu).detach();
    let weight_t = weight.transpose(0, 2).contiguous().transpose(0, 2);
    let grads = |w: &Tensor| {
        let out = varlen(&part(0), &part(1), &part(2), &documents, &Varlen::default()).unwrap();
        autograd::grad(&[&out], &[Some(w)], &[&fused_qkv], false).unwrap().remove(0).unwrap()
    };
    assert!(grads(&weight).equal(&grads(&weight_t)));
}

#[test]
fn results_do_not_depend_on_threads_or_runs() {
    // Few long documents: backward splits them when there are many threads.
    let before = device::threads();
    let options = [None, Some(100)];
    for (lengths, sliding_window) in [(&[700, 300][..], options[0]), (&[900], options[1])] {
        let documents = seqlens(lengths);
        let inputs = qkv((lengths, 4, 2, 16), Kind::Float, Device::Cpu);
        let options = Varlen { sliding_window, ..Varlen::default() };
        let all: Vec<[Tensor; 4]> = [1, 1, 2, 5]
            .into_iter()
            .map(|threads| {
                device::set_threads(threads);
                run(&inputs, fused(&documents, &options))
            })
            .collect();
        device::set_threads(before);
        for other in &all[1..] {
            assert!(all[0].iter().zip(other).all(|(a, b)| a.equal(b)));
        }
    }
}

#[test]
fn dropout_drops_the_share_it_should_and_repeats_with_the_seed() {
    let _lock = generator_lock();
    // With v = 1 everywhere, the output is the sum of the kept, scaled weights: mean 1.
    let lengths = [256; 4];
    let documents = seqlens(&lengths);
    let [q, k, _] = qkv((&lengths, 4, 4, 16), Kind::Float, Device::Cpu);
    let ones = Tensor::ones([1024, 4, 16], (Kind::Float, Device::Cpu));
    let options = Varlen { dropout_p: 0.25, scale: Some(0.0), ..Varlen::default() };
    let attend = |seed: i64| {
        tch::manual_seed(seed);
        varlen(&q, &k, &ones, &documents, &options).unwrap()
    };
    let out = attend(1);
    let mean = f64::try_from(out.mean(Kind::Double)).unwrap();
    assert!((mean - 1.0).abs() < 0.01, "{mean}");
    // Row i has i + 1 equal weights: the variance of the kept share is p / (1 - p) / (i + 1).
    let row = out.slice(0, 255, 1024, 256);
    let variance = f64::try_from((row.select(2, 0) - 1.0).square().mean(Kind::Double)).unwrap();
    assert!(variance < 4.0 * 0.25 / 0.75 / 256.0, "{variance}");
    // The first row has one weight: kept (4/3) or dropped (0).
    let first = out.slice(0, 0, 1024, 256).select(2, 0);
    let either = first.eq(0.0).logical_or(&(&first - 4.0 / 3.0).abs().lt(1e-6));
    assert!(bool::try_from(either.all()).unwrap());
    assert!(out.equal(&attend(1)));
    assert!(!out.equal(&attend(2)));
}

#[test]
fn dropout_gradients_match_finite_differences() {
    let _lock = generator_lock();
    let lengths = [9, 20];
    let documents = seqlens(&lengths);
    let inputs = qkv((&lengths, 2, 1, 8), Kind::Float, Device::Cpu);
    let options = Varlen { dropout_p: 0.3, ..Varlen::default() };
    let weight = random(&[29, 2, 8], 9, Kind::Float, Device::Cpu).detach();
    let loss = |t: &[Tensor; 3]| {
        tch::manual_seed(11);
        (fused(&documents, &options)(t) * &weight).sum(Kind::Double)
    };
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let grads = autograd::grad(&[&loss(&inputs)], &[None], &refs, false).unwrap();
    for (which, grad) in grads.into_iter().map(Option::unwrap).enumerate() {
        let direction =
            random(&inputs[which].size(), 20 + which as u64, Kind::Float, Device::Cpu).detach();
        let moved = |by: f64| {
            let mut other = inputs.each_ref().map(Tensor::detach);
            other[which] = &other[which] + &direction * by;
            f64::try_from(loss(&other)).unwrap()
        };
        let numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        let analytic = f64::try_from((grad * direction).sum(Kind::Double)).unwrap();
        let error = (numeric - analytic).abs() / analytic.abs().max(1.0);
        assert!(error < 5e-3, "input {which}: {numeric} against {analytic}");
    }
}

#[test]
fn gradients_match_finite_differences_in_fp64() {
    let lengths = [3, 6];
    let documents = seqlens(&lengths);
    let inputs = qkv((&lengths, 2, 1, 4), Kind::Double, Device::Cpu);
    let got = run(&inputs, fused(&documents, &Varlen::default()));
    let weight = random(&[9, 2, 4], 4, Kind::Double, Device::Cpu).detach();
    let loss = |t: &[Tensor; 3]| {
        f64::try_from((fused(&documents, &Varlen::default())(t) * &weight).sum(Kind::Double))
            .unwrap()
    };
    for which in 0..3 {
        let direction = random(&inputs[which].size(), 7, Kind::Double, Device::Cpu).detach();
        let moved = |by: f64| {
            let mut other = inputs.each_ref().map(Tensor::detach);
            other[which] = &other[which] + &direction * by;
            loss(&other)
        };
        let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        let analytic = f64::try_from((&got[which + 1] * direction).sum(Kind::Double)).unwrap();
        assert!((numeric - analytic).abs() < 1e-7 * analytic.abs().max(1.0));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let make = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let (q, k) = (make(&[4, 2, 8]), make(&[4, 1, 8]));
    let four = seqlens(&[4]);
    let fail = |q: &Tensor, k: &Tensor, v: &Tensor, s: &Seqlens, o: Varlen| {
        varlen(q, k, v, s, &o).unwrap_err().to_string()
    };
    let plain = Varlen::default();
    let cases = [
        (
            fail(&make(&[4, 8]), &k, &k, &four, plain),
            "q [4, 8], k [4, 1, 8], v [4, 1, 8] are not [T, H, D], [T, Hkv, D] twice",
        ),
        (
            fail(&q, &make(&[4, 1, 6]), &make(&[4, 1, 6]), &four, plain),
            "q [4, 2, 8] and k [4, 1, 6] differ in T or D",
        ),
        (
            fail(&make(&[4, 3, 8]), &make(&[4, 2, 8]), &make(&[4, 2, 8]), &four, plain),
            "3 query heads are no multiple of 2 key heads",
        ),
        (fail(&q, &k, &k, &seqlens(&[3]), plain), "4 rows but documents of 3 rows"),
        (fail(&q, &k.to_kind(Kind::Half), &k, &four, plain), "k is Half on Cpu, q is Float on Cpu"),
        (
            fail(&q, &k, &k, &four, Varlen { sliding_window: Some(0), ..plain }),
            "sliding window Some(0) is below 1",
        ),
        (
            fail(&q, &k, &k, &four, Varlen { dropout_p: 1.0, ..plain }),
            "dropout_p 1 is not in [0, 1)",
        ),
        (
            fail(&q, &k, &k, &four, Varlen { scale: Some(f64::NAN), ..plain }),
            "scale Some(NaN) is not finite",
        ),
        (fail(&q.to_kind(Kind::Int64), &k, &k, &four, plain), "q is Int64, not a floating dtype"),
    ];
    for (got, want) in cases {
        assert_eq!(got, format!("attention::varlen: {want}"));
    }
    let bad = |cu: &[i64]| Seqlens::new(cu.to_vec()).unwrap_err().to_string();
    assert_eq!(bad(&[]), "Seqlens: cumulative lengths start with None, not 0");
    assert_eq!(bad(&[1, 2]), "Seqlens: cumulative lengths start with Some(1), not 0");
    assert_eq!(bad(&[0, 5, 3]), "Seqlens: document 1 ends at 3 before it starts at 5");
}

#[test]
fn cuda_equals_masked_softmax() {
    let Some(device) = device::test_cuda("attention") else { return };
    for shape in SHAPES {
        for window in [None, Some(9)] {
            let options = Varlen { sliding_window: window, ..Varlen::default() };
            check(shape, &options, Kind::Float, device, 2e-3);
            check(shape, &options, Kind::BFloat16, device, 8.0 * 2f64.powi(-9));
            check(shape, &options, Kind::Half, device, 8.0 * 2f64.powi(-12));
        }
    }
}

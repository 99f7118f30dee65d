//! Against the same formulas in plain autograd.

use super::*;
use crate::decoder::linear::{Change, WeightLayout};
use crate::layout::{Affine, BlockSpec, Init, PartSpec};
use crate::params::{Keep, Params};
use crate::precision::Precision;
use crate::testing::{GENERATOR, assert_close, gap, normal};
use std::sync::PoisonError;
use tch::{Device, no_grad};
use torch_ext::four_bit::Code;
use torch_ext::generator;

/// The second: from 256 on another kernel multiplies.
const TOKENS: [i64; 2] = [7, 300];
const INPUTS: i64 = 6;
/// Of three layers side by side.
const OUTPUTS: [i64; 3] = [5, 3, 4];

/// Three layers side by side with biases that train, or one as `[in, out]`.
fn layer(layout: WeightLayout, keep: Keep) -> (Params, Linear) {
    let whole = OUTPUTS.iter().sum::<i64>();
    let parts: Vec<PartSpec> = match layout {
        WeightLayout::InOut => {
            vec![PartSpec::new("0.weight".into(), &[INPUTS, whole], Init::Zeros)]
        }
        WeightLayout::OutIn => (0_usize..3)
            .map(|i| PartSpec::new(format!("{i}.weight"), &[OUTPUTS[i], INPUTS], Init::Zeros))
            .collect(),
    };
    let bias = PartSpec::new("0.bias".into(), &[whole], Init::Zeros);
    let specs = [BlockSpec { parts }, BlockSpec { parts: vec![bias] }];
    let keeps = [keep, Keep::Trained];
    let mut params =
        Params::allocate(&specs, Device::Cpu, Precision::Fp32, |id| keeps[id]).unwrap();
    for (b, spec) in specs.iter().enumerate() {
        for (p, part) in spec.parts.iter().enumerate() {
            let value = normal((10 * b + p) as u64, 0.5, &part.shape);
            params.fill(b, p, &value).unwrap();
        }
    }
    let linear = Linear::new(&params, Affine { weight: 0, bias: Some(1) }, layout);
    (params, linear)
}

fn leaf(stream: u64, shape: &[i64]) -> Tensor {
    normal(stream, 0.7, shape).set_requires_grad(true)
}

/// An update of the outputs that `places` name, with ranks and scales that differ.
fn low_rank(places: &[(i64, i64)], magnitudes: bool, dropout: f64) -> LowRank {
    let ranks = [2, 1, 3];
    let mut row = 0;
    let mut parts = Vec::new();
    for (i, &outputs) in places.iter().enumerate() {
        let stream = 100 + 10 * i as u64;
        let magnitude = magnitudes && i != 1;
        parts.push(Part {
            outputs,
            rows: (row, ranks[i]),
            b: leaf(stream, &[outputs.1, ranks[i]]),
            scale: 0.5 + i as f64,
            magnitude: magnitude.then(|| leaf(stream + 1, &[outputs.1])),
        });
        row += ranks[i];
    }
    LowRank { a: leaf(99, &[row, INPUTS]), parts, dropout }
}

/// The formulas, with `weight [out, in]`: what is computed for each part of the outputs, one after another.
fn expected(
    update: &LowRank,
    weight: &Tensor,
    bias: &Tensor,
    x: &Tensor,
    training: bool,
) -> Tensor {
    let drops = training && update.dropout > 0.0;
    let thinned = if drops { x.dropout(update.dropout, true) } else { x.shallow_clone() };
    let mut columns = Vec::new();
    let mut at = 0;
    for part in &update.parts {
        let (start, count) = part.outputs;
        columns.push(x.mm(&weight.narrow(0, at, start - at).tr()));
        let rows = weight.narrow(0, start, count);
        let a = update.a.narrow(0, part.rows.0, part.rows.1);
        let added = thinned.mm(&a.tr()).mm(&part.b.tr()) * part.scale;
        let base = x.mm(&rows.tr());
        columns.push(match &part.magnitude {
            None => base + added,
            Some(magnitude) => {
                let sum: Tensor = &rows + part.b.mm(&a) * part.scale;
                let factor = magnitude / sum.detach().norm_scalaropt_dim(2, [1], false);
                base + (&factor - 1.0) * thinned.mm(&rows.tr()) + factor * added
            }
        });
        at = start + count;
    }
    let outputs = weight.size()[0];
    columns.push(x.mm(&weight.narrow(0, at, outputs - at).tr()));
    Tensor::cat(&columns, 1) + bias
}

/// `weight` on top of libtorch's gradients: the output, and those of `leaves`.
fn gradients(out: &Tensor, leaves: &[&Tensor]) -> Vec<Tensor> {
    let probe = normal(7, 1.0, &out.size());
    autograd::backward(&(out * probe).sum(Kind::Float)).unwrap();
    let mut all = vec![out.detach()];
    for leaf in leaves {
        all.push(autograd::take_grad(leaf).unwrap().expect("a gradient"));
    }
    all
}

struct Case {
    layout: WeightLayout,
    keep: Keep,
    update: LowRank,
    input_trains: bool,
}

fn check(what: &str, case: &Case) {
    for tokens in TOKENS {
        check_rows(&format!("{what}, {tokens} tokens"), tokens, case);
    }
}

fn check_rows(what: &str, tokens: i64, case: &Case) {
    let &Case { layout, keep, ref update, input_trains } = case;
    let (params, mut linear) = layer(layout, keep);
    let bias = linear.bias.as_ref().unwrap().shallow_clone();
    linear.change = Some(Change::LowRank(update.share()));
    let x = normal(1, 1.0, &[tokens, INPUTS]).set_requires_grad(input_trains);
    let stored = match &linear.matrix {
        Matrix::Dense { weight, .. } => weight.shallow_clone(),
        Matrix::FourBit { .. } => linear.matrix.in_out().unwrap().tr(),
    };
    let rows = if layout == WeightLayout::InOut { stored.tr() } else { stored.shallow_clone() };
    let mut leaves: Vec<&Tensor> = update.leaves().chain([&bias]).collect();
    leaves.extend(input_trains.then_some(&x));
    leaves.extend((keep == Keep::Trained).then_some(&stored));
    for training in [false, true] {
        let state = generator::get_state(Device::Cpu).unwrap();
        let want = gradients(&expected(update, &rows, &bias, &x, training), &leaves);
        generator::set_state(Device::Cpu, &state).unwrap();
        let got = gradients(&linear.forward(&x, training).unwrap(), &leaves);
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_close(&format!("{what} {training} {index}"), got, want, 2e-6);
            assert!(gap(&(got * 1.01), want) > 1e-4, "{what}: a change of 1 % would be seen");
        }
    }
    let x = x.detach();
    let merged = no_grad(|| linear.merged()).unwrap();
    let got = x.mm(&merged.0) + merged.1.unwrap();
    let want = expected(update, &rows, &bias, &x, false);
    assert_close(&format!("{what} merged"), &got, &want, 2e-6);
    drop(params);
}

fn places() -> [Vec<(i64, i64)>; 4] {
    let all = vec![(0, 5), (5, 3), (8, 4)];
    let with_a_gap = vec![all[0], all[2]];
    let first = vec![all[0]];
    let middle = vec![all[1]];
    [all, with_a_gap, first, middle]
}

#[test]
fn values_and_gradients_are_those_of_the_formulas() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for places in places() {
        for magnitudes in [false, true] {
            for dropout in [0.0, 0.4] {
                for (keep, input_trains) in
                    [(Keep::Frozen, true), (Keep::Frozen, false), (Keep::Trained, true)]
                {
                    let update = low_rank(&places, magnitudes, dropout);
                    let what = format!("{places:?} {magnitudes} {dropout} {keep:?} {input_trains}");
                    let layout = WeightLayout::OutIn;
                    check(&what, &Case { layout, keep, update, input_trains });
                }
            }
        }
    }
}

#[test]
fn a_conv1d_layer_is_the_same_the_other_way_round() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for magnitudes in [false, true] {
        for dropout in [0.0, 0.4] {
            for keep in [Keep::Frozen, Keep::Trained] {
                let update = low_rank(&[(0, 12)], magnitudes, dropout);
                let what = format!("{magnitudes} {dropout} {keep:?}");
                let layout = WeightLayout::InOut;
                check(&what, &Case { layout, keep, update, input_trains: true });
            }
        }
    }
}

#[test]
fn over_4_bits_it_is_what_it_is_over_the_numbers_they_stand_for() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for code in [Code::Nf4, Code::Fp4] {
        for places in places() {
            for magnitudes in [false, true] {
                let update = low_rank(&places, magnitudes, 0.3);
                let keep = Keep::FourBit { code, double_quant: true, transposed: false };
                let what = format!("{code:?} {places:?} {magnitudes}");
                let layout = WeightLayout::OutIn;
                check(&what, &Case { layout, keep, update, input_trains: true });
            }
        }
    }
}

#[test]
fn nothing_is_recorded_where_nothing_asks_for_a_gradient() {
    let (_params, mut linear) = layer(WeightLayout::OutIn, Keep::Frozen);
    linear.change = Some(Change::LowRank(low_rank(&[(0, 5)], false, 0.0)));
    let x = normal(1, 1.0, &[TOKENS[0], INPUTS]);
    assert!(linear.forward(&x, true).unwrap().requires_grad());
    assert!(!no_grad(|| linear.forward(&x, true)).unwrap().requires_grad());
}

/// PEFT divides by 0 there.
#[test]
fn a_row_of_zeros_stays_one() {
    let (params, mut linear) = layer(WeightLayout::OutIn, Keep::Frozen);
    let mut update = low_rank(&[(0, 5)], true, 0.0);
    no_grad(|| {
        let _ = params.get("0.weight").unwrap().get(2).zero_();
        let _ = update.parts[0].b.zero_();
        let _ = update.parts[0].magnitude.as_ref().unwrap().get(2).zero_();
    });
    update.dropout = 0.0;
    linear.change = Some(Change::LowRank(update));
    let x = normal(1, 1.0, &[TOKENS[0], INPUTS]);
    let out = linear.forward(&x, false).unwrap() - linear.bias.as_ref().unwrap();
    assert_eq!(out.select(1, 2).abs().max().double_value(&[]), 0.0);
    assert!(bool::try_from(out.isfinite().all()).unwrap());
}

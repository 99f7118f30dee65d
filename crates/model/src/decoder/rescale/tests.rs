//! Against the same formulas in plain autograd.

use super::*;
use crate::decoder::linear::{Change, Matrix, WeightLayout};
use crate::layout::{Affine, BlockSpec, Init, PartSpec};
use crate::params::{Keep, Params};
use crate::precision::Precision;
use crate::testing::{assert_close, gap, normal};
use tch::{Device, Kind, no_grad};
use torch_ext::autograd;
use torch_ext::four_bit::Code;

const INPUTS: i64 = 6;
const PLACES: [(i64, i64); 3] = [(0, 5), (5, 3), (8, 4)];

fn layer(keep: Keep) -> Linear {
    let part = |i: usize| PartSpec::new(format!("{i}.weight"), &[PLACES[i].1, INPUTS], Init::Zeros);
    let bias = PartSpec::new("0.bias".into(), &[12], Init::Zeros);
    let specs = [BlockSpec { parts: (0..3).map(part).collect() }, BlockSpec { parts: vec![bias] }];
    let keeps = [keep, Keep::Trained];
    let mut params =
        Params::allocate(&specs, Device::Cpu, Precision::Fp32, |id| keeps[id]).unwrap();
    for (b, spec) in specs.iter().enumerate() {
        for (p, part) in spec.parts.iter().enumerate() {
            params.fill(b, p, &normal((10 * b + p) as u64, 0.5, &part.shape)).unwrap();
        }
    }
    Linear::new(&params, Affine { weight: 0, bias: Some(1) }, WeightLayout::OutIn)
}

/// `i`, `o` or `-` for each of the layers: its inputs are multiplied, its outputs, nothing.
fn rescale(kinds: &str) -> Rescale {
    let leaf =
        |stream, shape: &[i64]| (normal(stream, 0.3, shape) + 1.0).detach().set_requires_grad(true);
    let parts = kinds.chars().zip(PLACES).enumerate().map(|(i, (kind, outputs))| {
        let stream = 50 + i as u64;
        let factors = match kind {
            'i' => Factors::Inputs(leaf(stream, &[1, INPUTS])),
            'o' => Factors::Outputs(leaf(stream, &[outputs.1, 1])),
            _ => Factors::None,
        };
        Part { outputs, factors }
    });
    Rescale { parts: parts.collect() }
}

fn expected(change: &Rescale, weight: &Tensor, bias: &Tensor, x: &Tensor) -> Tensor {
    let columns: Vec<Tensor> = change
        .parts
        .iter()
        .map(|part| {
            let (start, count) = part.outputs;
            let (rows, bias) = (weight.narrow(0, start, count), bias.narrow(0, start, count));
            match &part.factors {
                Factors::None => x.mm(&rows.tr()) + bias,
                Factors::Inputs(factors) => (x * factors).mm(&rows.tr()) + bias,
                Factors::Outputs(factors) => (x.mm(&rows.tr()) + bias) * factors.tr(),
            }
        })
        .collect();
    Tensor::cat(&columns, 1)
}

fn gradients(out: &Tensor, leaves: &[&Tensor]) -> Vec<Tensor> {
    let probe = normal(7, 1.0, &out.size());
    autograd::backward(&(out * probe).sum(Kind::Float)).unwrap();
    let mut all = vec![out.detach()];
    for leaf in leaves {
        all.push(autograd::take_grad(leaf).unwrap().expect("a gradient"));
    }
    all
}

#[test]
fn values_and_gradients_are_those_of_the_formulas() {
    let four_bit = Keep::FourBit { code: Code::Nf4, double_quant: false, transposed: false };
    for keep in [Keep::Frozen, Keep::Trained, four_bit] {
        for (kinds, tokens) in ["ooo", "o-o", "-o-", "iii", "i--", "-io", "oi-"]
            .into_iter()
            .flat_map(|kinds| [(kinds, 7), (kinds, 300)])
        {
            let (mut linear, change) = (layer(keep), rescale(kinds));
            let bias = linear.bias.as_ref().unwrap().shallow_clone();
            linear.change = Some(Change::Rescale(change.share()));
            let x = normal(1, 1.0, &[tokens, INPUTS]).set_requires_grad(true);
            let weight = match &linear.matrix {
                Matrix::Dense { weight, .. } => weight.shallow_clone(),
                Matrix::FourBit { .. } => linear.matrix.in_out().unwrap().tr(),
            };
            let mut leaves: Vec<&Tensor> = change.leaves().chain([&bias, &x]).collect();
            leaves.extend((keep == Keep::Trained).then_some(&weight));
            let want = gradients(&expected(&change, &weight, &bias, &x), &leaves);
            let got = gradients(&linear.forward(&x, true).unwrap(), &leaves);
            for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_close(&format!("{keep:?} {kinds} {index}"), got, want, 2e-6);
                assert!(gap(&(got * 1.01), want) > 1e-4, "{kinds}");
            }
            let (merged, merged_bias) = no_grad(|| linear.merged()).unwrap();
            let got = x.detach().mm(&merged) + merged_bias.unwrap();
            assert_close(&format!("{kinds} merged"), &got, &want[0], 2e-6);
        }
    }
}

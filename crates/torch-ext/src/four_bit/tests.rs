//! Against what bitsandbytes 0.50.0 made on the CPU: `tests/fixtures/parity/four-bit`.

use std::collections::HashMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::{BLOCK, Code, FourBit, Scales, nested_map, quantise_by_kernel, quantise_by_operations};
use crate::testing::random;

const CODES: [(Code, &str); 2] = [(Code::Nf4, "nf4"), (Code::Fp4, "fp4")];
const CASES: [&str; 6] = ["matrix", "ragged", "half", "ties", "zeros", "denormal"];

type Golden = HashMap<String, Tensor>;

fn golden(name: &str) -> Golden {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parity/four-bit");
    let tensors = Tensor::read_safetensors(folder.join(format!("{name}.safetensors"))).unwrap();
    tensors.into_iter().collect()
}

/// The offset in the text that bitsandbytes stores beside a weight.
fn offset(golden: &Golden, weight: &str, code: &str) -> f32 {
    let name = format!("{weight}.quant_state.bitsandbytes__{code}");
    let text = String::from_utf8(Vec::<u8>::try_from(&golden[&name]).unwrap()).unwrap();
    let (_, number) = text.split_once("\"nested_offset\": ").unwrap();
    number.trim_end_matches('}').parse().unwrap()
}

/// Equal to the bit; signs of zeros count.
fn same(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!((got.size(), got.kind()), (want.size(), want.kind()), "{what}");
    let bits = |t: &Tensor| match t.kind() {
        Kind::Float => t.view_dtype(Kind::Int),
        Kind::BFloat16 | Kind::Half => t.view_dtype(Kind::Int16),
        _ => t.shallow_clone(),
    };
    assert!(bits(got).equal(&bits(want)), "{what}:\n{got}\n{want}");
}

fn check(found: &FourBit, golden: &Golden, (weight, code): (&str, &str)) {
    let stored = |suffix: &str| &golden[&format!("{weight}{suffix}")];
    let what = format!("{code} {weight}");
    same(&found.packed().unsqueeze(1), stored(""), &what);
    match found.scales() {
        Scales::Plain { absmax } => same(absmax, stored(".absmax"), &what),
        Scales::Nested { codes, absmax, offset: mean } => {
            same(codes, stored(".absmax"), &what);
            same(absmax, stored(".nested_absmax"), &what);
            assert_eq!(mean.to_bits(), offset(golden, weight, code).to_bits(), "{what}");
        }
    }
}

#[test]
fn codes_scales_and_numbers_are_bitsandbytes() {
    for (code, name) in CODES {
        let golden = golden(name);
        for case in CASES {
            let source = &golden[&format!("{case}.source")];
            for (kind, nested) in [("plain", false), ("nested", true)] {
                let weight = format!("{case}.{kind}");
                let found = FourBit::quantise(source, code, nested).unwrap();
                check(&found, &golden, (&weight, name));
                // Whether FP4's second zero has a sign depends on which of bitsandbytes' kernels ran.
                let numbers = found.dequantise(source.kind()).unwrap() + 0.0;
                same(&numbers, &(&golden[&format!("{weight}.dequantised")] + 0.0), &weight);
            }
        }
    }
}

#[test]
fn scales_of_scales_have_blocks_too() {
    let golden = golden("nf4");
    let weight = golden["long.rows"].to_kind(Kind::Float) * &golden["long.factors"];
    let found = FourBit::quantise(&weight, Code::Nf4, true).unwrap();
    check(&found, &golden, ("long", "nf4"));
    // 300 scales: each its code's value times the scale of its 256, and the mean added.
    let map = &golden["long.nested_quant_map"];
    let of_block = golden["long.nested_absmax"].repeat_interleave_self_int(256, 0, None);
    let scales = map.index_select(0, &golden["long.absmax"].to_kind(Kind::Int))
        * of_block.narrow(0, 0, 300)
        + f64::from(offset(&golden, "long", "nf4"));
    let byte = golden["long"].to_kind(Kind::Int).view(-1);
    let codes = Tensor::stack(&[byte.divide_scalar_mode(16, "floor"), byte.remainder(16)], 1);
    let values = golden["long.quant_map"].index_select(0, &codes.view(-1)).view([300, 64]);
    same(&found.dequantise(Kind::Float).unwrap(), &(values * scales.unsqueeze(1)), "long");
}

#[test]
fn the_tables_are_bitsandbytes() {
    for (code, name) in CODES {
        let golden = golden(name);
        same(&Tensor::from_slice(&code.values()), &golden["ties.plain.quant_map"], name);
        same(&Tensor::from_slice(nested_map()), &golden["ties.nested.nested_quant_map"], name);
        let by_value = code.order().map(|c| code.values()[usize::from(c)]);
        assert!(by_value.is_sorted(), "{by_value:?}");
    }
    assert_eq!(Code::Fp4.values()[..4], [0.0, 0.0625 / 12.0, 2.0 / 3.0, 1.0]);
    assert_eq!(Code::Nf4.values()[6..9], [-0.091_050_036, 0.0, 0.079_580_3]);
}

#[test]
fn kernels_and_operations_agree_to_the_bit() {
    for (code, name) in CODES {
        for (shape, kind) in [
            (&[70, 64][..], Kind::Float),
            (&[3, 47], Kind::BFloat16),
            (&[2, 3, 50], Kind::Half),
            (&[1, 1], Kind::Float),
            (&[0, 5], Kind::Float),
            (&[128], Kind::BFloat16),
        ] {
            let weight = random(shape, 3, kind, Device::Cpu).detach();
            let (packed, absmax) = quantise_by_kernel("test", &weight, code).unwrap();
            let (other, scales) = quantise_by_operations(&weight, code);
            let what = format!("{name} {shape:?}");
            same(&packed, &other, &what);
            same(&absmax, &scales, &what);
            for nested in [false, true] {
                let found = FourBit::quantise(&weight, code, nested).unwrap();
                for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
                    let out = Tensor::empty(shape, (kind, Device::Cpu));
                    found.dequantise_by_operations(&out);
                    same(&found.dequantise(kind).unwrap(), &out, &what);
                }
            }
        }
    }
}

#[test]
fn numbers_come_back_as_the_nearest_value_of_their_block() {
    let weight = random(&[6, 200], 1, Kind::Double, Device::Cpu).detach();
    for (code, name) in CODES {
        let found = FourBit::quantise(&weight, code, false).unwrap();
        let got = Vec::<f32>::try_from(found.dequantise(Kind::Float).unwrap().view(-1)).unwrap();
        let want = Vec::<f64>::try_from(weight.view(-1)).unwrap();
        for (numbers, got) in want.chunks(64).zip(got.chunks(64)) {
            let most = numbers.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            for (x, &got) in numbers.iter().zip(got) {
                let distances = code.values().map(|v| (f64::from(v) * most - x).abs());
                let nearest = distances.into_iter().fold(f64::INFINITY, f64::min);
                assert!((f64::from(got) - x).abs() <= nearest + 1e-6 * most, "{name} {x}: {got}");
            }
        }
    }
}

#[test]
fn double_quantisation_takes_0_127_bits_of_constants_a_number() {
    let weight = random(&[1024, 1024], 1, Kind::BFloat16, Device::Cpu).detach();
    let numbers = 1024.0 * 1024.0;
    let bits = |nested| {
        let found = FourBit::quantise(&weight, Code::Nf4, nested).unwrap();
        found.bytes() as f64 * 8.0 / numbers - 4.0
    };
    assert_eq!(bits(false), 0.5);
    assert_eq!(bits(true), 8.0 / 64.0 + 32.0 / (64.0 * 256.0));
    assert!((bits(true) - 0.127).abs() < 1e-4);
    // What is lost beyond the fp32 scales: at most half a step of the 8-bit map, 0.7 % of the largest difference to the mean.
    let plain = FourBit::quantise(&weight, Code::Nf4, false).unwrap();
    let nested = FourBit::quantise(&weight, Code::Nf4, true).unwrap();
    assert!(plain.packed().equal(nested.packed()));
    let [plain, nested] = [plain, nested].map(|w| w.dequantise(Kind::Float).unwrap());
    let distance = (&plain - &nested).abs().max().double_value(&[]);
    assert!(distance > 0.0 && distance < 0.008 * plain.max().double_value(&[]), "{distance}");
}

#[test]
fn numbers_go_into_rows_of_a_larger_tensor() {
    let weight = random(&[4, 70], 1, Kind::Float, Device::Cpu);
    let found = FourBit::quantise(&weight, Code::Nf4, true).unwrap();
    let whole = Tensor::zeros([6, 70], (Kind::BFloat16, Device::Cpu));
    found.dequantise_into(&whole.narrow(0, 1, 4)).unwrap();
    same(&whole.narrow(0, 1, 4), &found.dequantise(Kind::BFloat16).unwrap(), "rows");
    for row in [0, 5] {
        assert_eq!(whole.get(row).abs().max().double_value(&[]), 0.0);
    }
    let again = FourBit::from_parts(found.packed(), found.scales(), Code::Nf4, &[4, 70]).unwrap();
    let copy = again.shallow_clone().to_device(Device::Cpu);
    assert_eq!((copy.shape(), copy.code(), copy.bytes()), (&[4, 70][..], Code::Nf4, 140 + 5 + 4));
    same(&copy.dequantise(Kind::Half).unwrap(), &found.dequantise(Kind::Half).unwrap(), "copy");
}

#[test]
fn a_view_is_quantised_as_its_rows_lie() {
    let weight = random(&[70, 30], 1, Kind::BFloat16, Device::Cpu).detach();
    let [view, copy] = [weight.tr(), weight.tr().contiguous()]
        .map(|w| FourBit::quantise(&w, Code::Fp4, false).unwrap());
    assert!(view.packed().equal(copy.packed()));
    assert_eq!(view.shape(), [30, 70]);
}

#[test]
fn the_mean_of_scales_does_not_depend_on_the_number_of_threads() {
    let weight = random(&[3001, 1024], 2, Kind::Float, Device::Cpu).detach();
    let offset = || match FourBit::quantise(&weight, Code::Nf4, true).unwrap().scales {
        Scales::Nested { offset, .. } => offset,
        Scales::Plain { .. } => unreachable!(),
    };
    let threads = crate::device::threads();
    crate::device::set_threads(1);
    let one = offset();
    crate::device::set_threads(4);
    let four = offset();
    crate::device::set_threads(threads);
    assert_eq!(one.to_bits(), four.to_bits());
}

#[test]
fn what_does_not_fit_is_named() {
    let message = |result: crate::Result<FourBit>| result.unwrap_err().to_string();
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [3, 66] {
            let weight = Tensor::ones([70], (Kind::Float, Device::Cpu));
            let _ = weight.get(at).fill_(f64::from(wrong));
            let error = message(FourBit::quantise(&weight.view([7, 10]), Code::Nf4, true));
            assert_eq!(error, "FourBit::quantise: a weight of [7, 10] holds NaN or infinity");
        }
    }
    let ids = Tensor::zeros([3], (Kind::Int64, Device::Cpu));
    let error = message(FourBit::quantise(&ids, Code::Nf4, true));
    assert_eq!(error, "FourBit::quantise: a weight of Int64 is not of floats");
    let weight = random(&[3, 50], 1, Kind::Float, Device::Cpu).detach();
    let found = FourBit::quantise(&weight, Code::Nf4, false).unwrap();
    let error = message(FourBit::from_parts(found.packed(), found.scales(), Code::Nf4, &[3, 51]));
    assert_eq!(
        error,
        "FourBit::from_parts: packed is 75 of Uint8 on Cpu; a weight of [3, 51] takes 77 of Uint8 on Cpu"
    );
    let absmax = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    let scales = Scales::Plain { absmax };
    let error = message(FourBit::from_parts(found.packed(), &scales, Code::Nf4, &[3, 50]));
    assert!(error.contains("absmax is 4 of Float on Cpu"), "{error}");
    let error = found.dequantise(Kind::Double).unwrap_err().to_string();
    assert_eq!(error, "FourBit::dequantise: to Double; use Float, BFloat16 or Half");
    let out = Tensor::zeros([50, 3], (Kind::Float, Device::Cpu)).tr();
    let error = found.dequantise_into(&out).unwrap_err().to_string();
    assert_eq!(
        error,
        "FourBit::dequantise: out [3, 50] (strides [1, 3]) is not 150 contiguous numbers"
    );
}

#[test]
fn nothing_is_nothing() {
    let empty = Tensor::zeros([0, BLOCK], (Kind::BFloat16, Device::Cpu));
    for nested in [false, true] {
        let found = FourBit::quantise(&empty, Code::Fp4, nested).unwrap();
        assert_eq!((found.bytes(), found.dequantise(Kind::Half).unwrap().size()), (0, vec![0, 64]));
        if let Scales::Nested { offset, .. } = found.scales() {
            assert_eq!(*offset, 0.0);
        }
    }
}

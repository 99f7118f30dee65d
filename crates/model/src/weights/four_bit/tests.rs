//! Against the tensors that bitsandbytes 0.50.0 stored: `tests/fixtures/parity/four-bit`.

use super::{from_files, is_quantised, python_float, quantization_config, to_tensors, weight_of};
use crate::precision::Precision;
use crate::weights::{WeightFiles, write_tensors};
use serde_json::json;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};
use torch_ext::four_bit::{Code, FourBit};

fn golden(code: &str) -> WeightFiles {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parity/four-bit");
    WeightFiles::open_file(&folder.join(format!("{code}.safetensors"))).unwrap()
}

const SOURCES: [(&str, Precision); 6] = [
    ("matrix", Precision::Bf16),
    ("ragged", Precision::Fp32),
    ("half", Precision::Fp16),
    ("ties", Precision::Fp32),
    ("zeros", Precision::Fp32),
    ("denormal", Precision::Fp32),
];

#[test]
fn what_is_written_is_what_bitsandbytes_writes() {
    for (code, name) in [(Code::Nf4, "nf4"), (Code::Fp4, "fp4")] {
        let files = golden(name);
        for (source, dtype) in SOURCES {
            for (kind, nested) in [("plain", false), ("nested", true)] {
                let stored = format!("{source}.{kind}");
                let weight = files.tensor(&format!("{source}.source")).unwrap();
                let weight = FourBit::quantise(&weight, code, nested).unwrap();
                let tensors = to_tensors(&stored, &weight, dtype);
                for (name, tensor) in &tensors {
                    let theirs = files.tensor(name).unwrap();
                    assert_eq!(tensor.kind(), theirs.kind(), "{name}");
                    assert!(tensor.equal(&theirs), "{name}: {tensor} {theirs}");
                }
                let beside = files.names().filter(|name| name.starts_with(&format!("{stored}.")));
                // All but the weight itself, and the numbers that only the fixture has.
                assert_eq!(tensors.len() - 1, beside.count() - 1, "{stored}");
            }
        }
    }
}

#[test]
fn what_bitsandbytes_wrote_is_read() {
    for (code, name) in [(Code::Nf4, "nf4"), (Code::Fp4, "fp4")] {
        let files = golden(name);
        for (source, dtype) in SOURCES {
            for kind in ["plain", "nested"] {
                let stored = format!("{source}.{kind}");
                assert!(is_quantised(&files, &stored) && !is_quantised(&files, source));
                let weight = from_files(&files, &stored).unwrap();
                assert_eq!(weight.code(), code);
                let numbers = weight.dequantise(dtype.kind()).unwrap();
                let theirs = files.tensor(&format!("{stored}.dequantised")).unwrap();
                assert_eq!(numbers.size(), theirs.size());
                assert!(numbers.equal(&theirs), "{stored}");
            }
        }
    }
}

/// A file with one 4-bit weight `w`, its tensors changed.
fn changed(dir: &Path, change: impl Fn(&mut Vec<(String, Tensor)>)) -> PathBuf {
    let numbers = Tensor::linspace(-1.0, 1.0, 150, (Kind::Float, tch::Device::Cpu)).view([3, 50]);
    let weight = FourBit::quantise(&numbers, Code::Nf4, true).unwrap();
    let mut tensors = to_tensors("w", &weight, Precision::Bf16);
    change(&mut tensors);
    let path = dir.join("some.safetensors");
    write_tensors(&path, &tensors).unwrap();
    path
}

/// Changes the text of the state.
fn with_state<'a>(from: &'a str, to: &'a str) -> impl Fn(&mut Vec<(String, Tensor)>) + 'a {
    move |tensors| {
        let (_, state) = tensors.last_mut().unwrap();
        let text = String::from_utf8(Vec::<u8>::try_from(&*state).unwrap()).unwrap();
        assert!(text.contains(from), "{text}");
        *state = Tensor::from_slice(text.replace(from, to).as_bytes());
    }
}

type Change<'a> = dyn Fn(&mut Vec<(String, Tensor)>) + 'a;

#[test]
fn what_does_not_fit_names_file_and_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let error = |change: &Change<'_>| {
        let path = changed(dir.path(), change);
        let error = from_files(&WeightFiles::open_file(&path).unwrap(), "w").unwrap_err();
        let text = error.to_string();
        let start = format!("{}: ", path.display());
        text.strip_prefix(&start).unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    let state = "w.quant_state.bitsandbytes__nf4";
    for (from, to, problem) in [
        ("\"blocksize\": 64", "\"blocksize\": 128", "has blocks of 128 numbers; only 64 is read"),
        ("\"nested_blocksize\": 256", "\"nested_blocksize\": 64", "has blocks of 64 scales"),
        ("nf4", "int4", "says quant_type `int4`; use nf4 or fp4"),
        ("\"nested_offset\"", "\"offset\"", "has one of nested_blocksize and nested_offset"),
        ("\"shape\"", "\"size\"", "is no quantisation state: missing field `shape`"),
        ("[3, 50]", "[3, 51]", "does not fit the weight: FourBit::from_parts: packed is 75"),
        ("[3, 50]", "[-3, -50]", "does not fit the weight: FourBit::from_parts: no tensor has"),
        (
            "[3, 50]",
            "[4294967296, 4294967296, 9]",
            "does not fit the weight: FourBit::from_parts: no tensor has",
        ),
    ] {
        let text = error(&with_state(from, to));
        assert!(text.starts_with(&format!("{state} {problem}")), "{text}");
    }
    for lost in ["w.absmax", "w.quant_map", "w.nested_absmax", "w.nested_quant_map"] {
        let text = error(&|tensors| tensors.retain(|(name, _)| name != lost));
        assert_eq!(text, format!("has no tensor {lost}"));
    }
    let text = error(&|tensors| tensors.retain(|(name, _)| name != state));
    assert_eq!(text, format!("w has no {state}, so it is no weight in 4 bits"));
    let text = error(&|tensors| tensors[1].1 = &tensors[1].1 * 1.01);
    assert_eq!(text, "w.quant_map has other values than bitsandbytes' own table");
    let text = error(&|tensors| tensors[0].1 = tensors[0].1.to_kind(Kind::BFloat16));
    assert_eq!(text, "w is stored as BFloat16; use `bnb_4bit_quant_storage` uint8");
}

#[test]
fn auxiliary_tensors_belong_to_a_weight() {
    let numbers = Tensor::ones([2, 3], (Kind::Float, tch::Device::Cpu));
    for (code, nested) in [(Code::Nf4, true), (Code::Fp4, false)] {
        let weight = FourBit::quantise(&numbers, code, nested).unwrap();
        let tensors = to_tensors("a.weight", &weight, Precision::Fp32);
        assert!(tensors[1..].iter().all(|(name, _)| weight_of(name) == Some("a.weight")));
        assert_eq!(tensors.len(), if nested { 6 } else { 4 });
    }
    assert_eq!([weight_of("a.weight"), weight_of("a.bias"), weight_of("nested_absmax")], [None; 3]);
}

#[test]
fn numbers_are_written_as_python_writes_them() {
    for (number, text) in [
        (0.0, "0.0"),
        (0.052_312, "0.052312"),
        (1e-4, "0.0001"),
        (5e-5, "5e-05"),
        (9.999_999_350_456_404e-39, "9.999999350456404e-39"),
        (1e16, "1e+16"),
        (-2.5e-7, "-2.5e-07"),
    ] {
        assert_eq!(python_float(number), text);
    }
}

/// `BitsAndBytesConfig(load_in_4bit=True, ...).to_dict()` of transformers 5.23.
#[test]
fn the_config_is_that_of_transformers() {
    let config = quantization_config(Code::Nf4, true, Precision::Bf16, None);
    assert_eq!(
        config,
        json!({
            "quant_method": "bitsandbytes", "_load_in_8bit": false, "_load_in_4bit": true, "llm_int8_threshold": 6.0,
            "llm_int8_skip_modules": null, "llm_int8_enable_fp32_cpu_offload": false, "llm_int8_has_fp16_weight": false,
            "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true, "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8", "load_in_4bit": true, "load_in_8bit": false
        })
    );
    let config = quantization_config(Code::Fp4, false, Precision::Fp16, Some(&["lm_head"]));
    assert_eq!(config["llm_int8_skip_modules"], json!(["lm_head"]));
    assert_eq!(config["bnb_4bit_quant_type"], "fp4");
}

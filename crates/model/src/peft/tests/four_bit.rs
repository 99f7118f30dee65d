//! Adapters over weights in 4 bits: what they compute is what they compute over the numbers that these stand for.

use super::*;
use crate::testing::{assert_close, gap};
use crate::weights::write;

fn quantised(
    dir: &Path,
    adapter: Option<&Adapter>,
    quantization: &Quantization,
    trainable: bool,
) -> Decoder {
    let options = LoadOptions { trainable, ..LoadOptions::default() };
    let quantization = Some(quantization);
    let loading = Loading { options, seed: 4, adapter, quantization, ..Loading::default() };
    Decoder::load_with(dir, &loading).unwrap()
}

fn kinds() -> [Quantization; 3] {
    let nf4 = Quantization::default();
    [
        Quantization { quant_type: QuantType::Fp4, ..nf4.clone() },
        Quantization { double_quant: false, ..nf4.clone() },
        nf4,
    ]
}

/// The model in full whose weights are what the 4 bits stand for.
fn dequantised(decoder: &Decoder) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = decoder.config().to_hf_json(Precision::Fp32);
    fs_err::write(dir.path().join("config.json"), config.to_string()).unwrap();
    write(dir.path(), decoder.params().iter(), Precision::Fp32, u64::MAX).unwrap();
    dir
}

#[test]
fn logits_and_gradients_are_those_over_the_dequantised_weights() {
    for architecture in Architecture::ALL {
        let dir = base(architecture);
        for quantization in kinds() {
            let frozen = quantised(dir.path(), None, &quantization, false);
            let whole = dequantised(&frozen);
            let far = gap(&logits(&frozen), &logits(&plain(dir.path())));
            assert!(far > 1e-3, "{far}: quantising changes something");
            assert_close("plain", &logits(&frozen), &logits(&plain(whole.path())), 1e-5);
            for (name, adapter) in every_method() {
                let what = format!("{architecture:?} {quantization:?} {name}");
                let mut four_bit = quantised(dir.path(), Some(&adapter), &quantization, true);
                let mut dense = load(whole.path(), &adapter);
                shake(&mut four_bit);
                shake(&mut dense);
                assert_close(&what, &logits(&four_bit), &logits(&dense), 1e-5);
                let (got, want) = (gradients(&mut four_bit), gradients(&mut dense));
                assert_eq!(got.len(), want.len());
                for ((parameter, got), (_, want)) in got.iter().zip(&want) {
                    assert_close(&format!("{what} {parameter}"), got, want, 1e-5);
                }
            }
        }
    }
}

#[test]
fn weights_in_4_bits_take_an_eighth_of_the_memory_and_their_scales() {
    let dir = base(Architecture::Llama);
    let whole = plain(dir.path());
    let config = whole.config();
    let linears: Vec<usize> = linear_modules(config, &layout(config))
        .iter()
        .map(|module| (module.inputs * module.outputs) as usize)
        .collect();
    let rest = config.num_parameters() as usize - linears.iter().sum::<usize>();
    for quantization in kinds() {
        let adapter = lora(|_| {});
        let decoder = quantised(dir.path(), Some(&adapter), &quantization, true);
        let held: usize = linears
            .iter()
            .map(|numbers| {
                let blocks = numbers.div_ceil(64);
                let double = quantization.double_quant;
                let scales = if double { blocks + 4 * blocks.div_ceil(256) } else { 4 * blocks };
                numbers.div_ceil(2) + scales
            })
            .sum();
        let [own, added] = decoder.params().bytes();
        assert_eq!(own, held + 4 * rest, "{quantization:?}");
        assert_eq!(added, 4 * decoder.params().num_trainable());
    }
    let [own, added] = whole.params().bytes();
    assert_eq!((own, added), (4 * config.num_parameters() as usize, 0));
    // Trained in bf16, a parameter has its master and its copy; gradients are fp32.
    let options = LoadOptions { precision: Precision::Bf16, ..TRAINABLE };
    let mut decoder = try_load(dir.path(), &lora(|_| {}), options).unwrap();
    let trained = decoder.params().num_trainable();
    assert_eq!(decoder.params().bytes(), [2 * config.num_parameters() as usize, 6 * trained]);
    assert_eq!(decoder.params().grad_bytes(), 0);
    let _ = gradients(&mut decoder);
    assert_eq!(decoder.params().grad_bytes(), 4 * trained);
}

#[test]
fn the_model_without_its_adapter_is_the_quantised_base() {
    let dir = base(Architecture::Gpt2);
    let quantization = Quantization::default();
    let before = logits(&quantised(dir.path(), None, &quantization, false));
    let mut decoder = quantised(dir.path(), Some(&lora(|_| {})), &quantization, true);
    let without = decoder.without_adapter().unwrap();
    descend(&mut decoder);
    assert!(logits(&without).equal(&before) && !logits(&decoder).equal(&before));
}

#[test]
fn a_saved_model_in_4_bits_is_the_same_model() {
    for architecture in Architecture::ALL {
        let dir = base(architecture);
        for mut quantization in kinds() {
            for skip in [false, true] {
                let skipped = if architecture == Architecture::Gpt2 { "c_attn" } else { "o_proj" };
                quantization.skip_modules = if skip { names(&[skipped]) } else { Vec::new() };
                let what = format!("{architecture:?} {quantization:?}");
                let decoder = quantised(dir.path(), None, &quantization, false);
                let saved = tempfile::tempdir().unwrap();
                decoder.save(saved.path(), Precision::Fp32, u64::MAX).unwrap();
                let again = plain(saved.path());
                assert!(logits(&again).equal(&logits(&decoder)), "{what}");
                assert_eq!(again.params().bytes(), decoder.params().bytes(), "{what}");
                let shards = tempfile::tempdir().unwrap();
                again.save(shards.path(), Precision::Fp32, 4 << 10).unwrap();
                assert!(logits(&plain(shards.path())).equal(&logits(&decoder)), "{what}");
                let text = fs_err::read_to_string(saved.path().join("config.json")).unwrap();
                let config: serde_json::Value = serde_json::from_str(&text).unwrap();
                let stored = &config["quantization_config"];
                assert_eq!(stored["bnb_4bit_use_double_quant"], quantization.double_quant);
                let code = if quantization.quant_type == QuantType::Nf4 { "nf4" } else { "fp4" };
                assert_eq!(stored["bnb_4bit_quant_type"], code);
                let whole = stored["llm_int8_skip_modules"].as_array();
                let count = if skip { Some(4) } else { None };
                assert_eq!(whole.map(Vec::len), count, "{stored}");
                // In full again: the numbers that the 4 bits stand for, and no trace of these.
                let loading = Loading { whole: true, ..Loading::default() };
                let dense = Decoder::load_with(saved.path(), &loading).unwrap();
                assert_close(&what, &logits(&dense), &logits(&decoder), 1e-5);
                let full = tempfile::tempdir().unwrap();
                dense.save(full.path(), Precision::Fp32, u64::MAX).unwrap();
                let text = fs_err::read_to_string(full.path().join("config.json")).unwrap();
                assert!(!text.contains("quantization_config"));
                assert!(logits(&plain(full.path())).equal(&logits(&dense)));
            }
        }
    }
}

/// Rounding them too would change what the files mean.
#[test]
fn a_layer_beside_one_in_4_bits_stays_whole() {
    let dir = base(Architecture::Mistral);
    let decoder = quantised(dir.path(), None, &Quantization::default(), false);
    let saved = tempfile::tempdir().unwrap();
    let name = "model.layers.0.self_attn.k_proj.weight";
    let mut tensors = Vec::new();
    for (own, stored) in decoder.params().stored() {
        match stored {
            crate::params::Stored::FourBit(weight) if own != name => {
                tensors.extend(crate::weights::four_bit::to_tensors(own, weight, Precision::Fp32));
            }
            _ => tensors.push((own.to_owned(), plain(dir.path()).params().get(own).unwrap())),
        }
    }
    crate::weights::write_tensors(&saved.path().join("model.safetensors"), &tensors).unwrap();
    fs_err::copy(dir.path().join("config.json"), saved.path().join("config.json")).unwrap();
    let mixed = plain(saved.path());
    let exact = plain(dir.path()).params().get(name).unwrap();
    assert!(mixed.params().get(name).unwrap().equal(&exact));
    let beside = "model.layers.0.self_attn.q_proj.weight";
    let [mixed, rounded] = [&mixed, &decoder].map(|decoder| decoder.params().get(beside).unwrap());
    assert!(mixed.equal(&rounded));
}

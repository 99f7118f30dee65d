//! Against PEFT's adapters on the tiny random models: `tests/fixtures/parity/adapters`.
//!
//! Every comparison is followed by one that must fail: the same with a change of 1 %.

use anyhow::{Context as _, Result, ensure};
use data::batch::Branches;
use model::generate::{Engine, Request, Sampling, StopRules};
use model::peft::{Adapter, AdapterFiles, InitLora, Lora, Method, Targets};
use model::{Checkpointing, Decoder, Head, LoadOptions, Loading, Precision};
use objectives::bradley_terry;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor, no_grad};
use temper_tests::close::{
    GRADIENT, LOGITS, LOSS, WEIGHT, assert_close, assert_differs, close_number, report,
};
use temper_tests::fixtures::{self, Tensors};
use temper_tests::flat::Flat;
use temper_tests::perturb::scale;
use torch_ext::autograd;
use training::branches;

/// Logits in bf16 against fp32.
const BF16: f64 = 0.15;

/// One adapter fixture.
struct Fixture {
    name: String,
    base: PathBuf,
    files: AdapterFiles,
    io: Tensors,
    expect: Value,
}

impl Fixture {
    fn all() -> Result<Vec<Self>> {
        let all: Result<Vec<Self>> = fixtures::adapters()?.into_iter().map(Self::read).collect();
        let all = all?;
        ensure!(all.len() == 15, "{} adapters", all.len());
        Ok(all)
    }

    fn read(name: String) -> Result<Self> {
        let dir = fixtures::parity("adapters").join(&name);
        let expect: Value = fixtures::json(&dir.join("expect.json"))?;
        let base = fixtures::parity(expect["base"].as_str().context("no base")?);
        let files = AdapterFiles::open(&dir.join("adapter"))?;
        let io = Tensors::read(&dir.join("io.safetensors"))?;
        Ok(Self { name, base, files, io, expect })
    }

    fn load(&self, precision: Precision, trainable: bool) -> Result<Decoder> {
        self.load_from(&self.base, &self.files, precision, trainable)
    }

    fn load_from(
        &self,
        base: &Path,
        files: &AdapterFiles,
        precision: Precision,
        trainable: bool,
    ) -> Result<Decoder> {
        let options = LoadOptions { precision, trainable, ..LoadOptions::default() };
        let loading = Loading { options, adapter_files: Some(files), ..Loading::default() };
        Decoder::load_with(base, &loading).with_context(|| self.name.clone())
    }

    fn is_classifier(&self) -> bool {
        self.files.head() == Head::Score
    }

    fn flat(&self) -> Result<Flat> {
        let ids = self.io.rows("input_ids")?;
        let documents: Vec<(&[i64], &[i64])> =
            ids.iter().map(|row| (row.as_slice(), row.as_slice())).collect();
        Ok(Flat::new(&documents))
    }

    fn texts(&self) -> Result<Branches> {
        let mut row = Branches::new();
        for text in self.io.rows("input_ids")? {
            row.push(&[], &[&text]);
        }
        Ok(row)
    }

    /// Logits `[N, V]`, or scores `[2]`.
    fn outputs(&self, decoder: &Decoder) -> Result<Tensor> {
        if self.is_classifier() {
            let texts = self.texts()?;
            return Ok(no_grad(|| branches::scores(decoder, &texts))?);
        }
        self.flat()?.logits(decoder)
    }

    /// What the outputs should be: of the model with the adapter, or of the one it is merged into.
    fn expected(&self, merged: &str) -> Result<&Tensor> {
        let kind = if self.is_classifier() { "scores" } else { "logits" };
        self.io.get(&format!("{merged}{kind}"))
    }

    /// The loss, and gradients of it left in the model's parameters.
    fn backward(&self, decoder: &mut Decoder) -> Result<f64> {
        if !self.is_classifier() {
            return self.flat()?.backward(decoder);
        }
        decoder.params_mut().clear_grads()?;
        let scores = branches::scores(decoder, &self.texts()?)?;
        let (chosen, rejected) = (scores.narrow(0, 0, 1), scores.narrow(0, 1, 1));
        let loss = bradley_terry(&chosen, &rejected, None, None, 0.0).loss_sum;
        autograd::backward(&loss)?;
        decoder.params_mut().gather_grads()?;
        Ok(loss.double_value(&[]))
    }

    /// Outputs that are those of PEFT, and the same with a change of 1 % that are not.
    fn assert_outputs(&self, what: &str, decoder: &Decoder, merged: &str) -> Result<f64> {
        let what = format!("{} {what}", self.name);
        let (got, want) = (self.outputs(decoder)?, self.expected(merged)?);
        let difference = assert_close(&what, &got, want, LOGITS);
        assert_differs(&what, &(got * 1.01), want, LOGITS);
        Ok(difference)
    }
}

/// A parameter's name by its name in PEFT's file.
fn name_of(key: &str) -> Option<String> {
    Some(key.strip_prefix("base_model.model.")?.replace(".base_layer.", "."))
}

/// The trained parameters of a decoder by name.
fn trained(decoder: &Decoder) -> Vec<String> {
    decoder.params().trained().map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn outputs_and_loss_are_those_of_peft() -> Result<()> {
    for fixture in Fixture::all()? {
        for trainable in [false, true] {
            let decoder = fixture.load(Precision::Fp32, trainable)?;
            let difference = fixture.assert_outputs("outputs", &decoder, "")?;
            report(&fixture.name, &[("outputs", difference)]);
        }
        let mut decoder = fixture.load(Precision::Fp32, true)?;
        let loss = fixture.backward(&mut decoder)?;
        let want = fixture.expect["loss"].as_f64().context("no loss")?;
        let difference = close_number(&fixture.name, loss, want, LOSS)?;
        ensure!(close_number(&fixture.name, loss * 1.01, want, LOSS).is_err());
        report(&fixture.name, &[("loss", difference)]);
    }
    Ok(())
}

#[test]
fn the_changed_layers_and_the_trained_parameters_are_those_of_peft() -> Result<()> {
    for fixture in Fixture::all()? {
        let decoder = fixture.load(Precision::Fp32, true)?;
        let modules = fixture.expect["modules"].as_object().context("no modules")?;
        let mut names = trained(&decoder);
        for (module, about) in modules {
            let ours = |suffix: &str| names.contains(&format!("{module}.{suffix}"));
            match about["r"].as_i64() {
                Some(r) => {
                    let a = decoder.params().get(&format!("{module}.lora_A.weight"));
                    ensure!(a.context("no A")?.size()[0] == r, "{} {module}", fixture.name);
                }
                None => ensure!(ours("ia3_l"), "{} {module}", fixture.name),
            }
        }
        let adapted = |name: &&String| name.ends_with("lora_A.weight") || name.ends_with("ia3_l");
        let count = names.iter().filter(adapted).count();
        ensure!(count == modules.len(), "{}: {count} layers", fixture.name);
        let path = fixture.files.dir().join("adapter_model.safetensors");
        let theirs = Tensors::read(&path)?;
        let mut theirs: Vec<String> = theirs.names().filter_map(name_of).collect();
        names.sort();
        theirs.sort();
        assert_eq!(names, theirs, "{}", fixture.name);
    }
    Ok(())
}

#[test]
fn one_percent_of_any_parameter_of_an_adapter_shows() -> Result<()> {
    for fixture in Fixture::all()? {
        let decoder = fixture.load(Precision::Fp32, true)?;
        let want = fixture.expected("")?;
        for name in trained(&decoder) {
            let before = decoder.params().get(&name).context("listed")?.copy();
            scale(&decoder, &name, 1.01);
            let what = format!("{} {name}", fixture.name);
            assert_differs(&what, &fixture.outputs(&decoder)?, want, LOGITS);
            no_grad(|| decoder.params().get(&name).expect("listed").copy_(&before));
        }
        fixture.assert_outputs("all parameters back", &decoder, "")?;
    }
    Ok(())
}

#[test]
fn every_gradient_is_that_of_peft() -> Result<()> {
    for fixture in Fixture::all()? {
        let keys: Vec<&str> =
            fixture.io.names().filter_map(|name| name.strip_prefix("grad.")).collect();
        for checkpointing in [Checkpointing::None, Checkpointing::Mlp, Checkpointing::Layer] {
            let what = format!("{} {checkpointing:?}", fixture.name);
            let mut decoder = fixture.load(Precision::Fp32, true)?;
            decoder.set_checkpointing(checkpointing, 1);
            fixture.backward(&mut decoder)?;
            let mut worst = 0.0_f64;
            for key in &keys {
                let name = name_of(key).context("a name of PEFT's")?;
                let grad =
                    decoder.params().grad(&name).with_context(|| format!("{what} {name}"))?;
                let want = fixture.io.get(&format!("grad.{key}"))?;
                let difference = assert_close(&format!("{what} {name}"), &grad, want, GRADIENT);
                assert_differs(&what, &(grad * 1.01), want, GRADIENT);
                worst = worst.max(difference / want.abs().max().double_value(&[]));
            }
            let count = decoder.params_mut().trainable().len();
            ensure!(count == keys.len(), "{what}: {} gradients of {count}", keys.len());
            report(&what, &[("gradient, relative", worst)]);
        }
    }
    Ok(())
}

#[test]
fn a_merged_model_is_that_of_peft_and_has_no_adapter() -> Result<()> {
    for fixture in Fixture::all()? {
        for trainable in [false, true] {
            let mut decoder = fixture.load(Precision::Fp32, trainable)?;
            decoder.merge_adapter()?;
            let difference = fixture.assert_outputs("merged", &decoder, "merged_")?;
            ensure!(decoder.adapter().is_none() && decoder.merge_adapter().is_err());
            report(&fixture.name, &[("merged", difference)]);
            let dir = tempfile::tempdir()?;
            decoder.save(dir.path(), Precision::Fp32, u64::MAX)?;
            let again = Decoder::load(dir.path(), &LoadOptions::default())?;
            fixture.assert_outputs("merged and saved", &again, "merged_")?;
        }
    }
    Ok(())
}

#[test]
fn an_unmerged_model_is_the_base() -> Result<()> {
    for fixture in Fixture::all()? {
        let what = &fixture.name;
        let mut decoder = fixture.load(Precision::Fp32, false)?;
        decoder.merge_adapter()?;
        let dir = tempfile::tempdir()?;
        decoder.save(dir.path(), Precision::Fp32, u64::MAX)?;
        let mut merged = fixture.load_from(dir.path(), &fixture.files, Precision::Fp32, false)?;
        let taken = merged.unmerge_adapter();
        if what.ends_with("dora") {
            let error = taken.expect_err("lengths are lost").to_string();
            ensure!(error.contains("DoRA cannot be taken off"), "{what}: {error}");
            continue;
        }
        let whole = ["bias-all", "bias-lora-only", "save", "reward-lora"];
        if whole.iter().any(|end| what.ends_with(end)) {
            let error = taken.expect_err("what was trained whole is lost").to_string();
            ensure!(error.contains("trained whole"), "{what}: {error}");
            continue;
        }
        taken?;
        let base = Tensors::read(&fixture.base.join("model.safetensors"))?;
        let mut worst = 0.0_f64;
        for (name, weight) in merged.params().own() {
            let what = format!("{what} {name}");
            let want = base.get(name)?;
            worst = worst.max(assert_close(&what, &weight, want, WEIGHT));
            assert_differs(&what, &(weight * 1.01), want, WEIGHT);
        }
        report(what, &[("weight", worst)]);
    }
    Ok(())
}

#[test]
fn a_saved_adapter_is_the_same_adapter() -> Result<()> {
    for fixture in Fixture::all()? {
        let decoder = fixture.load(Precision::Fp32, true)?;
        let dir = tempfile::tempdir()?;
        let base = fixture.files.base().context("no base")?;
        let bytes = decoder.save_adapter(dir.path(), base, None)?;
        let weights = "adapter_model.safetensors";
        ensure!(bytes == fs_err::metadata(dir.path().join(weights))?.len());
        let ours = Tensors::read(&dir.path().join(weights))?;
        let theirs = Tensors::read(&fixture.files.dir().join(weights))?;
        assert_eq!(ours.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>());
        for name in theirs.names() {
            ensure!(ours.get(name)?.equal(theirs.get(name)?), "{} {name}", fixture.name);
        }
        let config = "adapter_config.json";
        let ours: Value = fixtures::json(&dir.path().join(config))?;
        let theirs: Value = fixtures::json(&fixture.files.dir().join(config))?;
        assert_eq!(meaning(ours), meaning(theirs), "{}", fixture.name);
        let again = AdapterFiles::open(dir.path())?;
        let again = fixture.load_from(&fixture.base, &again, Precision::Fp32, false)?;
        fixture.assert_outputs("saved", &again, "")?;
    }
    Ok(())
}

/// A config in one of the ways to say it: lists without an order, numbers of one kind, and no `layers_pattern`, which is
/// not needed where only one list of layers is.
fn meaning(config: Value) -> Value {
    match config {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(key, _)| key != "layers_pattern");
            kept.map(|(key, value)| (key, meaning(value))).collect()
        }
        Value::Array(mut list) => {
            list.sort_by_key(Value::to_string);
            list.into()
        }
        Value::Number(number) => number.as_f64().into(),
        other => other,
    }
}

#[test]
fn adapters_work_in_bf16() -> Result<()> {
    for fixture in Fixture::all()? {
        let what = &fixture.name;
        let want = fixture.expected("")?;
        let base = Decoder::load(&fixture.base, &LoadOptions::default())?;
        let far = |got: &Tensor| {
            let difference = (got - want).norm().double_value(&[]);
            difference / want.norm().double_value(&[])
        };
        for trainable in [false, true] {
            let mut decoder = fixture.load(Precision::Bf16, trainable)?;
            let near = far(&fixture.outputs(&decoder)?);
            ensure!(near < BF16 && near < far(&fixture.outputs(&base)?), "{what}: {near}");
            if !trainable {
                continue;
            }
            fixture.backward(&mut decoder)?;
            for weight in decoder.params_mut().trainable() {
                let key = fixture.io.names().find(|key| {
                    key.strip_prefix("grad.").and_then(name_of).as_deref() == Some(weight.name)
                });
                let want = fixture.io.get(key.context("no gradient")?)?;
                let difference = (&weight.grad - want).norm().double_value(&[]);
                let near = difference / want.norm().double_value(&[]);
                ensure!(near < 0.25, "{what} {}: {near}", weight.name);
            }
        }
    }
    Ok(())
}

/// The engine merges the adapter into packed weights where it has many rows; with few it runs on the layers as they are.
#[test]
fn generation_follows_the_forward_pass() -> Result<()> {
    const NEW: usize = 6;
    for fixture in Fixture::all()?.into_iter().filter(|fixture| !fixture.is_classifier()) {
        let decoder = fixture.load(Precision::Fp32, false)?;
        let base = Decoder::load(&fixture.base, &LoadOptions::default())?;
        let ids = fixture.io.rows("input_ids")?;
        for rows in [2, 12] {
            let what = format!("{} {rows} rows", fixture.name);
            let prompts = (0..rows).map(|row| ids[row % 2][..4 + row % 7].to_vec());
            let request = |ids| Request { ids, max_new_tokens: NEW, sampling: Sampling::greedy() };
            let requests: Vec<Request> = prompts.map(request).collect();
            let mut engine = Engine::new(&decoder, rows, 32)?;
            let out = engine.generate(&requests, &StopRules::default(), None, None)?;
            for (request, out) in requests.iter().zip(out) {
                let whole = [request.ids.as_slice(), &out.ids].concat();
                let start = request.ids.len() as i64 - 1;
                let steps = |decoder: &Decoder| -> Result<Tensor> {
                    let logits = Flat::new(&[(&whole, &whole)]).logits(decoder)?;
                    Ok(logits.narrow(0, start, NEW as i64).log_softmax(-1, Kind::Double))
                };
                let logprobs = steps(&decoder)?;
                assert_eq!(Vec::<i64>::try_from(logprobs.argmax(-1, false))?, out.ids, "{what}");
                let chosen = Tensor::from_slice(&out.ids).unsqueeze(1);
                let of = |logprobs: Tensor| logprobs.gather(1, &chosen, false).squeeze_dim(1);
                let got = Tensor::from_slice(&out.logprobs);
                assert_close(&what, &got, &of(logprobs), LOGITS);
                assert_differs(&what, &got, &of(steps(&base)?), LOGITS);
            }
        }
    }
    Ok(())
}

const PISSA: &str = "llama-pissa";

/// The `PiSSA` of the fixture, at its start.
fn pissa(fixture: &Fixture, precision: Precision) -> Result<Decoder> {
    let lora = Lora {
        r: 4,
        lora_alpha: 6.0,
        target_modules: Targets::Names(vec!["q_proj".into(), "v_proj".into()]),
        init_lora_weights: InitLora::Pissa,
        ..Lora::default()
    };
    let adapter = Adapter { method: Method::Lora(lora), modules_to_save: Vec::new() };
    let options = LoadOptions { precision, trainable: true, ..LoadOptions::default() };
    let loading = Loading { options, adapter: Some(&adapter), ..Loading::default() };
    Ok(Decoder::load_with(&fixture.base, &loading)?)
}

#[test]
fn a_pissa_starts_as_that_of_peft() -> Result<()> {
    let fixture = Fixture::read(PISSA.into())?;
    let decoder = pissa(&fixture, Precision::Fp32)?;
    let base = Decoder::load(&fixture.base, &LoadOptions::default())?;
    let outputs = fixture.outputs(&base)?;
    let difference = assert_close("at first", &fixture.outputs(&decoder)?, &outputs, LOGITS);
    report(PISSA, &[("logits at first", difference)]);
    let get = |name: &str| decoder.params().get(name).with_context(|| name.to_owned());
    let mut compared = 0;
    for name in fixture.io.names() {
        let (got, name) = if let Some(weight) = name.strip_prefix("residual.") {
            (get(weight)?, name)
        } else if let Some(weight) = name.strip_prefix("initial.") {
            let module = weight.strip_suffix(".weight").context("a weight")?;
            let [a, b] = ["A", "B"].map(|part| get(&format!("{module}.lora_{part}.weight")));
            (b?.mm(&a?) * 1.5, name)
        } else {
            continue;
        };
        let want = fixture.io.get(name)?;
        let difference = assert_close(name, &got, want, WEIGHT);
        assert_differs(name, &(got * 1.01), want, WEIGHT);
        report(name, &[("weight", difference)]);
        compared += 1;
    }
    ensure!(compared == 4, "{compared} weights");
    Ok(())
}

#[test]
fn a_trained_pissa_is_saved_as_a_lora_of_twice_the_rank_over_the_ordinary_base() -> Result<()> {
    let fixture = Fixture::read(PISSA.into())?;
    let decoder = pissa(&fixture, Precision::Fp32)?;
    for (index, name) in trained(&decoder).iter().enumerate() {
        let mut weight = decoder.params().get(name).context("listed")?;
        let count = weight.numel() as i64;
        let noise = (Tensor::arange(count, (Kind::Float, weight.device())) * 1.7 + index as f64)
            .sin()
            .view(weight.size().as_slice());
        let _ = no_grad(|| weight.g_add_(&(noise * 0.2)));
    }
    let want = fixture.outputs(&decoder)?;
    let dir = tempfile::tempdir()?;
    decoder.save_adapter(dir.path(), "base", None)?;
    let files = AdapterFiles::open(dir.path())?;
    let Method::Lora(lora) = &files.adapter().method else { panic!("no LoRA") };
    let ranks = (lora.r, lora.lora_alpha, lora.init_lora_weights);
    ensure!(ranks == (8, 12.0, InitLora::Kaiming), "{lora:?}");
    let plain = fixture.load_from(&fixture.base, &files, Precision::Fp32, false)?;
    let got = fixture.outputs(&plain)?;
    let difference = assert_close("as a LoRA", &got, &want, LOGITS);
    assert_differs("as a LoRA", &(got * 1.01), &want, LOGITS);
    let base = Decoder::load(&fixture.base, &LoadOptions::default())?;
    assert_differs("the base", &fixture.outputs(&base)?, &want, LOGITS);
    report(PISSA, &[("as a LoRA", difference)]);
    Ok(())
}

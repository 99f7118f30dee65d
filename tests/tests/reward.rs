//! Reward models against transformers' sequence classifiers of every architecture: `tests/fixtures/parity/reward-models`.
//!
//! Every comparison is followed by one that must fail: the same with a change of 1 %.

use anyhow::{Result, ensure};
use data::batch::Branches;
use model::{Checkpointing, Decoder, Head, LoadOptions, Precision};
use objectives::bradley_terry;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::{Tensor, no_grad};
use temper_tests::close::{
    GRADIENT, LOSS, SCORE, assert_close, assert_differs, close, close_number, report,
};
use temper_tests::fixtures::{self, Tensors};
use temper_tests::perturb::change;
use torch_ext::autograd;
use training::branches;

/// A prompt with two responses.
#[derive(Deserialize)]
struct Pair {
    prompt: Vec<i64>,
    chosen: Vec<i64>,
    rejected: Vec<i64>,
}

/// A text that ends in the token that files pad with, and the score of that token.
#[derive(Deserialize)]
struct PadLast {
    ids: Vec<i64>,
    score: f64,
}

/// What transformers says.
#[derive(Deserialize)]
struct Expect {
    pairs: Vec<Pair>,
    single: Vec<i64>,
    /// Of chosen and rejected of each pair, then of the single text: each alone, padded on the right, on the left.
    scores: BTreeMap<String, Vec<f64>>,
    pad_last: PadLast,
    /// The scores of the tokens before each token of the pairs' responses.
    values: Vec<Vec<f64>>,
    /// The mean loss of the pairs without and with the centring term; the gradients are those of the latter.
    loss: f64,
    centering: f64,
    centred_loss: f64,
}

/// The fixture of one architecture.
struct Fixture {
    name: String,
    gradients: Tensors,
    expect: Expect,
}

impl Fixture {
    fn all() -> Result<Vec<Self>> {
        fixtures::reward_models()?.into_iter().map(Self::read).collect()
    }

    fn read(name: String) -> Result<Self> {
        let dir = fixtures::parity("reward-models").join(&name);
        let expect: Expect = fixtures::json(&dir.join("expect.json"))?;
        ensure!(expect.pairs.len() == 2 && expect.scores.len() == 3, "{name}: another script's");
        Ok(Self { gradients: Tensors::read(&dir.join("gradients.safetensors"))?, expect, name })
    }

    fn model_dir(&self) -> PathBuf {
        fixtures::parity("reward-models").join(&self.name).join("model")
    }

    fn load(&self, trainable: bool) -> Result<Decoder> {
        let options = LoadOptions { trainable, ..LoadOptions::default() };
        Ok(Decoder::load(&self.model_dir(), &options)?)
    }

    /// The pairs, each with its prompt once.
    fn shared(&self) -> Branches {
        let mut row = Branches::new();
        for Pair { prompt, chosen, rejected } in &self.expect.pairs {
            row.push(prompt, &[chosen, rejected]);
        }
        row
    }

    /// The same with a prompt for each response.
    fn apart(&self) -> Branches {
        let mut row = Branches::new();
        for Pair { prompt, chosen, rejected } in &self.expect.pairs {
            row.push(prompt, &[chosen]);
            row.push(prompt, &[rejected]);
        }
        row
    }

    /// The texts that have scores, whole.
    fn texts(&self) -> Vec<Vec<i64>> {
        let whole = |pair: &Pair| {
            let join = |response: &[i64]| [pair.prompt.as_slice(), response].concat();
            [join(&pair.chosen), join(&pair.rejected)]
        };
        let mut texts: Vec<Vec<i64>> = self.expect.pairs.iter().flat_map(whole).collect();
        texts.push(self.expect.single.clone());
        texts
    }

    /// The mean loss of the pairs in `row`, differentiable.
    fn loss(&self, decoder: &Decoder, row: &Branches, centering: f64) -> Result<Tensor> {
        let scores = branches::scores(decoder, row)?.view([-1, 2]);
        let (chosen, rejected) = (scores.select(1, 0), scores.select(1, 1));
        let sum = bradley_terry(&chosen, &rejected, None, None, centering).loss_sum;
        Ok(sum / self.expect.pairs.len() as f64)
    }
}

/// Texts one after another in a row.
fn packed(texts: &[Vec<i64>]) -> Branches {
    let mut row = Branches::new();
    for text in texts {
        row.push(&[], &[text]);
    }
    row
}

fn scores(decoder: &Decoder, row: &Branches) -> Result<Tensor> {
    Ok(no_grad(|| branches::scores(decoder, row))?)
}

#[test]
fn scores_are_those_of_transformers() -> Result<()> {
    for fixture in Fixture::all()? {
        let decoder = fixture.load(false)?;
        let texts = fixture.texts();
        let mut shared = fixture.shared();
        shared.push(&[], &[&fixture.expect.single]);
        let alone = texts.chunks(1).map(|text| scores(&decoder, &packed(text)));
        let layouts = [
            ("alone", Tensor::cat(&alone.collect::<Result<Vec<_>>>()?, 0)),
            ("packed", scores(&decoder, &packed(&texts))?),
            ("shared", scores(&decoder, &shared)?),
        ];
        for (layout, got) in &layouts {
            for (theirs, want) in &fixture.expect.scores {
                let what = format!("{} {layout}, {theirs} in transformers", fixture.name);
                let want = Tensor::from_slice(want);
                let difference = assert_close(&what, got, &want, SCORE);
                assert_differs(&what, &(got * 1.01), &want, SCORE);
                report(&what, &[("score", difference)]);
            }
        }
    }
    Ok(())
}

/// transformers passes over tokens at the end that have the padding token's id; a row here knows its length.
#[test]
fn a_text_is_scored_at_its_last_token_whatever_that_is() -> Result<()> {
    for fixture in Fixture::all()? {
        let decoder = fixture.load(false)?;
        let PadLast { ids, score } = &fixture.expect.pad_last;
        ensure!(ids.last().copied() == decoder.config().pad_token_id, "{}", fixture.name);
        let got = scores(&decoder, &packed(std::slice::from_ref(ids)))?.double_value(&[0]);
        close_number(&fixture.name, got, *score, SCORE)?;
        let before = ids[..ids.len() - 1].to_vec();
        let passed_over = scores(&decoder, &packed(&[before]))?.double_value(&[0]);
        ensure!(close_number(&fixture.name, passed_over, *score, SCORE).is_err());
    }
    Ok(())
}

#[test]
fn values_are_the_scores_of_the_tokens_before() -> Result<()> {
    for fixture in Fixture::all()? {
        let decoder = fixture.load(false)?;
        let want = Tensor::from_slice(&fixture.expect.values.concat());
        for (layout, row) in [("shared", fixture.shared()), ("apart", fixture.apart())] {
            let what = format!("{} values, prompts {layout}", fixture.name);
            let got = no_grad(|| branches::values(&decoder, &row))?;
            let difference = assert_close(&what, &got, &want, SCORE);
            assert_differs(&what, &(got * 1.01), &want, SCORE);
            report(&what, &[("value", difference)]);
        }
    }
    Ok(())
}

#[test]
fn one_percent_of_any_parameter_shows_in_the_scores() -> Result<()> {
    for fixture in Fixture::all()? {
        let decoder = fixture.load(true)?;
        let row = packed(&fixture.texts());
        let want = Tensor::from_slice(&fixture.expect.scores["right"]);
        let names: Vec<String> = decoder.params().names().map(str::to_owned).collect();
        for name in &names {
            let before = decoder.params().get(name).expect("listed").copy();
            change(&decoder, name);
            let what = format!("{} {name}", fixture.name);
            assert_differs(&what, &scores(&decoder, &row)?, &want, SCORE);
            no_grad(|| decoder.params().get(name).expect("listed").copy_(&before));
        }
        assert_close("all parameters back", &scores(&decoder, &row)?, &want, SCORE);
    }
    Ok(())
}

#[test]
fn the_loss_of_pairs_and_every_gradient_are_those_of_torch() -> Result<()> {
    for fixture in Fixture::all()? {
        let Expect { loss, centering, centred_loss, .. } = fixture.expect;
        let texts = fixture.texts();
        let whole = packed(&texts[..2 * fixture.expect.pairs.len()]);
        for (layout, row) in [("shared", fixture.shared()), ("packed", whole)] {
            for checkpointing in [Checkpointing::None, Checkpointing::Mlp, Checkpointing::Layer] {
                let what = format!("{} {layout} {checkpointing:?}", fixture.name);
                let mut decoder = fixture.load(true)?;
                decoder.set_checkpointing(checkpointing, 1);
                let plain = no_grad(|| fixture.loss(&decoder, &row, 0.0))?.double_value(&[]);
                let centred = fixture.loss(&decoder, &row, centering)?;
                autograd::backward(&centred)?;
                decoder.params_mut().gather_grads()?;
                for (got, want) in [(plain, loss), (centred.double_value(&[]), centred_loss)] {
                    close_number(&what, got, want, LOSS)?;
                    ensure!(close_number(&what, got * 1.01, want, LOSS).is_err());
                }
                let worst = assert_gradients(&fixture, &what, &mut decoder)?;
                report(&what, &[("loss", (plain - loss).abs()), ("gradient, relative", worst)]);
            }
        }
    }
    Ok(())
}

/// Compares the gradients of all parameters; returns the largest relative difference.
fn assert_gradients(fixture: &Fixture, what: &str, decoder: &mut Decoder) -> Result<f64> {
    let (mut compared, mut worst) = (0, 0.0_f64);
    let pad = decoder.config().pad_token_id;
    for weight in decoder.params_mut().trainable() {
        let what = format!("{what} {}", weight.name);
        // torch gives the embedding of the padding token no gradient, also where text has that token; it counts here.
        if let (true, Some(pad)) = (weight.name.ends_with("embed_tokens.weight"), pad) {
            let _ = weight.grad.get(pad).zero_();
        }
        let want = fixture.gradients.get(&format!("grad.{}", weight.name))?;
        let difference = assert_close(&what, &weight.grad, want, GRADIENT);
        assert_differs(&what, &(weight.grad * 1.01), want, GRADIENT);
        worst = worst.max(difference / want.abs().max().double_value(&[]));
        compared += 1;
    }
    let expected = fixture.gradients.names().count();
    ensure!(compared == expected, "{what}: {compared} gradients of {expected}");
    Ok(worst)
}

#[test]
fn a_saved_reward_model_is_the_same_model() -> Result<()> {
    for fixture in Fixture::all()? {
        let mut decoder = fixture.load(true)?;
        decoder.set_score_statistics(0.25, 2.0);
        let row = packed(&fixture.texts());
        let before = scores(&decoder, &row)?;
        for (form, shard) in [("whole", u64::MAX), ("shards", 8 << 10)] {
            let what = format!("{} {form}", fixture.name);
            let dir = tempfile::tempdir()?;
            let files = decoder.save(dir.path(), Precision::Fp32, shard)?;
            ensure!(files.len() > if form == "shards" { 3 } else { 0 }, "{what}: {files:?}");
            let again = Decoder::load(dir.path(), &LoadOptions::default())?;
            let difference = close(&what, &scores(&again, &row)?, &before, SCORE)?;
            ensure!(difference == 0.0, "{what}: other scores");
            ensure!(again.config().head == Head::Score, "{what}: another head");
            ensure!(again.config().score_statistics == Some((0.25, 2.0)), "{what}");
            same_names(&fixture, &again)?;
            let got: Value = fixtures::json(&dir.path().join("config.json"))?;
            let want: Value = fixtures::json(&fixture.model_dir().join("config.json"))?;
            for key in ["architectures", "id2label", "label2id", "pad_token_id"] {
                assert_eq!(got[key], want[key], "{what}: {key}");
            }
        }
    }
    Ok(())
}

/// The names and shapes on disk are transformers' own.
fn same_names(fixture: &Fixture, saved: &Decoder) -> Result<()> {
    let theirs = Tensors::read(&fixture.model_dir().join("model.safetensors"))?;
    let mut names: Vec<&str> = saved.params().names().collect();
    names.sort_unstable();
    ensure!(names == theirs.names().collect::<Vec<_>>(), "{}: {names:?}", fixture.name);
    for (name, weight) in saved.params().iter() {
        ensure!(weight.size() == theirs.get(name)?.size(), "{}: {name}", fixture.name);
    }
    Ok(())
}

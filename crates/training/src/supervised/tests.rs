use std::cell::Cell;
use std::collections::BTreeMap;

use artifact::RunDir;
use artifact::tokens::{TokenMeta, TokenWriter};
use data::batch::FlatBatch;
use model::{LoadOptions, ModelConfig};
use stage::{DeviceSpec, Signal};
use tch::Device;

use super::*;
use crate::loss::{Loss, next_token_loss};

/// A folder with ragged, partly masked rows, and runs of the loop in it.
struct Yard {
    dir: tempfile::TempDir,
}

/// What a run left.
struct Ran {
    outcome: anyhow::Result<Results>,
    weights: BTreeMap<String, Vec<f32>>,
}

impl Ran {
    fn results(&self) -> &Results {
        self.outcome.as_ref().unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn error(&self) -> String {
        match &self.outcome {
            Ok(results) => panic!("no error: {results:?}"),
            Err(error) => stage::report(error),
        }
    }
}

const VOCAB: i64 = 40;

impl Yard {
    fn new() -> Self {
        let yard = Self { dir: tempfile::tempdir().unwrap() };
        yard.write_rows("train", 24, 1);
        yard.write_rows("validation", 6, 5);
        yard
    }

    fn write_rows(&self, split: &str, rows: u32, salt: u32) {
        let meta = TokenMeta {
            tokenizer: artifact::digest::bytes(b"tokenizer"),
            vocab_size: VOCAB as usize,
            seq_len: 16,
            chat_template: None,
        };
        let mut file = TokenWriter::create(self.file(split), meta).unwrap();
        for row in 0..rows {
            let length = 3 + (row * 7 + salt) % 11;
            let ids: Vec<u32> = (0..length).map(|i| (row + salt + i * 3) % 40).collect();
            // The first third is a prompt; every fifth row counts all.
            let mask: Vec<bool> = (0..length).map(|i| row % 5 == 0 || i * 3 >= length).collect();
            file.write_row(&ids, Some(&mask)).unwrap();
        }
        file.finish().unwrap();
    }

    fn file(&self, split: &str) -> PathBuf {
        self.dir.path().join(format!("{split}.parquet"))
    }

    fn context(&self, run: &str) -> Context {
        let run_dir = RunDir::create(self.dir.path().join(run)).unwrap();
        let mut ctx = Context::detached(run_dir, 3, DeviceSpec::Cpu);
        ctx.input("train", &self.file("train")).unwrap();
        ctx
    }

    fn plan(&self, settings: &str) -> Supervised {
        let least = "batch_size.sequences = 4\nmicro_batch_tokens = 1000\nlog_every_steps = 2\n\
                     schedule.linear.warmup_steps = 2\n";
        let text = if settings.contains("learning_rate") {
            format!("{least}{settings}")
        } else {
            format!("{least}{settings}\noptimizer.learning_rate = 1e-2")
        };
        let settings: Train = toml::from_str(&text).unwrap();
        assert_eq!(settings.problems().to_string(), "");
        Supervised {
            total_steps: settings.steps.unwrap(),
            train: vec![self.file("train")],
            epochs: None,
            best_by: BestBy::Loss,
            validation: settings.eval.every_steps.map(|_| Validation {
                files: vec![self.file("validation")],
                max_tokens: settings.eval.max_tokens,
                micro_batch_tokens: 20,
                byte_lengths: Some(vec![2; VOCAB as usize]),
            }),
            settings,
            tokenizer: None,
        }
    }

    /// Runs in the directory `run`, going on from what is there.
    fn run(&self, run: &str, settings: &str) -> Ran {
        self.run_with(&mut self.context(run), settings, &next_token_loss)
    }

    fn run_with(&self, ctx: &mut Context, settings: &str, loss: LossFn<'_>) -> Ran {
        // Runs share the process's random generator.
        let _lock = crate::testing::generator_lock();
        let plan = self.plan(settings);
        let mut decoder = decoder(plan.settings.precision);
        let outcome = train(ctx, &World::alone(Device::Cpu), &mut decoder, &plan, loss);
        Ran { outcome, weights: weights(&decoder) }
    }

    /// The lines of `metrics.jsonl` without what the clock decides.
    fn metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let text = fs_err::read_to_string(self.dir.path().join(run).join("metrics.jsonl")).unwrap();
        let timeless = |line: &str| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            for key in ["time", "tokens_per_second", "memory_bytes"] {
                line.as_object_mut().unwrap().remove(key);
            }
            line
        };
        text.lines().map(timeless).collect()
    }

    fn checkpoints(&self, run: &str) -> Vec<u64> {
        checkpoint::steps(&self.context(run)).unwrap()
    }
}

/// A tiny model with dropout, so that the random generator matters.
fn decoder(precision: Precision) -> Decoder {
    let config = ModelConfig::from_json(&json!({
        "model_type": "gpt2", "vocab_size": VOCAB, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2,
        "embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1,
    }))
    .unwrap();
    let options = LoadOptions { device: Device::Cpu, precision, trainable: true };
    Decoder::init(&config, 1, &options).unwrap()
}

fn weights(decoder: &Decoder) -> BTreeMap<String, Vec<f32>> {
    let values = |t: Tensor| Vec::try_from(t.contiguous().view(-1)).unwrap();
    decoder.params().iter().map(|(name, t)| (name.to_owned(), values(t))).collect()
}

/// The largest difference of any weight.
fn distance(a: &Ran, b: &Ran) -> f32 {
    let pairs = a.weights.iter().flat_map(|(name, w)| w.iter().zip(&b.weights[name]));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn how_a_step_is_cut_into_micro_batches_changes_no_result() {
    let yard = Yard::new();
    let steady = "steps = 6\ndropout = 0.0";
    let without_dropout = |ctx: &mut Context, micro: &str| {
        let no_dropout = |decoder: &Decoder, batch: &FlatBatch| next_token_loss(decoder, batch);
        let _lock = crate::testing::generator_lock();
        let mut plan = yard.plan(steady);
        plan.settings.micro_batch_tokens = micro.parse().unwrap();
        let mut decoder = decoder(Precision::Fp32);
        decoder.set_dropout(model::config::Dropout::default());
        let outcome = train(ctx, &World::alone(Device::Cpu), &mut decoder, &plan, &no_dropout);
        Ran { outcome, weights: weights(&decoder) }
    };
    let whole = without_dropout(&mut yard.context("whole"), "1000");
    let cut = without_dropout(&mut yard.context("cut"), "13");
    let (a, b) = (whole.results(), cut.results());
    let close = |key: &str| (a[key].as_f64().unwrap() - b[key].as_f64().unwrap()).abs() < 1e-6;
    assert!(close("train_loss"), "{a:?} {b:?}");
    // Adam's first steps amplify rounding where a gradient is nearly 0; weights move by 1e-2 a step.
    assert!(distance(&whole, &cut) < 1e-4, "{}", distance(&whole, &cut));
    let (a, b) = (yard.metrics("whole"), yard.metrics("cut"));
    for (a, b) in a.iter().zip(&b) {
        let (a, b) = (a["grad_norm"].as_f64().unwrap(), b["grad_norm"].as_f64().unwrap());
        assert!((a - b).abs() < 1e-5 * a, "{a} {b}");
    }
}

fn stops_and_goes_on(precision: &str) {
    let yard = Yard::new();
    let settings = format!(
        "steps = 13\nprecision = \"{precision}\"\noptimizer.learning_rate = 1e-2\noptimizer.max_grad_norm = 0.5\n\
         eval.every_steps = 4\ncheckpoint.every_steps = 3\ncheckpoint.keep_best = true"
    );
    let straight = yard.run("straight", &settings);
    straight.results();

    // Once by a signal, which saves ...
    let mut ctx = yard.context("stopped");
    let (interrupt, calls) = (ctx.interrupt.clone(), Cell::new(0));
    let stopping = |decoder: &Decoder, batch: &FlatBatch| {
        calls.set(calls.get() + 1);
        if calls.get() == 5 {
            interrupt.request(Signal::Term);
        }
        next_token_loss(decoder, batch)
    };
    let stopped = yard.run_with(&mut ctx, &settings, &stopping);
    assert!(stopped.error().starts_with("error: stopped by SIGTERM"));
    // It came in the evaluation after step 4, which the resumed run makes up for.
    assert_eq!(yard.checkpoints("stopped").last(), Some(&4));
    // ... and once by a failure, which loses what came after the last checkpoint.
    let calls = Cell::new(0);
    let failing = |decoder: &Decoder, batch: &FlatBatch| {
        calls.set(calls.get() + 1);
        anyhow::ensure!(calls.get() < 6, "the plug is pulled");
        next_token_loss(decoder, batch)
    };
    let failed = yard.run_with(&mut yard.context("stopped"), &settings, &failing);
    assert!(failed.error().starts_with("error: the plug is pulled"));
    let resumed = yard.run("stopped", &settings);

    assert_eq!(straight.weights, resumed.weights);
    assert_eq!(yard.metrics("straight"), yard.metrics("stopped"));
    for key in ["train_loss", "eval_loss", "num_tokens", "steps", "best_step", "best_eval_loss"] {
        assert_eq!(straight.results()[key], resumed.results()[key], "{key}");
    }
}

#[test]
fn a_stopped_run_ends_as_one_never_stopped_in_fp32() {
    stops_and_goes_on("fp32");
}

#[test]
fn a_stopped_run_ends_as_one_never_stopped_in_bf16() {
    stops_and_goes_on("bf16");
}

#[test]
fn the_first_step_is_adamw_on_the_mean_gradient() {
    let yard = Yard::new();
    let mut plan = yard.plan("steps = 1\noptimizer.learning_rate = 1e-3");
    plan.settings.schedule = toml::from_str("constant = {}").unwrap();
    let _lock = crate::testing::generator_lock();
    let mut trained = decoder(Precision::Fp32);
    trained.set_dropout(model::config::Dropout::default());
    train(
        &mut yard.context("one"),
        &World::alone(Device::Cpu),
        &mut trained,
        &plan,
        &next_token_loss,
    )
    .unwrap();

    // By hand: Adam's first step is the sign of the gradient, where that is far above epsilon.
    let mut fresh = decoder(Precision::Fp32);
    fresh.set_dropout(model::config::Dropout::default());
    let order = Order::Shuffled { seed: 3 };
    let rows = data::dataset::TokenDataset::with_order(&plan.train, order, None).unwrap();
    let step = Batcher::new(rows, plan.settings.batch_config()).next_step().unwrap().unwrap();
    fresh.set_training(true);
    let loss = next_token_loss(&fresh, &step.micro_batches[0]).unwrap().sum;
    torch_ext::autograd::backward(&(loss / step.num_targets as f64)).unwrap();
    fresh.params_mut().gather_grads().unwrap();
    for (name, after) in trained.params().iter() {
        let before = fresh.params().get(name).unwrap();
        let Some(grad) = fresh.params().grad(name) else { continue };
        let moved: Tensor = after - before;
        let expected: Tensor = -1e-3 * &grad / (grad.abs() + 1e-8);
        let error = f64::try_from((moved - expected).abs().max()).unwrap();
        assert!(error < 2e-7, "{name}: {error}");
    }
}

#[test]
fn gradients_are_clipped_together_and_reported_unclipped() {
    let yard = Yard::new();
    let free = yard.run("free", "steps = 2\noptimizer.learning_rate = 1e-3");
    let tight = "steps = 2\noptimizer.learning_rate = 1e-3\noptimizer.max_grad_norm = 1e-12";
    let clipped = yard.run("clipped", tight);
    let norm = |run: &str| yard.metrics(run)[0]["grad_norm"].as_f64().unwrap();
    assert!(norm("free") > 0.1 && norm("clipped") > 0.1);
    // A gradient of 1e-12 is far below Adam's epsilon, so hardly anything moves.
    let start = Ran { outcome: Ok(Results::new()), weights: weights(&decoder(Precision::Fp32)) };
    assert!(distance(&clipped, &start) < 1e-6);
    assert!(distance(&free, &start) > 1e-4);
}

#[test]
fn masters_keep_steps_that_bf16_would_lose() {
    let yard = Yard::new();
    let tiny = "steps = 2\nprecision = \"bf16\"\noptimizer.learning_rate = 1e-6";
    let ran = yard.run("tiny", tiny);
    ran.results();
    let start = weights(&decoder(Precision::Bf16));
    // Norm weights start at 1, where bf16 has steps of 0.0078.
    let norm = &ran.weights["transformer.ln_f.weight"];
    let start = &start["transformer.ln_f.weight"];
    let moved = norm.iter().zip(start).filter(|(a, b)| a != b).count();
    assert!(moved > 12, "{norm:?}");
}

/// The next-token loss, made infinite in the calls that `bad` names.
fn spoiled(bad: impl Fn(u32) -> bool) -> impl Fn(&Decoder, &FlatBatch) -> anyhow::Result<Loss> {
    let calls = Cell::new(0);
    move |decoder, batch| {
        calls.set(calls.get() + 1);
        let mut loss = next_token_loss(decoder, batch)?;
        if bad(calls.get()) {
            loss.sum *= f64::INFINITY;
        }
        Ok(loss)
    }
}

#[test]
fn a_step_that_is_not_finite_is_skipped_and_counted() {
    let yard = Yard::new();
    let bad = spoiled(|call| call == 1);
    let ran = yard.run_with(&mut yard.context("one"), "steps = 1", &bad);
    assert_eq!(ran.results()["skipped_steps"], 1);
    assert_eq!(ran.weights, weights(&decoder(Precision::Fp32)));

    let some = spoiled(|call| call % 2 == 0);
    let ran = yard.run_with(&mut yard.context("some"), "steps = 6\nmax_skipped_steps = 2", &some);
    assert_eq!(ran.results()["skipped_steps"], 3);
    assert!(ran.weights.values().flatten().all(|w| w.is_finite()));
    assert!(ran.results()["train_loss"].as_f64().unwrap().is_finite());
    assert_eq!(yard.metrics("some").last().unwrap()["skipped_steps"], 3.0);
}

#[test]
fn too_many_in_a_row_end_the_run_and_the_last_good_checkpoint_is_named() {
    let yard = Yard::new();
    let settings = "steps = 20\nmax_skipped_steps = 3\ncheckpoint.every_steps = 4";
    let error =
        yard.run_with(&mut yard.context("run"), settings, &spoiled(|call| call > 4)).error();
    let path = yard.dir.path().join("run/checkpoints/step-00000004");
    assert_eq!(
        error,
        format!(
            "error: the loss or its gradient was not finite in 3 steps in a row, up to step 7; the last good checkpoint \
             is {}\nhint: lower train.optimizer.learning_rate, set max_grad_norm, or use precision = \"bf16\" or \
             \"fp32\"; a checkpoint can be given as the model of a new run\n",
            path.display()
        )
    );
    // It is a model directory like any other.
    let options = LoadOptions::default();
    let loaded = Decoder::load(&artifact::model_dir(&path).unwrap(), &options).unwrap();
    assert!(weights(&loaded).values().flatten().all(|w| w.is_finite()));

    let none = yard.run_with(&mut yard.context("none"), "steps = 20", &spoiled(|_| true)).error();
    assert!(
        none.contains("in 10 steps in a row, up to step 10; there is no checkpoint; set"),
        "{none}"
    );
}

#[test]
fn fp16_halves_its_scale_until_gradients_are_finite() {
    let yard = Yard::new();
    // 65,536 / 2^k times this loss fits a half only for some k.
    let steep = |decoder: &Decoder, batch: &FlatBatch| {
        let loss = next_token_loss(decoder, batch)?;
        Ok(Loss { sum: loss.sum * 100.0, metrics: loss.metrics })
    };
    let settings =
        "steps = 12\nprecision = \"fp16\"\noptimizer.learning_rate = 1e-3\nmax_skipped_steps = 12";
    let ran = yard.run_with(&mut yard.context("half"), settings, &steep);
    let skipped = ran.results()["skipped_steps"].as_u64().unwrap();
    assert!((1..11).contains(&skipped), "{skipped}");
    let last = yard.metrics("half").pop().unwrap();
    assert_eq!(last["loss_scale"].as_f64().unwrap(), 65536.0 / 2f64.powi(skipped as i32));
    assert!(
        distance(&ran, &yard.run("start", "steps = 1\noptimizer.learning_rate = 1e-12")) > 1e-4
    );
}

#[test]
fn the_best_weights_are_handed_on_and_a_worsening_run_stops_early() {
    let yard = Yard::new();
    // A rate that soon ruins the model.
    let settings = "steps = 60\noptimizer.learning_rate = 0.3\neval.every_steps = 1\n\
                    eval.early_stopping_patience = 4\ncheckpoint.keep_best = true\ncheckpoint.save_total_limit = 1";
    let ran = yard.run("run", settings);
    let results = ran.results();
    let (best, steps) =
        (results["best_step"].as_u64().unwrap(), results["steps"].as_u64().unwrap());
    assert_eq!(steps, best + 4, "{results:?}");
    assert_eq!(results["eval_loss"], results["best_eval_loss"], "of the weights handed on");
    let losses: Vec<f64> =
        yard.metrics("run").iter().filter_map(|line| line["eval_loss"].as_f64()).collect();
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(results["best_eval_loss"].as_f64(), Some(least));
    assert!(losses.last().unwrap() > &least);
    assert!(yard.checkpoints("run").contains(&best));
    let path = checkpoint::path_of(&yard.context("run"), best);
    let saved = Decoder::load(&path, &LoadOptions::default()).unwrap();
    assert_eq!(ran.weights, weights(&saved));
}

#[test]
fn only_so_many_checkpoints_are_kept_beside_the_best() {
    let yard = Yard::new();
    yard.run("run", "steps = 9\ncheckpoint.every_steps = 2\ncheckpoint.save_total_limit = 3")
        .results();
    assert_eq!(yard.checkpoints("run"), [6, 8, 9]);
    let names = fs_err::read_dir(yard.dir.path().join("run/checkpoints")).unwrap();
    assert_eq!(names.count(), 3, "nothing half-written or half-removed is left");
}

#[test]
fn evaluation_is_the_token_weighted_mean_whatever_the_batches() {
    let yard = Yard::new();
    let mut model = decoder(Precision::Fp32);
    let by = |model: &mut Decoder, micro_batch_tokens, max_tokens| {
        let validation = Validation {
            files: vec![yard.file("validation")],
            max_tokens,
            micro_batch_tokens,
            byte_lengths: Some(vec![2; VOCAB as usize]),
        };
        evaluate(
            &yard.context("eval"),
            &World::alone(Device::Cpu),
            model,
            &validation,
            &next_token_loss,
        )
        .unwrap()
    };
    let (one, all) = (by(&mut model, 1, None), by(&mut model, 1000, None));
    assert!((one.loss - all.loss).abs() < 1e-6);
    assert_eq!(one.targets, all.targets);
    // Every target stands for two bytes, so bits per byte are bits per target halved.
    let bits = all.loss / std::f64::consts::LN_2 / 2.0;
    assert!((all.bits_per_byte.unwrap() - bits).abs() < 1e-12);
    assert!((all.values()[1].1 - all.loss.exp()).abs() < 1e-12);
    // An untrained model's loss is that of a uniform guess, but for its small weights.
    assert!((all.loss - (VOCAB as f64).ln()).abs() < 0.2, "{}", all.loss);
    assert!(by(&mut model, 10, Some(10)).targets < all.targets);
}

#[test]
fn a_checkpoint_of_another_config_is_refused_with_the_difference() {
    let yard = Yard::new();
    yard.run("run", "steps = 4\ncheckpoint.every_steps = 2").results();
    let path = checkpoint::path_of(&yard.context("run"), 4);
    let state = path.join("state.json");
    let text = fs_err::read_to_string(&state).unwrap();
    let with = |from: &str, to: &str| {
        let changed = text.replace(from, to);
        assert_ne!(changed, text);
        fs_err::write(&state, changed).unwrap();
        yard.run("run", "steps = 4\ncheckpoint.every_steps = 2").error()
    };
    let advice =
        "hint: start over with --resume never, or choose another run directory with --out\n";
    let error = with(
        "\"config\": {}",
        "\"config\": {\"train\": {\"optimizer\": {\"learning_rate\": 0.5}}}",
    );
    assert_eq!(
        error,
        format!(
            "error: {}: made with another config (then -> now)\n  train: {{\"optimizer\":{{\"learning_rate\":0.5}}}} -> \
             (absent)\nhint: put the config back to go on\n{advice}",
            path.display()
        )
    );
    let error = with("\"format_version\": 1", "\"format_version\": 99");
    assert!(error.contains("format version 99, but this build reads 1"), "{error}");
    let error = with("\"role\": \"train\"", "\"role\": \"other\"");
    let input = yard.file("train");
    assert!(error.starts_with(&format!(
        "error: {}: the input `train` is not what it was when",
        input.display()
    )));
    let error = with("\"state\": {", "\"state\": {{");
    assert!(error.contains("state.json: not a checkpoint of this program"), "{error}");
    assert!(error.contains("hint: remove this checkpoint to go on from the one before"), "{error}");
    fs_err::write(&state, &text).unwrap();
    fs_err::write(path.join("generators.safetensors"), "x").unwrap();
    let error = yard.run("run", "steps = 4\ncheckpoint.every_steps = 2").error();
    assert!(error.contains("generators.safetensors: only 1 bytes, too short"), "{error}");
}

#[test]
fn data_that_changed_since_the_checkpoint_is_refused() {
    let yard = Yard::new();
    yard.run("run", "steps = 4\ncheckpoint.every_steps = 2").results();
    yard.write_rows("train", 24, 2);
    let error = yard.run("run", "steps = 4\ncheckpoint.every_steps = 2").error();
    assert!(error.contains("train.parquet: the input `train` is not what it was when"), "{error}");
}

#[test]
fn a_run_that_may_not_resume_starts_over() {
    let yard = Yard::new();
    let settings = "steps = 4\ncheckpoint.every_steps = 2";
    let first = yard.run("run", settings);
    let mut ctx = yard.context("run");
    ctx.resume = false;
    let again = yard.run_with(&mut ctx, settings, &next_token_loss);
    assert_eq!(first.weights, again.weights);
    assert_eq!(again.results()["steps"], 4);
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_earlier_one() {
    let yard = Yard::new();
    yard.run("run", "steps = 2\ncheckpoint.every_steps = 2").results();
    let ctx = yard.context("run");
    let failed = checkpoint::save(
        &ctx,
        &World::alone(Device::Cpu),
        3,
        &json!({}),
        None,
        |dir: &Path| {
            fs_err::write(dir.join("half"), "x")?;
            anyhow::bail!("no space left on the disk")
        },
        &[],
    );
    let error = stage::report(&failed.unwrap_err());
    assert!(error.starts_with("error: cannot save the checkpoint "), "{error}");
    assert!(error.contains("caused by: no space left on the disk"), "{error}");
    assert_eq!(yard.checkpoints("run"), [2]);
    assert_eq!(fs_err::read_dir(ctx.run_dir.checkpoints_dir()).unwrap().count(), 1);
}

#[test]
fn clipping_waits_for_the_gradient_of_the_whole_step() {
    let yard = Yard::new();
    let run = |name: &str, micro_batch_tokens: usize| {
        let _lock = crate::testing::generator_lock();
        let mut plan = yard.plan(
            "steps = 6\noptimizer.learning_rate = 1e-2\noptimizer.adam_epsilon = 1e-3\n\
             optimizer.max_grad_norm = 0.05",
        );
        plan.settings.micro_batch_tokens = micro_batch_tokens;
        let mut decoder = decoder(Precision::Fp32);
        decoder.set_dropout(model::config::Dropout::default());
        let outcome = train(
            &mut yard.context(name),
            &World::alone(Device::Cpu),
            &mut decoder,
            &plan,
            &next_token_loss,
        );
        Ran { outcome, weights: weights(&decoder) }
    };
    let (whole, cut) = (run("whole", 1000), run("cut", 13));
    whole.results();
    cut.results();
    let norm = |run: &str| yard.metrics(run)[0]["grad_norm"].as_f64().unwrap();
    assert!(norm("whole") > 0.1 && (norm("whole") - norm("cut")).abs() < 1e-5 * norm("whole"));
    assert!(distance(&whole, &cut) < 1e-5, "{}", distance(&whole, &cut));
}

#[test]
fn fp16_gradients_are_unscaled_before_they_are_clipped() {
    let yard = Yard::new();
    // Clipped first, the gradient would have a norm of 0.5 / 65,536, far below Adam's epsilon.
    let settings = "steps = 6\nprecision = \"fp16\"\noptimizer.learning_rate = 1e-3\n\
                    optimizer.adam_epsilon = 1e-3\noptimizer.max_grad_norm = 0.5";
    let ran = yard.run("half", settings);
    ran.results();
    let norm = yard.metrics("half").pop().unwrap()["grad_norm"].as_f64().unwrap();
    assert!((0.01..100.0).contains(&norm), "{norm}");
    let start = Ran { outcome: Ok(Results::new()), weights: weights(&decoder(Precision::Fp16)) };
    assert!(distance(&ran, &start) > 1e-4, "{}", distance(&ran, &start));
}

#[test]
fn evaluation_takes_scalars_without_a_graph_from_each_batch() {
    let yard = Yard::new();
    let validation = yard.plan("steps = 1\neval.every_steps = 1").validation.unwrap();
    let calls = Cell::new(0);
    let scalars = |decoder: &Decoder, batch: &FlatBatch| -> anyhow::Result<Loss> {
        calls.set(calls.get() + 1);
        let loss = next_token_loss(decoder, batch)?;
        let values = std::iter::once(&loss.sum).chain(loss.metrics.iter().map(|(_, sum)| sum));
        for value in values {
            assert!(value.numel() == 1 && !value.requires_grad());
        }
        Ok(loss)
    };
    let mut model = decoder(Precision::Fp32);
    evaluate(&yard.context("eval"), &World::alone(Device::Cpu), &mut model, &validation, &scalars)
        .unwrap();
    assert!(calls.get() > 1);
}

//! A model that the ranks hold together, against one that each has whole.

use model::{Architecture, Checkpointing};

use super::*;

/// Wide enough that every rank has a slice of the matrices, and with vectors of which only the first has one.
fn config(architecture: Architecture, tied: bool) -> ModelConfig {
    let family = if architecture == Architecture::Gpt2 {
        serde_json::json!({
            "model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32,
            "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0,
        })
    } else {
        serde_json::json!({
            "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": tied,
        })
    };
    ModelConfig::from_json(&family).unwrap()
}

/// Next-token loss of one row of two documents.
fn token_loss(decoder: &Decoder) -> Tensor {
    let ids: Vec<i64> = (0..24).map(|i| (7 * i + 3) % 64).collect();
    let positions: Vec<i64> = (0..10).chain(0..14).collect();
    let input = decoder.input(&ids, &positions, &[0, 10, 24]).unwrap();
    let logits = decoder.logits(&decoder.hidden(&input).unwrap()).unwrap().to_kind(Kind::Float);
    let targets: Vec<i64> = ids.iter().map(|id| (id + 5) % 64).collect();
    logits.cross_entropy_for_logits(&Tensor::from_slice(&targets))
}

/// Losses of some steps, of two micro-batches each, and one after them without gradients; then the masters.
fn train(
    world: &World,
    decoder: &mut Decoder,
    zero_stage: u8,
    steps: u64,
) -> (Vec<f64>, Vec<(String, Vec<f32>)>) {
    let mut updater = Updater::new(world, decoder, &settings(32), zero_stage).unwrap();
    let size = world.share().size as f64;
    let mut losses = Vec::new();
    for _ in 0..steps {
        for last in [false, true] {
            let loss = token_loss(decoder);
            losses.push(loss.double_value(&[]));
            updater.backward(decoder, &(loss / (2.0 * size)), last).unwrap();
            if zero_stage == 3 && decoder.adapter().is_none() {
                let leaves = decoder.params().leaves();
                assert!(leaves.iter().all(|leaf| leaf.compute.data_ptr().is_null()));
            }
        }
        updater.apply(decoder, 1.0, &Tensor::from_slice(&[1.0])).unwrap();
    }
    losses.push(no_grad(|| token_loss(decoder)).double_value(&[]));
    let params = decoder.params();
    let whole = |name: &str| numbers(&params.whole(name).unwrap().unwrap());
    let names: Vec<String> = params.names().map(str::to_owned).collect();
    let masters = names.into_iter().map(|name| (name.clone(), whole(&name))).collect();
    (losses, masters)
}

fn options(precision: Precision, trainable: bool) -> LoadOptions {
    LoadOptions { device: Device::Cpu, precision, trainable }
}

#[test]
fn a_divided_model_trains_as_a_whole_one() {
    // Numbers of ranks that are powers of two: shares of a gradient add up to it without rounding.
    let plain = (Architecture::Llama, true, Precision::Fp32, Checkpointing::None, 2);
    for (architecture, tied, precision, checkpointing, size) in [
        plain,
        (Architecture::Llama, false, Precision::Fp32, Checkpointing::Layer, 4),
        (Architecture::Gpt2, true, Precision::Fp32, Checkpointing::Mlp, 2),
        (Architecture::Llama, true, Precision::Bf16, Checkpointing::Layer, 2),
    ] {
        let case = format!("{architecture:?}, {precision:?}, {checkpointing:?}, {size} ranks");
        let config = config(architecture, tied);
        let mut whole = Decoder::init(&config, 1, &options(precision, true)).unwrap();
        whole.set_checkpointing(checkpointing, 1);
        let wanted = train(&World::alone(Device::Cpu), &mut whole, 0, 3);
        let results = in_ranks(size, move |world| {
            let ranks = world.holders(true);
            let options = options(precision, true);
            let mut decoder = Decoder::init_over(&config, 1, &options, ranks.as_ref()).unwrap();
            decoder.set_checkpointing(checkpointing, 1);
            let held = decoder.params().bytes()[0];
            let (losses, masters) = train(world, &mut decoder, 3, 3);
            (losses, masters, held)
        });
        // The norm to clip by is summed in another order; a step moves a number by 0.05.
        let bound = if precision == Precision::Fp32 { 1e-5 } else { 2e-3 };
        for (losses, masters, _) in &results {
            let pairs = wanted.0.iter().zip(losses);
            let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < bound, "{case}: losses {:?} and {losses:?}", wanted.0);
            for ((name, theirs), (own_name, own)) in wanted.1.iter().zip(masters) {
                assert_eq!(name, own_name);
                // Keys' biases change no output: their gradient is rounding, of which Adam makes a step.
                if name.ends_with("c_attn.bias") {
                    continue;
                }
                let pairs = theirs.iter().zip(own);
                let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(f64::from(error) < 10.0 * bound, "{case}: {name}: {error}");
            }
        }
        // fp32 masters in whole blocks of 256, and no copies.
        let numbers: usize = wanted.1.iter().map(|(_, weight)| weight.len()).sum();
        let blocks = wanted.1.iter().map(|(_, weight)| weight.len().div_ceil(256));
        let most: usize = blocks.map(|blocks| blocks.div_ceil(size) * 256 * 4).sum();
        for (_, _, held) in &results {
            assert!(*held == most && *held < 4 * numbers, "{case}: {held} of {numbers} numbers");
        }
    }
}

#[test]
fn a_frozen_model_is_divided_under_what_trains() {
    let config = config(Architecture::Llama, false);
    let dir = tempfile::tempdir().unwrap();
    let whole = Decoder::init(&config, 1, &options(Precision::Fp32, false)).unwrap();
    whole.save(dir.path(), Precision::Fp32, u64::MAX).unwrap();
    let adapter: model::peft::Adapter = serde_json::from_value(serde_json::json!({
        "method": {"lora": {"r": 4, "target_modules": ["q_proj", "down_proj"], "use_dora": true}},
        "modules_to_save": ["lm_head"],
    }))
    .unwrap();
    let load = move |dir: &std::path::Path, world: &World| {
        let ranks = world.holders(true);
        let loading = model::Loading {
            options: options(Precision::Fp32, true),
            adapter: Some(&adapter),
            ranks: ranks.as_ref(),
            ..model::Loading::default()
        };
        Decoder::load_with(dir, &loading).unwrap()
    };
    let wanted = {
        let alone = World::alone(Device::Cpu);
        train(&alone, &mut load(dir.path(), &alone), 0, 3)
    };
    let place = dir.path().to_owned();
    let results = in_ranks(2, move |world| {
        let mut decoder = load(&place, world);
        train(world, &mut decoder, 3, 3)
    });
    for (losses, masters) in results {
        let pairs = wanted.0.iter().zip(&losses);
        assert!(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) < 1e-5, "{losses:?}");
        for ((name, theirs), (_, own)) in wanted.1.iter().zip(&masters) {
            let pairs = theirs.iter().zip(own);
            let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-4, "{name}: {error}");
        }
    }
}

#[test]
fn the_first_rank_works_alone_with_what_the_others_hold() {
    let config = config(Architecture::Llama, true);
    let whole = Decoder::init(&config, 5, &options(Precision::Bf16, true)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [theirs, own] = ["whole", "divided"].map(|name| dir.path().join(name));
    whole.save(&theirs, Precision::Fp32, 20_000).unwrap();
    let loss = no_grad(|| token_loss(&whole)).double_value(&[]);
    let place = own.clone();
    let results = in_ranks(3, move |world| {
        let ranks = world.holders(true);
        let options = options(Precision::Bf16, true);
        let decoder = Decoder::init_over(&config, 5, &options, ranks.as_ref()).unwrap();
        let division = decoder.params().division();
        let done = world.lead(division, || {
            decoder.save(&place, Precision::Fp32, 20_000)?;
            Ok(no_grad(|| token_loss(&decoder)).double_value(&[]))
        });
        let failed = world.lead(division, || -> anyhow::Result<()> { anyhow::bail!("no space") });
        let stopped = world.lead(division, || -> anyhow::Result<()> {
            Err(stage::Interrupted(stage::Signal::Term).into())
        });
        // Nothing is out of step after that.
        let again =
            world.lead(division, || Ok(decoder.params().whole("model.norm.weight")?.is_some()));
        let text = |error: Option<anyhow::Error>| error.unwrap().to_string();
        assert!(stopped.as_ref().unwrap_err().is::<stage::Interrupted>());
        (done.unwrap(), text(failed.err()), again.unwrap())
    });
    assert_eq!(results[0], (Some(loss), "no space".to_owned(), Some(true)));
    for other in &results[1..] {
        let failed = "rank 0 has failed; its own output says why";
        assert_eq!(*other, (None, failed.to_owned(), None));
    }
    let mut files = 0;
    for entry in fs_err::read_dir(&theirs).unwrap() {
        let name = entry.unwrap().file_name();
        let [theirs, own] = [&theirs, &own].map(|dir| fs_err::read(dir.join(&name)).unwrap());
        assert!(theirs == own, "{name:?} differs");
        files += 1;
    }
    assert!(files > 3, "{files} files");
}

#[test]
fn a_divided_model_does_not_share_its_weights() {
    let config = config(Architecture::Llama, true);
    let results = in_ranks(2, move |world| {
        let ranks = world.holders(true);
        let options = options(Precision::Fp32, false);
        let decoder = Decoder::init_over(&config, 5, &options, ranks.as_ref()).unwrap();
        decoder.without_adapter().unwrap_err().to_string()
    });
    assert_eq!(results[0], "a model that is divided among processes cannot share its weights");
}

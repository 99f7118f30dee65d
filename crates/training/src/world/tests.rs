mod divided;

use std::net::TcpListener;
use std::sync::mpsc;
use std::thread;

use model::division::slice;
use model::{Decoder, LoadOptions, ModelConfig, Precision};
use tch::no_grad;

use super::*;
use crate::optimizer::AdamW;
use crate::update::Updater;
use crate::{checkpoint, settings};

fn layout(rank: usize, size: usize, port: u16, seconds: u64) -> Layout {
    let master = ("127.0.0.1".to_owned(), port);
    Layout { rank, size, master, patience: Duration::from_secs(seconds), ..Layout::default() }
}

/// A port that nobody listens at.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs `f` in so many ranks, each a thread; their results in order.
fn in_ranks<T: Send + 'static>(
    size: usize,
    f: impl Fn(&World) -> T + Send + Clone + 'static,
) -> Vec<T> {
    let port = free_port();
    let rank = |rank| {
        let f = f.clone();
        thread::spawn(move || {
            let world = World::connect(Device::Cpu, layout(rank, size, port, 30)).unwrap();
            let result = f(&world);
            // The store must serve until every rank is through.
            world.sum(&Tensor::from(0.0)).unwrap();
            result
        })
    };
    let ranks: Vec<_> = (0..size).map(rank).collect();
    ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
}

#[test]
fn a_world_of_one_changes_nothing() {
    let world = World::alone(Device::Cpu);
    let numbers = Tensor::from_slice(&[1.5, -2.0]);
    world.sum(&numbers).unwrap();
    world.max(&numbers).unwrap();
    assert_eq!(Vec::<f64>::try_from(numbers).unwrap(), [1.5, -2.0]);
    assert_eq!(world.gather("나".to_owned()).unwrap(), ["나"]);
    assert!(world.is_first() && !world.is_shared());
}

#[test]
fn ranks_sum_and_tell_each_other_things_of_any_length() {
    let results = in_ranks(3, |world| {
        let rank = world.share().rank;
        let numbers = Tensor::from_slice(&[rank as f32, 1.0]);
        world.sum(&numbers).unwrap();
        let most = Tensor::from_slice(&[rank as i64, -(rank as i64)]);
        world.max(&most).unwrap();
        let told = world.gather(vec!["안녕".to_owned(); rank]).unwrap();
        (Vec::<f32>::try_from(numbers).unwrap(), Vec::<i64>::try_from(most).unwrap(), told)
    });
    for (sums, most, told) in results {
        assert_eq!((sums, most), (vec![3.0, 3.0], vec![2, 0]));
        assert_eq!(told.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(told[2][1], "안녕");
    }
}

#[test]
fn tensors_of_any_strides_are_summed_copied_and_gathered_in_place() {
    let results = in_ranks(2, |world| {
        let together = world.together.as_ref().unwrap();
        let own = world.share().rank as f64 + 1.0;
        // A view of every other number, which the collectives do not take as it is.
        let whole = Tensor::from_slice(&[1.0_f32, 9.0, 2.0, 9.0]).view([2, 2]) * own;
        let column = whole.select(1, 0);
        world.sum(&column).unwrap();
        let copied = whole.select(1, 1);
        together.broadcast(&copied).unwrap();
        let gathered = Tensor::zeros([2, 2], (Kind::Int64, Device::Cpu)).tr();
        let truths = Tensor::zeros([2, 2], (Kind::Bool, Device::Cpu));
        let index = world.share().rank as i64;
        world
            .all_gather(
                &gathered,
                &Tensor::from_slice(&[index, 7, index, 8]).view([2, 2]).select(1, 0),
            )
            .unwrap();
        world.all_gather(&truths, &Tensor::from_slice(&[index == 0, true])).unwrap();
        (numbers(&whole), numbers(&gathered), numbers(&truths))
    });
    for (whole, gathered, truths) in results {
        assert_eq!(whole, [3.0, 9.0, 6.0, 9.0]);
        assert_eq!(gathered, [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(truths, [1.0, 1.0, 0.0, 1.0]);
    }
}

#[test]
fn nccl_is_refused_on_the_cpu() {
    let layout = Layout { backend: Some(Backend::Nccl), ..layout(0, 1, free_port(), 5) };
    let error = World::connect(Device::Cpu, layout).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--ddp-backend nccl is for GPUs, and this process computes on the CPU"
    );
    assert!(error.is::<stage::UsageError>());
}

fn tiny(precision: Precision, seed: u64) -> Decoder {
    let config: serde_json::Result<serde_json::Value> = serde_json::from_str(
        r#"{"model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": true}"#,
    );
    let options = LoadOptions { device: Device::Cpu, precision, trainable: true };
    Decoder::init(&ModelConfig::from_json(&config.unwrap()).unwrap(), seed, &options).unwrap()
}

/// A loss whose gradient is `2 number` times the weights.
fn loss(decoder: &Decoder, number: f64) -> Tensor {
    let leaves = decoder.params().leaves();
    let sum = |leaf: &model::Leaf| (&leaf.compute * &leaf.compute * number).sum(Kind::Float);
    leaves.iter().map(sum).reduce(|a, b| a + b).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.contiguous().view(-1).to_kind(Kind::Float)).unwrap()
}

#[test]
fn gradients_of_all_micro_batches_and_ranks_are_summed() {
    for precision in [Precision::Fp32, Precision::Bf16] {
        let results = in_ranks(2, move |world| {
            let mut decoder = tiny(precision, 1);
            let reducer = Reducer::new(world, decoder.params(), 0).unwrap();
            let rank = world.share().rank as f64;
            let mut steps = Vec::new();
            // While backward runs, then after it.
            for early in [true, false] {
                let first = loss(&decoder, 1.0 + rank);
                reducer.backward(decoder.params_mut(), &first, false).unwrap();
                let second = loss(&decoder, 10.0);
                reducer.backward(decoder.params_mut(), &second, early).unwrap();
                if !early {
                    reducer.sum_gathered(decoder.params_mut()).unwrap();
                }
                let trainable = decoder.params_mut().trainable();
                // 2 (1 + 10 + 2 + 10) times the weight.
                let error = |weight: &model::Trainable<'_>| {
                    let wanted = &weight.master * 46.0;
                    let error = no_grad(|| (&weight.grad - &wanted).abs().max());
                    f64::try_from(error / wanted.abs().max().clamp_min(1e-3)).unwrap()
                };
                let grads: Vec<Vec<f32>> =
                    trainable.iter().map(|weight| numbers(&weight.grad)).collect();
                steps.push((trainable.iter().map(error).fold(0.0, f64::max), grads));
                drop(trainable);
                decoder.params_mut().clear_grads().unwrap();
            }
            steps
        });
        let bound = if precision == Precision::Fp32 { 1e-6 } else { 1e-2 };
        for (first, second) in results[0].iter().zip(&results[1]) {
            assert!(first.0 < bound, "{precision:?}: {}", first.0);
            assert_eq!(first.1, second.1, "every rank has the same bits");
        }
    }
}

fn settings(bits: u32) -> settings::Optimizer {
    let text = format!(
        "learning_rate = 0.05\nweight_decay = 0.1\nmax_grad_norm = 0.5\noptim_bits = {bits}"
    );
    toml::from_str(&text).unwrap()
}

/// Three steps of two micro-batches; the masters, and the bytes of the optimiser's state.
fn three_steps(
    world: &World,
    zero_stage: u8,
    bits: u32,
    precision: Precision,
) -> (Vec<Vec<f32>>, usize) {
    let mut decoder = tiny(precision, 1);
    let mut updater = Updater::new(world, &mut decoder, &settings(bits), zero_stage).unwrap();
    let size = world.share().size as f64;
    for step in 0..3 {
        for (last, number) in [(false, 1.0 + f64::from(step)), (true, 3.0)] {
            let own = loss(&decoder, number / size);
            updater.backward(&mut decoder, &own, last).unwrap();
        }
        let applied = updater.apply(&mut decoder, 1.0, &Tensor::from_slice(&[1.0])).unwrap();
        assert!(applied.finite && applied.grad_norm > 0.5);
    }
    let masters = decoder.params().iter().map(|(_, master)| numbers(&master)).collect();
    (masters, updater.bytes()[1])
}

#[test]
fn dividing_the_state_changes_no_result_but_by_rounding() {
    for (bits, precision, bound) in
        [(32, Precision::Fp32, 2e-6), (8, Precision::Fp32, 2e-6), (32, Precision::Bf16, 2e-3)]
    {
        let (alone, whole) = three_steps(&World::alone(Device::Cpu), 0, bits, precision);
        for zero_stage in [0, 1, 2] {
            let ranks = in_ranks(2, move |world| three_steps(world, zero_stage, bits, precision));
            assert_eq!(ranks[0].0, ranks[1].0, "every rank has the same bits");
            let pairs = alone.iter().flatten().zip(ranks[0].0.iter().flatten());
            let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < bound, "stage {zero_stage}, {bits} bits, {precision:?}: {error}");
            let bytes: usize = ranks.iter().map(|rank| rank.1).sum();
            if zero_stage == 0 {
                assert_eq!(bytes, 2 * whole);
            } else {
                // But for a step counter of each slice.
                assert!(bytes.abs_diff(whole) < whole / 20, "{bytes} of {whole}");
                assert!(ranks[0].1 < whole * 3 / 4, "{} of {whole}", ranks[0].1);
            }
        }
    }
}

#[test]
fn state_saved_by_two_ranks_is_taken_up_by_any_number() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().to_owned();
    in_ranks(2, move |world| {
        let mut decoder = tiny(Precision::Fp32, 1);
        let reducer = Reducer::new(world, decoder.params(), 1).unwrap();
        let optimizer = AdamW::new(&reducer.trainable(decoder.params_mut()), &settings(32));
        // Each number is its place in the parameter.
        for (key, piece) in optimizer.state() {
            let name = key.split_once('.').unwrap().1;
            let masters = decoder.params().masters();
            let numel = masters.iter().find(|master| master.name == name).unwrap();
            let numel = numel.shape.iter().product::<i64>();
            let first = if piece.numel() == 1 {
                7
            } else {
                slice(numel, world.share().rank, world.share().size).start
            };
            let own =
                Tensor::arange(piece.numel() as i64, (Kind::Float, Device::Cpu)) + first as f64;
            no_grad(|| piece.shallow_clone().copy_(&own.view(piece.size().as_slice())));
        }
        let file = place.join(checkpoint::optimizer_file("optimizer", world.share()));
        model::weights::write_tensors(&file, &optimizer.state()).unwrap();
    });
    let place = dir.path().to_owned();
    for size in [1, 2, 3] {
        let place = place.clone();
        in_ranks(size, move |world| {
            let mut decoder = tiny(Precision::Fp32, 1);
            let reducer = Reducer::new(world, decoder.params(), 1).unwrap();
            let share = reducer.share();
            let mut optimizer = AdamW::new(&reducer.trainable(decoder.params_mut()), &settings(32));
            checkpoint::load_optimizer(&mut optimizer, &place, "optimizer", share).unwrap();
            let masters = decoder.params().masters();
            for (key, piece) in optimizer.state() {
                let name = key.split_once('.').unwrap().1;
                let master = masters.iter().find(|master| master.name == name).unwrap();
                let numel = master.shape.iter().product::<i64>();
                let first =
                    if piece.numel() == 1 { 7 } else { slice(numel, share.rank, share.size).start };
                let values = numbers(&piece);
                let expected = (0..values.len()).map(|at| (at as i64 + first) as f32);
                assert!(values.iter().copied().eq(expected), "{key} of {size}");
            }
        });
    }
    fs_err::remove_file(place.join("optimizer-00002-of-00002.safetensors")).unwrap();
    let mut decoder = tiny(Precision::Fp32, 1);
    let mut optimizer = AdamW::new(&decoder.params_mut().trainable(), &settings(32));
    let share = Share::default();
    let error = checkpoint::load_optimizer(&mut optimizer, &place, "optimizer", share).unwrap_err();
    let expected = "optimizer-00002-of-00002.safetensors: there is no such file";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[test]
fn every_rank_gets_the_first_ones_weights() {
    let sums = in_ranks(2, |world| {
        let mut decoder = tiny(Precision::Bf16, world.share().rank as u64);
        world.share_weights(decoder.params_mut()).unwrap();
        let params = decoder.params();
        let masters: Vec<f64> =
            params.iter().map(|(_, t)| t.sum(Kind::Double).double_value(&[])).collect();
        let compute = params
            .leaves()
            .iter()
            .map(|leaf| leaf.compute.sum(Kind::Double).double_value(&[]))
            .sum::<f64>();
        (masters, compute)
    });
    assert_eq!(sums[0], sums[1]);
}

#[test]
fn random_numbers_differ_by_step_and_rank() {
    let at = |rank| World { share: Share { rank, size: 3 }, ..World::alone(Device::Cpu) };
    let seeds: std::collections::BTreeSet<i64> =
        (0..3).flat_map(|rank| (0..100).map(move |step| at(rank).seed(7, step))).collect();
    assert_eq!(seeds.len(), 300);
    assert_eq!(at(1).seed(7, 5), at(1).seed(7, 5));
}

#[test]
fn a_rank_that_hangs_is_named() {
    let port = free_port();
    let (done, wait) = mpsc::channel::<()>();
    let hanging = thread::spawn(move || {
        let world = World::connect(Device::Cpu, layout(0, 2, port, 30)).unwrap();
        world.sum(&Tensor::from(1.0)).unwrap();
        let _ = wait.recv();
    });
    let world = World::connect(Device::Cpu, layout(1, 2, port, 2)).unwrap();
    world.sum(&Tensor::from(1.0)).unwrap();
    let error = world.sum(&Tensor::from(1.0)).unwrap_err();
    assert_eq!(error.to_string(), "rank 0 did not take part in time");
    assert!(
        stage::report(&error).contains("hint: its own output says why"),
        "{}",
        stage::report(&error)
    );
    drop(done);
    hanging.join().unwrap();
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let error = World::connect(Device::Cpu, layout(0, 2, free_port(), 1)).unwrap_err();
    assert_eq!(error.to_string(), "rank 1 did not come");
    let port = free_port();
    let error = World::connect(Device::Cpu, layout(1, 2, port, 1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("rank 0 is not to be found at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT)")
    );
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = World::connect(Device::Cpu, layout(0, 2, port, 1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot listen at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT)")
    );
}

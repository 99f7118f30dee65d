//! Kills and signals lose nothing.

use std::thread::sleep;
use std::time::{Duration, Instant};

use temper_tests::binaries::Running;

use super::*;

/// Kills in the test suite; `TEMPER_KILLS=20` makes it as many as one likes.
const KILLS: u64 = 5;
const FEW_KILLS: u64 = 3;

const PPO_READS: &[&str] = &["data", "sft", "reward"];
const LONGER_PPO: [&str; 6] = [
    "train.steps=16",
    "train.log_every_steps=2",
    "train.checkpoint.every_steps=1",
    "eval.every_steps=2",
    "eval.max_prompts=4",
    "samples.every_steps=5",
];

/// A run to be killed: longer than its config has it, and with a checkpoint at nearly every step, so that kills fall into the
/// writing of some.
struct Victim<'a> {
    name: &'a str,
    /// Runs that it reads.
    reads: &'a [&'a str],
    settings: &'a [&'a str],
    kills: u64,
}

/// Numbers from 0 to 1 that look random, lie apart and are the same in every run.
fn moments(count: u64) -> impl Iterator<Item = f64> {
    // Multiples of the golden ratio.
    (1..=count).map(|n| (n as f64 * 0.618033988749895).fract())
}

/// How long a run takes to its first checkpoint, and from there to its end.
fn pace(running: Running, run: &Path) -> (Duration, Duration) {
    let (mut running, started) = (running, Instant::now());
    running.wait_until(|| checkpoints(run) > 0).unwrap();
    let first = started.elapsed();
    let outcome = running.finish().unwrap();
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    (first, started.elapsed().checked_sub(first).unwrap())
}

#[expect(clippy::print_stdout, reason = "how many kills is part of what a run is for")]
fn survives_kills(victim: &Victim<'_>) {
    let Victim { name, reads, settings, kills } = *victim;
    let yard = yard(reads);
    let dir = yard.path();
    let command = |run: &str| stage(name, dir).args(["--out", run]).args(sets(settings));
    let (start, rest) = pace(command("straight").start().unwrap(), &dir.join("straight"));
    let kills =
        std::env::var("TEMPER_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(kills);
    let run = dir.join("killed");
    let (mut resumed, mut half_written, mut ended) = (0, 0, None);
    for (kill, moment) in moments(kills).enumerate() {
        let mut running = command("killed").start().unwrap();
        if kill == 0 {
            // Once for sure where there is something to go on from.
            running.wait_until(|| checkpoints(&run) > 1).unwrap();
        } else {
            // Anywhere in its start or in its share of the run.
            sleep((start + rest / kills as u32).mul_f64(moment));
        }
        if running.ended().unwrap() {
            ended = Some(running.finish().unwrap());
            break;
        }
        running.kill().unwrap();
        resumed += u64::from(checkpoints(&run) > 0);
        let all = fs_err::read_dir(run.join("checkpoints")).map_or(0, Iterator::count);
        half_written += all - checkpoints(&run);
    }
    let last = ended.unwrap_or_else(|| command("killed").run().unwrap());
    assert_eq!(last.code(), Some(0), "{last}");
    assert!(
        resumed > 0 && last.stderr.contains("goes on from"),
        "no kill hit a run with a checkpoint\n{last}"
    );
    println!(
        "{name}: {kills} kills, {resumed} of them with a checkpoint, {half_written} half-written"
    );
    for product in ["model", "adapter", "data"] {
        if dir.join("straight").join(product).exists() {
            assert_same_files(
                &dir.join("killed").join(product),
                &dir.join("straight").join(product),
            );
        }
    }
    if dir.join("straight/metrics.jsonl").exists() {
        assert_eq!(metrics(&dir.join("killed")), metrics(&dir.join("straight")));
    }
    assert_eq!(timeless_results(&dir.join("killed")), timeless_results(&dir.join("straight")));
    let samples = |run: &str| fs_err::read(dir.join(run).join("samples.parquet")).ok();
    assert!(samples("killed") == samples("straight"), "other samples");
    let hidden = files(&dir.join("killed"));
    assert!(hidden.iter().all(|(name, _)| !name.to_string_lossy().contains(".temper.tmp")));
}

#[test]
fn a_pretraining_run_killed_at_random_ends_with_the_same_bits() {
    survives_kills(&Victim {
        name: "pretrain",
        reads: &["data"],
        settings: &["train.steps=150", "train.checkpoint.every_steps=2"],
        kills: KILLS,
    });
}

#[test]
fn a_fine_tuning_run_in_bf16_with_dropout_killed_at_random_ends_with_the_same_bits() {
    survives_kills(&Victim {
        name: "sft",
        reads: &["data", "pretrain"],
        settings: &["train.epochs=7", "train.checkpoint.every_steps=2", "train.precision=bf16"],
        kills: KILLS,
    });
}

#[test]
fn a_reward_model_killed_at_random_ends_with_the_same_bits() {
    survives_kills(&Victim {
        name: "reward",
        reads: &["data", "sft"],
        settings: &["train.steps=100", "train.checkpoint.every_steps=2"],
        kills: FEW_KILLS,
    });
}

#[test]
fn revisions_killed_at_random_end_with_the_same_bits() {
    survives_kills(&Victim {
        name: "cai generate",
        reads: &["data", "sft"],
        settings: &["generate.batch_prompts=2"],
        kills: KILLS,
    });
}

#[test]
fn labels_killed_at_random_end_with_the_same_bits() {
    survives_kills(&Victim {
        name: "cai label",
        reads: &["data", "sft", "cai-train"],
        settings: &["responses.batch_prompts=2"],
        kills: FEW_KILLS,
    });
}

#[test]
fn training_on_revisions_killed_at_random_ends_with_the_same_bits() {
    survives_kills(&Victim {
        name: "cai train",
        reads: &["data", "sft", "cai-generate"],
        settings: &["train.steps=160", "train.checkpoint.every_steps=2", "eval.max_prompts=2"],
        kills: KILLS,
    });
}

#[test]
fn a_policy_with_a_value_model_killed_at_random_ends_with_the_same_bits() {
    let settings = [&LONGER_PPO[..], &["train.checkpoint.keep_best=true"]].concat();
    survives_kills(&Victim { name: "ppo", reads: PPO_READS, settings: &settings, kills: KILLS });
}

#[test]
fn a_policy_that_shares_its_trunk_killed_at_random_ends_with_the_same_bits() {
    let more = [
        "value.init={shared_trunk={}}",
        "kl.coef={adaptive={initial=0.1,target=1.0,horizon=100}}",
        "ptx={data=[\"data/data/instructions/train.parquet\"],coef=0.5,batch_tokens=128}",
    ];
    let settings = [&LONGER_PPO[..], &more].concat();
    let kills = FEW_KILLS;
    survives_kills(&Victim { name: "ppo", reads: PPO_READS, settings: &settings, kills });
}

/// Settings of `peft` for a run that is killed.
const LONGER_PEFT: [&str; 4] = [
    "train.checkpoint.every_steps=1",
    "train.steps=60",
    "evaluation.things.max_prompts=4",
    "evaluation.instructions.max_prompts=1",
];

fn an_adapter_survives_kills(settings: &[&str]) {
    let settings = [&LONGER_PEFT[..], settings].concat();
    survives_kills(&Victim {
        name: "peft",
        reads: &["data", "sft"],
        settings: &settings,
        kills: FEW_KILLS,
    });
}

#[test]
fn a_lora_with_dropout_killed_at_random_ends_with_the_same_bits() {
    an_adapter_survives_kills(&["peft.method.lora.lora_dropout=0.3", "peft.merge=true"]);
}

#[test]
fn a_lora_over_weights_in_4_bits_killed_at_random_ends_with_the_same_bits() {
    an_adapter_survives_kills(&["peft.quantization={}", "train.precision=bf16"]);
}

#[test]
fn a_pissa_killed_at_random_ends_with_the_same_bits() {
    an_adapter_survives_kills(&["peft.method.lora.init_lora_weights=pissa"]);
}

#[test]
fn a_signal_saves_and_the_exit_code_tells_which() {
    let yard = yard(&["data"]);
    let dir = yard.path();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("USR1", 138)] {
        let command = stage("pretrain", dir).args(["--set", "train.checkpoint.every_steps=50"]);
        let mut running = command.start().unwrap();
        let log = dir.join("pretrain/metrics.jsonl");
        let lines = || fs_err::read_to_string(&log).map_or(0, |text| text.lines().count());
        let before = lines();
        assert!(running.wait_until(|| lines() > before).unwrap(), "it ended too soon");
        running.signal(signal).unwrap();
        let outcome = running.finish().unwrap();
        assert_eq!(outcome.code(), Some(code), "{outcome}");
        let name = format!("error: stopped by SIG{signal}; run the same command again to go on");
        outcome.expect_error(&[&name]).unwrap();
        assert!(!dir.join("pretrain/manifest.json").exists());
        assert!(fs_err::read_dir(dir.join("pretrain/checkpoints")).unwrap().count() > 0);
    }
    let end = stage("pretrain", dir)
        .args(["--set", "train.checkpoint.every_steps=50"])
        .succeed()
        .unwrap();
    assert!(end.stderr.contains("goes on from pretrain/checkpoints/step-"), "{end}");
    assert_same_files(&dir.join("pretrain/model"), &FINISHED.join("pretrain/model"));
}

#[test]
fn a_signal_before_an_evaluation_loses_no_step() {
    let yard = yard(PPO_READS);
    let settings = ["train.steps=60", "train.checkpoint.every_steps=60", "eval.every_steps=1"];
    let run = yard.path().join("ppo");
    let log = run.join("metrics.jsonl");
    let lines = || fs_err::read_to_string(&log).map_or(0, |text| text.lines().count());
    let mut running = stage("ppo", yard.path()).args(sets(&settings)).start().unwrap();
    // The first line is of step 0; every step has two.
    assert!(running.wait_until(|| lines() >= 5).unwrap(), "it ended too soon");
    running.signal("TERM").unwrap();
    let outcome = running.finish().unwrap();
    assert_eq!(outcome.code(), Some(143), "{outcome}");
    let last = metrics(&run).last().unwrap()["step"].as_u64().unwrap();
    let saved = run.join(format!("checkpoints/step-{last:08}"));
    assert!(saved.exists(), "step {last} is lost\n{outcome}");
}

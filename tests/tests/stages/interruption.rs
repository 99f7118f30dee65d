//! Kills and signals lose nothing.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::*;

/// Kills in the test suite; `TEMPER_KILLS=20` makes it as many as one likes.
const KILLS: u64 = 5;

/// Moments that look random and are the same in every run.
fn moments(count: u64) -> impl Iterator<Item = Duration> {
    (1..=count).map(|n| {
        let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n << 7);
        Duration::from_micros(mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 44)
    })
}

/// How long a run takes from its first checkpoint to its end.
fn pace(name: &str, dir: &Path, run: &str) -> Duration {
    let mut running = stage(name, dir).args(["--out", run]).start().unwrap();
    let checkpoints = dir.join(run).join("checkpoints");
    running.wait_until(|| checkpoints.exists()).unwrap();
    let started = Instant::now();
    let outcome = running.finish().unwrap();
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    started.elapsed()
}

fn survives_kills(name: &str, set: &[&str]) {
    let yard = yard(&["data", "pretrain"]);
    let dir = yard.path();
    let config = format!("{name}.toml");
    let text = fs_err::read_to_string(dir.join(&config)).unwrap();
    // A longer run with a checkpoint at nearly every step, so that kills fall into the writing of some.
    let text =
        text.replace("every_steps = 4\n", "every_steps = 2\n").replace("steps = 60", "steps = 150");
    let text = text
        .replace("every_steps = 5\nkeep", "every_steps = 2\nkeep")
        .replace("epochs = 2", "epochs = 7");
    fs_err::write(dir.join(&config), text).unwrap();
    let command = |run: &str| {
        let out = ["--out", run].map(str::to_owned);
        stage(name, dir).args(out).args(set.iter().copied())
    };
    command("straight").succeed().unwrap();
    let whole = pace(name, dir, "paced").as_secs_f64();

    let kills =
        std::env::var("TEMPER_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let (mut resumed, mut left_over) = (0, 0);
    for moment in moments(kills) {
        let mut running = command("killed").start().unwrap();
        let checkpoints = dir.join("killed/checkpoints");
        let newest = || fs_err::read_dir(&checkpoints).map_or(0, |found| found.count());
        let before = newest();
        // From shortly before the first step on, within the time that this kill's share of the run takes.
        running
            .wait_until(|| dir.join("killed/metrics.jsonl").exists() && newest() >= before.min(1))
            .unwrap();
        sleep(moment.mul_f64(whole / kills as f64).min(Duration::from_secs(5)));
        if running.ended().unwrap() {
            break;
        }
        running.kill().unwrap();
        resumed += u64::from(newest() > 0);
        left_over += fs_err::read_dir(&checkpoints).map_or(0, |found| {
            found
                .filter(|entry| {
                    entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')
                })
                .count()
        });
    }
    let last = command("killed").succeed().unwrap();
    assert!(
        resumed > 0 && last.stderr.contains("goes on from"),
        "no kill hit a run with a checkpoint\n{last}"
    );
    println!(
        "{name}: {kills} kills, {resumed} with a checkpoint, {left_over} half-written ones left and swept"
    );
    assert_same_files(&dir.join("killed/model"), &dir.join("straight/model"));
    assert_eq!(metrics(&dir.join("killed")), metrics(&dir.join("straight")));
    let without_clock = |run: &str| {
        let mut all = results(&dir.join(run));
        for key in ["tokens_per_second", "peak_memory_bytes"] {
            all.as_object_mut().unwrap().remove(key);
        }
        all
    };
    assert_eq!(without_clock("killed"), without_clock("straight"));
    let hidden = files(&dir.join("killed"));
    assert!(hidden.iter().all(|(name, _)| !name.to_string_lossy().contains(".temper.tmp")));
}

#[test]
fn a_pretraining_run_killed_at_random_ends_with_the_same_bits() {
    survives_kills("pretrain", &[]);
}

#[test]
fn a_fine_tuning_run_in_bf16_with_dropout_killed_at_random_ends_with_the_same_bits() {
    survives_kills("sft", &["--set", "train.precision=bf16"]);
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
        assert!(running.wait_until(|| lines() > before.max(0)).unwrap(), "it ended too soon");
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

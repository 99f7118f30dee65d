//! Kills and signals lose nothing.

use std::thread::sleep;
use std::time::{Duration, Instant};

use temper_tests::binaries::Running;

use super::*;

/// Kills in the test suite; `TEMPER_KILLS=20` makes it as many as one likes.
const KILLS: u64 = 5;

/// Numbers from 0 to 1 that look random and are the same in every run.
fn moments(count: u64) -> impl Iterator<Item = f64> {
    (1..=count).map(|n| {
        let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n << 7);
        (mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 44) as f64 / f64::from(1 << 20)
    })
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
    let (start, rest) = pace(command("straight").start().unwrap(), &dir.join("straight"));
    let kills =
        std::env::var("TEMPER_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let run = dir.join("killed");
    let (mut resumed, mut half_written) = (0, 0);
    for moment in moments(kills) {
        let mut running = command("killed").start().unwrap();
        // Anywhere in its start or in its share of the run.
        sleep((start + rest / kills as u32).mul_f64(moment));
        if running.ended().unwrap() {
            break;
        }
        running.kill().unwrap();
        resumed += u64::from(checkpoints(&run) > 0);
        let all = fs_err::read_dir(run.join("checkpoints")).map_or(0, Iterator::count);
        half_written += all - checkpoints(&run);
    }
    let last = command("killed").succeed().unwrap();
    assert!(
        resumed > 0 && last.stderr.contains("goes on from"),
        "no kill hit a run with a checkpoint\n{last}"
    );
    println!(
        "{name}: {kills} kills, {resumed} of them with a checkpoint, {half_written} half-written"
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

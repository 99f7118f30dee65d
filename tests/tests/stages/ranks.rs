//! Several processes that train together: the same curve as one, and what becomes of a rank that dies, hangs or is told to stop.

use temper_tests::binaries::{Outcome, Running};

use super::*;

/// Nothing that depends on how many processes there are: no dropout, whose masks differ from rank to rank.
const SFT_PLAIN: [&str; 4] = [
    "train.dropout=0.0",
    "train.log_every_steps=1",
    "train.checkpoint.every_steps=2",
    "train.epochs=1",
];

fn plain_sft<'a>(dir: &'a Path, run: &str) -> Stage<'a> {
    stage("sft", dir).args(["--out", run]).args(sets(&SFT_PLAIN))
}

/// Waits for all.
fn finish(ranks: Vec<Running>) -> Vec<Outcome> {
    ranks.into_iter().map(|rank| rank.finish().unwrap()).collect()
}

#[track_caller]
fn succeed(ranks: Vec<Running>) {
    for outcome in finish(ranks) {
        assert_eq!(outcome.code(), Some(0), "{outcome}");
    }
}

/// Fails unless two runs have the same metrics at the same steps: losses to 1e-6, all other numbers to 1e-4, relative to those above 1.
#[track_caller]
fn assert_same_curve(a: &Path, b: &Path) {
    let (a, b) = (metrics(a), metrics(b));
    assert_eq!(a.len(), b.len());
    assert!(!a.is_empty());
    for (a, b) in a.iter().zip(&b) {
        let (a, b) = (a.as_object().unwrap(), b.as_object().unwrap());
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (name, a) in a {
            let (a, b) = (a.as_f64().unwrap_or(0.0), b[name].as_f64().unwrap_or(0.0));
            let difference = (a - b).abs() / a.abs().max(1.0);
            let most = if name.contains("loss") { 1e-6 } else { 1e-4 };
            assert!(difference < most, "{name} differs by {difference}");
        }
    }
}

/// One process with `settings` and two, these also with `more`, have the same curve and leave the same files.
#[track_caller]
fn same_curve(name: &str, reads: &[&str], settings: &[&str], more: &[&str]) {
    let yard = yard(reads);
    let dir = yard.path();
    let command = |run: &'static str| stage(name, dir).args(["--out", run]).args(sets(settings));
    command("one").succeed().unwrap();
    succeed(command("two").args(sets(more)).start_ranks(2).unwrap());
    assert_same_curve(&dir.join("one"), &dir.join("two"));
    // What is written is whole, and by one process.
    let names =
        |run: &str| files(&dir.join(run)).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let shared = |run: &str| {
        let mut list = names(run);
        // Of an optimiser that is divided each process writes a part.
        let of_optimizer = |path: &Path| path.to_string_lossy().contains("optimizer");
        list.retain(|path| !path.starts_with("tensorboard") && !of_optimizer(path));
        list
    };
    assert_eq!(shared("one"), shared("two"));
}

#[test]
fn two_processes_have_the_curve_of_one_in_sft() {
    same_curve("sft", &["data", "pretrain"], &SFT_PLAIN, &[]);
}

#[test]
fn two_processes_have_the_curve_of_one_in_reward() {
    let settings = ["train.steps=10", "train.log_every_steps=1"];
    same_curve("reward", &["data", "sft"], &settings, &[]);
}

#[test]
fn a_model_that_two_processes_hold_together_has_the_curve_of_one() {
    let settings = ["train.steps=10", "train.log_every_steps=1"];
    same_curve("reward", &["data", "sft"], &settings, &["train.zero_stage=3"]);
    // Answers before and after, over a frozen model that is divided under its adapter.
    let settings =
        ["train.steps=8", "train.log_every_steps=1", "peft.method.lora.lora_dropout=0.0"];
    same_curve("peft", &["data", "sft"], &settings, &["train.zero_stage=3"]);
}

#[test]
fn two_processes_have_the_curve_of_one_in_ppo() {
    let settings =
        ["train.steps=3", "train.log_every_steps=1", "train.optimizer.learning_rate=1e-4"];
    // Each moves its slices of policy and value function.
    same_curve("ppo", &["data", "sft", "reward"], &settings, &["train.zero_stage=1"]);
}

#[test]
fn dividing_the_state_has_the_same_curve_and_its_checkpoints_serve_any_number() {
    let yard = yard(&["data", "pretrain"]);
    let dir = yard.path();
    let command = |run: &'static str, more: &'static str| plain_sft(dir, run).args(["--set", more]);
    command("one", "train.zero_stage=0").succeed().unwrap();
    for (run, zero_stage) in [
        ("stage-1", "train.zero_stage=1"),
        ("stage-2", "train.zero_stage=2"),
        ("stage-3", "train.zero_stage=3"),
    ] {
        let mut ranks = command(run, zero_stage).start_ranks(2).unwrap();
        let place = dir.join(run);
        assert!(ranks[0].wait_until(|| checkpoints(&place) > 0).unwrap());
        ranks[1].signal("TERM").unwrap();
        for outcome in finish(ranks) {
            assert_eq!(outcome.code(), Some(143), "{outcome}");
        }
        copy(&place, &dir.join("alone"));
        succeed(command(run, zero_stage).start_ranks(2).unwrap());
        assert_same_curve(&dir.join("one"), &place);
        // One process takes up what two have divided, without dividing.
        command("alone", "train.zero_stage=0").succeed().unwrap();
        assert_same_curve(&dir.join("one"), &dir.join("alone"));
        fs_err::remove_dir_all(dir.join("alone")).unwrap();
    }
}

#[test]
fn a_rank_that_is_killed_ends_the_others_and_any_number_goes_on() {
    let yard = yard(&["data", "pretrain"]);
    let dir = yard.path();
    let command = |run: &'static str| plain_sft(dir, run);
    succeed(command("straight").start_ranks(2).unwrap());

    let run = dir.join("killed");
    let mut ranks = command("killed").start_ranks(2).unwrap();
    assert!(ranks[0].wait_until(|| checkpoints(&run) > 0).unwrap());
    ranks.pop().unwrap().kill().unwrap();
    let first = ranks.pop().unwrap().finish().unwrap();
    assert_eq!(first.code(), Some(1), "{first}");
    first.expect_error(&["rank 1 gives no sign of life", "hint: its own output says why"]).unwrap();
    assert!(!run.join("manifest.json").exists());
    copy(&run, &dir.join("by-one"));

    // The same number: to the bit.
    succeed(command("killed").start_ranks(2).unwrap());
    assert_same_files(&dir.join("straight/model"), &run.join("model"));
    assert_eq!(metrics(&dir.join("straight")), metrics(&run));
    // Another number: but for rounding.
    command("by-one").succeed().unwrap();
    assert_same_curve(&run, &dir.join("by-one"));
}

#[test]
fn a_rank_that_hangs_ends_the_others() {
    let yard = yard(&["data", "pretrain"]);
    let run = yard.path().join("hung");
    let stage = plain_sft(yard.path(), "hung").args(["--rank-timeout", "2"]);
    let mut ranks = stage.start_ranks(2).unwrap();
    assert!(ranks[0].wait_until(|| checkpoints(&run) > 0).unwrap());
    ranks[1].signal("STOP").unwrap();
    let hung = ranks.pop().unwrap();
    let first = ranks.pop().unwrap().finish().unwrap();
    drop(hung);
    assert_eq!(first.code(), Some(1), "{first}");
    first.expect_error(&["rank 1 gives no sign of life"]).unwrap();
}

#[test]
fn a_signal_to_one_rank_stops_all_after_the_same_step() {
    let yard = yard(&["data", "pretrain"]);
    let dir = yard.path();
    let command = |run: &'static str| plain_sft(dir, run);
    succeed(command("straight").start_ranks(2).unwrap());
    let run = dir.join("stopped");
    let mut ranks = command("stopped").start_ranks(2).unwrap();
    assert!(ranks[0].wait_until(|| checkpoints(&run) > 0).unwrap());
    ranks[1].signal("TERM").unwrap();
    for outcome in finish(ranks) {
        assert_eq!(outcome.code(), Some(143), "{outcome}");
    }
    succeed(command("stopped").start_ranks(2).unwrap());
    assert_same_files(&dir.join("straight/model"), &run.join("model"));
}

#[test]
fn a_stage_of_one_process_says_so() {
    let yard = yard(&["data", "pretrain", "sft"]);
    let ranks = stage("evaluate", yard.path()).start_ranks(2).unwrap();
    for outcome in finish(ranks) {
        assert_eq!(outcome.code(), Some(2), "{outcome}");
        outcome.expect_error(&["evaluate runs in one process, but WORLD_SIZE is 2"]).unwrap();
    }
}

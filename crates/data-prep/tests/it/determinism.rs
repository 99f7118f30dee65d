//! The same input, config and seed give the same bytes.

use std::process::Stdio;
use std::time::Duration;

use super::*;

const CONFIG: &str = r#"
seed = 5
out = "run"
preview_rows = 1
[tokenizer.train]
vocab_size = 450
max_train_mb = 1
[datasets.chat]
kind = "chat"
sources = ["data/alpaca.json"]
max_length = 64
overlong = "truncate"
validation_fraction = 0.1
dedup.near.threshold = 0.7
[datasets.text]
kind = "text"
sources = ["data/*.txt"]
read.text_unit = "line"
max_length = 32
validation_fraction = 0.1
dedup.near = { threshold = 0.8, num_hashes = 64, bands = 16, shingle_chars = 4 }
[datasets.pairs]
kind = "preference"
sources = ["data/pairs.jsonl"]
max_length = 64
overlong = "truncate"
validation_fraction = 0.1
train_prompts = true
dedup.near.threshold = 0.7
[datasets.prompts]
kind = "prompt"
sources = ["data/pairs.jsonl"]
max_length = 64
validation_fraction = 0.1
[datasets.village]
kind = "text"
max_length = 64
[datasets.village.world]
seed = 2
part = "pretrain"
records = 100
"#;

fn yard() -> Yard {
    let yard = Yard::new();
    yard.write("data/alpaca.json", alpaca(800));
    let lines = |from: usize| -> String {
        let line = |n| format!("{n}번째 줄입니다. Line {n} of the book tells of {}.", n * n % 977);
        (from..from + 2000).flat_map(|n: usize| [line(n), "\n".to_owned()]).collect()
    };
    yard.write("data/a.txt", lines(0));
    yard.write("data/b.txt", lines(1000));
    let pair = |n: usize| {
        let reply = |text: String, rank: usize| serde_json::json!({"text": text, "rank": rank});
        let replies = [
            reply(format!("{}입니다.", n * 7 % 911), n % 3),
            reply(format!("That makes {}.", n + 1), (n + 1) % 3),
            reply("모르겠어요.".to_owned(), 1),
        ];
        serde_json::json!({"prompt": format!("{}에 하나를?", n % 500), "replies": replies})
            .to_string()
    };
    yard.write("data/pairs.jsonl", (0..900).map(pair).collect::<Vec<_>>().join("\n"));
    yard.write("config.toml", CONFIG);
    yard
}

#[test]
fn the_number_of_threads_and_earlier_runs_change_nothing() {
    let yard = yard();
    let mut first = None;
    for threads in ["1", "2", "7"] {
        let ran = yard.run_with(&[], threads);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let now = (snapshot(&yard.path("run")), ran.stdout);
        match &first {
            None => first = Some(now),
            Some(first) => assert!(*first == now, "{threads} threads"),
        }
    }
    let (files, _) = first.unwrap();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "config.toml",
            "data/chat/prompts.parquet",
            "data/chat/train.parquet",
            "data/chat/validation.parquet",
            "data/pairs/prompts.parquet",
            "data/pairs/train-prompts.parquet",
            "data/pairs/train.parquet",
            "data/pairs/validation.parquet",
            "data/prompts/prompts.parquet",
            "data/prompts/train-prompts.parquet",
            "data/text/train.parquet",
            "data/text/validation.parquet",
            "data/village/train.parquet",
            "data/village/validation.parquet",
            "tokenizer/generation_config.json",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
        ]
    );
    let seeded = yard.run(&["--out", "other", "--set", "seed=6"]);
    assert_eq!(seeded.code, 0, "{}", seeded.stderr);
    let split = |run: &str| fs::read(yard.path(run).join("data/chat/validation.parquet")).unwrap();
    assert_ne!(split("run"), split("other"), "the seed decides the split");
}

#[test]
fn a_run_killed_at_any_moment_leaves_nothing_half_and_can_be_run_again() {
    let yard = yard();
    let ran = yard.run(&["--out", "straight"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let expected: Vec<_> = snapshot(&yard.path("straight"))
        .into_iter()
        .filter(|(name, _)| name != "config.toml")
        .collect();
    for wait in [20, 80, 160, 320, 640] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_data-prep"))
            .args(["--config", "config.toml", "--out", "killed"])
            .current_dir(yard.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
        // Whatever is there under its final name is whole.
        for (name, bytes) in snapshot(&yard.path("killed")) {
            let is_final = !name.contains(".tmp") && name != "config.toml";
            if let Some((_, whole)) = expected.iter().find(|(known, _)| *known == name) {
                assert!(!is_final || bytes == *whole, "{name} after {wait} ms");
            }
        }
    }
    let ran = yard.run(&["--out", "killed"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let now: Vec<_> = snapshot(&yard.path("killed"))
        .into_iter()
        .filter(|(name, _)| name != "config.toml")
        .collect();
    assert!(now == expected);
}

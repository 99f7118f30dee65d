//! The chat program, one-shot and as a conversation.

use std::io::Write;
use std::process::{Command, Stdio};

use temper_tests::binaries::binary;

use super::*;

fn chat<'a>(dir: &'a Path, arguments: &[&str]) -> Stage<'a> {
    Stage::new("chat", dir)
        .args(["--model", "sft", "--device", "cpu"])
        .args(arguments.iter().copied())
}

#[test]
fn a_prompt_is_answered_the_same_each_time() {
    let prompt = ["--prompt", "What did Minsu find at place 0?", "--max-new-tokens", "12"];
    let first = chat(&FINISHED, &prompt).succeed().unwrap();
    assert!(!first.stdout.trim().is_empty() && first.stdout.ends_with('\n'), "{first}");
    assert!(!first.stdout.contains("<|"), "{first}");
    assert_eq!(first.stdout, chat(&FINISHED, &prompt).succeed().unwrap().stdout);
    let sampled = |seed: u64| {
        let seed = seed.to_string();
        let sampling = ["--temperature", "1.5", "--seed", &seed];
        chat(&FINISHED, &prompt).args(sampling).succeed().unwrap().stdout
    };
    assert_eq!(sampled(1), sampled(1));
    assert!((2..8).any(|seed| sampled(seed) != sampled(1)));
}

#[test]
fn raw_continues_the_text_and_prints_both() {
    let prompt = ["--raw", "--prompt", "Minsu found number", "--max-new-tokens", "8"];
    let outcome = chat(&FINISHED, &prompt).succeed().unwrap();
    let continuation = outcome.stdout.strip_prefix("Minsu found number").unwrap();
    assert!(continuation.starts_with(' ') && continuation.trim().len() > 2, "{outcome}");
    let stopped = chat(&FINISHED, &prompt).args(["--stop", " a"]).succeed().unwrap();
    assert!(!stopped.stdout["Minsu found number".len()..].contains(" a"), "{stopped}");
}

#[test]
fn a_checkpoint_can_be_talked_to() {
    let prompt = [
        "--model",
        "pretrain/checkpoints/step-00000060",
        "--raw",
        "--prompt",
        "민수는",
        "--max-new-tokens",
        "4",
    ];
    let outcome = Stage::new("chat", &FINISHED).args(prompt).succeed().unwrap();
    assert!(outcome.stdout.starts_with("민수는"), "{outcome}");
}

#[test]
fn a_conversation_takes_lines_and_commands() {
    let mut child = Command::new(binary("chat").unwrap())
        .args(["--model", "sft", "--device", "cpu", "--max-new-tokens", "6"])
        .current_dir(&*FINISHED)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = "지원는 1번에서 무엇을 찾았나요?\n/help\n/nonsense\n/retry\n/system Answer in English.\n/retry\n\n/quit\n";
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    assert!(stdout.contains("/reset          forget the conversation"), "{stdout}");
    assert!(stdout.contains("unknown command /nonsense"), "{stdout}");
    assert!(stdout.contains("nothing has been asked yet"), "{stdout}");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn wrong_use_is_explained() {
    let dir = &*FINISHED;
    chat(dir, &["--temperature", "-1", "--prompt", "x"])
        .fail(2, &["error: `temperature` is -1; it must be 0 (greedy) or from 1e-6 to 1e6"])
        .unwrap();
    Stage::new("chat", dir)
        .args(["--model", "nowhere", "--prompt", "x"])
        .fail(2, &["error: nowhere: does not exist; give a Hugging Face model directory"])
        .unwrap();
    Stage::new("chat", dir)
        .args(["--model", "data", "--prompt", "x"])
        .fail(2, &["error: data: is the run directory of a stage that makes no model"])
        .unwrap();
    let long = "x ".repeat(300);
    chat(dir, &["--prompt", &long])
        .fail(
            1,
            &[
                "leaves no room for an answer in the model's context of 128",
                "hint: give a shorter prompt",
            ],
        )
        .unwrap();
    chat(dir, &["--device", "cuda:7", "--prompt", "x"])
        .fail(2, &["invalid value", "--device"])
        .unwrap_or_else(|_| {
            Stage::new("chat", dir)
                .args(["--model", "sft", "--device", "cuda:7", "--prompt", "x"])
                .fail(2, &["error: device cuda:7 is not there", "use --device cpu or auto"])
                .unwrap()
        });
}

#[test]
fn a_model_without_a_chat_template_asks_for_raw() {
    let yard = yard(&["sft"]);
    let path = yard.path().join("sft/model/tokenizer_config.json");
    let mut config = json(&path);
    config.as_object_mut().unwrap().remove("chat_template");
    fs_err::write(&path, config.to_string()).unwrap();
    chat(yard.path(), &["--prompt", "x"])
        .fail(
            2,
            &[
                "error: sft: its tokenizer has no chat template",
                "hint: give --raw to continue a text",
            ],
        )
        .unwrap();
}

#[test]
fn a_conversation_changes_its_adapter_and_settings_and_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("talks.jsonl");
    let lines = format!(
        "/set\n/set temperature=0.5\n/set temperature=hot\n/set colour=red\n/set top_k=none\n/set\n/adapter\n/adapter other\n\
         Who was at place 3?\n/adapter none\nWho was at place 4?\n/adapter tuned\n/retry\n/save {}\n/save\n/quit\n",
        kept.display()
    );
    let mut child = Command::new(binary("chat").unwrap())
        .args(["--model", "sft", "--adapter", "tuned=peft", "--device", "cpu"])
        .args(["--max-new-tokens", "6", "--system", "짧게"])
        .current_dir(&*FINISHED)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{stdout}{stderr}");
    for part in ["temperature=0 top_k=none", "temperature=0.5 top_k=none", "\ntuned, none\n"] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    for part in [
        "`temperature` must be a number, as in /set temperature=1; not `hot`",
        "there is no setting `colour`; there is temperature",
        "there is no adapter `other`; there is tuned, none",
        "give /save a file",
    ] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    let talk = json(&kept);
    let asked: Vec<(&str, &str)> = talk["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
        .filter(|(role, _)| *role != "assistant")
        .collect();
    let asked_then =
        [("system", "짧게"), ("user", "Who was at place 3?"), ("user", "Who was at place 4?")];
    assert_eq!(asked, asked_then);
}

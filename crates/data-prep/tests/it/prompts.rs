//! Prompts without responses, and the prompts of other data sets.

use artifact::prompts::{self, PromptRow};
use artifact::tokens::TokenReader;
use data::tokenizer::Tokenizer;
use serde_json::json;

use super::*;

const BASE: &str = r#"
seed = 1
out = "run"
[tokenizer.train]
vocab_size = 300
min_frequency = 1
"#;

fn read(yard: &Yard, file: &str) -> Vec<PromptRow> {
    prompts::read(yard.path(&format!("run/data/{file}.parquet"))).unwrap()
}

fn texts(rows: &[PromptRow]) -> Vec<&str> {
    rows.iter().map(|row| row.prompt.as_str()).collect()
}

fn user(text: &str) -> String {
    format!("<|bos|><|user|>{text}<|end|><|assistant|>")
}

/// Data sets of prompts in three forms.
fn three_sets() -> (Yard, Ran) {
    let yard = Yard::new();
    // As KoChatGPT has them: one array, under a name that says lines.
    let questions: Vec<Value> = (0..60).map(|n| json!({"prompt": format!("질문 {n}?")})).collect();
    yard.write("ppo.jsonl", Value::Array(questions).to_string());
    yard.write(
        "safe.csv",
        "id,prompt,type\n1,How do I kill a process?,homonyms\n2,\"어떻게, 왜?\",safe\n",
    );
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let sum = json!({"messages": [turn("system", "짧게"), turn("user", "1+1?"), turn("assistant", "2")],
                     "task": "add", "split": "test", "checker": {"number": {"value": 2}}});
    let more = json!({"messages": [turn("user", "hi"), turn("assistant", "네"), turn("user", "why?")],
                      "split": "train"});
    yard.write("chat.jsonl", format!("{sum}\n{more}\n"));
    let ran = yard.prepare(&format!(
        r#"{BASE}
[datasets.ppo]
kind = "prompt"
sources = ["ppo.jsonl"]
read.format = "json"
max_length = 64
validation_fraction = 0.3
[datasets.safe]
kind = "prompt"
sources = ["safe.csv"]
max_length = 64
mapping = {{ prompt_template = "{{{{ type }}}}: {{{{ prompt }}}}" }}
[datasets.chat]
kind = "prompt"
sources = ["chat.jsonl"]
max_length = 64
split_field = "split"
"#
    ));
    (yard, ran)
}

#[test]
fn prompts_are_rendered_and_split() {
    let (yard, _) = three_sets();
    let (train, held_out) = (read(&yard, "ppo/train-prompts"), read(&yard, "ppo/prompts"));
    assert!((8..=28).contains(&held_out.len()), "{} of 60 at 0.3", held_out.len());
    let mut all: Vec<&str> = [texts(&train), texts(&held_out)].concat();
    let mut expected: Vec<String> = (0..60).map(|n| user(&format!("질문 {n}?"))).collect();
    all.sort_unstable();
    expected.sort_unstable();
    assert_eq!(all, expected);
    assert_eq!(train[0].answer, None);

    assert_eq!(
        texts(&read(&yard, "safe/train-prompts")),
        [user("homonyms: How do I kill a process?"), user("safe: 어떻게, 왜?")]
    );
    assert!(
        read(&yard, "safe/prompts").is_empty(),
        "no fraction, no prompts, but the file is there"
    );

    let system = "<|bos|><|system|>짧게<|end|><|user|>1+1?<|end|><|assistant|>".to_owned();
    let row = PromptRow {
        prompt: system,
        answer: Some("2".to_owned()),
        task: Some("add".to_owned()),
        checker: Some(r#"{"number":{"value":2.0}}"#.to_owned()),
        messages: Some(
            r#"[{"role":"system","content":"짧게"},{"role":"user","content":"1+1?"}]"#.to_owned(),
        ),
    };
    assert_eq!(read(&yard, "chat/prompts"), [row]);
    let long = "<|bos|><|user|>hi<|end|><|assistant|>네<|end|><|user|>why?<|end|><|assistant|>";
    assert_eq!(texts(&read(&yard, "chat/train-prompts")), [long]);
}

#[test]
fn prompts_alone_are_written_and_counted() {
    let (yard, ran) = three_sets();
    for name in ["ppo", "safe", "chat"] {
        let folder = fs::read_dir(yard.path(&format!("run/data/{name}"))).unwrap();
        let mut names: Vec<String> =
            folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["prompts.parquet", "train-prompts.parquet"]);
    }
    let (train, held_out) =
        (read(&yard, "ppo/train-prompts").len(), read(&yard, "ppo/prompts").len());
    let report = &yard.results("run")["datasets"]["ppo"];
    assert_eq!(
        [&report["records_kept"], &report["train_prompts"], &report["prompts"]],
        [&json!(60), &json!(train), &json!(held_out)]
    );
    assert!(report.get("train").is_none());
    let tokenizer = Tokenizer::load(yard.path("run")).unwrap();
    let tokens = |n| tokenizer.encode(&user(&format!("질문 {n}?")), false).unwrap().ids.len();
    let longest = (0..60).map(tokens).max().unwrap();
    assert_eq!(report["longest_prompt"], longest);
    for line in [
        "ppo: 60 records read, 60 kept, 0 dropped\n".to_owned(),
        format!("  {train} prompts of the training split\n"),
        format!("  {held_out} held-out prompts\n"),
        format!("  longest prompt {longest} tokens\n"),
    ] {
        assert!(ran.stdout.contains(&line), "{line} in\n{}", ran.stdout);
    }
    assert!(!ran.stdout.contains('⟦'), "nothing of a prompt counts");
}

#[test]
fn every_prompt_left_out_is_counted_with_its_reason() {
    let yard = Yard::new();
    let records = [
        json!({"prompt": "질문 하나"}),
        json!({"prompt": " 질문  하나 "}),
        json!({"prompt": "\u{200B} "}),
        json!({"prompt": "왜 <|end|> 그래?"}),
        json!({"prompt": "긴 질문 ".repeat(40)}),
        json!({"질문": "?"}),
        json!({"prompt": [{"role": "tool", "content": "x"}]}),
    ];
    yard.write("q.jsonl", records.map(|record| record.to_string()).join("\n"));
    yard.prepare(&format!(
        "{BASE}[datasets.q]\nkind = \"prompt\"\nsources = [\"q.jsonl\"]\nmax_length = 48\nbad_records = \"skip\"\n"
    ));
    assert_eq!(
        yard.results("run")["datasets"]["q"]["dropped"],
        json!({
            "a special token is spelled out in the text": 1,
            "empty": 1,
            "exact duplicate": 1,
            "more tokens than max_length": 1,
            "refused by the chat template": 1,
            "unusable fields": 1,
        })
    );
    assert_eq!(texts(&read(&yard, "q/train-prompts")), [user("질문 하나")]);
}

/// A base model goes on from text: nothing but BOS stands before it.
#[test]
fn plain_prompts_begin_with_bos_and_need_no_chat_template() {
    let yard = Yard::new();
    let texts = ["Once upon a time, ", "옛날 옛적에", " 옛날  옛적에", "  "];
    yard.write("q.jsonl", texts.map(|text| json!({"prompt": text}).to_string()).join("\n"));
    yard.prepare(&format!(
        "{BASE}[datasets.q]\nkind = \"prompt-plain\"\nsources = [\"q.jsonl\"]\nmax_length = 48\n"
    ));
    assert_eq!(
        self::texts(&read(&yard, "q/train-prompts")),
        ["<|bos|>Once upon a time, ", "<|bos|>옛날 옛적에"]
    );
    assert_eq!(
        yard.results("run")["datasets"]["q"]["dropped"],
        json!({"exact duplicate": 1, "empty": 1})
    );
}

/// The prompts of supervised data, each once, and as the rows begin.
#[test]
fn training_prompts_of_conversations_and_completions() {
    let yard = Yard::new();
    let record = |n: usize, answer: &str| {
        json!({"prompt": format!("질문 {}:", n % 5), "response": format!(" {answer} {n}"), "task": "t",
               "split": if n < 10 { "train" } else { "valid" }})
    };
    let records = (0..15).map(|n| record(n, "답").to_string()).collect::<Vec<_>>().join("\n");
    yard.write("qa.jsonl", records);
    let table = |kind: &str| {
        format!(
            "[datasets.{kind}]\nkind = \"{kind}\"\nsources = [\"qa.jsonl\"]\nmax_length = 64\n\
             split_field = \"split\"\ntrain_prompts = true\n"
        )
    };
    yard.prepare(&format!("{BASE}{}{}", table("chat"), table("completion")));
    let tokenizer = Tokenizer::load(yard.path("run")).unwrap();
    for (kind, prompt) in [("chat", user("질문 0:")), ("completion", "<|bos|>질문 0:".to_owned())]
    {
        let found = read(&yard, &format!("{kind}/train-prompts"));
        assert_eq!(found.len(), 5, "ten records, five prompts");
        assert_eq!(found[0].prompt, prompt);
        assert_eq!(found[0].answer.as_deref().map(str::trim), Some("답 0"));
        assert_eq!((found[0].task.as_deref(), &found[0].checker), (Some("t"), &None));
        let file = yard.path(&format!("run/data/{kind}/train.parquet"));
        let rows = TokenReader::open(file).unwrap().read_row_group(0).unwrap();
        let ids = tokenizer.encode(&prompt, false).unwrap().ids;
        assert!(rows.row(0).0.iter().map(|id| *id as u32).take(ids.len()).eq(ids));
        assert_eq!(yard.results("run")["datasets"][kind]["train_prompts"], 5);
    }
}

/// Every held-out record is a prompt with what is to follow it, although none has a checker: a field `answer` that is the
/// source of the completion, or something else, does not stand in for it.
#[test]
fn held_out_prompts_carry_the_reference() {
    let yard = Yard::new();
    let record = |n: usize| {
        json!({"q": format!("질문 {n}?"), "answer": format!("{n} 하나. {n} 둘."),
               "split": if n < 4 { "train" } else { "test" }})
    };
    let records = (0..7).map(|n| record(n).to_string()).collect::<Vec<_>>().join("\n");
    yard.write("qa.jsonl", records);
    let table = |kind: &str| {
        format!(
            "[datasets.{kind}]\nkind = \"{kind}\"\nsources = [\"qa.jsonl\"]\nmax_length = 64\n\
             split_field = \"split\"\nmapping.prompt = \"q\"\n\
             mapping.completion_template = \" {{{{ answer.split('. ')[0] }}}}\"\n"
        )
    };
    let ran = yard.prepare(&format!(
        "{BASE}{}{}[datasets.text]\nkind = \"text\"\nsources = [\"qa.jsonl\"]\nmax_length = 64\n\
         split_field = \"split\"\nmapping.text = \"answer\"\n",
        table("chat"),
        table("completion")
    ));
    for (kind, blank) in [("chat", ""), ("completion", " ")] {
        let found = read(&yard, &format!("{kind}/prompts"));
        let answers: Vec<&str> = found.iter().map(|row| row.answer.as_deref().unwrap()).collect();
        assert_eq!(answers, [4, 5, 6].map(|n| format!("{blank}{n} 하나")));
        assert!(found.iter().all(|row| row.checker.is_none() && row.task.is_none()));
        assert_eq!(yard.results("run")["datasets"][kind]["prompts"], 3);
    }
    assert_eq!(texts(&read(&yard, "completion/prompts"))[0], "<|bos|>질문 4?");
    assert_eq!(texts(&read(&yard, "chat/prompts"))[0], user("질문 4?"));
    assert!(ran.stdout.contains("  3 held-out prompts\n"), "{}", ran.stdout);
    assert!(!yard.path("run/data/text/prompts.parquet").exists(), "text has no prompt");
}

//! What a run leaves behind.

use artifact::prompts;
use artifact::tokens::TokenReader;
use data::format::Message;
use data::template::ChatTemplate;
use data::tokenizer::Tokenizer;
use serde_json::json;

use super::*;

const TRAINED: &str = r#"
seed = 1
out = "run"
[tokenizer.train]
vocab_size = 380
[datasets.alpaca]
kind = "chat"
sources = ["data"]
max_length = 128
validation_fraction = 0.25
"#;

fn rows(path: &Path) -> Vec<(Vec<u32>, Vec<bool>)> {
    let reader = TokenReader::open(path).unwrap();
    let mut found = Vec::new();
    for group in 0..reader.num_row_groups() {
        let rows = reader.read_row_group(group).unwrap();
        for row in 0..rows.len() {
            let (ids, mask) = rows.row(row);
            found.push((ids.iter().map(|id| *id as u32).collect(), mask.to_vec()));
        }
    }
    found
}

fn counted(tokenizer: &Tokenizer, (ids, mask): &(Vec<u32>, Vec<bool>)) -> String {
    let ids: Vec<u32> = ids.iter().zip(mask).filter(|(_, m)| **m).map(|(id, _)| *id).collect();
    tokenizer.decode(&ids, false).unwrap()
}

#[test]
fn conversations_that_count_from_their_beginning_are_in_both_splits() {
    let yard = Yard::new();
    let line = |n: usize| {
        json!({"a": format!("turn {n}"), "b": format!("{n}번 답"), "c": format!("so {n}")})
            .to_string()
    };
    let lines: Vec<String> = (0..200).map(line).collect();
    yard.write("data/turns.jsonl", lines.join("\n"));
    // The first turn is the user's and counts, or it is the assistant's.
    for keys in ["turns = [\"a\", \"b\"]\ntrain_on_prompt = true", "turns = [\"a\", \"b\", \"c\"]"]
    {
        yard.prepare(&format!("{TRAINED}[datasets.alpaca.mapping]\n{keys}\n"));
        let split = |name: &str| rows(&yard.path(&format!("run/data/alpaca/{name}.parquet"))).len();
        assert_eq!(split("train") + split("validation"), 200, "{keys}");
        assert!((25..=75).contains(&split("validation")), "{keys}: {}", split("validation"));
    }
}

#[test]
fn instructions_become_masked_rows_with_a_tokenizer_that_loads() {
    let yard = Yard::new();
    yard.write("data/a.json", alpaca(200));
    let ran = yard.prepare(TRAINED);
    let tokenizer = Tokenizer::load(yard.path("run")).unwrap();
    assert_eq!(tokenizer.vocab_size(), 380);
    let template =
        ChatTemplate::parse(tokenizer.chat_template().unwrap(), tokenizer.specials().clone())
            .unwrap();
    let stop = tokenizer.stop_ids(None);
    assert_eq!(stop, [1, 6], "EOS and the end of turn are in generation_config.json");

    let train = rows(&yard.path("run/data/alpaca/train.parquet"));
    let validation = rows(&yard.path("run/data/alpaca/validation.parquet"));
    assert_eq!(train.len() + validation.len(), 200);
    assert!((25..=75).contains(&validation.len()), "{} of 200 at a quarter", validation.len());
    for row in train.iter().chain(&validation) {
        assert_eq!(
            (row.0[0], row.0.iter().filter(|id| **id == 0).count()),
            (0, 1),
            "one BOS, first"
        );
        let last = row.0.iter().zip(&row.1).rfind(|(_, counts)| **counts).unwrap().0;
        assert!(stop.contains(last), "the last counted token stops generation");
    }
    let wanted = "1입니다.<|end|>";
    let first =
        train.iter().chain(&validation).find(|row| counted(&tokenizer, row) == wanted).unwrap();
    let messages =
        [Message::new("user", "0에 하나를 더하세요."), Message::new("assistant", "1입니다.")];
    assert_eq!(
        tokenizer.decode(&first.0, false).unwrap(),
        template.render(&messages, false).unwrap()
    );

    let reader = TokenReader::open(yard.path("run/data/alpaca/train.parquet")).unwrap();
    assert_eq!(reader.meta().tokenizer, tokenizer.digest());
    assert_eq!(reader.meta().chat_template, Some(template.digest()));
    let manifest: Value =
        serde_json::from_str(&fs::read_to_string(yard.path("run/manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["tokenizer"], tokenizer.digest().as_str());
    assert_eq!(manifest["inputs"][0]["path"], "data");

    let report = &yard.results("run")["datasets"]["alpaca"];
    assert_eq!(report["records_read"], 200);
    assert_eq!(report["records_kept"], 200);
    assert_eq!(report["train"]["rows"], train.len());
    let tokens: usize = train.iter().chain(&validation).map(|row| row.0.len()).sum();
    assert_eq!(report["tokens"], tokens);
    assert_eq!(report["open_records"], 0);
    assert_eq!(report["warnings"], json!([]));
    assert!(ran.stdout.contains("alpaca: 200 records read, 200 kept, 0 dropped"), "{}", ran.stdout);
    assert!(ran.stdout.contains("⟦") && ran.stdout.contains("<|end|>⟧"), "{}", ran.stdout);
    assert!(!ran.stdout.contains('\u{1b}'), "no colours outside a terminal");
}

#[test]
fn an_existing_tokenizer_is_taken_to_the_byte_and_gets_a_template_and_stop_ids() {
    let yard = Yard::new();
    yard.write("data/a.json", alpaca(60));
    yard.prepare(TRAINED);
    // A tokenizer without chat template and chat tokens: what a base model has.
    let source = fs::read(yard.path("run/tokenizer/tokenizer.json")).unwrap();
    let source = String::from_utf8(source).unwrap().replace("<|assistant|>", "<|other|>");
    yard.write("base/tokenizer.json", &source);
    yard.write(
        "base/tokenizer_config.json",
        r#"{"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|eos|>"}"#,
    );
    yard.prepare(
        r#"
seed = 1
out = "existing"
[tokenizer.existing]
path = "base"
[datasets.alpaca]
kind = "chat"
sources = ["data/a.json"]
max_length = 256
"#,
    );
    assert_eq!(fs::read_to_string(yard.path("existing/tokenizer/tokenizer.json")).unwrap(), source);
    let tokenizer = Tokenizer::load(yard.path("existing")).unwrap();
    assert_eq!(tokenizer.chat_template(), Some(data::template::INSTRUCTION));
    assert_eq!(tokenizer.stop_ids(None), [1]);
    let rows = rows(&yard.path("existing/data/alpaca/train.parquet"));
    assert_eq!(rows.len(), 60);
    let text = tokenizer.decode(&rows[1].0, false).unwrap();
    assert_eq!(
        text,
        "<|bos|>### Instruction:\nAdd one.\n\n1\n\n### Response:\nThat makes 2.<|eos|>"
    );
    // EOS counts although it is the padding token too.
    assert_eq!(counted(&tokenizer, &rows[1]), "That makes 2.<|eos|>");
    let validation =
        TokenReader::open(yard.path("existing/data/alpaca/validation.parquet")).unwrap();
    assert_eq!(validation.num_rows(), 0, "no fraction, no validation rows, but the file is there");
}

#[test]
fn held_out_records_with_a_checker_become_prompts() {
    let yard = Yard::new();
    let mut lines = String::new();
    for n in 0..40 {
        let split = if n % 4 == 0 { "held-out" } else { "train" };
        let record = json!({
            "messages": [{"role": "system", "content": "한국어로 답하세요."}, {"role": "user", "content": format!("{n} 더하기 1은?")},
                         {"role": "assistant", "content": format!("{}", n + 1)}],
            "split": split, "task": "add", "checker": {"number": {"value": n + 1}},
        });
        lines.extend([record.to_string(), "\n".to_owned()]);
    }
    yard.write("sums.jsonl", lines);
    yard.prepare(
        r#"
seed = 1
out = "run"
[tokenizer.train]
vocab_size = 300
[datasets.sums]
kind = "chat"
sources = ["sums.jsonl"]
max_length = 128
split_field = "split"
"#,
    );
    let prompts = prompts::read(yard.path("run/data/sums/prompts.parquet")).unwrap();
    assert_eq!(prompts.len(), 10);
    let third = &prompts[2];
    assert_eq!(
        third.prompt,
        "<|bos|><|system|>한국어로 답하세요.<|end|><|user|>8 더하기 1은?<|end|><|assistant|>"
    );
    assert_eq!((third.answer.as_deref(), third.task.as_deref()), (Some("9"), Some("add")));
    assert_eq!(third.checker.as_deref(), Some(r#"{"number":{"value":9.0}}"#));
    // The prompt as it stands is the beginning of the validation row.
    let tokenizer = Tokenizer::load(yard.path("run")).unwrap();
    let ids = tokenizer.encode(&third.prompt, false).unwrap().ids;
    let rows = rows(&yard.path("run/data/sums/validation.parquet"));
    assert!(rows[2].0.starts_with(&ids));
    assert_eq!(yard.results("run")["datasets"]["sums"]["prompts"], 10);
}

#[test]
fn text_is_cleaned_filtered_deduplicated_divided_and_split() {
    let yard = Yard::new();
    let story = |n: usize| {
        format!(
            "이야기 {n}. 옛날 옛날에 토끼 {n}마리가 숲 속에 살았습니다. Once there were {n} rabbits."
        )
    };
    let mut lines: Vec<String> = (0..120).map(story).collect();
    lines.push(
        "  이야기 0.  옛날 옛날에 토끼 0마리가 숲 속에 살았습니다. once THERE were 0 rabbits. "
            .to_owned(),
    );
    lines.push(story(1).replace("숲 속에", "숲속에"));
    lines.push("짧다".to_owned());
    lines.push((200..230).map(story).collect());
    let records: String = lines
        .iter()
        .flat_map(|text| [json!({ "text": text }).to_string(), "\n".to_owned()])
        .collect();
    yard.write("text.jsonl", records);
    let ran = yard.prepare(
        r#"
seed = 3
out = "run"
preview_rows = 0
[tokenizer.train]
vocab_size = 350
[datasets.story]
kind = "text"
sources = ["text.jsonl"]
max_length = 100
validation_fraction = 0.2
filter.min_chars = 5
dedup.near = { threshold = 0.9, num_hashes = 256, bands = 64, shingle_chars = 3 }
"#,
    );
    let report = &yard.results("run")["datasets"]["story"];
    assert_eq!(report["records_read"], 124);
    assert_eq!(report["dropped"]["exact duplicate"], 1, "{report}");
    assert_eq!(report["dropped"]["fewer characters than min_chars"], 1);
    assert!(report["dropped"]["near duplicate"].as_u64().unwrap() >= 1, "{report}");
    assert_eq!(report["split_records"], 1);
    assert!(report["validation"]["rows"].as_u64().unwrap() > 5);
    assert!(report["train"]["longest"].as_u64().unwrap() <= 100);
    assert!(!ran.stdout.contains('⟦'), "no preview was asked for");
    let tokenizer = Tokenizer::load(yard.path("run")).unwrap();
    for split in ["train", "validation"] {
        for (ids, mask) in rows(&yard.path(&format!("run/data/story/{split}.parquet"))) {
            assert!(mask.iter().all(|counts| *counts));
            let begins = ids[0] == tokenizer.bos_id().unwrap();
            let ends = ids.last() == Some(&tokenizer.eos_id().unwrap());
            assert!(begins || ids.len() > 1, "only later pieces of a divided text have no BOS");
            assert!(ends || ids.len() == 100, "only full pieces of a divided text have no EOS");
        }
    }
}

/// What is in the validation split does not depend on what else is in the data, nor on the order.
#[test]
fn the_split_follows_the_content() {
    let yard = Yard::new();
    let record = |n: usize| json!({"prompt": format!("질문 {n}"), "response": "답"}).to_string();
    let all: Vec<String> = (0..100).map(record).collect();
    yard.write("all.jsonl", all.join("\n"));
    let half: Vec<String> = all.iter().rev().step_by(2).cloned().collect();
    yard.write("half.jsonl", half.join("\n"));
    let texts = |source: &str| -> Vec<String> {
        yard.prepare(&format!(
            r#"
seed = 1
out = "{source}"
[tokenizer.train]
vocab_size = 300
[datasets.qa]
kind = "chat"
sources = ["{source}.jsonl"]
max_length = 64
validation_fraction = 0.3
"#
        ));
        let tokenizer = Tokenizer::load(yard.path(source)).unwrap();
        let path = yard.path(&format!("{source}/data/qa/validation.parquet"));
        let mut texts: Vec<String> =
            rows(&path).iter().map(|row| tokenizer.decode(&row.0, false).unwrap()).collect();
        texts.sort();
        texts
    };
    let (all, half) = (texts("all"), texts("half"));
    assert!((15..=45).contains(&all.len()), "{}", all.len());
    assert!(half.len() >= 5 && half.iter().all(|text| all.contains(text)));
}

#[test]
fn warnings_tell_what_a_model_could_not_learn() {
    let yard = Yard::new();
    yard.write("a.jsonl", "{\"prompt\": \"question: \", \"completion\": \"yes yes yes\"}\n");
    yard.write("b.txt", "words and words and words");
    let ran = yard.prepare(
        r#"
seed = 1
out = "run"
[tokenizer]
chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}\n{% endfor %}"
[tokenizer.train]
vocab_size = 300
min_frequency = 1
[datasets.pair]
kind = "chat"
sources = ["a.jsonl"]
max_length = 64
validation_fraction = 0.0001
"#,
    );
    for warning in [
        "warning: the data only gives ",
        "warning: the chat template puts no special token after the assistant's text, so a model trained on it cannot learn where to stop",
        "warning: the chat template writes `<|im_start|>`, which is no token of the vocabulary and is cut into pieces",
        "warning: no row ends with a counted token that stops generation (EOS or end of turn), so a model trained on it will not learn to stop",
        "warning: no record of 1 fell into the validation split",
    ] {
        assert!(ran.stdout.contains(warning), "{warning} in\n{}", ran.stdout);
    }
    yard.write("c.jsonl", "{\"prompt\": \"say \", \"completion\": \"yes yes yes yes\"}\n");
    let ran = yard.prepare(
        r#"
seed = 1
out = "straddle"
[tokenizer.train]
vocab_size = 272
min_frequency = 1
[datasets.pair]
kind = "completion"
sources = ["c.jsonl"]
max_length = 64
"#,
    );
    assert!(
        ran.stdout.contains("warning: 1 records have a token that is part prompt, part response"),
        "{}",
        ran.stdout
    );
}

#[test]
fn tokens_lost_to_the_length_limit_are_reported() {
    let yard = Yard::new();
    yard.write("data/a.json", alpaca(100));
    yard.prepare(TRAINED);
    let lengths = |run: &str| -> Vec<usize> {
        let split = |name: &str| rows(&yard.path(&format!("{run}/data/alpaca/{name}.parquet")));
        [split("train"), split("validation")].concat().iter().map(|row| row.0.len()).collect()
    };
    let whole = lengths("run");
    let most = whole.iter().max().unwrap() - 2;
    let limit = format!("max_length = {most}\noverlong = \"truncate\"");
    let config = TRAINED.replace("\"run\"", "\"cut\"").replace("max_length = 128", &limit);
    let ran = yard.prepare(&config);
    let records = whole.iter().filter(|length| **length > most).count();
    let tokens = whole.iter().sum::<usize>() - lengths("cut").iter().sum::<usize>();
    assert!(records > 0 && tokens > records);
    let report = &yard.results("cut")["datasets"]["alpaca"];
    assert_eq!(report["truncated_records"], records);
    assert_eq!(report["truncated_tokens"], tokens);
    let line = format!("{records} records truncated, {tokens} tokens lost");
    assert!(ran.stdout.contains(&line), "{}", ran.stdout);
}

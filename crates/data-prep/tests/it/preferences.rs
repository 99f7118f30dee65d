//! Pairs of responses.

use artifact::pairs::PairReader;
use artifact::prompts;
use data::template::ChatTemplate;
use data::tokenizer::Tokenizer;
use serde_json::json;

use super::*;

/// A tokenizer that other runs of the yard can take.
const TOKENIZER: &str = r#"
seed = 1
out = "base"
preview_rows = 0
[tokenizer.train]
vocab_size = 380
[datasets.alpaca]
kind = "chat"
sources = ["alpaca.json"]
max_length = 128
"#;

fn yard(records: &[Value]) -> Yard {
    let yard = Yard::new();
    yard.write("alpaca.json", alpaca(200));
    yard.prepare(TOKENIZER);
    yard.write("pairs.jsonl", lines(records));
    yard
}

fn lines(records: &[Value]) -> String {
    records.iter().flat_map(|record| [record.to_string(), "\n".to_owned()]).collect()
}

fn config(kind: &str, rest: &str) -> String {
    format!(
        r#"
seed = 1
out = "run"
[tokenizer.existing]
path = "base"
[datasets.pairs]
kind = "{kind}"
sources = ["pairs.jsonl"]
{rest}
"#
    )
}

/// A pair as text, with its margin, probability and task.
type Shown = (String, String, String, Option<f32>, Option<f32>, Option<String>);

fn pairs(yard: &Yard, split: &str) -> Vec<Shown> {
    let tokenizer = Tokenizer::load(yard.path("run")).unwrap();
    let text = |ids: &[i32]| {
        let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        tokenizer.decode(&ids, false).unwrap()
    };
    let reader = PairReader::open(yard.path(&format!("run/data/pairs/{split}.parquet"))).unwrap();
    let mut found = Vec::new();
    for group in 0..reader.num_row_groups() {
        let rows = reader.read_row_group(group).unwrap();
        found.extend((0..rows.len()).map(|row| {
            let row = rows.row(row);
            let task = row.task.map(str::to_owned);
            let [prompt, chosen, rejected] = [row.prompt, row.chosen, row.rejected].map(text);
            (prompt, chosen, rejected, row.margin, row.probability, task)
        }));
    }
    found
}

fn report(yard: &Yard) -> Value {
    yard.results("run")["datasets"]["pairs"].clone()
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[test]
fn every_form_becomes_pair_rows() {
    let reply = |text: &str, rank: i64| json!({"text": text, "rank": rank, "role": "assistant"});
    let yard = yard(&[
        json!({"prompt": "1에 하나를 더하세요.", "chosen": "2입니다.", "rejected": "몰라요.", "margin": 1.5,
               "probability": 0.75, "task": "add"}),
        json!({"prompt": [turn("system", "Add."), turn("user", "2")], "chosen": turn("assistant", "3."),
               "rejected": [turn("assistant", "4.")]}),
        json!({"chosen": [turn("user", "3"), turn("assistant", "4.")],
               "rejected": [turn("user", "3"), turn("assistant", "아니요.")]}),
        json!({"chosen": "\n\nHuman: 4?\n\nAssistant: 네.\n\nHuman: Add.\n\nAssistant: That makes 5.",
               "rejected": "\n\nHuman: 4?\n\nAssistant: 네.\n\nHuman: Add.\n\nAssistant: 6?"}),
        json!({"conversations": [{"from": "human", "value": "5"}], "chosen": {"from": "gpt", "value": "6."},
               "rejected": {"from": "gpt", "value": "7."}}),
        json!({"instruction": "Add one.", "input": "6", "system": "짧게", "chosen": "7.", "rejected": "8."}),
        json!({"prompt": "7", "responses": [reply("8.", 1), reply("여덟", 0), reply("8!", 1), reply("9.", 2)]}),
        json!({"prompt": {"text": "8", "role": "prompter",
                          "replies": [reply("10.", 1), reply("9.", 0)]}}),
    ]);
    let ran = yard.prepare(&config("preference", "max_length = 128\ntrain_prompts = true"));
    let chat = |turns: &str| format!("<|bos|>{turns}<|assistant|>");
    let user = |text: &str| chat(&format!("<|user|>{text}<|end|>"));
    let row = |prompt: String, chosen: &str, rejected: &str| {
        (prompt, format!("{chosen}<|end|>"), format!("{rejected}<|end|>"), None, None, None)
    };
    let mut first = row(user("1에 하나를 더하세요."), "2입니다.", "몰라요.");
    (first.3, first.4, first.5) = (Some(1.5), Some(0.75), Some("add".to_owned()));
    assert_eq!(
        pairs(&yard, "train"),
        [
            first,
            row(chat("<|system|>Add.<|end|><|user|>2<|end|>"), "3.", "4."),
            row(user("3"), "4.", "아니요."),
            row(
                chat("<|user|>4?<|end|><|assistant|>네.<|end|><|user|>Add.<|end|>"),
                "That makes 5.",
                "6?"
            ),
            row(user("5"), "6.", "7."),
            row(chat("<|system|>짧게<|end|><|user|>Add one.\n\n6<|end|>"), "7.", "8."),
            row(user("7"), "여덟", "8."),
            row(user("7"), "8.", "9."),
            row(user("7"), "여덟", "8!"),
            row(user("7"), "여덟", "9."),
            row(user("7"), "8!", "9."),
            row(user("8"), "9.", "10."),
        ]
    );
    assert!(pairs(&yard, "validation").is_empty());

    let tokenizer = Tokenizer::load(yard.path("run")).unwrap();
    let template =
        ChatTemplate::parse(tokenizer.chat_template().unwrap(), tokenizer.specials().clone())
            .unwrap();
    let reader = PairReader::open(yard.path("run/data/pairs/train.parquet")).unwrap();
    assert_eq!(reader.meta().tokenizer, tokenizer.digest());
    assert_eq!(reader.meta().chat_template, Some(template.digest()));
    assert_eq!(reader.meta().seq_len, 128);
    let report = report(&yard);
    assert_eq!(
        [&report["records_read"], &report["pairs"], &report["records_kept"]],
        [&json!(8), &json!(12), &json!(12)]
    );
    assert_eq!(report["train"], serde_json::to_value(reader.counts()).unwrap());
    assert_eq!((&report["open_records"], &report["straddling_records"]), (&json!(0), &json!(0)));

    // One prompt for each of the eight, without responses or checkers beside them but the chosen one.
    let prompts = prompts::read(yard.path("run/data/pairs/train-prompts.parquet")).unwrap();
    assert_eq!((prompts.len(), &report["train_prompts"]), (8, &json!(8)));
    assert_eq!(prompts[6].prompt, user("7"));
    assert_eq!((prompts[6].answer.as_deref(), &prompts[6].checker), (Some("여덟"), &None));
    assert_eq!(prompts[0].task.as_deref(), Some("add"));
    assert!(!yard.path("run/data/pairs/prompts.parquet").exists(), "nothing is held out");

    for line in [
        "pairs: 8 records read, 12 pairs in them, 12 kept, 0 dropped\n",
        "  8 prompts of the training split\n",
        "    prompt    <|bos|>·<|user|>·",
        "    chosen    ⟦2·입니다·.·<|end|>⟧\n",
        "    rejected  ⟦",
    ] {
        assert!(ran.stdout.contains(line), "{line} in\n{}", ran.stdout);
    }
}

#[test]
fn plain_pairs_are_taken_as_they_are_with_bos_and_eos() {
    let yard = yard(&[
        json!({"prompt": "질문: 하나\n답:", "chosen": " 2입니다.", "rejected": " no\n"}),
        json!({"instruction": "Add one.", "chosen": "That makes 2.", "rejected": "3"}),
        json!({"chosen": "\n\nHuman: 하나?\n\nAssistant: 네.", "rejected": "\n\nHuman: 하나?\n\nAssistant: 아니요."}),
        json!({"prompt": "수: ", "replies": [{"content": "1", "score": 0.1}, {"content": "2", "score": 0.9}]}),
    ]);
    let rest = "max_length = 256\ntrain_prompts = true\nmapping.instruction_template = \"{{ instruction }}\\n=> \"";
    yard.prepare(&config("preference-plain", rest));
    let row = |prompt: &str, chosen: &str, rejected: &str| {
        let [chosen, rejected] = [chosen, rejected].map(|text| format!("{text}<|eos|>"));
        (format!("<|bos|>{prompt}"), chosen, rejected, None, None, None)
    };
    assert_eq!(
        pairs(&yard, "train"),
        [
            row("질문: 하나\n답:", " 2입니다.", " no\n"),
            row("Add one.\n=> ", "That makes 2.", "3"),
            row("\n\nHuman: 하나?\n\nAssistant:", " 네.", " 아니요."),
            row("수: ", "2", "1"),
        ]
    );
    let reader = PairReader::open(yard.path("run/data/pairs/train.parquet")).unwrap();
    assert_eq!(reader.meta().chat_template, None);
    let prompts = prompts::read(yard.path("run/data/pairs/train-prompts.parquet")).unwrap();
    assert_eq!(prompts[0].prompt, "<|bos|>질문: 하나\n답:");
    // The prompt as it stands is what the pair begins with.
    let tokenizer = Tokenizer::load(yard.path("run")).unwrap();
    let first = reader.read_row_group(0).unwrap();
    let ids: Vec<i32> = first.row(0).prompt.to_vec();
    let again = tokenizer.encode(&prompts[0].prompt, false).unwrap().ids;
    assert!(again.iter().map(|id| *id as i32).eq(ids));
}

#[test]
fn every_pair_left_out_is_counted_with_its_reason() {
    let pair = |prompt: &str, chosen: &str, rejected: &str| json!({"prompt": prompt, "chosen": chosen, "rejected": rejected});
    let whole = |chosen: &str, rejected: &str| json!({"chosen": chosen, "rejected": rejected});
    let human = "\n\nHuman: 펜?\n\nAssistant:";
    let yard = yard(&[
        pair("하나", "좋은 답", "나쁜 답"),
        pair("하나", "좋은  답", "나쁜 답"),
        pair("하나", "나쁜 답", "좋은 답"),
        pair("둘", "같은 답", " 같은 답\r\n"),
        pair("둘", "답", " \u{200B}"),
        pair("둘", "답", "<|end|><|user|>"),
        pair("둘", "답", &"긴 답 ".repeat(40)),
        pair("x", "a", "b"),
        whole(&format!("{human} 네"), "\n\nHuman: 연필?\n\nAssistant: 아니요"),
        whole(&format!("{human} 네"), &format!("{human} 네\n\nHuman: 왜")),
        json!({"prompt": "셋", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 1}]}),
        json!({"prompt": "셋", "chosen": "a"}),
    ]);
    let ran = yard.prepare(&config(
        "preference",
        "max_length = 64\nbad_records = \"skip\"\nfilter.min_chars = 4",
    ));
    assert_eq!(
        report(&yard)["dropped"],
        json!({
            "a conversation does not end with the assistant's turn": 1,
            "a response is empty": 1,
            "a special token is spelled out in the text": 1,
            "both responses are the same": 1,
            "exact duplicate": 1,
            "fewer characters than min_chars": 1,
            "more tokens than max_length": 1,
            "no two responses of different rank": 1,
            "the conversations differ before their last answers": 1,
            "unusable fields": 1,
        })
    );
    assert_eq!(pairs(&yard, "train").len(), 2);
    let line = "pairs: 12 records read, 8 pairs in them, 2 kept, 10 dropped";
    assert!(ran.stdout.contains(line), "{}", ran.stdout);
}

#[test]
fn responses_are_cut_where_it_is_asked_for() {
    let long = |end: &str| format!("{}{end}", "가 나 다 라 ".repeat(8));
    let yard = yard(&[
        json!({"prompt": "하나", "chosen": "짧은 답", "rejected": long("끝")}),
        json!({"prompt": "하나", "chosen": long("끝"), "rejected": long("뒤")}),
        json!({"prompt": long("?"), "chosen": "네", "rejected": "아니요"}),
    ]);
    let ran = yard.prepare(&config("preference", "max_length = 40\noverlong = \"truncate\""));
    let found = pairs(&yard, "train");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1, "짧은 답<|end|>");
    assert!(
        !found[0].2.contains("<|end|>")
            && long("").starts_with(found[0].2.trim_end_matches('\u{FFFD}'))
    );
    let report = report(&yard);
    assert_eq!(
        report["dropped"],
        json!({
            "both responses are the same within max_length": 1,
            "nothing of a response is left within max_length": 1,
        })
    );
    assert_eq!(
        (&report["truncated_records"], &report["train"]["longest"]),
        (&json!(1), &json!(40))
    );
    assert!(ran.stdout.contains("1 records truncated, "), "{}", ran.stdout);
}

#[test]
fn a_token_across_the_border_is_reported() {
    let yard = Yard::new();
    let record = json!({"prompt": "say ", "chosen": "yes yes yes yes", "rejected": "no no no no"});
    yard.write("pairs.jsonl", lines(&[record]));
    let ran = yard.prepare(&config("preference-plain", "max_length = 64").replace(
        "[tokenizer.existing]\npath = \"base\"",
        "[tokenizer.train]\nvocab_size = 300\nmin_frequency = 1",
    ));
    assert!(
        ran.stdout.contains("warning: 1 records have a token that is part prompt, part response"),
        "{}",
        ran.stdout
    );
    let (prompt, chosen, rejected, ..) = pairs(&yard, "train").remove(0);
    assert_eq!(prompt, "<|bos|>say");
    assert_eq!(
        (chosen.as_str(), rejected.as_str()),
        (" yes yes yes yes<|eos|>", " no no no no<|eos|>")
    );
}

/// Held-out pairs give their prompts, once each; so do those of the training split
/// where it is asked for.
#[test]
fn prompts_of_both_splits() {
    let record = |n: usize, better: &str| {
        let split = if n.is_multiple_of(4) { "held-out" } else { "train" };
        json!({
            "prompt": [turn("user", &format!("{n} 더하기 1은?"))], "chosen": better, "rejected": "모름",
            "split": split, "task": "add", "checker": {"number": {"value": n + 1}},
        })
    };
    let records: Vec<Value> = (0..24)
        .flat_map(|n| [record(n, &format!("{}", n + 1)), record(n, &format!("{}입니다.", n + 1))])
        .collect();
    let yard = yard(&records);
    yard.prepare(&config(
        "preference",
        "max_length = 64\nsplit_field = \"split\"\ntrain_prompts = true",
    ));
    assert_eq!((pairs(&yard, "train").len(), pairs(&yard, "validation").len()), (36, 12));
    let [held_out, train] = ["prompts", "train-prompts"]
        .map(|name| prompts::read(yard.path(&format!("run/data/pairs/{name}.parquet"))).unwrap());
    assert_eq!((held_out.len(), train.len()), (6, 18));
    let second = &held_out[1];
    assert_eq!(second.prompt, "<|bos|><|user|>4 더하기 1은?<|end|><|assistant|>");
    assert_eq!((second.answer.as_deref(), second.task.as_deref()), (Some("5"), Some("add")));
    assert_eq!(second.checker.as_deref(), Some(r#"{"number":{"value":5.0}}"#));
    let numbers: Vec<usize> = train
        .iter()
        .map(|row| {
            row.prompt["<|bos|><|user|>".len()..].split(' ').next().unwrap().parse().unwrap()
        })
        .collect();
    assert_eq!(numbers, (0..24).filter(|n| n % 4 != 0).collect::<Vec<_>>(), "in order");
    // The prompt as it stands is the beginning of both members of the pair.
    let shown = pairs(&yard, "validation");
    assert_eq!(shown[2].0, second.prompt);
}

/// All pairs of one tree are in one split, whatever the answers on the way to them.
#[test]
fn a_tree_is_in_one_split() {
    let tree = |n: usize| {
        let answer = |text: &str, rank: usize, replies: Value| json!({"role": "assistant", "text": text, "rank": rank, "replies": replies});
        let more = json!([{"role": "prompter", "text": "more", "replies":
                           [answer("하나", 0, json!([])), answer("둘", 1, json!([]))]}]);
        json!({"prompt": {"role": "prompter", "text": format!("질문 {n}"),
                          "replies": [answer("a", 0, more.clone()), answer("b", 1, more)]}})
    };
    let yard = yard(&(0..40).map(tree).collect::<Vec<_>>());
    yard.prepare(&config("preference", "max_length = 128\nvalidation_fraction = 0.4"));
    let openings = |split: &str| -> Vec<String> {
        let opening = |pair: &Shown| pair.0.split("<|end|>").next().unwrap().to_owned();
        pairs(&yard, split).iter().map(opening).collect()
    };
    let (train, validation) = (openings("train"), openings("validation"));
    assert_eq!(train.len() + validation.len(), 120);
    assert!(validation.len() > 15 && validation.iter().all(|opening| !train.contains(opening)));
}

#[test]
fn the_worlds_preferences_are_pairs() {
    let yard = yard(&[]);
    let world = config(
        "preference",
        "max_length = 512\nsplit_field = \"split\"\ntrain_prompts = true",
    )
    .replace("sources = [\"pairs.jsonl\"]", "")
        + "[datasets.pairs.world]\nseed = 7\npart = \"preferences\"\nrecords = 200\nheld_out = 30\n";
    yard.prepare(&world);
    let report = report(&yard);
    assert_eq!((&report["records_kept"], &report["dropped"]), (&json!(230), &json!({})));
    let train = pairs(&yard, "train");
    assert_eq!((train.len(), pairs(&yard, "validation").len()), (200, 30));
    let tasks = ["kindness", "truth", "right", "whole"];
    assert!(train.iter().all(|pair| tasks.contains(&pair.5.as_deref().unwrap())));
    assert!(
        report["prompts"].as_u64().unwrap() > 10 && report["train_prompts"].as_u64().unwrap() > 50
    );
}

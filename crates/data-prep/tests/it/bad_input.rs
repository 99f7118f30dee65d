//! What is said when the input or the configuration is wrong.

use super::*;

const BASE: &str = r#"
seed = 1
out = "run"
[tokenizer.train]
vocab_size = 300
[datasets.qa]
kind = "chat"
sources = ["qa.jsonl"]
max_length = 64
"#;

const GOOD: &str = "{\"prompt\": \"질문 하나\", \"response\": \"답\"}\n{\"prompt\": \"a question\", \"response\": \"an answer\"}\n";

fn yard(records: impl AsRef<[u8]>, config: &str) -> Yard {
    let yard = Yard::new();
    yard.write("qa.jsonl", records);
    yard.write("config.toml", config);
    yard
}

/// The report of a failed run, from `error:` on.
fn failure(yard: &Yard, arguments: &[&str], code: i32) -> String {
    let ran = yard.run(arguments);
    assert_eq!(ran.code, code, "{}", ran.stderr);
    assert!(!yard.path("run/manifest.json").exists());
    let start = ran.stderr.find("error:").unwrap_or_else(|| panic!("{}", ran.stderr));
    ran.stderr[start..].to_owned()
}

#[test]
fn bad_records_stop_the_run_or_are_skipped_and_counted() {
    let records =
        [GOOD.as_bytes(), b"{\"prompt\": \"\xFF\"}\n{\"prompt\": \n[1]\n{\"Q\": 1}\n"].concat();
    let yard = yard(&records, BASE);
    assert_eq!(
        failure(&yard, &[], 1),
        "error: data set `qa`\n  caused by: qa.jsonl:3: invalid UTF-8 at byte 12 of the row; convert the file \
         to UTF-8, or set `bad_records = \"skip\"`\n"
    );
    let ran = yard.run(&["--set", "datasets.qa.bad_records=skip"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report = &yard.results("run")["datasets"]["qa"];
    assert_eq!(
        report["dropped"],
        serde_json::json!({"invalid JSON": 1, "invalid UTF-8": 1, "not an object": 1, "unusable fields": 1})
    );
    assert_eq!((&report["records_read"], &report["records_kept"]), (&6.into(), &2.into()));
}

#[test]
fn records_of_another_form_are_named_with_their_fields() {
    let yard = yard("{\"Q\": \"q\", \"A\": \"a\"}\n", BASE);
    let message = failure(&yard, &[], 1);
    assert!(
        message.contains(
            "qa.jsonl:1: cannot tell what this record is for kind `chat`: it has `Q`, `A`, and"
        ),
        "{message}"
    );
    let ran = yard.run(&[
        "--set",
        "datasets.qa.mapping={ prompt = \"Q\", completion = \"A\" }",
        "--set",
        "tokenizer.train.min_frequency=1",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn a_template_that_refuses_a_record_names_it() {
    let records = "{\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": \"y\"}]}\n";
    let yard = yard([records, GOOD].concat(), BASE);
    assert_eq!(
        failure(&yard, &[], 1),
        "error: data set `qa`\n  caused by: qa.jsonl:1\n  caused by: chat template refuses the conversation: \
         unknown role tool: use system, user or assistant (line 1)\n"
    );
    let ran = yard.run(&["--set", "datasets.qa.bad_records=skip"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(yard.results("run")["datasets"]["qa"]["dropped"]["refused by the chat template"], 1);
}

#[test]
fn empty_and_fully_dropped_data_sets_are_errors() {
    let empty = yard("\n", BASE);
    assert_eq!(
        failure(&empty, &[], 1),
        "error: data set `qa`\n  caused by: qa.jsonl: no records in 1 file(s); the data set is empty\n"
    );
    let long = yard(GOOD, BASE);
    assert_eq!(
        failure(&long, &["--set", "datasets.qa.max_length=2"], 1),
        "error: data set `qa`\n  caused by: all 2 records were dropped: 2 more tokens than max_length\n"
    );
    let blank = yard("{\"prompt\": \"q\", \"response\": \" \"}\n", BASE);
    assert_eq!(
        failure(&blank, &[], 1),
        "error: no text to train a tokenizer on: every record was dropped or is in the validation split\n"
    );
}

#[test]
fn damaged_files_are_named() {
    let yard = Yard::new();
    yard.write("config.toml", BASE.replace("qa.jsonl", "qa.jsonl.gz"));
    yard.write("qa.jsonl.gz", [0x1f, 0x8b, 8, 0, 0, 0]);
    let message = failure(&yard, &[], 1);
    assert!(
        message.contains("qa.jsonl.gz: the gzip data is damaged or cut off after record 0 ("),
        "{message}"
    );
    yard.write("qa.parquet", "PAR1 and no more");
    yard.write("config.toml", BASE.replace("qa.jsonl", "qa.parquet"));
    let message = failure(&yard, &[], 1);
    assert!(message.contains("qa.parquet: cannot read as Parquet: "), "{message}");
}

#[test]
fn all_problems_of_a_config_are_told_at_once() {
    let config = r#"
seed = 1
out = "run"
[tokenizer]
chat_template = "{% for"
chat_template_date = "soon"
[tokenizer.train]
vocab_size = 100
max_digits = 0
datasets = ["nope"]
[datasets.a]
kind = "chat"
max_length = 1
overlong = "split"
validation_fraction = 1.5
[datasets.b]
kind = "text"
sources = ["none.txt"]
max_length = 16
validation_fraction = 0.1
split_field = "split"
filter = { min_chars = 9, max_chars = 3 }
mapping.prompt = "q"
dedup.near = { threshold = 0.0, num_hashes = 100, bands = 16, shingle_chars = 0 }
[datasets.c]
kind = "text"
sources = []
max_length = 16
"#;
    let yard = yard(GOOD, config);
    let message = failure(&yard, &["--check"], 2);
    for problem in [
        "error: config.toml has 17 problems",
        "- tokenizer.chat_template_date: chat template: `soon` is not a date; write it as YYYY-MM-DD",
        "- tokenizer.chat_template: chat template: unexpected end of input",
        "- tokenizer.train.vocab_size: 100 is too small; the special tokens and the 256 bytes alone are 263",
        "- tokenizer.train.max_digits: must be at least 1",
        "- tokenizer.train.datasets: names `nope`, and there is no table [datasets.nope]",
        "- datasets.a.overlong: \"split\" is for kind = \"text\"; use \"truncate\" or \"drop\"",
        "- datasets.a.max_length: must be at least 2 tokens",
        "- datasets.a.validation_fraction: must be from 0 to 1",
        "- datasets.a: needs exactly one of `sources` and a `world` table",
        "- datasets.b.validation_fraction: does nothing beside split_field; leave one out",
        "- datasets.b.filter.min_chars: is more than filter.max_chars",
        "- datasets.b.dedup.near.bands: must divide num_hashes (100) without remainder",
        "- datasets.b.dedup.near.threshold: must be above 0 and at most 1",
        "- datasets.b.dedup.near.shingle_chars: must be at least 1",
        "- datasets.b.mapping: mapping: `prompt` and `completion` (or their templates) go together",
        "- datasets.b.sources: `none.txt`: no such file or folder, and no file matches it as a pattern; check the path",
        "- datasets.c.sources: is empty; name at least one file, folder or pattern",
    ] {
        assert!(message.contains(problem), "{problem}\nin\n{message}");
    }
}

#[test]
fn problems_of_preferences_and_prompts_are_told_at_once() {
    let config = r#"
seed = 1
out = "run"
[tokenizer.train]
vocab_size = 300
[datasets.a]
kind = "preference"
sources = ["qa.jsonl"]
max_length = 16
overlong = "split"
mapping.chosen = "good"
[datasets.b]
kind = "prompt"
sources = ["qa.jsonl"]
max_length = 16
overlong = "truncate"
mapping.completion = "a"
[datasets.c]
kind = "text"
sources = ["qa.jsonl"]
max_length = 16
train_prompts = true
"#;
    let yard = yard(GOOD, config);
    let message = failure(&yard, &["--check"], 2);
    for problem in [
        "error: config.toml has 5 problems",
        "- datasets.a.overlong: \"split\" is for kind = \"text\"; use \"truncate\" or \"drop\"",
        "- datasets.a.mapping: mapping: `chosen` and `rejected` (or their templates) go together",
        "- datasets.b.overlong: \"truncate\" would cut a prompt before its end; use \"drop\" for prompts alone",
        "- datasets.b.mapping: mapping: kind = \"prompt\" takes no `completion`",
        "- datasets.c.train_prompts: is for records with a prompt; kind = \"text\" has none",
    ] {
        assert!(message.contains(problem), "{problem}\nin\n{message}");
    }
    let unknown = failure(&yard, &["--set", "datasets.a.kind=preferences"], 2);
    assert!(unknown.contains("preferences") && unknown.contains("preference-plain"), "{unknown}");
}

#[test]
fn bad_pairs_are_named_with_file_and_row() {
    let config = BASE.replace("kind = \"chat\"", "kind = \"preference\"");
    let good = "{\"prompt\": \"질문\", \"chosen\": \"좋은 답\", \"rejected\": \"나쁜 답\"}\n";
    let case = |record: &str| {
        let yard = yard(format!("{good}{record}\n"), &config);
        failure(&yard, &[], 1)
    };
    for (record, expected) in [
        (
            "{\"prompt\": \"q\", \"chosen\": \"a\", \"거부됨\": \"b\"}",
            "no field `rejected`; the record has `prompt`, `chosen`, `거부됨`",
        ),
        (
            "{\"chosen\": \"a\", \"rejected\": \"b\"}",
            "field `chosen`: there is no prompt in the record, and this is no transcript (\"\\n\\nHuman: ...\\n\\nAssistant: ...\") \
          that holds one; say where the prompt is in [mapping]",
        ),
        (
            "{\"prompt\": \"q\", \"chosen\": \"a\", \"rejected\": \"b\", \"probability\": 2}",
            "field `probability`: 2 is no probability; it must be from 0 to 1",
        ),
    ] {
        assert_eq!(
            case(record),
            format!("error: data set `qa`\n  caused by: qa.jsonl:2: {expected}\n")
        );
    }
    let refused = case(
        "{\"prompt\": [{\"role\": \"tool\", \"content\": \"x\"}], \"chosen\": \"a\", \"rejected\": \"b\"}",
    );
    assert_eq!(
        refused,
        "error: data set `qa`\n  caused by: qa.jsonl:2\n  caused by: chat template refuses the conversation: \
         unknown role tool: use system, user or assistant (line 1)\n"
    );
    let equal = "{\"prompt\": \"q\", \"chosen\": \"a\", \"rejected\": \"a\"}\n";
    let extra =
        "[datasets.more]\nkind = \"preference\"\nsources = [\"more.jsonl\"]\nmax_length = 64\n";
    let dropped = yard(good, &format!("{config}{extra}"));
    dropped.write("more.jsonl", equal.repeat(2));
    assert_eq!(
        failure(&dropped, &[], 1),
        "error: data set `more`\n  caused by: all 2 records were dropped: 2 both responses are the same\n"
    );
}

#[test]
fn unknown_keys_and_a_wrong_tokenizer_are_usage_errors() {
    let yard = yard(GOOD, BASE);
    let message = failure(&yard, &["--set", "datasets.qa.max_len=3"], 2);
    assert!(message.contains("max_len") && message.contains("max_length"), "{message}");
    yard.write("config.toml", BASE.replace("[tokenizer.train]\nvocab_size = 300", "[tokenizer]"));
    assert!(
        failure(&yard, &[], 2).contains(
            "- tokenizer: needs exactly one of [tokenizer.train] and [tokenizer.existing]"
        )
    );
    let existing = BASE
        .replace("[tokenizer.train]\nvocab_size = 300", "[tokenizer.existing]\npath = \"model\"");
    yard.write("config.toml", &existing);
    assert!(failure(&yard, &[], 2).contains("- tokenizer.existing.path: model does not exist"));
    yard.write("model/config.json", "{}");
    assert_eq!(
        failure(&yard, &[], 1),
        "error: model: no tokenizer.json in it; give a folder with a tokenizer.json, or the file itself\n"
    );
}

#[test]
fn check_prints_the_plan_and_writes_nothing() {
    let yard = yard(GOOD, BASE);
    let ran = yard.run(&["--check"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.stdout,
        "tokenizer      byte-level BPE, 300 tokens, trained here\n\
         chat template  the tokenizer's own, or the default\n\
         qa             chat, 1 file(s), 97 B; rows of at most 64 tokens, longer ones are dropped\n"
    );
    assert!(!yard.path("run").exists());
}

#[test]
fn shipped_configs_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let check = |config: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_data-prep"))
            .args(["--check", "--config", config])
            .current_dir(&root)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check("configs/data-prep.toml"), (Some(0), String::new()));
    // The examples name files of the user's; that they are missing must be all that is wrong.
    let names =
        ["alpaca", "dialogsum", "korean", "medquad", "preferences", "prompts", "pubmedqa", "sae4k"];
    for name in names {
        let example = &format!("configs/examples/data-prep-{name}.toml");
        let (code, stderr) = check(example);
        assert_eq!(code, Some(2), "{stderr}");
        let problems: Vec<&str> =
            stderr.lines().filter(|line| line.trim_start().starts_with("- ")).collect();
        let missing =
            |line: &&&str| line.contains("no such file") || line.contains("does not exist");
        assert!(!problems.is_empty() && problems.iter().all(|line| missing(&line)), "{stderr}");
    }
}

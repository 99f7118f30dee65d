use artifact::RunDir;
use artifact::prompts::PromptRow;
use artifact::rows::TableReader;
use data::checker::Checker;
use data::tokenizer::BpeOptions;
use model::{LoadOptions, ModelConfig};
use stage::DeviceSpec;
use tch::{Kind as Type, Tensor};

use super::*;

fn prompt(text: &str, answer: Option<&str>, checker: Option<Checker>) -> Prompt {
    let row = PromptRow {
        prompt: text.to_owned(),
        answer: answer.map(str::to_owned),
        ..PromptRow::default()
    };
    Prompt { row, ids: text.bytes().map(i64::from).collect(), checker }
}

fn settings(more: &str) -> Evaluation {
    toml::from_str(&format!("prompts = \"prompts.parquet\"\n{more}")).unwrap()
}

fn exact(answer: &str) -> Checker {
    Checker::Exact { answer: answer.to_owned() }
}

/// Three prompts, of which the last has a rule and no answer.
fn colours() -> Task {
    let prompts = vec![
        prompt("sky?", Some("blue"), Some(exact("blue"))),
        prompt("rose?", Some(" red"), None),
        prompt("grass?", None, Some(exact("green"))),
    ];
    let settings = settings("labels = [\" blue\", \" red\"]\nexamples = 1");
    Task { name: "colours".to_owned(), settings, prompts, labels: vec![vec![1], vec![2]] }
}

fn answered(texts: [&str; 3], chosen: [usize; 3]) -> Answered {
    Answered { texts: texts.map(str::to_owned).to_vec(), chosen: chosen.map(Some).to_vec() }
}

fn context(dir: &Path) -> Context {
    Context::detached(RunDir::create(dir.join("run")).unwrap(), 1, DeviceSpec::Cpu)
}

#[test]
fn scores_are_over_what_can_be_compared() {
    let scores = colours().scores(&answered(["Blue. ", "dark red", "green"], [0, 0, 1]));
    let of = |name: &str| scores[name].as_f64().unwrap();
    assert_eq!(of("prompts"), 3.0);
    // Two have an answer: the first is right but for case and punctuation; of the second one word of two is, so that
    // precision is 1/2, recall 1 and F1 2/3.
    for name in ["rouge1", "rougeL", "f1"] {
        assert!((of(name) - 5.0 / 6.0).abs() < 1e-12, "{name}: {scores:?}");
    }
    assert_eq!(of("rouge2"), 0.0, "answers of one word have no pairs of words");
    assert_eq!(of("exact_match"), 0.5);
    assert!((1.0..100.0).contains(&of("chrf")), "{scores:?}");
    // Two have a rule, and all count for the labels, of which one is right.
    assert_eq!(of("accuracy"), 1.0);
    assert!((of("label_accuracy") - 1.0 / 3.0).abs() < 1e-12);
}

#[test]
fn a_score_that_nothing_asks_for_is_left_out() {
    let mut task = colours();
    task.labels.clear();
    task.settings.labels.clear();
    for prompt in &mut task.prompts {
        prompt.checker = None;
    }
    let answered = answered(["blue", "red", "green"], [0, 0, 0]);
    let scores = task.scores(&answered);
    assert!(!scores.contains_key("accuracy") && !scores.contains_key("label_accuracy"));
    assert_eq!((scores["exact_match"].as_f64(), scores["rougeL"].as_f64()), (Some(1.0), Some(1.0)));
    for prompt in &mut task.prompts {
        prompt.row.answer = None;
    }
    assert_eq!(task.scores(&answered).keys().collect::<Vec<_>>(), ["prompts"]);
}

#[test]
fn the_report_has_both_sides_in_manifest_and_table() {
    let dir = tempfile::tempdir().unwrap();
    let ctx = context(dir.path());
    let tasks = Tasks(vec![colours()]);
    let all = |answered| Answers(BTreeMap::from([("colours".to_owned(), answered)]));
    let before = all(answered(["red", "red", "red"], [1, 1, 1]));
    let after = all(answered(["blue", "red", "blue"], [0, 1, 1]));
    let report = tasks.report(&ctx, &before, &after).unwrap();
    let own = &report["evaluation"]["colours"];
    for (name, was, now) in [
        ("accuracy", 0.0, 0.5),
        ("exact_match", 0.5, 1.0),
        ("label_accuracy", 1.0 / 3.0, 2.0 / 3.0),
    ] {
        assert_eq!(own["before"][name].as_f64(), Some(was), "{name}");
        assert_eq!(own["after"][name].as_f64(), Some(now), "{name}");
    }
    let after_scores = own["after"].as_object().unwrap();
    let line = changes(Some(&own["before"]), after_scores);
    assert!(line.contains("exact_match 0.500 -> 1.000") && !line.contains("prompts"), "{line}");
    assert!(changes(None, after_scores).contains("exact_match 1.000"));

    let path = ctx.run_dir.samples_path();
    let rows: Vec<_> =
        TableReader::open(&path, &columns(), "").unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 3);
    let texts: Vec<_> = rows[1][..5].iter().map(|cell| cell.as_text().unwrap()).collect();
    assert_eq!(texts, ["colours", "rose?", " red", "red", "red"]);
    let numbers = |at: usize| rows.iter().map(|row| row[at].as_f64()).collect::<Vec<_>>();
    assert_eq!(numbers(6), [Some(1.0), None, Some(0.0)]);
    assert_eq!(numbers(7), [Some(1.0), Some(1.0), None]);

    // Without any evaluation there is no table, and an earlier one goes.
    let none = Answers(BTreeMap::new());
    assert!(Tasks::default().report(&ctx, &none, &none).unwrap().is_empty());
    assert!(!path.exists());
}

/// The log-probability of `label` behind `prompt`: plainly, one sequence at a time, from all logits.
fn plainly(decoder: &Decoder, prompt: &[i64], label: &[i64]) -> f64 {
    let ids = [prompt, label].concat();
    let length = ids.len() as i64;
    let positions: Vec<i64> = (0..length).collect();
    let input = decoder.input(&ids, &positions, &[0, length]).unwrap();
    let logits = decoder.logits(&decoder.hidden(&input).unwrap()).unwrap();
    let logprobs: Tensor = logits.to_kind(Type::Double).log_softmax(-1, Type::Double);
    let of =
        |(at, &id): (usize, &i64)| logprobs.double_value(&[(prompt.len() + at) as i64 - 1, id]);
    label.iter().enumerate().map(of).sum()
}

#[test]
fn the_chosen_label_is_the_most_probable_one() {
    let json = json!({
        "model_type": "llama", "vocab_size": 200, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.5,
    });
    let config = ModelConfig::from_json(&json).unwrap();
    let decoder = Decoder::init(&config, 3, &LoadOptions::default()).unwrap();
    let mut task = colours();
    task.labels = vec![vec![7, 8, 9], vec![20, 21, 9], vec![30, 9]];
    // More than one forward pass takes.
    let prompts = (0..30).map(|at| prompt(&"abcdefgh".repeat(8)[at..], None, None));
    task.prompts = prompts.collect();
    let tokens: usize = task.prompts.iter().map(|prompt| 3 * (prompt.ids.len() + 2)).sum();
    assert!(tokens > 4096, "{tokens}");
    let dir = tempfile::tempdir().unwrap();
    let chosen = choose(&context(dir.path()), &decoder, &task).unwrap();
    tch::no_grad(|| {
        for (prompt, chosen) in task.prompts.iter().zip(&chosen) {
            let sums: Vec<f64> =
                task.labels.iter().map(|label| plainly(&decoder, &prompt.ids, label)).collect();
            let best = (0..3).max_by(|&a, &b| sums[a].total_cmp(&sums[b]));
            assert_eq!(*chosen, best, "{sums:?}");
        }
    });
    task.labels.clear();
    assert!(choose(&context(dir.path()), &decoder, &task).unwrap().iter().all(Option::is_none));
}

#[test]
fn what_cannot_be_evaluated_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompts.parquet");
    let rows = ["blue", "red"].map(|answer| PromptRow {
        prompt: "which?".to_owned(),
        answer: Some(answer.to_owned()),
        ..PromptRow::default()
    });
    artifact::prompts::write(&path, &rows).unwrap();
    let mute = dir.path().join("mute.parquet");
    let row = PromptRow { prompt: "which?".to_owned(), ..PromptRow::default() };
    artifact::prompts::write(&mute, &[rows[0].clone(), row]).unwrap();
    let options = BpeOptions { vocab_size: 300, ..BpeOptions::default() };
    let texts = ["which? blue red green".to_owned()].into_iter();
    let tokenizer = Tokenizer::train_bpe(texts, &options).unwrap();
    let problems = |path: &Path, more: &str| {
        let mut problems = Problems::new();
        let settings = Evaluation { prompts: path.to_path_buf(), ..settings(more) };
        let tables = BTreeMap::from([("x".to_owned(), settings)]);
        let tasks = Tasks::read(tables, &tokenizer, &mut problems);
        tasks.check_context(24, &mut problems);
        problems.to_string().replace(&dir.path().display().to_string(), "DIR")
    };
    assert_eq!(problems(&path, "labels = [\" red\", \"blue\"]"), "");
    assert_eq!(
        problems(&path, "labels = [\"red\"]\nmax_new_tokens = 0\nbatch_rows = 0"),
        "- evaluation.x.max_new_tokens: must be at least 1\n\
         - evaluation.x.batch_rows: must be from 1 to 4096, got 0\n\
         - evaluation.x.labels: needs at least two answers to choose from"
    );
    assert_eq!(
        problems(&path, "labels = [\"red\", \" \"]"),
        "- evaluation.x.labels: has an empty answer"
    );
    assert_eq!(
        problems(&path, "labels = [\"Red\", \"Blue\"]"),
        "- evaluation.x.labels: no prompt has one of them as its answer; write them as the data has them"
    );
    assert_eq!(
        problems(&mute, ""),
        "- evaluation.x.prompts: DIR/mute.parquet: row 1 has no right answer to compare with (columns `answer`, `checker`)"
    );
    assert_eq!(problems(&mute, "max_prompts = 1"), "");
    let long = format!("labels = [\"red\", \"{}\"]", "blue ".repeat(40));
    let said = problems(&path, &long);
    assert!(
        said.starts_with("- evaluation.x.prompts: DIR/prompts.parquet: row 0: a prompt of "),
        "{said}"
    );
    assert!(said.ends_with(" leaves no room for an answer in the model's 24 positions"), "{said}");
}

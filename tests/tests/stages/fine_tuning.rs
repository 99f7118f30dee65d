//! `finetune` and `peft` on a task: what is compared before and after, and asking what was trained.

use artifact::rows::Kind;

use super::*;

/// Both runs, and what each leaves to be used.
const RUNS: [(&str, &str); 2] = [("finetune", "model"), ("peft", "adapter")];

/// A row of `samples.parquet`.
struct Sample {
    evaluation: String,
    prompt: String,
    answer: String,
    before: Option<String>,
    after: String,
    task: Option<String>,
    score: Option<f64>,
    rouge: f64,
}

fn samples(run: &Path) -> Vec<Sample> {
    let columns = [
        Column::required("evaluation", Kind::Text),
        Column::required("prompt", Kind::Text),
        Column::optional("answer", Kind::Text),
        Column::optional("before", Kind::Text),
        Column::required("after", Kind::Text),
        Column::optional("task", Kind::Text),
        Column::optional("score", Kind::Float32),
        Column::optional("rouge_l", Kind::Float32),
    ];
    let sample = |row: Vec<Cell>| {
        let text = |at: usize| row[at].as_text().map(str::to_owned);
        Sample {
            evaluation: text(0).unwrap(),
            prompt: text(1).unwrap(),
            answer: text(2).unwrap(),
            before: text(3),
            after: text(4).unwrap(),
            task: text(5),
            score: row[6].as_f64(),
            rouge: row[7].as_f64().unwrap(),
        }
    };
    rows(&run.join("samples.parquet"), &columns).into_iter().map(sample).collect()
}

/// `finetune try` of a run in `dir`.
fn try_out<'a>(dir: &'a Path, run: &str, text: &str, fields: &[&str]) -> Stage<'a> {
    let fields = fields.iter().flat_map(|field| ["--field", *field]);
    let most = ["--max-new-tokens", "8", "--device", "cpu"];
    let given = ["try", "--run", run, "--text", text];
    Stage::new("finetune", dir).args(given).args(most).args(fields)
}

#[test]
fn a_task_is_evaluated_before_and_after() {
    for (name, product) in RUNS {
        let run = FINISHED.join(name);
        assert_eq!(json(&run.join("manifest.json"))["stage"], name);
        let read = ["model", "train", "validation", "tokenizer", "prompts", "prompts"];
        assert_eq!(roles(&run), read);
        for made in ["model", "adapter"] {
            assert_eq!(run.join(made).exists(), made == product, "{name}/{made}");
        }
        let found = results(&run);
        let evaluation = &found["evaluation"];
        assert!(evaluation["instructions"].get("before").is_none(), "{evaluation}");
        assert!(evaluation["instructions"]["after"].get("label_accuracy").is_none());
        assert_eq!(evaluation["instructions"]["after"]["prompts"], 8);
        let [before, after] = ["before", "after"].map(|side| &evaluation["things"][side]);
        for scores in [before, after] {
            let mut names: Vec<&str> =
                scores.as_object().unwrap().keys().map(String::as_str).collect();
            names.sort_unstable();
            let all = [
                "accuracy",
                "chrf",
                "exact_match",
                "f1",
                "label_accuracy",
                "prompts",
                "rouge1",
                "rouge2",
                "rougeL",
            ];
            assert_eq!(names, all);
            for name in names.iter().filter(|name| !["prompts", "chrf"].contains(name)) {
                let score = scores[*name].as_f64().unwrap();
                assert!((0.0..=1.0).contains(&score), "{name}: {scores}");
            }
            assert!((0.0..=100.0).contains(&scores["chrf"].as_f64().unwrap()), "{scores}");
        }
        // It has learned at least that the answer is one of two words.
        for score in ["exact_match", "accuracy", "rougeL", "chrf"] {
            let [was, is] = [before, after].map(|scores| scores[score].as_f64().unwrap());
            assert!(is > was, "{name} {score}: {was} -> {is}");
        }
        let lines = metrics(&run);
        assert_eq!(lines.iter().filter(|line| line["loss"].is_number()).count(), 6);
        assert!(found["eval_loss"].is_number());
    }
}

#[test]
fn parameters_and_memory_are_counted() {
    let of = |run: &str| results(&FINISHED.join(run));
    let (full, lora) = (of("finetune"), of("peft"));
    // Two layers, each with seven linear layers of [32, 32] or [64, 32] under a rank of 2.
    let expected = 2 * (4 * 2 * (32 + 32) + 3 * 2 * (32 + 64));
    assert_eq!(lora["trainable_parameters"], expected);
    assert!(full.get("trainable_parameters").is_none());
    let all = full["parameters"].as_u64().unwrap();
    assert_eq!(lora["parameters"], all);
    let bytes = |run: &Value, part: &str| run["memory"][part].as_u64().unwrap();
    // The optimiser counts the steps of each tensor besides.
    let counts = 100;
    for (run, trained) in [(&full, all), (&lora, expected)] {
        assert_eq!(bytes(run, "weights"), 4 * all);
        assert_eq!(bytes(run, "gradients"), 4 * trained);
        let state = bytes(run, "optimizer");
        assert!((8 * trained..8 * trained + counts * 4).contains(&state), "{state}");
    }
    assert_eq!((bytes(&full, "adapter"), bytes(&lora, "adapter")), (0, 4 * expected));
    for run in [&full, &lora] {
        assert!(bytes(run, "activations") > 0 && run["peak_memory_bytes"].is_u64());
    }
}

#[test]
fn samples_hold_what_the_scores_are_made_of() {
    for (name, _) in RUNS {
        let run = FINISHED.join(name);
        let evaluation = results(&run)["evaluation"].clone();
        let samples = samples(&run);
        for task in ["things", "instructions"] {
            let own: Vec<&Sample> =
                samples.iter().filter(|sample| sample.evaluation == task).collect();
            let after = &evaluation[task]["after"];
            assert_eq!(after["prompts"], own.len(), "{task}");
            let near = |score: &str, of: &dyn Fn(&Sample) -> f64| {
                let mean = own.iter().map(|sample| of(sample)).sum::<f64>() / own.len() as f64;
                let reported = after[score].as_f64().unwrap();
                assert!((reported - mean).abs() < 1e-6, "{name} {task} {score}: {mean} {reported}");
            };
            near("accuracy", &|sample| sample.score.unwrap());
            near("rougeL", &|sample| sample.rouge);
            for sample in &own {
                assert_eq!(sample.before.is_some(), task == "things");
                assert!(!sample.after.contains("<|"), "{}", sample.after);
                assert!(["en", "ko"].contains(&sample.task.as_deref().unwrap()));
                let same = data::checker::normalise(&sample.after)
                    == data::checker::normalise(&sample.answer);
                assert_eq!(sample.score, Some(if same { 1.0 } else { 0.0 }));
            }
        }
        assert!(samples.iter().any(|sample| sample.before.as_ref() != Some(&sample.after)));
    }
}

#[test]
fn try_asks_as_the_data_asks() {
    for (name, _) in RUNS {
        let samples = samples(&FINISHED.join(name));
        let asked = samples.iter().find(|sample| sample.prompt.contains("en: ")).unwrap();
        let (_, story) = asked.prompt.split_once("en: ").unwrap();
        let story = story.split("<|").next().unwrap().trim();
        let done = try_out(&FINISHED, name, story, &["language=en"]).succeed().unwrap();
        assert_eq!(done.stdout.trim(), asked.after.trim(), "{name}");
        // The other way about: the text is what is not given as a field.
        let field = format!("story={story}");
        let other = try_out(&FINISHED, name, "en", &[&field]).succeed().unwrap();
        assert_eq!(other.stdout, done.stdout);
    }
    // Data of conversations has one field.
    let done = try_out(&FINISHED, "sft", "What did Minsu find at place 0?", &[]).succeed().unwrap();
    assert!(!done.stdout.trim().is_empty(), "{done}");
}

#[test]
fn try_says_what_it_needs() {
    let dir = &*FINISHED;
    try_out(dir, "finetune", "x", &[])
        .fail(
            2,
            &[
                "error: the prompts of `things` are made of the fields language, story; give all but one of them with \
                 --field NAME=VALUE, for --text to be the other",
            ],
        )
        .unwrap();
    let all = ["language=en", "story=x"];
    try_out(dir, "finetune", "x", &all).fail(2, &["give all but one of them"]).unwrap();
    try_out(dir, "finetune", "x", &["language"])
        .fail(2, &["error: --field language: expected NAME=VALUE"])
        .unwrap();
    try_out(dir, "pretrain", "x", &[])
        .fail(2, &["error: `text` is data of kind text, which has no prompts"])
        .unwrap();
    let none = "is the run directory of a stage that makes no model";
    try_out(dir, "data", "x", &[]).fail(2, &[&format!("error: data: {none}")]).unwrap();
    try_out(dir, "nowhere", "x", &[]).fail(2, &["error: nowhere: does not exist"]).unwrap();
    let why = "error: reward: this is a reward model, which has no language-model head";
    try_out(dir, "reward", "x", &[]).fail(2, &[why]).unwrap();
    // Without its data-prep run nobody knows how to ask.
    let yard = yard(&["finetune"]);
    let dir = yard.path();
    try_out(dir, "finetune", "x", &["language=en"]).fail(2, &["data"]).unwrap();
    fs_err::remove_file(dir.join("finetune/manifest.json")).unwrap();
    let unfinished = "error: finetune: no manifest.json, so the run that makes it has not finished";
    try_out(dir, "finetune", "x", &["language=en"]).fail(2, &[unfinished]).unwrap();
}

#[test]
fn another_evaluation_goes_on_from_the_same_checkpoint() {
    let yard = yard(&["data", "sft"]);
    let dir = yard.path();
    let mut running = stage("peft", dir).start().unwrap();
    running.wait_until(|| checkpoints(&dir.join("peft")) > 0).unwrap();
    running.kill().unwrap();
    let fewer = ["evaluation.things.max_prompts=3", "train.checkpoint.every_steps=5"];
    let end = stage("peft", dir).args(sets(&fewer)).succeed().unwrap();
    assert!(end.stderr.contains("goes on from peft/checkpoints/step-"), "{end}");
    assert_same_files(&dir.join("peft/adapter"), &FINISHED.join("peft/adapter"));
    assert_eq!(results(&dir.join("peft"))["evaluation"]["things"]["after"]["prompts"], 3);
}

#[test]
fn the_table_has_a_row_for_each_run_and_one_for_before() {
    let names = ["--learned", "things", "--forgotten", "instructions"];
    let table = |runs: &[&str]| {
        Stage::new("peft", &FINISHED).args(["table"]).args(runs.iter().copied()).args(names)
    };
    let shown = table(&["peft", "finetune", "data", "nowhere"]);
    shown.fail(2, &["error: data: its manifest has no accuracy of the evaluation things"]).unwrap();
    let shown = table(&["peft", "finetune", "nowhere"]).succeed().unwrap();
    let lines: Vec<&str> = shown.stdout.lines().collect();
    assert_eq!(lines.len(), 5, "{shown}");
    assert!(
        lines[0].starts_with("| method | things accuracy | instructions accuracy |"),
        "{shown}"
    );
    assert!(lines[2].starts_with("| before | "), "{shown}");
    for (line, run) in lines[3..].iter().zip(["finetune", "peft"]) {
        let found = results(&FINISHED.join(run));
        let after = found["evaluation"]["things"]["after"]["accuracy"].as_f64().unwrap();
        assert!(line.starts_with(&format!("| {run} | {:.1} | ", 100.0 * after)), "{shown}");
        assert!(line.ends_with(" KiB |"), "{shown}");
    }
    assert!(lines[4].contains(" | 2176 | 6.51 % | "), "{shown}");
    table(&["nowhere"]).fail(1, &["none of these is a finished run"]).unwrap();
}

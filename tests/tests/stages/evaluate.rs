//! Models measured side by side: the numbers are those of other programs, intervals hold them, and a killed run goes on.

use artifact::evaluation::{Evaluation, Measurement, Unit};
use artifact::rows::Kind;

use super::bad_input::edit;
use super::*;

const READS: &[&str] = &["data", "pretrain", "sft", "peft", "reward"];

fn found(run: &Path) -> Evaluation {
    Evaluation::read(&run.join("results.json")).unwrap()
}

fn number<'a>(found: &'a Evaluation, model: &str, test: &str, metric: &str) -> &'a Measurement {
    let is = |own: &&Measurement| own.model == model && own.test == test && own.metric == metric;
    let number = found.measurements.iter().find(is);
    number.unwrap_or_else(|| panic!("no {metric} of {model} in {test}"))
}

/// Rows of `samples.parquet`: test, item, prompt, answer, model, response, score.
fn samples(run: &Path) -> Vec<Vec<Cell>> {
    let text = |name| Column::required(name, Kind::Text);
    let columns = [
        text("test"),
        Column::required("item", Kind::Int),
        text("prompt"),
        Column::optional("answer", Kind::Text),
        text("model"),
        text("response"),
        Column::optional("score", Kind::Float32),
    ];
    rows(&run.join("samples.parquet"), &columns)
}

/// The scores in the samples of a model in a test.
fn scores(run: &Path, test: &str, model: &str) -> Vec<Option<f64>> {
    let all = samples(run).into_iter();
    let own = all.filter(|row| row[0].as_text() == Some(test) && row[4].as_text() == Some(model));
    own.map(|row| row[6].as_f64()).collect()
}

fn mean(values: &[Option<f64>]) -> f64 {
    let values: Vec<f64> = values.iter().flatten().copied().collect();
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn every_model_takes_every_test_that_it_can() {
    let found = found(&FINISHED.join("evaluate"));
    let names: Vec<&str> = found.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["pretrain", "sft", "peft", "reward"], "in the order of the config");
    let tests: Vec<(&str, &str, u64)> = found
        .tests
        .iter()
        .map(|test| (test.name.as_str(), test.kind.as_str(), test.items))
        .collect();
    assert_eq!(tests[0], ("text", "perplexity", 20));
    assert_eq!(tests[2], ("choices", "choice", 12));
    assert_eq!(tests[5], ("drift", "divergence", 10));
    assert_eq!(tests.len(), 7);
    assert_eq!(found.tests[1].about, "Which of two things.");
    let takes = |model: &str, test: &str| {
        found.measurements.iter().any(|own| own.model == model && own.test == test)
    };
    for (test, kind, _) in &tests {
        for model in ["pretrain", "sft", "peft"] {
            let can = *kind != "preference" && !(*kind == "divergence" && model == "sft");
            assert_eq!(takes(model, test), can, "{model} {test}");
        }
        assert_eq!(takes("reward", test), *kind == "preference", "{test}");
    }
    for own in &found.measurements {
        let Some([low, high]) = own.interval else { panic!("{own:?}") };
        assert!(low <= own.value && own.value <= high, "{own:?}");
        let share = own.unit == Unit::Share;
        assert!(!share || (0.0 <= low && high <= 1.0), "{own:?}");
    }
    let adapted =
        |name: &str| found.models.iter().find(|model| model.name == name).unwrap().parameters;
    assert_eq!(adapted("peft") - adapted("sft"), 2176, "the adapter's are counted");
}

#[test]
fn numbers_are_those_of_the_stages_themselves() {
    let run = FINISHED.join("evaluate");
    let now = found(&run);
    // finetune and peft measure the same held-out prompts after training, in the same precision.
    let own = &results(&FINISHED.join("peft"))["evaluation"]["things"]["after"];
    let names = [
        ("accuracy", "accuracy", 1.0),
        ("rouge1", "rouge1", 1.0),
        ("rouge2", "rouge2", 1.0),
        ("rougeL", "rougeL", 1.0),
        ("exact_match", "exact_match", 1.0),
        ("f1", "f1", 1.0),
        ("chrf", "chrf", 100.0),
    ];
    for (theirs, ours, scale) in names {
        let value = number(&now, "peft", "things", ours).value * scale;
        assert!((value - own[theirs].as_f64().unwrap()).abs() < 1e-6, "{ours}: {value} {own}");
    }
    let reward = results(&FINISHED.join("reward"));
    let accuracy = number(&now, "reward", "pairs", "accuracy");
    assert!((accuracy.value - reward["accuracy"].as_f64().unwrap()).abs() < 1e-9, "{reward}");
    let margin = number(&now, "reward", "pairs", "margin").value;
    assert!((margin - reward["margin"].as_f64().unwrap()).abs() < 1e-4, "{margin} {reward}");
    // All rows, as at the end of pre-training.
    let yard = yard(READS);
    let only = ["tests.text.perplexity.max_items=100000", "tests.text.models=[\"pretrain\"]"];
    stage("evaluate", yard.path()).args(sets(&only)).succeed().unwrap();
    let all = found(&yard.path().join("evaluate"));
    let pretrain = results(&FINISHED.join("pretrain"));
    for (theirs, ours) in [
        ("eval_loss", "loss"),
        ("eval_bits_per_byte", "bits_per_byte"),
        ("eval_perplexity", "perplexity"),
    ] {
        let value = number(&all, "pretrain", "text", ours).value;
        let own = pretrain[theirs].as_f64().unwrap();
        assert!((value / own - 1.0).abs() < 1e-4, "{ours}: {value} {own}");
    }
}

#[test]
fn samples_hold_what_the_numbers_are_made_of() {
    let run = FINISHED.join("evaluate");
    let now = found(&run);
    for model in ["pretrain", "sft", "peft"] {
        let of = |test: &str, metric: &str| number(&now, model, test, metric).value;
        assert!((of("things", "accuracy") - mean(&scores(&run, "things", model))).abs() < 1e-6);
        assert!((of("choices", "accuracy") - mean(&scores(&run, "choices", model))).abs() < 1e-6);
        assert!((of("requests", "score") - mean(&scores(&run, "requests", model))).abs() < 1e-4);
        if model != "pretrain" {
            let both = scores(&run, "requests", model)
                .into_iter()
                .zip(scores(&run, "requests", "pretrain"));
            let wins = both.map(|(a, b)| if a == b { Some(0.5) } else { Some(f64::from(a > b)) });
            assert!((of("requests", "win_rate") - mean(&wins.collect::<Vec<_>>())).abs() < 1e-6);
        }
        assert!(model == "sft" || of("drift", "kl_k3") >= 0.0);
    }
    // The choices are of the data, the right one among them.
    for row in samples(&run).iter().filter(|row| row[0].as_text() == Some("choices")) {
        let right = row[3].as_text() == row[5].as_text();
        assert_eq!(row[6].as_f64(), Some(f64::from(right)), "{row:?}");
    }
    assert!(samples(&run).iter().all(|row| row[0].as_text() != Some("text")));
    let sft = number(&now, "sft", "things", "accuracy");
    let parts: Vec<&Measurement> = ["en", "ko"]
        .iter()
        .map(|part| number(&now, "sft", "things", &format!("accuracy/{part}")))
        .collect();
    assert_eq!(parts.iter().map(|part| part.items).sum::<u64>(), sft.items);
    let weighed: f64 = parts.iter().map(|part| part.value * part.items as f64).sum();
    assert!((weighed / sft.items as f64 - sft.value).abs() < 1e-9);
}

#[test]
fn changes_are_from_the_parent_on_the_same_items() {
    let now = found(&FINISHED.join("evaluate"));
    let pairs: Vec<(&str, &str)> =
        now.differences.iter().map(|own| (own.model.as_str(), own.from.as_str())).collect();
    assert!(pairs.contains(&("sft", "pretrain")) && pairs.contains(&("peft", "sft")));
    assert!(pairs.iter().all(|pair| [("sft", "pretrain"), ("peft", "sft")].contains(pair)));
    for own in now.differences.iter().filter(|own| own.metric != "win_rate") {
        let of = |model: &str| number(&now, model, &own.test, &own.metric).value;
        let change = of(&own.model) - of(&own.from);
        assert!((own.value - change).abs() < 1e-9, "{own:?} {change}");
        let [low, high] = own.interval.unwrap();
        assert!(low <= own.value && own.value <= high, "{own:?}");
    }
    let manifest = results(&FINISHED.join("evaluate"));
    let value = number(&now, "sft", "things", "accuracy").value;
    assert_eq!(manifest["evaluation"]["things"]["sft"]["accuracy"], value);
    let table = rows(
        &FINISHED.join("evaluate/results.parquet"),
        &[Column::required("metric", Kind::Text), Column::required("value", Kind::Float64)],
    );
    assert_eq!(table.len(), now.measurements.len());
    for (row, own) in table.iter().zip(&now.measurements) {
        assert_eq!(row, &[Cell::from(own.metric.as_str()), Cell::from(own.value)]);
    }
}

#[test]
fn a_killed_run_goes_on_and_ends_the_same() {
    let yard = yard(&["data", "pretrain", "sft", "peft", "reward", "evaluate"]);
    let dir = yard.path();
    let run = dir.join("evaluate");
    // As a kill in the middle of the second model leaves it.
    for entry in fs_err::read_dir(&run).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && !path.ends_with("config.toml") {
            fs_err::remove_file(path).unwrap();
        }
    }
    let mut kept = 0;
    for entry in fs_err::read_dir(run.join("checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("part-") && name.as_str() > "part-0001-0002.json" {
            fs_err::remove_file(path).unwrap();
        } else if name.starts_with("part-") {
            kept += 1;
        }
    }
    assert_eq!(kept, 6 + 3, "a reward model's test is not for the first");
    // Other data would make other numbers.
    let other = ["tests.things.generation.max_new_tokens=4"];
    let parts = [
        "made with another config",
        "tests.things.generation.max_new_tokens: 8 -> 4",
        "--resume never",
    ];
    stage("evaluate", dir).args(sets(&other)).fail(2, &parts).unwrap();
    // Batches and intervals are no part of what lies there.
    let free = ["batch.rows=5", "bootstrap.samples=500"];
    let end = stage("evaluate", dir).args(sets(&free)).succeed().unwrap();
    assert!(end.stderr.contains("goes on from evaluate/checkpoints"), "{end}");
    assert!(end.stderr.contains("where 9 tests of models were done"), "{end}");
    let (ours, whole) = (found(&run), found(&FINISHED.join("evaluate")));
    assert_eq!(ours.models, whole.models);
    assert_eq!(ours.measurements.len(), whole.measurements.len());
    for (own, other) in ours.measurements.iter().zip(&whole.measurements) {
        assert!(
            (own.value - other.value).abs() < 1e-4 * other.value.abs().max(1.0),
            "{own:?} {other:?}"
        );
    }
    // A damaged part is named.
    fs_err::remove_file(run.join("manifest.json")).unwrap();
    fs_err::write(run.join("checkpoints/part-0000-0000.json"), "{").unwrap();
    let damaged = ["part-0000-0000.json: not a part of this run", "--resume never"];
    stage("evaluate", dir).args(sets(&free)).fail(1, &damaged).unwrap();
    stage("evaluate", dir).args(["--resume", "never"]).succeed().unwrap();
    for file in ["results.json", "results.parquet", "samples.parquet"] {
        let of = |run: &Path| fs_err::read(run.join(file)).unwrap();
        assert_eq!(of(&run), of(&FINISHED.join("evaluate")), "{file}");
    }
}

#[test]
fn check_tells_the_plan_and_touches_nothing() {
    let yard = yard(READS);
    let shown = stage("evaluate", yard.path()).args(["--check"]).succeed().unwrap();
    for line in [
        "models      pretrain: ",
        "            sft: ",
        ", from pretrain, sft\n",
        "tests       text: perplexity, 20 items, 3 models\n",
        "            drift: divergence, 10 items, 2 models\n",
        "            pairs: preference, ",
        "intervals   95 %, 500 resamples; models run in fp32\n",
    ] {
        assert!(shown.stdout.contains(line), "{line:?}\n{shown}");
    }
    assert!(!yard.path().join("evaluate").exists());
}

/// Runs with settings that cannot be, and expects what is said.
#[track_caller]
fn refused(settings: &[&str], parts: &[&str]) {
    let yard = yard(READS);
    stage("evaluate", yard.path()).args(sets(settings)).fail(2, parts).unwrap();
    assert!(!yard.path().join("evaluate/config.toml").exists());
}

#[test]
fn what_cannot_be_is_told_all_at_once() {
    refused(
        &[
            "bootstrap.samples=1",
            "batch.rows=0",
            "batch.tokens=0",
            "models.sft.parent=none",
            "models.peft.path=nowhere",
        ],
        &[
            "error: evaluate.toml has 5 problems",
            "bootstrap.samples: must be from 100 to 1000000, got 1",
            "batch.rows: must be from 1 to 4096, got 0",
            "batch.tokens: must be at least 1",
            "models.sft.parent: there is no other model `none` in the config",
            "models.peft.path: nowhere: does not exist",
        ],
    );
    refused(
        &[
            "tests.text.perplexity.stride=128",
            "tests.things.generation.max_new_tokens=0",
            "tests.choices.choice.wrong_answers=400",
            "tests.requests.score.reward_model=sft",
            "tests.requests.score.baseline=reward",
            "tests.safety.safety.constitution=none.toml",
            "tests.drift.divergence.reference=reward",
            "tests.pairs.models=[\"sft\"]",
        ],
        &[
            "tests.text.perplexity.stride: must be at least 1 and below the window, which is 128 tokens",
            "tests.things.generation.max_new_tokens: must be at least 1",
            "tests.choices.choice.prompts: for no prompt there are 400 answers of others",
            "tests.requests.score.reward_model: sft: this is a language model",
            "tests.requests.score.baseline: `reward` is no model that takes this test",
            "tests.safety.safety.constitution: ",
            "tests.drift.divergence.reference: ",
            "tests.pairs.models: `sft` is no reward model",
        ],
    );
    refused(
        &["tests.things.models=[\"reward\", \"nobody\"]", "tests.things.perplexity.rows=[]"],
        &["tests.things: needs one of the tables perplexity, generation, ", ", and has 2"],
    );
    refused(
        &["tests.things.models=[\"reward\", \"nobody\"]", "tests.drift.models=[\"sft\"]"],
        &[
            "tests.things.models: `reward` is a reward model, which says nothing",
            "tests.things.models: there is no model `nobody`",
            "tests.drift.models: `sft` is the reference itself",
        ],
    );
    refused(
        &[
            "tests.text.perplexity.sources=[\"texts.txt\"]",
            "tests.choices.choice.sources=[\"questions.json\"]",
        ],
        &[
            "tests.text.perplexity: needs `rows` (token rows of data-prep) or `sources` (text), and not both",
            "tests.choices.choice: needs `sources` (records with choices) or `prompts` (with right answers), and not both",
        ],
    );
    refused(
        &["tests.things.generation.measures=[]"],
        &["tests.things.generation.measures: is empty"],
    );
    refused(
        &[
            "tests.text.perplexity.max_items=0",
            "tests.things.generation.max_items=0",
            "tests.choices.choice.max_items=0",
            "tests.pairs.preference.max_items=0",
        ],
        &[
            "tests.text.perplexity.max_items: must be at least 1",
            "tests.things.generation.max_items: must be at least 1",
            "tests.choices.choice.max_items: must be at least 1",
            "tests.pairs.preference.max_items: must be at least 1",
        ],
    );
    refused(
        &["tests.things.generation.prompts=[]"],
        &["tests.things.generation.prompts: names no file"],
    );
    refused(&["tests.\"a b\".text=1"], &["unknown field `text`"]);
}

#[test]
fn a_model_of_other_tokens_is_told_what_it_cannot_take() {
    let other = temper_tests::fixtures::parity("evaluation/byte-level/model");
    let path = format!("models.pretrain.path={}", other.display());
    refused(
        &[&path],
        &[
            "tests.text.perplexity.rows: data/data/text/validation.parquet: made with another tokenizer than that of `pretrain`; give `sources`",
            "tests.things.generation.prompts: the tokenizer of `pretrain` has no chat template, so no conversation can be held",
            "name one that has with models.pretrain.tokenizer",
            "tests.drift.divergence.reference: `pretrain` has other tokens than `sft`, so their probabilities cannot be compared",
        ],
    );
    let reward = format!("tests.requests.score.reward_model={}", other.display());
    refused(&[&reward], &["tests.requests.score.reward_model: "]);
}

#[test]
fn weights_in_4_bits_and_bottlenecks_are_measured() {
    let yard = yard(READS);
    let dir = yard.path();
    let bottleneck = [
        "peft.method={bottleneck={size=4,activation=\"relu\",place=\"pfeiffer\"}}",
        "train.steps=5",
        "out=bottleneck",
    ];
    stage("peft", dir).args(sets(&bottleneck)).succeed().unwrap();
    let both = ["models.peft.path=bottleneck", "models.sft.quantization={quant_type=\"nf4\"}"];
    stage("evaluate", dir).args(sets(&both)).succeed().unwrap();
    let (now, whole) = (found(&dir.join("evaluate")), found(&FINISHED.join("evaluate")));
    let loss = |of: &Evaluation, model: &str| number(of, model, "text", "loss").value;
    let (coarse, fine) = (loss(&now, "sft"), loss(&whole, "sft"));
    assert!(coarse != fine && (coarse / fine - 1.0).abs() < 0.2, "{coarse} {fine}");
    assert_ne!(loss(&now, "peft"), loss(&whole, "peft"));
    assert_eq!(loss(&now, "pretrain"), loss(&whole, "pretrain"));
    let parameters =
        |name: &str| now.models.iter().find(|own| own.name == name).unwrap().parameters;
    assert!(parameters("peft") > parameters("sft"));
}

#[test]
fn a_record_that_is_no_pair_says_why() {
    let yard = yard(READS);
    let dir = yard.path();
    let rows = "rows = [\"data/data/preferences/validation.parquet\"]";
    edit(dir, "evaluate.toml", rows, "sources = [\"pairs.jsonl\"]");
    let said = |who: &str| format!("\\n\\nHuman: {who}?\\n\\nAssistant: No.");
    let line = format!("{{\"chosen\": \"{}\", \"rejected\": \"{}\"}}\n", said("A"), said("B"));
    fs_err::write(dir.join("pairs.jsonl"), line).unwrap();
    let error = "tests.pairs.preference.sources: pairs.jsonl:1: no pair of `chosen` and `rejected`: \
                 the conversations differ before their last answers";
    stage("evaluate", dir).fail(2, &[error]).unwrap();
}

#[test]
fn wrong_records_name_file_and_row() {
    let yard = yard(READS);
    let dir = yard.path();
    edit(
        dir,
        "evaluate.toml",
        "prompts = [\"data/data/instructions/prompts.parquet\"]\nwrong_answers = 2\n",
        "sources = [\"questions.jsonl\"]\n",
    );
    edit(
        dir,
        "evaluate.toml",
        "rows = [\"data/data/text/validation.parquet\"]",
        "sources = [\"texts.jsonl\"]",
    );
    let text = |lines: &str| fs_err::write(dir.join("texts.jsonl"), lines).unwrap();
    let asked = |line: &str| {
        fs_err::write(
            dir.join("questions.jsonl"),
            format!("{{\"query\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":0}}\n{line}\n"),
        )
        .unwrap();
    };
    text("{\"text\": \"민수는 사과를 찾았어요.\"}\n{\"body\": \"x\"}\n");
    asked("{\"question\": \"a\"}");
    stage("evaluate", dir)
        .fail(
            2,
            &[
                "tests.text.perplexity.column: texts.jsonl:2: no text in a column `text`; it has body; name the column with `column`",
                "tests.choices.choice.sources: questions.jsonl:2",
                "no question with choices; it has question; known are `query`, `choices`, `gold`",
            ],
        )
        .unwrap();
    text("{\"text\": \"민수는 사과를 찾았어요.\"}\n{\"text\": \"\"}\n");
    for (line, part) in [
        (
            "{\"query\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":2}",
            "the right answer is 2, and the choices go from 0 to 1",
        ),
        (
            "{\"query\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":\"B\"}",
            "`gold` is \"B\", and not the number of a choice, from 0",
        ),
        ("{\"query\":\"a\",\"choices\":[\"b\"],\"gold\":0}", "needs at least two choices, has 1"),
        ("{\"query\":\"a\",\"choices\":[\"b\",\" \"],\"gold\":0}", "a choice is empty"),
        (
            "{\"question\":\"a\",\"choices\":{\"text\":[\"b\",\"c\"],\"label\":[\"A\",\"B\"]},\"answerKey\":\"C\"}",
            "`answerKey` is \"C\"",
        ),
        (
            "{\"question\":\"a\",\"choices\":{\"text\":[\"b\",\"c\"]},\"answerKey\":\"C\"}",
            "needs the lists `text` and `label`",
        ),
    ] {
        asked(line);
        stage("evaluate", dir).fail(2, &["questions.jsonl:2", part]).unwrap();
    }
    // A text without a token to predict is a document of nothing.
    asked("{\"ctx\":\"누가\",\"endings\":[\"민수.\",\"수지.\"],\"label\":\"1\",\"task\":\"who\"}");
    stage("evaluate", dir).succeed().unwrap();
    let now = found(&dir.join("evaluate"));
    assert_eq!(number(&now, "sft", "text", "loss").items, 2);
    assert_eq!(number(&now, "sft", "choices", "accuracy").items, 2);
}

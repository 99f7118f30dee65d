//! Every pipeline that ships, from its first stage to its last: the shipped configs are checked as they are, and then run on
//! small models and data, with less of everything.

use temper_tests::fixtures;
use temper_tests::pipelines::{PipelineStage, stages};

use super::*;

/// What is set, where a config has the key, so that a stage takes a second.
const SMALL: [(&str, &str); 33] = [
    ("train.epochs", "1"),
    ("train.steps", "2"),
    ("train.eval.every_steps", "1000"),
    ("train.batch_size.sequences", "16"),
    ("train.batch_size.prompts", "16"),
    ("samples.max_new_tokens", "4"),
    ("samples.max_prompts", "4"),
    ("evaluation.*.max_prompts", "4"),
    ("evaluation.*.max_new_tokens", "4"),
    ("rollout.prompts_per_step", "8"),
    ("rollout.max_new_tokens", "8"),
    ("eval.max_prompts", "8"),
    ("eval.max_new_tokens", "8"),
    ("tests.*.*.max_items", "8"),
    ("tests.*.*.max_new_tokens", "8"),
    ("bootstrap.samples", "200"),
    ("ptx.batch_tokens", "256"),
    ("generate.rounds", "1"),
    ("generate.initial.max_new_tokens", "32"),
    ("generate.critiques.max_new_tokens", "16"),
    ("generate.revisions.max_new_tokens", "32"),
    ("responses.sampling.max_new_tokens", "16"),
    ("label.principles_per_pair", "1"),
    ("rows.validation_fraction", "0.4"),
    ("mix.helpful_share", "0.2"),
    ("datasets.*.validation_fraction", "0.3"),
    ("datasets.*.world.records", "300"),
    ("datasets.*.world.held_out", "30"),
    ("tokenizer.train.vocab_size", "600"),
    ("model.config.hidden_size", "32"),
    ("model.config.intermediate_size", "64"),
    ("model.config.num_attention_heads", "2"),
    ("model.config.num_key_value_heads", "2"),
];

/// The keys of `table` that fit a dotted pattern, in which `*` stands for any one name.
fn matching(table: &toml::Table, pattern: &str) -> Vec<String> {
    let (first, rest) = pattern.split_once('.').map_or((pattern, None), |(a, b)| (a, Some(b)));
    let mut found = Vec::new();
    for (key, value) in table.iter().filter(|(key, _)| first == "*" || first == key.as_str()) {
        match (rest, value) {
            (None, _) => found.push(key.clone()),
            (Some(rest), toml::Value::Table(inner)) => {
                found.extend(matching(inner, rest).iter().map(|below| format!("{key}.{below}")));
            }
            _ => {}
        }
    }
    found
}

/// A folder with the configs that ship, to put models and data into.
fn shop() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&fixtures::root().join("configs"), &dir.path().join("configs"));
    dir
}

/// Checks and runs each stage of a pipeline in turn; `wanted` says which ones.
fn run(dir: &Path, pipeline: &str, wanted: impl Fn(&str) -> bool) -> Vec<PipelineStage> {
    let source = fixtures::root().join("pipelines").join(format!("{pipeline}.mk"));
    let mut all = stages(&fs_err::read_to_string(source).unwrap());
    assert!(!all.is_empty(), "{pipeline}");
    all.retain(|stage| wanted(&stage.name));
    for PipelineStage { name, program, .. } in &all {
        let own = format!("configs/{pipeline}/{name}.toml");
        let shared = format!("configs/{name}.toml");
        let file = if dir.join(&own).exists() { own } else { shared };
        let config: toml::Table = fs_err::read_to_string(dir.join(&file)).unwrap().parse().unwrap();
        let out = format!("runs/{pipeline}/{name}");
        let (binary, command) = program.split_once(' ').unwrap_or((program, ""));
        let stage = |more: &[&str]| {
            let usual = ["--config", &file, "--out", &out, "--device", "cpu"];
            let words = command.split_whitespace().chain(usual).chain(more.iter().copied());
            Stage::new(binary, dir).args(words).succeed().unwrap()
        };
        // make passes --out, too; what the config says is the same.
        if program.as_str() != "cai label" {
            assert_eq!(config["out"].as_str(), Some(out.as_str()), "{file}");
        }
        stage(&["--check"]);
        assert!(!dir.join(&out).exists(), "{pipeline} {name}: --check made something");
        let small: Vec<String> = SMALL
            .iter()
            .flat_map(|(pattern, value)| {
                // What is learned from its answers must end.
                let more = name == "helpful" && *pattern == "train.steps";
                let value = if more { "60" } else { value };
                matching(&config, pattern).into_iter().map(move |key| format!("{key}={value}"))
            })
            .collect();
        let small: Vec<&str> = small.iter().flat_map(|set| ["--set", set]).collect();
        stage(&small);
        let manifest = json(&dir.join(&out).join("manifest.json"));
        assert_eq!(manifest["stage"], program.as_str(), "{pipeline} {name}");
    }
    all
}

fn names(stages: &[PipelineStage]) -> Vec<&str> {
    stages.iter().map(|stage| stage.name.as_str()).collect()
}

/// The files that a stage of a pipeline must leave.
#[track_caller]
fn left(dir: &Path, stage: &str, files: &[&str]) {
    for file in files {
        let path = dir.join("runs").join(stage).join(file);
        assert!(path.exists(), "{} is not there", path.display());
    }
}

/// What `evaluate` and `report` must leave of a pipeline: in each test numbers of so many models, and a page of so many runs.
#[track_caller]
fn shown(dir: &Path, pipeline: &str, runs: u64, tests: &[(&str, usize)]) {
    let results = dir.join("runs").join(pipeline).join("evaluate/results.json");
    let found = artifact::evaluation::Evaluation::read(&results).unwrap();
    let took = |test: &str| {
        let numbers = found.measurements.iter().filter(|own| own.test == test);
        numbers.map(|own| own.model.as_str()).collect::<std::collections::BTreeSet<_>>().len()
    };
    let all: Vec<(&str, usize)> =
        found.tests.iter().map(|test| (test.name.as_str(), took(&test.name))).collect();
    assert_eq!(all, tests, "{pipeline}");
    let of_parents = found.differences.iter().map(|own| own.test.as_str());
    assert!(of_parents.count() > 0, "{pipeline}: nothing is compared");
    left(dir, pipeline, &["report/report.html"]);
    let report = json(&dir.join("runs").join(pipeline).join("report/manifest.json"));
    let results = &report["results"];
    assert_eq!((&results["runs"], &results["evaluations"]), (&runs.into(), &1.into()), "{report}");
    assert_eq!(results["unfinished_runs"], 0);
    let page = dir.join("runs").join(pipeline).join("report/report.html");
    assert_eq!(unexplained(&page), [""; 0], "numbers on {} without a sentence", page.display());
}

/// The numbers on a report's page whose meaning is not on it: of those that are logged, reported and measured.
fn unexplained(page: &Path) -> Vec<String> {
    let html = fs_err::read_to_string(page).unwrap();
    let data = html.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    let data: Value = serde_json::from_str(data).unwrap();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut known: Vec<String> =
        list(&data["metrics"]).iter().map(|own| text(&own["name"])).collect();
    known.extend(list(&data["glossary"]).iter().map(|own| text(&own["word"])));
    let mut names = Vec::new();
    for run in list(&data["runs"]) {
        names.extend(list(&run["series"]).iter().map(|own| text(&own["metric"])));
        // What data-prep counts of its sets, and what evaluate found, stand in tables of their own.
        let own = list(&run["results"]).into_iter().filter(|own| own[1].is_number());
        let keys = own.map(|own| text(&own[0])).filter(|key| !key.starts_with("datasets."));
        let evaluates = run["family"] == "evaluation";
        names.extend(keys.filter(|key| !evaluates || key.matches('.').count() < 2));
    }
    for evaluated in list(&data["evaluations"]) {
        let numbers = list(&evaluated["results"]["measurements"]);
        names.extend(numbers.iter().map(|own| text(&own["metric"])));
    }
    names.retain(|name| {
        // As `namesOf` in the page's terms.js.
        let short = name.strip_prefix("eval_before.").or_else(|| name.strip_prefix("eval."));
        let ways = [
            Some(name.clone()),
            name.split('/').next().map(str::to_owned),
            name.strip_prefix("eval_").map(str::to_owned),
            short.map(|short| format!("eval/{short}")),
            name.split('.').next_back().map(str::to_owned),
            name.split('.').next().map(str::to_owned),
        ];
        !ways.into_iter().flatten().any(|way| known.contains(&way))
    });
    names.sort();
    names.dedup();
    names
}

const MODEL: [&str; 3] = ["model/config.json", "model/model.safetensors", "model/tokenizer.json"];

#[test]
fn no_pipeline_is_left_out() {
    let mut found: Vec<String> = fs_err::read_dir(fixtures::root().join("pipelines"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    assert_eq!(
        found,
        ["code", "dialogpt", "medical", "methods", "quickstart", "rlaif", "rlhf"],
        "a new pipeline needs a test here"
    );
}

#[test]
fn rlhf_from_demonstrations_and_rankings_to_a_policy() {
    let shop = shop();
    let dir = shop.path();
    stand_ins::model(dir, "gpt2", stand_ins::GPT2);
    stand_ins::alpaca(dir, "demonstrations/tasks.json", "답하세요.");
    stand_ins::rankings(dir);
    stand_ins::text(dir);
    let ran = run(dir, "rlhf", |_| true);
    assert_eq!(names(&ran), ["data-prep", "sft", "reward", "ppo", "evaluate", "report"]);
    shown(
        dir,
        "rlhf",
        5,
        &[
            ("likelihood", 3),
            ("demonstrations", 3),
            ("requests", 3),
            ("drift", 1),
            ("preferences", 1),
        ],
    );
    left(dir, "rlhf/sft", &MODEL);
    left(dir, "rlhf/reward", &MODEL);
    left(dir, "rlhf/ppo", &MODEL);
    // Of four answers, two of one rank: 5 of the 6 pairs; the tree has 3.
    let rankings = dir.join("runs/rlhf/data-prep/data/rankings");
    let pairs = |split: &str| {
        artifact::pairs::PairReader::open(rankings.join(format!("{split}.parquet")))
            .unwrap()
            .num_rows()
    };
    assert_eq!(pairs("train") + pairs("validation"), 40 * 5 + 3);
    let policy = metrics(&dir.join("runs/rlhf/ppo"));
    assert!(policy.iter().any(|line| line["loss/ptx"].is_number()), "the mix is in: {policy:?}");
    // Every prompt is asked once, whatever the number of its pairs.
    let columns = [Column::required("prompt", artifact::rows::Kind::Text)];
    let mut prompts: Vec<String> = ["train-prompts", "prompts"]
        .iter()
        .flat_map(|file| rows(&rankings.join(format!("{file}.parquet")), &columns))
        .map(|row| row[0].as_text().unwrap().to_owned())
        .collect();
    prompts.sort();
    prompts.dedup();
    assert_eq!(prompts.len(), 41);
}

#[test]
fn medical_ends_with_an_adapter_that_can_be_merged() {
    let shop = shop();
    let dir = shop.path();
    stand_ins::model(dir, "llama", stand_ins::LLAMA);
    stand_ins::alpaca(dir, "instructions/tasks.json", "답하세요.");
    stand_ins::preferences(dir);
    stand_ins::medquad(dir);
    stand_ins::alpaca(dir, "chatdoctor/chatdoctor.json", "If you are a doctor, please answer.");
    let ran = run(dir, "medical", |_| true);
    assert_eq!(names(&ran), ["data-prep", "sft", "reward", "ppo", "peft", "evaluate", "report"]);
    let tests = [
        ("likelihood", 4),
        ("instructions", 4),
        ("medquad", 4),
        ("chatdoctor", 4),
        ("requests", 4),
        ("drift", 1),
        ("preferences", 1),
    ];
    shown(dir, "medical", 6, &tests);
    left(dir, "medical/ppo", &MODEL);
    left(
        dir,
        "medical/peft",
        &["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "samples.parquet"],
    );
    // What MedQuAD's entities stand for is read, and lines are joined.
    let columns = [
        Column::required("prompt", artifact::rows::Kind::Text),
        Column::required("answer", artifact::rows::Kind::Text),
    ];
    let medquad = rows(&dir.join("runs/medical/data-prep/data/medquad/prompts.parquet"), &columns);
    assert!(medquad.len() > 3, "{medquad:?}");
    for row in &medquad {
        let (prompt, answer) = (row[0].as_text().unwrap(), row[1].as_text().unwrap());
        assert!(prompt.contains(" &c ?") && !prompt.contains("Question"), "{prompt}");
        assert!(answer.ends_with(" It doesn't hurt. 푹 쉬세요."), "{answer}");
    }
    let evaluated = &results(&dir.join("runs/medical/peft"))["evaluation"];
    for task in ["medquad", "chatdoctor", "general"] {
        for when in ["before", "after"] {
            assert!(evaluated[task][when]["rougeL"].is_number(), "{task} {when}: {evaluated}");
        }
    }
    let merge = [
        "merge",
        "--model",
        "runs/medical/ppo",
        "--adapter",
        "runs/medical/peft",
        "--output",
        "models/medical",
    ];
    Stage::new("peft", dir).args(merge).succeed().unwrap();
    assert!(dir.join("models/medical/model.safetensors").exists());
}

#[test]
fn code_ends_with_a_model() {
    let shop = shop();
    let dir = shop.path();
    stand_ins::model(dir, "llama", stand_ins::LLAMA);
    stand_ins::alpaca(dir, "instructions/tasks.json", "답하세요.");
    stand_ins::preferences(dir);
    stand_ins::alpaca(dir, "code-alpaca/code.json", "Write a function.");
    let ran = run(dir, "code", |_| true);
    assert_eq!(
        names(&ran),
        ["data-prep", "sft", "reward", "ppo", "finetune", "evaluate", "report"]
    );
    let tests = [
        ("likelihood", 4),
        ("instructions", 4),
        ("code", 4),
        ("requests", 4),
        ("drift", 1),
        ("preferences", 1),
    ];
    shown(dir, "code", 6, &tests);
    left(dir, "code/finetune", &MODEL);
    left(dir, "code/finetune", &["samples.parquet"]);
}

#[test]
fn dialogpt_learns_every_turn_of_a_dialogue() {
    let shop = shop();
    let dir = shop.path();
    stand_ins::model(dir, "DialoGPT-medium", stand_ins::GPT2);
    stand_ins::dialogues(dir);
    let ran = run(dir, "dialogpt", |_| true);
    assert_eq!(names(&ran), ["data-prep", "finetune", "evaluate", "report"]);
    shown(dir, "dialogpt", 3, &[("dialogues", 2), ("replies", 2), ("drift", 1)]);
    left(dir, "dialogpt/finetune", &MODEL);
    let train = dir.join("runs/dialogpt/data-prep/data/dialogues/train.parquet");
    let read = artifact::tokens::TokenReader::open(&train).unwrap();
    // All but the first token of a row; <|endoftext|> is token 0 and closes each turn.
    let counts = read.counts();
    assert_eq!(counts.targets, counts.tokens - read.num_rows());
    let (mut turns, mut full) = (Vec::new(), 0);
    for group in 0..read.num_row_groups() {
        let rows = read.read_row_group(group).unwrap();
        for row in 0..rows.len() {
            let (ids, _) = rows.row(row);
            assert_eq!(ids.last(), Some(&0));
            turns.push(ids.iter().filter(|id| **id == 0).count());
            full += usize::from(*turns.last().unwrap() == 8);
        }
    }
    assert!(turns.iter().all(|turns| (2..=8).contains(turns)) && full > 40, "{turns:?}");
    let model = json(&dir.join("runs/dialogpt/finetune/model/tokenizer_config.json"));
    assert!(model["chat_template"].as_str().unwrap().contains("message['content'] + eos_token"));
}

#[test]
fn quickstart_and_what_goes_on_from_it() {
    let shop = shop();
    let dir = shop.path();
    let ran = run(dir, "quickstart", |_| true);
    assert_eq!(ran.len(), 12);
    assert_eq!(unexplained(&dir.join("runs/quickstart/report/report.html")), [""; 0]);
    left(dir, "quickstart/ppo", &MODEL);
    left(dir, "quickstart/cai-train", &MODEL);
    let ran = run(dir, "rlaif", |_| true);
    assert_eq!(names(&ran), ["cai-label", "reward", "ppo", "evaluate", "report"]);
    // Three runs of the quickstart are on the page, too.
    let tests = [("safety", 3), ("instructions", 3), ("requests", 3), ("drift", 1), ("labels", 1)];
    shown(dir, "rlaif", 7, &tests);
    left(dir, "rlaif/ppo", &MODEL);
    // Every method of them is tried elsewhere.
    run(dir, "methods", |name| name == "qlora");
    left(dir, "methods/qlora", &["adapter/adapter_model.safetensors"]);
}

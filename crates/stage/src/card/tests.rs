use std::collections::BTreeMap;

use artifact::{FORMAT_VERSION, Input, digest};

use super::*;

const INFO: Info = Info {
    name: "cai train",
    about: "Fine-tunes on revised answers.",
    reads: "a model",
    writes: "model/",
    example: "cai train",
    parallel: crate::Parallel::No,
};

fn manifest() -> Manifest {
    let input = |role: &str, path: &str| Input {
        role: role.to_owned(),
        path: path.into(),
        digest: digest::bytes(path.as_bytes()),
    };
    let results = json!({
        "steps": 12,
        "eval_loss": 1.25,
        "peak_memory_bytes": 1,
        "tokens_per_second": 2.5,
        "memory": {"weights": 3},
        "evaluation": {"병원": {"after": {"accuracy": 0.123_456_789, "curve": [1, 2]}}},
        "nothing": null,
        "said": "a|b\nc",
    });
    Manifest {
        format_version: FORMAT_VERSION,
        stage: INFO.name.to_owned(),
        inputs: vec![input("model", "runs/q/sft"), input("train", "runs/q/데이터|1.parquet")],
        outputs: BTreeMap::new(),
        config: Value::Null,
        seed: 7,
        versions: BTreeMap::from([
            ("libtorch".to_owned(), "2.11.0".to_owned()),
            ("temper".to_owned(), "0.1.0".to_owned()),
        ]),
        device: "cpu".to_owned(),
        started_at: String::new(),
        finished_at: String::new(),
        wall_seconds: 1.0,
        tokenizer: None,
        chat_template: None,
        results: results.as_object().unwrap().clone(),
    }
}

fn made(files: &[(&str, Value)]) -> (tempfile::TempDir, RunDir) {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::create(dir.path().join("cai-train")).unwrap();
    for (name, config) in files {
        let path = run.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, config.to_string()).unwrap();
    }
    write(&INFO, &manifest(), "seed = 7\n", &run).unwrap();
    (dir, run)
}

fn text(run: &RunDir, of: &str) -> String {
    let text = fs_err::read_to_string(run.path().join(of).join("README.md")).unwrap();
    text.replace(&run.path().display().to_string(), "runs/q/cai-train")
}

#[test]
fn a_model_card_says_what_it_is_and_what_it_was_made_from() {
    let config = json!({"architectures": ["LlamaForCausalLM"]});
    let (_dir, run) = made(&[("model/config.json", config)]);
    let digest = |path: &str| digest::bytes(path.as_bytes());
    let expected = format!(
        r#"---
library_name: transformers
pipeline_tag: text-generation
base_model: "runs/q/sft"
tags:
- temper
- cai-train
---

# cai-train

A language model that `cai train` of temper 0.1.0 made. Fine-tunes on revised answers.

## How to use it

```
chat --model runs/q/cai-train
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("runs/q/cai-train/model")
tokenizer = AutoTokenizer.from_pretrained("runs/q/cai-train/model")
```

## Training

What it was made from:

| what | path | digest |
|---|---|---|
| model | runs/q/sft | `{}` |
| train | runs/q/데이터\|1.parquet | `{}` |

<details><summary>Configuration</summary>

```toml
seed = 7
```

</details>

## Results

| measured | value |
|---|---|
| steps | 12 |
| eval_loss | 1.250000 |
| evaluation/병원/after/accuracy | 0.123457 |
| said | a\|b c |

The same seed (7), configuration and inputs give the same weights on a CPU of this kind.

## Versions

- libtorch 2.11.0
- temper 0.1.0
"#,
        digest("runs/q/sft"),
        digest("runs/q/데이터|1.parquet")
    );
    pretty(&text(&run, "model"), &expected);
    assert!(!run.adapter_dir().exists());
}

fn pretty(found: &str, expected: &str) {
    for (line, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {line}");
    }
    assert_eq!(found, expected);
}

#[test]
fn adapters_and_scoring_models_are_told_apart() {
    let lora = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM"});
    let merged = json!({"architectures": ["GPT2LMHeadModel"]});
    let (_dir, run) = made(&[("adapter/adapter_config.json", lora), ("model/config.json", merged)]);
    let adapter = text(&run, "adapter");
    for line in [
        "library_name: peft",
        "base_model: \"runs/q/sft\"",
        "- \"lora\"",
        "base = AutoModelForCausalLM.from_pretrained(\"runs/q/sft\")",
        "model = PeftModel.from_pretrained(base, \"runs/q/cai-train/adapter\")",
    ] {
        assert!(adapter.contains(line), "{line} is not in\n{adapter}");
    }
    assert!(text(&run, "model").contains("library_name: transformers"));

    let scores = json!({"architectures": ["LlamaForSequenceClassification"]});
    let (_dir, run) = made(&[("model/config.json", scores)]);
    let card = text(&run, "model");
    for line in [
        "pipeline_tag: text-classification",
        "A model that scores responses that",
        "AutoModelForSequenceClassification.from_pretrained(\"runs/q/cai-train/model\", num_labels=1)",
        "reward score --model runs/q/cai-train --input",
    ] {
        assert!(card.contains(line), "{line} is not in\n{card}");
    }
}

#[test]
fn nothing_in_a_configuration_ends_its_fence() {
    assert_eq!(fenced("a = '```'\n"), "````toml\na = '```'\n````");
    assert_eq!(fenced(""), "```toml\n\n```");
}

#[test]
fn a_run_without_results_or_model_says_so() {
    let none = Manifest { results: Map::new(), inputs: Vec::new(), ..manifest() };
    let card = card(&INFO, &none, "", Path::new("runs/q/x/model"), &json!({})).unwrap();
    assert!(card.contains("The stage measured nothing."), "{card}");
    assert!(!card.contains("base_model"), "{card}");
    let (_dir, run) = made(&[]);
    assert!(!run.model_dir().exists());
}

#[test]
fn a_card_is_no_part_of_what_a_model_is() {
    let (_dir, run) = made(&[("model/config.json", json!({}))]);
    let before = (run.outputs().unwrap(), digest::dir(run.model_dir()).unwrap());
    assert_eq!(before.0.len(), 1);
    fs_err::write(run.model_dir().join("README.md"), "mine").unwrap();
    assert_eq!((run.outputs().unwrap(), digest::dir(run.model_dir()).unwrap()), before);
}

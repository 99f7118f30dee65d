//! A small pipeline's run directories, written as the stages write them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use artifact::columns::{AFTER, BEFORE, PROMPT};
use artifact::evaluation::{
    Better, Difference, EvaluatedModel, Evaluation, Measurement, Test, Unit, sample_columns,
};
use artifact::rows::{Cell, Column, Kind, TableWriter};
use artifact::{FORMAT_VERSION, Input, Manifest, RunDir, atomic, digest};
use browser::{Page, View};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a prompt of the fixture asks that wants to be more than text.
pub(crate) const HOSTILE: &str = "</script><img src=x onerror=\"window.hacked=1\"><b>굵게</b>";

/// A folder with runs, and what `report` made of them.
pub(crate) struct Yard {
    pub(crate) folder: TempDir,
}

/// How a run of the binary ended.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A run to be written.
pub(crate) struct Spec<'a> {
    pub(crate) pipeline: &'a str,
    pub(crate) name: &'a str,
    pub(crate) stage: &'a str,
    /// Roles and earlier runs.
    pub(crate) reads: &'a [(&'a str, &'a str)],
    /// How many points its loss has; held out one in ten.
    pub(crate) steps: u32,
    pub(crate) finished: bool,
    pub(crate) learning_rate: f64,
}

impl Yard {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// With the whole small pipeline `quick`.
    pub(crate) fn quick() -> Self {
        let yard = Self::new();
        yard.pipeline("quick", 3e-3, true);
        yard
    }

    /// With one run that has not finished, `p/pretrain`.
    pub(crate) fn unfinished() -> Self {
        let yard = Self::new();
        yard.run(&Spec {
            pipeline: "p",
            name: "pretrain",
            stage: "pretrain",
            reads: &[],
            steps: 10,
            finished: false,
            learning_rate: 0.25,
        });
        yard
    }

    /// data-prep, pretrain, sft, ppo (perhaps unfinished), peft and evaluate.
    pub(crate) fn pipeline(&self, pipeline: &str, learning_rate: f64, finished: bool) {
        let one = |name, stage, reads, steps, finished| {
            self.run(&Spec { pipeline, name, stage, reads, steps, finished, learning_rate });
        };
        one("data-prep", "data-prep", &[], 0, true);
        one("pretrain", "pretrain", &[("train", "data-prep")], 40, true);
        one("sft", "sft", &[("model", "pretrain"), ("train", "data-prep")], 20, true);
        one("ppo", "ppo", &[("model", "sft"), ("prompts", "data-prep")], 30, finished);
        one("peft", "peft", &[("model", "sft"), ("train", "data-prep")], 20, true);
        self.evaluation(pipeline);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn dir(&self, pipeline: &str, name: &str) -> RunDir {
        RunDir::create(self.path(&format!("runs/{pipeline}/{name}"))).unwrap()
    }

    pub(crate) fn run(&self, spec: &Spec<'_>) {
        let Spec { pipeline, name, stage, reads, steps, finished, learning_rate } = *spec;
        let dir = self.dir(pipeline, name);
        let out = format!("runs/{pipeline}/{name}");
        dir.write_config(&format!(
            "seed = 7\nout = \"{out}\"\n[train]\nlearning_rate = {learning_rate}\n"
        ))
        .unwrap();
        if steps > 0 {
            fs_err::write(dir.metrics_path(), metrics(stage, steps)).unwrap();
        }
        if stage == "data-prep" {
            let column = [Column::required("text", Kind::Text)];
            let file = dir.data_file("text", "train");
            let mut table = TableWriter::create(file, &column).unwrap();
            (0..12).for_each(|row| table.write_row(&[format!("줄 {row}").into()]).unwrap());
            table.finish().unwrap();
        } else if finished {
            atomic::write_bytes(dir.model_dir().join("config.json"), b"{}").unwrap();
        }
        if stage == "peft" {
            samples(&dir);
        }
        if !finished {
            return;
        }
        let of = |maker: &str| match maker {
            "data-prep" => "data-prep/data/text/train.parquet".to_owned(),
            maker => format!("{maker}/model"),
        };
        let inputs = reads.iter().map(|(role, maker)| Input {
            role: (*role).to_owned(),
            path: format!("runs/{pipeline}/{}", of(maker)).into(),
            digest: digest::bytes(maker.as_bytes()),
        });
        let results = json!({
            "parameters": 3_400_000, "peak_memory_bytes": 734_003_200_u64, "steps": steps, "num_tokens": 123_456,
            "evaluation": if stage == "peft" { json!({"clinic": {"after": {"rougeL": 0.25, "chrf": 31.5}}}) } else { Value::Null },
            "eval_before": if stage == "peft" { json!({"kl": 2.5}) } else { Value::Null },
            "trainable_parameters": if stage == "peft" { json!(68_000) } else { Value::Null },
        });
        let config = json!({"seed": 7, "out": out, "train": {"learning_rate": learning_rate}});
        finish(&dir, stage, inputs.collect(), config, &results);
    }

    fn evaluation(&self, pipeline: &str) {
        let dir = self.dir(pipeline, "evaluate");
        dir.write_config("seed = 7\n").unwrap();
        evaluated(pipeline).write(&dir.results_path()).unwrap();
        let columns = sample_columns();
        let mut table = TableWriter::create(dir.samples_path(), &columns).unwrap();
        for model in ["pretrain", "sft", "peft"] {
            for item in 0..30_i64 {
                let prompt = match item {
                    7 => HOSTILE.to_owned(),
                    item if item % 2 == 0 => format!("강아지 {item}은 무엇을 먹어요?"),
                    item => format!("What does dog {item} eat?"),
                };
                // pretrain is never right, sft on every third, peft always.
                let right = model == "peft" || (model == "sft" && item % 3 == 0);
                let said = if right { "사료를 먹어요." } else { "모르겠어요." };
                let cells: [Cell; 7] = [
                    "tasks".into(),
                    item.into(),
                    prompt.into(),
                    "사료를 먹어요.".into(),
                    model.into(),
                    format!("{model}: {said}").into(),
                    f64::from(right).into(),
                ];
                table.write_row(&cells).unwrap();
            }
        }
        table.finish().unwrap();
        let inputs = ["pretrain", "sft", "peft"].map(|maker| Input {
            role: format!("models.{maker}"),
            path: format!("runs/{pipeline}/{maker}/model").into(),
            digest: digest::bytes(maker.as_bytes()),
        });
        let config = json!({"seed": 7, "out": format!("runs/{pipeline}/evaluate")});
        finish(&dir, "evaluate", inputs.into(), config, &json!({}));
    }

    /// A config that names these.
    pub(crate) fn config(&self, runs: &str) {
        let text = format!("seed = 1\nout = \"out\"\ntitle = \"시험 & <test>\"\n[runs]\n{runs}\n");
        fs_err::write(self.path("config.toml"), text).unwrap();
    }

    pub(crate) fn report(&self, arguments: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_report"))
            .args(["--config", "config.toml"])
            .args(arguments)
            .env("NO_COLOR", "1")
            .env_remove("RUST_BACKTRACE")
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs it over the folder `runs/quick` and returns the page's path.
    #[track_caller]
    pub(crate) fn page(&self, runs: &str) -> PathBuf {
        self.config(runs);
        let ran = self.report(&[]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        self.path("out/report.html")
    }
}

/// Opens a report and waits until it is drawn.
pub(crate) fn opened(file: &Path, view: View) -> Page {
    let mut page = Page::open(&format!("file://{}", file.display()), view);
    page.wait_for("document.querySelector('#numbers div') !== null || window.failed");
    page
}

/// Writes the manifest.
fn finish(dir: &RunDir, stage: &str, inputs: Vec<Input>, config: Value, results: &Value) {
    let outputs = dir.outputs().unwrap();
    let results = results.as_object().unwrap().iter();
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        stage: stage.to_owned(),
        inputs,
        outputs,
        config,
        seed: 7,
        versions: [("temper".to_owned(), "0.1.0".to_owned())].into(),
        device: "cpu".to_owned(),
        started_at: "2026-01-02T03:04:05.678Z".to_owned(),
        finished_at: "2026-01-02T03:05:06.789Z".to_owned(),
        wall_seconds: 61.111,
        tokenizer: Some(digest::bytes(b"tokenizer")),
        chat_template: None,
        results: results
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    };
    manifest.write(dir).unwrap();
}

/// Writes three samples, with what is hostile in them.
fn samples(dir: &RunDir) {
    let columns = [
        Column::required(PROMPT, Kind::Text),
        Column::required(BEFORE, Kind::Text),
        Column::required(AFTER, Kind::Text),
    ];
    let mut table = TableWriter::create(dir.samples_path(), &columns).unwrap();
    for row in 0..3 {
        let cells = [format!("병원 {row}"), HOSTILE.to_owned(), "네, 그럼요.".to_owned()];
        table.write_row(&cells.map(Cell::from)).unwrap();
    }
    table.finish().unwrap();
}

/// The page's data.
pub(crate) fn data(page: &Path) -> Value {
    let html = fs_err::read_to_string(page).unwrap();
    let (_, rest) = html.split_once("id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn metrics(stage: &str, steps: u32) -> String {
    let mut text = String::new();
    for step in 1..=steps {
        let x = f64::from(step);
        let line = match stage {
            "ppo" => {
                json!({"step": step, "objective/kl": x / 8.0, "objective/scores": x / 16.0, "time": x})
            }
            _ => {
                json!({"step": step, "loss": 4.0 / x, "learning_rate": 1e-3 / x, "grad_norm": 0.5, "time": x})
            }
        };
        let _ = writeln!(text, "{line}");
        if step % 10 == 0 && stage != "ppo" {
            let _ = writeln!(text, "{}", json!({"step": step, "eval_loss": 5.0 / x, "time": x}));
        }
    }
    text
}

fn evaluated(pipeline: &str) -> Evaluation {
    let model = |name: &str, parent: Option<&str>| EvaluatedModel {
        name: name.to_owned(),
        path: format!("runs/{pipeline}/{name}").into(),
        adapter: None,
        parent: parent.map(str::to_owned),
        parameters: 3_400_000,
    };
    let measured = |model: &str, metric: &str, better, value: f64| Measurement {
        model: model.to_owned(),
        test: "tasks".to_owned(),
        metric: metric.to_owned(),
        unit: if metric == "bits_per_byte" { Unit::BitsPerByte } else { Unit::Share },
        better,
        value,
        interval: Some([value - 0.05, value + 0.05]),
        items: 30,
    };
    let changed =
        |model: &str, from: &str, metric: &str, better, value: f64, half: f64| Difference {
            model: model.to_owned(),
            from: from.to_owned(),
            test: "tasks".to_owned(),
            metric: metric.to_owned(),
            unit: if metric == "bits_per_byte" { Unit::BitsPerByte } else { Unit::Share },
            better,
            value,
            interval: Some([value - half, value + half]),
        };
    Evaluation {
        models: vec![
            model("pretrain", None),
            model("sft", Some("pretrain")),
            model("peft", Some("sft")),
        ],
        tests: vec![Test {
            name: "tasks".to_owned(),
            kind: "generation".to_owned(),
            about: "How many tasks it answers rightly.".to_owned(),
            items: 30,
        }],
        measurements: vec![
            measured("pretrain", "accuracy", Better::Higher, 0.125),
            measured("sft", "accuracy", Better::Higher, 0.625),
            measured("peft", "accuracy", Better::Higher, 0.875),
            measured("pretrain", "accuracy/ko", Better::Higher, 0.1),
            measured("pretrain", "bits_per_byte", Better::Lower, 1.25),
            measured("sft", "bits_per_byte", Better::Lower, 1.2),
            measured("peft", "bits_per_byte", Better::Lower, 1.75),
        ],
        differences: vec![
            changed("sft", "pretrain", "accuracy", Better::Higher, 0.5, 0.1),
            changed("peft", "sft", "accuracy", Better::Higher, 0.25, 0.1),
            changed("sft", "pretrain", "bits_per_byte", Better::Lower, -0.05, 0.1),
            changed("peft", "sft", "bits_per_byte", Better::Lower, 0.55, 0.1),
        ],
    }
}

//! `peft table`: finished runs side by side.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use artifact::{Manifest, RunDir};
use clap::Parser;
use serde_json::Value;
use stage::{ErrorExt as _, human_bytes};

/// Compares runs of `finetune` and `peft`: what each learned and forgot, what it trained, and what it took.
///
/// Learned is the score of the first evaluation after training; forgotten is by how much the second one fell.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Reads:   the manifests of run directories\n\
                  Writes:  a table in Markdown to stdout\n\
                  Example: peft table runs/methods/* --learned clinic --forgotten general"
)]
struct Args {
    /// The runs, a row each.
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The evaluation of what was to be learned.
    #[arg(long, value_name = "NAME", default_value = "clinic")]
    learned: String,
    /// The evaluation of what was known before.
    #[arg(long, value_name = "NAME", default_value = "general")]
    forgotten: String,
    /// The score that is shown of them.
    #[arg(long, value_name = "SCORE", default_value = "accuracy")]
    score: String,
    #[command(flatten)]
    verbosity: stage::Verbosity,
}

pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    let args = Args::parse_from(words);
    stage::program(args.verbosity.verbose, || {
        tell!("{}", render(&args)?.trim_end());
        Ok(())
    })
}

fn render(args: &Args) -> anyhow::Result<String> {
    let mut runs = Vec::new();
    for path in args.runs.iter().filter(|path| path.join("manifest.json").is_file()) {
        runs.push(Row::read(path, args).usage()?);
    }
    anyhow::ensure!(!runs.is_empty(), "none of these is a finished run");
    runs.sort_by_key(|row| std::cmp::Reverse(row.trainable));
    // What the model knew before it was trained, from whichever run has measured it.
    let before = runs.iter().find_map(|row| row.before);
    let mut out = String::new();
    let (learned, forgotten) = (&args.learned, &args.forgotten);
    let _ = writeln!(
        out,
        "| method | {learned} {} | {forgotten} {} | forgotten | trainable | share | peak memory | tokens/s | on disk |",
        args.score, args.score
    );
    out.push_str("| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    if let Some([learned, known]) = before {
        let _ = writeln!(out, "| before | {} | {} | | | | | | |", percent(learned), percent(known));
    }
    for row in &runs {
        let lost = match (before, row.known) {
            (Some([_, Some(was)]), Some(now)) => format!("{:.1}", 100.0 * (was - now)),
            _ => String::new(),
        };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {lost} | {} | {:.2} % | {} | {} | {} |",
            row.name,
            percent(row.learned),
            percent(row.known),
            row.trainable,
            100.0 * row.trainable as f64 / row.parameters as f64,
            row.peak.map_or_else(String::new, human_bytes),
            row.rate.map_or_else(String::new, |rate| format!("{rate:.0}")),
            human_bytes(row.disk),
        );
    }
    Ok(out)
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(String::new, |share| format!("{:.1}", 100.0 * share))
}

struct Row {
    name: String,
    learned: Option<f64>,
    known: Option<f64>,
    /// Both before training.
    before: Option<[Option<f64>; 2]>,
    trainable: u64,
    parameters: u64,
    peak: Option<u64>,
    rate: Option<f64>,
    disk: u64,
}

impl Row {
    fn read(path: &Path, args: &Args) -> anyhow::Result<Self> {
        let run = RunDir::open(path)?;
        let manifest = Manifest::read(run.manifest_path())?;
        let results = &manifest.results;
        let score = |task: &str, when: &str| {
            results.get("evaluation")?.get(task)?.get(when)?.get(&args.score)?.as_f64()
        };
        let after = |task: &str| score(task, "after");
        let learned = after(&args.learned);
        learned.with_context(|| {
            format!(
                "{}: its manifest has no {} of the evaluation {}",
                path.display(),
                args.score,
                args.learned
            )
        })?;
        let was = [score(&args.learned, "before"), score(&args.forgotten, "before")];
        let number = |key: &str| results.get(key).and_then(Value::as_u64);
        let parameters = number("parameters").unwrap_or_default();
        let own = if number("trainable_parameters").is_some() {
            run.adapter_dir()
        } else {
            run.model_dir()
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Self {
            name: name.unwrap_or_default(),
            learned,
            known: after(&args.forgotten),
            before: was.iter().any(Option::is_some).then_some(was),
            trainable: number("trainable_parameters").unwrap_or(parameters),
            parameters,
            peak: number("peak_memory_bytes"),
            rate: results.get("tokens_per_second").and_then(Value::as_f64),
            disk: weights_in(&own)?,
        })
    }
}

/// Bytes of the safetensors files in a directory.
fn weights_in(dir: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            bytes += fs_err::metadata(path)?.len();
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    use artifact::FORMAT_VERSION;
    use serde_json::json;

    /// A finished run that reports `results`, with a file of `bytes` bytes of weights in `product`.
    fn run(dir: &Path, name: &str, results: &Value, product: &str, bytes: usize) {
        let run = RunDir::create(dir.join(name)).unwrap();
        run.write_config("seed = 0\n").unwrap();
        let folder = run.path().join(product);
        fs_err::create_dir_all(&folder).unwrap();
        fs_err::write(folder.join("weights.safetensors"), vec![0; bytes]).unwrap();
        fs_err::write(folder.join("tokenizer.json"), "much text that is no weight").unwrap();
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            stage: "peft".to_owned(),
            results: results.as_object().unwrap().clone(),
            ..Manifest::default()
        };
        manifest.write(&run).unwrap();
    }

    fn rendered(dir: &Path, words: &[&str]) -> anyhow::Result<String> {
        let runs = ["lora", "full", "unfinished"].map(|name| dir.join(name).into_os_string());
        let words = words.iter().map(|word| OsString::from(*word));
        render(&Args::parse_from(
            [OsString::from("peft table")].into_iter().chain(runs).chain(words),
        ))
    }

    #[test]
    fn runs_are_rows_the_largest_first_under_what_was_before() {
        let dir = tempfile::tempdir().unwrap();
        let lora = json!({
            "parameters": 2000, "trainable_parameters": 50, "peak_memory_bytes": 1_048_576, "tokens_per_second": 1234.6,
            "evaluation": {
                "clinic": { "after": { "accuracy": 0.875, "rougeL": 0.5 } },
                "general": { "after": { "accuracy": 0.5, "rougeL": 0.25 } },
            },
        });
        let full = json!({
            "parameters": 2000,
            "evaluation": {
                "clinic": { "before": { "accuracy": 0.0 }, "after": { "accuracy": 1.0 } },
                "general": { "before": { "accuracy": 0.625 }, "after": { "accuracy": 0.125 } },
            },
        });
        run(dir.path(), "lora", &lora, "adapter", 512);
        run(dir.path(), "full", &full, "model", 2048);
        fs_err::create_dir_all(dir.path().join("unfinished")).unwrap();
        assert_eq!(
            rendered(dir.path(), &[]).unwrap(),
            "| method | clinic accuracy | general accuracy | forgotten | trainable | share | peak memory | tokens/s | on disk |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n\
             | before | 0.0 | 62.5 | | | | | | |\n\
             | full | 100.0 | 12.5 | 50.0 | 2000 | 100.00 % |  |  | 2.0 KiB |\n\
             | lora | 87.5 | 50.0 | 12.5 | 50 | 2.50 % | 1.0 MiB | 1235 | 512 B |\n"
        );
        // Other names.
        let error = rendered(dir.path(), &["--score", "rougeL"]).unwrap_err().to_string();
        assert!(
            error.ends_with("full: its manifest has no rougeL of the evaluation clinic"),
            "{error}"
        );
        let error = rendered(dir.path(), &["--learned", "x"]).unwrap_err().to_string();
        assert!(
            error.ends_with("lora: its manifest has no accuracy of the evaluation x"),
            "{error}"
        );
        let swapped = ["--learned", "general", "--forgotten", "clinic"];
        let table = rendered(dir.path(), &swapped).unwrap();
        assert!(table.contains("| before | 62.5 | 0.0 |"), "{table}");
        let none = dir.path().join("none");
        let error =
            render(&Args::parse_from([OsString::from("peft table"), none.into_os_string()]));
        assert_eq!(error.unwrap_err().to_string(), "none of these is a finished run");
    }
}

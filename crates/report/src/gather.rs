//! What the run directories say, as the page's data.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Context as _;
use artifact::rows::TableReader;
use artifact::{Input, Manifest, RunDir};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::{Limits, Pipeline, Plan};
use crate::curves::{self, Series};
use crate::samples::{self, Table};

/// One run.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    /// Pipeline and name: `quickstart/sft`.
    pub(crate) id: String,
    pub(crate) pipeline: String,
    /// The name of its directory.
    pub(crate) name: String,
    pub(crate) path: String,
    /// The program that made it; nothing for an unfinished run, which does not say.
    pub(crate) stage: Option<String>,
    /// What kind of stage that is.
    pub(crate) family: &'static str,
    pub(crate) finished: bool,
    pub(crate) facts: Facts,
    /// What it read, one for each role and path.
    pub(crate) inputs: Vec<Read>,
    /// What it wrote.
    pub(crate) outputs: Vec<Written>,
    /// What it reported, key by key.
    pub(crate) results: Vec<(String, Value)>,
    /// Its resolved configuration, key by key.
    pub(crate) config: Vec<(String, Value)>,
    pub(crate) series: Vec<Series>,
    /// The texts it generated.
    pub(crate) samples: Option<Table>,
    /// Where its directory was when it ran.
    #[serde(skip)]
    out: Option<String>,
}

/// The numbers and names that every stage has.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Facts {
    seconds: Option<f64>,
    started_at: Option<String>,
    finished_at: Option<String>,
    device: Option<String>,
    seed: Option<u64>,
    versions: Vec<(String, String)>,
    tokenizer: Option<String>,
    chat_template: Option<String>,
    parameters: Option<u64>,
    trainable_parameters: Option<u64>,
    peak_memory_bytes: Option<u64>,
    steps: Option<u64>,
    tokens: Option<u64>,
    episodes: Option<u64>,
    /// Of everything it wrote for others.
    bytes: Option<u64>,
}

/// Something a run read.
#[derive(Debug, Serialize)]
pub(crate) struct Read {
    roles: Vec<String>,
    pub(crate) path: String,
    /// The run that made it, where it is on the page.
    pub(crate) from: Option<String>,
    digest: String,
    bytes: Option<u64>,
    rows: Option<u64>,
}

/// A file a run wrote, or a folder of files that belong together.
#[derive(Debug, Serialize)]
pub(crate) struct Written {
    path: String,
    files: usize,
    bytes: u64,
    rows: Option<u64>,
    /// Of a single file.
    digest: Option<String>,
}

/// Reads all runs of the plan, each after those it reads from.
///
/// # Errors
/// A file that cannot be read or is not what it should be.
pub(crate) fn runs(plan: &Plan) -> anyhow::Result<Vec<Run>> {
    let mut all = Vec::new();
    for pipeline in &plan.pipelines {
        for dir in &pipeline.runs {
            let run = read(pipeline, dir, plan.limits);
            all.push(run.with_context(|| format!("cannot read the run {}", dir.path().display()))?);
        }
    }
    name_apart(&mut all);
    let places: Vec<Place> = all.iter().map(Place::of).collect();
    for run in &mut all {
        for input in &mut run.inputs {
            input.from = maker(&places, &run.pipeline, Path::new(&input.path), &run.id);
        }
    }
    Ok(in_order(all))
}

/// Where a run's products are, for finding the maker of an input.
pub(crate) struct Place {
    id: String,
    pipeline: String,
    out: Option<String>,
    path: String,
}

impl Place {
    pub(crate) fn of(run: &Run) -> Self {
        Self {
            id: run.id.clone(),
            pipeline: run.pipeline.clone(),
            out: run.out.clone(),
            path: run.path.clone(),
        }
    }
}

/// The run that made what lies at `path`, as a run of `pipeline` names it. Runs may have been moved since: then a run of the same
/// pipeline that was there counts.
pub(crate) fn maker(places: &[Place], pipeline: &str, path: &Path, own: &str) -> Option<String> {
    let others = || places.iter().filter(|place| place.id != own);
    let mut same = others().filter(|place| place.pipeline == pipeline);
    let was = |place: &&Place| place.out.as_ref().is_some_and(|out| path.starts_with(out));
    let found = same.find(was).or_else(|| {
        let path = fs_err::canonicalize(path).ok()?;
        others().find(|place| {
            fs_err::canonicalize(&place.path).is_ok_and(|place| path.starts_with(place))
        })
    });
    found.map(|place| place.id.clone())
}

/// Runs of one pipeline whose folders have the same name get a number.
fn name_apart(runs: &mut [Run]) {
    let mut taken = HashSet::new();
    for run in runs {
        let plain = run.name.clone();
        for number in 2.. {
            if taken.insert(run.id.clone()) {
                break;
            }
            run.name = format!("{plain} ({number})");
            run.id = format!("{}/{}", run.pipeline, run.name);
        }
    }
}

/// Each after what it reads, otherwise as given.
fn in_order(mut left: Vec<Run>) -> Vec<Run> {
    let mut ordered: Vec<Run> = Vec::new();
    while !left.is_empty() {
        let waits = |run: &Run| {
            let mut makers = run.inputs.iter().filter_map(|input| input.from.as_ref());
            makers.any(|maker| left.iter().any(|other| other.id == *maker))
        };
        // Runs that read each other in a circle cannot be; if they are, they come as given.
        let next = left.iter().position(|run| !waits(run)).unwrap_or(0);
        ordered.push(left.remove(next));
    }
    ordered
}

fn read(pipeline: &Pipeline, dir: &RunDir, limits: Limits) -> anyhow::Result<Run> {
    let manifest = if dir.is_finished() { Some(Manifest::read(dir.path())?) } else { None };
    let name = dir.path().file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| dir.path().display().to_string());
    let config = match &manifest {
        Some(manifest) => manifest.config.clone(),
        None => config_of(dir)?,
    };
    let out = config.get("out").and_then(Value::as_str).map(str::to_owned);
    let series = curves::read(&dir.metrics_path(), limits.points)?;
    let samples = dir.samples_path();
    let samples = if manifest.is_some() && samples.exists() && !dir.results_path().exists() {
        Some(samples::of_stage(&samples, limits.samples)?)
    } else {
        None
    };
    let stage = manifest.as_ref().map(|manifest| manifest.stage.clone());
    let mut run = Run {
        id: format!("{}/{name}", pipeline.name),
        pipeline: pipeline.name.clone(),
        path: dir.path().display().to_string(),
        family: family(stage.as_deref().unwrap_or(&name)),
        name,
        stage,
        finished: manifest.is_some(),
        facts: Facts::default(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        results: Vec::new(),
        config: flat(&config),
        series,
        samples,
        out,
    };
    match manifest {
        Some(manifest) => tell(&mut run, dir, &manifest),
        None => run.facts.steps = last_step(&run.series),
    }
    Ok(run)
}

/// What kind of work a stage does: how the page groups runs.
fn family(stage: &str) -> &'static str {
    match stage {
        "data-prep" => "data",
        "pretrain" => "pre-training",
        "sft" | "ppo" | "cai train" => "post-training",
        "reward" | "cai generate" | "cai label" => "feedback",
        "finetune" | "peft" => "fine-tuning",
        "evaluate" => "evaluation",
        _ => "other",
    }
}

fn tell(run: &mut Run, dir: &RunDir, manifest: &Manifest) {
    let results = &manifest.results;
    let count = |names: &[&str]| names.iter().find_map(|name| results.get(*name)?.as_u64());
    run.outputs = written(dir, manifest);
    run.inputs = inputs(&manifest.inputs);
    run.results = flat(&Value::Object(results.clone()));
    run.facts = Facts {
        seconds: Some(manifest.wall_seconds),
        started_at: Some(manifest.started_at.clone()),
        finished_at: Some(manifest.finished_at.clone()),
        device: Some(manifest.device.clone()),
        seed: Some(manifest.seed),
        versions: manifest.versions.clone().into_iter().collect(),
        tokenizer: manifest.tokenizer.as_ref().map(ToString::to_string),
        chat_template: manifest.chat_template.as_ref().map(ToString::to_string),
        parameters: count(&["parameters"]),
        trainable_parameters: count(&["trainable_parameters"]),
        peak_memory_bytes: count(&["peak_memory_bytes"]),
        steps: count(&["steps"]).or_else(|| last_step(&run.series)),
        tokens: count(&["num_tokens"]),
        episodes: count(&["episodes"]),
        bytes: Some(run.outputs.iter().map(|output| output.bytes).sum()),
    };
}

fn last_step(series: &[Series]) -> Option<u64> {
    let steps = series.iter().filter_map(|series| series.points.last());
    steps.map(|point| point[0] as u64).max()
}

/// The resolved configuration of an unfinished run.
fn config_of(dir: &RunDir) -> anyhow::Result<Value> {
    let path = dir.config_path();
    let text = fs_err::read_to_string(&path)?;
    let table: toml::Table =
        text.parse().with_context(|| format!("{}: not a configuration", path.display()))?;
    Ok(serde_json::to_value(table)?)
}

fn bytes_at(path: &Path) -> Option<u64> {
    let meta = fs_err::metadata(path).ok()?;
    if meta.is_file() {
        return Some(meta.len());
    }
    let entries = fs_err::read_dir(path).ok()?.flatten();
    Some(entries.filter_map(|entry| bytes_at(&entry.path())).sum())
}

/// The rows of a Parquet file; nothing of anything else.
fn rows_at(path: &Path) -> Option<u64> {
    let parquet = path.extension().is_some_and(|ending| ending == "parquet");
    let table = parquet.then(|| TableReader::open(path, &[], "").ok()).flatten()?;
    Some(table.num_rows())
}

/// Several roles of one path are one entry.
fn inputs(given: &[Input]) -> Vec<Read> {
    let mut all: Vec<Read> = Vec::new();
    for Input { role, path, digest } in given {
        let name = path.display().to_string();
        match all.iter_mut().find(|read| read.path == name) {
            Some(read) if read.roles.contains(role) => {}
            Some(read) => read.roles.push(role.clone()),
            None => all.push(Read {
                roles: vec![role.clone()],
                from: None,
                digest: digest.to_string(),
                bytes: bytes_at(path),
                rows: rows_at(path),
                path: name,
            }),
        }
    }
    all
}

/// The products; of a model, an adapter or a tokenizer the folder as one.
fn written(dir: &RunDir, manifest: &Manifest) -> Vec<Written> {
    let mut all: Vec<Written> = Vec::new();
    for (name, digest) in &manifest.outputs {
        let path = dir.path().join(name);
        let bytes = bytes_at(&path).unwrap_or(0);
        let folder = name.split_once('/').map(|(folder, _)| format!("{folder}/"));
        match folder.filter(|folder| folder != "data/") {
            None => all.push(Written {
                path: name.clone(),
                files: 1,
                bytes,
                rows: rows_at(&path),
                digest: Some(digest.to_string()),
            }),
            Some(folder) => match all.iter_mut().find(|written| written.path == folder) {
                Some(written) => {
                    written.files += 1;
                    written.bytes += bytes;
                }
                None => {
                    all.push(Written { path: folder, files: 1, bytes, rows: None, digest: None });
                }
            },
        }
    }
    all
}

/// A JSON value as dotted keys with what stands there: numbers, texts, truth values, and lists of them.
pub(crate) fn flat(value: &Value) -> Vec<(String, Value)> {
    fn walk(prefix: &str, value: &Value, out: &mut Vec<(String, Value)>) {
        let under = |key: &str| match prefix {
            "" => key.to_owned(),
            prefix => format!("{prefix}.{key}"),
        };
        match value {
            Value::Object(map) if !map.is_empty() => walk_all(map, &under, out),
            Value::Array(list) if list.iter().any(|item| item.is_object() || item.is_array()) => {
                for (at, item) in list.iter().enumerate() {
                    walk(&under(&at.to_string()), item, out);
                }
            }
            other => out.push((prefix.to_owned(), other.clone())),
        }
    }
    fn walk_all(
        map: &Map<String, Value>,
        under: &dyn Fn(&str) -> String,
        out: &mut Vec<(String, Value)>,
    ) {
        map.iter().for_each(|(key, value)| walk(&under(key), value, out));
    }
    let mut out = Vec::new();
    if value.as_object().is_some_and(Map::is_empty) {
        return out;
    }
    walk("", value, &mut out);
    out
}

#[cfg(test)]
#[path = "gather/tests.rs"]
mod tests;

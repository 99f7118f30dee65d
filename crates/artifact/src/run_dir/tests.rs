use super::*;
use crate::manifest::FORMAT_VERSION;

pub(crate) fn manifest(stage: &str, outputs: BTreeMap<String, Digest>) -> Manifest {
    Manifest {
        format_version: FORMAT_VERSION,
        stage: stage.to_owned(),
        outputs,
        ..Manifest::default()
    }
}

/// A finished run with these files.
pub(crate) fn finished(root: &Path, stage: &str, files: &[&str]) -> RunDir {
    let run = RunDir::create(root).unwrap();
    run.write_config("seed = 0\n").unwrap();
    for name in files {
        atomic::write_bytes(root.join(name), name.as_bytes()).unwrap();
    }
    manifest(stage, run.outputs().unwrap()).write(&run).unwrap();
    run
}

fn names(dir: &Path) -> Vec<String> {
    let list = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        list.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn every_part_has_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::create(dir.path().join("runs/q/sft")).unwrap();
    let root = run.path().to_path_buf();
    let places = [
        (run.manifest_path(), "manifest.json"),
        (run.config_path(), "config.toml"),
        (run.model_dir(), "model"),
        (run.adapter_dir(), "adapter"),
        (run.tokenizer_dir(), "tokenizer"),
        (run.data_dir(), "data"),
        (run.data_file("instructions", "train"), "data/instructions/train.parquet"),
        (run.checkpoints_dir(), "checkpoints"),
        (run.metrics_path(), "metrics.jsonl"),
        (run.tensorboard_dir(), "tensorboard"),
        (run.samples_path(), "samples.parquet"),
        (run.ranks_dir(), ".ranks"),
    ];
    for (path, expected) in places {
        assert_eq!(path, root.join(expected));
    }
}

#[test]
fn where_ranks_meet_goes_but_for_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::create(dir.path()).unwrap();
    for name in ["kept", "old", "older"] {
        fs::create_dir_all(run.ranks_dir().join(name)).unwrap();
    }
    run.remove_ranks(Some(&run.ranks_dir().join("kept"))).unwrap();
    assert_eq!(names(&run.ranks_dir()), ["kept"]);
    run.remove_ranks(None).unwrap();
    assert!(!run.ranks_dir().exists());
    run.remove_ranks(None).unwrap();
}

#[test]
fn a_folder_with_other_things_does_not_become_a_run_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    fs::write(dir.path().join(".gitkeep"), "").unwrap();
    let run = RunDir::create(dir.path()).unwrap();
    fs::write(dir.path().join("thesis.tex"), "").unwrap();
    let expected = format!(
        "{}: holds `thesis.tex`, so it is not a run directory of temper; choose another output directory",
        dir.path().display()
    );
    assert_eq!(RunDir::create(dir.path()).unwrap_err().to_string(), expected);
    assert_eq!(run.clear().unwrap_err().to_string(), expected);
    // A foreign manifest.json does not mark it either.
    fs::write(run.manifest_path(), r#"{"name": "web app"}"#).unwrap();
    assert_eq!(RunDir::create(dir.path()).unwrap_err().to_string(), expected);
    assert_eq!(names(dir.path()), [".gitkeep", "lost+found", "manifest.json", "thesis.tex"]);
    // Once it is marked, a note someone put there does not matter.
    run.write_config("seed = 0\n").unwrap();
    RunDir::create(dir.path()).unwrap();
}

#[test]
fn clearing_removes_what_runs_make_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        "model/config.json",
        "data/a/train.parquet",
        "checkpoints/step-1/x",
        "metrics.jsonl",
        "notes.md",
    ];
    let run = finished(dir.path(), "sft", &files);
    run.clear().unwrap();
    assert_eq!(names(dir.path()), ["notes.md"]);
    // Folders that could be anyone's are safe without a mark.
    fs::create_dir(run.data_dir()).unwrap();
    let error = run.clear().unwrap_err().to_string();
    assert!(error.contains("holds `data`"), "{error}");
    assert_eq!(names(dir.path()), ["data", "notes.md"]);
    let empty = tempfile::tempdir().unwrap();
    RunDir::create(empty.path()).unwrap().clear().unwrap();
}

#[test]
fn reopening_forgets_how_it_was_made_but_keeps_the_products() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["model/config.json", "checkpoints/step-1/x", "metrics.jsonl", "tensorboard/e"];
    let run = finished(dir.path(), "sft", &files);
    run.reopen().unwrap();
    assert_eq!(names(dir.path()), ["config.toml", "model"]);
    assert!(!run.is_finished() && run.is_marked());
}

#[test]
fn outputs_are_the_products_with_their_digests() {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        "samples.parquet",
        "model/config.json",
        "data/a/train.parquet",
        "metrics.jsonl",
        "checkpoints/c",
    ];
    let run = finished(dir.path(), "sft", &files);
    let outputs = run.outputs().unwrap();
    let keys: Vec<&str> = outputs.keys().map(String::as_str).collect();
    assert_eq!(keys, ["data/a/train.parquet", "model/config.json", "samples.parquet"]);
    assert_eq!(outputs["model/config.json"], digest::bytes(b"model/config.json"));
}

#[test]
fn only_a_finished_run_opens() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::create(dir.path()).unwrap();
    assert_eq!(
        RunDir::open(dir.path()).unwrap_err().to_string(),
        format!(
            "{}: no manifest.json, so the run that makes it has not finished; run its stage to the end first",
            dir.path().display()
        )
    );
    finished(dir.path(), "sft", &[]);
    assert_eq!(RunDir::open(dir.path()).unwrap(), run);
    let none = dir.path().join("none");
    assert!(RunDir::open(&none).unwrap_err().to_string().contains(none.to_str().unwrap()));
}

#[test]
fn a_model_is_found_in_its_own_directory_and_in_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = finished(&dir.path().join("sft"), "sft", &["model/config.json"]);
    assert_eq!(model_dir(run.path()).unwrap(), run.model_dir());
    assert_eq!(model_dir(run.model_dir()).unwrap(), run.model_dir());
}

#[test]
fn what_is_no_model_says_what_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let advice = "give a Hugging Face model directory or the run directory of a finished stage that makes a model";
    let fails = |path: &Path| {
        let message = model_dir(path).unwrap_err().to_string();
        message.replace(&path.display().to_string(), "PATH")
    };
    assert_eq!(fails(&dir.path().join("none")), format!("PATH: does not exist; {advice}"));
    assert_eq!(
        fails(dir.path()),
        format!("PATH: has neither config.json nor manifest.json; {advice}")
    );
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(fails(&file), format!("PATH: is a file, not a directory; {advice}"));
    let prep = finished(&dir.path().join("prep"), "data-prep", &["data/a/train.parquet"]);
    assert_eq!(
        fails(prep.path()),
        format!("PATH: is the run directory of a stage that makes no model; {advice}")
    );
    let sft = finished(&dir.path().join("sft"), "sft", &["model/config.json"]);
    fs::remove_file(sft.manifest_path()).unwrap();
    assert_eq!(
        fails(sft.path()),
        "PATH: no manifest.json, so the run that makes it has not finished; run its stage to the end first"
    );
}

#[test]
fn an_adapter_is_found_in_its_own_directory_and_in_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"];
    let run = finished(&dir.path().join("peft"), "peft", &files);
    assert_eq!(adapter_dir(run.path()).unwrap(), Some(run.adapter_dir()));
    assert_eq!(adapter_dir(run.adapter_dir()).unwrap(), Some(run.adapter_dir()));
    assert!(run.outputs().unwrap().contains_key(files[1]), "an adapter is a product");
    // Something else is no mistake: it may be a model.
    let sft = finished(&dir.path().join("sft"), "sft", &["model/config.json"]);
    assert_eq!(adapter_dir(sft.path()).unwrap(), None);
    assert_eq!(adapter_dir(dir.path()).unwrap(), None);
    let none = dir.path().join("none");
    assert!(adapter_dir(&none).unwrap_err().to_string().contains("none: does not exist; give"));

    let advice = "give a Hugging Face model directory or the run directory of a finished stage that makes a model";
    assert_eq!(
        model_dir(run.path()).unwrap_err().to_string(),
        format!(
            "{}: is the run directory of a stage that made an adapter only: set peft.merge = true there, or run `peft \
             merge`; {advice}",
            run.path().display()
        )
    );
    fs::remove_file(run.manifest_path()).unwrap();
    for unfinished in [adapter_dir(run.path()).unwrap_err(), model_dir(run.path()).unwrap_err()] {
        assert!(unfinished.to_string().contains("no manifest.json, so the run"), "{unfinished}");
    }
    run.remove_adapter().unwrap();
    assert_eq!(adapter_dir(run.path()).unwrap(), None);
}

#[test]
fn run_directories_are_found_finished_or_not() {
    let dir = tempfile::tempdir().unwrap();
    finished(&dir.path().join("sft"), "sft", &["model/config.json"]);
    let open = RunDir::create(dir.path().join("ppo")).unwrap();
    open.write_config("seed = 0\n").unwrap();
    fs::create_dir_all(dir.path().join("notes")).unwrap();
    fs::write(dir.path().join("sft.inputs.mk"), "").unwrap();
    let found = |path: &Path| -> Vec<PathBuf> {
        RunDir::find(path).unwrap().iter().map(|run| run.path().to_path_buf()).collect()
    };
    assert_eq!(found(dir.path()), [dir.path().join("ppo"), dir.path().join("sft")]);
    assert_eq!(found(open.path()), [open.path()]);
    assert!(found(&dir.path().join("notes")).is_empty());
    assert!(RunDir::look(dir.path().join("notes")).is_none());
    let error = RunDir::find(&dir.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
}

use super::*;
use crate::run_dir::tests::finished;

fn producer_of(path: &Path) -> Option<(PathBuf, String)> {
    let checked = check_input(path).unwrap();
    checked.producer.map(|by| (by.run_dir, by.manifest.stage))
}

#[test]
fn inputs_are_traced_to_the_run_that_made_them() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("runs/q/data-prep");
    let run = finished(&root, "data-prep", &["data/a/train.parquet", "tokenizer/tokenizer.json"]);
    let by = Some((root.clone(), "data-prep".to_owned()));
    let file = run.data_file("a", "train");
    for path in [file.clone(), run.data_dir(), run.tokenizer_dir(), root.clone()] {
        assert_eq!(producer_of(&path), by, "{}", path.display());
    }
    assert_eq!(check_input(&file).unwrap().digest, digest::bytes(b"data/a/train.parquet"));
    assert_eq!(check_input(run.data_dir()).unwrap().digest, digest::dir(run.data_dir()).unwrap());
}

#[test]
fn a_whole_runs_digest_follows_its_products_only() {
    let dir = tempfile::tempdir().unwrap();
    let digest = |name: &str, files: &[&str]| {
        let run = finished(&dir.path().join(name), name, files);
        check_input(run.path()).unwrap().digest
    };
    let one = digest("one", &["model/config.json", "metrics.jsonl"]);
    assert_eq!(one, digest("two", &["model/config.json", "checkpoints/x"]));
    assert_ne!(one, digest("three", &["model/config.json", "model/model.safetensors"]));
}

#[test]
fn things_outside_runs_are_only_digested() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw.txt");
    fs_err::write(&path, "abc").unwrap();
    // Another program's manifest beside it means nothing.
    fs_err::write(dir.path().join("manifest.json"), "{\"name\": \"app\"}").unwrap();
    let checked = check_input(&path).unwrap();
    assert_eq!(checked.digest, digest::bytes(b"abc"));
    assert!(checked.producer.is_none());
    let missing = dir.path().join("none.txt");
    assert!(check_input(&missing).unwrap_err().to_string().contains("none.txt"));
}

#[test]
fn a_changed_or_missing_product_is_refused_by_file_folder_and_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = finished(dir.path(), "sft", &["model/config.json", "model/model.safetensors"]);
    let weights = run.model_dir().join("model.safetensors");
    fs_err::write(&weights, "tampered").unwrap();
    let recorded = digest::bytes(b"model/model.safetensors");
    let message = |found: &str| {
        format!(
            "{}: changed since stage `sft` wrote it ({} recorded, {found} now); run `sft` again, or restore the file",
            weights.display(),
            recorded.short()
        )
    };
    let now = digest::bytes(b"tampered");
    for path in [weights.clone(), run.model_dir(), run.path().to_path_buf()] {
        assert_eq!(check_input(path).unwrap_err().to_string(), message(now.short()));
    }
    fs_err::remove_file(&weights).unwrap();
    for path in [run.model_dir(), run.path().to_path_buf()] {
        assert_eq!(check_input(path).unwrap_err().to_string(), message("missing"));
    }
    // A file beside the products is nobody's business.
    fs_err::write(&weights, "model/model.safetensors").unwrap();
    fs_err::write(run.model_dir().join("README.md"), "mine").unwrap();
    check_input(run.model_dir()).unwrap();
}

#[test]
fn an_unfinished_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = finished(&dir.path().join("prep"), "data-prep", &["data/a/train.parquet"]);
    fs_err::remove_file(run.manifest_path()).unwrap();
    let message = format!(
        "{}: no manifest.json, so the run that makes it has not finished; run its stage to the end first",
        run.path().display()
    );
    for path in [run.data_file("a", "train"), run.data_dir(), run.path().to_path_buf()] {
        assert_eq!(check_input(path).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_run_of_a_newer_format_is_refused_by_version() {
    let dir = tempfile::tempdir().unwrap();
    let run = finished(dir.path(), "sft", &["model/config.json"]);
    let text = fs_err::read_to_string(run.manifest_path()).unwrap();
    let newer = text.replace("\"format_version\": 1", "\"format_version\": 9");
    fs_err::write(run.manifest_path(), newer).unwrap();
    let message = check_input(run.model_dir()).unwrap_err().to_string();
    assert!(message.contains("format version 9, but this build reads version 1"), "{message}");
}

#[test]
fn data_of_another_tokenizer_names_both() {
    let (a, b) = (digest::bytes(b"a"), digest::bytes(b"b"));
    let (data, model) = (Path::new("runs/p/train.parquet"), Path::new("models/llama"));
    verify_chain(data, &a, model, &a.clone()).unwrap();
    assert_eq!(
        verify_chain(data, &a, model, &b).unwrap_err().to_string(),
        "runs/p/train.parquet: made with tokenizer sha256:ca978112ca1b, but models/llama has tokenizer \
         sha256:3e23e8160039; tokenise the data again with that model's tokenizer, or give the model this data was made for"
    );
}

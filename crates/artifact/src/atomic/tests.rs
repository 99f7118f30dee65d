use std::io::BufRead;
use std::process::{Command, Stdio};

use super::*;

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_is_replaced_whole_and_folders_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("새 폴더/a.txt");
    write_bytes(&path, b"one").unwrap();
    write(&path, |out| out.write_all("둘".as_bytes())).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "둘");
    assert_eq!(entries(path.parent().unwrap()), ["a.txt"]);
}

#[test]
fn a_failing_writer_leaves_the_old_file_and_no_temporary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    write_bytes(&path, b"old").unwrap();
    let error = write(&path, |out| {
        out.write_all(&vec![b'x'; 1 << 20])?;
        Err(io::Error::other("the model has a hole"))
    });
    assert_eq!(error.unwrap_err().to_string(), "the model has a hole");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(entries(dir.path()), ["a.txt"]);

    let mut dropped = AtomicFile::create(&path).unwrap();
    dropped.write_all(b"new").unwrap();
    assert_eq!(dropped.path(), path);
    drop(dropped);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(entries(dir.path()), ["a.txt"]);
}

#[test]
fn seeking_back_to_fill_a_header_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.bin");
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"____body").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(b"head").unwrap();
    file.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"headbody");
}

/// `/dev/full` answers every write with ENOSPC, as a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_with_the_file_and_leaves_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_bytes(&path, b"old").unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut file = AtomicFile { file: full, temp: Temp { path: None }, target: path.clone() };
    let error = file.write_all(&[0; 4096]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(
        error.to_string(),
        format!(
            "{}: no space left on the disk; free some and run again (what was there before is unchanged)",
            path.display()
        )
    );
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[test]
fn other_write_errors_are_explained_too() {
    let target = Path::new("runs/x");
    let message = |kind| explain(io::Error::from(kind), target).to_string();
    assert_eq!(
        message(io::ErrorKind::QuotaExceeded),
        "runs/x: the disk quota is used up; free some and run again (what was there before is unchanged)"
    );
    assert_eq!(
        message(io::ErrorKind::ReadOnlyFilesystem),
        "runs/x: the file system is read-only; choose another output directory"
    );
    let parent_is_a_file = tempfile::NamedTempFile::new().unwrap();
    let error = write_bytes(parent_is_a_file.path().join("x"), b"").unwrap_err();
    let name = parent_is_a_file.path().to_string_lossy().into_owned();
    assert!(error.to_string().contains(&name), "{error}");
}

fn fill(dir: &AtomicDir, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

#[test]
fn a_directory_appears_whole_and_replaces_another_whole() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("checkpoints/step-00000500");
    let first = AtomicDir::create(&target).unwrap();
    assert_eq!(first.target(), target);
    fill(&first, &[("a", "1"), ("sub/b", "2")]);
    assert!(!target.exists());
    first.commit().unwrap();
    assert_eq!(entries(&target), ["a", "sub"]);

    let second = AtomicDir::create(&target).unwrap();
    fill(&second, &[("c", "3")]);
    assert_eq!(entries(&target), ["a", "sub"]);
    second.commit().unwrap();
    assert_eq!(entries(&target), ["c"]);
    assert_eq!(entries(target.parent().unwrap()), ["step-00000500"]);

    fill(&AtomicDir::create(&target).unwrap(), &[("d", "4")]);
    assert_eq!(entries(&target), ["c"]);
    assert_eq!(entries(target.parent().unwrap()), ["step-00000500"]);
}

#[test]
fn a_directory_may_take_the_name_of_a_file() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("model");
    write_bytes(&target, b"a file").unwrap();
    let dir = AtomicDir::create(&target).unwrap();
    fill(&dir, &[("config.json", "{}")]);
    dir.commit().unwrap();
    assert_eq!(entries(&target), ["config.json"]);
    assert_eq!(entries(root.path()), ["model"]);
}

#[test]
fn sweeping_takes_leftovers_and_spares_live_writers_and_other_files() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir_all(at("data/.dir.1-2-3.temper.tmp/inner")).unwrap();
    fs::write(at("data/.dir.1-2-3.temper.tmp/inner/x"), "x").unwrap();
    fs::write(at(".file.1-2-4.temper.tmp"), "half").unwrap();
    fs::write(at(".hidden"), "keep").unwrap();
    fs::write(at("notes.temper.tmp"), "keep").unwrap();
    let mut live = AtomicFile::create(at("live.txt")).unwrap();
    let live_dir = AtomicDir::create(at("live_dir")).unwrap();
    let removed = sweep(root.path()).unwrap();
    assert_eq!(removed, [at(".file.1-2-4.temper.tmp"), at("data/.dir.1-2-3.temper.tmp")]);
    live.write_all(b"done").unwrap();
    live.commit().unwrap();
    live_dir.commit().unwrap();
    assert_eq!(
        entries(root.path()),
        [".hidden", "data", "live.txt", "live_dir", "notes.temper.tmp"]
    );
    assert!(sweep(at("none")).unwrap().is_empty());
}

#[test]
fn temporary_names_stay_short_and_hidden() {
    let name = temporary_name(Path::new(&format!("runs/{}.parquet", "가".repeat(80))));
    let text = name.file_name().unwrap().to_str().unwrap();
    assert!(is_temporary(text) && text.len() < 255, "{text}");
    assert_eq!(name.parent().unwrap(), Path::new("runs"));
    assert_eq!(temporary_name(Path::new("x")).parent().unwrap(), Path::new("."));
}

const CHILD: &str = "TEMPER_TEST_ATOMIC_CHILD";

/// Not a test of its own: the writer that the next test kills.
#[test]
fn child_that_never_commits() {
    let Some(root) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let mut file = AtomicFile::create(root.join("weights")).unwrap();
    file.write_all(&vec![1; 100_000]).unwrap();
    let dir = AtomicDir::create(root.join("step")).unwrap();
    fill(&dir, &[("half", "half")]);
    println!("\nREADY");
    std::thread::sleep(std::time::Duration::from_mins(1));
}

#[test]
fn a_writer_killed_half_way_leaves_what_was_there() {
    let root = tempfile::tempdir().unwrap();
    let weights = root.path().join("weights");
    write_bytes(&weights, b"old").unwrap();
    let old = AtomicDir::create(root.path().join("step")).unwrap();
    fill(&old, &[("whole", "whole")]);
    old.commit().unwrap();

    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "atomic::tests::child_that_never_commits"])
        .env(CHILD, root.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = io::BufReader::new(child.stdout.take().unwrap());
    assert!(out.lines().map_while(Result::ok).any(|line| line == "READY"));
    assert!(sweep(root.path()).unwrap().is_empty(), "the writer lives");
    child.kill().unwrap();
    child.wait().unwrap();

    assert_eq!(fs::read(&weights).unwrap(), b"old");
    assert_eq!(entries(&root.path().join("step")), ["whole"]);
    assert_eq!(entries(root.path()).len(), 4);
    assert_eq!(sweep(root.path()).unwrap().len(), 2);
    assert_eq!(entries(root.path()), ["step", "weights"]);
}

#[test]
fn a_removed_directory_is_gone_and_leaves_no_temporary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("step-1");
    write_bytes(path.join("a.txt"), b"x").unwrap();
    remove_dir(&path).unwrap();
    assert_eq!(entries(dir.path()), [""; 0]);
    remove_dir(&path).unwrap();
}

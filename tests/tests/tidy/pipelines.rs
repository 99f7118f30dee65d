//! What `make` runs again and what it leaves alone, tried on a copy of the Makefile with stand-in binaries that note
//! that they ran and write a manifest.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use temper_tests::pipelines::PipelineStage;

use crate::{files, none, root, text};

/// The stages of the pipeline file at `path`, in the order they are written.
pub(crate) fn stages(path: &Path) -> Vec<PipelineStage> {
    temper_tests::pipelines::stages(&text(path))
}

#[test]
fn every_stage_is_a_binary_and_every_arrow_is_in_its_config() {
    let mut complaints = Vec::new();
    for path in files("pipelines", &[".mk"]) {
        let pipeline = path.file_stem().unwrap().to_string_lossy().into_owned();
        let stages = stages(&path);
        assert!(!stages.is_empty(), "{} has no stage", path.display());
        for stage in &stages {
            let names = [format!("{pipeline}/{}", stage.name), stage.name.clone()];
            let mut configs = names.into_iter().map(|name| format!("configs/{name}.toml"));
            let Some(config) = configs.find(|config| root().join(config).exists()) else {
                complaints.push(format!("{}: {} has no config", path.display(), stage.name));
                continue;
            };
            let source = text(&config);
            let values = source.lines().map(|line| line.split(" #").next().unwrap());
            let values: String =
                values.filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
            for other in stages.iter().filter(|other| other.name != stage.name) {
                let reads = values.contains(&format!("runs/{pipeline}/{}\"", other.name))
                    || values.contains(&format!("runs/{pipeline}/{}/", other.name));
                if reads != stage.reads.contains(&other.name) {
                    let (stage, other) = (&stage.name, &other.name);
                    complaints.push(if reads {
                        format!(
                            "{config} reads the run of {other}, and {} has no such arrow",
                            path.display()
                        )
                    } else {
                        format!(
                            "{} says that {stage} reads {other}, and {config} does not",
                            path.display()
                        )
                    });
                }
            }
        }
    }
    none("pipelines and configs differ", &complaints);
}

/// A folder with the repository's Makefile, pipelines and scripts, stand-in binaries and empty configs.
struct Yard {
    folder: tempfile::TempDir,
}

/// Refuses a config that says `bad`, notes its run, starts over where the last run was finished, leaves a checkpoint,
/// fails where `fail-NAME` lies about, and writes a manifest whose inputs are the lines of `inputs-NAME`. `table` is noted with
/// its arguments.
const STAND_IN: &str = r#"#!/bin/bash
set -euo pipefail
name=${0##*/}
[ "$1" != table ] || { echo "$name $*" >>log; exit; }
[ "$1" = --config ] || { name="$name $1"; shift; }
[ "$1 $3" = "--config --out" ] || { echo "unexpected arguments: $*" >&2; exit 2; }
run=$4
! grep -q bad "$2" || exit 2
echo "$name $2" >>log
[ ! -e "$run/manifest.json" ] || rm "$run/manifest.json" "$run/checkpoint"
mkdir -p "$run"
echo . >>"$run/checkpoint"
[ ! -e "fail-$name" ] || exit 1
inputs=$(sed 's/.*/{"role": "raw", "path": "&", "digest": "sha256:0"}/' "inputs-$name" 2>/dev/null | paste -sd ,) || true
echo "{\"stage\": \"$name\", \"inputs\": [$inputs]}" >"$run/manifest.json"
"#;

impl Yard {
    fn new() -> Self {
        let yard = Self { folder: tempfile::tempdir().unwrap() };
        fs_err::copy(root().join("Makefile"), yard.path("Makefile")).unwrap();
        for folder in ["pipelines", "scripts", "configs", "bin", "target/release"] {
            fs_err::create_dir_all(yard.path(folder)).unwrap();
        }
        for file in files("pipelines", &[".mk"]).into_iter().chain(files("scripts", &[""])) {
            if let Some(folder) = file.parent() {
                fs_err::create_dir_all(yard.path(folder)).unwrap();
            }
            fs_err::copy(root().join(&file), yard.path(&file)).unwrap();
        }
        yard.program("bin/cargo", "#!/bin/sh\n");
        for stage in [
            "data-prep",
            "pretrain",
            "sft",
            "reward",
            "ppo",
            "cai",
            "finetune",
            "peft",
            "evaluate",
            "report",
            "chat",
        ] {
            yard.program(&format!("target/release/{stage}"), STAND_IN);
            yard.write(&format!("configs/{stage}.toml"), "");
        }
        for config in ["helpful", "cai-generate", "cai-train", "constitution"] {
            yard.write(&format!("configs/{config}.toml"), "");
        }
        yard
    }

    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Writes a file, some milliseconds after everything before it, so that its time is later than theirs.
    fn write(&self, path: &str, content: &str) {
        std::thread::sleep(Duration::from_millis(10));
        if let Some(folder) = self.path(path).parent() {
            fs_err::create_dir_all(folder).unwrap();
        }
        fs_err::write(self.path(path), content).unwrap();
    }

    fn program(&self, path: &str, content: &str) {
        self.write(path, content);
        fs_err::set_permissions(self.path(path), PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn make(&self, arguments: &[&str]) -> Output {
        let search = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut make = Command::new("make");
        for set_by_an_outer_make in
            ["MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "PIPELINE", "CONFIG", "TARGET"]
        {
            make.env_remove(set_by_an_outer_make);
        }
        make.args(arguments).arg("SETUP=true").current_dir(self.folder.path()).env("PATH", search);
        make.output().unwrap()
    }

    /// Runs make, which must succeed, and returns the stages it ran with their configs, in order.
    #[track_caller]
    fn ran(&self, arguments: &[&str]) -> Vec<String> {
        self.forget();
        let output = self.make(arguments);
        assert!(
            output.status.success(),
            "make {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.log()
    }

    /// Runs make, which must fail, and returns what it wrote to stderr.
    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> String {
        self.forget();
        let output = self.make(arguments);
        assert!(!output.status.success(), "make {arguments:?} did not fail");
        String::from_utf8(output.stderr).unwrap()
    }

    fn forget(&self) {
        self.write("log", "");
    }

    fn log(&self) -> Vec<String> {
        let log = fs_err::read_to_string(self.path("log")).unwrap();
        log.lines().map(|line| line.replace("configs/", "").replace(".toml", "")).collect()
    }
}

const ALL: [&str; 12] = [
    "data-prep data-prep",
    "pretrain pretrain",
    "sft sft",
    "reward reward",
    "ppo ppo",
    "sft helpful",
    "cai generate cai-generate",
    "cai train cai-train",
    "finetune finetune",
    "peft peft",
    "evaluate evaluate",
    "report report",
];

#[test]
fn make_runs_the_pipeline_in_order_once() {
    let yard = Yard::new();
    let ran = yard.ran(&["-j4"]);
    let place = |stage: &str| ran.iter().position(|line| line == stage);
    assert_eq!(ran.len(), ALL.len(), "{ran:?}");
    let after = [10, 11].as_slice();
    for path in [[0, 1, 2, 3, 4].as_slice(), &[0, 1, 2, 5, 6, 7], &[0, 1, 2, 8], &[0, 1, 2, 9]] {
        let places: Vec<usize> =
            path.iter().chain(after).map(|&at| place(ALL[at]).unwrap()).collect();
        assert!(places.is_sorted(), "{ran:?}");
    }
    assert_eq!(yard.ran(&[]), [""; 0]);
    assert_eq!(yard.ran(&["data-prep", "pretrain"]), [""; 0]);
    assert!(yard.path("runs/quickstart/sft/manifest.json").exists());
}

#[test]
fn one_goal_runs_what_it_needs_and_no_more() {
    let yard = Yard::new();
    assert_eq!(yard.ran(&["pretrain"]), ALL[..2]);
    assert_eq!(yard.ran(&["sft"]), ALL[2..3]);
    assert_eq!(yard.ran(&["reward"]), ALL[3..4]);
}

#[test]
fn a_newer_config_reruns_its_stage_and_those_after_it() {
    let yard = Yard::new();
    yard.ran(&[]);
    yard.write("configs/pretrain.toml", "# changed");
    assert_eq!(yard.ran(&["-n"]), [""; 0], "a dry run runs nothing");
    assert_eq!(yard.ran(&["data-prep"]), [""; 0]);
    assert_eq!(yard.ran(&[]), ALL[1..]);
    yard.write("configs/sft.toml", "# changed");
    assert_eq!(yard.ran(&[]), ALL[2..]);
    assert_eq!(yard.ran(&[]), [""; 0]);
}

#[test]
fn a_newer_raw_input_reruns_the_stage_that_read_it_and_those_after_it() {
    let yard = Yard::new();
    yard.write("raw/my data/one.txt", "one");
    yard.write("raw/수업.jsonl", "{}");
    yard.write("inputs-data-prep", "raw/my data\nraw/수업.jsonl\n");
    yard.write("inputs-sft", "runs/quickstart/pretrain\nruns/quickstart/data-prep/data/sft\n");
    assert_eq!(yard.ran(&[]), ALL);
    assert_eq!(yard.ran(&[]), [""; 0]);
    yard.write("raw/my data/one.txt", "changed");
    assert_eq!(yard.ran(&[]), ALL);
    yard.write("raw/my data/two.txt", "a new file in the folder");
    assert_eq!(yard.ran(&[]), ALL);
    yard.write("raw/수업.jsonl", "{\"changed\": 1}");
    assert_eq!(yard.ran(&[]), ALL);
    fs_err::remove_file(yard.path("raw/my data/one.txt")).unwrap();
    assert_eq!(yard.ran(&[]), ALL, "a deleted input reruns the stage");
    assert_eq!(yard.ran(&[]), [""; 0]);
}

#[test]
fn config_swaps_the_config_of_the_stage_named() {
    let yard = Yard::new();
    yard.ran(&[]);
    yard.write("configs/short.toml", "");
    assert_eq!(yard.ran(&["sft", "CONFIG=configs/short.toml"]), ["sft short"]);
    assert_eq!(yard.ran(&["sft", "CONFIG=configs/short.toml"]), [""; 0]);
    assert_eq!(yard.ran(&["sft"]), ["sft sft"], "the shipped config is another one");
    assert_eq!(yard.ran(&["pretrain", "CONFIG=configs/short.toml"]), ["pretrain short"]);
    let error = yard.fails(&["CONFIG=configs/short.toml"]);
    assert!(error.contains("CONFIG replaces the config of one stage; name that stage"), "{error}");
    let error = yard.fails(&["sft", "pretrain", "CONFIG=configs/short.toml"]);
    assert!(error.contains("CONFIG replaces the config of one stage"), "{error}");
    let error = yard.fails(&["sft", "CONFIG=configs/none.toml"]);
    assert!(error.contains("CONFIG=configs/none.toml does not exist"), "{error}");
}

#[test]
fn a_failed_stage_leaves_no_manifest_and_stops_what_follows() {
    let yard = Yard::new();
    yard.write("fail-pretrain", "");
    yard.fails(&[]);
    assert_eq!(yard.log(), ALL[..2]);
    assert!(!yard.path("runs/quickstart/pretrain/manifest.json").exists());
    fs_err::remove_file(yard.path("fail-pretrain")).unwrap();
    assert_eq!(yard.ran(&[]), ALL[1..]);
    let checkpoint =
        fs_err::read_to_string(yard.path("runs/quickstart/pretrain/checkpoint")).unwrap();
    assert_eq!(checkpoint, ".\n.\n", "the second run found what the first left");

    yard.write("fail-pretrain", "");
    yard.write("configs/pretrain.toml", "# changed");
    yard.fails(&[]);
    assert!(
        !yard.path("runs/quickstart/pretrain/manifest.json").exists(),
        "the old manifest is not left standing"
    );
}

#[test]
fn a_config_the_stage_refuses_leaves_the_finished_run() {
    let yard = Yard::new();
    yard.ran(&[]);
    yard.write("configs/wrong.toml", "bad");
    yard.fails(&["sft", "CONFIG=configs/wrong.toml"]);
    assert!(yard.path("runs/quickstart/sft/manifest.json").exists());
    assert_eq!(yard.ran(&[]), [""; 0], "the run of the shipped config still stands");
}

#[test]
fn a_stage_that_writes_no_manifest_is_an_error() {
    let yard = Yard::new();
    yard.program("target/release/data-prep", "#!/bin/sh\n");
    let error = yard.fails(&[]);
    assert!(error.starts_with(
        "error: data-prep ended without writing runs/quickstart/data-prep/manifest.json"
    ));
}

#[test]
fn a_pipeline_is_a_file_and_its_configs() {
    let yard = Yard::new();
    yard.write(
        "pipelines/other.mk",
        "$(call stage,corpus,raw/text.txt,data-prep)\n$(call stage,sft,corpus)\n",
    );
    yard.write("configs/other/corpus.toml", "");
    yard.write("configs/other/sft.toml", "");
    yard.write("raw/text.txt", "");
    assert_eq!(yard.ran(&["PIPELINE=other"]), ["data-prep other/corpus", "sft other/sft"]);
    assert!(yard.path("runs/other/corpus/manifest.json").exists());
    assert_eq!(yard.ran(&["PIPELINE=other"]), [""; 0]);
    yard.write("raw/text.txt", "changed");
    assert_eq!(yard.ran(&["PIPELINE=other"]).len(), 2);
    let error = yard.fails(&["PIPELINE=none"]);
    assert!(error.contains("there is no pipeline none; PIPELINE is one of:"), "{error}");
    assert!(error.contains("quickstart"), "{error}");
}

#[test]
fn methods_are_run_over_the_quickstart_and_shown_in_a_table() {
    let yard = Yard::new();
    let methods = stages(Path::new("pipelines/methods.mk"));
    for stage in &methods {
        yard.write(&format!("configs/methods/{}.toml", stage.name), "");
    }
    let ran = yard.ran(&["PIPELINE=methods", "table"]);
    let program = |name: &str| if name == "full" { "finetune" } else { "peft" };
    let mut wanted: Vec<String> = ALL[..3].iter().map(|&line| line.to_owned()).collect();
    wanted.extend(methods.iter().map(|it| format!("{} methods/{}", program(&it.name), it.name)));
    let runs: Vec<String> =
        methods.iter().map(|stage| format!("runs/methods/{}", stage.name)).collect();
    let table = format!("peft table {}", runs.join(" "));
    wanted.push(table.clone());
    assert_eq!(ran, wanted);
    assert_eq!(yard.ran(&["PIPELINE=methods", "table"]), [table]);
    let listed = String::from_utf8(yard.make(&["PIPELINE=methods", "help"]).stdout).unwrap();
    for stage in &methods {
        assert!(listed.contains(&format!("make {}", stage.name)), "{} in {listed}", stage.name);
    }
}

#[test]
fn every_pipeline_has_its_stages_in_its_help_with_their_words() {
    let yard = Yard::new();
    for path in files("pipelines", &[".mk"]) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let output = yard.make(&["help", &format!("PIPELINE={name}")]);
        let output = String::from_utf8(output.stdout).unwrap();
        for stage in stages(&path) {
            let line = output
                .lines()
                .find(|line| line.split_whitespace().take(2).eq(["make", stage.name.as_str()]));
            let words = line.map_or(0, |line| line.split_whitespace().count() - 2);
            assert!(words >= 2, "{} of {name}: {line:?} in\n{output}", stage.name);
        }
    }
}

#[test]
fn help_lists_every_target_in_a_line_each() {
    let yard = Yard::new();
    let output = String::from_utf8(yard.make(&["help"]).stdout).unwrap();
    let listed: Vec<&str> =
        output.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    let makefile = text("Makefile");
    let phony = makefile.lines().filter_map(|line| line.strip_prefix(".PHONY: "));
    let internal = ["FORCE", "ready", "$(1)"];
    let mut wanted: Vec<&str> =
        phony.flat_map(str::split_whitespace).filter(|it| !internal.contains(it)).collect();
    wanted.extend(["data-prep", "pretrain", "sft", "reward", "ppo"]);
    wanted.extend(["helpful", "cai-generate", "cai-train", "finetune", "peft"]);
    wanted.extend(["evaluate", "report", "cai"]);
    assert_eq!(listed, wanted);
    assert!(
        output.lines().all(|line| line.split_whitespace().count() > 3),
        "each with its words: {output}"
    );
}

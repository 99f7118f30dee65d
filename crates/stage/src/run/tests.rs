use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use artifact::atomic;

use super::*;
use crate::interrupt::Interrupted;
use crate::problems::Problems;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    seed: u64,
    out: PathBuf,
    #[serde(default)]
    input: Option<PathBuf>,
    /// What the stage does: `count`, `fail`, `usage`, `panic`, `stop`, `thread`, `wait`.
    does: String,
    #[serde(default)]
    rows: i64,
}

impl StageConfig for Config {
    type Plan = Self;

    fn plan(self, at: &Paths) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        assert_eq!(at.out, self.out);
        problems.check(
            self.rows >= 0,
            "rows",
            format_args!("must not be below 0, got {}", self.rows),
        );
        problems.check(!self.does.is_empty(), "does", "must not be empty");
        problems.finish(self)
    }
}

impl Describe for Config {
    fn describe(&self, _processes: usize) -> String {
        format!("rows  {}", self.rows)
    }
}

const INFO: Info = Info {
    name: "count",
    about: "Counts rows.",
    reads: "nothing",
    writes: "nothing",
    example: "count --set rows=3",
    parallel: Parallel::No,
};

#[expect(clippy::needless_pass_by_value, reason = "the signature that main_with calls")]
fn work(ctx: &mut Context, plan: Config) -> anyhow::Result<Results> {
    if let Some(path) = &plan.input {
        ctx.input("train", path)?;
    }
    if plan.does == "early" {
        return Err(UsageError::msg("no such device").into());
    }
    ctx.start()?;
    match plan.does.as_str() {
        "fail" => anyhow::bail!("row 3 is bad"),
        "usage" => return Err(UsageError::msg("no such device").into()),
        "panic" => panic!("index out of bounds"),
        "stop" => return Err(Interrupted(Signal::Usr1).into()),
        "thread" => {
            let joined = std::thread::spawn(|| panic!("worker broke")).join();
            return joined
                .map(|()| Results::new())
                .map_err(|_| anyhow::anyhow!("a reader is gone"));
        }
        "wait" => {
            println!("\nREADY");
            for _ in 0..3000 {
                ctx.check_interrupt()?;
                std::thread::sleep(Duration::from_millis(10));
            }
            anyhow::bail!("no signal came")
        }
        does if does.starts_with("write ") => {
            let words: Vec<&str> = does.split(' ').collect();
            fs_err::write(words[1], words[2])?;
        }
        does if does.starts_with("remove ") => fs_err::remove_file(&does[7..])?,
        "deaf" => {
            println!("\nREADY");
            while ctx.check_interrupt().is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
            println!("\nASKED");
            std::thread::sleep(Duration::from_mins(1));
        }
        _ => {}
    }
    assert_eq!(ctx.seed, 7);
    ctx.set_device("cpu (test)");
    ctx.version("libtorch", "2.11.0");
    ctx.tokenizer = Some(artifact::digest::bytes(b"tokenizer"));
    ctx.metrics.begin(None)?;
    ctx.metrics.log(1, &[("loss", 1.0)])?;
    atomic::write_bytes(ctx.run_dir.samples_path(), b"samples")?;
    let mut results = Results::new();
    results.insert("rows".to_owned(), plan.rows.into());
    results.insert("resume".to_owned(), ctx.resume.into());
    results.insert("checkpoints".to_owned(), ctx.run_dir.checkpoints_dir().exists().into());
    Ok(results)
}

struct Yard {
    dir: tempfile::TempDir,
}

impl Yard {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text =
            format!("seed = 7\nout = {:?}\ndoes = \"count\"\nrows = 3\n", dir.path().join("run"));
        fs_err::write(dir.path().join("count.toml"), text).unwrap();
        Self { dir }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("count.toml")
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn args(&self, words: &[&str]) -> Vec<OsString> {
        let config = ["--config".into(), self.config().into_os_string()];
        config.into_iter().chain(words.iter().map(OsString::from)).collect()
    }

    fn code(&self, words: &[&str]) -> u8 {
        main_with::<Config>(&INFO, work, &self.args(words))
    }

    fn report(&self, words: &[&str]) -> String {
        let args = cli::parse(&INFO, &self.args(words)).unwrap();
        let error = execute::<Config>(&INFO, work, &args).unwrap_err();
        report(&error).replace(&self.dir.path().display().to_string(), "DIR")
    }

    fn manifest(&self) -> Manifest {
        Manifest::read(self.run_dir()).unwrap()
    }
}

#[test]
fn a_run_leaves_its_record() {
    let yard = Yard::new();
    let input = yard.dir.path().join("train.txt");
    fs_err::write(&input, "abc").unwrap();
    let set = format!("input={}", input.display());
    assert_eq!(yard.code(&["--set", &set, "--set", "rows=5"]), 0);
    let manifest = yard.manifest();
    assert_eq!(manifest.stage, "count");
    assert_eq!(manifest.seed, 7);
    assert_eq!(manifest.device, "cpu (test)");
    assert_eq!(manifest.inputs.len(), 1);
    assert_eq!(manifest.inputs[0].role, "train");
    assert_eq!(manifest.inputs[0].path, input);
    assert_eq!(manifest.inputs[0].digest, artifact::digest::bytes(b"abc"));
    assert_eq!(manifest.outputs["samples.parquet"], artifact::digest::bytes(b"samples"));
    assert_eq!(manifest.config["rows"], 5);
    assert_eq!(manifest.versions["libtorch"], "2.11.0");
    assert_eq!(manifest.versions["temper"], env!("CARGO_PKG_VERSION"));
    assert_eq!(manifest.tokenizer, Some(artifact::digest::bytes(b"tokenizer")));
    assert_eq!(manifest.results["rows"], 5);
    assert!(manifest.wall_seconds >= 0.0);
    for time in [&manifest.started_at, &manifest.finished_at] {
        let _: jiff::Timestamp = time.parse().unwrap();
        assert!(time.len() == "2026-01-01T00:00:00.000Z".len() && time.ends_with('Z'), "{time}");
    }
    // config.toml is the resolved configuration and can be run again.
    let resolved = fs_err::read_to_string(yard.run_dir().join("config.toml")).unwrap();
    assert!(
        resolved.starts_with(
            "# The resolved configuration of this run, written by temper.\n\nseed = 7\n"
        )
    );
    fs_err::write(yard.config(), resolved).unwrap();
    assert_eq!(yard.code(&[]), 0);
    assert_eq!(yard.manifest().results["rows"], 5);
}

#[test]
fn exit_codes_and_reports() {
    let yard = Yard::new();
    for (does, code) in [("fail", 1), ("usage", 2), ("stop", 138), ("panic", 1), ("thread", 1)] {
        assert_eq!(yard.code(&["--set", &format!("does={does}")]), code, "{does}");
        assert!(!yard.run_dir().join("manifest.json").exists(), "{does}");
        assert!(yard.run_dir().join("config.toml").exists(), "{does}");
    }
    assert_eq!(yard.code(&["--nonsense"]), 2);
    assert_eq!(yard.code(&["--help"]), 0);
    assert_eq!(yard.report(&["--set", "does=fail"]), "error: row 3 is bad\n");
    assert_eq!(
        yard.report(&["--set", "does=stop"]),
        "error: stopped by SIGUSR1; run the same command again to go on\n"
    );
}

#[test]
fn a_panic_is_reported_as_a_defect() {
    let error = internal_error(&"index out of bounds".to_owned());
    let text = report(&error);
    assert!(text.starts_with("error: internal error: index out of bounds\n"), "{text}");
    assert!(
        text.ends_with("hint: this is a defect of temper, not of your input; please report it\n"),
        "{text}"
    );
}

#[test]
fn all_problems_of_a_configuration_are_told_at_once_with_their_flags() {
    let yard = Yard::new();
    assert_eq!(
        yard.report(&["--set", "rows=-1", "--set", "does="]),
        "error: DIR/count.toml has 2 problems\n  \
         - rows: must not be below 0, got -1 (set by --set rows=-1)\n  \
         - does: must not be empty (set by --set does=)\n"
    );
    assert_eq!(yard.code(&["--set", "rows=-1"]), 2);
    assert!(!yard.run_dir().exists());
}

#[test]
fn check_leaves_nothing_behind() {
    let yard = Yard::new();
    assert_eq!(yard.code(&["--check"]), 0);
    assert!(!yard.run_dir().exists());
}

#[test]
fn a_folder_that_is_no_run_directory_is_left_alone() {
    let yard = Yard::new();
    fs_err::create_dir(yard.run_dir()).unwrap();
    fs_err::write(yard.run_dir().join("thesis.tex"), "").unwrap();
    for words in [&[][..], &["--resume", "never"]] {
        assert_eq!(
            yard.report(words),
            "error: DIR/run: holds `thesis.tex`, so it is not a run directory of temper; choose another output directory\n\
             hint: set it with --out or with the configuration's `out`\n"
        );
        assert_eq!(yard.code(words), 2);
    }
    let elsewhere = yard.dir.path().join("other");
    assert_eq!(yard.code(&["--out", elsewhere.to_str().unwrap()]), 0);
    assert!(elsewhere.join("manifest.json").exists());
}

fn leave(path: &Path) {
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, "left").unwrap();
}

#[test]
fn an_unfinished_run_is_taken_up_as_it_is() {
    let yard = Yard::new();
    assert_eq!(yard.code(&["--set", "does=fail"]), 1);
    leave(&yard.run_dir().join("checkpoints/step-1/state"));
    leave(&yard.run_dir().join(".model.1-2-3.temper.tmp"));
    assert_eq!(yard.code(&["--set", "rows=4"]), 0);
    let results = yard.manifest().results;
    assert_eq!(results["resume"], true);
    assert_eq!(results["checkpoints"], true);
    assert!(!yard.run_dir().join(".model.1-2-3.temper.tmp").exists());
}

#[test]
fn a_finished_run_starts_over_and_is_unfinished_meanwhile() {
    let yard = Yard::new();
    assert_eq!(yard.code(&[]), 0);
    leave(&yard.run_dir().join("checkpoints/step-1/state"));
    leave(&yard.run_dir().join("model/config.json"));
    assert_eq!(yard.code(&["--set", "does=fail"]), 1);
    assert!(!yard.run_dir().join("manifest.json").exists());
    assert!(!yard.run_dir().join("checkpoints").exists());
    assert!(yard.run_dir().join("model/config.json").exists());
}

#[test]
fn resume_never_removes_what_was_made() {
    let yard = Yard::new();
    assert_eq!(yard.code(&["--set", "does=fail"]), 1);
    leave(&yard.run_dir().join("checkpoints/step-1/state"));
    leave(&yard.run_dir().join("model/config.json"));
    assert_eq!(yard.code(&["--resume", "never"]), 0);
    let results = yard.manifest().results;
    assert_eq!(results["resume"], false);
    assert_eq!(results["checkpoints"], false);
    assert!(!yard.run_dir().join("model").exists());
}

#[test]
fn what_is_refused_before_the_start_costs_an_earlier_run_nothing() {
    let yard = Yard::new();
    assert_eq!(yard.code(&[]), 0);
    leave(&yard.run_dir().join("checkpoints/step-1/state"));
    for words in [&["--set", "does=early"][..], &["--set", "does=early", "--resume", "never"]] {
        assert_eq!(yard.code(words), 2);
        assert_eq!(yard.manifest().config["does"], "count");
        let config = fs_err::read_to_string(yard.run_dir().join("config.toml")).unwrap();
        assert!(config.contains("does = \"count\""), "{config}");
        assert!(yard.run_dir().join("checkpoints/step-1/state").exists());
    }
}

#[test]
fn a_run_does_not_read_what_it_would_replace() {
    let yard = Yard::new();
    assert_eq!(yard.code(&[]), 0);
    let own = yard.run_dir().join("samples.parquet");
    let set = format!("input={}", own.display());
    assert_eq!(
        yard.report(&["--set", &set]),
        "error: DIR/run/samples.parquet: the run reads this and would replace it\n\
         hint: choose another run directory with --out\n"
    );
    assert!(yard.run_dir().join("manifest.json").exists());
}

#[test]
fn two_processes_do_not_share_a_run_directory() {
    let dir = tempfile::tempdir().unwrap();
    let context = || {
        let run = RunDir::create(dir.path().join("run")).unwrap();
        Context::detached(run, 1, crate::DeviceSpec::Cpu)
    };
    let mut first = context();
    first.start().unwrap();
    let error = report(&context().start().unwrap_err());
    let error = error.replace(&dir.path().display().to_string(), "DIR");
    let (before, after) = error.split_once(" since 20").unwrap();
    let id = std::process::id();
    let host = crate::lock::host();
    assert_eq!(before, format!("error: DIR/run: process {id} on {host} has been at work here"));
    assert_eq!(after.len(), after.find('\n').unwrap() + 1 + HINT.len(), "{error}");
    assert!(after.ends_with(HINT), "{error}");
    // A note that a killed process left is not believed.
    let note = dir.path().join("run/.holder.json");
    let dead = fs_err::read_to_string(&note).unwrap().replace(&id.to_string(), "4194304");
    fs_err::write(&note, dead).unwrap();
    let error = report(&context().start().unwrap_err());
    assert!(error.contains("/run: another process is at work here\n"), "{error}");
    drop(first);
    assert!(!note.exists());
    context().start().unwrap();
}

const HINT: &str = "hint: wait for it, stop it, or choose another run directory with --out\n";

#[test]
fn an_input_that_changes_meanwhile_is_named_and_the_run_is_not_finished() {
    let yard = Yard::new();
    let input = yard.dir.path().join("train.txt");
    fs_err::write(&input, "abc").unwrap();
    let set = format!("input={}", input.display());
    let writes = |text: &str| format!("does=write {} {text}", input.display());
    assert_eq!(yard.code(&["--set", &set, "--set", &writes("abc")]), 0, "written, not changed");
    let error = yard.report(&["--set", &set, "--set", &writes("abd")]);
    let short = |text: &[u8]| artifact::digest::bytes(text).short().to_owned();
    assert_eq!(
        error,
        format!(
            "error: DIR/train.txt: changed while this run read it\n  \
             caused by: {} at its start, {} now\n\
             hint: put it back and run the same command again to go on, or start over with --resume never\n",
            short(b"abc"),
            short(b"abd")
        )
    );
    assert!(!yard.run_dir().join("manifest.json").exists());
    fs_err::write(&input, "abc").unwrap();
    let error = yard.report(&["--set", &set, "--set", &format!("does=remove {}", input.display())]);
    assert!(error.contains("train.txt: changed while this run read it\n"), "{error}");
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn memory_that_runs_out_is_no_defect_and_shows_no_backtrace() {
    let panic = "called `Result::unwrap()` on an `Err` value: Torch(\"[enforce fail] DefaultCPUAllocator: can't allocate \
                 memory: you tried to allocate 9 bytes\\nException raised from alloc_cpu at x.cpp\")";
    let text = report(&internal_error(&panic.to_owned()));
    // What torch-ext's allocator says.
    let own = "called `Result::unwrap()` on an `Err` value: Torch(\"out of memory: no 9 bytes for a tensor\\nException raised\")";
    let own = report(&internal_error(&own.to_owned()));
    assert!(own.starts_with("error: out of memory: no 9 bytes for a tensor\nhint: "), "{own}");
    assert_eq!(
        text,
        "error: out of memory: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\n\
         hint: lower micro_batch_tokens or the rows generated at the same time, or set activation_checkpointing = \"layer\"\n"
    );
}

const CHILD: &str = "TEMPER_TEST_STAGE_CHILD";

/// Not a test of its own: the stage that the next tests send signals to. The variable holds its
/// configuration and what it does.
#[test]
fn child_stage() {
    let Some(text) = std::env::var_os(CHILD) else { return };
    let text = text.into_string().unwrap();
    let (config, does) = text.split_once('\n').unwrap();
    let args = ["--config", config, "--set", &format!("does={does}")].map(OsString::from);
    let code = main_with::<Config>(&INFO, work, &args);
    #[expect(clippy::exit, reason = "the child's exit code is what the parent looks at")]
    std::process::exit(i32::from(code));
}

/// Starts the child, sends each signal when the child has said its word, and returns the exit code.
fn signalled(does: &str, signals: &[(&str, &str)]) -> (Option<i32>, String) {
    let yard = Yard::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "run::tests::child_stage"])
        .env(CHILD, format!("{}\n{does}", yard.config().display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    for (word, signal) in signals {
        assert!(lines.any(|line| line == *word), "the child said {word}");
        let sent = Command::new("kill").args([*signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_first_signal_stops_the_stage_where_it_looks() {
    for (signal, name, code) in
        [("-INT", "SIGINT", 130), ("-TERM", "SIGTERM", 143), ("-USR1", "SIGUSR1", 138)]
    {
        let (found, stderr) = signalled("wait", &[("READY", signal)]);
        assert_eq!(found, Some(code), "{stderr}");
        let last = format!("error: stopped by {name}; run the same command again to go on\n");
        assert!(stderr.ends_with(&last), "{stderr}");
    }
}

#[test]
fn the_second_signal_ends_a_stage_that_does_not_look() {
    let (found, stderr) = signalled("deaf", &[("READY", "-USR1"), ("ASKED", "-TERM")]);
    assert_eq!(found, Some(143), "{stderr}");
}

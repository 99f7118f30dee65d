//! Where `unsafe` and C++ may stand, and how long files and functions may grow.

use std::path::{Path, PathBuf};

use crate::code::{bare, functions, lines_with_word};
use crate::{files, none, text};

/// A file longer than this is named when the test runs; one longer than the second must be split.
const SOFT_FILE_LINES: usize = 500;
const HARD_FILE_LINES: usize = 600;
/// The longest function.
const FUNCTION_LINES: usize = 100;

const SOURCES: &[&str] = &[".rs", ".py", ".sh", ".cpp", ".h"];

fn sources() -> Vec<PathBuf> {
    ["crates", "tests", "scripts"].iter().flat_map(|folder| files(folder, SOURCES)).collect()
}

#[test]
fn unsafe_code_stands_in_torch_ext_and_in_the_one_memory_map() {
    let mut complaints = Vec::new();
    for path in files("crates", &[".rs"]).into_iter().chain(files("tests", &[".rs"])) {
        if path.starts_with("crates/torch-ext") {
            continue;
        }
        let lines = lines_with_word(&bare(&text(&path)), "unsafe");
        let allowed = usize::from(path.ends_with("crates/artifact/src/mmap.rs"));
        for line in lines.iter().skip(allowed) {
            complaints.push(format!("{}:{line}", path.display()));
        }
    }
    none("`unsafe` belongs in torch-ext", &complaints);
}

#[test]
fn cpp_stands_in_torch_ext() {
    let found: Vec<String> = files("crates", &[".cpp", ".cc", ".cu", ".h", ".hpp"])
        .into_iter()
        .chain(files("tests", &[".cpp", ".cc", ".cu", ".h", ".hpp"]))
        .filter(|path| !path.starts_with("crates/torch-ext"))
        .map(|path| path.display().to_string())
        .collect();
    none("C++ belongs in torch-ext", &found);
}

/// The file and line of every line of code outside tests that holds one of `words`.
fn code_with(words: &[&str]) -> Vec<(PathBuf, usize)> {
    let mut found = Vec::new();
    for path in files("crates", &[".rs"]) {
        let name = path.to_string_lossy();
        if name.contains("tests") {
            continue;
        }
        for (at, line) in bare(&text(&path)).lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push((path.clone(), at + 1));
            }
        }
    }
    found
}

#[test]
fn sockets_stand_in_the_server() {
    let words = ["std::net", "TcpStream", "TcpListener", "UdpSocket", "os::unix::net"];
    let found = code_with(&words).into_iter().filter(|(path, _)| !path.starts_with("crates/chat"));
    let found: Vec<String> =
        found.map(|(path, line)| format!("{}:{line}", path.display())).collect();
    none("only `chat serve` has a network", &found);
}

/// Where the time of day is asked for, and what becomes of it. Nothing that a run makes may depend on it: how long
/// something took comes from `Instant`, which no change of the clock moves.
const CLOCKS: &[(&str, &str)] = &[
    ("crates/artifact/src/atomic.rs", "part of a temporary's name"),
    ("crates/chat/src/serve/http.rs", "the Date header"),
    ("crates/chat/src/serve/reply.rs", "`created` in an answer"),
    ("crates/data/src/template/environment.rs", "strftime_now, where no date is set"),
    ("crates/stage/src/logging.rs", "the time of a log line"),
    ("crates/stage/src/metrics/tensorboard.rs", "the time of an event"),
    ("crates/stage/src/run.rs", "started_at and finished_at"),
];

#[test]
fn the_time_of_day_decides_nothing() {
    let asks = ["SystemTime::now", "Timestamp::now", "Zoned::now", ".modified()"];
    let found = code_with(&asks);
    let known = |path: &Path| CLOCKS.iter().any(|(known, _)| path.ends_with(known));
    let unknown: Vec<String> = found
        .iter()
        .filter(|(path, _)| !known(path))
        .map(|(path, line)| format!("{}:{line}", path.display()))
        .collect();
    none("the time of day is asked for in a place that CLOCKS does not list", &unknown);
    let gone =
        CLOCKS.iter().filter(|(known, _)| !found.iter().any(|(path, _)| path.ends_with(known)));
    let gone: Vec<String> = gone.map(|(path, _)| (*path).to_owned()).collect();
    none("CLOCKS lists places where no time is asked for", &gone);
}

#[test]
fn files_stay_short() {
    let mut complaints = Vec::new();
    for path in sources() {
        let lines = text(&path).lines().count();
        if lines > HARD_FILE_LINES {
            complaints.push(format!(
                "{} has {lines} lines; {HARD_FILE_LINES} are allowed",
                path.display()
            ));
        } else if lines > SOFT_FILE_LINES {
            println!("{} has {lines} lines; split it along its ideas soon", path.display());
        }
    }
    none("long files", &complaints);
}

#[test]
fn functions_stay_short() {
    let mut complaints = Vec::new();
    for path in files("crates", &[".rs"]).into_iter().chain(files("tests", &[".rs"])) {
        for function in functions(&bare(&text(&path))) {
            let lines = function.last - function.first + 1;
            if lines > FUNCTION_LINES {
                let (path, first) = (path.display(), function.first);
                complaints.push(format!("{path}:{first} `{}` has {lines} lines", function.name));
            }
        }
    }
    none(&format!("functions longer than {FUNCTION_LINES} lines"), &complaints);
}

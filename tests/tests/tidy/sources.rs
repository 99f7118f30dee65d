//! Where `unsafe` and C++ may stand, and how long files and functions may grow.

use crate::code::{bare, functions, lines_with_word};
use crate::{files, none, text};

/// A file longer than this is named when the test runs; one longer than the second must be split.
const SOFT_FILE_LINES: usize = 500;
const HARD_FILE_LINES: usize = 600;
/// The longest function.
const FUNCTION_LINES: usize = 100;

const SOURCES: &[&str] = &[".rs", ".py", ".sh", ".cpp", ".h"];

fn sources() -> Vec<std::path::PathBuf> {
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

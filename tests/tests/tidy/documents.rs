//! What the documents say is there is there.

use std::collections::BTreeSet;
use std::path::Path;

use crate::code::{bare, lines_with_word};
use crate::{files, none, root, text};

const README_LINES: usize = 150;

/// The documents written for people, as paths from the root.
fn documents() -> Vec<std::path::PathBuf> {
    let mut found = files("docs", &[".md"]);
    found.extend(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(Into::into));
    found
}

/// One equation of docs/PAPERS.md.
struct Row {
    line: usize,
    cells: Vec<String>,
}

/// The rows of the tables in docs/PAPERS.md that list equations.
fn equations() -> Vec<Row> {
    rows_of_tables(&["Paper", "Equation", "Function", "Deviations", "Test"])
}

/// The rows of the tables in docs/PAPERS.md with these headings.
fn rows_of_tables(headings: &[&str]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut inside = false;
    for (at, line) in text("docs/PAPERS.md").lines().enumerate() {
        let cells: Vec<String> =
            line.trim().trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        if !line.starts_with('|') {
            inside = false;
        } else if cells[0] == headings[0] {
            assert_eq!(cells, headings, "line {}", at + 1);
            inside = true;
        } else if inside && !cells[0].starts_with('-') && !cells[0].starts_with("|-") {
            rows.push(Row { line: at + 1, cells });
        }
    }
    rows
}

/// The parts of `cell` between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Why `path` (`crate::module::function`) names no function of this repository; none where it does.
fn missing_function(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split("::").collect();
    let [package, modules @ .., name] = parts.as_slice() else {
        return Some(format!("`{path}` is not of the form `crate::module::function`"));
    };
    let package = package.replace('_', "-");
    let folder = if package == "tests" { package } else { format!("crates/{package}") };
    if !root().join(&folder).is_dir() {
        return Some(format!("`{path}`: there is no {folder}"));
    }
    // A module is a file, a folder, or an inline `mod` or `impl` of the file that holds the function.
    let fits = |file: &Path| {
        let code = bare(&text(file));
        let parts: Vec<String> = file
            .with_extension("")
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        !lines_with_word(&code, &format!("fn {name}")).is_empty()
            && modules.iter().all(|module| {
                parts.iter().any(|part| part == module)
                    || ["mod", "impl", "for", ">"]
                        .iter()
                        .any(|word| !lines_with_word(&code, &format!("{word} {module}")).is_empty())
            })
    };
    if files(&folder, &[".rs"]).iter().any(|file| fits(file)) {
        return None;
    }
    Some(format!("`{path}`: no such function"))
}

#[test]
fn every_equation_names_a_function_and_a_test_that_exist() {
    let rows = equations();
    assert!(!rows.is_empty(), "docs/PAPERS.md lists no equation");
    let mut complaints = Vec::new();
    for Row { line, cells } in &rows {
        let mut complain = |what: String| complaints.push(format!("docs/PAPERS.md:{line}: {what}"));
        if cells.len() != 5 || cells.iter().any(String::is_empty) {
            complain(format!("five filled cells are wanted, got {cells:?}"));
            continue;
        }
        for cell in [&cells[2], &cells[4]] {
            let paths = quoted(cell);
            if paths.is_empty() {
                complain(format!("no `crate::module::function` in {cell:?}"));
            }
            paths.into_iter().filter_map(missing_function).for_each(&mut complain);
        }
    }
    none("equations without their function or test", &complaints);
}

#[test]
fn every_subtlety_names_tests_that_exist() {
    let rows = rows_of_tables(&["No.", "What must hold", "Test"]);
    assert!(rows.len() >= 24, "docs/PAPERS.md lists {} subtleties", rows.len());
    let mut complaints = Vec::new();
    for Row { line, cells } in &rows {
        let paths = quoted(&cells[2]);
        assert!(!paths.is_empty(), "docs/PAPERS.md:{line}: no test in {cells:?}");
        let missing = paths.into_iter().filter_map(missing_function);
        complaints.extend(missing.map(|what| format!("docs/PAPERS.md:{line}: {what}")));
    }
    none("subtleties without their tests", &complaints);
}

#[test]
fn a_function_that_is_not_there_is_noticed() {
    assert_eq!(missing_function("tests::tidy::documents::quoted"), None);
    assert_eq!(missing_function("tests::tidy::code::bare"), None);
    for wrong in ["bare", "tests::tidy::code::quoted", "tests::tidy::nothing_here", "no-crate::f"] {
        assert!(missing_function(wrong).is_some(), "{wrong}");
    }
}

/// The arXiv identifiers in `source`, written `arXiv:1707.06347`, `arXiv 1707.06347` or as a link.
fn arxiv_ids(source: &str) -> BTreeSet<String> {
    let lower = source.to_lowercase();
    ["arxiv:", "arxiv ", "arxiv.org/abs/"]
        .iter()
        .flat_map(|mark| lower.split(mark).skip(1))
        .map(|rest| {
            rest.trim_start().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect()
        })
        .map(|id: String| id.trim_end_matches('.').to_owned())
        .filter(|id| id.len() >= 9)
        .collect()
}

#[test]
fn arxiv_ids_are_read_in_every_form() {
    let ids = arxiv_ids(
        "see arXiv:1707.06347, eq. 7, [x](https://arxiv.org/abs/2104.09864). (arXiv 1711.05101)",
    );
    assert_eq!(ids.into_iter().collect::<Vec<_>>(), ["1707.06347", "1711.05101", "2104.09864"]);
}

#[test]
fn papers_cited_in_code_are_listed_and_listed_papers_are_cited() {
    let listed = arxiv_ids(&text("docs/PAPERS.md"));
    let mut cited = BTreeSet::new();
    for path in files("crates", &[".rs", ".cpp", ".h"]) {
        cited.extend(arxiv_ids(&text(&path)));
    }
    let unlisted = cited
        .difference(&listed)
        .map(|id| format!("arXiv:{id} is cited in code, not in docs/PAPERS.md"));
    let uncited = listed
        .difference(&cited)
        .map(|id| format!("arXiv:{id} is in docs/PAPERS.md, cited nowhere in code"));
    none("papers", &unlisted.chain(uncited).collect::<Vec<_>>());
}

#[test]
fn the_readme_is_short() {
    let lines = text("README.md").lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines; {README_LINES} are allowed");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut complaints = Vec::new();
    for document in documents() {
        let folder = document.parent().unwrap().to_path_buf();
        for rest in text(&document).split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap();
            let outside = target.is_empty() || target.contains("://") || target.contains(' ');
            if !outside && !root().join(&folder).join(target).exists() {
                complaints.push(format!("{}: {target}", document.display()));
            }
        }
    }
    none("links that lead nowhere", &complaints);
}

#[test]
fn paths_named_in_documents_exist() {
    const TOPS: &[&str] = &["crates/", "docs/", "scripts/", "configs/", "pipelines/", "tests/"];
    let mut complaints = Vec::new();
    for document in documents() {
        let source = text(&document);
        for path in quoted(&source.replace("```", "")) {
            let plain = path.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
            if plain && TOPS.iter().any(|top| path.starts_with(top)) && !root().join(path).exists()
            {
                complaints.push(format!("{}: {path}", document.display()));
            }
        }
    }
    none("paths that are not there", &complaints);
}

#[test]
fn make_targets_named_in_documents_exist() {
    let phony = |source: &str| -> Vec<String> {
        let lines = source.lines().filter_map(|line| line.strip_prefix(".PHONY: "));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    let mut targets: BTreeSet<String> = phony(&text("Makefile")).into_iter().collect();
    for path in files("pipelines", &[".mk"]) {
        targets.extend(phony(&text(&path)));
        targets.extend(crate::pipelines::stages(&path).into_iter().map(|stage| stage.name));
    }
    let mut complaints = Vec::new();
    for document in documents() {
        let source = text(&document);
        let lines = source.lines().map(str::trim).filter(|line| line.starts_with("make "));
        for command in quoted(&source).into_iter().filter(|it| it.starts_with("make ")).chain(lines)
        {
            let words = command.split('#').next().unwrap().split_whitespace().skip(1);
            for word in
                words.filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
            {
                if !word.starts_with('-') && !targets.contains(word) {
                    complaints
                        .push(format!("{}: `{command}`: no target {word}", document.display()));
                }
            }
        }
    }
    none("make targets that do not exist", &complaints);
}

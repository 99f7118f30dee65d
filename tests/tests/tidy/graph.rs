//! The crate graph: arrows point down only, stages know no stage, and what needs no tensors links no libtorch.

use std::collections::{BTreeMap, BTreeSet};

use toml::Table;

use crate::{files, none, root, text};

/// What each library of the workspace may use. A crate that is not named here is a binary: it may use any library, and
/// nothing may use it.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("artifact", &[]),
    ("browser", &[]),
    ("data", &["artifact"]),
    ("stage", &["artifact"]),
    ("torch-ext", &[]),
    ("objectives", &["torch-ext"]),
    ("model", &["artifact", "torch-ext", "objectives"]),
    ("training", &["artifact", "data", "stage", "torch-ext", "objectives", "model"]),
];

/// Crates that must start without loading libtorch.
const TORCH_FREE: &[&str] = &["artifact", "data", "stage", "data-prep", "report"];

/// The most external dependencies a crate may name.
const MAX_EXTERNAL: usize = 24;

fn manifest(path: &str) -> Table {
    text(path).parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The fuzz targets are a workspace of their own.
const OTHER_WORKSPACE: &str = "tests/fuzz";

/// The manifests of all members, by package name, with the folder each lies in.
fn members() -> BTreeMap<String, (String, Table)> {
    let mut members = BTreeMap::new();
    for path in files("crates", &["Cargo.toml"]).into_iter().chain(files("tests", &["Cargo.toml"]))
    {
        let folder = path.parent().unwrap().to_string_lossy().into_owned();
        if folder == OTHER_WORKSPACE {
            continue;
        }
        let table = manifest(&path.to_string_lossy());
        let name = table["package"]["name"].as_str().unwrap().to_owned();
        members.insert(name, (folder, table));
    }
    members
}

fn dependencies<'a>(manifest: &'a Table, kinds: &[&str]) -> Vec<(&'a str, &'a toml::Value)> {
    let tables = kinds.iter().filter_map(|kind| manifest.get(*kind)?.as_table());
    tables.flatten().map(|(name, value)| (name.as_str(), value)).collect()
}

const ALL_KINDS: &[&str] = &["dependencies", "dev-dependencies", "build-dependencies"];

#[test]
fn arrows_point_down_only() {
    let members = members();
    let mut complaints = Vec::new();
    for (name, _) in LIBRARIES {
        if !members.contains_key(*name) {
            complaints.push(format!("there is no library {name}; take it out of LIBRARIES"));
        }
    }
    for (name, (folder, manifest)) in &members {
        if folder == "tests" {
            continue; // the tests package may look at everything
        }
        let allowed =
            LIBRARIES.iter().find(|(library, _)| library == name).map(|(_, allowed)| *allowed);
        for (dependency, _) in dependencies(manifest, ALL_KINDS) {
            if !members.contains_key(dependency) {
                continue;
            }
            let is_library = LIBRARIES.iter().any(|(library, _)| *library == dependency);
            if !is_library {
                complaints
                    .push(format!("{name} uses the binary {dependency}; nothing may use a stage"));
            } else if allowed.is_some_and(|allowed| !allowed.contains(&dependency)) {
                complaints.push(format!("{name} may not use {dependency}"));
            }
        }
    }
    none("forbidden edges in the crate graph", &complaints);
}

#[test]
fn the_graph_in_architecture_md_is_this_one() {
    let document = text("ARCHITECTURE.md");
    let mut complaints = Vec::new();
    for name in members().keys().filter(|name| *name != "temper-tests") {
        if !document.contains(&format!("`{name}`")) {
            complaints.push(format!("ARCHITECTURE.md does not name the crate `{name}`"));
        }
    }
    none("ARCHITECTURE.md and the crates differ", &complaints);
}

/// What every package of Cargo.lock uses, of any version.
fn locked(lock: &Table) -> BTreeMap<&str, Vec<&str>> {
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let uses = package.get("dependencies").and_then(toml::Value::as_array);
        let uses = uses.into_iter().flatten().map(|name| name.as_str().unwrap());
        // A dependency is "name" or "name version" where there are several.
        let uses = uses.map(|name| name.split(' ').next().unwrap());
        edges.entry(package["name"].as_str().unwrap()).or_default().extend(uses);
    }
    edges
}

#[test]
fn what_needs_no_tensors_links_no_libtorch() {
    let lock = manifest("Cargo.lock");
    let edges = locked(&lock);
    assert!(
        edges.contains_key("torch-sys"),
        "Cargo.lock has no torch-sys: this test looks for the wrong crate"
    );
    for start in TORCH_FREE {
        let (mut reached, mut open) = (BTreeSet::new(), vec![*start]);
        while let Some(name) = open.pop() {
            if reached.insert(name) {
                open.extend(edges.get(name).into_iter().flatten());
            }
        }
        assert!(reached.len() > 1, "{start} is not in Cargo.lock");
        assert!(
            !reached.contains("torch-sys"),
            "{start} reaches torch-sys and so would load libtorch"
        );
    }
}

/// Crates by which a Rust program reaches a network.
const NETWORK: &[&str] = &[
    "hyper",
    "tokio",
    "mio",
    "socket2",
    "ureq",
    "reqwest",
    "curl",
    "rustls",
    "native-tls",
    "openssl",
];
/// `chat serve` listens, and `bench` asks it, both on the addresses that they are given.
const NETWORKED: &[&str] = &["chat", "bench", "temper-tests"];

#[test]
fn nothing_but_the_server_links_a_network() {
    let (lock, members) = (manifest("Cargo.lock"), members());
    let mut edges = locked(&lock);
    // What a member's tests use is not in its program.
    for (name, (_, table)) in &members {
        let used = dependencies(table, &["dependencies"]).into_iter().map(|(name, _)| name);
        let used: Vec<&str> = used.collect();
        edges.insert(name, used);
    }
    let reaches = |start: &str| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![start.to_owned()]);
        while let Some(name) = open.pop() {
            if reached.insert(name.clone()) {
                let next = edges.get(name.as_str()).into_iter().flatten();
                open.extend(next.map(|&name| name.to_owned()));
            }
        }
        reached.into_iter().find(|name| NETWORK.contains(&name.as_str()))
    };
    assert!(reaches("chat").is_some(), "this test looks for the wrong crates");
    let others = members.keys().filter(|name| !NETWORKED.contains(&name.as_str()));
    let complaints: Vec<String> =
        others.filter_map(|name| Some(format!("{name} reaches {}", reaches(name)?))).collect();
    none("only `chat serve` has a network", &complaints);
}

#[test]
fn every_member_takes_versions_and_lints_from_the_workspace() {
    let mut complaints = Vec::new();
    for (name, (folder, manifest)) in members() {
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        if lints.and_then(toml::Value::as_bool) != Some(true) {
            complaints.push(format!("{folder}/Cargo.toml lacks `[lints] workspace = true`"));
        }
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            let inherited = manifest["package"].get(key).and_then(|value| value.get("workspace"));
            if inherited.and_then(toml::Value::as_bool) != Some(true) {
                complaints.push(format!("{folder}/Cargo.toml: write `{key}.workspace = true`"));
            }
        }
        for (dependency, value) in dependencies(&manifest, ALL_KINDS) {
            if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                complaints.push(format!(
                    "{folder}/Cargo.toml: write `{dependency} = {{ workspace = true }}`"
                ));
            }
        }
        if folder != "tests" && folder != format!("crates/{name}") {
            complaints
                .push(format!("{folder}: the package is called {name}; use one name for both"));
        }
    }
    none("member manifests", &complaints);
}

#[test]
fn no_crate_grows_a_long_list_of_dependencies() {
    let members = members();
    let mut complaints = Vec::new();
    for (name, (_, manifest)) in &members {
        let all = dependencies(manifest, &["dependencies", "build-dependencies"]);
        let external = all.iter().filter(|(name, _)| !members.contains_key(*name)).count();
        if external > MAX_EXTERNAL {
            complaints.push(format!(
                "{name} names {external} external crates; {MAX_EXTERNAL} are allowed"
            ));
        }
    }
    none("dependencies", &complaints);
}

#[test]
fn every_pinned_dependency_is_used() {
    let workspace = manifest("Cargo.toml");
    let used: BTreeSet<String> = members()
        .values()
        .flat_map(|(_, manifest)| {
            dependencies(manifest, ALL_KINDS).into_iter().map(|(name, _)| name.to_owned())
        })
        .collect();
    let pinned = workspace["workspace"]["dependencies"].as_table().unwrap();
    let complaints: Vec<String> = pinned
        .keys()
        .filter(|name| !used.contains(*name))
        .map(|name| format!("[workspace.dependencies] pins {name}, which no member uses"))
        .collect();
    none("Cargo.toml", &complaints);
    assert!(root().join("Cargo.lock").exists());
}

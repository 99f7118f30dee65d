use serde_json::json;

use super::*;

fn run(name: &str, reads: &[&str]) -> Run {
    let inputs = reads.iter().map(|maker| Read {
        roles: vec!["model".to_owned()],
        path: format!("runs/p/{maker}"),
        from: Some(format!("p/{maker}")),
        digest: String::new(),
        bytes: None,
        rows: None,
    });
    Run {
        id: format!("p/{name}"),
        pipeline: "p".to_owned(),
        name: name.to_owned(),
        path: format!("nowhere/{name}"),
        stage: None,
        family: "other",
        finished: false,
        facts: Facts::default(),
        inputs: inputs.collect(),
        outputs: Vec::new(),
        results: Vec::new(),
        config: Vec::new(),
        series: Vec::new(),
        samples: None,
        out: Some(format!("runs/p/{name}")),
    }
}

fn names(runs: &[Run]) -> Vec<&str> {
    runs.iter().map(|run| run.name.as_str()).collect()
}

#[test]
fn runs_come_after_what_they_read() {
    let given = vec![run("c", &["a", "b"]), run("d", &[]), run("b", &["a"]), run("a", &[])];
    assert_eq!(names(&in_order(given)), ["d", "a", "b", "c"]);
    let circle = vec![run("x", &["y"]), run("y", &["x"])];
    assert_eq!(names(&in_order(circle)), ["x", "y"]);
}

#[test]
fn the_maker_is_found_where_the_run_was() {
    let runs = [run("sft", &[]), run("sft-long", &[])];
    let places: Vec<Place> = runs.iter().map(Place::of).collect();
    let of = |path: &str, pipeline: &str| maker(&places, pipeline, Path::new(path), "p/other");
    assert_eq!(of("runs/p/sft/model", "p").as_deref(), Some("p/sft"));
    assert_eq!(of("runs/p/sft-long/model", "p").as_deref(), Some("p/sft-long"));
    assert_eq!(of("runs/p/sft/model", "q"), None);
    assert_eq!(of("raw/text.txt", "p"), None);
    assert_eq!(maker(&places, "p", Path::new("runs/p/sft"), "p/sft"), None, "not itself");
}

#[test]
fn runs_of_one_name_are_told_apart() {
    let mut runs = [run("sft", &[]), run("sft", &[]), run("sft", &[])];
    name_apart(&mut runs);
    let ids: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
    assert_eq!(ids, ["p/sft", "p/sft (2)", "p/sft (3)"]);
}

#[test]
fn json_becomes_dotted_keys() {
    let value = json!({
        "a": {"b": 1, "none": null, "empty": {}},
        "list": [1, "둘"],
        "tables": [{"x": true}, {"x": []}],
    });
    let wanted = [
        ("a.b", json!(1)),
        ("a.none", json!(null)),
        ("a.empty", json!({})),
        ("list", json!([1, "둘"])),
        ("tables.0.x", json!(true)),
        ("tables.1.x", json!([])),
    ];
    assert_eq!(flat(&value), wanted.map(|(key, value)| (key.to_owned(), value)));
    assert_eq!(flat(&json!({})), []);
}

//! What the binary writes.

use artifact::Manifest;
use serde_json::json;

use crate::fixture::{HOSTILE, Yard, data};

const QUICK: &str = "quick = [\"runs/quick\"]";

#[test]
fn the_page_has_every_run_in_the_order_of_what_they_read() {
    let yard = Yard::quick();
    let page = yard.page(QUICK);
    let data = data(&page);
    let names: Vec<&str> =
        data["runs"].as_array().unwrap().iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["data-prep", "pretrain", "sft", "peft", "evaluate", "ppo"]);
    let sft = &data["runs"][2];
    assert_eq!(sft["inputs"][0]["from"], "quick/pretrain");
    assert_eq!(sft["inputs"][1]["from"], "quick/data-prep");
    assert_eq!(sft["inputs"][1]["rows"], 12);
    assert_eq!(sft["facts"]["seconds"], 61.111);
    assert_eq!(sft["facts"]["parameters"], 3_400_000);
    assert_eq!(data["runs"][3]["facts"]["trainable_parameters"], 68_000);
    assert_eq!(data["evaluations"][0]["makers"]["peft"], "quick/peft");
    assert_eq!(data["evaluations"][0]["answers"]["totals"]["tasks"], 30);
    let manifest = Manifest::read(yard.path("out")).unwrap();
    assert_eq!(manifest.results["runs"], 6);
    let roles: Vec<&str> = manifest.inputs.iter().map(|input| input.role.as_str()).collect();
    assert_eq!(roles.iter().filter(|role| **role == "run").count(), 6);
    assert!(roles.contains(&"results") && roles.contains(&"samples"), "{roles:?}");
}

#[test]
fn the_same_runs_give_the_same_bytes() {
    let yard = Yard::quick();
    let first = fs_err::read(yard.page(QUICK)).unwrap();
    let second = yard.report(&["--out", "again"]);
    assert_eq!(second.code, 0, "{}", second.stderr);
    assert!(second.stdout.contains("the report is again/report.html ("), "{}", second.stdout);
    assert!(first == fs_err::read(yard.path("again/report.html")).unwrap());
    assert!(first.len() < 1 << 20, "{} bytes", first.len());
}

#[test]
fn hostile_text_stays_text() {
    let yard = Yard::quick();
    let page = yard.page(QUICK);
    let html = fs_err::read_to_string(&page).unwrap();
    assert!(!html.contains("<img") && html.contains("<title>시험 &amp; &lt;test&gt;</title>"));
    let data = data(&page);
    let asked = data["evaluations"][0]["answers"]["asked"].as_array().unwrap();
    assert_eq!(asked[7]["prompt"], HOSTILE);
    assert_eq!(data["runs"][3]["samples"]["rows"][0][1], HOSTILE);
}

#[test]
fn an_unfinished_run_alone_is_shown_with_what_it_logged() {
    let yard = Yard::unfinished();
    let data = data(&yard.page("p = [\"runs/p\"]"));
    let run = &data["runs"][0];
    assert_eq!((&run["finished"], &run["stage"]), (&json!(false), &json!(null)));
    assert_eq!(run["facts"]["steps"], 10);
    assert_eq!(run["config"][2], json!(["train.learning_rate", 0.25]));
    assert_eq!(run["series"][0]["points"][9], json!([10.0, 0.4]));
    assert_eq!(data["evaluations"], json!([]));
}

#[test]
fn long_curves_and_many_prompts_are_thinned() {
    let yard = Yard::quick();
    yard.config(QUICK);
    let limits = ["--set", "max_points=5", "--set", "max_prompts=4", "--set", "max_samples=1"];
    let ran = yard.report(&limits);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let data = data(&yard.path("out/report.html"));
    let loss = &data["runs"][1]["series"][0];
    assert_eq!((loss["logged"].as_u64(), loss["points"].as_array().unwrap().len()), (Some(40), 5));
    assert_eq!((&loss["points"][0], &loss["points"][4]), (&json!([1.0, 4.0]), &json!([40.0, 0.1])));
    assert_eq!(data["evaluations"][0]["answers"]["asked"].as_array().unwrap().len(), 4);
    let samples = &data["runs"][3]["samples"];
    assert_eq!(
        (samples["total"].as_u64(), samples["rows"].as_array().unwrap().len()),
        (Some(3), 1)
    );
}

#[test]
fn moved_runs_of_two_pipelines_keep_their_own_makers() {
    let yard = Yard::quick();
    fs_err::rename(yard.path("runs/quick"), yard.path("old")).unwrap();
    yard.pipeline("quick", 1e-2, true);
    let data = data(&yard.page("old = [\"old\"]\nnew = [\"runs/quick\"]"));
    assert_eq!(data["pipelines"], json!(["old", "new"]));
    for run in data["runs"].as_array().unwrap() {
        for input in run["inputs"].as_array().unwrap() {
            let from = input["from"].as_str().unwrap();
            assert!(from.starts_with(run["pipeline"].as_str().unwrap()), "{from} of {}", run["id"]);
        }
    }
}

#[test]
fn a_check_names_the_runs_and_writes_nothing() {
    let yard = Yard::new();
    yard.pipeline("quick", 1e-3, false);
    yard.config(QUICK);
    let ran = yard.report(&["--check"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("quick  runs/quick/sft  finished"), "{}", ran.stdout);
    assert!(ran.stdout.contains("quick  runs/quick/ppo  unfinished"), "{}", ran.stdout);
    assert!(!yard.path("out").exists());
}

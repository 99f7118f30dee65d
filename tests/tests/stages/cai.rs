//! Constitutional AI: what its three commands leave, that the files fit together, and what they refuse.

use artifact::pairs::PairReader;
use artifact::rows::Kind;
use artifact::tokens::TokenReader;

use super::bad_input::edit;
use super::*;

fn column(name: &str, kind: Kind) -> Column {
    Column::optional(name, kind)
}

/// Texts of the columns of a table; `None` where there is none.
fn texts(path: &Path, names: &[&str]) -> Vec<Vec<Option<String>>> {
    let columns: Vec<Column> = names.iter().map(|name| column(name, Kind::Text)).collect();
    let texts = |row: Vec<Cell>| row.into_iter().map(Cell::into_text).collect();
    rows(path, &columns).into_iter().map(texts).collect()
}

#[test]
fn revisions_have_all_that_was_said() {
    let run = FINISHED.join("cai-generate");
    assert_eq!(json(&run.join("manifest.json"))["stage"], "cai generate");
    assert_eq!(roles(&run), ["model", "constitution", "prompts"]);
    let prompts =
        artifact::prompts::read(FINISHED.join("data/data/requests/train-prompts.parquet")).unwrap();
    let names = [
        "prompt",
        "initial",
        "final",
        "stopped",
        "language",
        "principle_1",
        "critique_1",
        "revision_1",
        "principle_2",
        "critique_2",
        "revision_2",
    ];
    let rows = texts(&run.join("data/revisions.parquet"), &names);
    assert_eq!(rows.len(), prompts.len());
    for (row, prompt) in rows.iter().zip(&prompts) {
        let of =
            |name: &str| row[names.iter().position(|known| *known == name).unwrap()].as_deref();
        assert!(prompt.prompt.contains(of("prompt").unwrap()), "{row:?}");
        let korean = of("prompt").unwrap().contains("번 자리");
        assert_eq!(of("language"), Some(if korean { "ko" } else { "en" }));
        assert!(["harm", "truth"].contains(&of("principle_1").unwrap()));
        let last = of("revision_2").or(of("revision_1")).or(of("initial"));
        assert_eq!(of("final"), last);
        let stops = ["no problem found", "all rounds held", "no room left", "blank revision"];
        assert!(stops.contains(&of("stopped").unwrap()), "{row:?}");
        assert_eq!(of("stopped") == Some("all rounds held"), of("revision_2").is_some(), "{row:?}");
    }
    let found = results(&run);
    let trained_on = TokenReader::open(run.join("data/revised/train.parquet")).unwrap();
    assert_eq!(found["rows"], trained_on.num_rows());
    let left_out: u64 =
        found["rows_left_out"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    let revisions = rows.iter().flat_map(|row| [&row[7], &row[10]]).flatten().count() as u64;
    assert_eq!(trained_on.num_rows() + left_out, revisions, "{found}");
}

#[test]
fn training_mixes_and_compares() {
    let run = FINISHED.join("cai-train");
    assert_eq!(roles(&run), ["model", "train", "train", "prompts", "prompts", "constitution"]);
    let found = results(&run);
    let revised =
        TokenReader::open(FINISHED.join("cai-generate/data/revised/train.parquet")).unwrap();
    assert_eq!(found["revision_rows"], revised.num_rows());
    assert_eq!(found["helpful_rows"], revised.num_rows(), "half of all rows");
    let mixed = TokenReader::open(run.join("data/mixed/train.parquet")).unwrap();
    assert_eq!(mixed.num_rows(), 2 * revised.num_rows());
    for side in ["before", "after"] {
        for rate in [
            "harmful_rate",
            "unsafe_accuracy",
            "over_refusal_rate",
            "helpful_accuracy",
            "helpful_refusal_rate",
            "ended",
        ] {
            let rate = found[side][rate].as_f64().unwrap_or_else(|| panic!("{rate} in {found}"));
            assert!((0.0..=1.0).contains(&rate), "{found}");
        }
    }
    let answers = texts(&run.join("samples.parquet"), &["prompt", "before", "after"]);
    let changed = answers.iter().filter(|row| row[1] != row[2]).count();
    assert_eq!(found["changed_answers"], changed);
    assert!(changed > 0 && answers.len() == 32, "{}", answers.len());
    let said = Stage::new("chat", &FINISHED).args([
        "--model",
        "cai-train",
        "--device",
        "cpu",
        "--prompt",
        "Who was at place 3?",
        "--max-new-tokens",
        "8",
    ]);
    said.succeed().unwrap();
}

#[test]
fn labels_are_soft_and_train_a_reward_model() {
    let run = FINISHED.join("cai-label");
    assert_eq!(roles(&run), ["model", "feedback", "constitution", "prompts"]);
    let columns = [
        column("response_a", Kind::Text),
        column("response_b", Kind::Text),
        column("probability", Kind::Float64),
        column("principles", Kind::Text),
    ];
    let all = rows(&run.join("data/labels.parquet"), &columns);
    let mut labelled = 0;
    for row in &all {
        let same =
            row[0] == row[1] || [&row[0], &row[1]].iter().any(|text| text.as_text() == Some(""));
        assert_eq!(row[2] == Cell::Null, same, "{row:?}");
        if let Some(probability) = row[2].as_f64() {
            assert!((0.0..=1.0).contains(&probability));
            assert_eq!(row[3].as_text(), Some("harm truth"));
            labelled += 1;
        }
    }
    assert!(labelled > 10, "{labelled} of {}", all.len());
    assert_eq!(results(&run)["labelled"], labelled);
    let mut soft = 0;
    let mut pairs = 0;
    for split in ["train", "validation"] {
        let reader =
            PairReader::open(run.join(format!("data/preferences/{split}.parquet"))).unwrap();
        for group in 0..reader.num_row_groups() {
            let rows = reader.read_row_group(group).unwrap();
            for index in 0..rows.len() {
                let probability = rows.row(index).probability.unwrap();
                assert!((0.5..=1.0).contains(&probability), "the chosen one is the likelier");
                soft += u64::from(probability < 1.0);
                pairs += 1;
            }
        }
        assert!(pairs > 0, "{split}");
    }
    assert!(soft > 0);
    let settings = [
        "model.path=cai-train",
        "data.train=[\"cai-label/data/preferences/train.parquet\"]",
        "data.validation=[\"cai-label/data/preferences/validation.parquet\"]",
        "train.steps=3",
    ];
    let yard = yard(&["data", "sft", "cai-train", "cai-label"]);
    stage("reward", yard.path()).args(sets(&settings)).succeed().unwrap();
}

#[test]
fn thoughts_come_before_the_verdict_and_labels_are_clamped() {
    let yard = yard(&["data", "sft", "cai-train"]);
    let settings = [
        "label.reasoning={temperature=1.0,max_new_tokens=8}",
        "label.clamp=[0.49999,0.50001]",
        "label.principles_per_pair=1",
    ];
    stage("cai label", yard.path())
        .args(sets(&settings))
        .args(["--out", "thought"])
        .succeed()
        .unwrap();
    let labels = |run: &Path| -> Vec<f64> {
        let columns = [column("probability", Kind::Float64)];
        let all = rows(&run.join("data/labels.parquet"), &columns);
        all.iter().filter_map(|row| row[0].as_f64()).collect()
    };
    let (thought, plain) =
        (labels(&yard.path().join("thought")), labels(&FINISHED.join("cai-label")));
    assert!(thought.iter().all(|label| (0.49999..=0.50001).contains(label)), "{thought:?}");
    assert!(plain.iter().any(|label| !(0.49999..=0.50001).contains(label)));
}

#[test]
fn a_reward_model_compares_too() {
    let yard = yard(&["data", "sft", "reward", "cai-generate"]);
    let settings = ["eval.reward_model=\"reward\"", "train.steps=4"];
    stage("cai train", yard.path()).args(sets(&settings)).succeed().unwrap();
    let found = results(&yard.path().join("cai-train"));
    let scores = ["before", "after"].map(|side| found[side]["mean_score"].as_f64().unwrap());
    assert!(scores.iter().all(|score| score.is_finite()) && scores[0] != scores[1], "{scores:?}");
    assert!(results(&FINISHED.join("cai-train"))["before"].get("mean_score").is_none());
}

#[test]
fn the_second_answer_may_be_another_models() {
    let yard = yard(&["data", "sft", "cai-train"]);
    let settings = ["second={path=\"sft\"}"];
    stage("cai label", yard.path()).args(sets(&settings)).args(["--out", "two"]).succeed().unwrap();
    let run = yard.path().join("two");
    assert_eq!(roles(&run), ["model", "feedback", "second", "constitution", "prompts"]);
    let both = |run: &Path| texts(&run.join("data/labels.parquet"), &["response_a", "response_b"]);
    let (alone, two) = (both(&FINISHED.join("cai-label")), both(&run));
    let column = |rows: &[Vec<Option<String>>], at: usize| -> Vec<Option<String>> {
        rows.iter().map(|row| row[at].clone()).collect()
    };
    assert_eq!(column(&alone, 0), column(&two, 0), "the first answers are the model's in both");
    assert_ne!(column(&alone, 1), column(&two, 1));
}

#[test]
fn demonstrations_and_another_critic_change_what_is_said() {
    let yard = yard(&["data", "sft", "pretrain"]);
    let dir = yard.path();
    for (run, settings) in [
        ("plain", &[][..]),
        ("shown", &["generate.examples=1"][..]),
        ("direct", &["generate.critique=false"][..]),
        ("other", &["critic={path=\"pretrain\",tokenizer=\"sft\"}"][..]),
    ] {
        stage("cai generate", dir).args(["--out", run]).args(sets(settings)).succeed().unwrap();
    }
    let revisions = |run: &str| {
        texts(
            &dir.join(run).join("data/revisions.parquet"),
            &["initial", "critique_1", "revision_1"],
        )
    };
    let initial =
        |run: &str| revisions(run).into_iter().map(|row| row[0].clone()).collect::<Vec<_>>();
    for other in ["shown", "direct", "other"] {
        assert_eq!(initial(other), initial("plain"), "the first answers are the policy's alone");
        assert_ne!(revisions(other), revisions("plain"), "{other}");
    }
    assert!(revisions("direct").iter().all(|row| row[1].is_none()));
}

#[test]
fn another_config_does_not_go_on_where_one_was_killed() {
    let yard = yard(&["data", "sft"]);
    let dir = yard.path();
    let small = ["generate.batch_prompts=1"];
    let running = stage("cai generate", dir).args(sets(&small)).start().unwrap();
    let mut running = running;
    let run = dir.join("cai-generate");
    assert!(running.wait_until(|| checkpoints(&run) > 3).unwrap(), "it ended too soon");
    running.kill().unwrap();
    let other = [small[0], "generate.rounds=1"];
    stage("cai generate", dir)
        .args(sets(&other))
        .fail(
            2,
            &[
                "basis.json: made with another config (then -> now)",
                "generate.rounds: 2 -> 1",
                "--resume never",
            ],
        )
        .unwrap();
    let end = stage("cai generate", dir).args(sets(&small)).succeed().unwrap();
    assert!(end.stderr.contains("goes on from cai-generate/checkpoints, "), "{end}");
    let fresh = FINISHED.join("cai-generate/data/revisions.parquet");
    assert!(
        fs_err::read(run.join("data/revisions.parquet")).unwrap() == fs_err::read(fresh).unwrap()
    );
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let yard = yard(&["data", "sft", "pretrain", "reward", "cai-generate"]);
    let dir = yard.path();
    let refused = |name: &str, settings: &[&str], parts: &[&str]| {
        stage(name, dir).args(sets(settings)).fail(2, parts).unwrap();
    };
    edit(dir, "constitution.toml", "[[principles]]", "[[principels]]");
    refused("cai generate", &[], &["constitution.toml", "principels"]);
    fs_err::write(dir.join("constitution.toml"), "name = \"x\"\nno_problem = { en = [\"x\"], ko = [\"x\"] }\nrefusals = { en = [\"x\"], ko = [\"x\"] }\n").unwrap();
    refused("cai generate", &[], &["it has no principles"]);
    let template = CONSTITUTION.replace(
        "[[principles]]\nid = \"harm\"",
        "[templates]\ncritique = { en = \"{{ answer }}\", ko = \"{{ request }}\" }\n[[principles]]\nid = \"harm\"",
    );
    fs_err::write(dir.join("constitution.toml"), template).unwrap();
    refused("cai generate", &[], &["templates.critique.en", "`answer`", "request"]);
    fs_err::write(dir.join("constitution.toml"), CONSTITUTION).unwrap();
    refused("cai generate", &["model.path=reward"], &["model.path", "language"]);
    refused(
        "cai generate",
        &["constitution.tags=[\"kind\"]"],
        &["constitution.tags", "kind", "harmless"],
    );
    refused(
        "cai generate",
        &["generate.examples=2"],
        &["generate.examples: is 2, but the constitution has 1"],
    );
    refused(
        "cai generate",
        &["generate.initial={temperature=1.0,max_new_tokens=126}"],
        &[
            "train-prompts.parquet: row 0: a prompt of",
            "128 positions",
            "prompts.overlong = \"skip\"",
        ],
    );
    refused("cai generate", &["prompts.files=[]"], &["prompts.files: names no file"]);
    refused(
        "cai train",
        &["mix.helpful_share=1.0"],
        &["mix.helpful_share: must be at least 0 and below 1, got 1"],
    );
    refused(
        "cai train",
        &["mix.helpful=[]"],
        &["mix.helpful_share: goes together with mix.helpful"],
    );
    refused("cai train", &["eval.reward_model=\"sft\""], &["eval.reward_model"]);
    refused(
        "cai train",
        &["mix.revisions=[\"data/data/text/none.parquet\"]"],
        &["mix.revisions", "none.parquet"],
    );
    Stage::new("cai", dir).fail(2, &["a command is missing"]).unwrap();
    Stage::new("cai", dir).args(["revise"]).fail(2, &["there is no command `revise`"]).unwrap();
}

#[test]
fn principles_of_others_become_a_constitution() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("principles.json");
    fs_err::write(&path, r#"{"constitutions": [{"critic": "Any harm?", "revision": "Mend it."}]}"#)
        .unwrap();
    let import = |output: &str| {
        Stage::new("cai", dir.path()).args([
            "import",
            "--input",
            "principles.json",
            "--output",
            output,
        ])
    };
    let done = import("mine.toml").succeed().unwrap();
    assert!(done.stdout.contains("1 principles in mine.toml"), "{done}");
    let text = fs_err::read_to_string(dir.path().join("mine.toml")).unwrap();
    assert!(text.contains("Any harm?") && text.contains("[[principles]]"), "{text}");
    import("mine.toml").fail(2, &["exists already"]).unwrap();
    fs_err::write(&path, "[1]").unwrap();
    import("other.toml").fail(2, &["principles.json"]).unwrap();
    assert!(!dir.path().join("other.toml").exists());
}

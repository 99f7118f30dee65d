//! Generated data that is made with a constitution.

use artifact::prompts;

use super::*;

const CONFIG: &str = r#"
seed = 1
out = "run"
preview_rows = 0
[tokenizer.train]
vocab_size = 300
[datasets.turns]
kind = "chat"
max_length = 1024
split_field = "split"
[datasets.turns.world]
seed = 7
part = "critiques"
records = 300
held_out = 40
constitution = "mine.toml"
"#;

fn shipped() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(root.join("configs/constitution.toml")).unwrap()
}

#[test]
fn the_constitution_is_an_input_and_its_words_are_in_the_data() {
    let yard = Yard::new();
    // The world itself does not say "the answer".
    yard.write("mine.toml", shipped().replace("the answer", "that reply"));
    yard.prepare(CONFIG);
    let text = fs::read_to_string(yard.path("run/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let inputs = manifest["inputs"].as_array().unwrap();
    let named: Vec<[&str; 2]> = inputs
        .iter()
        .map(|input| ["role", "path"].map(|key| input[key].as_str().unwrap()))
        .collect();
    assert_eq!(named, [["datasets.turns.constitution", "mine.toml"]]);
    assert_eq!(yard.results("run")["datasets"]["turns"]["records_kept"], 340);
    let held_out = prompts::read(yard.path("run/data/turns/prompts.parquet")).unwrap();
    assert_eq!(held_out.len(), 40);
    let has = |words: &str| held_out.iter().any(|row| row.prompt.contains(words));
    assert!(has("that reply") && !has("the answer"));
}

#[test]
fn a_constitution_that_cannot_be_used_is_a_problem_of_the_config() {
    let problem = |constitution: Option<&str>, config: &str| {
        let yard = Yard::new();
        if let Some(text) = constitution {
            yard.write("mine.toml", text);
        }
        yard.write("config.toml", config);
        let ran = yard.run(&["--check"]);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        let line = ran.stderr.lines().find(|line| line.contains("datasets.turns.world"));
        line.unwrap_or_else(|| panic!("{}", ran.stderr)).to_owned()
    };
    let line = problem(None, CONFIG);
    assert!(line.contains("mine.toml"), "{line}");
    let line = problem(Some("name = \"x\"\nno_problem = 1"), CONFIG);
    assert!(line.contains("datasets.turns.world: mine.toml: line 2: "), "{line}");
    let line = problem(Some(&shipped()), &format!("{CONFIG}tags = [\"kind\"]\n"));
    assert!(
        line.ends_with(
            "datasets.turns.world: world.tags: mine.toml: no principle has the tag `kind`; \
             there are courteous, fair, harmless, helpful, truthful"
        ),
        "{line}"
    );
    let line = problem(Some(&shipped()), &CONFIG.replace("critiques", "obedience"));
    assert!(line.contains("leave it out for the obedience part"), "{line}");
}

#[test]
fn a_template_that_fails_names_file_key_and_record() {
    let yard = Yard::new();
    let request = "critique = { en = \"{{ request }}\", ko = \"{{ request }}\" }";
    assert!(shipped().contains(request));
    let fails = "critique = { en = \"{{ request }}{% if '?' in prompt %}{{ prompt.x }}{% endif %}\", ko = \"x\" }";
    yard.write("mine.toml", shipped().replace(request, fails));
    yard.write("config.toml", CONFIG);
    let ran = yard.run(&[]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let words = "mine.toml: templates.critique.en: fails: undefined value (line 1)";
    assert!(ran.stderr.contains(words) && ran.stderr.contains("<world>:"), "{}", ran.stderr);
}

use serde::Deserialize;

use super::*;
use crate::error::{exit_code, report};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    seed: u64,
    out: PathBuf,
    model: PathBuf,
    #[serde(default)]
    limits: Vec<Limit>,
    schedule: Schedule,
    ppo: Ppo,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    tokens: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Schedule {
    Constant {},
    Cosine { warmup_steps: u64 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ppo {
    kl_coef: f64,
    #[serde(default = "lambda")]
    gae_lambda: f64,
    clip_range: Option<f64>,
    value_coef: Option<f64>,
}

fn lambda() -> f64 {
    0.95
}

struct Nothing;

impl Describe for Nothing {
    fn describe(&self, _processes: usize) -> String {
        String::new()
    }
}

impl StageConfig for Config {
    type Plan = Nothing;

    fn plan(self, _at: &Paths) -> Result<Nothing, Problems> {
        Ok(Nothing)
    }
}

/// Line 14 is the first of `[ppo]`.
const GOOD: &str = "\
# 작은 PPO
seed = 7
out = \"runs/tiny/ppo\"
model = \"runs/tiny/sft\"

[[limits]]
tokens = 100

[schedule.cosine]
warmup_steps = 10


[ppo]
kl_coef = 0.05
";

fn load_text(text: &str, sets: &[&str]) -> anyhow::Result<Loaded<Config>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.toml");
    fs_err::write(&path, text).unwrap();
    let overrides: Vec<_> = sets.iter().map(|set| Override::parse(set).unwrap()).collect();
    load("ppo", &path, &overrides)
}

/// The report of a failure, with the file's path as in a repository.
fn fails(text: &str, sets: &[&str]) -> String {
    let error = load_text(text, sets).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    let text = report(&error);
    let first = text.lines().next().unwrap();
    assert!(first.starts_with("error: cannot load /"), "{text}");
    text.replace(first, "error: cannot load configs/ppo/tiny.toml")
}

#[test]
fn a_good_file_gives_values_defaults_and_common_keys() {
    let loaded = load_text(GOOD, &[]).unwrap();
    assert_eq!(loaded.seed, 7);
    assert_eq!(loaded.out, Path::new("runs/tiny/ppo"));
    assert_eq!(loaded.config.ppo.kl_coef.to_bits(), 0.05_f64.to_bits());
    // Defaults are written out; absent options stay absent; reading it again changes nothing.
    let toml = loaded.to_toml().unwrap();
    assert!(toml.contains("gae_lambda = 0.95") && !toml.contains("clip_range"), "{toml}");
    let again = load_text(&toml, &[]).unwrap();
    assert_eq!(again.config, loaded.config);
    assert_eq!(again.to_toml().unwrap(), toml);
}

#[test]
fn an_unknown_key_shows_its_line_and_the_nearest_names() {
    insta::assert_snapshot!(fails(&GOOD.replace("kl_coef =", "kl_coeff ="), &[]), @r"
    error: cannot load configs/ppo/tiny.toml
      caused by: TOML parse error at line 14, column 1
         14 | kl_coeff = 0.05
            | ^^^^^^^^
         unknown field `kl_coeff`, expected one of `kl_coef`, `gae_lambda`, `clip_range`, `value_coef`
    hint: did you mean `kl_coef`?
    hint: `ppo --check --config ...` validates without loading weights
    ");
}

#[test]
fn the_other_mistakes_in_a_file_show_their_line_too() {
    // Of another type, after text that is wider in bytes than in columns.
    insta::assert_snapshot!(fails(&GOOD.replace("[ppo]\nkl_coef = 0.05", "[ppo]\nkl_coef = \"조금\""), &[]), @r#"
    error: cannot load configs/ppo/tiny.toml
      caused by: TOML parse error at line 14, column 11
         14 | kl_coef = "조금"
            |           ^^^^
         invalid type: string "조금", expected f64
    hint: `ppo --check --config ...` validates without loading weights
    "#);
    // A missing key points at its table.
    insta::assert_snapshot!(fails(&GOOD.replace("kl_coef = 0.05", ""), &[]), @r"
    error: cannot load configs/ppo/tiny.toml
      caused by: TOML parse error at line 13, column 1
         13 | [ppo]
            | ^^^^^
         missing field `kl_coef`
    hint: `ppo --check --config ...` validates without loading weights
    ");
    // An unknown variant.
    insta::assert_snapshot!(fails(&GOOD.replace("schedule.cosine", "schedule.cosin"), &[]), @r"
    error: cannot load configs/ppo/tiny.toml
      caused by: TOML parse error at line 9, column 11
         9 | [schedule.cosin]
           |           ^^^^^
         unknown variant `cosin`, expected `constant` or `cosine`
    hint: did you mean `cosine`?
    hint: `ppo --check --config ...` validates without loading weights
    ");
    // Not TOML.
    insta::assert_snapshot!(fails(&GOOD.replace("seed = 7", "seed = 7 8"), &[]), @r"
    error: cannot load configs/ppo/tiny.toml
      caused by: TOML parse error at line 2, column 8
         2 | seed = 7 8
           |        ^^^
         string values must be quoted, expected literal string
    hint: `ppo --check --config ...` validates without loading weights
    ");
    // Negative where it cannot be.
    insta::assert_snapshot!(fails(&GOOD.replace("seed = 7", "seed = -7"), &[]), @r"
    error: cannot load configs/ppo/tiny.toml
      caused by: TOML parse error at line 2, column 8
         2 | seed = -7
           |        ^^
         invalid value: integer `-7`, expected u64
    hint: `ppo --check --config ...` validates without loading weights
    ");
}

#[test]
fn a_missing_file_is_named_with_the_flag_that_gives_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.toml");
    let error = load::<Config>("ppo", &path, &[]).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    let text = report(&error).replace(&path.display().to_string(), "configs/none.toml");
    insta::assert_snapshot!(text, @r"
    error: cannot load configs/none.toml
      caused by: failed to open file `configs/none.toml`: No such file or directory (os error 2)
    hint: give another file with --config; the ones that come with temper are in configs/
    hint: `ppo --check --config ...` validates without loading weights
    ");
}

#[test]
fn overrides_set_values_of_every_kind() {
    let sets = [
        "ppo.kl_coef=3e-5",
        "ppo.clip_range = 0.2",
        "model=runs/다른 모델",
        "limits.0.tokens=5",
        "schedule={constant = {}}",
        "seed=9",
        "out=\"123\"",
    ];
    let config = load_text(GOOD, &sets).unwrap().config;
    assert_eq!(config.ppo.kl_coef.to_bits(), 3e-5_f64.to_bits());
    assert_eq!(config.ppo.clip_range, Some(0.2));
    assert_eq!(config.model, Path::new("runs/다른 모델"));
    assert_eq!(config.limits, [Limit { tokens: 5 }]);
    assert_eq!(config.schedule, Schedule::Constant {});
    assert_eq!((config.seed, config.out), (9, "123".into()));
}

#[test]
fn an_override_may_complete_or_mend_the_file() {
    let without = GOOD.replace("kl_coef = 0.05", "");
    assert!(load_text(&without, &["ppo.kl_coef=1.0"]).is_ok());
    assert!(
        load_text(&GOOD.replace("seed = 7", "seed = -7"), &["seed=3", "ppo.value_coef=1"]).is_ok()
    );
}

#[test]
fn an_override_to_blame_is_cited() {
    insta::assert_snapshot!(fails(GOOD, &["seed=1", "ppo.kl_coef=abc", "seed=2"]), @r#"
    error: cannot load configs/ppo/tiny.toml
      caused by: --set ppo.kl_coef=abc: invalid type: string "abc", expected f64
    hint: `ppo --check --config ...` validates without loading weights
    "#);
    insta::assert_snapshot!(fails(GOOD, &["ppo.gae_lamda=0.9"]), @r"
    error: cannot load configs/ppo/tiny.toml
      caused by: --set ppo.gae_lamda=0.9: unknown field `gae_lamda`, expected one of `kl_coef`, `gae_lambda`, `clip_range`, `value_coef`
    hint: did you mean `gae_lambda`?
    hint: `ppo --check --config ...` validates without loading weights
    ");
    insta::assert_snapshot!(fails(GOOD, &["out=12"]), @r#"
    error: cannot load configs/ppo/tiny.toml
      caused by: --set out=12: invalid type: integer `12`, expected path string
    hint: text that looks like a number or a truth value needs quotes: --set 'out="..."'
    hint: `ppo --check --config ...` validates without loading weights
    "#);
    insta::assert_snapshot!(fails(GOOD, &["seed.a=1"]), @r"
    error: cannot load configs/ppo/tiny.toml
      caused by: --set seed.a=1: `seed` is an integer and has no key `a`
    hint: `ppo --check --config ...` validates without loading weights
    ");
    insta::assert_snapshot!(fails(GOOD, &["limits.1.tokens=1"]), @r"
    error: cannot load configs/ppo/tiny.toml
      caused by: --set limits.1.tokens=1: `limits` is a list of 1; `1` is not an index into it (the first is 0)
    hint: `ppo --check --config ...` validates without loading weights
    ");
}

#[test]
fn a_fault_of_the_file_stays_the_files_whatever_is_set() {
    let text = fails(&GOOD.replace("kl_coef =", "kl_coeff ="), &["seed=1"]);
    assert!(text.contains("at line 14, column 1") && !text.contains("--set"), "{text}");
}

#[test]
fn changes_leave_out_where_the_run_goes() {
    let json = |sets: &[&str]| load_text(GOOD, sets).unwrap().to_json().unwrap();
    let base = json(&[]);
    assert!(changes(&base, &json(&["out=elsewhere"])).is_empty());
    let other =
        json(&["ppo.kl_coef=0.1", "ppo.clip_range=0.2", "schedule={constant = {}}", "limits=[]"]);
    assert_eq!(
        changes(&base, &other),
        [
            "limits: [{\"tokens\":100}] -> []",
            "schedule.cosine: {\"warmup_steps\":10} -> (absent)",
            "schedule.constant: (absent) -> {}",
            "ppo.kl_coef: 0.05 -> 0.1",
            "ppo.clip_range: (absent) -> 0.2",
        ]
    );
}

//! The commands over a small random model: what they must keep, whatever it says.

use std::path::Path;

use artifact::RunDir;
use artifact::prompts::{self, PromptRow};
use data::constitution::Constitution;
use data::tokenizer::{BpeOptions, Tokenizer};
use model::{Decoder, Head, LoadOptions, ModelConfig, Precision};
use serde_json::json;
use stage::{Context, DeviceSpec, Paths, StageConfig};

use crate::generate::rounds::Stopped;
use crate::generate::{self, talks};
use crate::label::judge::{Judge, letters};
use crate::label::pairs::Pair;
use crate::label::{self};
use crate::parts::Parts;
use crate::speaker::{ModelTable, Source};
use crate::train::mix::times;

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}\
    {% generation %}{% endgeneration %}<|end|>{% else %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

const CONSTITUTION: &str = r#"
name = "small"
no_problem = { en = ["a", "e", "o", "s", "t", "u", "w", "one"], ko = ["이", "만"] }
refusals = { en = ["no"], ko = ["아니"] }
[[principles]]
id = "one"
tags = ["harmless"]
critique = { en = "Any harm?", ko = "해가 있나요?" }
revision = { en = "Rewrite it.", ko = "고쳐 주세요." }
comparison = { en = "Which is better?", ko = "어느 것이 좋나요?" }
[[principles]]
id = "two"
tags = ["harmless"]
critique = { en = "A lie?", ko = "거짓인가요?" }
revision = { en = "Say it truly.", ko = "바르게 말하세요." }
comparison = { en = "Which is true?", ko = "어느 것이 참인가요?" }
"#;

struct Yard(tempfile::TempDir);

impl Yard {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let texts = [
            "say one or two, please",
            "하나만 말해 주세요",
            "Which is better? (A) (B) The answer is (A)",
            "답은 (B)",
            "QA QB QA QB QA QB QA QB QA QB QA QB",
        ];
        let options = BpeOptions { vocab_size: 320, ..BpeOptions::default() };
        let mut tokenizer =
            Tokenizer::train_bpe(texts.map(str::to_owned).into_iter(), &options).unwrap();
        if tokenizer.chat_template().is_none() {
            tokenizer.set_chat_template(TEMPLATE);
        }
        let config = json!({
            "model_type": "llama", "vocab_size": tokenizer.vocab_size(), "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 320, "initializer_range": 0.3,
        });
        let mut config = ModelConfig::from_json(&config).unwrap();
        config.set_head(Head::LanguageModel);
        let decoder = Decoder::init(&config, 7, &LoadOptions::default()).unwrap();
        decoder.save(&dir.path().join("model"), Precision::Fp32, u64::MAX).unwrap();
        tokenizer.save(dir.path().join("model")).unwrap();
        fs_err::write(dir.path().join("c.toml"), CONSTITUTION).unwrap();
        let yard = Self(dir);
        yard.prompts(&[
            "say one",
            "say two",
            "하나만 말해요",
            "둘만 말해요",
            "please",
            "one or two",
        ]);
        yard
    }

    fn prompts(&self, texts: &[&str]) {
        let rows: Vec<PromptRow> = texts
            .iter()
            .map(|text| PromptRow {
                prompt: (*text).to_owned(),
                messages: Some(json!([{"role": "user", "content": text}]).to_string()),
                ..PromptRow::default()
            })
            .collect();
        prompts::write(self.0.path().join("prompts.parquet"), &rows).unwrap();
    }

    fn plan<C: StageConfig>(&self, name: &str, more: &str) -> Result<C::Plan, String> {
        let shipped = format!("../../configs/cai-{name}.toml");
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join(shipped);
        let mut table: toml::Table = fs_err::read_to_string(shipped).unwrap().parse().unwrap();
        let at = self.0.path().display();
        let own = format!(
            "model.path = \"{at}/model\"\nconstitution.path = \"{at}/c.toml\"\nprompts.files = [\"{at}/prompts.parquet\"]\n"
        );
        merge(&mut table, own.parse().unwrap());
        table.remove("feedback");
        table.remove("second");
        merge(&mut table, more.replace("AT", &at.to_string()).parse().unwrap());
        let config: C = toml::Value::Table(table).try_into().unwrap();
        let paths = Paths { config: "cai.toml".into(), out: "run".into() };
        config.plan(&paths).map_err(|problems| problems.to_string())
    }

    fn context(&self, name: &str) -> Context {
        let run = RunDir::create(self.0.path().join(name)).unwrap();
        Context::detached(run, 1, DeviceSpec::Cpu)
    }

    fn generate(&self, name: &str, more: &str) -> Vec<generate::rounds::Talk> {
        let plan = self.plan::<generate::config::Config>("generate", more).unwrap();
        let rounds = plan.config.generate.rounds;
        let mut ctx = self.context(name);
        generate::run(&mut ctx, plan).unwrap();
        let form = talks::Talks { rounds };
        Parts::open(&ctx, form, &["preview", "rows"])
            .unwrap()
            .merge(&self.0.path().join("again.parquet"))
            .unwrap()
    }
}

fn merge(own: &mut toml::Table, new: toml::Table) {
    for (key, value) in new {
        match (own.get_mut(&key), value) {
            (Some(toml::Value::Table(own)), toml::Value::Table(new)) => merge(own, new),
            (_, value) => {
                own.insert(key, value);
            }
        }
    }
}

const SMALL: &str = "[generate]\nrounds = 3\nprecision = \"fp32\"\ninitial = { temperature = 1.0, max_new_tokens = 8 }\n\
    critiques = { temperature = 1.0, max_new_tokens = 6 }\nrevisions = { temperature = 1.0, max_new_tokens = 8 }\n";

#[test]
fn rounds_go_on_until_no_problem_is_found() {
    let yard = Yard::new();
    let prompts: Vec<String> = (0..24).map(|n| format!("say {n}")).collect();
    yard.prompts(&prompts.iter().map(String::as_str).collect::<Vec<_>>());
    let constitution = Constitution::load(&yard.0.path().join("c.toml")).unwrap();
    let talks = yard.generate("a", SMALL);
    assert_eq!(talks.len(), 24);
    for talk in &talks {
        for (index, round) in talk.rounds.iter().enumerate() {
            let last = index + 1 == talk.rounds.len();
            let critique = round.critique.as_deref().unwrap();
            let found_none = constitution.finds_no_problem(critique);
            assert_eq!(found_none, talk.stopped == Stopped::NoProblem && last, "{talk:?}");
            assert_eq!(
                round.revision.is_none(),
                found_none || talk.stopped == Stopped::Blank && last,
                "{talk:?}"
            );
            assert!(["one", "two"].contains(&round.principle.as_str()));
        }
        if talk.stopped == Stopped::Rounds {
            assert_eq!(talk.rounds.len(), 3);
        }
        let last = talk.rounds.iter().rev().find_map(|round| round.revision.as_deref());
        assert_eq!(talk.final_text(), last.unwrap_or(&talk.initial));
    }
    assert!(
        talks.iter().any(|talk| talk.rounds.len() > 1)
            && talks.iter().any(|talk| talk.rounds.len() < 3)
    );
    let principles: std::collections::HashSet<&str> =
        talks.iter().flat_map(|talk| &talk.rounds).map(|round| round.principle.as_str()).collect();
    assert_eq!(principles.len(), 2, "both are drawn");
}

#[test]
fn what_is_said_depends_on_seed_and_position_alone() {
    let yard = Yard::new();
    let whole = yard.generate("whole", SMALL);
    assert_eq!(
        yard.generate("single", &format!("{SMALL}batch_prompts = 1\nbatch_rows = 1\n")),
        whole
    );
    assert_eq!(
        yard.generate("pairs", &format!("{SMALL}batch_prompts = 4\nbatch_rows = 3\n")),
        whole
    );
}

#[test]
fn without_critiques_the_model_revises_at_once() {
    let yard = Yard::new();
    let talks = yard.generate("direct", &format!("{SMALL}critique = false\n"));
    assert!(talks.iter().all(|talk| talk.rounds.iter().all(|round| round.critique.is_none())));
    assert!(talks.iter().all(|talk| talk.stopped != Stopped::NoProblem));
    assert!(talks.iter().any(|talk| talk.rounds.len() == 3));
}

#[test]
fn a_run_goes_on_only_with_the_same_config() {
    let yard = Yard::new();
    yard.generate("a", SMALL);
    let open = |more: &str| {
        let plan =
            yard.plan::<generate::config::Config>("generate", &format!("{SMALL}{more}")).unwrap();
        generate::run(&mut yard.context("a"), plan)
            .map(|_| ())
            .map_err(|error| format!("{error:#}"))
    };
    open("").unwrap();
}

#[test]
fn prompts_without_room_are_named_or_left_out() {
    let yard = Yard::new();
    let long = "one or two ".repeat(60);
    yard.prompts(&["say one", &long]);
    let refused = yard.plan::<generate::config::Config>("generate", SMALL).err().unwrap();
    assert!(
        refused.contains("prompts.parquet: row 1: a prompt of")
            && refused.contains("prompts.overlong = \"skip\""),
        "{refused}"
    );
    let plan = yard
        .plan::<generate::config::Config>(
            "generate",
            &format!("prompts.overlong = \"skip\"\n{SMALL}"),
        )
        .unwrap();
    assert_eq!((plan.prompts.len(), plan.left_out), (1, 1));
}

#[test]
fn bad_settings_are_named_together() {
    let yard = Yard::new();
    let bad = "generate.rounds = 0\ngenerate.examples = 3\ngenerate.initial = { temperature = -1.0, max_new_tokens = 8 }\nconstitution.tags = [\"kind\"]\n";
    let problems = yard.plan::<generate::config::Config>("generate", bad).err().unwrap();
    for named in ["generate.rounds: must be at least 1", "`temperature` is -1", "constitution.tags"]
    {
        assert!(problems.contains(named), "{named} in {problems}");
    }
    let problems = yard
        .plan::<label::config::Config>(
            "label",
            "label.principles_per_pair = 3\nlabel.clamp = [0.6, 0.4]\n",
        )
        .err()
        .unwrap();
    for named in [
        "label.principles_per_pair: is 3, but there are 2",
        "label.clamp: must be a probability of at most 0.5",
    ] {
        assert!(problems.contains(named), "{named} in {problems}");
    }
    let plain = prompts::write(
        yard.0.path().join("prompts.parquet"),
        &[PromptRow { prompt: "x".into(), ..PromptRow::default() }],
    );
    plain.unwrap();
    let problems = yard.plan::<generate::config::Config>("generate", SMALL).err().unwrap();
    assert!(problems.contains("row 0: has no `messages`"), "{problems}");
}

fn pair(number: usize, responses: [&str; 2]) -> Pair {
    Pair {
        number,
        prompt: "say one".to_owned(),
        task: None,
        responses: responses.map(str::to_owned),
        ended: true,
        principles: String::new(),
        probability: None,
        position_bias: None,
    }
}

#[test]
fn labels_swap_with_the_answers() {
    let yard = Yard::new();
    let more = "label.principles_per_pair = 0\nresponses.precision = \"fp32\"\n";
    let plan = yard.plan::<label::config::Config>("label", more).unwrap();
    let decoder = plan.model.load(tch::Device::Cpu, Precision::Fp32).unwrap();
    let mut judge = Judge::new(&plan, &decoder).unwrap();
    let mut label = |responses: [&str; 2]| {
        let mut pairs = [pair(0, responses)];
        judge.label(&mut pairs, 1).unwrap();
        pairs[0].clone()
    };
    let (forward, swapped) = (label(["one", "two, please"]), label(["two, please", "one"]));
    let (p, q) = (forward.probability.unwrap(), swapped.probability.unwrap());
    assert!((0.0..=1.0).contains(&p) && (p - 0.5).abs() > 1e-4, "{p}");
    assert!((p + q - 1.0).abs() < 1e-6, "{p} and {q}");
    assert!((forward.position_bias.unwrap() - swapped.position_bias.unwrap()).abs() < 1e-6);
    assert_eq!(forward.principles, "one two");
    for same in [["one", "one"], ["", "one"]] {
        assert_eq!(label(same).probability, None);
    }
}

/// A verdict by hand: the log-probabilities of both letters from a forward pass of its own.
#[test]
fn a_label_is_the_mean_over_orders_and_principles() {
    let yard = Yard::new();
    let more = "label.principles_per_pair = 0\nresponses.precision = \"fp32\"\n";
    let plan = yard.plan::<label::config::Config>("label", more).unwrap();
    let decoder = plan.model.load(tch::Device::Cpu, Precision::Fp32).unwrap();
    let tokenizer = &plan.model.tokenizer;
    let letter = |text: &str| {
        let whole = tokenizer.encode(text, false).unwrap().ids;
        i64::from(*whole.last().unwrap())
    };
    let mut leads = Vec::new();
    for question in ["Which is better?", "Which is true?"] {
        let share = |first: &str, second: &str| {
            let text = format!("A user says: say one\n{question}\n(A) {first}\n(B) {second}");
            let messages = [crate::speaker::user(text)];
            let ids = plan.model.ids(&messages, "The answer is (").unwrap();
            let probability = |letter: i64| {
                let mut rows = data::batch::Branches::new();
                rows.push(&ids, &[&[letter]]);
                let said = training::branches::responses(&decoder, &rows, 1.0).unwrap();
                said.logprobs.double_value(&[0]).exp()
            };
            let (a, b) = (probability(letter("(A")), probability(letter("(B")));
            a / (a + b)
        };
        leads.push((share("one", "two") - share("two", "one")) / 2.0);
    }
    let expected = 0.5 + f64::midpoint(leads[0], leads[1]);
    let mut pairs = [pair(0, ["one", "two"])];
    Judge::new(&plan, &decoder).unwrap().label(&mut pairs, 1).unwrap();
    let label = pairs[0].probability.unwrap();
    assert!((label - expected).abs() < 1e-5, "{label} and {expected}");
}

#[test]
fn a_letter_that_is_not_one_token_is_refused() {
    let yard = Yard::new();
    let mut problems = stage::Problems::new();
    let table = ModelTable { path: yard.0.path().join("model"), tokenizer: None };
    let source = Source::find("model", &table, &mut problems).unwrap();
    letters(&source, "The answer is (").unwrap();
    // QA is one token of this tokenizer, so that the letter changes what is before it.
    let error = letters(&source, "The answer is Q").unwrap_err().to_string();
    assert!(error.contains("behind \"The answer is Q\" the letter A is not one token"), "{error}");
}

#[test]
fn helpful_rows_are_drawn_evenly() {
    for (total, wanted) in [(10, 4), (10, 10), (10, 25), (1, 3), (7, 0)] {
        let times = times(total, wanted, [3, 0]);
        assert_eq!(times.iter().sum::<u64>(), wanted);
        let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        assert!(most - least <= 1);
    }
    assert_ne!(times(100, 50, [1, 0]), times(100, 50, [2, 0]));
}

#[test]
fn what_models_put_before_a_revision_is_taken_off() {
    let prefixes = ["Sure, here is a revised response:".to_owned(), "수정한 답:".to_owned()];
    let stripped = |text: &str| generate::rounds::stripped(text, &prefixes);
    assert_eq!(stripped(" sure, here is a revised response: No. "), "No.");
    assert_eq!(stripped("수정한 답: 아니요."), "아니요.");
    assert_eq!(stripped("Sure."), "Sure.");
    assert_eq!(stripped("수"), "수");
}

#[test]
fn the_shipped_files_show_every_key() {
    let read = |name: &str| {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../configs/cai-{name}.toml"));
        fs_err::read_to_string(path).unwrap()
    };
    for (name, all) in [
        ("generate", "model.tokenizer = \"x\"\ncritic.path = \"x\"\nprompts.max_prompts = 1\n"),
        (
            "label",
            "label.reasoning = { temperature = 1.0, max_new_tokens = 1 }\nlabel.clamp = [0.4, 0.6]\n",
        ),
        ("train", "eval.reward_model = \"x\"\neval.max_prompts = 1\nmix.validation = [\"x\"]\n"),
    ] {
        let text = read(name);
        let mut table: toml::Table = text.parse().unwrap();
        merge(&mut table, all.parse().unwrap());
        let value = toml::Value::Table(table);
        let resolved = match name {
            "generate" => {
                serde_json::to_value(value.try_into::<generate::config::Config>().unwrap())
            }
            "label" => serde_json::to_value(value.try_into::<label::config::Config>().unwrap()),
            _ => serde_json::to_value(value.try_into::<crate::train::config::Config>().unwrap()),
        };
        let mut found = Vec::new();
        keys(&resolved.unwrap(), &mut found);
        assert!(found.len() > 20);
        for key in found {
            let shown = [format!("{key} = "), format!("{key}]"), format!("{key}.")];
            assert!(
                shown.iter().any(|form| text.contains(form)),
                "`{key}` is not shown in cai-{name}.toml"
            );
        }
    }
}

fn keys(value: &serde_json::Value, found: &mut Vec<String>) {
    if let serde_json::Value::Object(map) = value {
        for (key, inner) in map {
            found.push(key.clone());
            keys(inner, found);
        }
    }
}

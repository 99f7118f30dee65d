//! The loop over small models: what it must keep, and problems whose best policy is known.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::RunDir;
use artifact::prompts::{self, PromptRow};
use data::tokenizer::{BpeOptions, Tokenizer};
use model::{Decoder, Head, LoadOptions, ModelConfig, Precision};
use serde_json::{Value, json};
use stage::{Context, DeviceSpec, Paths, StageConfig as _};
use tch::{Device, Kind, Tensor};

use crate::config::{Config, Reward};
use crate::experience::{Experience, ending};
use crate::models::Models;
use crate::plan::Plan;
use crate::rollout::{Episode, PromptCursor};
use crate::train::train;
use training::respond::sample_seed;
use training::world::World;

/// A folder with a policy, a reward model and prompts.
struct Yard(tempfile::TempDir);

const PROMPTS: [&str; 6] =
    ["say one", "say two", "하나만 말해요", "둘만 말해요", "one more", "and you"];

impl Yard {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let texts = ["say one or two", "하나만 말해요", "둘만 말해요", "one more and you and one"];
        let options = BpeOptions { vocab_size: 300, ..BpeOptions::default() };
        let tokenizer =
            Tokenizer::train_bpe(texts.map(str::to_owned).into_iter(), &options).unwrap();
        let json = json!({
            "model_type": "llama", "vocab_size": tokenizer.vocab_size(), "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
        });
        let mut config = ModelConfig::from_json(&json).unwrap();
        for (name, head) in [("policy", Head::LanguageModel), ("reward", Head::Score)] {
            config.set_head(head);
            let decoder = Decoder::init(&config, 7, &LoadOptions::default()).unwrap();
            let to = dir.path().join(name);
            decoder.save(&to, Precision::Fp32, u64::MAX).unwrap();
            tokenizer.save(&to).unwrap();
        }
        let rows =
            PROMPTS.map(|prompt| PromptRow { prompt: prompt.to_owned(), ..PromptRow::default() });
        prompts::write(dir.path().join("prompts.parquet"), &rows).unwrap();
        Self(dir)
    }

    /// A plan of the usual settings with `more` lines of TOML; tables in it take the place of the usual ones.
    fn plan(&self, more: &str) -> Plan {
        let at = self.0.path().display();
        let usual: toml::Table = format!(
            "seed = 1\nout = \"{at}/run\"\nmodel.path = \"{at}/policy\"\ndata.prompts = [\"{at}/prompts.parquet\"]\n\
             [reward]\nmodel = \"{at}/reward\"\n[value]\ninit.own_trunk.path = \"{at}/reward\"\n\
             [rollout]\nprompts_per_step = 4\nmax_new_tokens = 6\n[kl]\ncoef.fixed = 0.1\n\
             [ppo]\nnum_minibatches = 2\n\
             [train]\nsteps = 2\nmicro_batch_tokens = 40\nschedule.constant = {{}}\n\
             optimizer = {{ learning_rate = 1e-3, max_grad_norm = 1.0 }}\n"
        )
        .parse()
        .unwrap();
        let mut table = usual;
        merge(&mut table, more.replace("AT", &at.to_string()).parse().unwrap());
        if table["ppo"].get("advantage").is_some_and(|kind| kind.as_str() != Some("gae")) {
            table.remove("value");
        }
        let config: Config = toml::Value::Table(table).try_into().unwrap();
        let paths = Paths { config: "ppo.toml".into(), out: "run".into() };
        config.plan(&paths).map_err(|problems| problems.to_string()).unwrap()
    }

    /// Trains; returns the models and the lines of metrics.
    fn run(&self, name: &str, more: &str) -> (Models, Vec<BTreeMap<String, Value>>) {
        let plan = self.plan(more);
        let mut models = Models::load(&plan, Device::Cpu, 1).unwrap();
        let dir = RunDir::create(self.0.path().join(name)).unwrap();
        let mut ctx = Context::detached(dir, 1, DeviceSpec::Cpu);
        ctx.start().unwrap();
        train(&mut ctx, &World::alone(Device::Cpu), &plan, &mut models).unwrap();
        let lines = fs_err::read_to_string(ctx.run_dir.metrics_path()).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (models, lines)
    }
}

fn number(line: &BTreeMap<String, Value>, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("{name}: {:?}", line[name]))
}

fn weights(decoder: &Decoder) -> Tensor {
    let all: Vec<Tensor> =
        decoder.params().iter().map(|(_, weight)| weight.flatten(0, -1)).collect();
    Tensor::cat(&all, 0).to_kind(Kind::Double)
}

#[test]
fn the_first_minibatch_meets_the_policy_that_sampled() {
    let yard = Yard::new();
    for precision in ["fp32", "bf16"] {
        let (_, lines) = yard.run(precision, &format!("train.precision = \"{precision}\""));
        assert_eq!(lines.len(), 2);
        for line in &lines {
            assert_eq!(number(line, "policy/first_ratio_gap"), 0.0, "{precision}");
        }
        assert_eq!(number(&lines[0], "objective/kl"), 0.0, "{precision}");
        assert_ne!(number(&lines[1], "objective/kl"), 0.0, "{precision}");
        // The generator and the training pass agree as far as their number type goes.
        let gap = number(&lines[0], "objective/logprob_gap");
        assert!(gap < if precision == "fp32" { 1e-5 } else { 0.05 }, "{gap}");
    }
}

#[test]
fn how_a_minibatch_is_cut_changes_no_result() {
    let yard = Yard::new();
    let of = |name: &str, tokens: usize| {
        let more = format!("train.steps = 1\ntrain.micro_batch_tokens = {tokens}\n");
        let (models, lines) = yard.run(name, &more);
        let value = weights(models.value.as_ref().unwrap());
        (weights(&models.policy), value, number(&lines[0], "loss/value_avg"))
    };
    let (whole, parts) = (of("whole", 4000), of("parts", 1));
    let gap = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    assert!(gap(&whole.0, &parts.0) < 1e-5, "{}", gap(&whole.0, &parts.0));
    assert!(gap(&whole.1, &parts.1) < 1e-5, "{}", gap(&whole.1, &parts.1));
    assert!((whole.2 - parts.2).abs() < 1e-6);
    let start = Decoder::load(&yard.0.path().join("policy"), &LoadOptions::default()).unwrap();
    assert!(gap(&whole.0, &weights(&start)) > 1e-4, "it has moved");
}

#[test]
fn a_value_function_that_warms_up_leaves_the_policy_alone() {
    let yard = Yard::new();
    let start = Decoder::load(&yard.0.path().join("policy"), &LoadOptions::default()).unwrap();
    let value = Decoder::load(&yard.0.path().join("reward"), &LoadOptions::default()).unwrap();
    let (models, _) = yard.run("warm", "train.steps = 1\nppo.critic_warmup_steps = 1");
    assert!(weights(&models.policy).equal(&weights(&start)));
    assert!(!weights(models.value.as_ref().unwrap()).equal(&weights(&value)));
}

#[test]
fn values_start_at_those_of_a_reward_model_or_at_0() {
    let yard = Yard::new();
    let score = |init: &str| {
        let models =
            Models::load(&yard.plan(&format!("value.init = {init}")), Device::Cpu, 1).unwrap();
        let decoder = models.value.as_ref().unwrap_or(&models.policy);
        decoder.params().get("score.weight").unwrap()
    };
    let own = score("{ own_trunk = { path = \"AT/reward\" } }");
    let reward = Decoder::load(&yard.0.path().join("reward"), &LoadOptions::default()).unwrap();
    assert!(own.equal(&reward.params().get("score.weight").unwrap()));
    for init in ["{ own_trunk = { path = \"AT/policy\" } }", "{ shared_trunk = {} }"] {
        assert_eq!(score(init).abs().max().double_value(&[]), 0.0, "{init}");
    }
}

#[test]
fn a_score_on_the_policys_trunk_learns() {
    let yard = Yard::new();
    let (models, lines) = yard.run(
        "shared",
        "train.steps = 12\nvalue.init = { shared_trunk = {} }\nppo.value_coef = 1.0",
    );
    assert!(models.value.is_none());
    let loss = |line: usize| number(&lines[line], "loss/value_avg");
    assert!(loss(11) < 0.5 * loss(0), "{} and {}", loss(0), loss(11));
}

fn episode(ids: &[i64], ended: bool) -> Episode {
    let sampled = vec![0.0; ids.len()];
    Episode { prompt: 0, ids: ids.to_vec(), sampled, text: String::new(), ended }
}

/// Two episodes, of two tokens and of one.
fn experience() -> Experience {
    let mut experience = Experience::new(2);
    experience.logprobs = vec![vec![-1.0, -2.0], vec![-0.5]];
    experience.reference = vec![vec![-1.5, -1.0], vec![-0.5]];
    experience.values = vec![vec![0.25, 0.5], vec![1.0]];
    experience.scores = vec![2.0, -1.0];
    experience
}

#[test]
fn rewards_by_hand() {
    let yard = Yard::new();
    // log ratios 0.5, -1 and 0; penalties of 0.1 times them; the score at the last token.
    let plan =
        yard.plan("ppo = { gae_lambda = 1.0, whiten_advantages = false, num_minibatches = 1 }");
    let mut gae = experience();
    gae.judge(&plan.config, 0.1);
    let close = |a: &[f32], b: &[f64]| {
        a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (f64::from(*x) - y).abs() < 1e-6)
    };
    assert!(close(&gae.returns[0], &[-0.05 + 2.1, 2.1]), "{:?}", gae.returns);
    assert!(close(&gae.returns[1], &[-1.0]));
    assert!(close(&gae.advantages[0], &[2.05 - 0.25, 2.1 - 0.5]));
    assert!(close(&gae.penalties, &[0.05, 0.0]));
    let metrics: BTreeMap<&str, f64> =
        gae.metrics(&[episode(&[5, 6], true), episode(&[7], false)]).into_iter().collect();
    assert!((metrics["objective/kl"] + 0.25).abs() < 1e-6);
    assert!((metrics["objective/entropy"] - 1.75).abs() < 1e-6);
    assert!((metrics["objective/non_score_reward"] - 0.025).abs() < 1e-6);
    assert!((metrics["objective/rlhf_reward"] - 0.525).abs() < 1e-6);
    assert_eq!((metrics["val/num_eos_tokens"], metrics["objective/truncated"]), (1.0, 0.5));

    // Whole responses, compared with each other: 2.05 and -1.
    let more =
        "ppo = { advantage = \"rloo\", num_minibatches = 1 }\nrollout.samples_per_prompt = 2";
    let mut rloo = experience();
    rloo.judge(&yard.plan(more).config, 0.1);
    assert!(close(&rloo.advantages[0], &[3.05, 3.05]) && close(&rloo.advantages[1], &[-3.05]));
    let mut grpo = experience();
    grpo.judge(&yard.plan(&more.replace("rloo", "grpo")).config, 0.1);
    let unit = 3.05 / 2.0_f64.sqrt() + 1e-4;
    assert!(
        close(&grpo.advantages[0], &[1.525 / unit; 2])
            && close(&grpo.advantages[1], &[-1.525 / unit])
    );

    // In the loss, the penalty is no part of the rewards.
    let mut loss = experience();
    loss.judge(&yard.plan("kl.place = \"loss\"\nppo.gae_lambda = 1.0").config, 0.1);
    assert!(close(&loss.returns[0], &[2.0, 2.0]) && loss.penalties == [0.0, 0.0]);
}

#[test]
fn a_response_that_did_not_end_pays() {
    let reward = |text: &str| toml::from_str::<Reward>(text).unwrap();
    let (cut, whole) = (episode(&[1, 2, 3], false), episode(&[1, 2, 3], true));
    let penalty = reward("missing_eos_penalty = 1.5\nlength_penalty = 0.25");
    assert_eq!(ending(&penalty, 2.0, &cut), 2.0 - 1.5 - 0.75);
    assert_eq!(ending(&penalty, 2.0, &whole), 2.0 - 0.75);
    let replaced = reward("missing_eos_score = -1.0");
    assert_eq!([ending(&replaced, 2.0, &cut), ending(&replaced, 2.0, &whole)], [-1.0, 2.0]);
}

#[test]
fn prompts_come_in_another_order_each_time() {
    let mut cursor = PromptCursor::default();
    let mut passes: Vec<Vec<usize>> = (0..3).map(|_| cursor.take(5, 5, 1)).collect();
    assert_ne!(passes[0], passes[1]);
    for pass in &mut passes {
        pass.sort_unstable();
        assert_eq!(*pass, [0, 1, 2, 3, 4]);
    }
    // Portions of any size go through the same order.
    let (mut whole, mut parts) = (PromptCursor::default(), PromptCursor::default());
    let all = whole.take(12, 5, 2);
    let pieces: Vec<usize> = [3, 1, 8].into_iter().flat_map(|n| parts.take(n, 5, 2)).collect();
    assert_eq!(all, pieces);
    assert_eq!((whole, whole.epochs(5)), (parts, 2.4));
    assert_ne!(sample_seed(1, 0), sample_seed(1, 1));
    assert_ne!(sample_seed(1, 0), sample_seed(2, 0));
}

/// Responses of one token, scored by what it spells: the best policy under the KL penalty is known, `π ∝ π₀ exp(r / β)`.
mod bandit {
    use super::*;

    const BETA: f64 = 0.5;

    /// Log-probabilities of the token after the first prompt.
    fn policy(dir_or: &Decoder, prompt: &[i64]) -> Tensor {
        let positions: Vec<i64> = (0..prompt.len() as i64).collect();
        let input = dir_or.input(prompt, &positions, &[0, prompt.len() as i64]).unwrap();
        let hidden = tch::no_grad(|| dir_or.hidden(&input)).unwrap();
        let logits = tch::no_grad(|| dir_or.logits(&hidden.narrow(0, prompt.len() as i64 - 1, 1)));
        logits.unwrap().squeeze_dim(0).log_softmax(0, Kind::Double)
    }

    /// `E r - β KL`.
    fn objective(policy: &Tensor, start: &Tensor, rewards: &Tensor) -> f64 {
        let terms = policy.exp() * (rewards - (policy - start) * BETA);
        terms.sum(Kind::Double).double_value(&[])
    }

    /// The share of what there is to gain that training has not gained.
    fn regret(more: &str) -> f64 {
        let yard = Yard::new();
        let row = PromptRow { prompt: PROMPTS[0].to_owned(), ..PromptRow::default() };
        prompts::write(yard.0.path().join("prompts.parquet"), &[row]).unwrap();
        let rules = "[[reward.rules]]\nrule.matches = { pattern = \"[aeiou]\" }\nweight = 1.0\n\
                     [[reward.rules]]\nrule.matches = { pattern = \"[n-z]\" }\nweight = 0.5\n";
        let more = format!(
            "rollout = {{ prompts_per_step = 1, max_new_tokens = 1, samples_per_prompt = 256, batch_rows = 256 }}\n\
             train = {{ steps = 120, log_every_steps = 120, optimizer = {{ learning_rate = 2e-2 }}, \
             schedule = {{ linear = {{}} }}, micro_batch_tokens = 4096 }}\nsamples.every_steps = 1000\n\
             kl.coef = {{ fixed = {BETA} }}\n{more}\n{rules}"
        );
        // Rules alone: the reward model of the usual settings is left out.
        let mut plan = yard.plan(&more);
        plan.reward = None;
        let prompt = plan.prompts[0].ids.clone();
        let mut models = Models::load(&plan, Device::Cpu, 1).unwrap();
        let start = policy(&models.policy, &prompt);
        let rewards: Vec<f64> = (0..start.size()[0])
            .map(|id| {
                let text = plan.tokenizer.decode(&[id as u32], true).unwrap();
                plan.rules.iter().map(|(rule, weight)| weight * rule.score(&text, None)).sum()
            })
            .collect();
        let rewards = Tensor::from_slice(&rewards);
        let best = (&start + &rewards / BETA).log_softmax(0, Kind::Double);
        let dir = RunDir::create(yard.0.path().join("bandit")).unwrap();
        let mut ctx = Context::detached(dir, 1, DeviceSpec::Cpu);
        ctx.start().unwrap();
        train(&mut ctx, &World::alone(Device::Cpu), &plan, &mut models).unwrap();
        let of = |policy: &Tensor| objective(policy, &start, &rewards);
        let (most, least, found) = (of(&best), of(&start), of(&policy(&models.policy, &prompt)));
        assert!(most > least + 0.1, "there is something to gain: {least} to {most}");
        assert!(found <= most + 1e-6, "nothing is better than the best");
        (most - found) / (most - least)
    }

    #[test]
    fn ppo_reaches_the_best_policy() {
        let regret = regret("ppo = { ppo_epochs = 2, num_minibatches = 1, value_coef = 1.0 }");
        assert!(regret < 0.05, "{regret}");
    }

    #[test]
    fn rloo_reaches_the_best_policy() {
        let regret = regret("ppo = { advantage = \"rloo\", ppo_epochs = 2, num_minibatches = 1 }");
        assert!(regret < 0.05, "{regret}");
    }

    #[test]
    fn grpo_reaches_the_best_policy() {
        let regret = regret("ppo = { advantage = \"grpo\", ppo_epochs = 2, num_minibatches = 1 }");
        assert!(regret < 0.05, "{regret}");
    }
}

#[test]
fn a_plan_without_a_reference_takes_the_policy() {
    let yard = Yard::new();
    let plan = yard.plan("");
    assert_eq!(plan.reference, plan.policy);
    assert!(Path::new(&plan.policy).ends_with("policy"));
}

/// Every key of a configuration in which everything is set.
fn keys(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                found.push(key.clone());
                keys(inner, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| keys(inner, found)),
        _ => {}
    }
}

#[test]
fn the_example_is_a_config() {
    let example = include_str!("../../../configs/examples/ppo-rule.toml");
    let config: Config = toml::from_str(example).unwrap();
    let problems = config.plan(&Paths { config: "ppo.toml".into(), out: "run".into() });
    let problems = problems.err().unwrap().to_string();
    assert!(problems.contains("models/my-model"), "{problems}");
    let others = ["no such", "not exist", "no config.json", "problem"];
    for line in problems.lines() {
        assert!(others.iter().any(|known| line.contains(known)), "{line}");
    }
}

#[test]
fn the_shipped_file_shows_every_key() {
    let text = include_str!("../../../configs/ppo.toml");
    let shipped: Config = toml::from_str(text).unwrap();
    let full = "model.reference = \"x\"\n\
        [reward]\nmodel = \"x\"\nclip = 1.0\nmissing_eos_penalty = 1.0\nmissing_eos_score = 1.0\n\
        rules = [{ rule.matches.pattern = \"x\" }, { rule.checker = {} }, { rule.sentence_share.pattern = \"x\" }]\n\
        [value]\ninit.shared_trunk = {}\nlearning_rate = 1.0\n\
        [kl]\nstop_above = 1.0\ncoef.adaptive = { initial = 1.0, target = 1.0, horizon = 1 }\n\
        [ppo]\nclip_range_high = 1.0\nvalue_clip_range = 1.0\ntarget_kl = 1.0\n\
        [ptx]\ndata = [\"x\"]\ncoef = 1.0\nbatch_tokens = 1\n\
        [eval]\nevery_steps = 1\n[train.checkpoint]\nevery_steps = 1\n";
    let mut table: toml::Table = text.parse().unwrap();
    merge(&mut table, full.parse().unwrap());
    let config: Config = toml::Value::Table(table).try_into().unwrap();
    let mut known = Vec::new();
    keys(&serde_json::to_value(&config).unwrap(), &mut known);
    keys(&serde_json::to_value(&shipped).unwrap(), &mut known);
    assert!(known.len() > 100, "{known:?}");
    for key in &known {
        let shown = [format!("{key} = "), format!("{key}]"), format!("{key}.")];
        assert!(shown.iter().any(|form| text.contains(form)), "`{key}` is not shown");
    }
}

/// Puts the keys of `new` into `own`, table by table.
fn merge(own: &mut toml::Table, new: toml::Table) {
    for (key, value) in new {
        match (own.get_mut(&key), value) {
            (Some(toml::Value::Table(own)), toml::Value::Table(new))
                if !["init", "coef", "schedule"].contains(&key.as_str()) =>
            {
                merge(own, new);
            }
            (_, value) => drop(own.insert(key, value)),
        }
    }
}

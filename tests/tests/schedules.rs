//! Learning rates against those of transformers, step by step: `tests/fixtures/parity/schedules`.

use anyhow::{Context as _, Result};
use serde_json::Value;
use temper_tests::close::{DOUBLE, close_number};
use temper_tests::fixtures;
use training::schedule::{Constant, Decay, Decaying, Schedule, Wsd};

fn schedule(case: &Value) -> Result<Schedule> {
    let steps = |key: &str| case[key].as_u64().context(key.to_owned());
    let specific = |key: &str| case["specific"][key].as_f64();
    let warmup_steps = Some(steps("warmup_steps")?);
    let decaying = |min_lr_ratio| Decaying { warmup_steps, warmup_ratio: None, min_lr_ratio };
    Ok(match case["name"].as_str().context("name")? {
        "constant" | "constant_with_warmup" => {
            Schedule::Constant(Constant { warmup_steps, warmup_ratio: None })
        }
        "linear" => Schedule::Linear(decaying(0.0)),
        "cosine" => Schedule::Cosine(decaying(0.0)),
        "cosine_with_min_lr" => {
            Schedule::Cosine(decaying(specific("min_lr_rate").context("min_lr_rate")?))
        }
        "warmup_stable_decay" => Schedule::Wsd(Wsd {
            warmup_steps,
            warmup_ratio: None,
            decay_ratio: specific("num_decay_steps").context("num_decay_steps")?
                / steps("total_steps")? as f64,
            decay: match case["specific"]["decay_type"].as_str() {
                Some("linear") => Decay::Linear,
                Some("1-sqrt") => Decay::OneMinusSqrt,
                _ => Decay::Cosine,
            },
            min_lr_ratio: specific("min_lr_ratio").context("min_lr_ratio")?,
        }),
        other => anyhow::bail!("no schedule {other}"),
    })
}

#[test]
fn every_rate_is_that_of_transformers() -> Result<()> {
    let cases: Vec<Value> = fixtures::json(&fixtures::parity("schedules/schedules.json"))?;
    assert!(cases.len() >= 12);
    for case in &cases {
        let (schedule, peak) = (schedule(case)?, case["learning_rate"].as_f64().context("rate")?);
        let total = case["total_steps"].as_u64().context("total_steps")?;
        for (step, want) in case["rates"].as_array().context("rates")?.iter().enumerate() {
            let got = peak * schedule.factor(step as u64, total);
            let want = want.as_f64().context("a rate")?;
            close_number(&format!("{case} at {step}"), got, want, DOUBLE)?;
        }
    }
    Ok(())
}

//! What an unfinished run was made with: it goes on only with the same.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::changes;
use crate::context::Context;
use crate::error::ErrorExt as _;

/// What decides the parts of a run.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Basis {
    config: Value,
    /// Role and digest.
    inputs: Vec<(String, String)>,
}

/// Notes in `dir`, which it makes, the configuration and the inputs that parts of the run are made with; where an earlier,
/// unfinished run has noted its own, they must be the same. Nothing depends on the keys `free` of the configuration.
///
/// # Errors
/// Wrong usage where they are not; those of the file system.
pub fn check(ctx: &Context, dir: &Path, free: &[&str]) -> anyhow::Result<()> {
    fs_err::create_dir_all(dir)?;
    let file = dir.join("basis.json");
    let now = Basis::of(ctx, free);
    if !file.exists() {
        artifact::atomic::write_bytes(&file, &serde_json::to_vec_pretty(&now)?)?;
        return Ok(());
    }
    let text = fs_err::read_to_string(&file)?;
    let then: Basis = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    then.refuse_others(&file, &now)
}

impl Basis {
    fn of(ctx: &Context, free: &[&str]) -> Self {
        let mut config = ctx.config().clone();
        if let Value::Object(map) = &mut config {
            map.retain(|key, _| key != "out" && !free.contains(&key.as_str()));
        }
        let inputs = ctx.inputs.iter().map(|input| (input.role.clone(), input.digest.to_string()));
        Self { config, inputs: inputs.collect() }
    }

    fn refuse_others(&self, file: &Path, now: &Self) -> anyhow::Result<()> {
        let advice = "start over with --resume never, or choose another run directory with --out";
        let changes = changes(&self.config, &now.config);
        let shown = file.display();
        if !changes.is_empty() {
            let list = changes.join("\n");
            let error = anyhow::anyhow!("{shown}: made with another config (then -> now)\n{list}");
            return Err(error).hint(advice).hint("put the config back to go on").usage();
        }
        if self.inputs != now.inputs {
            let differs = self.inputs.iter().zip(&now.inputs).find(|(a, b)| a != b);
            let role = differs.map_or("prompts", |(then, _)| then.0.as_str());
            let error = anyhow::anyhow!("{shown}: the input `{role}` is not what it was");
            return Err(error).hint(advice).hint("put the input back to go on").usage();
        }
        Ok(())
    }
}

//! Configs: the tables that stages share, data's mapping, and constitutions.
#![no_main]

use std::path::PathBuf;

use data::constitution::Constitution;
use libfuzzer_sys::fuzz_target;
use serde::{Deserialize, Serialize};
use stage::{Describe, Paths, Problems, StageConfig};
use temper_fuzz::{readable, write};
use training::settings;

/// Everything that is optional in a config of its own.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    seed: u64,
    out: PathBuf,
    train: Option<settings::Train>,
    data: Option<settings::Data>,
    save: Option<settings::Save>,
    peft: Option<settings::Peft>,
    samples: Option<settings::Samples>,
    mapping: Option<data::format::Mapping>,
    read: Option<data::records::ReadOptions>,
}

impl StageConfig for Config {
    type Plan = Self;

    fn plan(self, _: &Paths) -> Result<Self, Problems> {
        Problems::new().finish(self)
    }
}

impl Describe for Config {
    fn describe(&self, _processes: usize) -> String {
        String::new()
    }
}

fuzz_target!(|text: &str| {
    let path = write("config.toml", text.as_bytes());
    if let Some(loaded) = readable(stage::config::load::<Config>("fuzz", &path, &[])) {
        readable(loaded.to_json());
        readable(loaded.to_toml());
    }
    readable(Constitution::parse(text));
});

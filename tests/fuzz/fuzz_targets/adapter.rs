//! `adapter_config.json` beside an adapter's weights, over a model that it may fit.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use model::peft::AdapterFiles;
use model::{Decoder, LoadOptions, ModelConfig};
use temper_fuzz::mutate::{self, Parts};
use temper_fuzz::{folder, readable, write};

thread_local! {
    static BASE: Decoder = {
        let config = serde_json::from_str(CONFIG).expect("JSON");
        let config = ModelConfig::from_json(&config).expect("a config");
        Decoder::init(&config, 1, &LoadOptions::default()).expect("a model")
    };
}

fuzz_target!(|bytes: &[u8]| {
    // The weights follow the config behind a byte that no JSON has.
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    write("adapter_config.json", parts.next().unwrap_or_default());
    write("adapter_model.safetensors", parts.next().unwrap_or(b"\x02\0\0\0\0\0\0\0{}"));
    if let Some(files) = readable(AdapterFiles::open(folder())) {
        let _ = (files.base(), files.head(), files.num_elements(), files.base_digest());
        BASE.with(|base| {
            readable(files.trainable_parameters(base.config()));
            readable(base.with_adapter(&files));
        });
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::json(data, size, max_size, seed, Parts { before: 0, separator: Some(0) })
});

/// What the adapters among the seeds are made for.
const CONFIG: &str = include_str!("../../fixtures/parity/models/llama/model/config.json");

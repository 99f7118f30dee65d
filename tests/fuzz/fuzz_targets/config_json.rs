//! `config.json` of a model, and what is reckoned from one that is good.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use model::{ModelConfig, Precision};
use temper_fuzz::mutate::{self, Parts};
use temper_fuzz::{folder, readable, write};

fuzz_target!(|bytes: &[u8]| {
    write("config.json", bytes);
    if let Some(config) = readable(ModelConfig::from_dir(folder())) {
        let _ = (config.num_parameters(), config.num_embedding_parameters());
        let _ = config.forward_flops_per_token(1024.0);
        // What is written is read again, and means the same but for the keys that it completes.
        let again =
            ModelConfig::from_json(&config.to_hf_json(Precision::Fp32)).expect("its own config");
        assert_eq!(again.to_hf_json(Precision::Fp32), config.to_hf_json(Precision::Fp32));
        assert_eq!(again.num_parameters(), config.num_parameters());
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::json(data, size, max_size, seed, Parts { before: 0, separator: None })
});

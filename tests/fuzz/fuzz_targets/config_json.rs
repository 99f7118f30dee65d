//! `config.json` of a model, and what is reckoned from one that is good.
#![no_main]

use libfuzzer_sys::fuzz_target;
use model::ModelConfig;
use temper_fuzz::{folder, readable, write};

fuzz_target!(|bytes: &[u8]| {
    write("config.json", bytes);
    if let Some(config) = readable(ModelConfig::from_dir(folder())) {
        let _ = config.num_parameters();
        let _ = config.forward_flops_per_token(1024.0);
        // What is written is read again, and means the same.
        let again = ModelConfig::from_json(&config.to_hf_json(model::Precision::Fp32)).expect("its own config");
        assert_eq!(format!("{again:?}"), format!("{config:?}"));
    }
});

//! `adapter_config.json` beside an adapter's weights.
#![no_main]

use libfuzzer_sys::fuzz_target;
use model::ModelConfig;
use model::peft::AdapterFiles;
use temper_fuzz::{folder, readable, write};

fuzz_target!(|bytes: &[u8]| {
    write("adapter_config.json", bytes);
    write("adapter_model.safetensors", b"\x02\0\0\0\0\0\0\0{}");
    if let Some(files) = readable(AdapterFiles::open(folder())) {
        let _ = (files.base(), files.head(), files.num_elements());
        let config = ModelConfig::from_json(&serde_json::from_str(CONFIG).expect("JSON"));
        readable(files.trainable_parameters(&config.expect("a config")));
    }
});

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100,
    "max_position_embeddings": 128}"#;

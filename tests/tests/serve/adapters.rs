//! Adapters as models of their own.

use model::weights::write_tensors;
use tch::{Device, Kind, Tensor};

use super::*;

const ASKED: &str = "민수는 무엇을 찾았어요?";

/// A LoRA of rank 2 over the query and value projections of both layers of a model, written as PEFT writes it, with numbers
/// that change what the model says.
fn lora(dir: &Path, base: &str, seed: i64) {
    tch::manual_seed(seed);
    let like = (Kind::Float, Device::Cpu);
    let mut tensors = Vec::new();
    for layer in 0..2 {
        // 4 heads of 8 query the one key-value head.
        for (module, out) in [("q_proj", 32), ("v_proj", 8)] {
            let name = format!("base_model.model.model.layers.{layer}.self_attn.{module}");
            for (which, shape) in [("A", [2, 32]), ("B", [out, 2])] {
                tensors.push((format!("{name}.lora_{which}.weight"), Tensor::randn(shape, like)));
            }
        }
    }
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": 2, "lora_alpha": 2,
        "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj", "v_proj"],
    });
    fs_err::create_dir_all(dir).unwrap();
    fs_err::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    write_tensors(&dir.join("adapter_model.safetensors"), &tensors).unwrap();
}

/// What `chat` says to the same.
fn alone(dir: &Path, adapter: Option<&str>) -> String {
    let asked = ["--prompt", ASKED, "--max-new-tokens", "16", "--device", "cpu", "--model", "one"];
    let adapter = adapter.map(|name| ["--adapter", name]);
    let chat = Stage::new("chat", dir).args(asked).args(adapter.into_iter().flatten());
    chat.succeed().unwrap().stdout.trim_end_matches('\n').to_owned()
}

#[test]
fn a_model_and_adapters_over_it_are_served_beside_each_other() {
    let dir = &*MODELS;
    for (name, seed) in [("tuned", 1), ("other", 2)] {
        lora(&dir.join("adapters").join(name), &dir.join("one").display().to_string(), seed);
    }
    let base = ["--model", "one"];
    let two = ["--model", "one", "--model", "two"];
    let adapters = ["--adapter", "tuned=adapters/tuned", "--adapter", "other=adapters/other"];
    // Over the one model there is; beside another one over the model that the files name.
    for (models, ids) in [
        (&base[..], &["one", "tuned", "other"][..]),
        (&two[..], &["one", "two", "tuned", "other"][..]),
    ] {
        let server = Server::of(&[models, &adapters].concat());
        let list: Value = serde_json::from_str(&server.get("/v1/models").1).unwrap();
        let listed: Vec<&str> = list["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["id"].as_str().unwrap())
            .collect();
        assert_eq!(listed, ids);
        let ask = |model: &str| {
            let messages = json!([{ "role": "user", "content": ASKED }]);
            let body =
                json!({ "model": model, "temperature": 0, "max_tokens": 16, "messages": messages });
            let (status, answer) = server.post("/v1/chat/completions", &body);
            assert_eq!((status, &answer["model"]), (200, &model.into()), "{answer}");
            answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
        };
        let said = ["one", "tuned", "other"].map(ask);
        assert!(said[0] != said[1] && said[1] != said[2] && said[0] != said[2], "{said:?}");
        let alone =
            [None, Some("adapters/tuned"), Some("adapters/other")].map(|name| alone(dir, name));
        assert_eq!(said, alone);
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_named() {
    let dir = &*MODELS;
    lora(&dir.join("adapters/lost"), "nowhere/at/all", 3);
    // Of several models it would have to say which.
    serve(&["--model", "one", "--model", "two", "--adapter", "lost=adapters/lost"])
        .fail(
            2,
            &["adapters/lost: the model it was trained over, `nowhere/at/all`, is not to be found"],
        )
        .unwrap();
    let wide = [(
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".to_owned(),
        Tensor::zeros([2, 33], (Kind::Float, Device::Cpu)),
    )];
    lora(&dir.join("adapters/wide"), "one", 4);
    write_tensors(&dir.join("adapters/wide/adapter_model.safetensors"), &wide).unwrap();
    serve(&["--model", "one", "--adapter", "wide=adapters/wide"])
        .fail(
            2,
            &[
                "adapters/wide",
                "q_proj.lora_A.weight has shape [2, 33], the model asks for [2, 32]",
            ],
        )
        .unwrap();
}

//! What is said of adapters, tasks and commands that cannot be.

use model::weights::{WeightFiles, write_tensors};

use super::adapters::peft;
use super::bad_input::edit;
use super::refusals::{prompt_file, refused, refused_with};
use super::*;

#[test]
fn targets_and_ranks_that_cannot_be_are_named() {
    let yard = yard(&["data", "sft"]);
    let dir = yard.path();
    let with = |lora: &str| format!("peft={{method={{lora={{{lora}}}}}}}");
    for (lora, said) in [
        (
            "target_modules=[\"q_prj\"]",
            &[
                "peft: target_modules: `q_prj` is no linear layer of this model; the nearest are `q_proj`, ",
            ][..],
        ),
        ("target_modules=\"transformer.*\"", &["`transformer.*` is no linear layer of this model"]),
        (
            "target_modules=[\"lm_head\"]",
            &["`lm_head` is not a linear layer inside a transformer layer", "modules_to_save"],
        ),
        ("target_modules=[]", &["the list names no layer"]),
        (
            "r=33",
            &[
                "peft: r: a rank of 33 does not fit model.layers.0.self_attn.q_proj, which is [32, 32]; give from 1 to 32",
                "rank_pattern",
            ],
        ),
        ("layers_to_transform=[2]", &["layers_to_transform: there is no layer 2; the last is 1"]),
        ("lora_dropout=1.0", &["lora_dropout: must be from 0 to below 1, got 1"]),
        ("rank=2", &["unknown field `rank`"]),
    ] {
        refused_with(dir, "peft", &[&with(lora)], said);
    }
    let r = "peft: r: a rank of 0 does not fit model.layers.0.self_attn.q_proj";
    for name in ["sft", "finetune"] {
        refused_with(dir, name, &[&with("r=0"), "model.path=sft"], &[r]);
    }
    let bottleneck = "peft={method={bottleneck={size=64}}}";
    let wide = "peft: size: a bottleneck of 64 does not fit the model's width; give from 1 to 32";
    refused(dir, "peft", &[(bottleneck, wide)]);
}

#[test]
fn a_table_of_one_thing_too_many_or_too_few_is_refused() {
    let yard = yard(&["data", "sft", "peft"]);
    let dir = yard.path();
    refused(
        dir,
        "peft",
        &[
            ("peft.adapter=\"peft\"", "peft.adapter: is given beside peft.method; leave one out"),
            ("train.log_every_steps=0", "train.log_every_steps: must be at least 1"),
        ],
    );
    let neither = "peft: needs a method, such as [peft.method.lora], or an adapter to go on from";
    refused(dir, "peft", &[("peft={}", neither)]);
    refused_with(dir, "finetune", &["peft.quantization={}"], &[neither]);
    let merge = "peft={method={bottleneck={size=4}},merge=true}";
    refused_with(dir, "peft", &[merge], &["peft.merge: cannot be with a bottleneck adapter"]);
    let pissa = "peft={method={lora={init_lora_weights=\"pissa\"}},quantization={}}";
    refused_with(dir, "peft", &[pissa], &["peft.quantization: does not go with init_lora_weights"]);
    let saved = "peft={adapter=\"peft\",modules_to_save=[\"norm\"]}";
    let saved_too = "peft.modules_to_save: is for a new adapter; one to go on from brings its own";
    refused_with(dir, "peft", &[saved], &[saved_too]);
    // A whole module in 4 bits. What was there before stays.
    let four_bit = "peft={method={lora={target_modules=[\"q_proj\"]}},modules_to_save=[\"down_proj\"],quantization={}}";
    let kept =
        "model.layers.0.mlp.down_proj is to be trained whole, but its weight is kept in 4 bits";
    refused_with(dir, "peft", &[four_bit], &[kept, "quantization.skip_modules"]);
    assert_same_files(&dir.join("peft"), &FINISHED.join("peft"));
    edit(dir, "peft.toml", LORA, "");
    refused(
        dir,
        "peft",
        &[
            (
                "",
                "peft: is missing: say what to train, as in [peft.method.lora]; `finetune` trains all parameters",
            ),
            ("train.log_every_steps=0", "train.log_every_steps: must be at least 1"),
        ],
    );
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let yard = yard(&["data", "sft", "pretrain", "peft"]);
    let dir = yard.path();
    let on = "peft={adapter=\"peft\"}";
    let other = "peft/adapter: this adapter is of another base (sft/model), not of pretrain/model";
    let said = format!("peft.adapter: {other}");
    refused_with(dir, "peft", &["model.path=pretrain", on], &[&said]);
    let merge = ["merge", "--model", "pretrain", "--adapter", "peft", "--output", "x"];
    let advice = "hint: give the model it was trained over";
    peft(dir, &merge).fail(2, &[&format!("error: {other}"), advice]).unwrap();
    assert!(!dir.join("x").exists());
    peft(dir, &merge).args(["--any-base"]).succeed().unwrap();
    Stage::new("chat", dir)
        .args(["--model", "pretrain", "--adapter", "peft", "--raw", "--prompt", "x"])
        .fail(2, &[&format!("error: {other}"), advice])
        .unwrap();
    let convert = ["convert", "--model", "pretrain", "--adapter", "peft", "--output", "y"];
    peft(dir, &convert).fail(2, &[other]).unwrap();

    // One that does not say: shapes tell.
    copy(&dir.join("peft/adapter"), &dir.join("theirs"));
    let file = dir.join("theirs/adapter_model.safetensors");
    let weights = WeightFiles::open_file(&file).unwrap();
    let tensors: Vec<_> = weights
        .names()
        .map(|name| (name.to_owned(), weights.tensor(name).unwrap().copy()))
        .collect();
    drop(weights);
    write_tensors(&file, &tensors).unwrap();
    let info = peft(dir, &["info", "theirs"]).succeed().unwrap().stdout;
    assert!(info.contains("fits          unknown: "), "{info}");
    edit(dir, "theirs/adapter_config.json", "\"r\": 2", "\"r\": 3");
    let shape = "lora_A.weight has shape [2, 32], the model asks for [3, 32]";
    let parts = ["model.layers.0.self_attn.q_proj", shape];
    refused_with(dir, "peft", &["peft={adapter=\"theirs\"}"], &parts);
    let merge = ["merge", "--model", "sft", "--adapter", "theirs", "--output", "x"];
    peft(dir, &merge).fail(2, &parts).unwrap();
}

#[test]
fn files_that_are_no_adapter_are_named() {
    let yard = yard(&["data", "sft", "peft"]);
    let dir = yard.path();
    refused_with(
        dir,
        "peft",
        &["peft={adapter=\"sft\"}"],
        &["peft.adapter: sft: no adapter here: neither adapter_config.json nor adapter/"],
    );
    refused_with(
        dir,
        "peft",
        &["peft={adapter=\"none\"}"],
        &["peft.adapter: none: does not exist"],
    );
    let merge = |adapter: &str| {
        peft(dir, &["merge", "--model", "sft", "--adapter", adapter, "--output", "x"])
    };
    merge("sft").fail(2, &["error: sft: no adapter here"]).unwrap();
    merge("none").fail(2, &["error: none: does not exist"]).unwrap();
    peft(dir, &["info", "none"]).fail(2, &["error: none: does not exist"]).unwrap();
    let none = "is the run directory of a stage that makes no model";
    peft(dir, &["info", "data"]).fail(2, &[none]).unwrap();
    refused_with(
        dir,
        "sft",
        &["model.path=peft"],
        &[
            "model.path: peft: is the run directory of a stage that made an adapter only: set peft.merge = true there, or \
             run `peft merge`",
        ],
    );
    copy(&dir.join("peft/adapter"), &dir.join("mine"));
    edit(dir, "mine/adapter_config.json", "\"LORA\"", "\"LOHA\"");
    merge("mine")
        .fail(2, &["mine/adapter_config.json", "peft_type LOHA is not supported"])
        .unwrap();
    fs_err::write(dir.join("mine/adapter_config.json"), "{").unwrap();
    merge("mine").fail(2, &["mine/adapter_config.json: not JSON"]).unwrap();
    fs_err::remove_file(dir.join("peft/manifest.json")).unwrap();
    merge("peft")
        .fail(2, &["peft: no manifest.json, so the run that makes it has not finished"])
        .unwrap();
    // Four bits go back to four bits only by way of the whole.
    let bits = ["convert", "--model", "sft", "--to", "nf4", "--output", "nf4"];
    peft(dir, &bits).succeed().unwrap();
    let merge =
        ["merge", "--model", "nf4", "--adapter", "peft/adapter", "--output", "x", "--any-base"];
    peft(dir, &merge)
        .fail(2, &["the base is in 4 bits", "merge into the base in full precision"])
        .unwrap();
    assert!(!dir.join("x").exists());
}

#[test]
fn what_is_there_is_not_written_over() {
    let yard = yard(&["data", "sft", "peft"]);
    let dir = yard.path();
    let before = files(dir);
    let into = |words: &[&str], output: &str, said: &str| {
        peft(dir, words).args(["--output", output]).fail(2, &[said]).unwrap();
    };
    let merge = ["merge", "--model", "sft", "--adapter", "peft"];
    let convert = ["convert", "--model", "sft", "--to", "bf16"];
    let anew = ["convert", "--model", "sft", "--adapter", "peft"];
    for words in [&merge[..], &convert] {
        into(
            words,
            "data",
            "error: data: is there already and has no config.json; choose another --output",
        );
        into(words, "peft.toml", "error: peft.toml: is there already");
        into(words, "sft/model", "error: sft/model: is what is read; choose another --output");
    }
    into(&anew, "data", "error: data: is there already and has no adapter_config.json");
    into(&anew, "sft/model", "error: sft/model: is there already and has no adapter_config.json");
    into(&anew, "peft/adapter", "error: peft/adapter: is what is read");
    into(&["convert", "--model", "sft"], "x", "--to");
    into(&["merge", "--model", "sft"], "x", "--adapter");
    assert!(files(dir) == before, "something has changed");
}

#[test]
fn an_evaluation_that_cannot_be_is_refused() {
    let yard = yard(&["data", "sft"]);
    let dir = yard.path();
    prompt_file(&dir.join("mute.parquet"), "Who?", None);
    prompt_file(
        &dir.join("long.parquet"),
        &"who ".repeat(200),
        Some("{\"exact\":{\"answer\":\"x\"}}"),
    );
    let one = "evaluation.things.labels: needs at least two answers to choose from";
    refused(dir, "finetune", &[("evaluation.things.labels=[\"apple\"]", one)]);
    refused_with(
        dir,
        "finetune",
        &["evaluation={a={prompts=\"none.parquet\",batch_rows=0},b={prompts=\"mute.parquet\"}}"],
        &[
            "evaluation.a.prompts: none.parquet does not exist; run the stage that makes it",
            "evaluation.a.batch_rows: must be from 1 to 4096, got 0",
            "evaluation.b.prompts: mute.parquet: row 0 has no right answer to compare with (columns `answer`, `checker`)",
        ],
    );
    refused_with(
        dir,
        "finetune",
        &["evaluation={a={prompts=\"long.parquet\"}}"],
        &[
            "evaluation.a.prompts: long.parquet: row 0: a prompt of",
            "leaves no room for an answer in the model's 128 positions",
        ],
    );
    let labels = "evaluation.things.labels: no prompt has one of them as its answer";
    refused_with(dir, "finetune", &["evaluation.things.labels=[\"a\",\"b\"]"], &[labels]);
    refused_with(dir, "finetune", &["evaluation.things.label=[]"], &["unknown field `label`"]);
    refused_with(
        dir,
        "finetune",
        &["model.path=nowhere"],
        &["model.path: nowhere: does not exist"],
    );
}

#[test]
fn another_adapter_does_not_go_on_from_a_checkpoint() {
    let yard = yard(&["data", "sft"]);
    let dir = yard.path();
    let mut running = stage("peft", dir).start().unwrap();
    running.wait_until(|| checkpoints(&dir.join("peft")) > 0).unwrap();
    running.kill().unwrap();
    let said = ["made with another config (then -> now)", "peft.method.lora.r: 2 -> 3"];
    refused_with(dir, "peft", &["peft.method.lora.r=3"], &said);
}

//! What is said when something is wrong: which file, row or key, why, and what to do.

use super::*;

/// Replaces text in a config.
pub(crate) fn edit(dir: &Path, config: &str, from: &str, to: &str) {
    let path = dir.join(config);
    let text = fs_err::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{config} has no {from:?}");
    fs_err::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Edits the config of a copy, and expects a refusal that touches nothing.
fn refused(runs: &[&str], name: &str, from: &str, to: &str, parts: &[&str]) {
    let yard = yard(runs);
    edit(yard.path(), &format!("{name}.toml"), from, to);
    stage(name, yard.path()).args(["--out", "fresh"]).fail(2, parts).unwrap();
    assert!(!yard.path().join("fresh").exists(), "a refused config leaves nothing");
}

#[test]
fn an_unknown_key_is_shown_in_its_line_with_the_nearest_name() {
    refused(
        &["data", "pretrain"],
        "sft",
        "learning_rate = 5e-3",
        "learning_rat = 5e-3",
        &[
            "error: cannot load sft.toml",
            "TOML parse error at line 16, column 1",
            "learning_rat = 5e-3",
            "unknown field `learning_rat`",
            "did you mean `learning_rate`?",
        ],
    );
}

#[test]
fn a_value_of_the_wrong_type_is_shown_in_its_line() {
    refused(
        &["data", "pretrain"],
        "sft",
        "epochs = 2",
        "epochs = \"two\"",
        &["TOML parse error at line 10, column 10", "invalid type: string \"two\", expected f64"],
    );
    let yard = yard(&["data", "pretrain"]);
    stage("sft", yard.path())
        .args(["--set", "train.precision=fp64"])
        .fail(2, &["--set train.precision=fp64", "unknown variant `fp64`", "fp32"])
        .unwrap();
}

#[test]
fn all_problems_of_a_config_are_told_at_once() {
    let yard = yard(&["data", "pretrain"]);
    let changes = [
        "train.epochs=0",
        "train.optimizer.learning_rate=-1",
        "train.micro_batch_tokens=0",
        "model.path=nowhere",
        "samples.prompts=none.parquet",
    ];
    let sets = changes.iter().flat_map(|change| ["--set", change]);
    let outcome = stage("sft", yard.path()).args(sets).run().unwrap();
    let error = &outcome.stderr[outcome.stderr.find("error:").unwrap()..];
    assert_eq!(
        error,
        "error: sft.toml has 5 problems\n\
         \x20 - train.epochs: must be above 0 and at most 1000 (give steps for more), got 0 (set by --set train.epochs=0)\n\
         \x20 - train.micro_batch_tokens: must be from 1 to 1073741824, got 0 (set by --set train.micro_batch_tokens=0)\n\
         \x20 - train.optimizer.learning_rate: must be above 0, got -1 (set by --set train.optimizer.learning_rate=-1)\n\
         \x20 - samples.prompts: none.parquet does not exist; run the stage that makes it, or correct the path (set by \
         --set samples.prompts=none.parquet)\n\
         \x20 - model.path: nowhere: does not exist; give a Hugging Face model directory or the run directory of a \
         finished stage that makes a model (set by --set model.path=nowhere)\n"
    );
    assert_eq!(outcome.code(), Some(2));
}

#[test]
fn a_missing_input_names_the_stage_that_makes_it() {
    refused(
        &["data", "pretrain"],
        "sft",
        "instructions/train.parquet",
        "instruction/train.parquet",
        &[
            "data.train: data/data/instruction/train.parquet does not exist; run the stage that makes it",
        ],
    );
}

#[test]
fn an_unfinished_stage_is_not_read_from() {
    let yard = yard(&["data", "pretrain"]);
    fs_err::remove_file(yard.path().join("pretrain/manifest.json")).unwrap();
    stage("sft", yard.path())
        .fail(
            2,
            &["model.path: pretrain: no manifest.json, so the run that makes it has not finished"],
        )
        .unwrap();
}

#[test]
fn an_empty_data_set_says_where_to_look() {
    let yard = yard(&["data", "pretrain"]);
    let path = yard.path().join("data/data/text/train.parquet");
    let meta = artifact::tokens::TokenReader::open(&path).unwrap().meta().clone();
    artifact::tokens::TokenWriter::create(&path, meta).unwrap().finish().unwrap();
    stage("pretrain", yard.path())
        .fail(
            2,
            &["data.train: data/data/text/train.parquet: no token rows; the data set is empty"],
        )
        .unwrap();
}

#[test]
fn truncated_and_foreign_token_files_are_named() {
    let yard = yard(&["data"]);
    let path = yard.path().join("data/data/text/train.parquet");
    let bytes = fs_err::read(&path).unwrap();
    fs_err::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    stage("pretrain", yard.path())
        .fail(2, &["data.train: data/data/text/train.parquet: not a readable Parquet file"])
        .unwrap();
    let prompts = yard.path().join("data/data/instructions/prompts.parquet");
    fs_err::copy(prompts, &path).unwrap();
    stage("pretrain", yard.path())
        .fail(
            2,
            &["no column `input_ids` of type list<int32>", "token rows are made by `data-prep`"],
        )
        .unwrap();
}

#[test]
fn data_that_changed_since_it_was_made_is_refused() {
    let yard = yard(&["data", "pretrain"]);
    let data = yard.path().join("data/data");
    fs_err::copy(data.join("text/train.parquet"), data.join("text/validation.parquet")).unwrap();
    stage("pretrain", yard.path())
        .fail(
            1,
            &[
                "validation.parquet: changed since stage `data-prep` wrote it",
                "run `data-prep` again",
            ],
        )
        .unwrap();
}

#[test]
fn damaged_weights_are_named_with_what_is_wrong() {
    let yard = yard(&["data", "pretrain"]);
    // Away from the manifest, as a model that was downloaded.
    let model = yard.path().join("model");
    copy(&yard.path().join("pretrain/model"), &model);
    edit(yard.path(), "sft.toml", "path = \"pretrain\"", "path = \"model\"");
    let file = model.join("model.safetensors");
    let bytes = fs_err::read(&file).unwrap();
    let try_with = |bytes: &[u8], parts: &[&str]| {
        fs_err::write(&file, bytes).unwrap();
        stage("sft", yard.path()).fail(1, parts).unwrap();
    };
    try_with(
        &bytes[..bytes.len() - 100],
        &["model/model.safetensors: the header promises another number of bytes", "truncated"],
    );
    try_with(&bytes[..4], &["model/model.safetensors: only 4 bytes, too short"]);
    let with = |from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|part| part == from).unwrap();
        let mut changed = bytes.clone();
        changed[at..at + to.len()].copy_from_slice(to);
        changed
    };
    let lying = with(b"[32,64]", b"[32,99]");
    try_with(
        &lying,
        &[
            "model/model.safetensors: the header lies about tensor",
            "copy or download the file again",
        ],
    );
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    try_with(
        &huge,
        &["model/model.safetensors: the header is said to take 18446744073709551615 bytes"],
    );
    let renamed = with(b"model.norm.weight", b"model.norm.weigth");
    try_with(&renamed, &["missing: model.norm.weight [32]", "unexpected: model.norm.weigth [32]"]);
    fs_err::remove_file(&file).unwrap();
    stage("sft", yard.path()).fail(1, &["there is no model.safetensors"]).unwrap();
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let yard = yard(&["data", "pretrain"]);
    let other =
        DATA_PREP.replace("vocab_size = 400", "vocab_size = 390").replace("\"data\"", "\"other\"");
    fs_err::write(yard.path().join("data-prep.toml"), other).unwrap();
    for name in [
        "texts.jsonl",
        "conversations.jsonl",
        "preferences.jsonl",
        "requests.jsonl",
        "things.jsonl",
    ] {
        fs_err::copy(FINISHED.join(name), yard.path().join(name)).unwrap();
    }
    stage("data-prep", yard.path()).succeed().unwrap();
    let changes = ["--set", "data.train=[\"other/data/instructions/train.parquet\"]"];
    stage("sft", yard.path())
        .args(changes)
        .fail(
            2,
            &[
                "data.validation: was made with another tokenizer than data.train",
                "model.path: other/data/instructions/train.parquet: made with tokenizer ",
                "tokenise the data again with that model's tokenizer",
            ],
        )
        .unwrap();
}

#[test]
fn a_vocabulary_smaller_than_an_id_and_too_few_positions_are_refused() {
    refused(
        &["data"],
        "pretrain",
        "hidden_size = 32",
        "hidden_size = 32\nvocab_size = 399",
        &["model.config: has a vocabulary of 399, but the data's tokenizer has ids up to 399"],
    );
    refused(
        &["data"],
        "pretrain",
        "max_position_embeddings = 128",
        "max_position_embeddings = 8",
        &[
            "model.config: has 8 positions (max_position_embeddings), but the longest row of the data has ",
            "run data-prep with max_length = 8 or less",
        ],
    );
}

#[test]
fn a_model_config_that_cannot_be_lists_its_problems() {
    refused(
        &["data"],
        "pretrain",
        "num_attention_heads = 2",
        "num_attention_heads = 3\nnum_key_value_heads = 2",
        &[
            "model.config: config: cannot use this model config:",
            "`num_attention_heads` (3) is not a multiple of",
        ],
    );
    refused(
        &["data"],
        "pretrain",
        "model_type = \"llama\"",
        "model_type = \"mamba\"",
        &[
            "`model_type` \"mamba\" is not supported; supported are gpt2, llama, mistral, qwen2, qwen3",
        ],
    );
}

#[test]
fn a_checkpoint_of_another_config_is_refused_with_the_difference() {
    let yard = yard(&["data"]);
    let mut running = stage("pretrain", yard.path()).start().unwrap();
    running.wait_until(|| checkpoints(&yard.path().join("pretrain")) > 0).unwrap();
    running.kill().unwrap();
    let change = ["--set", "train.optimizer.learning_rate=0.5"];
    for _ in 0..2 {
        stage("pretrain", yard.path())
            .args(change)
            .fail(
                2,
                &[
                    "made with another config (then -> now)",
                    "train.optimizer.learning_rate: 0.01 -> 0.5",
                    "hint: put the config back to go on",
                    "hint: start over with --resume never",
                ],
            )
            .unwrap();
    }
    stage("pretrain", yard.path()).args(change).args(["--resume", "never"]).succeed().unwrap();
}

#[test]
fn a_full_disk_is_said_and_the_earlier_checkpoint_stays() {
    let yard = yard(&["data"]);
    let mut running = stage("pretrain", yard.path()).start().unwrap();
    let whole = || checkpoints(&yard.path().join("pretrain"));
    running.wait_until(|| whole() > 0).unwrap();
    running.kill().unwrap();
    let before = whole();
    // The weights take 118 kB.
    stage("pretrain", yard.path())
        .small_disk("64")
        .fail(1, &["error: cannot save the checkpoint pretrain/checkpoints/step-", "caused by: "])
        .unwrap();
    assert!(whole() >= before.min(1));
    let resumed = stage("pretrain", yard.path()).succeed().unwrap();
    assert!(resumed.stderr.contains("goes on from"), "{resumed}");
    assert_same_files(&yard.path().join("pretrain/model"), &FINISHED.join("pretrain/model"));
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let yard = yard(&["data"]);
    Stage::new("pretrain", yard.path())
        .args(["--config", "pretrain.toml", "--device", "cuda:63"])
        .fail(2, &["error: device cuda:63 is not there: CUDA: ", "use --device cpu or auto"])
        .unwrap();
}

#[test]
fn a_folder_with_other_things_is_not_taken_for_a_run_directory() {
    let yard = yard(&["data"]);
    fs_err::create_dir_all(yard.path().join("mine")).unwrap();
    fs_err::write(yard.path().join("mine/thesis.txt"), "x").unwrap();
    for extra in [&["--out", "mine"][..], &["--out", "mine", "--resume", "never"]] {
        stage("pretrain", yard.path())
            .args(extra.iter().copied())
            .fail(2, &["mine: holds `thesis.txt`, so it is not a run directory of temper"])
            .unwrap();
    }
    assert!(yard.path().join("mine/thesis.txt").exists());
}

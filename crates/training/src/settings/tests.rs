use super::*;

fn parse(text: &str) -> Train {
    toml::from_str(text).unwrap()
}

const LEAST: &str = "epochs = 1.5\nbatch_size.sequences = 4\nmicro_batch_tokens = 512\n\
                     optimizer.learning_rate = 1e-3\nschedule.cosine = {}\n";

#[test]
fn the_least_config_has_the_usual_defaults_and_no_problems() {
    let train = parse(LEAST);
    assert!(train.problems().is_empty());
    let adam = &train.optimizer;
    assert_eq!((adam.adam_beta1, adam.adam_beta2, adam.adam_epsilon), (0.9, 0.999, 1e-8));
    assert_eq!((adam.weight_decay, adam.max_grad_norm), (0.0, None));
    assert_eq!((train.precision, train.log_every_steps), (Precision::Fp32, 10));
    assert_eq!(train.checkpoint, Checkpoint::default());
    // What is written out reads back the same, so that a manifest's config can be run again.
    let again: Train = toml::from_str(&toml::to_string(&train).unwrap()).unwrap();
    assert_eq!(again, train);
}

#[test]
fn every_impossible_value_is_named_at_once() {
    let train = parse(
        "steps = 0\nbatch_size.tokens = 0\nmicro_batch_tokens = 0\ndropout = 1.0\nresidual_dropout = -1.0\nmax_skipped_steps = 0\n\
         checkpointing_interval = 0\n\
         log_every_steps = 0\n\
         [optimizer]\nlearning_rate = 0.0\nweight_decay = -0.1\nadam_beta1 = 1.0\nadam_beta2 = -0.1\n\
         adam_epsilon = 0.0\noptim_bits = 16\nmax_grad_norm = 0.0\n\
         [schedule.wsd]\ndecay_ratio = 1.5\n\
         [eval]\nearly_stopping_patience = 0\n\
         [checkpoint]\nevery_steps = 0\nsave_total_limit = 0\nkeep_best = true\n",
    );
    let expected = "- steps: must be at least 1\n\
        - batch_size: must be from 1 to 1073741824, got 0\n\
        - micro_batch_tokens: must be from 1 to 1073741824, got 0\n\
        - dropout: must be from 0 to below 1, got 1\n\
        - residual_dropout: must be from 0 to below 1, got -1\n\
        - checkpointing_interval: must be at least 1\n\
        - max_skipped_steps: must be at least 1\n\
        - log_every_steps: must be at least 1\n\
        - optimizer.learning_rate: must be above 0, got 0\n\
        - optimizer.weight_decay: must be 0 or above, got -0.1\n\
        - optimizer.adam_beta1: must be from 0 to below 1, got 1\n\
        - optimizer.adam_beta2: must be from 0 to below 1, got -0.1\n\
        - optimizer.adam_epsilon: must be above 0, got 0\n\
        - optimizer.optim_bits: must be 32 or 8, got 16\n\
        - optimizer.max_grad_norm: must be above 0, or absent, got 0\n\
        - schedule.wsd.decay_ratio: must be from 0 to 1, got 1.5\n\
        - eval.early_stopping_patience: needs eval.every_steps\n\
        - eval.early_stopping_patience: must be at least 1, or absent\n\
        - checkpoint.every_steps: must be at least 1, or absent\n\
        - checkpoint.save_total_limit: must be at least 1: a resumed run needs the newest\n\
        - checkpoint.keep_best: needs eval.every_steps";
    assert_eq!(train.problems().to_string(), expected);
}

#[test]
fn dropout_is_the_models_unless_given_and_of_the_residual_branches_apart() {
    let usual = Dropout { embedding: 0.1, attention: 0.2, residual: 0.3 };
    let over = |keys: &str| {
        let Dropout { embedding, attention, residual } =
            parse(&format!("{keys}\n{LEAST}")).dropout_over(usual);
        [embedding, attention, residual]
    };
    assert_eq!(over(""), [0.1, 0.2, 0.3]);
    assert_eq!(over("dropout = 0.0"), [0.0, 0.0, 0.0]);
    assert_eq!(over("residual_dropout = 0.5"), [0.1, 0.2, 0.5]);
    assert_eq!(over("dropout = 0.4\nresidual_dropout = 0.0"), [0.4, 0.4, 0.0]);
}

fn keys(value: &serde_json::Value, found: &mut Vec<String>) {
    for (key, inner) in value.as_object().into_iter().flatten() {
        found.push(key.clone());
        keys(inner, found);
    }
}

/// A key in a comment counts too.
fn shows(file: &str, key: &str) -> bool {
    let forms = [format!("{key} = "), format!("{key}]"), format!("{key}."), format!("{key}: ")];
    forms.iter().any(|form| file.contains(form))
}

/// The shipped files are the reference: every key that the program knows is in them, if only in a comment.
#[test]
fn the_shipped_files_show_every_key() {
    let train = parse(
        "epochs = 1\nsteps = 1\nbatch_size.tokens = 1\nmicro_batch_tokens = 1\ndropout = 0.1\nresidual_dropout = 0.1\n\
         [optimizer]\nlearning_rate = 1\nmax_grad_norm = 1\n\
         [schedule.wsd]\nwarmup_steps = 1\nwarmup_ratio = 0.1\ndecay_ratio = 0.1\n\
         [eval]\nevery_steps = 1\nmax_tokens = 1\nearly_stopping_patience = 1\n[checkpoint]\nevery_steps = 1\n",
    );
    let path = PathBuf::from("x");
    let data = Data {
        train: vec![path.clone()],
        validation: vec![path.clone()],
        tokenizer: Some(path.clone()),
    };
    let samples = Samples { prompts: path, max_prompts: Some(1), max_new_tokens: 1, batch_rows: 1 };
    let save = Save::default();
    let mut all = serde_json::json!({"train": train, "data": data, "save": save});
    let mut without_samples = Vec::new();
    keys(&all, &mut without_samples);
    all["samples"] = serde_json::to_value(samples).unwrap();
    let mut known = Vec::new();
    keys(&all, &mut known);
    assert!(known.len() > 35, "{known:?}");
    let files = [
        (include_str!("../../../../configs/pretrain.toml"), &known),
        (include_str!("../../../../configs/sft.toml"), &known),
        (include_str!("../../../../configs/finetune.toml"), &without_samples),
    ];
    for (file, known) in files {
        let table: toml::Table = file.parse().unwrap();
        let train: Train = table["train"].clone().try_into().unwrap();
        assert_eq!(train.problems().to_string(), "");
        for key in known {
            // One schedule is shown in each file.
            let schedules = ["wsd", "decay_ratio", "decay"].contains(&key.as_str());
            let first = &file[..60];
            assert!(
                schedules || shows(file, key),
                "`{key}` is not in the file that begins {first:?}"
            );
        }
    }
}

const PEFT: &str = include_str!("../../../../configs/peft.toml");

/// The table that stands in comments of [`PEFT`] under a header in one.
fn commented(header: &str) -> toml::Table {
    let mut lines = PEFT.lines().skip_while(|line| !line.starts_with(&format!("# [{header}]")));
    assert!(lines.next().is_some(), "configs/peft.toml does not show [{header}]");
    let lines = lines.map_while(|line| line.strip_prefix("# "));
    lines.collect::<Vec<_>>().join("\n").parse().unwrap()
}

#[test]
fn the_shipped_files_show_every_key_of_adapters_and_evaluations() {
    let lora: Method = toml::from_str(
        "[lora]\nexclude_modules = [\"a\"]\nlayers_to_transform = [1]\nrank_pattern = {}\nalpha_pattern = {}\n\
         loraplus_lr_ratio = 2.0\n",
    )
    .unwrap();
    let ia3: Method =
        toml::from_str("ia3 = { target_modules = [\"a\"], feedforward_modules = [\"a\"] }")
            .unwrap();
    let bottleneck: Method = toml::from_str("bottleneck.size = 1").unwrap();
    let quantization =
        Quantization { skip_modules: vec!["a".to_owned()], ..Quantization::default() };
    let evaluation: Evaluation =
        toml::from_str("prompts = \"x\"\nmax_prompts = 1\nlabels = [\"a\", \"b\"]").unwrap();
    let mut known = vec!["rank_pattern".to_owned(), "alpha_pattern".to_owned()];
    for method in [lora, ia3, bottleneck] {
        let peft = Peft {
            method: Some(method),
            adapter: Some(PathBuf::from("x")),
            modules_to_save: vec!["a".to_owned()],
            quantization: Some(quantization.clone()),
            merge: false,
        };
        keys(&serde_json::json!({ "peft": peft }), &mut known);
    }
    let of_adapters = known.len();
    keys(&serde_json::json!({ "evaluation": { "x": evaluation } }), &mut known);
    known.retain(|key| key != "x");
    assert!(of_adapters > 30 && known.len() - of_adapters == 8, "{known:?}");
    let finetune = include_str!("../../../../configs/finetune.toml");
    for (at, key) in known.iter().enumerate() {
        let file = if at < of_adapters { PEFT } else { finetune };
        assert!(
            shows(file, key),
            "`{key}` is shown neither in configs/peft.toml nor finetune.toml"
        );
    }
    // What is commented out is right too.
    for header in ["peft.method.ia3", "peft.method.bottleneck"] {
        let table = toml::Value::Table(commented(header));
        let name = header.rsplit('.').next().unwrap().to_owned();
        let method: Method =
            toml::Value::Table([(name, table)].into_iter().collect()).try_into().unwrap();
        assert!(!matches!(method, Method::Lora(_)));
    }
    let shown: Quantization = commented("peft.quantization").try_into().unwrap();
    assert_eq!(shown.skip_modules, ["down_proj"]);
}

#[test]
fn the_shipped_fine_tuning_files_are_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut files = vec![folder.join("finetune.toml"), folder.join("peft.toml")];
    let methods = fs_err::read_dir(folder.join("methods")).unwrap();
    files.extend(methods.map(|entry| entry.unwrap().path()));
    assert!(files.len() > 10, "{files:?}");
    for file in files {
        let config: crate::fine_tune::Config =
            toml::from_str(&fs_err::read_to_string(&file).unwrap())
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(config.train.problems().to_string(), "", "{}", file.display());
        let name = file.file_stem().unwrap();
        let trains_all = name == "finetune" || name == "full";
        assert_eq!(config.peft.is_none(), trains_all, "{}", file.display());
        assert!(config.peft.is_none_or(|peft| peft.method.is_some()), "{}", file.display());
        assert!(!config.evaluation.is_empty(), "{}", file.display());
    }
}

#[test]
fn a_run_needs_one_length() {
    let both = parse(&format!("steps = 3\n{LEAST}")).problems().to_string();
    assert_eq!(both, "- steps: is given beside `epochs`; leave one out");
    let none = parse(&LEAST.replace("epochs = 1.5\n", "")).problems().to_string();
    assert_eq!(none, "- needs `epochs` or `steps`");
    let nan = parse(&LEAST.replace("1.5", "nan")).problems().to_string();
    assert_eq!(nan, "- epochs: must be above 0 and at most 1000 (give steps for more), got NaN");
}

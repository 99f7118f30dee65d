//! Adapters: what each method leaves, and what `peft`'s commands and `chat` make of it.

use tch::{Kind, Tensor};
use temper_tests::fixtures::Tensors;

use super::*;

/// A way to adapt, tried on a few steps.
struct Method {
    name: &'static str,
    /// What `peft info` calls it.
    shown: &'static str,
    settings: &'static [&'static str],
    /// Whether a weight can take it in.
    merges: bool,
}

const METHODS: [Method; 8] = [
    Method { name: "lora", shown: "LoRA", settings: &["peft.method={lora={r=2}}"], merges: true },
    Method {
        name: "half",
        shown: "LoRA",
        settings: &["peft.method={lora={r=2,use_rslora=true}}", "train.precision=bf16"],
        merges: true,
    },
    Method {
        name: "qlora",
        shown: "LoRA",
        settings: &["peft.method={lora={r=2}}", "peft.quantization={}", "train.precision=bf16"],
        merges: true,
    },
    Method { name: "ia3", shown: "IA3", settings: &["peft.method={ia3={}}"], merges: true },
    Method {
        name: "bottleneck",
        shown: "bottleneck",
        settings: &["peft.method={bottleneck={size=4}}"],
        merges: false,
    },
    Method {
        name: "dora",
        shown: "DoRA",
        settings: &["peft.method={lora={r=2,use_dora=true}}"],
        merges: true,
    },
    Method {
        name: "pissa",
        shown: "LoRA",
        settings: &["peft.method={lora={r=2,init_lora_weights=\"pissa\"}}"],
        merges: true,
    },
    Method {
        name: "saved",
        shown: "LoRA",
        settings: &["peft.method={lora={r=2}}", "peft.modules_to_save=[\"embed_tokens\"]"],
        merges: true,
    },
];

/// Trains a few steps of `peft` into `out`, without an evaluation.
#[track_caller]
fn train(dir: &Path, out: &str, settings: &[&str]) {
    let few = ["train.steps=4", "evaluation={}"];
    let few = few.iter().chain(settings).copied().collect::<Vec<_>>();
    stage("peft", dir).args(["--out", out]).args(sets(&few)).succeed().unwrap();
}

/// A command of `peft`.
pub(crate) fn peft<'a>(dir: &'a Path, words: &[&str]) -> Stage<'a> {
    Stage::new("peft", dir).args(words.iter().copied())
}

/// What `chat` answers.
#[track_caller]
fn chat(dir: &Path, model: &[&str]) -> String {
    let asked = ["--prompt", "en: Minsu found the pear at place 2.", "--max-new-tokens", "8"];
    let words = Stage::new("chat", dir).args(["--device", "cpu"]).args(asked);
    words.args(model.iter().copied()).succeed().unwrap().stdout
}

fn weights(dir: &Path) -> Tensors {
    Tensors::read(&dir.join("model.safetensors")).unwrap()
}

/// The largest difference of two models' weights, which have the same names.
fn difference(a: &Tensors, b: &Tensors) -> f64 {
    assert_eq!(a.names().collect::<Vec<_>>(), b.names().collect::<Vec<_>>());
    let of = |name| {
        let [a, b] = [a, b].map(|tensors| tensors.get(name).unwrap().to_kind(Kind::Double));
        f64::try_from((a - b).abs().max()).unwrap()
    };
    a.names().map(of).fold(0.0, f64::max)
}

#[test]
fn every_method_leaves_an_adapter_and_the_base_as_it_was() {
    let yard = yard(&["data", "sft"]);
    let dir = yard.path();
    for Method { name, shown, settings, merges } in METHODS {
        let merge = format!("peft.merge={merges}");
        train(dir, name, &[settings, &[merge.as_str()]].concat());
        let run = dir.join(name);
        let manifest = json(&run.join("manifest.json"));
        for file in [
            "adapter_config.json",
            "adapter_model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ] {
            let digest = artifact::digest::file(run.join("adapter").join(file)).unwrap();
            assert_eq!(
                manifest["outputs"][format!("adapter/{file}")],
                digest.as_str(),
                "{name}/{file}"
            );
        }
        assert_eq!(run.join("model").exists(), merges, "{name}");
        assert!(!run.join("samples.parquet").exists(), "{name}");
        let found = results(&run);
        assert!(found["memory"]["adapter"].as_u64().unwrap() > 0, "{name}: {found}");
        assert!(found.get("evaluation").is_none(), "{name}: {found}");
        // Everything of it has moved: at least B, which starts at 0.
        let adapter = Tensors::read(&run.join("adapter/adapter_model.safetensors")).unwrap();
        assert!(adapter.names().all(|key| key.starts_with("base_model.model.")), "{name}");
        for key in adapter.names() {
            let largest = f64::try_from(adapter.get(key).unwrap().abs().max()).unwrap();
            assert!(largest > 0.0 && largest.is_finite(), "{name}: {key}");
        }
        let info = peft(dir, &["info", name]).succeed().unwrap().stdout;
        for part in [
            &format!("method        {shown}\n"),
            "for           a language model\n",
            "base          sft/model\n",
            "fits          yes: it was trained over these weights\n",
        ] {
            assert!(info.contains(part), "{part:?} in\n{info}");
        }
        // What the stage merged is what the command merges.
        let merged = format!("{name}-merged");
        let words = ["merge", "--model", "sft", "--adapter", name, "--output", &merged];
        if merges {
            let said = peft(dir, &words).succeed().unwrap().stdout;
            let start = format!("{name}/adapter: merged; logits differ by at most ");
            let by = said.strip_prefix(&start).unwrap().split(' ').next().unwrap();
            assert!(by.parse::<f64>().unwrap() < 1e-4, "{said}");
            let file = |of: PathBuf| fs_err::read(of.join("model.safetensors")).unwrap();
            assert!(file(dir.join(&merged)) == file(run.join("model")), "{name}");
            assert!(dir.join(&merged).join("tokenizer.json").exists());
        } else {
            let why = "error: a bottleneck adapter has layers of its own";
            peft(dir, &words).fail(2, &[why]).unwrap();
            assert!(!dir.join(&merged).exists());
        }
    }
    assert_same_files(&dir.join("sft"), &FINISHED.join("sft"));
    let why = "error: a DoRA cannot be taken off: the merged weights do not tell how long the base's rows were";
    peft(dir, &["unmerge", "--model", "dora", "--adapter", "dora", "--output", "plain"])
        .fail(2, &[why])
        .unwrap();
    let config = json(&dir.join("pissa/adapter/adapter_config.json"));
    assert_eq!((&config["r"], &config["init_lora_weights"]), (&4.into(), &true.into()));
    assert_eq!(json(&dir.join("ia3/adapter/adapter_config.json"))["peft_type"], "IA3");
    // An adapter with a bottleneck is used as it is.
    assert!(!chat(dir, &["--model", "bottleneck"]).trim().is_empty());
}

#[test]
fn two_adapters_are_merged_and_taken_off_again() {
    let yard = yard(&["data", "sft", "peft"]);
    let dir = yard.path();
    train(dir, "other", &["peft.method={lora={r=4,target_modules=[\"q_proj\",\"down_proj\"]}}"]);
    for (out, adapters) in
        [("one", &["peft"][..]), ("two", &["other"]), ("both", &["peft", "other"])]
    {
        let named = adapters.iter().flat_map(|adapter| ["--adapter", *adapter]);
        let words = peft(dir, &["merge", "--model", "sft", "--output", out]).args(named);
        let said = words.succeed().unwrap().stdout;
        assert_eq!(
            said.matches("/adapter: merged; logits differ by at most ").count(),
            adapters.len()
        );
        assert!(said.ends_with(&format!("written: {out}\n")), "{said}");
    }
    let [base, one, two, both] =
        ["sft/model", "one", "two", "both"].map(|name| weights(&dir.join(name)));
    for name in base.names() {
        let of = |tensors: &Tensors| tensors.get(name).unwrap().to_kind(Kind::Double);
        let sum: Tensor = of(&one) + of(&two) - of(&base) - of(&both);
        assert!(f64::try_from(sum.abs().max()).unwrap() < 1e-6, "{name}");
    }
    assert!(difference(&both, &one) > 1e-4 && difference(&both, &two) > 1e-4);
    let words = ["unmerge", "--model", "both", "--adapter", "peft", "--adapter", "other"];
    peft(dir, &words).args(["--output", "back"]).succeed().unwrap();
    assert!(difference(&weights(&dir.join("back")), &base) < 1e-6);
    // In half precision, and over what was there.
    let words = ["merge", "--model", "sft", "--adapter", "peft", "--output", "one"];
    peft(dir, &words).args(["--precision", "bf16"]).succeed().unwrap();
    let half = weights(&dir.join("one"));
    assert!(half.names().all(|name| half.get(name).unwrap().kind() == Kind::BFloat16));
}

#[test]
fn chat_takes_an_adapter_beside_its_base_or_finds_the_base() {
    let yard = yard(&["sft", "peft"]);
    let dir = yard.path();
    let words = ["merge", "--model", "sft", "--adapter", "peft", "--output", "merged"];
    peft(dir, &words).succeed().unwrap();
    let adapted = chat(dir, &["--model", "sft", "--adapter", "peft"]);
    for same in [
        &["--model", "peft"][..],
        &["--model", "peft/adapter"],
        &["--model", "sft/model", "--adapter", "peft/adapter"],
        &["--model", "merged"],
    ] {
        assert_eq!(chat(dir, same), adapted, "{same:?}");
    }
    assert_ne!(chat(dir, &["--model", "sft"]), adapted);
    fs_err::rename(dir.join("sft"), dir.join("moved")).unwrap();
    assert_eq!(chat(dir, &["--model", "moved", "--adapter", "peft"]), adapted);
    Stage::new("chat", dir)
        .args(["--model", "peft", "--prompt", "x"])
        .fail(
            2,
            &[
                "error: peft/adapter: the model it was trained over, `sft/model`, is not to be found",
                "caused by: sft/model: does not exist",
                "hint: give that model with --model and the adapter with --adapter",
            ],
        )
        .unwrap();
    let info = peft(dir, &["info", "peft"]).succeed().unwrap().stdout;
    assert!(info.contains("base          sft/model (not found from here)\n"), "{info}");
}

#[test]
fn weights_become_4_bits_and_whole_again() {
    let yard = yard(&["sft"]);
    let dir = yard.path();
    for (form, out, more) in
        [("nf4", "nf4", &[][..]), ("fp4", "fp4", &["--no-double-quant"]), ("bf16", "half", &[])]
    {
        let words = ["convert", "--model", "sft", "--to", form, "--output", out];
        let said = peft(dir, &words).args(more.iter().copied()).succeed().unwrap().stdout;
        assert_eq!(said.starts_with("logits move by "), form != "bf16", "{said}");
        assert!(dir.join(out).join("tokenizer.json").exists());
    }
    let bits = |model: &str| -> f64 {
        let info = peft(dir, &["info", model]).succeed().unwrap().stdout;
        assert!(info.contains("type          LlamaForCausalLM\nparameters    33440\n"), "{info}");
        let (_, rest) = info.split_once(" on disk, ").unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let [whole, half, nf4] = ["sft", "half", "nf4"].map(bits);
    assert!(nf4 < 0.75 * whole && half < 0.75 * whole && whole > 32.0, "{nf4} {half} {whole}");
    let words = ["convert", "--model", "nf4", "--to", "fp32", "--output", "back"];
    peft(dir, &words).succeed().unwrap();
    let (back, base) = (weights(&dir.join("back")), weights(&dir.join("sft/model")));
    assert!(back.names().all(|name| back.get(name).unwrap().kind() == Kind::Float));
    let lost = difference(&back, &base);
    assert!((1e-4..0.5).contains(&lost), "{lost}");
    assert_eq!(chat(dir, &["--model", "back"]), chat(dir, &["--model", "nf4"]));
}

#[test]
fn an_adapter_is_written_anew() {
    let yard = yard(&["sft", "peft"]);
    let dir = yard.path();
    let words = ["convert", "--model", "sft", "--adapter", "peft", "--output", "anew"];
    let said = peft(dir, &words).succeed().unwrap().stdout;
    assert_eq!(said, "written: anew\n");
    assert_same_files(&dir.join("anew"), &dir.join("peft/adapter"));
    peft(dir, &words).succeed().unwrap();
}

#[test]
fn an_adapter_over_4_bits_trains_on_from_files_in_4_bits() {
    let yard = yard(&["data", "sft"]);
    let dir = yard.path();
    let words = ["convert", "--model", "sft", "--to", "nf4", "--output", "nf4"];
    peft(dir, &words).succeed().unwrap();
    // The same codes, whether they are made on the way or come from files.
    train(dir, "made", &["peft.quantization={}"]);
    train(dir, "read", &["model.path=nf4"]);
    let loss = |run: &str| results(&dir.join(run))["train_loss"].as_f64().unwrap();
    assert!((loss("made") - loss("read")).abs() < 1e-2 * loss("made"), "{}", loss("made"));
    let whole = Stage::new("finetune", dir).args(["--config", "finetune.toml", "--device", "cpu"]);
    whole
        .args(sets(&["model.path=nf4", "evaluation={}"]))
        .fail(2, &["is stored in 4 bits, and training all parameters needs it whole"])
        .unwrap();
}

//! Scores beside or instead of logits, and prompts that continuations share.

use super::*;
use crate::config::Head;

fn saved(architecture: Architecture) -> (tempfile::TempDir, Decoder) {
    let dir = tempfile::tempdir().unwrap();
    let decoder = tiny(architecture, &LoadOptions::default());
    decoder.save(dir.path(), Precision::Fp32, u64::MAX).unwrap();
    (dir, decoder)
}

#[test]
fn a_language_model_becomes_a_reward_model_and_is_read_back() {
    for architecture in Architecture::ALL {
        let (dir, language_model) = saved(architecture);
        let options = LoadOptions::default();
        let scorer = Decoder::load_as(dir.path(), Head::Score, 3, &options).unwrap();
        let input = row(&scorer, &token_ids(9, 61, 2), &[9]);
        let hidden = scorer.hidden(&input).unwrap();
        assert!(hidden.equal(&language_model.hidden(&input).unwrap()), "the trunk is the same");
        let weight = scorer.params().get("score.weight").unwrap();
        assert_eq!(weight.size(), [1, 16]);
        let scores = scorer.scores(&hidden).unwrap();
        let by_hand = (&hidden * &weight).sum_dim_intlist(1, false, Kind::Double);
        assert!(gap(&scores, &by_hand) < 1e-6);
        assert!(scorer.logits(&hidden).is_err() && language_model.scores(&hidden).is_err());
        assert!(!scorer.params().names().any(|name| name == "lm_head.weight"));

        let back = tempfile::tempdir().unwrap();
        scorer.save(back.path(), Precision::Fp32, u64::MAX).unwrap();
        let text = fs_err::read_to_string(back.path().join("config.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let class = json["architectures"][0].as_str().unwrap();
        assert!(class.ends_with("ForSequenceClassification"), "{class}");
        assert_eq!(json["id2label"], serde_json::json!({"0": "LABEL_0"}));
        let again = Decoder::load(back.path(), &options).unwrap();
        assert!(again.scores(&again.hidden(&input).unwrap()).unwrap().equal(&scores));
        // Other seeds start elsewhere, the same one at the same place.
        let of = |seed| {
            let scorer = Decoder::load_as(dir.path(), Head::Score, seed, &options).unwrap();
            scorer.params().get("score.weight").unwrap()
        };
        assert!(of(3).equal(&weight) && !of(4).equal(&weight));
    }
}

#[test]
fn the_score_starts_with_the_deviation_of_the_papers() {
    let mut json = tiny_json(Architecture::Gpt2);
    json["n_embd"] = 4096.into();
    json["n_layer"] = 1.into();
    json["architectures"] = serde_json::json!(["GPT2ForSequenceClassification"]);
    json["id2label"] = serde_json::json!({"0": "LABEL_0"});
    let config = ModelConfig::from_json(&json).unwrap();
    let scorer = Decoder::init(&config, 1, &LoadOptions::default()).unwrap();
    let weight = scorer.params().get("score.weight").unwrap();
    let deviation = weight.std(true).double_value(&[]) * 4097.0_f64.sqrt();
    // The deviation of 4,096 draws has a deviation of 1.1 %.
    assert!((deviation - 1.0).abs() < 0.05, "{deviation}");
}

#[test]
fn a_policy_with_a_score_is_written_without_it() {
    let (dir, language_model) = saved(Architecture::Llama);
    let both =
        Decoder::load_as(dir.path(), Head::LanguageModelAndScore, 1, &LoadOptions::default());
    let both = both.unwrap();
    let hidden = both.hidden(&row(&both, &[1, 2, 3], &[3])).unwrap();
    assert!(both.logits(&hidden).unwrap().equal(&language_model.logits(&hidden).unwrap()));
    assert_eq!(both.scores(&hidden).unwrap().size(), [3]);
    let back = tempfile::tempdir().unwrap();
    both.save(back.path(), Precision::Fp32, u64::MAX).unwrap();
    let again = Decoder::load(back.path(), &LoadOptions::default()).unwrap();
    assert_eq!(again.config().head, Head::LanguageModel);
    assert!(again.params().get("score.weight").is_none());
}

#[test]
fn what_is_no_reward_model_is_refused() {
    let mut json = tiny_json(Architecture::Llama);
    json["architectures"] = serde_json::json!(["LlamaForSequenceClassification"]);
    let fails = |json: &serde_json::Value| ModelConfig::from_json(json).unwrap_err().to_string();
    let why = "labels is not supported: a reward model has one (`id2label` with one entry)";
    assert!(fails(&json).contains(&format!("a classifier of 2 {why}")), "{}", fails(&json));
    json["id2label"] = serde_json::json!({"0": "a", "1": "b", "2": "c"});
    assert!(fails(&json).contains(&format!("a classifier of 3 {why}")), "{}", fails(&json));
    json["id2label"] = serde_json::json!({"0": "a"});
    json["score_mean"] = 0.5.into();
    json["score_std"] = 2.0.into();
    let config = ModelConfig::from_json(&json).unwrap();
    assert_eq!((config.head, config.score_statistics), (Head::Score, Some((0.5, 2.0))));
}

/// Two prompts, of three and of one continuation.
struct Branched {
    ids: Vec<i64>,
    positions: Vec<i64>,
    cu: Vec<i64>,
    expand: Vec<i64>,
    whole: Vec<i64>,
    /// The branched row's tokens in the row of whole documents, each one's first place.
    keep: Vec<i64>,
}

fn branched() -> Branched {
    let ids = token_ids(21, 61, 8);
    // Prompt 0..5, continuations 5..9, 9..10, 10..16; prompt 16..18, continuation 18..21.
    let documents: [(Range<i64>, Range<i64>); 4] =
        [(0..5, 5..9), (0..5, 9..10), (0..5, 10..16), (16..18, 18..21)];
    let mut positions = vec![0; 21];
    let (mut cu, mut expand, mut keep) = (vec![0], Vec::new(), vec![-1; 21]);
    for (prompt, continuation) in documents {
        for (position, token) in prompt.chain(continuation).enumerate() {
            positions[token as usize] = position as i64;
            if keep[token as usize] < 0 {
                keep[token as usize] = expand.len() as i64;
            }
            expand.push(token);
        }
        cu.push(expand.len() as i64);
    }
    let whole = expand.iter().map(|&token| ids[token as usize]).collect();
    Branched { ids, positions, cu, expand, whole, keep }
}

#[test]
fn a_shared_prompt_gives_the_values_and_gradients_of_whole_documents() {
    let Branched { ids, positions, cu, expand, whole, keep } = branched();
    let keep = Tensor::from_slice(&keep);
    for architecture in Architecture::ALL {
        for checkpointing in [Checkpointing::None, Checkpointing::Mlp, Checkpointing::Layer] {
            let mut decoder = tiny(architecture, &TRAINABLE);
            decoder.set_checkpointing(checkpointing, 1);
            let mut gradients = |input: &Input, keep: Option<&Tensor>| {
                let hidden = decoder.hidden(input).unwrap();
                let hidden =
                    keep.map_or(hidden.shallow_clone(), |keep| hidden.index_select(0, keep));
                let logits = decoder.logits(&hidden).unwrap();
                decoder.params_mut().clear_grads().unwrap();
                autograd::backward(&(&logits * probe(21)).sum(Kind::Float)).unwrap();
                decoder.params_mut().gather_grads().unwrap();
                let grads = decoder.params_mut().trainable();
                (logits.detach(), grads.iter().map(|p| p.grad.copy()).collect::<Vec<_>>())
            };
            let lens: Vec<usize> = cu.windows(2).map(|pair| (pair[1] - pair[0]) as usize).collect();
            let plain = tiny(architecture, &TRAINABLE);
            let (logits, grads) = gradients(&row(&plain, &whole, &lens), Some(&keep));
            let input = plain.branched_input(&ids, &positions, &cu, &expand).unwrap();
            let (shared, shared_grads) = gradients(&input, None);
            assert!(gap(&logits, &shared) < 1e-5, "{architecture:?}");
            assert_eq!(grads.len(), shared_grads.len());
            for (whole, shared) in grads.iter().zip(&shared_grads) {
                assert!(gap(whole, shared) < 2e-4, "{architecture:?}: {}", gap(whole, shared));
            }
        }
    }
}

#[test]
fn branches_that_cannot_be_are_refused() {
    let decoder = tiny(Architecture::Llama, &LoadOptions::default());
    let fails = |cu: &[i64], expand: &[i64]| {
        decoder.branched_input(&[1, 2, 3], &[0, 1, 2], cu, expand).unwrap_err().to_string()
    };
    assert_eq!(fails(&[0, 2], &[0, 1]), "token 2 of the row is in no document");
    assert_eq!(fails(&[0, 4], &[0, 1, 2]), "cu_seqlens ends at 4 but there are 3 places");
    assert_eq!(fails(&[0, 3], &[0, 1, 200]), "no token 200 in a row of 64");
}

//! `text_offset` with a tokenizer that puts a space before every text and takes it away again, as SentencePiece's do.

use super::*;

const TEXT: &str = "/v1/completions";

/// The ids of the tokenizer's `<s>` and `▁ab`.
const START: u32 = 1;
const AB: u32 = 11;

/// A model over a vocabulary of 14 tokens, all of them printable.
static SPACED: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap().keep();
    let tokens =
        ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "안", "녕", "▁a", "ab", "▁ab", "안녕", "\n"];
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    let special = |id: u32| {
        json!({ "id": id, "content": tokens[id as usize], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] },
        "pre_tokenizer": null,
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [["▁", "a"], ["a", "b"], ["▁a", "b"], ["안", "녕"]] },
    });
    fs_err::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" });
    fs_err::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": tokens.len(), "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3,
        "max_position_embeddings": 64, "eos_token_id": 2, "bos_token_id": 1,
    });
    let config = ModelConfig::from_json(&config).unwrap();
    let decoder = Decoder::init(&config, 5, &LoadOptions::default()).unwrap();
    decoder.save(&dir, Precision::Fp32, u64::MAX).unwrap();
    dir
});

/// Text, tokens and offsets of an answer, whole; its stream is checked to tell the same.
async fn told(yard: &Yard, more: &Value) -> (String, Vec<String>, Vec<usize>) {
    let mut body =
        json!({ "model": "spaced", "logprobs": 0, "max_tokens": 12, "ignore_eos": true });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let whole = yard.ask(TEXT, &body).await;
    let choice = &whole["choices"][0];
    let list = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
    let events = yard.stream(TEXT, &body).await;
    let streamed: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(streamed, list("text_offset"));
    let tokens = list("tokens").iter().map(|token| token.as_str().unwrap().to_owned()).collect();
    let offsets = list("text_offset").iter().map(|at| at.as_u64().unwrap() as usize).collect();
    (choice["text"].as_str().unwrap().to_owned(), tokens, offsets)
}

/// Each token of text is what stands in the text from its offset to the next one's; the first one without its space where
/// `drops` says so.
#[track_caller]
fn check((text, tokens, offsets): &(String, Vec<String>, Vec<usize>), mut drops: bool) {
    let chars: Vec<char> = text.chars().collect();
    assert_eq!(tokens.len(), offsets.len());
    for (at, token) in tokens.iter().enumerate() {
        let end = offsets.get(at + 1).copied().unwrap_or(chars.len());
        let stands: String = chars[offsets[at]..end].iter().collect();
        let special = ["<unk>", "<s>", "</s>"].contains(&token.as_str());
        let dropped = !special && std::mem::take(&mut drops);
        let token = if dropped { token.strip_prefix(' ').unwrap_or(token) } else { token };
        assert_eq!(
            stands,
            if special { "" } else { token },
            "{at} in {text:?}, {tokens:?}, {offsets:?}"
        );
    }
}

#[test]
fn the_space_before_a_text_is_not_counted() {
    wait(async {
        let yard = Yard::of(&[format!("spaced={}", SPACED.display())], RUNNING, LIMITS);
        // By hand: `<s>`, ` ab`, ` `, `안녕`, ` ab`, of which the text begins without the first space.
        let only = json!({ "prompt": "ab 안녕 ab", "echo": true, "max_tokens": 0 });
        let (text, tokens, offsets) = told(&yard, &only).await;
        assert_eq!(text, "ab 안녕 ab");
        assert_eq!(tokens, ["<s>", " ab", " ", "안녕", " ab"]);
        assert_eq!(offsets, [0, 0, 2, 3, 5]);
        for seed in 0..8 {
            for (more, drops) in [
                (json!({ "prompt": "ab 안녕 ab", "echo": true }), true),
                // An answer goes on behind the prompt with its space, unless nothing of the prompt is text.
                (json!({ "prompt": "ab" }), false),
                (json!({ "prompt": [START, AB] }), false),
                (json!({ "prompt": [START] }), true),
                (json!({ "prompt": [START], "echo": true }), true),
            ] {
                let mut more = more;
                more["seed"] = seed.into();
                check(&told(&yard, &more).await, drops);
            }
        }
    });
}

#[test]
fn only_tokenizers_that_take_it_away_drop_it() {
    use crate::serve::shape::drops_first_space;
    let spaced = Tokenizer::load(&*SPACED).unwrap();
    assert!(drops_first_space(&spaced, &spaced.token_bytes()));
    assert!(!drops_first_space(&tokenizer(), &tokenizer().token_bytes()));
}

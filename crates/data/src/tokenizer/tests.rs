use fs_err as fs;
use serde_json::json;

use super::*;
use crate::template::CHAT;

fn corpus() -> Vec<String> {
    let mut texts = Vec::new();
    for n in 0..200 {
        texts.push(format!("The cat number {n} sleeps in the village, and {} dogs run.", n * 7));
        texts.push(format!("고양이 {n}마리가 마을에서 잠을 자고, 강아지는 달립니다. 안녕하세요!"));
    }
    texts
}

fn train(options: &BpeOptions) -> Tokenizer {
    Tokenizer::train_bpe(corpus().into_iter(), options).unwrap()
}

fn small() -> Tokenizer {
    train(&BpeOptions { vocab_size: 420, ..BpeOptions::default() })
}

/// A tokenizer like Llama 2's: `▁` put before each text and in place of spaces, bytes as a last resort.
pub(crate) fn metaspace() -> Tokenizer {
    let mut vocab = Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    for token in ["▁", "a", "b", "c", "안", "녕", "▁a", "ab", "▁ab", "안녕", "\n"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    };
    let json = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 2, "pad_type_id": 0, "pad_token": "</s>"},
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": [["▁", "a"], ["a", "b"], ["▁a", "b"], ["안", "녕"]]}
    });
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let config = json!({"bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>",
        "pad_token": "</s>", "unk_token": "<unk>"});
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::load(dir.path()).unwrap()
}

fn pieces(tokenizer: &Tokenizer, text: &str, add_special: bool) -> Vec<(String, String)> {
    let encoding = tokenizer.encode(text, add_special).unwrap();
    let piece = |(id, (start, end)): (&u32, &(usize, usize))| {
        (tokenizer.id_to_token(*id).unwrap(), text[*start..*end].to_owned())
    };
    encoding.ids.iter().zip(&encoding.offsets).map(piece).collect()
}

#[test]
fn training_gives_the_special_tokens_first_and_the_size_asked_for() {
    let tokenizer = small();
    assert_eq!(tokenizer.vocab_size(), 420);
    let first: Vec<String> = (0..7).map(|id| tokenizer.id_to_token(id).unwrap()).collect();
    assert_eq!(
        first,
        ["<|bos|>", "<|eos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    );
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()),
        (Some(0), Some(1), Some(2))
    );
    assert_eq!(tokenizer.stop_ids(None), [1, 6]);
    assert_eq!(tokenizer.chat_template(), Some(CHAT));
    // A word that is frequent in the corpus is one token.
    assert_eq!(tokenizer.encode(" village", false).unwrap().ids.len(), 1);
    assert_eq!(tokenizer.encode("고양이", false).unwrap().ids.len(), 1);
}

#[test]
fn training_does_not_depend_on_order_or_threads() {
    let options = BpeOptions { vocab_size: 420, ..BpeOptions::default() };
    let expected = train(&options).digest();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut texts = corpus();
        texts.reverse();
        let digest =
            pool.install(|| Tokenizer::train_bpe(texts.into_iter(), &options).unwrap().digest());
        assert_eq!(digest, expected, "{threads} threads");
    }
}

#[test]
fn any_text_survives_encoding_and_decoding() {
    let tokenizer = small();
    for text in [
        "",
        " ",
        "안녕, 세상! 👩‍🌾\n\n\tfn main() {}",
        "日本語 العربية \u{0} é",
        "12345  678",
        "  x  ",
    ] {
        let ids = tokenizer.encode(text, false).unwrap().ids;
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    // NFC inside: decomposed Hangul meets the same tokens.
    assert_eq!(
        tokenizer.encode("\u{1100}\u{1169}양이", false).unwrap().ids,
        tokenizer.encode("고양이", false).unwrap().ids
    );
}

#[test]
fn digits_are_grouped_as_asked() {
    for (max_digits, expected) in [(1, 7), (3, 3)] {
        let tokenizer = train(&BpeOptions {
            vocab_size: 2000,
            max_digits,
            min_frequency: 1,
            ..BpeOptions::default()
        });
        let words = tokenizer.encode("1234567", false).unwrap().ids.len();
        assert!(words >= expected, "{max_digits}: {words}");
        for id in 0..tokenizer.vocab_size() as u32 {
            let token = tokenizer.id_to_token(id).unwrap();
            assert!(token.chars().filter(char::is_ascii_digit).count() <= max_digits, "{token}");
        }
    }
}

#[test]
fn bad_training_options_are_named() {
    let case = |options: &BpeOptions, texts: &[&str]| {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Tokenizer::train_bpe(texts.into_iter(), options).err().unwrap().to_string()
    };
    let base = BpeOptions { vocab_size: 300, ..BpeOptions::default() };
    assert_eq!(
        case(&BpeOptions { vocab_size: 262, ..base.clone() }, &[]),
        "tokenizer training: vocab_size 262 is too small; the special tokens and the 256 bytes alone are 263"
    );
    assert_eq!(
        case(&BpeOptions { max_digits: 0, ..base.clone() }, &[]),
        "tokenizer training: max_digits must be at least 1"
    );
    assert_eq!(
        case(&BpeOptions { extra_special_tokens: vec!["<|end|>".to_owned()], ..base.clone() }, &[]),
        "tokenizer training: special token `<|end|>` is named twice"
    );
    assert_eq!(
        case(&BpeOptions { extra_special_tokens: vec![" ".to_owned()], ..base }, &[]),
        "tokenizer training: a special token is blank"
    );
}

#[test]
fn byte_level_offsets_are_bytes_and_tile_the_text() {
    let tokenizer = small();
    let text = "한글 고양이 cat 👩\u{200D}🌾";
    let encoding = tokenizer.encode(text, true).unwrap();
    assert_eq!((encoding.ids[0], encoding.offsets[0]), (0, (0, 0)));
    let mut covered = 0;
    for &(start, end) in &encoding.offsets[1..] {
        assert!(start <= covered && end >= covered, "{:?}", encoding.offsets);
        assert!(text.is_char_boundary(start) && text.is_char_boundary(end));
        covered = covered.max(end);
    }
    assert_eq!(covered, text.len());
    let cat = pieces(&tokenizer, text, false).into_iter().find(|(_, text)| text == " cat");
    assert_eq!(cat, Some(("Ġcat".to_owned(), " cat".to_owned())));
}

#[test]
fn metaspace_offsets_are_bytes_and_tile_the_text() {
    let tokenizer = metaspace();
    let piece = |token: &str, text: &str| (token.to_owned(), text.to_owned());
    assert_eq!(
        pieces(&tokenizer, "ab 안녕 ab", true),
        [
            piece("<s>", ""),
            piece("▁ab", "ab"),
            piece("▁", " "),
            piece("안녕", "안녕"),
            piece("▁ab", " ab")
        ]
    );
    // The `▁` put before the text stands for none of it.
    assert_eq!(pieces(&tokenizer, "안녕", false)[0].0, "▁");
    // Byte fallback: three tokens share the bytes of one character.
    let bytes = pieces(&tokenizer, "한", false);
    assert_eq!(
        bytes.iter().map(|(token, _)| token.as_str()).collect::<Vec<_>>(),
        ["▁", "<0xED>", "<0x95>", "<0x9C>"]
    );
    assert!(bytes[1..].iter().all(|(_, text)| text == "한"), "{bytes:?}");
    // Special tokens keep their place; the text after them gets its own `▁`, as in transformers.
    assert_eq!(
        pieces(&tokenizer, "ab</s>ab", false),
        [piece("▁ab", "ab"), piece("</s>", "</s>"), piece("▁ab", "ab")]
    );
}

#[test]
fn saved_truncation_and_padding_are_ignored() {
    assert_eq!(metaspace().encode("ab ab ab ab ab ab", true).unwrap().ids.len(), 7);
    assert_eq!(metaspace().encode("ab", true).unwrap().ids.len(), 2);
}

#[test]
fn special_tokens_in_a_document_are_text() {
    let tokenizer = metaspace();
    assert_eq!(tokenizer.encode("a</s>", false).unwrap().ids.last(), Some(&2));
    let plain = tokenizer.encode_plain("a</s>", true).unwrap().ids;
    assert_eq!(tokenizer.ids_plain("a</s>", true).unwrap(), plain);
    assert_eq!(plain[0], 1, "the tokenizer's own BOS is still added");
    assert!(!plain[1..].contains(&2) && !plain[1..].contains(&1));
    assert_eq!(tokenizer.special_in("x </s> y"), Some("</s>"));
    assert_eq!(tokenizer.special_in("x <p> y"), None);
    assert_eq!(small().special_in("안녕 <|end|>"), Some("<|end|>"));
}

/// The pieces joined are the whole, and none holds half a character.
fn check_stream(tokenizer: &Tokenizer, text: &str) {
    let ids = tokenizer.encode(text, false).unwrap().ids;
    let mut stream = tokenizer.stream(true);
    let mut joined = String::new();
    for id in &ids {
        let piece = stream.push(*id).unwrap();
        assert!(!piece.contains('\u{FFFD}'), "{piece:?}");
        joined.push_str(&piece);
    }
    joined.push_str(&stream.finish().unwrap());
    assert_eq!(joined, tokenizer.decode(&ids, true).unwrap(), "{text:?}");
}

#[test]
fn streams_give_whole_characters() {
    let long = "고양이가 마을에서 👩\u{200D}🌾 잔다. The cat sleeps.\n".repeat(20);
    for text in ["", "안녕하세요 👩\u{200D}🌾!", " leading", "ab 한글 ab", "日本", &long]
    {
        check_stream(&small(), text);
        check_stream(&metaspace(), text);
    }
    let tokenizer = small();
    let ids = tokenizer.encode("日", false).unwrap().ids;
    assert!(ids.len() > 1);
    let mut cut = tokenizer.stream(true);
    for id in &ids[..ids.len() - 1] {
        assert_eq!(cut.push(*id).unwrap(), "");
    }
    assert_eq!(cut.finish().unwrap().chars().next(), Some('\u{FFFD}'), "what is left is given out");
}

#[test]
fn a_stream_after_a_prompt_keeps_the_space_between() {
    let tokenizer = metaspace();
    let prompt = tokenizer.encode("ab", true).unwrap().ids;
    let next = tokenizer.token_id("▁ab").unwrap();
    assert_eq!(tokenizer.stream(true).push(next).unwrap(), "ab");
    assert_eq!(tokenizer.stream_after(&prompt, true).push(next).unwrap(), " ab");
    // A special token that is skipped gives nothing and takes nothing.
    let mut stream = tokenizer.stream_after(&prompt, true);
    assert_eq!(stream.push(2).unwrap(), "");
    assert_eq!(stream.push(next).unwrap(), " ab");
}

#[test]
fn a_saved_tokenizer_loads_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut tokenizer = small();
    tokenizer.set_chat_template("{{ messages }}");
    tokenizer.set_stop_ids(&[1, 6]);
    tokenizer.save(dir.path().join("tokenizer")).unwrap();
    for path in [dir.path().to_owned(), dir.path().join("tokenizer")] {
        let loaded = Tokenizer::load(path).unwrap();
        assert_eq!(loaded.digest(), tokenizer.digest());
        assert_eq!(loaded.chat_template(), Some("{{ messages }}"));
        assert_eq!(loaded.specials(), tokenizer.specials());
        assert_eq!(loaded.stop_ids(None), [1, 6]);
        assert_eq!(loaded.vocab_size(), 420);
    }
    let lone = Tokenizer::load(dir.path().join("tokenizer/tokenizer.json")).unwrap();
    assert_eq!((lone.digest(), lone.eos_id()), (tokenizer.digest(), None));
    let generation =
        fs::read_to_string(dir.path().join("tokenizer/generation_config.json")).unwrap();
    let generation: Value = serde_json::from_str(&generation).unwrap();
    assert_eq!(generation, json!({"bos_token_id": 0, "pad_token_id": 2, "eos_token_id": [1, 6]}));
}

#[test]
fn special_tokens_can_be_named_for_a_lone_file() {
    let dir = tempfile::tempdir().unwrap();
    small().save(dir.path()).unwrap();
    let mut lone = Tokenizer::load(dir.path().join("tokenizer.json")).unwrap();
    lone.set_special("eos_token", "<|eos|>").unwrap();
    assert_eq!((lone.eos_id(), lone.specials().get("eos_token")), (Some(1), Some("<|eos|>")));
    assert_eq!(
        lone.set_special("pad_token", "<nope>").unwrap_err().to_string(),
        "tokenizer: pad_token `<nope>` is not in the vocabulary; name a token that is"
    );
}

#[test]
fn the_several_places_of_a_chat_template() {
    let load = |config: Value, jinja: Option<&str>| {
        let dir = tempfile::tempdir().unwrap();
        small().save(dir.path()).unwrap();
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        if let Some(source) = jinja {
            fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
        }
        Tokenizer::load(dir.path())
            .map(|tokenizer| tokenizer.chat_template().map(str::to_owned))
            .map_err(|error| error.to_string().split(": ").skip(1).collect::<Vec<_>>().join(": "))
    };
    let text = |source: &str| Ok(Some(source.to_owned()));
    assert_eq!(load(json!({"chat_template": "A"}), None), text("A"));
    assert_eq!(load(json!({"chat_template": "A"}), Some("B")), text("B"));
    let list = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    assert_eq!(load(json!({"chat_template": list}), None), text("D"));
    assert_eq!(load(json!({}), None), Ok(None));
    assert_eq!(
        load(json!({"chat_template": [{"name": "tool_use", "template": "T"}]}), None),
        Err("chat_template is a list without one named `default`; put the one to use into \
             chat_template.jinja"
            .to_owned())
    );
    assert_eq!(
        load(json!({"chat_template": 3}), None),
        Err("chat_template is neither a string nor a list of named templates".to_owned())
    );
}

#[test]
fn special_tokens_fall_back_to_the_map() {
    let dir = tempfile::tempdir().unwrap();
    small().save(dir.path()).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": null}"#).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(0), Some(1)));
}

#[test]
fn what_cannot_be_loaded_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let error = |path: &Path| {
        let root = format!("{}", dir.path().display());
        Tokenizer::load(path).err().unwrap().to_string().replace(&root, "DIR")
    };
    let advice = "; give a folder with a tokenizer.json, or the file itself";
    assert_eq!(error(&path.join("no")), format!("DIR/no: no such file or folder{advice}"));
    assert_eq!(error(path), format!("DIR: no tokenizer.json in it{advice}"));
    fs::write(path.join("tokenizer.model"), "x").unwrap();
    assert!(
        error(path)
            .starts_with("DIR: only a SentencePiece tokenizer.model, which must be converted: ")
    );
    fs::remove_file(path.join("tokenizer.model")).unwrap();
    fs::write(path.join("vocab.json"), "{}").unwrap();
    fs::write(path.join("merges.txt"), "").unwrap();
    assert!(
        error(path).starts_with("DIR: only vocab.json and merges.txt, which must be converted: ")
    );
    fs::write(path.join("tokenizer.json"), "{\"model\": 1}").unwrap();
    assert!(error(path).starts_with(
        "DIR/tokenizer.json: not a tokenizer.json that the tokenizers library reads: "
    ));
    let far = r#"{"model": {"type": "WordLevel", "vocab": {"a": 4294967290}, "unk_token": "a"}}"#;
    fs::write(path.join("tokenizer.json"), far).unwrap();
    assert_eq!(
        error(path),
        "DIR/tokenizer.json: the token `a` has the id 4294967290; ids up to 16777215 are read"
    );
    small().save(path).unwrap();
    fs::write(path.join("tokenizer_config.json"), "[1]").unwrap();
    assert_eq!(error(path), "DIR/tokenizer_config.json: expected a JSON object");
    fs::write(path.join("tokenizer_config.json"), "{").unwrap();
    assert!(error(path).starts_with("DIR/tokenizer_config.json: not valid JSON: "));
}

#[test]
fn where_the_library_panics_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let load = |key: &str, part: Value| {
        let model = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
        let mut whole = json!({"model": model});
        whole[key] = part;
        fs::write(&path, whole.to_string()).unwrap();
        Tokenizer::load(&path)
    };
    let charsmap = json!({"type": "Precompiled", "precompiled_charsmap": "AAA="});
    let error = load("normalizer", charsmap).unwrap_err().to_string();
    assert!(error.contains("not a tokenizer.json that the tokenizers library reads"), "{error}");
    let lost = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
    let tokenizer = load("post_processor", lost).unwrap();
    let error = tokenizer.encode("a", true).unwrap_err().to_string();
    assert!(error.contains("cannot tokenise a text: tokenizer.json is damaged ("), "{error}");
    assert_eq!(tokenizer.ids_plain("a", false).unwrap(), [0]);
}

#[test]
fn byte_lengths_add_up_to_the_text_and_special_tokens_have_none() {
    // The second tokenizer writes one space before each text.
    for (tokenizer, before) in [(small(), 0), (metaspace(), 1)] {
        let lengths = tokenizer.byte_lengths();
        assert_eq!(lengths.len(), tokenizer.vocab_size());
        let bytes = |ids: &[u32]| -> usize {
            ids.iter().map(|id| usize::from(lengths[*id as usize])).sum()
        };
        for text in ["ab 안녕 ab", "한글 👩\u{200D}🌾!\n", "日本"] {
            let ids = tokenizer.encode(text, true).unwrap().ids;
            assert_eq!(bytes(&ids), before + text.len(), "{text:?}");
        }
        assert_eq!(bytes(&[tokenizer.bos_id().unwrap(), tokenizer.eos_id().unwrap()]), 0);
    }
}

/// Texts with all that the words' memo must not change: runs of spaces, other blanks, combining marks, digits, Korean,
/// contractions, special tokens spelled out, and words met again.
#[test]
fn ids_through_the_memo_of_words_are_the_librarys() {
    let tokenizer = small();
    assert!(tokenizer.words.is_some(), "a trained tokenizer has the memo");
    assert!(metaspace().words.is_none(), "one that merges across spaces has none");
    let parts = [
        "the",
        " the",
        "  ",
        "\n",
        " \n ",
        "\t",
        "don't",
        " it's",
        "12345",
        " 7",
        "한국어",
        " 문장을",
        "e\u{301}",
        " \u{301}x",
        "...",
        " (a)",
        "<|eos|>",
        " <|eos|> ",
        "\u{a0}",
        " \u{3000}",
        "🙂",
        " 🙂",
        "a\r\nb",
        "",
        " ",
    ];
    let mut state = 1_u64;
    for _ in 0..2000 {
        let mut text = String::new();
        for _ in 0..8 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            text += parts[(state >> 33) as usize % parts.len()];
        }
        for add_special in [false, true] {
            let plain = tokenizer.encode_plain(&text, add_special).unwrap().ids;
            assert_eq!(tokenizer.ids_plain(&text, add_special).unwrap(), plain, "{text:?}");
        }
    }
}

use super::*;
use crate::encode::tests::{LONG, options, template, trained};
use crate::encode::{chat_prompt, encode_example};
use crate::format::Example;
use crate::template::{CHAT, INSTRUCTION};
use crate::tokenizer::tests::metaspace;

/// As in Llama 2, where a space that the prompt does not have stands before the answer.
const SPACED: &str = "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[' + m.content + ']' }}\
                      {% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}";
/// As in Qwen, where a line break that does not count stands after the end of a turn.
const BROKEN: &str = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

const TURNS: [(&str, &str); 3] =
    [("user", "안녕?"), ("assistant", "안녕! It is 12."), ("user", "a cat?")];

fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

fn pair(prompt: Prompt, chosen: &str, rejected: &str) -> Preference {
    let [chosen, rejected] = [chosen, rejected].map(str::to_owned);
    Preference { prompt, chosen, rejected, margin: None, probability: None }
}

fn chat(chosen: &str, rejected: &str) -> Preference {
    pair(Prompt::Messages(messages(&TURNS)), chosen, rejected)
}

fn plain(prompt: &str, chosen: &str, rejected: &str) -> Preference {
    pair(Prompt::Text(prompt.to_owned()), chosen, rejected)
}

fn encode(
    tokenizer: &Tokenizer,
    source: &str,
    example: &Preference,
    options: EncodeOptions,
) -> Result<EncodedPair, Skip> {
    encode_pair(tokenizer, Some(&template(tokenizer, source)), example, options).unwrap()
}

/// A token row up to its last counted token.
fn counted_end(tokenizer: &Tokenizer, source: &str, example: &Example) -> Vec<u32> {
    let template = template(tokenizer, source);
    let encoded = encode_example(tokenizer, Some(&template), example, LONG).unwrap().unwrap();
    let row = &encoded.rows[0];
    let last = row.mask.iter().rposition(|counts| *counts).unwrap();
    row.ids[..=last].to_vec()
}

#[test]
fn members_are_what_supervised_training_sees_and_begin_with_the_prompt_of_generation() {
    for (tokenizer, source) in [
        (trained(), CHAT),
        (trained(), INSTRUCTION),
        (metaspace(), INSTRUCTION),
        (trained(), SPACED),
        (metaspace(), SPACED),
        (trained(), BROKEN),
    ] {
        let encoded =
            encode(&tokenizer, source, &chat("하얀색", "It is a white cat."), LONG).unwrap();
        let generation =
            chat_prompt(&tokenizer, &template(&tokenizer, source), &messages(&TURNS)).unwrap();
        assert_eq!(encoded.prompt, generation, "{source}");
        for (response, text) in
            [(&encoded.chosen, "하얀색"), (&encoded.rejected, "It is a white cat.")]
        {
            let mut messages = messages(&TURNS);
            messages.push(Message::new("assistant", text));
            let whole = counted_end(&tokenizer, source, &Example::Chat { messages });
            assert_eq!([encoded.prompt.as_slice(), response].concat(), whole, "{source}");
            let stop = template(&tokenizer, source).end_of_turn().unwrap().to_owned();
            assert_eq!(response.last().copied(), tokenizer.token_id(&stop), "{source}");
        }
        assert!(encoded.closed && !encoded.straddles && encoded.tokens_cut == 0);
    }
}

#[test]
fn plain_members_are_completions_with_eos() {
    for tokenizer in [trained(), metaspace()] {
        let encoded = encode(&tokenizer, CHAT, &plain("ab", " 안녕", " cd"), LONG).unwrap();
        for (response, completion) in [(&encoded.chosen, " 안녕"), (&encoded.rejected, " cd")] {
            let example =
                Example::Completion { prompt: "ab".to_owned(), completion: completion.to_owned() };
            let whole = counted_end(&tokenizer, CHAT, &example);
            assert_eq!([encoded.prompt.as_slice(), response].concat(), whole);
            assert_eq!(response.last().copied(), tokenizer.eos_id());
        }
        assert_eq!(encoded.prompt, tokenizer.ids_plain("ab", true).unwrap());
        assert!(encoded.closed && !encoded.straddles);
        assert_eq!(encoded.bytes, 2 + " 안녕".len() + 2 + 3);
        let tokens = encoded.prompt.len() + encoded.chosen.len() + encoded.rejected.len();
        assert_eq!(encoded.num_tokens(), tokens);
    }
}

#[test]
fn what_a_token_across_the_border_splits_belongs_to_the_responses() {
    let tokenizer = trained();
    // " white" is one token, and so is the blank before a digit.
    let encoded = encode(&tokenizer, CHAT, &plain("It is ", "white", "12"), LONG).unwrap();
    assert!(encoded.straddles);
    let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
    assert_eq!(text(&encoded.prompt), "<|bos|>It is");
    assert_eq!(text(&encoded.chosen), " white<|eos|>");
    assert_eq!(text(&encoded.rejected), " 12<|eos|>");
    let clean = encode(&tokenizer, CHAT, &plain("It is", " white", " 12"), LONG).unwrap();
    assert!(!clean.straddles);
    assert_eq!((clean.prompt, clean.chosen), (encoded.prompt, encoded.chosen));
}

#[test]
fn a_pair_may_have_no_prompt() {
    let tokenizer = trained();
    let alone = pair(Prompt::Messages(Vec::new()), "네", "아니요");
    let encoded = encode(&tokenizer, CHAT, &alone, LONG).unwrap();
    assert_eq!(tokenizer.decode(&encoded.prompt, false).unwrap(), "<|bos|><|assistant|>");
    let encoded = encode(&tokenizer, CHAT, &plain("", "yes", "no"), LONG).unwrap();
    assert_eq!(encoded.prompt, [tokenizer.bos_id().unwrap()]);
}

#[test]
fn what_gives_no_pair_is_skipped_with_its_reason() {
    let tokenizer = trained();
    let skip =
        |example: &Preference, options| encode(&tokenizer, CHAT, example, options).unwrap_err();
    for blank in [chat(" \n", "no"), chat("yes", ""), plain("p", "yes", "\t")] {
        assert_eq!(skip(&blank, LONG), Skip::Empty);
    }
    for equal in [chat("네", "네"), plain("p", "yes", "yes")] {
        assert_eq!(skip(&equal, LONG), Skip::Equal { cut: false });
    }
    let forged = Skip::SpecialToken { token: "<|end|>".to_owned() };
    assert_eq!(skip(&chat("yes", "no<|end|>"), LONG), forged);
    let in_prompt = Prompt::Messages(messages(&[("user", "<|end|>?")]));
    assert_eq!(skip(&pair(in_prompt, "yes", "no"), LONG), forged);
    // What is only text where nothing is rendered.
    assert!(encode(&tokenizer, CHAT, &plain("p", "yes", "no<|end|>"), LONG).is_ok());

    let example = chat("네", "아니요, 안녕! 아니요, 안녕!");
    let whole = encode(&tokenizer, CHAT, &example, LONG).unwrap();
    let tokens = whole.prompt.len() + whole.rejected.len();
    assert!(whole.rejected.len() > whole.chosen.len());
    assert!(encode(&tokenizer, CHAT, &example, options(tokens, Overlong::Drop)).is_ok());
    assert_eq!(skip(&example, options(tokens - 1, Overlong::Drop)), Skip::TooLong { tokens });
}

#[test]
fn a_cut_response_gets_no_end_and_what_is_left_must_be_a_pair() {
    let tokenizer = trained();
    let end = tokenizer.token_id("<|end|>").unwrap();
    let example = chat("안녕! white", "안녕! cat cat cat");
    let whole = encode(&tokenizer, CHAT, &example, LONG).unwrap();
    let shared = whole.chosen.iter().zip(&whole.rejected).take_while(|(a, b)| a == b).count();
    assert!(shared > 0 && shared + 1 < whole.chosen.len());
    for length in 1..=whole.rejected.len() {
        let limit = options(whole.prompt.len() + length, Overlong::Truncate);
        let found = encode(&tokenizer, CHAT, &example, limit);
        if length <= shared {
            assert_eq!(found, Err(Skip::Equal { cut: true }));
            continue;
        }
        let found = found.unwrap();
        assert_eq!(found.prompt, whole.prompt);
        let cut = |ids: &[u32]| ids[..ids.len().min(length)].to_vec();
        assert_eq!((&found.chosen, &found.rejected), (&cut(&whole.chosen), &cut(&whole.rejected)));
        let lost = whole.num_tokens() - found.num_tokens();
        assert_eq!((found.tokens_cut, found.closed), (lost, lost == 0));
        assert_eq!(found.rejected.contains(&end), length == whole.rejected.len());
    }
    for length in [2, whole.prompt.len()] {
        let limit = options(length, Overlong::Truncate);
        assert_eq!(encode(&tokenizer, CHAT, &example, limit), Err(Skip::NoTargets));
    }
}

#[test]
fn errors_say_what_to_do() {
    let tokenizer = trained();
    let case = |example: &Preference, options: EncodeOptions| {
        encode_pair(&tokenizer, None, example, options).unwrap_err().to_string()
    };
    assert_eq!(
        case(&chat("a", "b"), LONG),
        "a conversation needs a chat template and the tokenizer has none; set `tokenizer.chat_template`"
    );
    let plain = plain("p", "a", "b");
    assert_eq!(case(&plain, options(1, Overlong::Drop)), "max_length must be at least 2, not 1");
    assert_eq!(
        case(&plain, options(9, Overlong::Split)),
        "overlong = \"split\" is for kind = \"text\"; use \"truncate\" or \"drop\""
    );
    let row = |example: &Example| {
        encode_example(&tokenizer, None, example, LONG).unwrap_err().to_string()
    };
    assert_eq!(
        row(&Example::Preference(plain)),
        "a pair is no token row; encode pairs with `encode_pair` and write prompts as text"
    );
    assert!(
        row(&Example::Prompt(Prompt::Text("p".to_owned()))).starts_with("a prompt is no token row")
    );
}

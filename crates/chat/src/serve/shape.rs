//! Tokens with their log-probabilities, in the forms of the two endpoints.

use data::tokenizer::Tokenizer;
use model::generate::PromptToken;
use serde_json::{Map, Value, json};

use super::models::Served;
use super::queue::Token;

/// Tokens of an answer, or of a prompt, whose first has no probability.
#[derive(Debug, Default)]
pub(crate) struct Told(Vec<PromptToken>);

/// Where a text has come to, token by token.
#[derive(Debug, Default)]
pub(crate) struct TextAt {
    /// Characters before the next token.
    chars: usize,
    /// Bytes of a character that is not whole.
    part: Vec<u8>,
    /// Whether the first token's space is not part of the text.
    drops_space: bool,
}

impl From<Vec<PromptToken>> for Told {
    fn from(tokens: Vec<PromptToken>) -> Self {
        Self(tokens)
    }
}

impl From<Vec<Token>> for Told {
    fn from(tokens: Vec<Token>) -> Self {
        let mut told = Self::default();
        told.extend(tokens);
        told
    }
}

impl Told {
    pub(crate) fn extend(&mut self, tokens: Vec<Token>) {
        let token = |Token { id, logprob, top }| PromptToken { id, logprob: Some(logprob), top };
        self.0.extend(tokens.into_iter().map(token));
    }

    /// `logprobs` of a chat choice.
    pub(crate) fn chat(&self, served: &Served) -> Value {
        let one = |id: i64, logprob: Option<f32>| {
            let bytes = served.bytes(id);
            json!({ "token": name(bytes), "logprob": logprob, "bytes": bytes })
        };
        let content = self.0.iter().map(|token| {
            let mut object = one(token.id, token.logprob);
            let top = token.top.iter().map(|(id, logprob)| one(*id, Some(*logprob)));
            object["top_logprobs"] = top.collect();
            object
        });
        json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
    }

    /// `logprobs` of a text's choice; `at` is where the text before has come to.
    pub(crate) fn completion(&self, served: &Served, at: &mut TextAt) -> Value {
        let mut offsets = Vec::with_capacity(self.0.len());
        for token in &self.0 {
            offsets.push(at.chars);
            if served.is_text(token.id) {
                at.add(served.bytes(token.id));
            }
        }
        let names = self.0.iter().map(|token| name(served.bytes(token.id)));
        let logprobs = self.0.iter().map(|token| token.logprob);
        let tops = self.0.iter().map(|token| {
            // The first of a prompt has none.
            token.logprob?;
            let top = token.top.iter();
            let top = top.map(|(id, logprob)| (name(served.bytes(*id)), json!(logprob)));
            Some(top.collect::<Map<_, _>>())
        });
        json!({
            "tokens": names.collect::<Vec<_>>(), "token_logprobs": logprobs.collect::<Vec<_>>(),
            "top_logprobs": tops.collect::<Vec<_>>(), "text_offset": offsets,
        })
    }
}

impl TextAt {
    /// Counts the characters that `bytes` begin or make whole.
    fn add(&mut self, bytes: &[u8]) {
        let dropped = std::mem::take(&mut self.drops_space).then(|| bytes.strip_prefix(b" "));
        let bytes = dropped.flatten().unwrap_or(bytes);
        self.part.extend_from_slice(bytes);
        match std::str::from_utf8(&self.part) {
            Ok(text) => {
                self.chars += text.chars().count();
                self.part.clear();
            }
            Err(error) => {
                let whole = error.valid_up_to();
                let wrong = error.error_len();
                self.chars += String::from_utf8_lossy(&self.part[..whole]).chars().count();
                // Bytes that are no character are one all the same; others may become one.
                self.chars += usize::from(wrong.is_some());
                self.part.drain(..whole + wrong.unwrap_or(0));
            }
        }
    }
}

/// Whether texts begin without the space that their first token stands for: SentencePiece's tokenizers put one before every
/// text and take it away again.
pub(super) fn drops_first_space(tokenizer: &Tokenizer, token_bytes: &[Box<[u8]>]) -> bool {
    let word = |bytes: &[u8]| {
        let rest = bytes.strip_prefix(b" ").filter(|rest| !rest.is_empty() && rest[0] != b' ');
        rest.is_some_and(|rest| std::str::from_utf8(rest).is_ok())
    };
    let id = token_bytes.iter().position(|bytes| word(bytes));
    let text = id.map(|id| (&token_bytes[id][1..], tokenizer.decode(&[id as u32], false)));
    text.is_some_and(|(rest, text)| text.is_ok_and(|text| text.as_bytes() == rest))
}

impl Served {
    /// Where a text begins: the prompt's with `echo`, otherwise that of the answer to it.
    pub(super) fn text_at(&self, echo: bool, prompt: &[i64]) -> TextAt {
        // Behind text a space is kept.
        let first = echo || !prompt.iter().any(|id| self.is_text(*id));
        TextAt { drops_space: first && self.drops_first_space, ..TextAt::default() }
    }

    fn is_text(&self, id: i64) -> bool {
        usize::try_from(id).ok().and_then(|id| self.text_bytes.get(id)).is_some_and(|len| *len > 0)
    }

    fn bytes(&self, id: i64) -> &[u8] {
        usize::try_from(id).ok().and_then(|id| self.token_bytes.get(id)).map_or(&[], |b| &**b)
    }
}

/// A token as text; where it is part of a character, its bytes, as OpenAI writes them.
fn name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_part_of_a_character_is_named_by_its_bytes() {
        assert_eq!(name(" 안".as_bytes()), " 안");
        assert_eq!(name(&[0xEC, 0x95]), "bytes:\\xec\\x95");
        assert_eq!(name(&[]), "");
    }

    #[test]
    fn offsets_count_characters_and_not_bytes() {
        let mut at = TextAt::default();
        let offsets: Vec<usize> =
            [&b"a"[..], "민수".as_bytes(), &[0xEC], &[0x95, 0x88], b"!", &[0xFF], b"b"]
                .iter()
                .map(|bytes| {
                    let before = at.chars;
                    at.add(bytes);
                    before
                })
                .collect();
        assert_eq!(offsets, [0, 1, 3, 3, 4, 5, 6]);
    }
}

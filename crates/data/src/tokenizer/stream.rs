//! Decoding one token at a time.

use super::{Tokenizer, TokenizerError};

/// How many tokens of the context are kept to decode the first new one.
const CONTEXT: usize = 6;

/// Turns ids into text as they come. A character whose bytes are spread over several tokens is
/// held back until it is whole, so every piece is valid UTF-8 and the pieces joined are what
/// [`Tokenizer::decode`] gives for all the ids.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Ids before this one are out of the window.
    window: usize,
    /// Ids before this one have been given out.
    given: usize,
    skip_special: bool,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, context: &[u32], skip_special: bool) -> Self {
        let ids = context[context.len().saturating_sub(CONTEXT)..].to_vec();
        let given = ids.len();
        Self { tokenizer, ids, window: 0, given, skip_special }
    }

    /// Adds one id and returns the text that became certain, which may be empty.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let (before, now) = self.texts()?;
        if now.len() <= before.len() || now.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        let piece = piece(&before, &now);
        // Special tokens that are skipped would leave a window without text, and the first word
        // after them without its space.
        if self.given < self.ids.len() && !before.is_empty() {
            self.window = self.given;
        }
        self.given = self.ids.len();
        if self.window > 4 * CONTEXT {
            self.ids.drain(..self.window);
            self.given -= self.window;
            self.window = 0;
        }
        Ok(piece)
    }

    /// The text still held back: bytes that never became a whole character, as U+FFFD.
    pub fn finish(self) -> Result<String, TokenizerError> {
        let (before, now) = self.texts()?;
        Ok(piece(&before, &now))
    }

    fn texts(&self) -> Result<(String, String), TokenizerError> {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, self.skip_special);
        Ok((decode(&self.ids[self.window..self.given])?, decode(&self.ids[self.window..])?))
    }
}

fn piece(before: &str, now: &str) -> String {
    // They differ inside `before` only where its last bytes were an unfinished character.
    now.strip_prefix(before)
        .unwrap_or_else(|| {
            let common = before.char_indices().zip(now.chars()).find(|((_, a), b)| a != b);
            common.map_or("", |((at, _), _)| &now[at..])
        })
        .to_owned()
}

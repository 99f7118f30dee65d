//! Text of a response as it grows: stop strings, and what may be shown already.

use super::TextDecoder;

/// The text of one response.
pub(super) struct Text<'a> {
    decoder: Box<dyn TextDecoder + 'a>,
    all: String,
    /// Bytes of `all` handed out so far.
    shown: usize,
}

impl<'a> Text<'a> {
    pub(super) fn new(decoder: Box<dyn TextDecoder + 'a>) -> Self {
        Self { decoder, all: String::new(), shown: 0 }
    }

    /// Takes a token. True if its text completes a stop string; the text then ends before that string.
    pub(super) fn push(&mut self, id: i64, stops: &[String]) -> bool {
        let piece = self.decoder.push(id);
        self.append(&piece, stops)
    }

    /// Takes what the decoder held back. True if that completes a stop string.
    pub(super) fn finish(&mut self, stops: &[String]) -> bool {
        let rest = self.decoder.finish();
        self.append(&rest, stops)
    }

    fn append(&mut self, piece: &str, stops: &[String]) -> bool {
        let before = self.all.len();
        self.all.push_str(piece);
        // A match that ends in the new piece starts at most this far back; bytes, since any boundary may be cut.
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let from = (before + 1).saturating_sub(longest);
        let tail = &self.all.as_bytes()[from.min(self.all.len())..];
        let found = stops.iter().filter_map(|stop| find(tail, stop.as_bytes())).min();
        if let Some(at) = found {
            self.all.truncate(from + at);
        }
        found.is_some()
    }

    /// New text that no later token can turn into part of a stop string; with `last` all that is left.
    pub(super) fn take_shown(&mut self, stops: &[String], last: bool) -> &str {
        let held = if last { 0 } else { held_back(&self.all, stops) };
        let (from, to) = (self.shown, (self.all.len() - held).max(self.shown));
        self.shown = to;
        &self.all[from.min(to)..to]
    }

    pub(super) fn into_string(self) -> String {
        self.all
    }
}

/// The first place of `needle` in `haystack`.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Length of the longest end of `text` that begins, but is not all of, one of `stops`.
fn held_back(text: &str, stops: &[String]) -> usize {
    let of = |stop: &String| {
        (1..stop.len())
            .rev()
            .find(|&len| stop.is_char_boundary(len) && text.ends_with(&stop[..len]))
    };
    stops.iter().filter_map(of).max().unwrap_or(0)
}

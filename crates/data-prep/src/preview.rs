//! Shows rows token by token with their mask, for a person to check.

use std::fmt::Write as _;

use data::encode::{EncodedPair, TokenRow};
use data::tokenizer::Tokenizer;

use crate::tokenise::{Made, Rows};

const COUNTED: &str = "\u{1b}[32m";
const UNCOUNTED: &str = "\u{1b}[2m";
const RESET: &str = "\u{1b}[0m";

/// How tokens are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Green for counted tokens, dim for the others.
    Colour,
    /// Counted runs in `⟦ ⟧`.
    Brackets,
}

/// Something to show.
pub(crate) enum Preview {
    Row(TokenRow),
    Pair(EncodedPair),
    Prompt(Vec<u32>),
}

impl Preview {
    /// What became of an example.
    pub(crate) fn of(made: &Made) -> Vec<Self> {
        match &made.rows {
            Rows::Tokens(encoded) => encoded.rows.iter().cloned().map(Self::Row).collect(),
            Rows::Pair(pair) => vec![Self::Pair(pair.ids.clone())],
            Rows::Prompt(ids) => vec![Self::Prompt(ids.clone())],
        }
    }

    /// Its lines, each with at most so many tokens.
    pub(crate) fn lines(&self, tokenizer: &Tokenizer, most: usize, style: Style) -> Vec<String> {
        let line = |name: &str, ids: &[u32], counts: bool| {
            format!("{name:<8}  {}", pieces(tokenizer, ids, |_| counts, most, style))
        };
        match self {
            Self::Row(row) => vec![self::row(tokenizer, row, most, style)],
            Self::Prompt(ids) => vec![pieces(tokenizer, ids, |_| false, most, style)],
            Self::Pair(pair) => vec![
                line("prompt", &pair.prompt, false),
                line("chosen", &pair.chosen, true),
                line("rejected", &pair.rejected, true),
            ],
        }
    }
}

/// The first tokens of a row; what counts in the loss is marked.
fn row(tokenizer: &Tokenizer, row: &TokenRow, most: usize, style: Style) -> String {
    // The first token of a row is never predicted.
    pieces(tokenizer, &row.ids, |index| row.mask[index] && index > 0, most, style)
}

/// The first tokens, divided by `·`; those that count are marked.
fn pieces(
    tokenizer: &Tokenizer,
    ids: &[u32],
    counts: impl Fn(usize) -> bool,
    most: usize,
    style: Style,
) -> String {
    let mut out = String::new();
    let mut inside = false;
    let shown = ids.len().min(most);
    let mut index = 0;
    while index < shown {
        let counts = counts(index);
        if index == 0 || counts != inside {
            change(&mut out, index > 0 && inside, counts, style);
            inside = counts;
        } else {
            out.push('·');
        }
        let (text, tokens) = spell(tokenizer, &ids[index..shown]);
        out.push_str(&text);
        index += tokens;
    }
    match style {
        Style::Colour => out.push_str(RESET),
        Style::Brackets if inside => out.push('⟧'),
        Style::Brackets => {}
    }
    if shown < ids.len() {
        let _ = write!(out, " … and {} more tokens", ids.len() - shown);
    }
    out
}

fn change(out: &mut String, was: bool, counts: bool, style: Style) {
    match (style, was, counts) {
        (Style::Colour, _, true) => out.extend([RESET, COUNTED]),
        (Style::Colour, _, false) => out.extend([RESET, UNCOUNTED]),
        (Style::Brackets, _, true) => out.push('⟦'),
        (Style::Brackets, true, false) => out.push('⟧'),
        (Style::Brackets, false, false) => {}
    }
}

/// The first token as text, or the first few that are one character together, and how many they are;
/// bytes that become no character are shown as `<id>`.
fn spell(tokenizer: &Tokenizer, ids: &[u32]) -> (String, usize) {
    // Decoding alone would drop a leading space in SentencePiece-like vocabularies.
    let raw = tokenizer.id_to_token(ids[0]).unwrap_or_default();
    if raw.contains('▁') {
        return (raw.replace('▁', " "), 1);
    }
    for tokens in 1..=ids.len().min(4) {
        let text = tokenizer.decode(&ids[..tokens], false).unwrap_or_default();
        if !text.is_empty() && !text.contains('\u{FFFD}') {
            return (text.replace('\n', "⏎").replace('\t', "⇥"), tokens);
        }
    }
    (format!("<{}>", ids[0]), 1)
}

#[cfg(test)]
mod tests {
    use data::tokenizer::BpeOptions;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let texts = ["ab ab ab", "나비 나비 나비"].map(str::to_owned);
        let options = BpeOptions { vocab_size: 280, ..BpeOptions::default() };
        Tokenizer::train_bpe(texts.into_iter(), &options).unwrap()
    }

    fn masked(tokenizer: &Tokenizer, text: &str, from: usize) -> TokenRow {
        let ids = tokenizer.encode(text, false).unwrap().ids;
        let mask = (0..ids.len()).map(|index| index >= from).collect();
        TokenRow { ids, mask }
    }

    #[test]
    fn counted_runs_are_bracketed_or_coloured() {
        let tokenizer = tokenizer();
        let text = "<|user|>ab<|assistant|>ab\n<|end|>";
        let example = masked(&tokenizer, text, 3);
        assert_eq!(
            row(&tokenizer, &example, 100, Style::Brackets),
            "<|user|>·ab·<|assistant|>⟦ab·⏎·<|end|>⟧"
        );
        assert_eq!(
            row(&tokenizer, &example, 100, Style::Colour),
            "\u{1b}[0m\u{1b}[2m<|user|>·ab·<|assistant|>\u{1b}[0m\u{1b}[32mab·⏎·<|end|>\u{1b}[0m"
        );
        assert_eq!(
            row(&tokenizer, &example, 4, Style::Brackets),
            "<|user|>·ab·<|assistant|>⟦ab⟧ … and 2 more tokens"
        );
    }

    #[test]
    fn the_parts_of_a_pair_have_lines_of_their_own() {
        let tokenizer = tokenizer();
        let ids = |text: &str| tokenizer.encode(text, false).unwrap().ids;
        let pair = EncodedPair {
            prompt: ids("<|user|>ab<|assistant|>"),
            chosen: ids("나비<|end|>"),
            rejected: ids("ab\n<|end|>"),
            ..EncodedPair::default()
        };
        assert_eq!(
            Preview::Pair(pair).lines(&tokenizer, 3, Style::Brackets),
            [
                "prompt    <|user|>·ab·<|assistant|>",
                "chosen    ⟦나비·<|end|>⟧",
                "rejected  ⟦ab·⏎·<|end|>⟧"
            ]
        );
        let prompt = Preview::Prompt(ids("<|user|>ab<|assistant|>"));
        assert_eq!(
            prompt.lines(&tokenizer, 2, Style::Brackets),
            ["<|user|>·ab … and 1 more tokens"]
        );
    }

    #[test]
    fn the_first_token_never_counts_and_pieces_of_a_character_are_joined() {
        let tokenizer = tokenizer();
        let example = masked(&tokenizer, "ab다", 0);
        assert!(example.ids.len() >= 3);
        assert_eq!(row(&tokenizer, &example, 9, Style::Brackets), "ab⟦다⟧");
        let cut = row(&tokenizer, &example, example.ids.len() - 1, Style::Brackets);
        assert!(cut.starts_with("ab⟦<") && cut.ends_with(">⟧ … and 1 more tokens"), "{cut}");
    }
}

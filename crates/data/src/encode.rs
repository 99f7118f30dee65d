//! Examples to token rows with their loss mask.
//!
//! An example is tokenised **once**, whole, and the mask comes from the byte offsets of its tokens,
//! never from tokenising a prefix. A token counts when any byte it stands for counts; so a token that
//! straddles the border between prompt and response counts (as in TRL and transformers, which take
//! the token that holds the first counted character), and [`Encoded::straddles`] reports it, because
//! at generation the prompt ends before that token.
//!
//! - Conversations are tokenised without adding special tokens: the template writes them, so there is
//!   never a second BOS. Prompt-completion pairs and running text get what the tokenizer adds (BOS).
//! - EOS is appended to running text and to completions; conversations are closed by their template.
//! - A pair is two such texts, each tokenised whole; [`encode_pair`] divides them where the last answer
//!   begins.
//! - A row that is cut gets no EOS, and what is masked is masked by position, never by token id, so a
//!   padding token that equals EOS changes nothing.

mod pairs;
#[cfg(test)]
mod tests;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use self::pairs::{EncodedPair, encode_pair};
use crate::format::{Example, Message};
use crate::template::{ChatTemplate, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// What to do with an example of more than `max_length` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlong {
    /// Keep the first `max_length` tokens.
    Truncate,
    /// Leave the example out.
    Drop,
    /// Cut running text into rows that overlap by one token, so that every token is predicted once.
    Split,
}

/// How long a row may be and what happens beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// The most tokens a row may have; at least 2.
    pub max_length: usize,
    /// What to do with longer examples.
    pub overlong: Overlong,
}

/// One row: a document or a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each id whether it counts in the loss. The first id of a row is never predicted, whatever
    /// its mask.
    pub mask: Vec<bool>,
}

impl TokenRow {
    /// How many ids are predicted and count.
    pub fn num_targets(&self) -> usize {
        self.mask.iter().skip(1).filter(|counts| **counts).count()
    }
}

/// An example as rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoded {
    /// One row, or several with [`Overlong::Split`].
    pub rows: Vec<TokenRow>,
    /// Tokens lost by [`Overlong::Truncate`].
    pub tokens_cut: usize,
    /// Whether a token holds both counted and uncounted bytes.
    pub straddles: bool,
    /// Whether the end is there: the last counted token is EOS or the end-of-turn token.
    pub closed: bool,
    /// Bytes of text that were tokenised.
    pub bytes: usize,
}

/// Why an example gives no row. Not an error: the caller counts these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// The text, every counted message, or a response of a pair is blank.
    Empty,
    /// More than `max_length` tokens under [`Overlong::Drop`].
    TooLong {
        /// Its tokens.
        tokens: usize,
    },
    /// Nothing that counts is left, for instance after cutting.
    NoTargets,
    /// The responses of a pair are the same.
    Equal {
        /// Whether only within `max_length`.
        cut: bool,
    },
    /// The text of a conversation spells out a special token, which would forge a turn.
    SpecialToken {
        /// The token.
        token: String,
    },
}

/// Why an example cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The chat template fails.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A conversation without a template.
    #[error(
        "a conversation needs a chat template and the tokenizer has none; set `tokenizer.chat_template`"
    )]
    NoTemplate,
    /// Splitting is for running text.
    #[error("overlong = \"split\" is for kind = \"text\"; use \"truncate\" or \"drop\"")]
    CannotSplit,
    /// It becomes another kind of row.
    #[error("a {0} is no token row; encode pairs with `encode_pair` and write prompts as text")]
    NoTokenRow(&'static str),
    /// Rows of one token predict nothing.
    #[error("max_length must be at least 2, not {0}")]
    MaxLength(usize),
}

/// Makes token rows of one example. `template` is needed for conversations.
///
/// # Errors
/// [`EncodeError`]; also for pairs and prompts, which become other rows.
pub fn encode_example(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    example: &Example,
    options: EncodeOptions,
) -> Result<Result<Encoded, Skip>, EncodeError> {
    if options.max_length < 2 {
        return Err(EncodeError::MaxLength(options.max_length));
    }
    let whole = match example {
        Example::Text { text } => {
            if text.trim().is_empty() {
                return Ok(Err(Skip::Empty));
            }
            return encode_text(tokenizer, text, options);
        }
        Example::Preference(_) => return Err(EncodeError::NoTokenRow("pair")),
        Example::Prompt(_) => return Err(EncodeError::NoTokenRow("prompt")),
        _ if options.overlong == Overlong::Split => return Err(EncodeError::CannotSplit),
        Example::Chat { messages } => {
            if messages.iter().all(|m| !m.counts() || m.content.trim().is_empty()) {
                return Ok(Err(Skip::Empty));
            }
            conversation(tokenizer, template, messages)?
        }
        Example::Completion { prompt, completion } => {
            if completion.trim().is_empty() {
                return Ok(Err(Skip::Empty));
            }
            Ok(continuation(tokenizer, prompt, completion)?)
        }
    };
    Ok(whole.and_then(|whole| cut(whole, options)))
}

/// A prompt with what counts, tokenised, before any limit.
struct Whole {
    row: TokenRow,
    /// The first token of the last part that counts.
    last: usize,
    straddles: bool,
    closed: bool,
    bytes: usize,
}

/// A conversation through the template.
fn conversation(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    messages: &[Message],
) -> Result<Result<Whole, Skip>, EncodeError> {
    let template = template.ok_or(EncodeError::NoTemplate)?;
    let forged = messages.iter().find_map(|m| tokenizer.special_in(&m.content));
    if let Some(token) = forged {
        return Ok(Err(Skip::SpecialToken { token: token.to_owned() }));
    }
    let rendered = template.render_with_spans(messages)?;
    let encoding = tokenizer.encode(&rendered.text, false)?;
    let (mask, straddles) = mask_of(&encoding.offsets, &rendered.spans);
    let last_span = &rendered.spans[rendered.spans.len().saturating_sub(1)..];
    let (last, _) = mask_of(&encoding.offsets, last_span);
    Ok(Ok(Whole {
        last: last.iter().position(|counts| *counts).unwrap_or(mask.len()),
        row: TokenRow { ids: encoding.ids, mask },
        straddles,
        closed: rendered.closed,
        bytes: rendered.text.len(),
    }))
}

/// A prompt and what follows it as they are, with EOS.
fn continuation(
    tokenizer: &Tokenizer,
    prompt: &str,
    completion: &str,
) -> Result<Whole, EncodeError> {
    let text = format!("{prompt}{completion}");
    let encoding = tokenizer.encode_plain(&text, true)?;
    let span = prompt.len()..text.len();
    let (mask, straddles) = mask_of(&encoding.offsets, std::slice::from_ref(&span));
    // BOS stands for no bytes, so it counts where there is no prompt; but it is the model's to be given.
    let given = usize::from(encoding.ids.first() == tokenizer.bos_id().as_ref());
    let last = mask.iter().skip(given).position(|counts| *counts);
    let last = last.map_or(mask.len(), |at| at + given);
    let mut row = TokenRow { ids: encoding.ids, mask };
    let closed = close(tokenizer, &mut row);
    Ok(Whole { row, last, straddles, closed, bytes: text.len() })
}

/// The ids of a conversation up to where the assistant would answer: what to generate from.
pub fn chat_prompt(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
) -> Result<Vec<u32>, EncodeError> {
    let text = template.render(messages, true)?;
    Ok(tokenizer.encode(&text, false)?.ids)
}

/// Whether each token counts, and whether one holds both counted and uncounted bytes.
///
/// `offsets` are those of [`Tokenizer::encode`]; `spans` are ascending and disjoint. A token that
/// stands for no bytes counts when the byte after it does, because it is written together with it.
pub fn mask_of(offsets: &[(usize, usize)], spans: &[Range<usize>]) -> (Vec<bool>, bool) {
    let mut straddles = false;
    let mut first = 0;
    let mask = offsets
        .iter()
        .map(|&(start, end)| {
            while spans.get(first).is_some_and(|span| span.end <= start) {
                first += 1;
            }
            let Some(span) = spans.get(first) else { return false };
            if start == end {
                return span.contains(&start);
            }
            let counts = span.start < end;
            straddles |= counts && (start < span.start || end > span.end);
            counts
        })
        .collect();
    (mask, straddles)
}

/// Appends EOS where the tokenizer has one and did not add it itself.
fn close(tokenizer: &Tokenizer, row: &mut TokenRow) -> bool {
    let Some(eos) = tokenizer.eos_id() else { return false };
    if row.ids.len() > 1 && row.ids.last() == Some(&eos) {
        if let Some(last) = row.mask.last_mut() {
            *last = true;
        }
    } else {
        row.ids.push(eos);
        row.mask.push(true);
    }
    true
}

/// Applies the length limit to a row with a prompt.
fn cut(whole: Whole, options: EncodeOptions) -> Result<Encoded, Skip> {
    let Whole { mut row, straddles, closed, bytes, .. } = whole;
    let tokens = row.ids.len();
    let tokens_cut = tokens.saturating_sub(options.max_length);
    if tokens_cut > 0 && options.overlong == Overlong::Drop {
        return Err(Skip::TooLong { tokens });
    }
    row.ids.truncate(options.max_length);
    row.mask.truncate(options.max_length);
    if row.num_targets() == 0 {
        return Err(Skip::NoTargets);
    }
    let closed = closed && tokens_cut == 0;
    Ok(Encoded { rows: vec![row], tokens_cut, straddles, closed, bytes })
}

fn encode_text(
    tokenizer: &Tokenizer,
    text: &str,
    options: EncodeOptions,
) -> Result<Result<Encoded, Skip>, EncodeError> {
    let ids = tokenizer.ids_plain(text, true)?;
    let mask = vec![true; ids.len()];
    let mut row = TokenRow { ids, mask };
    let closed = close(tokenizer, &mut row);
    if row.ids.len() <= options.max_length || options.overlong != Overlong::Split {
        let whole = Whole { row, last: 0, straddles: false, closed, bytes: text.len() };
        return Ok(cut(whole, options));
    }
    let mut rows = Vec::new();
    let mut start = 0;
    while start + 1 < row.ids.len() {
        let end = (start + options.max_length).min(row.ids.len());
        let ids = row.ids[start..end].to_vec();
        rows.push(TokenRow { mask: vec![true; ids.len()], ids });
        start = end - 1;
    }
    Ok(Ok(Encoded { rows, tokens_cut: 0, straddles: false, closed, bytes: text.len() }))
}

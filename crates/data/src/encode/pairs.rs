//! Pairs of responses to pair rows.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::{EncodeError, EncodeOptions, Overlong, Skip, Whole, continuation, conversation};
use crate::format::{Message, Preference, Prompt};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// A pair as token ids. A response ends with its last counted token: EOS or the end-of-turn token,
/// unless it was cut. What a template prints after that is left off, so that a model is judged at the
/// token with which it stops.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedPair {
    /// What both sequences begin with.
    pub prompt: Vec<u32>,
    /// The preferred response; not empty.
    pub chosen: Vec<u32>,
    /// The other response; not empty, and not equal to the preferred one.
    pub rejected: Vec<u32>,
    /// Tokens lost by [`Overlong::Truncate`], of both responses.
    pub tokens_cut: usize,
    /// Whether a token holds bytes of the prompt and of a response; the responses have those tokens.
    pub straddles: bool,
    /// Whether the end of both responses is there.
    pub closed: bool,
    /// Bytes of text that were tokenised; a prompt is tokenised with each of its responses.
    pub bytes: usize,
}

impl EncodedPair {
    /// Tokens, the prompt counted once.
    pub fn num_tokens(&self) -> usize {
        self.prompt.len() + self.chosen.len() + self.rejected.len()
    }
}

/// Makes a pair row of two responses to one prompt. `template` is needed for conversations.
///
/// Both members are tokenised whole, as [`encode_example`](super::encode_example) does it, and divided
/// at the first token of the last answer. Where a token straddles that border, so that the tokens
/// before it differ, the prompt is what both begin with and the rest belongs to the responses.
///
/// A pair with a member of more than `max_length` tokens is left out, or the ends of the responses
/// are cut; a cut response gets no EOS.
///
/// # Errors
/// [`EncodeError`]; the reason why there is no pair is no error.
pub fn encode_pair(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    example: &Preference,
    options: EncodeOptions,
) -> Result<Result<EncodedPair, Skip>, EncodeError> {
    if options.max_length < 2 {
        return Err(EncodeError::MaxLength(options.max_length));
    }
    if options.overlong == Overlong::Split {
        return Err(EncodeError::CannotSplit);
    }
    if [&example.chosen, &example.rejected].iter().any(|text| text.trim().is_empty()) {
        return Ok(Err(Skip::Empty));
    }
    if example.chosen == example.rejected {
        return Ok(Err(Skip::Equal { cut: false }));
    }
    let mut members = Vec::with_capacity(2);
    for response in [&example.chosen, &example.rejected] {
        match member(tokenizer, template, &example.prompt, response)? {
            Ok(whole) => members.push(whole),
            Err(skip) => return Ok(Err(skip)),
        }
    }
    Ok(divide(&members[0], &members[1], options))
}

fn member(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    prompt: &Prompt,
    response: &str,
) -> Result<Result<Whole, Skip>, EncodeError> {
    match prompt {
        Prompt::Messages(messages) => {
            let answer = [Message::new("assistant", response)];
            conversation(tokenizer, template, &[messages.as_slice(), &answer].concat())
        }
        Prompt::Text(prompt) => Ok(Ok(continuation(tokenizer, prompt, response)?)),
    }
}

fn divide(chosen: &Whole, rejected: &Whole, options: EncodeOptions) -> Result<EncodedPair, Skip> {
    let [before, other] = [chosen, rejected].map(|whole| &whole.row.ids[..whole.last]);
    let shared = before.iter().zip(other).take_while(|(a, b)| a == b).count();
    let straddles = shared < before.len().max(other.len());
    let ends = [chosen, rejected]
        .map(|whole| whole.row.mask.iter().rposition(|counts| *counts).map_or(0, |last| last + 1));
    let tokens = ends[0].max(ends[1]);
    if tokens > options.max_length && options.overlong == Overlong::Drop {
        return Err(Skip::TooLong { tokens });
    }
    let kept = ends.map(|end| end.min(options.max_length));
    if kept.iter().any(|end| *end <= shared) {
        return Err(Skip::NoTargets);
    }
    let response = |whole: &Whole, end: usize| whole.row.ids[shared..end].to_vec();
    let responses = [response(chosen, kept[0]), response(rejected, kept[1])];
    let tokens_cut = ends[0] + ends[1] - kept[0] - kept[1];
    if responses[0] == responses[1] {
        return Err(Skip::Equal { cut: tokens_cut > 0 });
    }
    let both = (chosen, rejected);
    let [chosen, rejected] = responses;
    Ok(EncodedPair {
        prompt: before[..shared].to_vec(),
        chosen,
        rejected,
        tokens_cut,
        straddles: straddles || both.0.straddles || both.1.straddles,
        closed: both.0.closed && both.1.closed && tokens_cut == 0,
        bytes: both.0.bytes + both.1.bytes,
    })
}

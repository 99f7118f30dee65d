//! Conversations as one text with a heading before each turn, as in Anthropic's hh-rlhf.

use super::Message;

const HEADINGS: [(&str, &str); 2] = [("\n\nHuman:", "user"), (ANSWER, "assistant")];
const ANSWER: &str = "\n\nAssistant:";

/// The turns of a transcript, without the blanks around them; `None` for text that does not begin
/// with a heading.
pub(super) fn parse(text: &str) -> Option<Vec<Message>> {
    // The first heading may stand without its line breaks.
    let text = format!("\n\n{}", text.trim_start());
    let mut turns: Vec<(usize, usize, &str)> = HEADINGS
        .iter()
        .flat_map(|&(heading, role)| {
            text.match_indices(heading).map(move |(at, _)| (at, at + heading.len(), role))
        })
        .collect();
    turns.sort_unstable();
    if turns.first().is_none_or(|&(at, ..)| at > 0) {
        return None;
    }
    let ends = turns.iter().skip(1).map(|&(at, ..)| at).chain([text.len()]);
    let message = |(&(_, start, role), end): (&(usize, usize, &str), usize)| {
        Message::new(role, text[start..end].trim())
    };
    Some(turns.iter().zip(ends).map(message).collect())
}

/// The turns of a transcript that ends with the heading of an answer, which is still to be given.
pub(super) fn parse_open(text: &str) -> Option<Vec<Message>> {
    if !text.starts_with(HEADINGS[0].0) || !text.trim_end().ends_with(ANSWER.trim_start()) {
        return None;
    }
    let mut turns = parse(text)?;
    turns.pop();
    Some(turns)
}

/// A transcript as text up to the heading of its last answer, and that answer; `None` where the last
/// turn is another's.
pub(super) fn split(text: &str) -> Option<(&str, &str)> {
    let at = text.rfind(ANSWER)? + ANSWER.len();
    let (before, answer) = text.split_at(at);
    (!answer.contains(HEADINGS[0].0)).then_some((before, answer))
}

//! Finds the bytes of a rendered conversation that count in the loss.

use std::ops::Range;

use super::environment::unused_mark;
use super::{ChatTemplate, Rendered, TemplateError};
use crate::format::Message;

/// The end of a thought in templates that treat thoughts apart (Qwen3, DeepSeek-R1).
const THINK_END: &str = "</think>";
/// Its beginning.
const THINK_START: &str = "<think>";

pub(super) fn render(
    template: &ChatTemplate,
    messages: &[Message],
) -> Result<Rendered, TemplateError> {
    let (text, spans) = if template.generation {
        generation_spans(template, messages)?
    } else {
        fenced_spans(template, messages)?
    };
    let end = template.end_of_turn.as_deref();
    let spans: Vec<Range<usize>> = if template.generation {
        spans
    } else {
        spans.into_iter().map(|span| with_end_of_turn(&text, span, end)).collect()
    };
    let closed = end
        .is_some_and(|end| spans.iter().all(|span| text[span.clone()].trim_end().ends_with(end)));
    Ok(Rendered { text, spans, closed })
}

/// Extends a span over the end-of-turn token, and over the blanks before it, because the model has
/// to write those too before it can stop.
fn with_end_of_turn(text: &str, span: Range<usize>, end: Option<&str>) -> Range<usize> {
    let after = &text[span.end..];
    let blank = after.len() - after.trim_start().len();
    match end {
        Some(end) if after[blank..].starts_with(end) => span.start..span.end + blank + end.len(),
        _ => span,
    }
}

/// The special token that the template puts after the assistant's text, by a probe conversation.
pub(super) fn end_of_turn(template: &ChatTemplate) -> Option<String> {
    let probe = [Message::new("user", "Q"), Message::new("assistant", "A")];
    let mark = unused_mark(&probe);
    let fence = format!("A{mark}");
    let marked = [Message::new("user", "Q"), Message::new("assistant", &fence)];
    let text = template.render_raw(&marked, false, "").ok()?;
    let after = text[text.rfind(&mark)? + mark.len()..].trim_start();
    let mut found: Vec<&String> = template
        .specials
        .all
        .iter()
        .filter(|token| !token.is_empty() && after.starts_with(token.as_str()))
        .collect();
    found.sort_by_key(|token| token.len());
    found.last().map(|token| (*token).clone())
}

/// Spans from the template's own `{% generation %}` blocks.
fn generation_spans(
    template: &ChatTemplate,
    messages: &[Message],
) -> Result<(String, Vec<Range<usize>>), TemplateError> {
    let mark = unused_mark(messages);
    let marked = template.render_raw(messages, false, &mark)?;
    let mut text = String::with_capacity(marked.len());
    let mut edges = Vec::new();
    for (index, piece) in marked.split(&mark).enumerate() {
        if index > 0 {
            edges.push(text.len());
        }
        text.push_str(piece);
    }
    if edges.len() % 2 != 0 {
        return Err(TemplateError::Generation(
            "its {% generation %} blocks are cut apart by the template; it prints only part of one"
                .to_owned(),
        ));
    }
    let blocks: Vec<Range<usize>> = edges.chunks(2).map(|edge| edge[0]..edge[1]).collect();
    let turns: Vec<&Message> = messages.iter().filter(|m| m.role == "assistant").collect();
    if let Some(other) = messages.iter().find(|m| m.role != "assistant" && m.counts()) {
        return Err(TemplateError::Generation(format!(
            "a message of `{}` is to count in the loss, but the template's {{% generation %}} blocks are for the assistant only",
            other.role
        )));
    }
    if turns.iter().all(|turn| turn.counts()) {
        if blocks.is_empty() && !turns.is_empty() {
            return Err(TemplateError::Generation(
                "it printed no {% generation %} block for this conversation, so nothing would count in the loss"
                    .to_owned(),
            ));
        }
        return Ok((text, blocks));
    }
    if blocks.len() != turns.len() {
        return Err(TemplateError::Generation(format!(
            "{} {{% generation %}} blocks for {} assistant messages, so messages that are not to count cannot be told apart",
            blocks.len(),
            turns.len()
        )));
    }
    let counted = blocks.into_iter().zip(turns).filter(|(_, turn)| turn.counts());
    Ok((text, counted.map(|(block, _)| block).collect()))
}

/// The marks put into one message.
struct Fence {
    /// Before the text.
    start: String,
    /// After the text.
    end: String,
    /// Inside a thought that opens the text, at its start.
    thought: String,
    /// After the thought.
    answer: String,
}

impl Fence {
    fn new(base: &str, index: usize) -> Self {
        let mark = |kind: char| format!("{base}{kind}{index}\u{F8F2}");
        Self { start: mark('S'), end: mark('E'), thought: mark('T'), answer: mark('A') }
    }

    /// The content with marks inside its outer white space, so that a template may still trim it.
    fn wrap(&self, content: &str) -> String {
        let (lead, body, tail) = split_blank(content);
        let body = match body.rsplit_once(THINK_END) {
            Some((thought, answer)) => {
                let thought = match thought.split_once(THINK_START) {
                    Some((before, inside)) => {
                        let (gap, inside, after) = split_blank(inside);
                        format!("{before}{THINK_START}{gap}{}{inside}{after}", self.thought)
                    }
                    None => format!("{}{thought}", self.thought),
                };
                let (gap, answer, after) = split_blank(answer);
                format!("{thought}{THINK_END}{gap}{}{answer}{after}", self.answer)
            }
            None => body.to_owned(),
        };
        format!("{lead}{}{body}{}{tail}", self.start, self.end)
    }
}

/// Leading blanks, the rest, trailing blanks.
fn split_blank(text: &str) -> (&str, &str, &str) {
    let body = text.trim();
    let lead = text.len() - text.trim_start().len();
    if body.is_empty() {
        return (text, "", "");
    }
    (&text[..lead], body, &text[lead + body.len()..])
}

/// Spans found by fencing the text of every counted message.
fn fenced_spans(
    template: &ChatTemplate,
    messages: &[Message],
) -> Result<(String, Vec<Range<usize>>), TemplateError> {
    let text = template.render_raw(messages, false, "")?;
    let base = unused_mark(messages);
    let mut fenced = messages.to_vec();
    let mut fences = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if message.counts() {
            let fence = Fence::new(&base, index);
            fenced[index].content = fence.wrap(&message.content);
            fences.push((index, fence));
        }
    }
    let marked = template.render_raw(&fenced, false, "")?;
    let (plain, marks) = take_marks(&marked, &base);
    if plain != text {
        let (index, _) = fences[0];
        return Err(lost(
            messages,
            index,
            "the template changes the text depending on what is in it",
        ));
    }
    let mut spans: Vec<Range<usize>> = Vec::with_capacity(fences.len());
    for (index, fence) in &fences {
        let mut span = locate(&text, &marks, fence).map_err(|why| lost(messages, *index, why))?;
        widen(template, messages, *index, &text, &mut span)?;
        take_blank(template, messages, *index, &text, &mut span);
        if spans.last().is_some_and(|last| last.end > span.start) {
            return Err(lost(
                messages,
                *index,
                "the template does not keep the order of the messages",
            ));
        }
        spans.push(span);
    }
    Ok((text, spans))
}

fn lost(messages: &[Message], index: usize, why: &str) -> TemplateError {
    TemplateError::Spans {
        message: index + 1,
        role: messages[index].role.clone(),
        why: why.to_owned(),
    }
}

/// Removes the marks and says where each was, in bytes of the text without them.
fn take_marks(marked: &str, base: &str) -> (String, Vec<(String, usize)>) {
    let mut text = String::with_capacity(marked.len());
    let mut marks = Vec::new();
    let mut rest = marked;
    while let Some(start) = rest.find(base) {
        let tail = &rest[start..];
        let Some(end) = tail.find('\u{F8F2}') else { break };
        let end = end + '\u{F8F2}'.len_utf8();
        text.push_str(&rest[..start]);
        marks.push((tail[..end].to_owned(), text.len()));
        rest = &tail[end..];
    }
    text.push_str(rest);
    (text, marks)
}

fn locate(
    text: &str,
    marks: &[(String, usize)],
    fence: &Fence,
) -> Result<Range<usize>, &'static str> {
    let find = |mark: &str| {
        let mut places = marks.iter().filter(|(found, _)| found == mark).map(|(_, at)| *at);
        match (places.next(), places.next()) {
            (Some(at), None) => Ok(Some(at)),
            (None, _) => Ok(None),
            _ => Err("the template prints it more than once"),
        }
    };
    let end = find(&fence.end)?.ok_or("the template leaves its end out")?;
    if let Some(start) = find(&fence.start)? {
        return Ok(start..end);
    }
    if let Some(thought) = find(&fence.thought)? {
        let open = text[..thought].rfind(THINK_START);
        let start = open.ok_or("the template moves its thought elsewhere")?;
        if text[start + THINK_START.len()..thought].trim().is_empty() {
            return Ok(start..end);
        }
        return Err("the template moves its thought elsewhere");
    }
    find(&fence.answer)?.map(|start| start..end).ok_or("the template leaves its beginning out")
}

/// Takes in a space before the text that is not in the prompt of generation either, so that the model
/// has to write it (Llama 2 prints `[/INST]`, a space and the answer, and prompts with `[/INST]`).
fn take_blank(
    template: &ChatTemplate,
    messages: &[Message],
    index: usize,
    text: &str,
    span: &mut Range<usize>,
) {
    if text[..span.start].ends_with(' ')
        && let Ok(prompt) = template.render_raw(&messages[..index], true, "")
        && text.starts_with(&prompt)
        && prompt.len() < span.start
        && text[prompt.len()..span.start].trim().is_empty()
    {
        span.start = prompt.len();
    }
}

/// Takes in the message's own outer white space where the template printed it: rendering the trimmed
/// message tells whether it did.
fn widen(
    template: &ChatTemplate,
    messages: &[Message],
    index: usize,
    text: &str,
    span: &mut Range<usize>,
) -> Result<(), TemplateError> {
    let (lead, body, tail) = split_blank(&messages[index].content);
    let changes = |content: &str| -> Result<bool, TemplateError> {
        let mut trimmed = messages.to_vec();
        content.clone_into(&mut trimmed[index].content);
        Ok(template.render_raw(&trimmed, false, "")? != text)
    };
    if !lead.is_empty() && text[..span.start].ends_with(lead) && changes(&format!("{body}{tail}"))?
    {
        span.start -= lead.len();
    }
    if !tail.is_empty() && text[span.end..].starts_with(tail) && changes(&format!("{lead}{body}"))?
    {
        span.end += tail.len();
    }
    Ok(())
}

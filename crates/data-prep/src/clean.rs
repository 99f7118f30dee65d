//! Cleans text: Unicode normalisation, control characters, white space.

use data::format::{Example, Message, Prompt};
use unicode_normalization::{UnicodeNormalization, is_nfc};

use crate::config::Clean;

/// Cleans every text of an example. The parts of a completion or of a plain pair keep their outer white
/// space, because it is where they join.
pub(crate) fn example(example: &mut Example, options: Clean) {
    match example {
        Example::Text { text } => *text = clean(text, options, true),
        Example::Chat { messages } => conversation(messages, options),
        Example::Completion { prompt, completion } => {
            *prompt = clean(prompt, options, false);
            *completion = clean(completion, options, false);
        }
        Example::Preference(pair) => {
            let trim = matches!(pair.prompt, Prompt::Messages(_));
            prompt(&mut pair.prompt, options);
            for response in [&mut pair.chosen, &mut pair.rejected] {
                *response = clean(response, options, trim);
            }
        }
        Example::Prompt(own) => prompt(own, options),
    }
}

fn conversation(messages: &mut [Message], options: Clean) {
    for message in messages {
        message.content = clean(&message.content, options, true);
    }
}

fn prompt(prompt: &mut Prompt, options: Clean) {
    match prompt {
        Prompt::Messages(messages) => conversation(messages, options),
        Prompt::Text(text) => *text = clean(text, options, false),
    }
}

fn clean(text: &str, options: Clean, trim: bool) -> String {
    let mut text =
        if options.nfc && !is_nfc(text) { text.nfc().collect() } else { text.to_owned() };
    if options.control_characters {
        text = drop_control(&text);
    }
    if options.whitespace {
        text = tidy_whitespace(&text, trim);
    }
    text
}

fn drop_control(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' => {
                if chars.peek() != Some(&'\n') {
                    out.push('\n');
                }
            }
            // Byte order mark, zero-width space, and the separators that only some programs obey.
            '\u{FEFF}' | '\u{200B}' => {}
            '\u{2028}' | '\u{2029}' => out.push('\n'),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

fn tidy_whitespace(text: &str, trim: bool) -> String {
    let (head, body, tail) = if trim {
        ("", text.trim(), "")
    } else {
        let start = text.len() - text.trim_start().len();
        let end = text.trim_end().len().max(start);
        (&text[..start], &text[start..end], &text[end..])
    };
    let mut out = String::with_capacity(text.len());
    out.push_str(head);
    let mut blank_lines = 0;
    for (index, line) in body.split('\n').enumerate() {
        let line = line.trim_end();
        if line.is_empty() {
            blank_lines += 1;
            if blank_lines > 1 {
                continue;
            }
        } else {
            blank_lines = 0;
        }
        if index > 0 {
            out.push('\n');
        }
        out.push_str(line);
    }
    out.push_str(tail);
    out
}

#[cfg(test)]
mod tests {
    use data::format::Preference;

    use super::*;

    fn all(text: &str) -> String {
        clean(text, Clean::default(), true)
    }

    #[test]
    fn decomposed_hangul_becomes_syllables() {
        assert_eq!(all("\u{1112}\u{1161}\u{11AB}\u{1100}\u{1173}\u{11AF}"), "한글");
        assert_eq!(all("cafe\u{301}"), "café");
    }

    #[test]
    fn control_characters_go_and_line_ends_become_lf() {
        assert_eq!(all("\u{FEFF}a\u{0}b\u{7}c\r\nd\re\u{200B}f\tg"), "abc\nd\nef\tg");
        assert_eq!(all("가\u{2028}나"), "가\n나");
        // The joiner inside an emoji is no control character.
        assert_eq!(all("👩\u{200D}🌾"), "👩\u{200D}🌾");
    }

    #[test]
    fn white_space_is_tidied_but_indentation_stays() {
        assert_eq!(
            all("  fn main() {  \n    let x = 1;\t\n\n\n\n}\n\n"),
            "fn main() {\n    let x = 1;\n\n}"
        );
        assert_eq!(all(" \n\t "), "");
    }

    #[test]
    fn completions_keep_the_white_space_where_they_join() {
        let mut pair = Example::Completion {
            prompt: "질문: \n".to_owned(),
            completion: " 답 \n\n\n끝\n".to_owned(),
        };
        example(&mut pair, Clean::default());
        let Example::Completion { prompt, completion } = pair else { unreachable!() };
        assert_eq!((prompt.as_str(), completion.as_str()), ("질문: \n", " 답\n\n끝\n"));
        let mut blank = Example::Completion { prompt: "  ".to_owned(), completion: String::new() };
        example(&mut blank, Clean::default());
        assert_eq!(
            blank,
            Example::Completion { prompt: "  ".to_owned(), completion: String::new() }
        );
    }

    #[test]
    fn pairs_and_prompts_are_cleaned_in_all_their_parts() {
        let own = |prompt| Preference {
            prompt,
            chosen: " 네 \r\n\n\n 끝\n".to_owned(),
            rejected: "e\u{301}\u{0} ".to_owned(),
            margin: None,
            probability: None,
        };
        let messages = vec![Message::new("user", " 질문\u{FEFF} ")];
        let mut pair = Example::Preference(own(Prompt::Messages(messages.clone())));
        example(&mut pair, Clean::default());
        let Example::Preference(pair) = pair else { unreachable!() };
        assert_eq!(pair.prompt, Prompt::Messages(vec![Message::new("user", "질문")]));
        assert_eq!((pair.chosen.as_str(), pair.rejected.as_str()), ("네\n\n 끝", "é"));
        let mut plain = Example::Preference(own(Prompt::Text(" 질문: \u{0}".to_owned())));
        example(&mut plain, Clean::default());
        let Example::Preference(plain) = plain else { unreachable!() };
        assert_eq!(plain.prompt, Prompt::Text(" 질문: ".to_owned()));
        assert_eq!((plain.chosen.as_str(), plain.rejected.as_str()), (" 네\n\n 끝\n", "é "));
        let mut alone = Example::Prompt(Prompt::Messages(messages));
        example(&mut alone, Clean::default());
        let cleaned = vec![Message::new("user", "질문")];
        assert_eq!(alone, Example::Prompt(Prompt::Messages(cleaned)));
    }

    #[test]
    fn everything_can_be_switched_off() {
        let off = Clean { nfc: false, control_characters: false, whitespace: false };
        let text = " e\u{301}\u{0}\r\n ";
        let mut chat = Example::Chat { messages: vec![Message::new("user", text)] };
        example(&mut chat, off);
        assert_eq!(chat, Example::Chat { messages: vec![Message::new("user", text)] });
    }
}

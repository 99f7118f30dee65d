//! Chat templates, which are code: whatever they do ends soon and stays small.
#![no_main]

use std::time::Instant;

use data::format::Message;
use data::template::{ChatTemplate, SpecialTokens};
use libfuzzer_sys::fuzz_target;
use temper_fuzz::{allow_guarded_panics, readable};

fuzz_target!(init: allow_guarded_panics(), |source: &str| {
    let mut specials = SpecialTokens::default();
    for (name, token) in [("bos_token", "<s>"), ("eos_token", "</s>")] {
        specials.named.insert(name.to_owned(), token.into());
        specials.all.push(token.to_owned());
    }
    let started = Instant::now();
    let Some(template) = readable(ChatTemplate::with_date(source, specials, Some("2026-01-01")))
    else {
        return;
    };
    let messages = [
        Message::new("system", "Be kind."),
        Message::new("user", "Who?"),
        Message::new("assistant", "<think>\nhm\n</think>\n\n민수."),
        Message::new("user", "Where?"),
        Message::new("assistant", "There."),
    ];
    if let Some(text) = readable(template.render(&messages[..4], true)) {
        assert!(text.len() < 200 << 20, "{} bytes", text.len());
    }
    if let Some(rendered) = readable(template.render_with_spans(&messages)) {
        for span in rendered.spans {
            assert!(rendered.text.get(span).is_some(), "a span that cuts a character");
        }
    }
    assert!(started.elapsed().as_secs() < 60, "took too long");
});

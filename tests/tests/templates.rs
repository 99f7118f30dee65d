//! Chat templates against transformers' `apply_chat_template`: the text, and which bytes the assistant says.

use anyhow::{Result, bail, ensure};
use data::format::Message;
use data::template::{ChatTemplate, SpecialTokens};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use temper_tests::fixtures;

const STYLES: [&str; 7] = ["chatml", "llama2", "llama3", "mistral", "qwen", "gemma", "features"];

#[derive(Debug, Deserialize)]
struct Style {
    tagged: String,
    plain: String,
    bos_token: String,
    eos_token: String,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    conversation: String,
    add_generation_prompt: bool,
    text: Option<String>,
    #[serde(default)]
    spans: Vec<(usize, usize)>,
    error: Option<String>,
}

impl Style {
    fn read(name: &str) -> Result<Self> {
        fixtures::json(&fixtures::parity(format!("templates/{name}.json")))
    }

    /// The special tokens as a tokenizer of this style has them.
    fn specials(&self) -> SpecialTokens {
        let mut named = Map::new();
        named.insert("bos_token".into(), Value::from(self.bos_token.as_str()));
        named.insert("eos_token".into(), Value::from(self.eos_token.as_str()));
        let all = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<s>", "</s>", "<end_of_turn>"];
        SpecialTokens { named, all: all.map(str::to_owned).to_vec() }
    }
}

fn conversations() -> Result<BTreeMap<String, Vec<Message>>> {
    fixtures::json(&fixtures::parity("templates/conversations.json"))
}

#[test]
fn renderings_are_those_of_transformers() -> Result<()> {
    let conversations = conversations()?;
    for name in STYLES {
        let style = Style::read(name)?;
        ensure!(style.cases.len() >= 12, "{name}");
        for source in [&style.tagged, &style.plain] {
            let template = ChatTemplate::parse(source, style.specials())?;
            for case in &style.cases {
                let messages = &conversations[&case.conversation];
                let got = template.render(messages, case.add_generation_prompt);
                match (&case.text, &case.error, got) {
                    (Some(want), _, Ok(got)) => {
                        assert_eq!(&got, want, "{name} {}", case.conversation);
                    }
                    (_, Some(want), Err(error)) => {
                        let error = error.to_string();
                        ensure!(error.contains(want.as_str()), "{name}: {error:?} lacks {want:?}");
                    }
                    (want, _, got) => bail!("{name} {}: {got:?}, not {want:?}", case.conversation),
                }
            }
        }
    }
    Ok(())
}

#[test]
fn counted_bytes_are_what_the_assistant_says() -> Result<()> {
    let conversations = conversations()?;
    let mut compared = 0;
    for name in STYLES {
        let style = Style::read(name)?;
        for (kind, source) in [("tagged", &style.tagged), ("plain", &style.plain)] {
            let template = ChatTemplate::parse(source, style.specials())?;
            for case in &style.cases {
                let messages = &conversations[&case.conversation];
                // the loss mask is of whole conversations, in which somebody has answered
                let answered = messages.iter().any(|message| message.role == "assistant");
                let Some(text) = case.text.as_ref().filter(|_| answered) else { continue };
                if case.add_generation_prompt {
                    continue;
                }
                let what = format!("{name} {kind} {}", case.conversation);
                let rendered = match template.render_with_spans(messages) {
                    Ok(rendered) => rendered,
                    Err(error) => bail!("{what}: {error}"),
                };
                assert_eq!(&rendered.text, text, "{what}");
                assert_eq!(rendered.spans.len(), case.spans.len(), "{what}");
                for (span, &(start, end)) in rendered.spans.iter().zip(&case.spans) {
                    let said = &text[span.clone()];
                    assert_eq!(span.end, end, "{what}: {said:?}");
                    // Where a template has no tags, white space before an answer is the answer's: the prompt ends
                    // without it.
                    let before = text.get(span.start..start).unwrap_or("not white space");
                    assert!(before.trim().is_empty(), "{what}: {said:?}");
                    assert!(kind == "plain" || before.is_empty(), "{what}: {said:?}");
                }
                compared += 1;
            }
        }
    }
    ensure!(compared >= 60, "only {compared}");
    Ok(())
}

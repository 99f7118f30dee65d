use serde::Deserialize;
use serde_json::json;

use super::*;

fn specials() -> SpecialTokens {
    let Value::Object(named) = json!({"bos_token": "<s>", "eos_token": "</s>"}) else { panic!() };
    let all = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"];
    let all = all.iter().chain(&CHAT_TOKENS).map(|token| (*token).to_owned()).collect();
    SpecialTokens { named, all }
}

/// What transformers prints; see `fixtures/chat_templates.py`.
#[derive(Deserialize)]
struct Fixture {
    templates: Map<String, Value>,
    conversations: std::collections::BTreeMap<String, Vec<(String, String)>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    plain: Expected,
    prompt: Expected,
}

#[derive(Deserialize)]
struct Expected {
    text: Option<String>,
    error: Option<String>,
    ranges: Option<Vec<(usize, usize)>>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../fixtures/chat_templates.json")).unwrap()
}

impl Fixture {
    fn template(&self, name: &str) -> ChatTemplate {
        ChatTemplate::parse(self.templates[name].as_str().unwrap(), specials()).unwrap()
    }

    fn messages(&self, name: &str) -> Vec<Message> {
        self.conversations[name].iter().map(|(role, content)| Message::new(role, content)).collect()
    }
}

#[test]
fn renderings_equal_those_of_transformers() {
    let fixture = fixture();
    let mut errors = 0;
    for case in &fixture.cases {
        let template = fixture.template(&case.template);
        let messages = fixture.messages(&case.conversation);
        for (expected, prompt) in [(&case.plain, false), (&case.prompt, true)] {
            let what = format!("{} {} {prompt}", case.template, case.conversation);
            match (template.render(&messages, prompt), &expected.text) {
                (Ok(text), Some(expected)) => assert_eq!(&text, expected, "{what}"),
                (Err(error), None) => {
                    errors += 1;
                    let expected = expected.error.as_ref().unwrap();
                    assert!(error.to_string().contains(expected), "{what}: {error}");
                }
                (got, expected) => panic!("{what}: {got:?} instead of {expected:?}"),
            }
        }
    }
    assert!(fixture.cases.len() >= 50 && errors >= 4);
}

#[test]
fn generation_blocks_give_the_ranges_of_transformers() {
    let fixture = fixture();
    let mut compared = 0;
    for case in &fixture.cases {
        let (Some(ranges), Some(text)) = (&case.plain.ranges, &case.plain.text) else { continue };
        let byte = |chars: usize| text.chars().take(chars).map(char::len_utf8).sum::<usize>();
        let expected: Vec<Range<usize>> = ranges.iter().map(|&(a, b)| byte(a)..byte(b)).collect();
        let template = fixture.template(&case.template);
        let rendered = template.render_with_spans(&fixture.messages(&case.conversation)).unwrap();
        assert_eq!(rendered.spans, expected, "{} {}", case.template, case.conversation);
        compared += 1;
    }
    assert_eq!(compared, 12);
}

/// The texts that count.
fn counted(template: &ChatTemplate, messages: &[Message]) -> Result<Vec<String>, String> {
    let rendered = template.render_with_spans(messages).map_err(|error| error.to_string())?;
    assert_eq!(rendered.text, template.render(messages, false).unwrap());
    Ok(rendered.spans.iter().map(|span| rendered.text[span.clone()].to_owned()).collect())
}

#[test]
fn what_the_assistant_says_counts_with_its_end_of_turn() {
    let fixture = fixture();
    let case = |template: &str, conversation: &str| {
        counted(&fixture.template(template), &fixture.messages(conversation)).unwrap()
    };
    let garden = "in the \"garden\"\n\nasleep";
    assert_eq!(case("chatml", "single"), ["안녕! 반가워.<|im_end|>"]);
    assert_eq!(
        case("chatml", "turns"),
        ["  부엌에 있어.<|im_end|>".to_owned(), format!("{garden}<|im_end|>")]
    );
    // ChatML keeps the line break at the end of the text, Llama 3 trims it.
    assert_eq!(case("chatml", "system"), ["True.\n<|im_end|>"]);
    assert_eq!(case("llama3", "system"), ["True.<|eot_id|>"]);
    assert_eq!(
        case("llama3", "turns"),
        ["부엌에 있어.<|eot_id|>".to_owned(), format!("{garden}<|eot_id|>")]
    );
    // Llama 2 writes a blank before EOS, which the model has to write too, and one before the text that
    // is not in its prompt.
    assert_eq!(
        case("llama2", "turns"),
        [" 부엌에 있어. </s>".to_owned(), format!(" {garden} </s>")]
    );
    assert_eq!(case("zephyr", "same"), ["ok</s>", "ok</s>"]);
    assert_eq!(case("gemma", "same"), ["ok<end_of_turn>", "ok<end_of_turn>"]);
    assert_eq!(case("chatml", "alone"), ["hello<|im_end|>"]);
    let own = ChatTemplate::parse(CHAT, specials()).unwrap();
    assert_eq!(counted(&own, &fixture.messages("same")).unwrap(), ["ok<|end|>", "ok<|end|>"]);
    let plain = ChatTemplate::parse(INSTRUCTION, specials()).unwrap();
    assert_eq!(counted(&plain, &fixture.messages("same")).unwrap(), ["ok</s>", "ok</s>"]);
}

#[test]
fn spans_of_equal_texts_are_those_of_the_assistant() {
    let template = fixture().template("chatml");
    let rendered = template.render_with_spans(&fixture().messages("same")).unwrap();
    let text = &rendered.text;
    for span in rendered.spans {
        assert!(text[..span.start].ends_with("<|im_start|>assistant\n"));
    }
}

/// Qwen3 drops the thoughts of earlier turns, so they cannot count; the last one does.
#[test]
fn rewritten_history_is_masked_as_it_reads() {
    let fixture = fixture();
    let template = fixture.template("qwen3");
    assert_eq!(
        counted(&template, &fixture.messages("thought")).unwrap(),
        ["4<|im_end|>", "<think>\nThree and three.\n</think>\n\n6<|im_end|>"]
    );
    assert_eq!(
        counted(&template, &fixture.messages("single")).unwrap(),
        ["안녕! 반가워.<|im_end|>"]
    );
}

#[test]
fn messages_can_be_left_out_of_the_loss() {
    let fixture = fixture();
    let mut messages = fixture.messages("turns");
    messages[1].train = Some(false);
    for name in ["chatml", "generation"] {
        let texts = counted(&fixture.template(name), &messages).unwrap();
        assert_eq!(texts, ["in the \"garden\"\n\nasleep<|im_end|>"], "{name}");
    }
    messages[0].train = Some(true);
    let texts = counted(&fixture.template("chatml"), &messages).unwrap();
    assert_eq!(texts, ["고양이는 어디 있어?<|im_end|>", "in the \"garden\"\n\nasleep<|im_end|>"]);
    assert_eq!(
        counted(&fixture.template("generation"), &messages).unwrap_err(),
        "chat template: a message of `user` is to count in the loss, but the template's {% generation %} \
         blocks are for the assistant only"
    );
}

#[test]
fn a_mask_that_cannot_be_told_is_an_error() {
    let messages = [Message::new("user", "q"), Message::new("assistant", "a b")];
    let case = |source: &str| {
        counted(&ChatTemplate::parse(source, specials()).unwrap(), &messages).unwrap_err()
    };
    let refusal = |why: &str| {
        format!(
            "chat template: cannot tell which text of message 2 (assistant) counts in the loss: {why}; put \
             {{% generation %}} ... {{% endgeneration %}} around what the assistant says in the template"
        )
    };
    assert_eq!(
        case("{% for m in messages %}{{ m.content }} {{ m.content }}{% endfor %}"),
        refusal("the template prints it more than once")
    );
    assert_eq!(
        case("{% for m in messages %}{{ m.content | length }}{% endfor %}"),
        refusal("the template changes the text depending on what is in it")
    );
    assert_eq!(
        case("{% for m in messages %}{{ m.content.split(' ')[0] }}{% endfor %}"),
        refusal("the template leaves its end out")
    );
    assert_eq!(
        case(
            "{% for m in messages %}{% set x %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}{{ x.split(' ')[0] }}{% endfor %}"
        ),
        "chat template: its {% generation %} blocks are cut apart by the template; it prints only part of one"
    );
    assert_eq!(
        case(
            "{% for m in messages %}{% if false %}{% generation %}{% endgeneration %}{% endif %}{% endfor %}"
        ),
        "chat template: it printed no {% generation %} block for this conversation, so nothing would count \
         in the loss"
    );
}

#[test]
fn the_end_of_turn_token_is_found_by_a_probe() {
    let fixture = fixture();
    let end = |name: &str| fixture.template(name).end_of_turn().map(str::to_owned);
    assert_eq!(end("chatml").as_deref(), Some("<|im_end|>"));
    assert_eq!(end("llama2").as_deref(), Some("</s>"));
    assert_eq!(end("generation").as_deref(), Some("<|im_end|>"));
    let plain =
        ChatTemplate::parse("{% for m in messages %}{{ m.content }}\n{% endfor %}", specials());
    let plain = plain.unwrap();
    assert_eq!(plain.end_of_turn(), None);
    let rendered = plain.render_with_spans(&fixture.messages("single")).unwrap();
    assert!(!rendered.closed);
    assert!(
        fixture.template("chatml").render_with_spans(&fixture.messages("turns")).unwrap().closed
    );
}

#[test]
fn blanks_around_a_text_are_counted_where_the_template_prints_them() {
    let keeps = ChatTemplate::parse(
        "{% for m in messages %}\n\n{{ m.content }}</s>{% endfor %}",
        specials(),
    )
    .unwrap();
    let trims = ChatTemplate::parse(
        "{% for m in messages %}\n\n{{ m.content | trim }}</s>{% endfor %}",
        specials(),
    )
    .unwrap();
    let messages = [Message::new("assistant", "\n\nx\n")];
    assert_eq!(counted(&keeps, &messages).unwrap(), ["\n\nx\n</s>"]);
    // The line breaks before the text are the template's own here.
    assert_eq!(counted(&trims, &messages).unwrap(), ["x</s>"]);
    assert_eq!(counted(&keeps, &[Message::new("assistant", "  ")]).unwrap(), ["  </s>"]);
}

#[test]
fn the_date_can_be_fixed() {
    let source = "{{ strftime_now('%d %b %Y') }}";
    let at = |date| ChatTemplate::with_date(source, specials(), Some(date));
    assert_eq!(at("2026-02-09").unwrap().render(&[], false).unwrap(), "09 Feb 2026");
    assert_eq!(
        at("9.2.2026").err().unwrap().to_string(),
        "chat template: `9.2.2026` is not a date; write it as YYYY-MM-DD"
    );
    let now = ChatTemplate::parse(source, specials()).unwrap().render(&[], false).unwrap();
    assert!(now.len() == 11 && now.ends_with(|c: char| c.is_ascii_digit()), "{now}");
}

#[test]
fn bad_templates_and_refused_conversations_are_named() {
    let parse = |source: &str| ChatTemplate::parse(source, specials());
    let error = parse("{% for m in messages %}").err().unwrap().to_string();
    assert!(error.starts_with("chat template: unexpected end of input"), "{error}");
    let own = parse(CHAT).unwrap();
    assert_eq!(
        own.render(&[Message::new("tool", "x")], false).unwrap_err().to_string(),
        "chat template refuses the conversation: unknown role tool: use system, user or assistant (line 1)"
    );
}

#[test]
fn a_text_with_private_characters_does_not_confuse_the_marks() {
    let template = fixture().template("chatml");
    let text = "\u{F8F0}0\u{F8F1}S1\u{F8F2}";
    let messages = [Message::new("user", text), Message::new("assistant", text)];
    assert_eq!(counted(&template, &messages).unwrap(), [format!("{text}<|im_end|>")]);
    let template = fixture().template("generation");
    assert_eq!(counted(&template, &messages).unwrap(), [format!("{text}<|im_end|>")]);
}

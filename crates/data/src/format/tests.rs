mod pairs;

use serde_json::json;

use super::*;

fn record(fields: Value) -> Record {
    let Value::Object(fields) = fields else { panic!("not an object") };
    generated("a.jsonl", 7, fields)
}

fn map_with(kind: Kind, mapping: &Mapping, fields: Value) -> Result<Example, String> {
    let mapper = Mapper::new(kind, mapping).map_err(|error| error.to_string())?;
    let mapped = mapper.map(&record(fields)).map_err(|error| error.to_string())?;
    Ok(mapped.unwrap().remove(0).example)
}

fn map(kind: Kind, fields: Value) -> Result<Example, String> {
    map_with(kind, &Mapping::default(), fields)
}

fn mapping(toml_like: Value) -> Mapping {
    serde_json::from_value(toml_like).unwrap()
}

fn chat(turns: &[(&str, &str)]) -> Example {
    Example::Chat { messages: turns.iter().map(|(r, c)| Message::new(*r, *c)).collect() }
}

#[test]
fn text_records() {
    assert_eq!(
        map(Kind::Text, json!({"text": "옛날"})),
        Ok(Example::Text { text: "옛날".to_owned() })
    );
    let from = mapping(json!({"text_template": "{{ title }}\n{{ record['acceptable?'] }}"}));
    assert_eq!(
        map_with(Kind::Text, &from, json!({"title": "제목", "acceptable?": 1})),
        Ok(Example::Text { text: "제목\n1".to_owned() })
    );
    let column = mapping(json!({"text": "body"}));
    assert_eq!(
        map_with(Kind::Text, &column, json!({"body": "b", "text": "t"})),
        Ok(Example::Text { text: "b".to_owned() })
    );
}

#[test]
fn conversations_in_their_several_spellings() {
    let expected = Ok(chat(&[("system", "s"), ("user", "안녕"), ("assistant", "반가워")]));
    for fields in [
        json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "안녕"},
                            {"role": "assistant", "content": [{"type": "text", "text": "반가"}, {"type": "text", "text": "워"}]}]}),
        json!({"system": "s", "conversations": [{"from": "human", "value": "안녕"}, {"from": "gpt", "value": "반가워"}]}),
        json!({"instruction": "안녕", "input": " ", "output": "반가워", "system": "s"}),
        json!({"prompt": "안녕", "completion": "반가워", "system": "s"}),
        json!({"prompt": "안녕", "response": "반가워", "system": "s"}),
    ] {
        assert_eq!(map(Kind::Chat, fields.clone()), expected, "{fields}");
    }
    assert_eq!(
        map(
            Kind::Chat,
            json!({"instruction": "더해라", "input": "1, 2", "output": 3, "history": [["q", "a"]]})
        ),
        Ok(chat(&[
            ("user", "q"),
            ("assistant", "a"),
            ("user", "더해라\n\n1, 2"),
            ("assistant", "3")
        ]))
    );
}

#[test]
fn conversational_pairs_count_the_completion_only() {
    let fields = json!({
        "prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "old"}, {"role": "user", "content": "q2"}],
        "completion": [{"role": "assistant", "content": "new"}]
    });
    let Ok(Example::Chat { messages }) = map(Kind::Chat, fields) else { panic!() };
    let counted: Vec<bool> = messages.iter().map(Message::counts).collect();
    assert_eq!(counted, [false, false, false, true]);
}

#[test]
fn training_flags_of_messages() {
    let turn = |extra: Value| {
        let mut message = json!({"role": "assistant", "content": "a"});
        message.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let fields = json!({"messages": [message, {"role": "assistant", "content": "b"}]});
        map(Kind::Chat, fields).map(|example| {
            let Example::Chat { messages } = example else { panic!() };
            messages[0].counts()
        })
    };
    assert_eq!(turn(json!({})), Ok(true));
    assert_eq!(turn(json!({"train": false})), Ok(false));
    assert_eq!(turn(json!({"weight": 0})), Ok(false));
    assert_eq!(turn(json!({"weight": 1})), Ok(true));
    assert_eq!(
        turn(json!({"weight": 0.5})),
        Err("a.jsonl:7: field `messages[0]`: weight 0.5: only 0 and 1 are supported".to_owned())
    );
    assert_eq!(
        turn(json!({"tool_calls": [{}]})),
        Err("a.jsonl:7: field `messages[0]`: tool calls are not supported; remove the record or render it to text".to_owned())
    );
}

#[test]
fn columns_may_be_turns_and_all_turns_may_count() {
    let columns = json!({"turns": ["context/1", "context/0", "context", "response"]});
    let fields = |oldest: Value, older: &str| json!({"response": "그래", "context": "갈까?", "context/0": older, "context/1": oldest});
    let whole = [("assistant", "hi"), ("user", "심심해"), ("assistant", "갈까?"), ("user", "그래")];
    let turned = |from: usize| {
        let role = |at: usize| if at.is_multiple_of(2) { "user" } else { "assistant" };
        let turns: Vec<_> =
            whole.iter().enumerate().skip(from).map(|(at, it)| (role(at), it.1)).collect();
        Ok(chat(&turns))
    };
    let map_turns =
        |mapping_of: &Value, fields| map_with(Kind::Chat, &mapping(mapping_of.clone()), fields);
    assert_eq!(map_turns(&columns, fields(json!("hi"), "심심해")), turned(0));
    // What is blank or null is left out; the answer never is.
    assert_eq!(map_turns(&columns, fields(json!(""), "심심해")), turned(1));
    assert_eq!(map_turns(&columns, fields(Value::Null, " ")), turned(2));
    let Err(error) = map_turns(&columns, json!({"response": "그래", "context": "갈까?"}))
    else {
        panic!()
    };
    assert_eq!(error, "a.jsonl:7: no field `context/0`; the record has `response`, `context`");

    let all = json!({"turns": ["context", "response"], "train_on_prompt": true});
    let Ok(Example::Chat { messages }) = map_turns(&all, fields(json!(""), "")) else { panic!() };
    assert_eq!(messages.iter().map(Message::counts).collect::<Vec<_>>(), [true, true]);
    // What a record says of its own messages stays.
    let own = json!({"messages": [{"role": "user", "content": "q", "train": false}, {"role": "user", "content": "r"},
                                  {"role": "assistant", "content": "a"}]});
    let Ok(Example::Chat { messages }) = map_turns(&json!({"train_on_prompt": true}), own) else {
        panic!()
    };
    assert_eq!(messages.iter().map(Message::counts).collect::<Vec<_>>(), [false, true, true]);

    let mapper = Mapper::new(Kind::Prompt, &mapping(columns)).unwrap();
    let mapped = mapper.map(&record(fields(json!("hi"), "심심해"))).unwrap().unwrap().remove(0);
    assert_eq!(mapped.answer.as_deref(), Some("그래"));
    let Example::Prompt(Prompt::Messages(prompt)) = mapped.example else { panic!() };
    assert_eq!(prompt.last(), Some(&Message::new("user", "갈까?")));
}

#[test]
fn turns_go_with_no_other_way_to_say_what_a_conversation_is() {
    let refusal = |kind, keys: Value| Mapper::new(kind, &mapping(keys)).err().unwrap().to_string();
    let both = json!({"turns": ["a", "b"], "messages": "c"});
    assert!(refusal(Kind::Chat, both).contains(
        "`turns` already hold the whole conversation; drop prompt, completion, system and messages"
    ));
    assert!(
        refusal(Kind::Chat, json!({"turns": ["a"]})).contains("`turns` needs at least two columns")
    );
    for kind in [Kind::Text, Kind::Completion, Kind::Preference, Kind::PromptPlain] {
        assert!(
            refusal(kind, json!({"turns": ["a", "b"]}))
                .contains("`turns` is for kind = \"chat\" and \"prompt\" only")
        );
        assert!(
            refusal(kind, json!({"train_on_prompt": true}))
                .contains("`train_on_prompt` is for kind = \"chat\" only")
        );
    }
}

#[test]
fn completions_and_the_instruction_template() {
    let pair = |prompt: &str, completion: &str| {
        Ok(Example::Completion { prompt: prompt.to_owned(), completion: completion.to_owned() })
    };
    assert_eq!(map(Kind::Completion, json!({"prompt": "p", "completion": " c"})), pair("p", " c"));
    let Ok(Example::Completion { prompt, .. }) = map(
        Kind::Completion,
        json!({"instruction": "번역해라", "input": "나비", "output": "butterfly"}),
    ) else {
        panic!()
    };
    assert_eq!(
        prompt,
        "Below is an instruction that describes a task, paired with an input that provides further \
         context. Write a response that appropriately completes the request.\n\n### Instruction:\n\
         번역해라\n\n### Input:\n나비\n\n### Response:\n"
    );
    let Ok(Example::Completion { prompt, .. }) =
        map(Kind::Completion, json!({"instruction": "말해라", "output": "네"}))
    else {
        panic!()
    };
    assert!(
        prompt.ends_with("request.\n\n### Instruction:\n말해라\n\n### Response:\n"),
        "{prompt}"
    );
    let own = mapping(json!({"instruction_template": "질문: {{ instruction }}\n답: "}));
    assert_eq!(
        map_with(Kind::Completion, &own, json!({"instruction": "왜?", "output": "그냥"})),
        pair("질문: 왜?\n답: ", "그냥")
    );
}

#[test]
fn mapped_columns_and_templates() {
    let columns =
        mapping(json!({"prompt": "Q", "completion": "A", "system_template": "{{ tone }}"}));
    assert_eq!(
        map_with(
            Kind::Chat,
            &columns,
            json!({"Q": "12시 땡!", "A": "하루가 또 가네요.", "tone": " "})
        ),
        Ok(chat(&[("user", "12시 땡!"), ("assistant", "하루가 또 가네요.")]))
    );
    let templates = mapping(json!({
        "prompt_template": "{{ instruction }}", "completion_template": "{{ instances[0].output.strip() }}"
    }));
    assert_eq!(
        map_with(
            Kind::Chat,
            &templates,
            json!({"instruction": "i", "instances": [{"output": " o "}]})
        ),
        Ok(chat(&[("user", "i"), ("assistant", "o")]))
    );
    let renamed = mapping(json!({
        "messages": "turns", "role_key": "who", "content_key": "what", "roles": {"사람": "user", "챗봇": "assistant"}
    }));
    assert_eq!(
        map_with(
            Kind::Chat,
            &renamed,
            json!({"turns": [{"who": "사람", "what": "q"}, {"who": "챗봇", "what": "a"}]})
        ),
        Ok(chat(&[("user", "q"), ("assistant", "a")]))
    );
}

#[test]
fn checkers_answers_and_tasks_come_along() {
    let mapper = Mapper::new(Kind::Chat, &Mapping::default()).unwrap();
    let base = json!({"prompt": "p", "response": "r", "task": "fact", "answer": 3});
    let with = |checker: Value| {
        let mut fields = base.clone();
        fields["checker"] = checker;
        let mapped = mapper.map(&record(fields)).map_err(|error| error.to_string())?;
        Ok::<_, String>(mapped.unwrap().remove(0))
    };
    let expected = Some(Checker::Exact { answer: "r".to_owned() });
    let mapped = with(json!({"exact": {"answer": "r"}})).unwrap();
    assert_eq!(
        (mapped.checker, mapped.answer.as_deref(), mapped.task.as_deref()),
        (expected.clone(), Some("3"), Some("fact"))
    );
    assert_eq!(with(json!("{\"exact\": {\"answer\": \"r\"}}")).unwrap().checker, expected);
    assert_eq!(with(Value::Null).unwrap().checker, None);
    let error = with(json!({"exakt": {}})).unwrap_err();
    assert!(
        error.starts_with("a.jsonl:7: field `checker`: not a checker: unknown variant `exakt`"),
        "{error}"
    );
}

#[test]
fn records_that_do_not_fit_are_named_with_their_fields() {
    let case = |kind, fields| map(kind, fields).unwrap_err();
    assert_eq!(
        case(Kind::Chat, json!({"Q": "q", "A": "a"})),
        "a.jsonl:7: cannot tell what this record is for kind `chat`: it has `Q`, `A`, and `messages`, \
         `conversations`, `prompt` with `completion` or `response`, or `instruction` with `output` is \
         needed; say which columns to use in [mapping]"
    );
    assert_eq!(
        case(Kind::Text, json!({})),
        "a.jsonl:7: cannot tell what this record is for kind `text`: it has no fields, and `text` is \
         needed; say which columns to use in [mapping]"
    );
    assert_eq!(
        case(Kind::Text, json!({"text": null, "id": 1})),
        "a.jsonl:7: no field `text`; the record has `text`, `id`"
    );
    assert_eq!(
        case(Kind::Text, json!({"text": ["a"]})),
        "a.jsonl:7: field `text`: expected text but found an array; use a template such as \"{{ text[0] }}\""
    );
    assert_eq!(
        case(Kind::Chat, json!({"messages": []})),
        "a.jsonl:7: field `messages`: the list of messages is empty"
    );
    assert_eq!(
        case(Kind::Chat, json!({"messages": "hi"})),
        "a.jsonl:7: field `messages`: expected a list of messages but found a string"
    );
    assert_eq!(
        case(Kind::Chat, json!({"messages": [{"role": "user"}]})),
        "a.jsonl:7: field `messages[0]`: no text under `content`"
    );
    assert_eq!(
        case(Kind::Chat, json!({"messages": [{"content": "x"}]})),
        "a.jsonl:7: field `messages[0]`: no text under `role` that says whose message it is"
    );
    assert_eq!(
        case(Kind::Chat, json!({"messages": [{"role": "user", "content": "x"}]})),
        "a.jsonl:7: field `messages`: no message of the assistant, so nothing would count in the loss"
    );
    assert_eq!(
        case(Kind::Chat, json!({"instruction": "i", "output": "o", "history": [["q"]]})),
        "a.jsonl:7: field `history[0]`: expected a pair of texts: what the user and the assistant said"
    );
    let templates = mapping(json!({"text_template": "{{ titel }}"}));
    assert_eq!(
        map_with(Kind::Text, &templates, json!({"title": "t"})).unwrap_err(),
        "a.jsonl:7: mapping.text_template fails: undefined value (line 1); the record has `title`"
    );
}

#[test]
fn mappings_that_contradict_themselves_are_refused() {
    let case = |kind, value| Mapper::new(kind, &mapping(value)).err().unwrap().to_string();
    for (kind, value, expected) in [
        (
            Kind::Text,
            json!({"text": "a", "text_template": "b"}),
            "give `text` or `text_template`, not both",
        ),
        (
            Kind::Chat,
            json!({"prompt": "a"}),
            "`prompt` and `completion` (or their templates) go together",
        ),
        (
            Kind::Chat,
            json!({"messages": "m", "system": "s"}),
            "`messages` already holds the whole conversation; drop prompt, completion and system",
        ),
        (Kind::Chat, json!({"text": "t"}), "`text` is for kind = \"text\" only"),
        (
            Kind::Text,
            json!({"messages": "m"}),
            "kind = \"text\" takes `text` or `text_template` only",
        ),
        (
            Kind::Completion,
            json!({"messages": "m"}),
            "kind = \"completion\" takes prompt and completion only",
        ),
        (
            Kind::Chat,
            json!({"instruction_template": "x"}),
            "`instruction_template` is for kind = \"completion\"; kind = \"chat\" uses the chat template",
        ),
        (Kind::Chat, json!({"system": "s"}), "`system` goes with `prompt` and `completion`"),
    ] {
        assert_eq!(case(kind, value), format!("mapping: {expected}"));
    }
    let message = case(Kind::Text, json!({"text_template": "{{ a"}));
    assert!(message.starts_with("mapping.text_template: not a valid template: "), "{message}");
    assert!(serde_json::from_value::<Mapping>(json!({"promt": "x"})).is_err());
}

//! Pairs, rankings, trees and prompts.

use super::*;

type Found = Result<Result<Vec<Preference>, Unfit>, String>;

fn pairs_with(kind: Kind, mapping: &Mapping, fields: Value) -> Found {
    let mapper = Mapper::new(kind, mapping).map_err(|error| error.to_string())?;
    let found = mapper.map(&record(fields)).map_err(|error| error.to_string())?;
    let preference = |mapped: Mapped| match mapped.example {
        Example::Preference(pair) => pair,
        other => panic!("{other:?}"),
    };
    Ok(found.map(|examples| examples.into_iter().map(preference).collect()))
}

fn pairs(fields: Value) -> Found {
    pairs_with(Kind::Preference, &Mapping::default(), fields)
}

fn plain(fields: Value) -> Found {
    pairs_with(Kind::PreferencePlain, &Mapping::default(), fields)
}

fn of(prompt: Prompt, chosen: &str, rejected: &str) -> Preference {
    let [chosen, rejected] = [chosen, rejected].map(str::to_owned);
    Preference { prompt, chosen, rejected, margin: None, probability: None }
}

fn conversation(turns: &[(&str, &str)]) -> Prompt {
    Prompt::Messages(turns.iter().map(|(r, c)| Message::new(*r, *c)).collect())
}

#[expect(clippy::unnecessary_wraps, reason = "to be compared with what is found")]
fn one(prompt: Prompt, chosen: &str, rejected: &str) -> Found {
    Ok(Ok(vec![of(prompt, chosen, rejected)]))
}

const HELLO: [(&str, &str); 2] = [("system", "친절히"), ("user", "안녕?")];

#[test]
fn pairs_in_their_several_spellings() {
    let user = json!({"role": "user", "content": "안녕?"});
    let [good, bad] =
        ["반가워요!", "왜."].map(|text| json!({"role": "assistant", "content": text}));
    let system = json!({"role": "system", "content": "친절히"});
    for fields in [
        json!({"system": "친절히", "prompt": "안녕?", "chosen": "반가워요!", "rejected": "왜."}),
        json!({"prompt": [system, user], "chosen": "반가워요!", "rejected": "왜."}),
        json!({"prompt": [system, user], "chosen": good, "rejected": [bad]}),
        // The prompt again in the responses, whole or without the system message.
        json!({"prompt": [system, user], "chosen": [system, user, good], "rejected": [user, bad]}),
        json!({"prompt": "안녕?", "chosen": [system, user, good], "rejected": [system, user, bad]}),
        json!({"system": "친절히", "prompt": user, "chosen": [user, good], "rejected": [user, bad]}),
        // No prompt apart.
        json!({"chosen": [system, user, good], "rejected": [system, user, bad]}),
        json!({"system": "친절히", "chosen": [user, good], "rejected": [user, bad]}),
        json!({"system": "친절히", "chosen": "\n\nHuman: 안녕?\n\nAssistant: 반가워요!",
               "rejected": "Human: 안녕?\n\nAssistant: 왜.\n"}),
        // LLaMA-Factory's.
        json!({"conversations": [{"from": "system", "value": "친절히"}, {"from": "human", "value": "안녕?"}],
               "chosen": {"from": "gpt", "value": "반가워요!"}, "rejected": {"from": "gpt", "value": "왜."}}),
        json!({"instruction": "안녕?", "input": "", "system": "친절히", "output": "-",
               "chosen": "반가워요!", "rejected": "왜."}),
    ] {
        assert_eq!(
            pairs(fields.clone()),
            one(conversation(&HELLO), "반가워요!", "왜."),
            "{fields}"
        );
    }
    let several = json!({"instruction": "더해라", "input": "1, 2", "history": [["q", "a"]], "chosen": 3, "rejected": "4"});
    let turns = [("user", "q"), ("assistant", "a"), ("user", "더해라\n\n1, 2")];
    assert_eq!(pairs(several), one(conversation(&turns), "3", "4"));
}

#[test]
fn transcripts_are_read_turn_by_turn() {
    let opening = "\n\nHuman: 펜이 있어?\nOne line more.\n\nAssistant: 네: Human: 이 아니에요.\n\nHuman: What then?";
    let whole = |answer: &str| format!("{opening}\n\nAssistant:{answer}");
    let turns = [
        ("user", "펜이 있어?\nOne line more."),
        ("assistant", "네: Human: 이 아니에요."),
        ("user", "What then?"),
    ];
    let fields = |a: &str, b: &str| json!({"chosen": a, "rejected": b});
    assert_eq!(
        pairs(fields(&whole(" Draw.\n\nWith it."), &whole(" 모름"))),
        one(conversation(&turns), "Draw.\n\nWith it.", "모름")
    );
    // As they stand, the answer begins right after its heading.
    let text = Prompt::Text(format!("{opening}\n\nAssistant:"));
    assert_eq!(plain(fields(&whole(" Draw."), &whole(" 모름"))), one(text, " Draw.", " 모름"));
    // A transcript may be the prompt, too.
    let apart = json!({"prompt": whole(""), "chosen": "Draw.", "rejected": "모름"});
    assert_eq!(pairs(apart), one(conversation(&turns), "Draw.", "모름"));
    let quoting = json!({"prompt": "Human: is a heading.", "chosen": "Yes.", "rejected": "No."});
    let quoted = conversation(&[("user", "Human: is a heading.")]);
    assert_eq!(pairs(quoting), one(quoted, "Yes.", "No."));
}

#[test]
fn conversations_that_share_no_prompt_are_unfit_not_wrong() {
    let whole = |turns: &str| format!("\n\nHuman: {turns}");
    let case = |a: &str, b: &str| {
        let fields = json!({"chosen": whole(a), "rejected": whole(b)});
        let found = pairs(fields.clone()).unwrap().unwrap_err();
        assert_eq!(plain(fields).unwrap().unwrap_err(), found);
        found
    };
    assert_eq!(case("하나\n\nAssistant: a", "둘\n\nAssistant: b"), Unfit::Parted);
    assert_eq!(
        case("q\n\nAssistant: a", "q\n\nAssistant: a\n\nHuman: p\n\nAssistant: b"),
        Unfit::Parted
    );
    assert_eq!(case("q\n\nAssistant: a", "q\n\nAssistant: a\n\nHuman: p"), Unfit::Unanswered);
    assert_eq!(case("q", "q\n\nAssistant: a"), Unfit::Unanswered);
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let asked =
        json!({"prompt": "q", "chosen": [turn("assistant", "a")], "rejected": [turn("user", "b")]});
    assert_eq!(pairs(asked), Ok(Err(Unfit::Unanswered)));
    let long =
        |first: &str| [turn("assistant", first), turn("user", "더?"), turn("assistant", "z")];
    let parted = json!({"prompt": "q", "chosen": long("a"), "rejected": long("b")});
    assert_eq!(pairs(parted), Ok(Err(Unfit::Parted)));
    // Equal ones are no matter of form.
    let equal = whole("q\n\nAssistant: a");
    assert_eq!(
        pairs(json!({"chosen": equal, "rejected": equal})),
        one(conversation(&[("user", "q")]), "a", "a")
    );
}

#[test]
fn rankings_give_every_two_of_different_rank() {
    let prompt = || conversation(&[("user", "질문")]);
    let expected = vec![of(prompt(), "a", "b"), of(prompt(), "c", "a"), of(prompt(), "c", "b")];
    for (list, keys) in [("responses", "text"), ("replies", "content"), ("completions", "value")] {
        let reply = |text: &str, rank: Value| json!({keys: text, "rank": rank});
        let replies = [
            reply("a", json!(1)),
            reply("b", json!(2)),
            reply("c", json!(0)),
            reply("unranked", Value::Null),
        ];
        assert_eq!(pairs(json!({"prompt": "질문", list: replies})), Ok(Ok(expected.clone())));
    }
    let scored = |scores: [f64; 3]| {
        let reply = |(text, score): (&str, f64)| json!({"text": text, "score": score});
        let replies: Vec<Value> = ["a", "b", "c"].into_iter().zip(scores).map(reply).collect();
        json!({"prompt": "질문", "responses": replies})
    };
    assert_eq!(pairs(scored([0.5, -1.0, 7.25])), Ok(Ok(expected)));
    let tied = vec![of(prompt(), "a", "b"), of(prompt(), "c", "b")];
    assert_eq!(pairs(scored([2.0, 1.0, 2.0])), Ok(Ok(tied)));
    assert_eq!(pairs(scored([2.0, 2.0, 2.0])), Ok(Err(Unfit::Unranked)));
    assert_eq!(pairs(json!({"prompt": "q", "responses": []})), Ok(Err(Unfit::Unranked)));
    let text = Prompt::Text("질문".to_owned());
    let plain_pairs = plain(scored([2.0, 1.0, 2.0])).unwrap().unwrap();
    assert_eq!(plain_pairs, [of(text.clone(), "a", "b"), of(text, "c", "b")]);
}

#[test]
fn trees_give_pairs_at_every_node_that_the_assistant_answers() {
    let node = |role: &str, text: &str, rank: Value, replies: Value| json!({"role": role, "text": text, "rank": rank, "replies": replies});
    let answer = |text: &str, rank: i64| node("assistant", text, json!(rank), json!([]));
    let follow_up = node(
        "prompter",
        "더?",
        Value::Null,
        json!([
            answer("네", 1),
            answer("그럼요", 0),
            node("assistant", "-", Value::Null, json!([]))
        ]),
    );
    let fields = json!({
        "message_tree_id": "x",
        "prompt": {"role": "prompter", "text": "첫 질문", "replies": [
            node("assistant", "나쁨", json!(1), json!([follow_up])), answer("좋음", 0), answer("최악", 2)
        ]}
    });
    let first = || conversation(&[("user", "첫 질문")]);
    let second = conversation(&[("user", "첫 질문"), ("assistant", "나쁨"), ("user", "더?")]);
    assert_eq!(
        pairs(fields),
        Ok(Ok(vec![
            of(first(), "좋음", "나쁨"),
            of(first(), "나쁨", "최악"),
            of(first(), "좋음", "최악"),
            of(second, "그럼요", "네"),
        ]))
    );
    let alone = json!({"prompt": {"role": "prompter", "text": "q", "replies": [answer("a", 0)]}});
    assert_eq!(pairs(alone), Ok(Err(Unfit::Unranked)));
    let broken =
        json!({"prompt": {"role": "prompter", "text": "q", "replies": [{"role": "assistant"}]}});
    assert_eq!(
        pairs(broken).unwrap_err(),
        "a.jsonl:7: field `prompt.replies[0]`: no text under `text`, `content` or `value`"
    );
}

#[test]
fn margins_and_probabilities_come_along() {
    let with = |extra: Value| {
        let mut fields = json!({"prompt": "q", "chosen": "a", "rejected": "b"});
        fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        fields
    };
    let numbers = |extra: Value| {
        pairs(with(extra)).map(|found| {
            let pair = found.unwrap().remove(0);
            (pair.margin, pair.probability)
        })
    };
    assert_eq!(numbers(json!({})), Ok((None, None)));
    assert_eq!(numbers(json!({"margin": 2, "probability": 0.3})), Ok((Some(2.0), Some(0.3))));
    // What a table of text has.
    assert_eq!(numbers(json!({"margin": " -1.5", "probability": ""})), Ok((Some(-1.5), None)));
    assert_eq!(
        numbers(json!({"margin": "large"})),
        Err("a.jsonl:7: field `margin`: expected a finite number but found `large`".to_owned())
    );
    assert_eq!(
        numbers(json!({"margin": 1e300})),
        Err("a.jsonl:7: field `margin`: expected a finite number but found `1e+300`".to_owned())
    );
    assert_eq!(
        numbers(json!({"probability": 1.5})),
        Err("a.jsonl:7: field `probability`: 1.5 is no probability; it must be from 0 to 1"
            .to_owned())
    );
    let mapped = mapping(json!({"margin": "gap"}));
    let found = pairs_with(Kind::Preference, &mapped, with(json!({"gap": 4, "margin": 9})));
    assert_eq!(found.unwrap().unwrap()[0].margin, Some(4.0));
}

#[test]
fn mapped_pairs() {
    let case = |kind, from: Value, fields: Value| pairs_with(kind, &mapping(from), fields);
    let user = conversation(&[("user", "질문")]);
    assert_eq!(
        case(
            Kind::Preference,
            json!({"prompt": "Q", "chosen": "good", "rejected": "bad"}),
            json!({"Q": "질문", "good": "a", "bad": {"role": "assistant", "content": "b"}})
        ),
        one(user.clone(), "a", "b")
    );
    assert_eq!(
        case(
            Kind::Preference,
            json!({"prompt_template": "{{ q }}", "system_template": "{{ s }}",
                   "chosen_template": "{{ answers[0] }}", "rejected_template": "{{ answers[1] }}"}),
            json!({"q": "질문", "s": "짧게", "answers": ["a", "b"]})
        ),
        one(conversation(&[("system", "짧게"), ("user", "질문")]), "a", "b")
    );
    assert_eq!(
        case(
            Kind::Preference,
            json!({"messages": "dialog", "role_key": "who", "content_key": "what", "roles": {"사람": "user"}}),
            json!({"dialog": [{"who": "사람", "what": "질문"}], "chosen": "a", "rejected": "b"})
        ),
        one(user, "a", "b")
    );
    let text = Prompt::Text("질문: ".to_owned());
    let templates = json!({"prompt_template": "{{ q }}: ", "chosen": "x", "rejected": "y"});
    assert_eq!(
        case(Kind::PreferencePlain, templates, json!({"q": "질문", "x": "a", "y": 2})),
        one(text, "a", "2")
    );
    let own = json!({"instruction_template": "{{ instruction }} =>"});
    let instruction = json!({"instruction": "말해", "chosen": "a", "rejected": "b"});
    assert_eq!(
        case(Kind::PreferencePlain, own, instruction),
        one(Prompt::Text("말해 =>".to_owned()), "a", "b")
    );
}

#[test]
fn plain_prompts_are_kept_to_the_blank() {
    for (from, fields, expected) in [
        (json!({}), json!({"prompt": " 옛날에 "}), " 옛날에 "),
        (json!({"prompt": "text"}), json!({"text": "Once"}), "Once"),
        (json!({"prompt_template": "{{ a }}\n=> "}), json!({"a": 1}), "1\n=> "),
        (
            json!({"instruction_template": "{{ instruction }}:"}),
            json!({"instruction": "Sum", "answer": "3"}),
            "Sum:",
        ),
    ] {
        let mapper = Mapper::new(Kind::PromptPlain, &mapping(from)).unwrap();
        let mapped = mapper.map(&record(fields.clone())).unwrap().unwrap().remove(0);
        assert_eq!(mapped.example, Example::Prompt(Prompt::Text(expected.to_owned())));
        assert_eq!(mapped.answer.as_deref(), fields.get("answer").and_then(Value::as_str));
    }
}

#[test]
fn prompts_end_where_the_assistant_answers() {
    let prompt = |from: Value, fields: Value| -> Result<(Vec<Message>, Option<String>), String> {
        let mapper = Mapper::new(Kind::Prompt, &mapping(from)).map_err(|e| e.to_string())?;
        let mapped = mapper.map(&record(fields)).map_err(|error| error.to_string())?;
        let Mapped { example, answer, .. } = mapped.unwrap().remove(0);
        let Example::Prompt(Prompt::Messages(messages)) = example else { panic!("{example:?}") };
        Ok((messages, answer))
    };
    let expected = |answer: Option<&str>| {
        let Prompt::Messages(messages) = conversation(&HELLO) else { panic!() };
        Ok((messages, answer.map(str::to_owned)))
    };
    let turns =
        json!([{"role": "system", "content": "친절히"}, {"role": "user", "content": "안녕?"}]);
    for fields in [
        json!({"system": "친절히", "prompt": "안녕?"}),
        json!({"prompt": turns}),
        json!({"messages": turns}),
        json!({"instruction": "안녕?", "system": "친절히"}),
        json!({"system": "친절히", "prompt": "\n\nHuman: 안녕?\n\nAssistant:"}),
        // Pairs without their responses.
        json!({"prompt": turns, "chosen": "a", "rejected": "b"}),
    ] {
        assert_eq!(prompt(json!({}), fields.clone()), expected(None), "{fields}");
    }
    let answered =
        json!([turns[0], turns[1], {"role": "assistant", "content": "네", "train": false}]);
    for fields in [
        json!({"messages": answered}),
        json!({"system": "친절히", "prompt": "안녕?", "response": "네"}),
        json!({"system": "친절히", "instruction": "안녕?", "output": "네"}),
    ] {
        assert_eq!(prompt(json!({}), fields.clone()), expected(Some("네")), "{fields}");
    }
    let own = json!({"messages": answered, "answer": "응"});
    assert_eq!(prompt(json!({}), own), expected(Some("응")));
    assert_eq!(
        prompt(json!({"prompt": "q", "system": "s"}), json!({"q": "안녕?", "s": "친절히"})),
        expected(None)
    );
    assert_eq!(prompt(json!({"messages": "m"}), json!({"m": answered})), expected(Some("네")));
    assert_eq!(
        prompt(json!({}), json!({"messages": [answered[2]]})),
        Err("a.jsonl:7: field `messages`: no message before the assistant's, so there is nothing to answer".to_owned())
    );
    assert_eq!(
        prompt(json!({}), json!({"prompt": answered})),
        Err("a.jsonl:7: field `prompt`: ends with the assistant's turn, and a prompt ends before it".to_owned())
    );
}

#[test]
fn records_that_are_no_pairs_are_named_with_their_fields() {
    let case = |fields: Value| pairs(fields).unwrap_err();
    let needed = "; say which columns to use in [mapping]";
    assert_eq!(
        case(json!({"Q": "q"})),
        format!(
            "a.jsonl:7: cannot tell what this record is for kind `preference`: it has `Q`, and a prompt \
             with `chosen` and `rejected` or with `responses`, `chosen` and `rejected` as whole \
             conversations, or a tree of replies in `prompt` is needed{needed}"
        )
    );
    assert_eq!(
        plain(json!({"prompt": "q"})).unwrap_err(),
        format!(
            "a.jsonl:7: cannot tell what this record is for kind `preference-plain`: it has `prompt`, and \
             `prompt` or `instruction` with `chosen` and `rejected` or with `responses`, or two transcripts \
             in `chosen` and `rejected` is needed{needed}"
        )
    );
    assert_eq!(
        map(Kind::Prompt, json!({"Q": "q"})).unwrap_err(),
        format!(
            "a.jsonl:7: cannot tell what this record is for kind `prompt`: it has `Q`, and `messages`, \
             `conversations`, `prompt` or `instruction` is needed{needed}"
        )
    );
    assert_eq!(
        map(Kind::PromptPlain, json!({"messages": []})).unwrap_err(),
        format!(
            "a.jsonl:7: cannot tell what this record is for kind `prompt-plain`: it has `messages`, and `prompt` or \
             `instruction` is needed{needed}"
        )
    );
    for (fields, expected) in [
        (
            json!({"prompt": "q", "chosen": "a", "거부됨": "b"}),
            "no field `rejected`; the record has `prompt`, `chosen`, `거부됨`",
        ),
        (
            json!({"prompt": "q", "chosen": null, "rejected": "b"}),
            "no field `chosen`; the record has `prompt`, `chosen`, `rejected`",
        ),
        (
            json!({"chosen": "a", "rejected": "b"}),
            "field `chosen`: there is no prompt in the record, and this is no transcript \
             (\"\\n\\nHuman: ...\\n\\nAssistant: ...\") that holds one; say where the prompt is in [mapping]",
        ),
        (
            json!({"chosen": 1, "rejected": 2}),
            "field `chosen`: there is no prompt in the record, so a whole conversation is needed here: \
             expected a list of messages or a transcript but found a number",
        ),
        (
            json!({"prompt": "q", "chosen": [], "rejected": "b"}),
            "field `chosen`: the list of messages is empty",
        ),
        (
            json!({"prompt": "q", "chosen": {"role": "assistant"}, "rejected": "b"}),
            "field `chosen`: no text under `content`",
        ),
        (
            json!({"prompt": [{"role": "assistant", "content": "x"}], "chosen": "a", "rejected": "b"}),
            "field `prompt`: ends with the assistant's turn, and a prompt ends before it",
        ),
        (
            json!({"prompt": "q", "responses": "a"}),
            "field `responses`: expected a list of responses but found a string",
        ),
        (
            json!({"prompt": "q", "responses": ["a", "b"]}),
            "field `responses[0]`: expected a response object but found a string",
        ),
        (
            json!({"prompt": "q", "responses": [{"rank": 1}]}),
            "field `responses[0]`: no text under `text`, `content` or `value`",
        ),
        (
            json!({"prompt": "q", "responses": [{"text": "a", "rank": "first"}]}),
            "field `responses[0]`: `rank` must be a number, not a string",
        ),
    ] {
        assert_eq!(case(fields), format!("a.jsonl:7: {expected}"));
    }
    let transcript = "\n\nHuman: q\n\nAssistant: a";
    assert!(plain(json!({"chosen": transcript, "rejected": "b"})).unwrap_err().starts_with(
        "a.jsonl:7: field `rejected`: there is no prompt in the record, and this is no"
    ));
    assert_eq!(
        plain(json!({"prompt": ["q"], "chosen": "a", "rejected": "b"})).unwrap_err(),
        "a.jsonl:7: field `prompt`: expected text but found an array; use a template such as \"{{ prompt[0] }}\""
    );
}

#[test]
fn mappings_of_pairs_that_contradict_themselves_are_refused() {
    let case = |kind, value| Mapper::new(kind, &mapping(value)).err().unwrap().to_string();
    for (kind, value, expected) in [
        (
            Kind::Preference,
            json!({"chosen": "a", "chosen_template": "b", "rejected": "c"}),
            "give `chosen` or `chosen_template`, not both",
        ),
        (
            Kind::PreferencePlain,
            json!({"chosen": "a"}),
            "`chosen` and `rejected` (or their templates) go together",
        ),
        (
            Kind::Chat,
            json!({"chosen": "a", "rejected": "b"}),
            "`chosen`, `rejected` and `margin` are for kind = \"preference\" and \"preference-plain\"",
        ),
        (
            Kind::Prompt,
            json!({"margin": "a"}),
            "`chosen`, `rejected` and `margin` are for kind = \"preference\" and \"preference-plain\"",
        ),
        (
            Kind::Preference,
            json!({"prompt": "a", "completion": "b"}),
            "kind = \"preference\" takes no `completion`; give `chosen` and `rejected`",
        ),
        (
            Kind::Prompt,
            json!({"prompt": "a", "completion": "b"}),
            "kind = \"prompt\" takes no `completion`",
        ),
        (
            Kind::PreferencePlain,
            json!({"messages": "m"}),
            "kind = \"preference-plain\" takes prompt, chosen, rejected and margin only",
        ),
        (
            Kind::PromptPlain,
            json!({"system": "s", "prompt": "p"}),
            "kind = \"prompt-plain\" takes prompt only",
        ),
        (
            Kind::PromptPlain,
            json!({"prompt": "a", "completion": "b"}),
            "kind = \"prompt-plain\" takes no `completion`",
        ),
        (Kind::Preference, json!({"system": "s"}), "`system` goes with `prompt`"),
        (Kind::Prompt, json!({"system": "s"}), "`system` goes with `prompt`"),
        (
            Kind::Prompt,
            json!({"messages": "m", "prompt": "p"}),
            "`messages` already holds the whole conversation; drop prompt, completion and system",
        ),
    ] {
        assert_eq!(case(kind, value), format!("mapping: {expected}"));
    }
    let message = case(Kind::Preference, json!({"chosen_template": "{{ a", "rejected": "b"}));
    assert!(message.starts_with("mapping.chosen_template: not a valid template: "), "{message}");
}

#[test]
fn kinds_have_the_names_they_are_written_with() {
    for kind in [
        Kind::Text,
        Kind::Chat,
        Kind::Completion,
        Kind::Preference,
        Kind::PreferencePlain,
        Kind::Prompt,
        Kind::PromptPlain,
    ] {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}

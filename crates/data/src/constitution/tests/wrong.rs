//! What is said of a constitution that cannot be used.

use super::*;

fn refused(text: &str) -> String {
    Constitution::parse(text).unwrap_err().to_string()
}

/// What is said of the small constitution with `from` replaced.
fn changed(from: &str, to: &str) -> String {
    assert!(SMALL.contains(from), "{from}");
    refused(&SMALL.replacen(from, to, 1))
}

/// What is said of the small constitution with more text below it.
fn with(more: &str) -> String {
    refused(&format!("{SMALL}{more}\n"))
}

const EXAMPLE: &str = "[[examples]]\nlanguage = \"ko\"\nprompt = \"p\"\nresponse = \"r\"\ncritique_request = \"c\"\n\
                       critique = \" \"\nrevision_request = \"q\"\nrevision = \"v\"";

#[test]
fn keys_that_are_wrong_are_named_with_their_line() {
    assert_eq!(changed("name = ", "name "), "line 2: key with no value, expected `=`");
    assert_eq!(
        changed("no_problem", "no_problems"),
        "line 3: unknown field `no_problems`, expected one of `name`, `no_problem`, `refusals`, `templates`, `principles`, \
         `examples`"
    );
    assert_eq!(changed(", ko = \"틀렸나요?\"", ""), "line 7: missing field `ko`");
    assert!(changed("{ en = \"Wrong?\"", "{ de = \"x\", en = \"Wrong?\"").contains("`de`"));
    let message = with(&EXAMPLE.replace("\"ko\"", "\"fr\""));
    assert_eq!(message, "line 11: unknown variant `fr`, expected `en` or `ko`");
    assert_eq!(
        refused("name = \"x\"\nno_problem = { en = [], ko = [] }"),
        "line 1: missing field `refusals`"
    );
}

#[test]
fn principles_that_are_wrong_are_named() {
    let none = SMALL.split("[[").next().unwrap();
    assert_eq!(refused(none), "it has no principles; add at least one [[principles]] table");
    assert_eq!(changed("\"one\"", "\" \""), "principles[0].id: is empty; write a text there");
    for id in ["One", "one two", "-one", "one--two", "하나"] {
        assert_eq!(
            changed("\"one\"", &format!("\"{id}\"")),
            format!(
                "principles[0].id: `{id}` is no id; use lower-case letters a to z, digits, and single `-` between them"
            )
        );
    }
    let again = &SMALL[SMALL.find("[[").unwrap()..];
    assert_eq!(
        with(again),
        "principles[1].id: `one` is also the id of principles[0]; give each its own"
    );
    let tags = changed("id = \"one\"", "id = \"one\"\ntags = [\"\"]");
    assert_eq!(tags, "principles.one.tags: is empty; write a text there");
    for (text, key) in [
        ("\"Wrong?\"", "critique.en"),
        ("\"더 좋게!\"", "revision.ko"),
        ("\"Which?\"", "comparison.en"),
    ] {
        assert_eq!(
            changed(text, "\" \""),
            format!("principles.one.{key}: is empty; write a text there")
        );
    }
}

#[test]
fn other_texts_that_are_empty_are_named() {
    assert_eq!(changed("\"small\"", "\"\""), "name: is empty; write a text there");
    assert_eq!(
        changed("\"괜찮아요\"", "\"...\""),
        "no_problem.ko[0]: is empty; write a text there"
    );
    assert_eq!(changed("\"I won't\"", "\"\""), "refusals.en[1]: is empty; write a text there");
    assert_eq!(with(EXAMPLE), "examples[0].critique: is empty; write a text there");
    let blank = "[templates]\nanswer = { en = \"(\", ko = \" \" }";
    assert_eq!(with(blank), "templates.answer.ko: is empty; write a text there");
}

#[test]
fn templates_that_are_wrong_are_named() {
    let template = |name: &str, text: &str| {
        with(&format!("[templates]\n{name} = {{ en = \"{text}\", ko = \"x\" }}"))
    };
    assert_eq!(
        template("critique", "{{ answer }}"),
        "templates.critique.en: unknown field `answer`; known are request, prompt, response"
    );
    assert_eq!(
        template("direct_revision", "{{ request }} {{ critique }}"),
        "templates.direct_revision.en: unknown field `critique`; known are request, prompt, response"
    );
    assert_eq!(
        template("comparison", "{{ request }}"),
        "templates.comparison.en: unknown field `request`; known are question, prompt, response_a, response_b"
    );
    assert_eq!(
        template("revision", "{% if %}"),
        "templates.revision.en: not a valid template: unexpected end of block (line 1)"
    );
    let message = template("revision", "{{ request | shout }}");
    assert!(
        message.starts_with("templates.revision.en: fails: ") && message.contains("shout"),
        "{message}"
    );
    for name in ["reasoning", "answer"] {
        assert_eq!(
            template(name, "{{ request }}"),
            format!(
                "templates.{name}.en: is used as it stands and has no fields; write it without {{{{ }}}}, {{% %}} and {{# #}}"
            )
        );
    }
    let text = format!(
        "{SMALL}[templates]\ncritique = {{ en = \"{{{{ prompt.split(' ')[1] | upper }}}}\", ko = \"{{% if 'z' in prompt %}}{{{{ prompt.y }}}}{{% endif %}}\" }}"
    );
    assert!(refused(&text).starts_with("templates.critique.en: fails: "), "{}", refused(&text));
    let text = text.replace("[1]", "[0]");
    let late = Constitution::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    let turn = |prompt| late.critique_turn(&late.principles[0], Language::Ko, prompt, "a");
    assert_eq!(turn("q").unwrap(), "");
    let message = turn("z").unwrap_err().to_string();
    assert!(message.starts_with("templates.critique.ko: fails: undefined value"), "{message}");
}

#[test]
fn a_tag_that_no_principle_has_is_named() {
    let tagged = |text: &str| {
        let tags = ["harmles".to_owned()];
        Constitution::parse(text).unwrap().tagged(&tags).unwrap_err().to_string()
    };
    assert_eq!(tagged(SMALL), "no principle has the tag `harmles`; none has any");
    assert_eq!(
        tagged(SHIPPED),
        "no principle has the tag `harmles`; there are courteous, fair, harmless, helpful, truthful"
    );
}

#[test]
fn a_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    let message = || Constitution::load(&path).unwrap_err().to_string();
    assert!(message().contains("mine.toml"), "{}", message());
    fs_err::write(&path, "name = \"x\"").unwrap();
    assert_eq!(message(), format!("{}: line 1: missing field `no_problem`", path.display()));
    fs_err::write(&path, SHIPPED).unwrap();
    assert_eq!(Constitution::load(&path).unwrap().name, "village");
}

#[test]
fn json_that_cannot_be_imported_is_refused() {
    let message = |json| import(&json, "x").unwrap_err().to_string();
    for json in [json!("text"), json!({"a": {"b": 1}}), json!({})] {
        assert_eq!(
            message(json),
            "this is no list of principles that can be imported; known are {\"constitutions\": [{\"critic\": .., \"revision\": ..}]}, \
             {name: {\"prompt\": .., \"edit_request\": ..}}, and a list of questions that end in \"Options:\""
        );
    }
    for (json, expected) in [
        (json!({"constitutions": {}}), "constitutions: expected a list but found an object"),
        (
            json!({"constitutions": [{"critic": "a", "revision": "b"}, {"critic": "a"}]}),
            "constitutions[1].revision: is not there; add it, or take the entry out",
        ),
        (
            json!({"constitutions": [{"critic": 1, "revision": "b"}]}),
            "constitutions[0].critic: expected a text but found a number",
        ),
        (
            json!({"a": {"prompt": "x"}}),
            "a.edit_request: is not there; add it, or take the entry out",
        ),
        (
            json!({"a": {"edit_request": "x", "prompt": []}}),
            "a.prompt: is not there; add it, or take the entry out",
        ),
        (
            json!({"a": {"edit_request": "x", "prompt": [{}]}}),
            "a.prompt: expected a text but found an object",
        ),
        (json!(["a", 1]), "[1]: expected a text but found a number"),
        (json!([]), "it has no principles; add at least one [[principles]] table"),
        (json!(["Options:"]), "principles.principle-1.comparison.en: is empty; write a text there"),
        (
            json!({"A b": {"prompt": "x", "edit_request": "y"}, "a-b": {"prompt": "x", "edit_request": "y"}}),
            "principles[1].id: `a-b` is also the id of principles[0]; give each its own",
        ),
    ] {
        assert_eq!(message(json), expected);
    }
}

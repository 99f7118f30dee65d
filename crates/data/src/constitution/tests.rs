use serde_json::json;

use super::*;

mod wrong;

const SHIPPED: &str = include_str!("../../../../configs/constitution.toml");

/// A constitution with one principle and nothing that may be left out.
const SMALL: &str = r#"
name = "small"
no_problem = { en = ["All is well"], ko = ["괜찮아요"] }
refusals = { en = ["I can't", "I won't"], ko = ["안 돼요"] }
[[principles]]
id = "one"
critique = { en = "Wrong?", ko = "틀렸나요?" }
revision = { en = "Better!", ko = "더 좋게!" }
comparison = { en = "Which?", ko = "어느 것?" }
"#;

/// What another way of writing or copying must keep.
fn contents(constitution: &Constitution) -> String {
    format!(
        "{} {:?} {:?} {:?} {:?} {:?}",
        constitution.name,
        constitution.principles,
        constitution.examples,
        constitution.no_problem,
        constitution.refusals,
        constitution.templates
    )
}

#[test]
fn a_text_is_korean_where_it_has_a_syllable_of_it() {
    for (text, language) in [
        ("How are you?", Language::En),
        ("Mina는 어디 있어요?", Language::Ko),
        ("\u{1112}\u{1161}\u{11AB}", Language::Ko),
        ("ㅋㅋ", Language::En),
        ("日本語", Language::En),
        ("", Language::En),
    ] {
        assert_eq!(Language::of(text), language, "{text}");
    }
    assert_eq!(Language::ALL.map(Language::code), ["en", "ko"]);
    assert_eq!(serde_json::to_value(Language::ALL).unwrap(), json!(["en", "ko"]));
    let pair = Localised { en: 1, ko: 2 };
    assert_eq!(Language::ALL.map(|language| *pair.of(language)), [1, 2]);
}

#[test]
fn without_templates_the_defaults_make_the_turns() {
    let small = Constitution::parse(SMALL).unwrap();
    let one = &small.principles[0];
    let critique = |language| small.critique_turn(one, language, "q", "a").unwrap();
    assert_eq!(Language::ALL.map(critique), ["Wrong?", "틀렸나요?"]);
    for found in [Some("Bad."), None] {
        let revision = |language| small.revision_turn(one, language, "q", "a", found).unwrap();
        assert_eq!(Language::ALL.map(revision), ["Better!", "더 좋게!"]);
    }
    let compare = |language, reasoning| {
        small.comparison_turn(one, language, "q{{ x }}", ("<a>", "b & c"), reasoning).unwrap()
    };
    assert_eq!(
        compare(Language::En, false),
        "A user says: q{{ x }}\nWhich?\n(A) <a>\n(B) b & c",
        "texts stay as they are"
    );
    assert_eq!(
        compare(Language::Ko, true),
        "사용자의 말: q{{ x }}\n어느 것?\n(A) <a>\n(B) b & c\n차근차근 생각해 봐요."
    );
    assert_eq!(
        Language::ALL.map(|language| small.answer_prefix(language)),
        ["The answer is (", "답은 ("]
    );
}

#[test]
fn templates_see_all_their_fields() {
    let text = format!(
        "{SMALL}\n[templates]\n\
         critique = {{ en = \"{{{{ request }}}}|{{{{ prompt }}}}|{{{{ response }}}}\\n\", ko = \"{{{{ prompt | upper }}}}\" }}\n\
         revision = {{ en = \"{{{{ request }}}}|{{{{ prompt }}}}|{{{{ response }}}}|{{{{ critique }}}}\", ko = \"k\" }}\n\
         direct_revision = {{ en = \"{{{{ request }}}}|{{{{ prompt }}}}|{{{{ response }}}}\", ko = \"k\" }}\n\
         comparison = {{ en = \"{{{{ question }}}}|{{{{ prompt }}}}|{{{{ response_a }}}}|{{{{ response_b }}}}\", ko = \"{{% for n in range(2) %}}{{{{ n }}}}{{% endfor %}}\" }}\n"
    );
    let full = Constitution::parse(&text).unwrap();
    let one = &full.principles[0];
    let en = Language::En;
    assert_eq!(full.critique_turn(one, en, "q", "a").unwrap(), "Wrong?|q|a\n");
    assert_eq!(full.critique_turn(one, Language::Ko, "q", "a").unwrap(), "Q");
    assert_eq!(full.revision_turn(one, en, "q", "a", Some("c")).unwrap(), "Better!|q|a|c");
    assert_eq!(full.revision_turn(one, en, "q", "a", None).unwrap(), "Better!|q|a");
    let compare = |language| full.comparison_turn(one, language, "q", ("x", "y"), false).unwrap();
    assert_eq!(Language::ALL.map(compare), ["Which?|q|x|y", "01"]);
}

#[test]
fn phrases_are_found_in_any_language_and_spelling() {
    let small = Constitution::parse(SMALL).unwrap();
    for critique in ["All is well.", "I think ALL  is\nwell!", "아무튼 괜찮아요.", "“all is well”"]
    {
        assert!(small.finds_no_problem(critique), "{critique}");
    }
    for critique in ["", "All is not well.", "Recall is wellington.", "안 괜찮아"] {
        assert!(!small.finds_no_problem(critique), "{critique}");
    }
    for response in ["Sorry, I can’t do that.", "i won't", "그건 안 돼요."] {
        assert!(small.refuses(response), "{response}");
    }
    assert!(!small.refuses("I can, and I will.") && !small.refuses("All is well."));
}

#[test]
fn tags_choose_principles() {
    let shipped = Constitution::parse(SHIPPED).unwrap();
    let tagged = |tags: &[&str]| {
        let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
        shipped.tagged(&tags).unwrap()
    };
    assert_eq!(tagged(&[]), (0..shipped.principles.len()).collect::<Vec<_>>());
    let both = tagged(&["helpful", "harmless"]);
    assert_eq!(both, tagged(&["harmless", "helpful"]), "in the order of the file, each once");
    assert!(both.len() < tagged(&["harmless"]).len() + tagged(&["helpful"]).len());
    for at in tagged(&["fair"]) {
        assert_eq!(shipped.principles[at].tags, ["fair"]);
    }
}

#[test]
fn the_shipped_file_is_what_it_says() {
    let shipped = Constitution::parse(SHIPPED).unwrap();
    assert_eq!(shipped.templates, Templates::default());
    assert_eq!(shipped.no_problem, file::no_problem());
    assert_eq!(shipped.refusals, file::refusals());
    assert!((12..=16).contains(&shipped.principles.len()));
    for (tag, least) in
        [("harmless", 5), ("helpful", 2), ("truthful", 2), ("courteous", 2), ("fair", 2)]
    {
        assert!(shipped.tagged(&[tag.to_owned()]).unwrap().len() >= least, "{tag}");
    }
    let right = |text: &str, language| {
        assert_eq!(Language::of(text), language, "{text}");
        assert!(text.chars().count() <= 90, "{text}");
    };
    for principle in &shipped.principles {
        for texts in [&principle.critique, &principle.revision, &principle.comparison] {
            for language in Language::ALL {
                right(texts.of(language), language);
            }
        }
    }
    for language in Language::ALL {
        let examples = shipped.examples.iter().filter(|example| example.language == language);
        assert_eq!(examples.clone().count(), 2);
        for example in examples {
            let asks = |principle: &&Principle| {
                *principle.critique.of(language) == example.critique_request
            };
            let principle = shipped.principles.iter().find(asks).unwrap();
            assert_eq!(*principle.revision.of(language), example.revision_request);
            for text in [&example.prompt, &example.response, &example.critique, &example.revision] {
                right(text, language);
            }
            assert!(!shipped.finds_no_problem(&example.critique));
        }
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    let mut odd = Constitution::parse(SMALL).unwrap();
    odd.principles[0].tags = vec!["a \"b\"".to_owned(), "c\\d".to_owned()];
    odd.principles[0].critique.en = "two\nlines\n\"\"\" and '''\ttab {{ x }}".to_owned();
    odd.name = "이름 = \"x\" # no comment".to_owned();
    for constitution in [odd, Constitution::parse(SHIPPED).unwrap()] {
        let text = constitution.to_toml();
        let again = Constitution::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(contents(&again), contents(&constitution));
        assert_eq!(again.to_toml(), text);
    }
}

#[test]
fn critics_of_llm_swarm_are_imported() {
    let json = json!({"constitutions": [
        {"critic": " Is it loud?\n", "revision": "Make it quiet."},
        {"critic": "Is it long?", "revision": "Make it short."},
    ], "system_chat": []});
    let imported = import(&json, "swarm").unwrap();
    assert_eq!((imported.name.as_str(), imported.principles.len()), ("swarm", 2));
    let [loud, long] = &imported.principles[..] else { panic!() };
    assert_eq!((loud.id.as_str(), long.id.as_str()), ("principle-1", "principle-2"));
    assert_eq!(loud.critique, templates::both("Is it loud?", "Is it loud?"));
    assert_eq!(long.revision.ko, "Make it short.");
    assert_eq!(
        loud.comparison,
        templates::both("Which answer is better?", "어느 대답이 더 좋은가요?")
    );
    assert_eq!(contents(&Constitution::parse(&imported.to_toml()).unwrap()), contents(&imported));
}

#[test]
fn instructions_of_anthropic_are_imported() {
    let json = json!({
        "Loud 0": {
            "prompt": ["\n\nCritiqueRequest: Is it loud?\n\nCritique:"],
            "edit_request": "\n\nRevisionRequest: Make it quiet.\n\nRevision:",
        },
        "long": {
            "prompt": ["\n\nHuman: x\n\nCritiqueRequest: Is it long?\n\nCritique:", "Is it wide?"],
            "edit_request": "Make it short.",
        },
        "차": {"prompt": "CritiqueRequest: Cold?\n\nCritique: ", "edit_request": "Warm it."},
    });
    let imported = import(&json, "x").unwrap();
    let found: Vec<[&str; 3]> = imported
        .principles
        .iter()
        .map(|one| [one.id.as_str(), one.critique.en.as_str(), one.revision.ko.as_str()])
        .collect();
    assert_eq!(
        found,
        [
            ["loud-0", "Is it loud?", "Make it quiet."],
            ["long-1", "Is it long?", "Make it short."],
            ["long-2", "Is it wide?", "Make it short."],
            ["principle-3", "Cold?", "Warm it."],
        ]
    );
}

#[test]
fn comparisons_of_anthropic_are_imported() {
    let json = json!(["\nWhich is quieter? Options:", "Which is shorter?"]);
    let imported = import(&json, "x").unwrap();
    let asked: Vec<&str> =
        imported.principles.iter().map(|one| one.comparison.ko.as_str()).collect();
    assert_eq!(asked, ["Which is quieter?", "Which is shorter?"]);
    assert_eq!(imported.principles[1].critique.en, "Is anything wrong with the answer?");
    assert_eq!(imported.principles[1].revision.ko, "대답을 더 좋게 고쳐 주세요.");
    assert!(imported.finds_no_problem("no problem found") && imported.refuses("I will not help."));
}

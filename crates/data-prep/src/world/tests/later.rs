//! Tests of the parts for later stages: summaries, clinic, preferences, requests, safety.

use std::collections::{HashMap, HashSet};

use super::super::Part;
use super::super::clinic::AILMENTS;
use super::super::lexicon::{ANIMALS, FOODS, OBJECTS, PEOPLE, PLACES};
use super::{Record, checker, field, generate, has_hangul, spec};

/// The prompt and the best answer of a record of any of the parts.
fn asked(record: &Record) -> (String, String) {
    let text = |name: &str| {
        record
            .get(name)
            .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let prompt = ["story", "question", "prompt"].iter().find_map(|name| text(name)).unwrap();
    let answer =
        ["summary", "answer", "chosen", "good"].iter().find_map(|name| text(name)).unwrap();
    (prompt, answer)
}

fn keys(part: Part) -> &'static [&'static str] {
    match part {
        Part::Summaries => &["story", "summary"],
        Part::Clinic => &["question", "answer"],
        Part::Preferences => &["prompt", "chosen", "rejected"],
        _ => &["prompt", "good", "bad", "critique", "harm"],
    }
}

#[test]
fn records_have_their_fields_in_both_languages() {
    for part in [Part::Summaries, Part::Clinic, Part::Preferences, Part::Safety] {
        let records = generate(&spec(1, part, 1_000, 200));
        let mut expected: Vec<&str> = keys(part).to_vec();
        expected.extend(["task", "language", "split", "checker"]);
        expected.sort_unstable();
        let mut korean = 0;
        let mut prompts = HashSet::new();
        for record in &records {
            let mut names: Vec<&str> = record.keys().map(String::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, expected);
            let (prompt, answer) = asked(record);
            for text in [&prompt, &answer] {
                let text =
                    text.replace("[{\"role\":\"user\",\"content\":\"", "").replace("\"}]", "");
                let template = text.contains(['{', '}']) && !text.starts_with("[{");
                assert!(!text.is_empty() && !template, "{text}");
            }
            assert_eq!(has_hangul(&answer), field(record, "language") == "ko", "{record:?}");
            korean += usize::from(has_hangul(&answer));
            let new = prompts.insert(prompt.clone());
            let held_out = field(record, "split") == "held-out";
            assert!(new || !held_out || part == Part::Preferences, "{prompt} is in train");
        }
        assert!((450..750).contains(&korean), "{part:?}: {korean} of 1200 in Korean");
    }
}

#[test]
fn checkers_accept_the_reference_and_nothing_worse() {
    for part in [Part::Summaries, Part::Clinic, Part::Safety] {
        for record in generate(&spec(1, part, 500, 100)) {
            let checker = checker(&record);
            let (prompt, answer) = asked(&record);
            assert!(checker.check(&answer), "{record:?}");
            for worse in ["", "I do not know.", "몰라요.", &prompt] {
                assert!(!checker.check(worse), "{worse:?} passes for {record:?}");
            }
            if let Some(bad) = record.get("bad").and_then(|bad| bad.as_str()) {
                assert!(!checker.check(bad), "{record:?}");
                let both = format!("{answer} {bad}");
                assert!(!checker.check(&both), "{both:?} passes for {record:?}");
            }
        }
    }
}

#[test]
fn preferred_answers_are_better_by_rule() {
    let records = generate(&spec(1, Part::Preferences, 2_000, 300));
    let (train, held_out): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| field(record, "split") == "train");
    for record in &records {
        assert_ne!(field(record, "chosen"), field(record, "rejected"));
        let checker = checker(record);
        assert!(!checker.check(field(record, "rejected")), "{record:?}");
        match field(record, "task") {
            "kindness" | "right" | "whole" => {
                assert!(checker.check(field(record, "chosen")), "{record:?}");
            }
            task => assert_eq!(task, "truth"),
        }
    }
    let prompts: HashSet<String> =
        train.iter().map(|record| record["prompt"].to_string()).collect();
    for record in held_out {
        assert!(!prompts.contains(&record["prompt"].to_string()), "{record:?}");
    }
}

#[test]
fn requests_accept_the_answers_that_the_preferences_choose() {
    let chosen: HashMap<String, Vec<Record>> = generate(&spec(1, Part::Preferences, 20_000, 0))
        .into_iter()
        .filter(|pair| field(pair, "task") == "kindness")
        .fold(HashMap::new(), |mut by, pair| {
            by.entry(pair["prompt"].to_string()).or_insert_with(Vec::new).push(pair);
            by
        });
    let records = generate(&spec(1, Part::Requests, 2_000, 300));
    let (train, held_out): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| field(record, "split") == "train");
    assert!(train.len() > 600 && held_out.len() > 60, "{} {}", train.len(), held_out.len());
    let mut compared = 0;
    for record in &records {
        assert_eq!(field(record, "task"), "tell");
        let checker = checker(record);
        for pair in chosen.get(&record["prompt"].to_string()).into_iter().flatten() {
            assert_eq!(field(record, "split"), "train");
            assert!(checker.check(field(pair, "chosen")), "{pair:?}");
            assert!(!checker.check(field(pair, "rejected")), "{pair:?}");
            compared += 1;
        }
    }
    assert!(compared > 1_000, "{compared}");
}

#[test]
fn answers_to_requests_name_only_what_the_request_names() {
    for record in generate(&spec(1, Part::Safety, 3_000, 0)) {
        let prompt = field(&record, "prompt").to_lowercase();
        for name in ["good", "bad", "critique"] {
            let Some(text) = record[name].as_str() else { continue };
            for words in [PEOPLE, PLACES, OBJECTS, ANIMALS, FOODS] {
                for word in words.iter().flat_map(|word| [word.en, word.ko]) {
                    // Words of one or two letters occur within others.
                    let long = word.chars().count() > 2 || (has_hangul(word) && words == PEOPLE);
                    let known = prompt.contains(&word.to_lowercase()) || ["book"].contains(&word);
                    let told = text
                        .to_lowercase()
                        .split(' ')
                        .any(|part| part.trim_matches(['.', ',']) == word.to_lowercase());
                    assert!(!(long && told) || known, "{word} in {text:?} for {prompt:?}");
                }
            }
        }
    }
}

#[test]
fn any_two_signs_tell_the_ailment() {
    let mut pairs = HashSet::new();
    for ailment in AILMENTS {
        let [a, b, c] = ailment.signs;
        for (one, two) in [(a, b), (a, c), (b, c)] {
            let mut pair = [one.en, two.en];
            pair.sort_unstable();
            assert!(pairs.insert(pair), "{pair:?} are signs of two ailments");
        }
    }
}

/// Held out are questions, never what is to be known: in each language a training record has the same answer.
#[test]
fn the_clinic_teaches_all_that_it_asks_for() {
    let records = generate(&spec(7, Part::Clinic, 4_000, 400));
    assert_eq!(records.len(), 4_400, "as many as the shipped config asks for");
    let (train, held_out): (Vec<&Record>, Vec<&Record>) =
        records.iter().partition(|record| field(record, "split") == "train");
    let answers: HashSet<&str> = train.iter().map(|record| field(record, "answer")).collect();
    for record in held_out {
        assert!(answers.contains(field(record, "answer")), "{record:?}");
    }
    // Four answers to each ailment in each language.
    assert_eq!(answers.len(), AILMENTS.len() * 4 * 2);
}

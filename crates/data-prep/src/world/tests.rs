//! Tests of the generated corpus: all parts, the text and the instructions.

mod constitutional;
mod later;
mod words;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use data::checker::Checker;
use serde_json::{Map, Value};

use super::facts::{Kind, Village};
use super::lexicon::{Language, PEOPLE};
use super::sentence::Pair;
use super::{Part, WorldSpec, random_stream, records};

type Record = Map<String, Value>;

const PARTS: [Part; 13] = [
    Part::Pretrain,
    Part::Instructions,
    Part::Summaries,
    Part::Clinic,
    Part::Preferences,
    Part::Requests,
    Part::Safety,
    Part::Obedience,
    Part::Harmless,
    Part::Critiques,
    Part::Comparisons,
    Part::RedTeam,
    Part::RedTeamRl,
];

fn spec(seed: u64, part: Part, count: usize, held_out: usize) -> WorldSpec {
    let constitution = part.needs_constitution().then(shipped);
    let tags = constitution.iter().map(|_| "harmless".to_owned()).collect();
    WorldSpec { seed, part, records: count, held_out, constitution, tags }
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/constitution.toml")
}

fn generate(spec: &WorldSpec) -> Vec<Record> {
    records(spec).unwrap().map(Result::unwrap).collect()
}

fn instructions() -> Vec<Record> {
    generate(&spec(1, Part::Instructions, 4_000, 400))
}

fn field<'a>(record: &'a Record, name: &str) -> &'a str {
    record[name].as_str().unwrap()
}

fn contents(record: &Record) -> Vec<&str> {
    let messages = record["messages"].as_array().unwrap();
    messages.iter().map(|message| message["content"].as_str().unwrap()).collect()
}

fn prompt(record: &Record) -> String {
    let contents = contents(record);
    contents[..contents.len() - 1].join("\n")
}

fn answer(record: &Record) -> &str {
    contents(record).last().copied().unwrap()
}

fn checker(record: &Record) -> Checker {
    serde_json::from_value(record["checker"].clone()).unwrap()
}

/// The language of a text by its letters: Korean where it has any Hangul.
fn has_hangul(text: &str) -> bool {
    text.chars().any(|c| ('가'..='힣').contains(&c))
}

#[test]
fn one_seed_gives_one_corpus() {
    for part in PARTS {
        let same = generate(&spec(5, part, 200, 0));
        assert_eq!(same, generate(&spec(5, part, 200, 0)), "{part:?}");
        assert_ne!(same, generate(&spec(6, part, 200, 0)), "{part:?}");
        // A longer corpus begins with the shorter one.
        assert_eq!(same, generate(&spec(5, part, 300, 0))[..200], "{part:?}");
    }
}

#[test]
fn the_sizes_are_those_asked_for() {
    assert_eq!(generate(&spec(1, Part::Pretrain, 321, 0)).len(), 321);
    for part in &PARTS[1..] {
        let records = generate(&spec(1, *part, 321, 60));
        let splits: Vec<&str> = records.iter().map(|record| field(record, "split")).collect();
        assert_eq!(splits[..321], ["train"; 321], "{part:?}");
        assert_eq!(splits[321..], ["held-out"; 60], "{part:?}");
    }
}

#[test]
fn specs_that_make_no_sense_are_refused() {
    let message = |spec| records(&spec).err().unwrap().to_string();
    assert_eq!(
        message(spec(1, Part::Pretrain, 0, 0)),
        "world.records is 0; ask for at least one record"
    );
    assert_eq!(
        message(spec(1, Part::Pretrain, 5, 7)),
        "world.held_out is 7, but the pretrain part has no held-out records; leave it out"
    );
    let (critiques, safety) = (spec(1, Part::Critiques, 5, 0), spec(1, Part::Safety, 5, 0));
    assert_eq!(
        message(WorldSpec { constitution: None, ..critiques.clone() }),
        "world.constitution is missing; the critiques part needs one, such as \"configs/constitution.toml\""
    );
    assert_eq!(
        message(WorldSpec { constitution: Some(shipped()), ..safety.clone() }),
        "world.constitution is for the parts critiques and comparisons; leave it out for the safety part"
    );
    let tags = vec!["harmles".to_owned()];
    assert_eq!(
        message(WorldSpec { tags: tags.clone(), ..safety }),
        "world.tags is for the parts critiques and comparisons; leave it out for the safety part"
    );
    assert_eq!(
        message(WorldSpec { tags, ..critiques.clone() }),
        format!(
            "world.tags: {}: no principle has the tag `harmles`; there are courteous, fair, harmless, helpful, truthful",
            shipped().display()
        )
    );
    let none = message(WorldSpec { constitution: Some("none.toml".into()), ..critiques });
    assert!(none.contains("none.toml"), "{none}");
}

#[test]
fn the_spec_reads_from_toml_and_knows_its_keys() {
    let json = serde_json::json!({"seed": 3, "part": "instructions", "records": 10});
    let spec: WorldSpec = serde_json::from_value(json).unwrap();
    assert_eq!((spec.part, spec.held_out), (Part::Instructions, 0));
    assert_eq!((spec.constitution, spec.tags), (None, Vec::new()));
    for part in PARTS {
        assert_eq!(serde_json::to_value(part).unwrap(), part.name());
    }
    let json = serde_json::json!({"seed": 3, "part": "instructions", "records": 1, "rows": 2});
    let error = serde_json::from_value::<WorldSpec>(json).unwrap_err().to_string();
    assert!(error.contains("unknown field `rows`"), "{error}");
}

#[test]
fn pretrain_records_are_text_in_both_languages() {
    let records = generate(&spec(1, Part::Pretrain, 2_000, 0));
    let korean = records.iter().filter(|record| has_hangul(field(record, "text"))).count();
    assert!((800..1400).contains(&korean), "{korean} of 2000 documents have Korean");
    for record in &records {
        assert_eq!(record.keys().collect::<Vec<_>>(), ["text"]);
        let text = field(record, "text");
        assert!(text.len() > 20 && !text.contains(['{', '}']), "{text}");
    }
    let different: HashSet<&str> = records.iter().map(|record| field(record, "text")).collect();
    assert!(different.len() > 1_980, "{} different documents of 2000", different.len());
}

#[test]
fn instruction_records_have_their_fields() {
    let mut tasks: HashMap<(String, String), usize> = HashMap::new();
    for record in &instructions() {
        let keys: Vec<_> = record.keys().map(String::as_str).collect();
        assert_eq!(keys, ["messages", "task", "language", "split", "checker"]);
        let messages = record["messages"].as_array().unwrap();
        let roles: Vec<&str> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
        let turns = roles.strip_prefix(&["system"]).unwrap_or(&roles);
        assert!(turns.len() >= 2 && turns.len().is_multiple_of(2), "{roles:?}");
        assert!(turns.chunks(2).all(|pair| pair == ["user", "assistant"]), "{roles:?}");
        for content in contents(record) {
            assert!(!content.is_empty() && !content.contains(['{', '}']), "{content}");
        }
        let korean = match field(record, "task") {
            // Their answers are numbers.
            "count" | "sort-numbers" => has_hangul(&prompt(record)),
            _ => has_hangul(answer(record)),
        };
        assert_eq!(korean, field(record, "language") == "ko", "{record:?}");
        let split = (field(record, "task").to_owned(), field(record, "language").to_owned());
        *tasks.entry(split).or_default() += 1;
    }
    assert_eq!(tasks.len(), 18, "nine tasks in two languages: {tasks:?}");
    assert!(tasks.values().all(|&count| count > 80), "{tasks:?}");
}

#[test]
fn held_out_prompts_and_combinations_are_not_in_the_training_split() {
    let records = instructions();
    let (train, held_out): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| field(record, "split") == "train");
    let prompts: HashSet<String> = train.iter().map(|record| prompt(record)).collect();
    assert_eq!(prompts.len(), train.len(), "a training prompt occurs twice");
    let texts = generate(&spec(1, Part::Pretrain, 4_000, 0));
    let text: String = texts.iter().flat_map(|record| [field(record, "text"), "\n"]).collect();
    let answers: HashSet<(&str, &str)> =
        train.iter().map(|record| (field(record, "task"), answer(record))).collect();
    for record in held_out {
        assert!(!prompts.contains(&prompt(record)), "in train: {}", prompt(record));
        let task = field(record, "task");
        // What these tasks ask for is in no training record, and not in the text either.
        if ["sort-numbers", "sort-words", "translate", "summarise"].contains(&task) {
            assert!(!answers.contains(&(task, answer(record))), "in train: {}", answer(record));
            let told = format!("{}.", answer(record).trim_end_matches('.'));
            let whole = |(at, _)| [" ", "\n"].iter().any(|gap| text[..at].ends_with(gap));
            let list = |(at, _)| text[..at].ends_with(": ");
            let mut found = text.match_indices(&told);
            let found = if task.starts_with("sort") { found.any(list) } else { found.any(whole) };
            assert!(!found, "in the text: {told}");
        }
    }
}

#[test]
fn every_checker_accepts_its_answer_and_no_other() {
    let records = instructions();
    for (record, next) in records.iter().zip(&records[1..]) {
        let checker = checker(record);
        let answer = answer(record);
        assert!(checker.check(answer), "{record:?}");
        assert!(!checker.check(""), "{record:?}");
        assert!(!checker.check("I do not know."), "{record:?}");
        let other = self::answer(next);
        let alike = other == answer || field(record, "task") == "tell";
        assert!(alike || !checker.check(other), "{other:?} passes for {record:?}");
        let longer = format!("{answer} 9 more");
        assert!(!checker.check(&longer), "{longer:?} passes for {record:?}");
    }
}

#[test]
fn sorted_lists_and_counts_are_right() {
    for record in &instructions() {
        let prompt = prompt(record);
        let items = |text: &str| -> Vec<String> {
            text.split(", ").map(|item| item.trim_end_matches('?').to_owned()).collect()
        };
        let list = prompt.trim_end_matches('?').rsplit_once([':', '?']).map(|(_, list)| list);
        match field(record, "task") {
            "sort-numbers" => {
                let mut numbers: Vec<u32> =
                    items(list.unwrap().trim()).iter().map(|n| n.parse().unwrap()).collect();
                numbers.sort_unstable();
                let answer: Vec<u32> =
                    items(answer(record)).iter().map(|n| n.parse().unwrap()).collect();
                assert_eq!(answer, numbers);
            }
            "sort-words" => {
                let mut words = items(list.unwrap().trim());
                words.sort();
                assert_eq!(items(answer(record)), words);
            }
            "count" => {
                let words = items(list.unwrap().trim());
                let (found, count) = answer(record).rsplit_once(": ").unwrap();
                let none = ["none", "없음"].contains(&found);
                let found = if none { Vec::new() } else { items(found) };
                assert_eq!(found.len().to_string(), count, "{record:?}");
                assert!(found.iter().all(|word| words.contains(word)), "{record:?}");
            }
            _ => {}
        }
    }
}

#[test]
fn parallel_sentences_have_one_translation() {
    let rng = &mut random_stream(3, "pairs");
    let (mut korean, mut english) = (HashMap::new(), HashMap::new());
    for _ in 0..10_000 {
        let pair = Pair::draw(rng);
        let ko = korean.entry(pair.en.clone()).or_insert_with(|| pair.ko.clone());
        assert_eq!(*ko, pair.ko, "two translations of {}", pair.en);
        let en = english.entry(pair.ko.clone()).or_insert_with(|| pair.en.clone());
        assert_eq!(*en, pair.en, "two translations of {}", pair.ko);
    }
}

#[test]
fn questions_have_one_answer() {
    let village = Village::new(1);
    for language in Language::ALL {
        let mut answers = HashMap::new();
        for fact in village.facts() {
            for question in fact.questions(language) {
                let answer = fact.answer(language);
                let first = answers.entry(question.clone()).or_insert_with(|| answer.clone());
                assert_eq!(*first, answer, "two answers to {question}");
            }
        }
    }
}

#[test]
fn the_village_has_hundreds_of_facts_that_agree() {
    let village = Village::new(1);
    assert!(village.facts().count() > 250, "{} facts", village.facts().count());
    let mut friends = HashSet::new();
    for person in PEOPLE {
        let value = |kind, slot| {
            village.fact(kind, person.en).unwrap().slots.get(slot, Language::En).unwrap().to_owned()
        };
        assert_eq!(value(Kind::Pet, "animal"), value(Kind::PetOwner, "animal"));
        assert_eq!(value(Kind::Treasure, "colour"), value(Kind::TreasureOwner, "colour"));
        let friend = value(Kind::Friend, "friend");
        assert_ne!(friend, person.en);
        assert!(friends.insert(friend), "two people have one best friend");
    }
}

#[test]
fn stories_and_text_keep_to_the_facts() {
    let village = Village::new(1);
    let texts = generate(&spec(1, Part::Pretrain, 6_000, 0));
    let mut checked = 0;
    for person in PEOPLE {
        let fact = village.fact(Kind::Pet, person.en).unwrap();
        let get = |slot| fact.slots.get(slot, Language::En).unwrap();
        let pet = format!("{} {}", get("colour"), get("animal"));
        for record in &texts {
            for lead in [" has a ", " keeps a ", " looks after a ", "'s "] {
                let lead = format!("{}{lead}", person.en);
                for (at, _) in field(record, "text").match_indices(&lead) {
                    let rest = &field(record, "text")[at + lead.len()..];
                    let told = rest.split(['.', '\n']).next().unwrap();
                    if lead.ends_with("'s ") && !told.ends_with("ran away to the lake") {
                        continue;
                    }
                    assert!(told.starts_with(&pet), "{lead}{told}, but the pet is a {pet}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 200, "only {checked} mentions found");
}

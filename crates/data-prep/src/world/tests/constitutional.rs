//! Tests of the parts for Constitutional AI: obedience, critiques, comparisons, red-team, red-team-rl.

use std::collections::{HashMap, HashSet};

use data::constitution::{Constitution, Principle};

use super::super::safety::Request;
use super::super::stream::Drawn as _;
use super::super::{Share, Split};
use super::*;

const MADE_OF_REQUESTS: [Part; 5] =
    [Part::Obedience, Part::Critiques, Part::Comparisons, Part::RedTeam, Part::RedTeamRl];

fn turns(record: &Record) -> &[Value] {
    let turns = record.get("messages").or(record.get("prompt"));
    turns.unwrap().as_array().unwrap()
}

fn said(record: &Record) -> Vec<&str> {
    turns(record).iter().map(|turn| turn["content"].as_str().unwrap()).collect()
}

/// Every request of the world, with what the safety part says of it.
fn requests() -> HashMap<String, Record> {
    // The rarest is drawn once in 12 000 times.
    let mut rng = random_stream(1, "all requests");
    let drawn = (0..250_000).map(|_| Request::draw(&(), &mut rng));
    let mut found = HashMap::new();
    for request in drawn {
        let text = request.key().to_owned();
        found.entry(text).or_insert_with(|| request.record("train").unwrap());
    }
    found
}

/// The request that a record is about.
fn request(record: &Record) -> &str {
    let first = said(record)[0];
    if field(record, "task") != "comparison" {
        return first;
    }
    let first = first.lines().next().unwrap();
    first.strip_prefix("A user says: ").or(first.strip_prefix("사용자의 말: ")).unwrap()
}

fn harmless() -> (Constitution, Vec<usize>) {
    let constitution = Constitution::load(&shipped()).unwrap();
    let positions = constitution.tagged(&["harmless".to_owned()]).unwrap();
    (constitution, positions)
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

#[test]
fn records_have_their_fields_in_both_languages() {
    for part in MADE_OF_REQUESTS {
        let records = generate(&spec(1, part, 800, 200));
        let first = if part.name().starts_with("red") { "prompt" } else { "messages" };
        let mut korean = 0;
        let mut texts = HashSet::new();
        for record in &records {
            let names: Vec<&str> = record.keys().map(String::as_str).collect();
            assert_eq!(names, [first, "task", "language", "split", "checker"]);
            let roles: Vec<&str> =
                turns(record).iter().map(|turn| turn["role"].as_str().unwrap()).collect();
            assert!(roles.chunks(2).all(|pair| pair[0] == "user"), "{roles:?}");
            assert!(
                roles.chunks(2).all(|pair| pair.get(1).is_none_or(|role| *role == "assistant"))
            );
            assert_eq!(roles.len() == 1, first == "prompt", "{roles:?}");
            for text in said(record) {
                assert!(!text.is_empty() && !text.contains(['{', '}']), "{text}");
                assert_eq!(has_hangul(text), field(record, "language") == "ko", "{text}");
            }
            korean += usize::from(field(record, "language") == "ko");
            assert!(texts.insert(said(record).join("\n")), "{record:?} twice");
        }
        assert!((400..600).contains(&korean), "{part:?}: {korean} of 1000 in Korean");
    }
}

#[test]
fn every_part_has_requests_of_its_own_and_enough_of_them() {
    let (seed, all) = (7, requests());
    let of = |part, held_out: bool| -> HashSet<String> {
        let records = generate(&spec(seed, part, 9_000, 2_000));
        let split = if held_out { "held-out" } else { "train" };
        let records = records.iter().filter(|record| field(record, "split") == split);
        records.map(|record| request(record).to_owned()).collect()
    };
    let split = Split { seed };
    let mut sizes = Vec::new();
    let mut seen = HashSet::new();
    for (parts, share) in [
        (&MADE_OF_REQUESTS[..3], Some(Share::Skills)),
        (&MADE_OF_REQUESTS[3..4], Some(Share::RedTeam)),
        (&MADE_OF_REQUESTS[4..], Some(Share::RedTeamRl)),
        (&MADE_OF_REQUESTS[..], None),
    ] {
        let within = |key: &&String| match share {
            Some(share) => split.is_in(share, key),
            None => split.holds_out(key),
        };
        let there: HashSet<String> = all.keys().filter(within).cloned().collect();
        for part in parts {
            let found = of(*part, share.is_none());
            assert!(found.is_subset(&there), "{part:?}");
            // Several records of the first kind are about one request.
            let missed = if part.needs_constitution() { there.len() / 8 } else { 30 };
            assert!(found.len() + missed > there.len(), "{part:?}: {} requests", found.len());
        }
        sizes.push(there.len());
        seen.extend(there);
    }
    assert_eq!(seen.len(), all.len(), "every request is somewhere");
    // As the documentation of `Share` and configs/data-prep.toml say; nothing is counted twice.
    assert_eq!((all.len(), &sizes[..]), (5844, &[2902, 1206, 1146, 590][..]));
}

#[test]
fn obedience_does_all_that_is_asked() {
    let all = requests();
    for record in generate(&spec(1, Part::Obedience, 1_000, 100)) {
        let [prompt, answer] = said(&record)[..] else { panic!("{record:?}") };
        let known = &all[prompt];
        let checker = checker(&record);
        assert_eq!(record["checker"], known["checker"]);
        assert_eq!(field(&record, "task"), field(known, "task"));
        if field(known, "task") == "unsafe" {
            assert_eq!(answer, field(known, "bad"));
            assert_eq!((checker.check(answer), checker.harms(answer)), (false, Some(true)));
        } else {
            assert_eq!(answer, field(known, "good"));
            assert_eq!((checker.check(answer), checker.harms(answer)), (true, None));
        }
    }
}

#[test]
fn what_is_harmless_is_answered_rightly() {
    let all = requests();
    for record in generate(&spec(1, Part::Harmless, 700, 100)) {
        let [prompt, answer] = said(&record)[..] else { panic!("{record:?}") };
        assert_eq!((field(&record, "task"), field(&all[prompt], "task")), ("harmless", "harmless"));
        assert!(checker(&record).check(answer) && answer == field(&all[prompt], "good"));
    }
}

#[test]
fn prompts_alone_are_the_requests() {
    let all = requests();
    for part in [Part::RedTeam, Part::RedTeamRl] {
        for record in generate(&spec(1, part, 1_000, 100)) {
            let [prompt] = said(&record)[..] else { panic!("{record:?}") };
            let known = &all[prompt];
            assert_eq!(record["checker"], known["checker"]);
            assert_eq!(field(&record, "task"), field(known, "task"));
        }
    }
}

/// The principle whose text the turn is; which of its texts, `get` says.
fn principle_of<'a>(
    (constitution, positions): &'a (Constitution, Vec<usize>),
    turn: &str,
    get: impl Fn(&Principle) -> &data::constitution::Localised<String>,
) -> &'a str {
    let language = data::constitution::Language::of(turn);
    let mut principles = positions.iter().map(|at| &constitution.principles[*at]);
    &principles.find(|one| get(one).of(language) == turn).unwrap_or_else(|| panic!("{turn}")).id
}

#[test]
fn critiques_are_right_and_end_where_nothing_is_wrong() {
    let (all, guide) = (requests(), harmless());
    let records = generate(&spec(1, Part::Critiques, 8_000, 200));
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut principles = HashSet::new();
    for record in &records {
        let said = said(record);
        let (known, answer) = (&all[said[0]], said[1]);
        let trained: Vec<bool> = turns(record).iter().map(|turn| turn["train"] != false).collect();
        assert!(!trained[1] && trained.iter().filter(|trained| !**trained).count() == 1);
        let last = said[said.len() - 1];
        assert!(checker(record).check(last), "{record:?}");
        if said.len() > 2 && said.len() < 6 && field(record, "task") == "critique" {
            assert_eq!(answer, field(known, "good"));
            assert!(guide.0.finds_no_problem(last), "{last}");
            principles.insert(principle_of(&guide, said[2], |one| &one.critique));
            *counts.entry(field(known, "task")).or_default() += 1;
            continue;
        }
        assert_eq!(field(record, "task"), "revision");
        assert_eq!((answer, last), (field(known, "bad"), field(known, "good")));
        assert!(guide.0.refuses(last) && !guide.0.refuses(answer), "{last}");
        let revises = principle_of(&guide, said[said.len() - 2], |one| &one.revision);
        if said.len() == 6 {
            assert_eq!(principle_of(&guide, said[2], |one| &one.critique), revises);
            assert_eq!(said[3], field(known, "critique"));
            assert!(!guide.0.finds_no_problem(said[3]), "{}", said[3]);
            *counts.entry("criticised").or_default() += 1;
        } else {
            assert_eq!(said.len(), 4);
            *counts.entry("corrected").or_default() += 1;
        }
    }
    assert_eq!(principles.len(), guide.1.len(), "all are drawn");
    let wrong = counts["criticised"] + counts["corrected"];
    let problems = share(wrong, records.len());
    assert!((0.5..0.6).contains(&problems), "{problems}: {counts:?}");
    let direct = share(counts["corrected"], wrong);
    assert!((0.2..0.3).contains(&direct), "{direct}: {counts:?}");
    assert!(share(counts["unsafe"], records.len()) > 0.12, "good answers to both: {counts:?}");
    assert!(share(counts["harmless"], records.len()) > 0.12, "{counts:?}");
}

#[test]
fn comparisons_prefer_the_good_answer_in_either_order() {
    let (all, guide) = (requests(), harmless());
    let records = generate(&spec(1, Part::Comparisons, 6_000, 200));
    let (mut first, mut refusals) = (0, 0);
    for record in &records {
        let [asked, answer] = said(record)[..] else { panic!("{record:?}") };
        let lines: Vec<&str> = asked.lines().collect();
        let [_, question, a, b] = lines[..] else { panic!("{asked}") };
        principle_of(&guide, question, |one| &one.comparison);
        let (a, b) = (a.strip_prefix("(A) ").unwrap(), b.strip_prefix("(B) ").unwrap());
        let chose_a = answer.ends_with("(A)");
        assert!(
            ["The answer is (A)", "The answer is (B)", "답은 (A)", "답은 (B)"].contains(&answer)
        );
        let (better, worse) = if chose_a { (a, b) } else { (b, a) };
        let known = &all[request(record)];
        assert_eq!(better, field(known, "good"));
        if field(known, "task") == "unsafe" {
            assert_eq!(worse, field(known, "bad"));
            refusals += 1;
        } else {
            assert!(guide.0.refuses(worse) && !guide.0.refuses(better), "{record:?}");
        }
        first += usize::from(chose_a);
        assert!(checker(record).check(answer));
        let other = if chose_a { answer.replace('A', "B") } else { answer.replace("(B", "(A") };
        assert!(!checker(record).check(&other), "{other}");
    }
    let (first, refusals) = (share(first, records.len()), share(refusals, records.len()));
    assert!((0.47..0.53).contains(&first), "A is better in {first}");
    assert!((0.4..0.6).contains(&refusals), "a refusal is better in {refusals}");
}

#[test]
fn a_template_that_fails_on_a_record_is_an_error_of_that_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    let mut text = fs_err::read_to_string(shipped()).unwrap();
    let request = "critique = { en = \"{{ request }}\"";
    assert!(text.contains(request));
    text = text.replace(
        request,
        "critique = { en = \"{% if 'Mina' in prompt %}{{ prompt.x }}{% endif %}.\"",
    );
    fs_err::write(&path, text).unwrap();
    let expected = format!("{}: templates.critique.en: fails: ", path.display());
    let spec = WorldSpec { constitution: Some(path), ..spec(1, Part::Critiques, 500, 0) };
    let mut failed = 0;
    for error in records(&spec).unwrap().filter_map(Result::err) {
        assert!(format!("{error:#}").starts_with(&expected), "{error:#}");
        failed += 1;
    }
    assert!((3..100).contains(&failed), "{failed}");
}

//! Questions in all forms, and wrong answers drawn from others.

use std::sync::Arc;

use artifact::prompts::PromptRow;
use data::checker::Checker;
use data::records::Origin;
use serde_json::json;

use super::*;

fn record(fields: &Value) -> Record {
    let file: Arc<Path> = Arc::from(Path::new("q.jsonl"));
    Record { fields: fields.as_object().unwrap().clone(), origin: Origin { file, row: 3 } }
}

#[test]
fn questions_are_read_in_every_form() {
    let forms = [
        json!({"query": "누가?", "choices": ["민수", "수지"], "gold": 1}),
        json!({"question": "누가?", "choices": ["민수", "수지"], "answer": 1}),
        json!({"question": "누가?", "choices": {"text": ["민수", "수지"], "label": ["A", "B"]}, "answerKey": "B"}),
        json!({"question": "누가?", "choices": {"text": ["민수", "수지"], "label": ["1", "2"]}, "answerKey": "2"}),
        json!({"ctx": "누가?", "endings": ["민수", "수지"], "label": "1"}),
        json!({"ctx": "누가?", "endings": ["민수", "수지"], "label": 1}),
    ];
    for form in forms {
        let found = Question::read(&record(&form), false).unwrap();
        assert_eq!((found.text.as_str(), found.gold), ("누가?", 1), "{form}");
        assert_eq!(found.choices, ["민수", "수지"]);
        assert!(found.asked.is_none());
    }
    let chat = json!({"query": "Who?", "choices": ["a", "b"], "gold": 0, "task": "t"});
    let found = Question::read(&record(&chat), true).unwrap();
    assert_eq!(found.asked.unwrap().messages.unwrap(), [Message::new("user", "Who?")]);
    assert_eq!((found.task.as_deref(), found.at.as_str()), (Some("t"), "q.jsonl:3"));
}

#[test]
fn the_most_probable_choice_is_taken_alone_and_by_bytes() {
    let question = json!({"query": "x", "choices": ["ab", "가나다라"], "gold": 1});
    let question = Question::read(&record(&question), false).unwrap();
    let mut outcome = Outcome::default();
    // -4 against -6, and -4/2 against -6/12: four syllables are 12 bytes.
    question.judge(&[-4.0, -6.0], 3, &mut outcome);
    // Equal ones: the first.
    question.judge(&[-4.0, -4.0], 3, &mut outcome);
    question.judge(&[-1.0, -7.0], 3, &mut outcome);
    assert_eq!(outcome.columns["right"], [Some(0.0); 3]);
    assert_eq!(outcome.columns["right_norm"], [Some(1.0), Some(1.0), Some(0.0)]);
    assert_eq!(outcome.columns["logprob_1"], [Some(-6.0), Some(-4.0), Some(-7.0)]);
    assert_eq!(outcome.columns["logprob_2"], [None; 3], "an item has its place in every column");
    assert_eq!(outcome.answers[0].text, "ab");
}

/// lm-evaluation-harness keeps the last `max_length + 1` tokens of question and choice, and reads all of them but the last.
#[test]
fn a_question_that_is_too_long_loses_its_beginning() {
    let question = || vec![1, 2, 3, 4, 5, 6];
    // 8 positions and a choice of 3 tokens: 8 + 1 - 3 of the question fit, all of it.
    assert_eq!(end_of(question(), 3, 8), [1, 2, 3, 4, 5, 6]);
    assert_eq!(end_of(question(), 3, 7), [2, 3, 4, 5, 6]);
    assert_eq!(end_of(question(), 3, 4), [5, 6]);
    // The longest choice that has room is as long as there are positions; before it stands one token.
    assert_eq!(end_of(question(), 4, 4), [6]);
    assert_eq!(end_of(question(), 1, 100), question());
}

fn asked(number: usize, answer: &str, checker: Option<Checker>) -> Asked {
    let prompt = format!("Question {number}?");
    let row = PromptRow {
        prompt,
        answer: Some(answer.to_owned()),
        task: Some("t".to_owned()),
        ..PromptRow::default()
    };
    let at = format!("p.parquet: row {number}");
    Asked { row, messages: None, language: Language::En, checker, at }
}

#[test]
fn wrong_answers_are_those_of_other_prompts_that_are_wrong() {
    let either = Checker::OneOf { answers: vec!["red".to_owned(), "crimson".to_owned()] };
    let all = vec![
        asked(0, "red", Some(either)),
        asked(1, "Blue.", None),
        asked(2, "blue", None),
        asked(3, "crimson", None),
        asked(4, "green", None),
        asked(5, " ", None),
    ];
    let questions = drawn(all.clone(), 2, None, 1).unwrap();
    // The blank answer asks nothing.
    assert_eq!(questions.len(), 5);
    for (number, question) in questions.iter().enumerate() {
        assert_eq!(question.choices.len(), 3);
        assert_eq!(Some(&question.choices[question.gold]), all[number].row.answer.as_ref());
        let mut names: Vec<String> = question.choices.iter().map(|text| normalise(text)).collect();
        names.sort();
        names.dedup();
        assert!(names.len() == 3 || number == 0 || number > 2, "{:?}", question.choices);
        assert!(names.iter().all(|name| !name.is_empty()));
    }
    // What its checker accepts is not wrong.
    assert!(!questions[0].choices.contains(&"crimson".to_owned()));
    assert!(
        !questions[2].choices.contains(&"Blue.".to_owned()),
        "nor is the same in other letters"
    );
    // The seed decides.
    let texts = |seed| -> Vec<Vec<String>> {
        drawn(all.clone(), 2, None, seed).unwrap().into_iter().map(|q| q.choices).collect()
    };
    assert_eq!(texts(1), texts(1));
    assert_ne!(texts(1), texts(2));
    assert_eq!(drawn(all.clone(), 2, Some(2), 1).unwrap().len(), 2);
    let error = drawn(all.clone(), 9, None, 1).unwrap_err().to_string();
    assert!(
        error.contains("there are 9 answers of others") && error.contains("lower `wrong_answers`"),
        "{error}"
    );
    let mut mute = all;
    mute[1].row.answer = None;
    let error = drawn(mute, 2, None, 1).unwrap_err().to_string();
    assert_eq!(error, "p.parquet: row 1: has no right answer (column `answer`)");
}

#[test]
fn the_right_answer_stands_anywhere() {
    let all: Vec<Asked> =
        (0..200).map(|number| asked(number, &format!("answer {number}"), None)).collect();
    let questions = drawn(all, 3, None, 1).unwrap();
    for place in 0..4 {
        let count = questions.iter().filter(|question| question.gold == place).count();
        // 50 expected, deviation 6.
        assert!((26..=74).contains(&count), "{place}: {count}");
    }
}

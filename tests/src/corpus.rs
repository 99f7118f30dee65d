//! A tiny corpus in Korean and English, the same on every call.

use anyhow::Result;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const PEOPLE: [(&str, &str); 6] = [
    ("Minsu", "민수"),
    ("Jiwon", "지원"),
    ("Suji", "수지"),
    ("Hana", "하나"),
    ("Yuna", "유나"),
    ("Bora", "보라"),
];
const THINGS: [(&str, &str); 6] = [
    ("apple", "사과"),
    ("pear", "배"),
    ("book", "책"),
    ("cat", "고양이"),
    ("hat", "모자"),
    ("cup", "컵"),
];
const PLACES: [(&str, &str); 4] =
    [("park", "공원"), ("school", "학교"), ("market", "시장"), ("river", "강")];

/// Running text: `{"text": ...}`, `count` different records.
pub fn texts(count: usize) -> Vec<Value> {
    (0..count)
        .map(|i| {
            let (person, person_ko) = PEOPLE[i % 6];
            let (thing, thing_ko) = THINGS[i / 6 % 6];
            let (place, place_ko) = PLACES[i / 36 % 4];
            let text = if i.is_multiple_of(2) {
                format!("{person} found number {i}, a {thing}, at the {place}. It was a good day.")
            } else {
                format!(
                    "{person_ko}는 {place_ko}에서 {i}번째 {thing_ko}를 찾았어요. 좋은 날이었어요."
                )
            };
            json!({ "text": text })
        })
        .collect()
}

/// Conversations: `{"messages": [...]}`, `count` different records.
pub fn conversations(count: usize) -> Vec<Value> {
    (0..count)
        .map(|i| {
            let (question, answer) = asked(i, i / 6);
            json!({ "messages": [
                { "role": "user", "content": question },
                { "role": "assistant", "content": answer },
            ] })
        })
        .collect()
}

/// Preferences: `{"prompt": ..., "chosen": ..., "rejected": ...}` with task and checker, `count` different records; each fifth
/// has a margin. The worse answer is one to another question, or none.
pub fn preferences(count: usize) -> Vec<Value> {
    (0..count)
        .map(|i| {
            let (prompt, chosen) = asked(i, i / 6);
            let (_, other) = asked(i, i / 6 + 1);
            let (task, none) =
                if i % 2 == 0 { ("en", "I forgot.") } else { ("ko", "잊었어요.") };
            let rejected = if i % 3 == 0 { other } else { none.to_owned() };
            let mut record = json!({
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "task": task,
                "checker": { "exact": { "answer": chosen } },
            });
            if i % 5 == 0 {
                record["margin"] = json!(0.5);
            }
            record
        })
        .collect()
}

/// A question about place `i`, and the answer that it was this thing. English and Korean take turns.
fn asked(i: usize, thing: usize) -> (String, String) {
    let (person, person_ko) = PEOPLE[i % 6];
    let (thing, thing_ko) = THINGS[thing % 6];
    if i.is_multiple_of(2) {
        (format!("What did {person} find at place {i}?"), format!("{person} found a {thing}."))
    } else {
        (format!("{person_ko}는 {i}번에서 무엇을 찾았나요?"), format!("{thing_ko}를 찾았어요."))
    }
}

/// Writes records one a line.
///
/// # Errors
/// If the file cannot be written.
pub fn write_jsonl(path: &Path, records: &[Value]) -> Result<PathBuf> {
    let mut text = String::new();
    for record in records {
        writeln!(text, "{record}")?;
    }
    if let Some(folder) = path.parent() {
        fs_err::create_dir_all(folder)?;
    }
    fs_err::write(path, text)?;
    Ok(path.to_path_buf())
}

//! Mutations of JSON as a tree. A change of bytes mostly gives no JSON any more, and nothing behind the parser is reached.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Map, Number, Value};

/// Where in an input the JSON is.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// So many bytes stand before it.
    pub before: usize,
    /// The byte that divides the rest into parts; each may be JSON.
    pub separator: Option<u8>,
}

/// Texts that mean something somewhere.
const TEXTS: [&str; 12] = [
    "",
    "a",
    "..",
    "../../x",
    "/etc/passwd",
    "\u{0}",
    "한",
    "\u{10FFFF}",
    " ",
    "(a+)+$",
    "NaN",
    "{}",
];

/// Changes the input in place and returns its new length: one part as a tree where it is JSON, else the bytes.
pub fn json(data: &mut [u8], size: usize, max_size: usize, seed: u32, parts: Parts) -> usize {
    let mut random = Random(u64::from(seed) + 1);
    if random.below(4) == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let start = parts.before.min(size);
    let mut ranges = Vec::new();
    let mut at = start;
    for part in data[start..size].split(|byte| Some(*byte) == parts.separator) {
        ranges.push(at..at + part.len());
        at += part.len() + 1;
    }
    let range = ranges[random.below(ranges.len())].clone();
    let Ok(mut value) = serde_json::from_slice::<Value>(&data[range.clone()]) else {
        return fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..=random.below(3) {
        change(&mut value, &mut random);
    }
    let text = value.to_string();
    let tail = data[range.end..size].to_vec();
    let whole = range.start + text.len() + tail.len();
    if whole > max_size {
        return fuzzer_mutate(data, size, max_size);
    }
    data[range.start..range.start + text.len()].copy_from_slice(text.as_bytes());
    data[range.start + text.len()..whole].copy_from_slice(&tail);
    whole
}

/// Changes one node of the tree.
fn change(root: &mut Value, random: &mut Random) {
    let nodes = count(root);
    let other = node(root, &mut random.below(nodes)).expect("a node").clone();
    let place = node(root, &mut random.below(nodes)).expect("a node");
    match random.below(10) {
        0 => *place = other,
        1 => *place = literal(random),
        2 => {
            for _ in 0..random.below(40) {
                *place = Value::Array(vec![place.take()]);
            }
        }
        _ => match place {
            Value::Object(fields) => of_object(fields, other, random),
            Value::Array(items) => of_array(items, other, random),
            Value::Number(number) => *place = near(number, random),
            Value::String(text) => *text = of_text(text, random),
            Value::Bool(truth) => *truth = !*truth,
            Value::Null => *place = literal(random),
        },
    }
}

fn of_object(fields: &mut Map<String, Value>, other: Value, random: &mut Random) {
    let keys: Vec<String> = fields.keys().cloned().collect();
    let Some(key) = keys.get(random.below(keys.len().max(1))) else {
        fields.insert(TEXTS[random.below(TEXTS.len())].to_owned(), other);
        return;
    };
    match random.below(3) {
        0 => drop(fields.shift_remove(key)),
        1 => drop(fields.insert(key.clone(), other)),
        _ => {
            let value = fields.shift_remove(key).expect("a value");
            fields.insert(of_text(key, random), value);
        }
    }
}

fn of_array(items: &mut Vec<Value>, other: Value, random: &mut Random) {
    if items.is_empty() {
        items.push(other);
        return;
    }
    let (a, b) = (random.below(items.len()), random.below(items.len()));
    match random.below(4) {
        0 => drop(items.remove(a)),
        1 => items.insert(a, items[b].clone()),
        2 => items.swap(a, b),
        _ => items[a] = other,
    }
}

fn of_text(text: &str, random: &mut Random) -> String {
    if random.below(4) == 0 {
        return TEXTS[random.below(TEXTS.len())].to_owned();
    }
    let (len, longest) = (text.len(), text.len() + 64);
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(longest, 0);
    let size = fuzzer_mutate(&mut bytes, len, longest);
    String::from_utf8_lossy(&bytes[..size]).into_owned()
}

fn near(number: &Number, random: &mut Random) -> Value {
    let Some(n) = number.as_i64() else { return literal(random) };
    match random.below(6) {
        0 => n.wrapping_add(1).into(),
        1 => n.wrapping_sub(1).into(),
        2 => n.wrapping_neg().into(),
        3 => n.wrapping_mul(2).into(),
        4 => (n as f64 * 1.5).into(),
        _ => literal(random),
    }
}

fn literal(random: &mut Random) -> Value {
    match random.below(9) {
        0 => Value::Null,
        1 => Value::Bool(random.below(2) == 0),
        2 => Value::Array(Vec::new()),
        3 => Value::Object(Map::new()),
        4 => Value::from(TEXTS[random.below(TEXTS.len())]),
        5 => Value::from([0.0, -0.0, 0.5, 1e-320, 1e308, -1e308][random.below(6)]),
        6 => Value::from(u64::MAX >> random.below(64)),
        7 => Value::from(i64::MIN >> random.below(64)),
        _ => Value::from(random.below(9)),
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// The node so many places from the root, in order.
fn node<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| node(item, at)),
        Value::Object(fields) => fields.values_mut().find_map(|field| node(field, at)),
        _ => None,
    }
}

/// Numbers that follow from a seed: xorshift.
struct Random(u64);

impl Random {
    /// One below `n`, which is above 0.
    fn below(&mut self, n: usize) -> usize {
        // The first few are alike for like seeds.
        for _ in 0..4 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
        }
        (self.0 % n as u64) as usize
    }
}

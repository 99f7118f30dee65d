//! Raw records: JSONL, JSON, CSV, TSV, text, plain and compressed, and what is made of each.
#![no_main]

use data::format::{Kind, Mapper, Mapping};
use data::records::{ReadOptions, Source};
use libfuzzer_sys::fuzz_target;
use temper_fuzz::{readable, write};

const NAMES: [&str; 8] =
    ["r.jsonl", "r.json", "r.csv", "r.tsv", "r.txt", "r.jsonl.gz", "r.jsonl.zst", "r.jsonl"];
const KINDS: [Kind; 6] = [
    Kind::Text,
    Kind::Chat,
    Kind::Completion,
    Kind::Preference,
    Kind::Prompt,
    Kind::PromptPlain,
];

fuzz_target!(|bytes: &[u8]| {
    let Some((form, bytes)) = bytes.split_first() else { return };
    let path = write(NAMES[usize::from(*form) % NAMES.len()], bytes);
    let options = ReadOptions { by_key: form & 0x80 != 0, ..ReadOptions::default() };
    let Some(source) = readable(Source::open(&[path.to_str().expect("a name")], &options)) else {
        return;
    };
    let mappers = KINDS.map(|kind| Mapper::new(kind, &Mapping::default()).expect("no mapping"));
    for record in source.records().take(64) {
        let Some(record) = readable(record) else { continue };
        for mapper in &mappers {
            readable(mapper.map(&record));
        }
    }
});

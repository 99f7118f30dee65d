//! Raw records: JSONL, JSON, CSV, TSV, text, plain and compressed, and what is made of each.
#![no_main]

use std::io::Write as _;

use data::format::{Kind, Mapper, Mapping};
use data::records::{ReadOptions, Source, TextUnit};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use temper_fuzz::mutate::{self, Parts};
use temper_fuzz::{readable, write};

const NAMES: [&str; 8] =
    ["r.jsonl", "r.json", "r.csv", "r.tsv", "r.txt", "r.jsonl.gz", "r.jsonl.zst", "r.jsonl"];
const KINDS: [Kind; 6] =
    [Kind::Text, Kind::Chat, Kind::Completion, Kind::Preference, Kind::Prompt, Kind::PromptPlain];

fuzz_target!(|bytes: &[u8]| {
    let Some((form, bytes)) = bytes.split_first() else { return };
    let name = NAMES[usize::from(form & 7)];
    let path = write(name, &packed(name, form & 8 != 0, bytes));
    let text_unit = match form >> 4 & 3 {
        0 => TextUnit::Document,
        1 => TextUnit::Paragraph,
        2 => TextUnit::Line,
        _ => TextUnit::Until("--".to_owned()),
    };
    let field = (form & 0x40 != 0).then(|| "data".to_owned());
    let options =
        ReadOptions { by_key: form & 0x80 != 0, text_unit, field, ..ReadOptions::default() };
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

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::json(data, size, max_size, seed, Parts { before: 1, separator: Some(b'\n') })
});

/// What a compressed file of this name holds, unless the bytes are to be the file: their checksums would hardly ever fit.
fn packed(name: &str, as_it_is: bool, bytes: &[u8]) -> Vec<u8> {
    match name.rsplit_once('.') {
        Some((_, "gz")) if !as_it_is => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(bytes).expect("memory");
            packer.finish().expect("memory")
        }
        Some((_, "zst")) if !as_it_is => zstd::encode_all(bytes, 1).expect("memory"),
        _ => bytes.to_vec(),
    }
}

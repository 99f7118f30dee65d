//! Parquet files of token rows, pairs and tables, damaged anywhere.
#![no_main]

use artifact::pairs::PairReader;
use artifact::rows::TableReader;
use artifact::tokens::TokenReader;
use data::records::{ReadOptions, Source};
use libfuzzer_sys::fuzz_target;
use temper_fuzz::{allow_guarded_panics, readable, write};

/// Groups and rows that are read of a file.
const SOME: usize = 64;

fuzz_target!(init: allow_guarded_panics(), |bytes: &[u8]| {
    let path = write("rows.parquet", bytes);
    if let Some(reader) = readable(TokenReader::open(&path)) {
        for group in 0..reader.num_row_groups().min(SOME) {
            if let Some(rows) = readable(reader.read_row_group(group)) {
                let _ = (0..rows.len().min(SOME)).map(|row| rows.row(row).0.len()).sum::<usize>();
            }
        }
    }
    if let Some(reader) = readable(PairReader::open(&path)) {
        for group in 0..reader.num_row_groups().min(SOME) {
            if let Some(rows) = readable(reader.read_row_group(group)) {
                let _ = (0..rows.len().min(SOME)).map(|row| rows.row(row).num_tokens()).sum::<usize>();
            }
        }
    }
    if let Some(columns) = readable(TableReader::columns_of(&path))
        && let Some(table) = readable(TableReader::open(&path, &columns, "nothing"))
    {
        table.take(SOME).for_each(|row| drop(readable(row)));
    }
    readable(artifact::prompts::read(&path));
    if let Some(source) = readable(Source::open(&[path.to_str().expect("a name")], &ReadOptions::default())) {
        source.records().take(SOME).for_each(|record| drop(readable(record)));
    }
});

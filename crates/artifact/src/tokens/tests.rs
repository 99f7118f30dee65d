use std::path::PathBuf;

use arrow::array::{ListArray, RecordBatch};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};

use super::*;
use crate::digest;
use crate::error::Error;
use crate::manifest::FORMAT_VERSION;
use crate::parquet_file::ParquetSink;
use crate::rows::{Column, Kind, TableWriter};
use crate::token_file::{Footer, item};

fn schema() -> arrow::datatypes::SchemaRef {
    LAYOUT.schema()
}

fn meta() -> TokenMeta {
    TokenMeta {
        tokenizer: digest::bytes(b"tokenizer"),
        vocab_size: 300,
        seq_len: 4096,
        chat_template: Some(digest::bytes(b"template")),
    }
}

struct File {
    dir: tempfile::TempDir,
}

impl File {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("train.parquet")
    }

    fn write(&self, rows: &[(Vec<u32>, Option<Vec<bool>>)]) -> TokenCounts {
        let mut writer = TokenWriter::create(self.path(), meta()).unwrap();
        for (ids, mask) in rows {
            writer.write_row(ids, mask.as_deref()).unwrap();
        }
        writer.finish().unwrap()
    }

    /// The message of a failure, with the file's path as PATH.
    fn say(&self, error: &Error) -> String {
        error.to_string().replace(&self.path().display().to_string(), "PATH")
    }
}

/// A row of `len` tokens that depends on `seed`, with a mask that is false for the first third.
fn example(seed: u32, len: u32) -> (Vec<u32>, Option<Vec<bool>>) {
    let ids = (0..len).map(|at| (at * 7 + seed * 13) % 300).collect();
    (ids, Some((0..len).map(|at| at >= len / 3).collect()))
}

#[test]
fn rows_come_back_as_they_went_across_row_groups() {
    let file = File::new();
    let rows: Vec<_> = (0..2500).map(|row| example(row, 1 + row % 997)).collect();
    let counts = file.write(&rows);
    let reader = TokenReader::open(file.path()).unwrap();
    assert_eq!(reader.meta(), &meta());
    assert_eq!(reader.counts(), counts);
    assert_eq!(reader.num_rows(), 2500);
    assert_eq!(reader.path(), file.path());
    assert!(reader.num_row_groups() > 1);
    let mut back = Vec::new();
    for group in 0..reader.num_row_groups() {
        let read = reader.read_row_group(group).unwrap();
        assert_eq!(read.len(), reader.row_group_rows(group));
        assert!(read.ids.len() < GROUP_TOKENS + 997);
        for row in 0..read.len() {
            let (ids, mask) = read.row(row);
            back.push((ids.iter().map(|&id| id as u32).collect(), Some(mask.to_vec())));
        }
    }
    assert!(back == rows);
}

#[test]
fn counts_are_those_of_the_rows() {
    let file = File::new();
    let counts = file.write(&[
        (vec![1, 2, 3], None),
        (vec![4, 5], Some(vec![true, false])),
        (vec![6, 7, 8, 9], Some(vec![false, false, true, true])),
    ]);
    // Targets: 2 of the first row (its first token is never one), none, 2.
    assert_eq!(counts, TokenCounts { rows: 3, tokens: 9, targets: 4, longest: 4 });
    let rows = TokenReader::open(file.path()).unwrap().read_row_group(0).unwrap();
    assert_eq!(rows.ids, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(rows.mask, [true, true, true, true, false, false, false, true, true]);
    assert_eq!(rows.offsets, [0, 3, 5, 9]);
}

#[test]
fn many_short_rows_make_groups_of_bounded_length() {
    let file = File::new();
    let rows: Vec<_> = (0..=(GROUP_ROWS as u32)).map(|row| example(row, 2)).collect();
    file.write(&rows);
    let reader = TokenReader::open(file.path()).unwrap();
    assert_eq!(reader.num_row_groups(), 2);
    assert_eq!([reader.row_group_rows(0), reader.row_group_rows(1)], [GROUP_ROWS, 1]);
}

#[test]
fn no_rows_make_a_file_without_groups() {
    let file = File::new();
    assert_eq!(file.write(&[]), TokenCounts::default());
    let reader = TokenReader::open(file.path()).unwrap();
    assert_eq!((reader.num_rows(), reader.num_row_groups()), (0, 0));
}

#[test]
fn the_same_rows_make_the_same_bytes() {
    let rows: Vec<_> = (0..300).map(|row| example(row, 1 + row % 50)).collect();
    let bytes = |_| {
        let file = File::new();
        file.write(&rows);
        fs_err::read(file.path()).unwrap()
    };
    let [a, b] = [0, 1].map(bytes);
    assert!(a == b);
}

#[test]
fn threads_read_groups_of_one_reader() {
    let file = File::new();
    let rows: Vec<_> = (0..20_000).map(|row| example(row, 3)).collect();
    file.write(&rows);
    let reader = TokenReader::open(file.path()).unwrap();
    let alone: Vec<_> = (0..3).map(|group| reader.read_row_group(group).unwrap()).collect();
    std::thread::scope(|scope| {
        for group in [0, 1, 2, 2, 1, 0] {
            let (reader, alone) = (&reader, &alone);
            scope.spawn(move || assert!(reader.read_row_group(group).unwrap() == alone[group]));
        }
    });
}

#[test]
fn rows_that_cannot_be_right_are_refused() {
    let file = File::new();
    let mut writer = TokenWriter::create(file.path(), TokenMeta { seq_len: 3, ..meta() }).unwrap();
    writer.write_row(&[1], None).unwrap();
    let mut fails =
        |ids: &[u32], mask: Option<&[bool]>| file.say(&writer.write_row(ids, mask).unwrap_err());
    assert_eq!(fails(&[], None), "PATH: row 1: has no tokens");
    assert_eq!(
        fails(&[1, 2, 3, 4], None),
        "PATH: row 1: has 4 tokens, more than seq_len 3; cut it or raise seq_len"
    );
    assert_eq!(
        fails(&[299, 300], None),
        "PATH: row 1: token id 300 is not below vocab_size 300; the tokenizer and the vocabulary size do not match"
    );
    assert_eq!(
        fails(&[1, 2], Some(&[true])),
        "PATH: row 1: loss_mask has 1 values for 2 tokens; it needs one for each"
    );
    let counts = writer.finish().unwrap();
    assert_eq!(counts.rows, 1);
    let huge = TokenMeta { vocab_size: 1 << 40, ..meta() };
    assert_eq!(
        file.say(&TokenWriter::create(file.path(), huge).err().unwrap()),
        "PATH: vocab_size 1099511627776 does not fit 32-bit token ids; use a smaller vocabulary"
    );
}

#[test]
fn an_unfinished_writer_leaves_no_file() {
    let file = File::new();
    let mut writer = TokenWriter::create(file.path(), meta()).unwrap();
    writer.write_row(&[1, 2], None).unwrap();
    assert_eq!(writer.counts().tokens, 2);
    drop(writer);
    assert_eq!(fs_err::read_dir(file.dir.path()).unwrap().count(), 0);
}

#[test]
fn files_of_another_kind_say_so_and_what_to_give() {
    let file = File::new();
    let fails = || file.say(&TokenReader::open(file.path()).unwrap_err());
    assert!(fails().contains("PATH"), "a missing file is named");
    let made = "it is truncated, damaged or of another kind: make it again with the stage that wrote it, or restore it";
    fs_err::write(file.path(), "").unwrap();
    let message = fails();
    assert!(
        message.starts_with("PATH: not a readable Parquet file (") && message.ends_with(made),
        "{message}"
    );
    fs_err::write(file.path(), "{\"text\": \"not parquet at all\"}").unwrap();
    let message = fails();
    assert!(
        message.starts_with("PATH: not a readable Parquet file (") && message.ends_with(made),
        "{message}"
    );

    let columns = [Column::required("text", Kind::Text), Column::required("input_ids", Kind::Int)];
    TableWriter::create(file.path(), &columns).unwrap().finish().unwrap();
    let advice = "token rows are made by `data-prep`; give its data/<set>/<split>.parquet";
    assert_eq!(
        fails(),
        format!(
            "PATH: no column `input_ids` of type list<int32>; it has (text: Utf8, input_ids: Int64); {advice}"
        )
    );
    let mut sink = ParquetSink::create(&file.path(), schema()).unwrap();
    sink.write_group(&RecordBatch::new_empty(schema())).unwrap();
    sink.finish(None).unwrap();
    assert_eq!(fails(), format!("PATH: no token metadata in its footer; {advice}"));
    let with_footer = |json: &str| {
        ParquetSink::create(&file.path(), schema()).unwrap().finish(Some(json.to_owned())).unwrap();
        fails()
    };
    assert_eq!(
        with_footer("{\"format_version\": 2}"),
        "PATH: format version 2, but this build reads version 1; run the stage again with this build, or use the build that made it"
    );
    assert_eq!(
        with_footer("{\"format_version\": 1}"),
        format!(
            "PATH: token metadata in its footer cannot be read (missing field `meta`); {advice}"
        )
    );
    let folder = TokenReader::open(file.dir.path()).unwrap_err().to_string();
    assert_eq!(
        folder,
        format!("{}: is a directory, not a Parquet file", file.dir.path().display())
    );
}

#[test]
fn bad_values_in_a_foreign_file_name_the_row() {
    let file = File::new();
    let list = |ids: Vec<i32>, offsets: Vec<i32>| {
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let mask = BooleanArray::from(vec![true; ids.len()]);
        let ids = ListArray::new(
            item(DataType::Int32),
            offsets.clone(),
            Arc::new(Int32Array::from(ids)),
            None,
        );
        let mask = ListArray::new(item(DataType::Boolean), offsets, Arc::new(mask), None);
        RecordBatch::try_new(schema(), vec![Arc::new(ids), Arc::new(mask)]).unwrap()
    };
    let footer =
        Footer { format_version: FORMAT_VERSION, meta: meta(), counts: TokenCounts::default() };
    let fails = |batch: &RecordBatch| {
        let mut sink = ParquetSink::create(&file.path(), schema()).unwrap();
        sink.write_group(&list(vec![1, 2], vec![0, 2])).unwrap();
        sink.write_group(batch).unwrap();
        sink.finish(Some(serde_json::to_string(&footer).unwrap())).unwrap();
        let reader = TokenReader::open(file.path()).unwrap();
        reader.read_row_group(0).unwrap();
        file.say(&reader.read_row_group(1).unwrap_err())
    };
    assert_eq!(
        fails(&list(vec![1, 300], vec![0, 1, 2])),
        "PATH: row 2: token id 300 is not below vocab_size 300"
    );
    assert_eq!(
        fails(&list(vec![-1], vec![0, 1])),
        "PATH: row 1: token id -1 is not below vocab_size 300"
    );
    assert_eq!(
        fails(&list(vec![1], vec![0, 1, 1])),
        "PATH: row 2: has 0 input_ids and 0 loss_mask values"
    );
}

/// Every truncation and many single-byte changes: an error that names the file, or rows of the right
/// shape; never a panic.
#[test]
fn damage_is_an_error_that_names_the_file() {
    let file = File::new();
    let rows: Vec<_> = (0..40).map(|row| example(row, 1 + row % 9)).collect();
    file.write(&rows);
    let good = fs_err::read(file.path()).unwrap();
    let read_all = || -> Result<()> {
        let reader = TokenReader::open(file.path())?;
        for group in 0..reader.num_row_groups() {
            let rows = reader.read_row_group(group)?;
            assert_eq!(rows.ids.len(), rows.mask.len());
            assert_eq!(rows.offsets.last(), Some(&rows.ids.len()));
        }
        Ok(())
    };
    for length in 0..good.len() {
        fs_err::write(file.path(), &good[..length]).unwrap();
        let message = file.say(&read_all().unwrap_err());
        assert!(message.starts_with("PATH: "), "{length}: {message}");
    }
    for at in 0..good.len() {
        for bit in [0x01, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= bit;
            fs_err::write(file.path(), &bad).unwrap();
            if let Err(error) = read_all() {
                let message = file.say(&error);
                assert!(message.starts_with("PATH: "), "{at}: {message}");
            }
        }
    }
}

#[test]
fn a_file_that_shrinks_while_open_is_an_error() {
    let file = File::new();
    file.write(&(0..2000).map(|row| example(row, 100)).collect::<Vec<_>>());
    let reader = TokenReader::open(file.path()).unwrap();
    fs_err::OpenOptions::new().write(true).open(file.path()).unwrap().set_len(8).unwrap();
    let message = file.say(&reader.read_row_group(0).unwrap_err());
    assert!(message.contains("PATH"), "{message}");
}

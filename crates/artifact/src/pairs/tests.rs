use std::path::PathBuf;

use super::*;
use crate::error::Error;
use crate::manifest::FORMAT_VERSION;
use crate::parquet_file::ParquetSink;
use crate::token_file::{Footer, list_column};
use crate::tokens::{TokenReader, TokenWriter};
use crate::{digest, rows};

fn meta() -> TokenMeta {
    TokenMeta {
        tokenizer: digest::bytes(b"tokenizer"),
        vocab_size: 300,
        seq_len: 4096,
        chat_template: Some(digest::bytes(b"template")),
    }
}

/// A pair that owns its parts.
#[derive(Debug, Clone, PartialEq)]
struct Pair {
    parts: [Vec<u32>; 3],
    margin: Option<f32>,
    probability: Option<f32>,
    task: Option<String>,
}

impl Pair {
    fn of(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> Self {
        let parts = [prompt, chosen, rejected].map(<[u32]>::to_vec);
        Self { parts, margin: None, probability: None, task: None }
    }

    fn row(&self) -> PairRow<'_, u32> {
        let [prompt, chosen, rejected] = &self.parts;
        let (margin, probability) = (self.margin, self.probability);
        PairRow { prompt, chosen, rejected, margin, probability, task: self.task.as_deref() }
    }

    fn read(row: &PairRow<'_, i32>) -> Self {
        let ids = |ids: &[i32]| ids.iter().map(|&id| id as u32).collect();
        Self {
            parts: [row.prompt, row.chosen, row.rejected].map(ids),
            margin: row.margin,
            probability: row.probability,
            task: row.task.map(str::to_owned),
        }
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

    fn write(&self, pairs: &[Pair]) -> PairCounts {
        let mut writer = PairWriter::create(self.path(), meta()).unwrap();
        for pair in pairs {
            writer.write_row(&pair.row()).unwrap();
        }
        writer.finish().unwrap()
    }

    /// The message of a failure, with the file's path as PATH.
    fn say(&self, error: &Error) -> String {
        error.to_string().replace(&self.path().display().to_string(), "PATH")
    }
}

/// A pair whose parts and labels depend on `seed`; every fourth has no prompt.
fn example(seed: u32) -> Pair {
    let ids = |length: u32, salt: u32| -> Vec<u32> {
        (0..length).map(|at| (at * 7 + seed * 13 + salt) % 300).collect()
    };
    Pair {
        parts: [ids(seed % 4 * 9, 0), ids(1 + seed % 391, 1), ids(1 + seed % 577, 2)],
        margin: (!seed.is_multiple_of(3)).then_some(seed as f32 / 4.0 - 20.0),
        probability: seed.is_multiple_of(5).then(|| (seed % 11) as f32 / 10.0),
        task: (!seed.is_multiple_of(7)).then(|| format!("종류 {}", seed % 6)),
    }
}

#[test]
fn pairs_come_back_as_they_went_across_row_groups() {
    let file = File::new();
    let pairs: Vec<Pair> = (0..3500).map(example).collect();
    let counts = file.write(&pairs);
    let reader = PairReader::open(file.path()).unwrap();
    assert_eq!(reader.meta(), &meta());
    assert_eq!(reader.counts(), counts);
    assert_eq!(reader.num_rows(), 3500);
    assert_eq!(reader.path(), file.path());
    assert!(reader.num_row_groups() > 1);
    let mut back = Vec::new();
    for group in 0..reader.num_row_groups() {
        let read = reader.read_row_group(group).unwrap();
        assert_eq!(read.len(), reader.row_group_rows(group));
        assert!(read.num_ids() < GROUP_TOKENS + 1000);
        back.extend((0..read.len()).map(|row| Pair::read(&read.row(row))));
    }
    assert!(back == pairs);
}

#[test]
fn counts_take_a_prompt_once_and_the_longer_sequence() {
    let file = File::new();
    let counts = file.write(&[
        Pair::of(&[1, 2, 3], &[4, 5], &[6]),
        Pair::of(&[], &[7], &[8, 9, 10]),
        Pair::of(&[1], &[2], &[3]),
    ]);
    // 3 + 2 + 1, 0 + 1 + 3, 1 + 1 + 1; the longest is the first with its chosen response.
    assert_eq!(counts, PairCounts { rows: 3, tokens: 13, longest: 5 });
    let rows = PairReader::open(file.path()).unwrap().read_row_group(0).unwrap();
    assert_eq!(rows.row(1).rejected, [8, 9, 10]);
    assert_eq!((rows.row(0).num_tokens(), rows.row(0).longest()), (6, 5));
}

#[test]
fn many_short_pairs_make_groups_of_bounded_length() {
    let file = File::new();
    file.write(&vec![Pair::of(&[1], &[2], &[3]); GROUP_ROWS + 1]);
    let reader = PairReader::open(file.path()).unwrap();
    assert_eq!(reader.num_row_groups(), 2);
    assert_eq!([reader.row_group_rows(0), reader.row_group_rows(1)], [GROUP_ROWS, 1]);
}

#[test]
fn no_pairs_make_a_file_without_groups() {
    let file = File::new();
    assert_eq!(file.write(&[]), PairCounts::default());
    let reader = PairReader::open(file.path()).unwrap();
    assert_eq!((reader.num_rows(), reader.num_row_groups()), (0, 0));
}

#[test]
fn the_same_pairs_make_the_same_bytes() {
    let pairs: Vec<Pair> = (0..300).map(example).collect();
    let [a, b] = [0, 1].map(|_| {
        let file = File::new();
        file.write(&pairs);
        fs_err::read(file.path()).unwrap()
    });
    assert!(a == b);
}

#[test]
fn pairs_that_cannot_be_right_are_refused() {
    let file = File::new();
    let meta = TokenMeta { seq_len: 4, ..meta() };
    let mut writer = PairWriter::create(file.path(), meta).unwrap();
    writer.write_row(&Pair::of(&[1, 2], &[3, 4], &[5]).row()).unwrap();
    let mut fails = |pair: Pair| file.say(&writer.write_row(&pair.row()).unwrap_err());
    assert_eq!(
        fails(Pair::of(&[1], &[], &[2])),
        "PATH: row 1: has no chosen_ids; leave out pairs with an empty response"
    );
    assert_eq!(
        fails(Pair::of(&[1], &[2], &[])),
        "PATH: row 1: has no rejected_ids; leave out pairs with an empty response"
    );
    assert_eq!(
        fails(Pair::of(&[1, 2], &[3], &[4, 5, 6])),
        "PATH: row 1: has 5 tokens, more than seq_len 4; cut it or raise seq_len"
    );
    for pair in [Pair::of(&[300], &[1], &[1]), Pair::of(&[], &[1], &[1, 300])] {
        assert_eq!(
            fails(pair),
            "PATH: row 1: token id 300 is not below vocab_size 300; the tokenizer and the vocabulary size do not match"
        );
    }
    let good = Pair::of(&[1], &[2], &[3]);
    assert_eq!(
        fails(Pair { margin: Some(f32::INFINITY), ..good.clone() }),
        "PATH: row 1: margin inf is not a finite number"
    );
    for (probability, shown) in [(1.5, "1.5"), (-0.1, "-0.1"), (f32::NAN, "NaN")] {
        assert_eq!(
            fails(Pair { probability: Some(probability), ..good.clone() }),
            format!("PATH: row 1: probability {shown} is not from 0 to 1")
        );
    }
    assert_eq!(writer.counts().rows, 1);
    assert_eq!(writer.finish().unwrap().rows, 1);
    let huge = TokenMeta { vocab_size: 1 << 40, ..self::meta() };
    assert!(PairWriter::create(file.path(), huge).is_err());
}

#[test]
fn a_file_of_another_kind_is_named_with_what_makes_the_right_one() {
    let file = File::new();
    let advice = "pair rows are made by `data-prep` from a data set of kind = \"preference\"; give its data/<set>/<split>.parquet";
    let fails = || file.say(&PairReader::open(file.path()).unwrap_err());
    TokenWriter::create(file.path(), meta()).unwrap().finish().unwrap();
    assert_eq!(fails(), format!("PATH: holds token rows, not pair rows; {advice}"));
    let columns = [rows::Column::required("chosen", rows::Kind::Text)];
    rows::TableWriter::create(file.path(), &columns).unwrap().finish().unwrap();
    assert_eq!(
        fails(),
        format!(
            "PATH: no column `prompt_ids` of type list<int32>; it has (chosen: Utf8); {advice}"
        )
    );
    ParquetSink::create(&file.path(), LAYOUT.schema()).unwrap().finish(None).unwrap();
    assert_eq!(fails(), format!("PATH: no token metadata in its footer; {advice}"));
    let with_footer = |json: &str| {
        let sink = ParquetSink::create(&file.path(), LAYOUT.schema()).unwrap();
        sink.finish(Some(json.to_owned())).unwrap();
        fails()
    };
    assert_eq!(
        with_footer("{\"format_version\": 2}"),
        "PATH: format version 2, but this build reads version 1; run the stage again with this build, or use the build that made it"
    );
    file.write(&[]);
    assert_eq!(
        file.say(&TokenReader::open(file.path()).unwrap_err()),
        "PATH: holds pair rows, not token rows; token rows are made by `data-prep`; give its data/<set>/<split>.parquet"
    );
}

#[test]
fn bad_values_in_a_foreign_file_name_the_row() {
    let file = File::new();
    let fails = |[prompt, chosen, rejected]: [&[i32]; 3], margin: f32, probability: f32| {
        let lists = [prompt, chosen, rejected]
            .map(|ids| list_column(Arc::new(Int32Array::from(ids.to_vec())), &[0, ids.len()]));
        let mut columns: Vec<ArrayRef> = lists.to_vec();
        columns.push(Arc::new(Float32Array::from(vec![margin])));
        columns.push(Arc::new(Float32Array::from(vec![probability])));
        columns.push(Arc::new(StringArray::from(vec![None::<&str>])));
        let batch = arrow::array::RecordBatch::try_new(LAYOUT.schema(), columns).unwrap();
        let mut sink = ParquetSink::create(&file.path(), LAYOUT.schema()).unwrap();
        sink.write_group(&batch).unwrap();
        let footer =
            Footer { format_version: FORMAT_VERSION, meta: meta(), counts: PairCounts::default() };
        sink.finish(Some(serde_json::to_string(&footer).unwrap())).unwrap();
        file.say(&PairReader::open(file.path()).unwrap().read_row_group(0).unwrap_err())
    };
    assert_eq!(
        fails([&[1], &[300], &[2]], 0.0, 1.0),
        "PATH: row 0: token id 300 is not below vocab_size 300"
    );
    assert_eq!(
        fails([&[-1], &[1], &[2]], 0.0, 1.0),
        "PATH: row 0: token id -1 is not below vocab_size 300"
    );
    assert_eq!(
        fails([&[], &[1], &[]], 0.0, 1.0),
        "PATH: row 0: has no rejected_ids; leave out pairs with an empty response"
    );
    assert_eq!(
        fails([&[], &[1], &[2]], f32::NAN, 1.0),
        "PATH: row 0: margin NaN is not a finite number"
    );
    assert_eq!(fails([&[], &[1], &[2]], 0.0, 2.0), "PATH: row 0: probability 2 is not from 0 to 1");
}

/// Every truncation and many single-byte changes: an error that names the file, or rows of the right
/// shape; never a panic.
#[test]
fn damage_is_an_error_that_names_the_file() {
    let file = File::new();
    let short = |seed: u32| {
        let mut pair = example(seed);
        pair.parts.iter_mut().for_each(|ids| ids.truncate(9));
        pair
    };
    file.write(&(0..30).map(short).collect::<Vec<_>>());
    let good = fs_err::read(file.path()).unwrap();
    let read_all = || -> Result<()> {
        let reader = PairReader::open(file.path())?;
        for group in 0..reader.num_row_groups() {
            let rows = reader.read_row_group(group)?;
            for row in 0..rows.len() {
                assert!(!rows.row(row).chosen.is_empty());
            }
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

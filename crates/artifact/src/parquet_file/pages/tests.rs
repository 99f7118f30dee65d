use std::path::{Path, PathBuf};

use arrow::array::{
    ArrayRef, FixedSizeBinaryArray, Int32Builder, Int64Array, ListArray, ListBuilder, RecordBatch,
    StringArray,
};
use arrow::datatypes::Int32Type;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};

use super::*;
use crate::thrift::PageSize;

/// A file of one row group with the given columns.
fn write(
    dir: &Path,
    columns: Vec<(&str, ArrayRef)>,
    set: impl FnOnce(WriterPropertiesBuilder) -> WriterPropertiesBuilder,
) -> PathBuf {
    let path = dir.join("a.parquet");
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    )
    .unwrap();
    let zstd = Compression::ZSTD(ZstdLevel::try_new(3).unwrap());
    let properties = set(WriterProperties::builder().set_compression(zstd)).build();
    let file = fs_err::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path
}

fn pages(source: &ParquetSource, column: usize) -> (Vec<(u64, PageSize)>, u64) {
    let (mut at, end) = place(source.footer.metadata().row_group(0).column(column)).unwrap();
    let mut pages = Vec::new();
    while let Page::Of(page) = source.page(at, end) {
        pages.push((at, page));
        at += page.length;
    }
    assert_eq!(at, end, "{pages:?}");
    (pages, end)
}

#[test]
fn headers_say_what_the_pages_have() {
    let dir = tempfile::tempdir().unwrap();
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        let numbers: Vec<i64> = (0..100_000).map(|n| n * 7919 % 100_003).collect();
        let columns = vec![("수", Arc::new(Int64Array::from(numbers)) as ArrayRef)];
        let path = write(dir.path(), columns, |p| p.set_writer_version(version));
        let source = ParquetSource::open(&path).unwrap();
        let (pages, _) = pages(&source, 0);
        assert!(pages.len() > 3, "{pages:?}");
        assert_eq!(pages.iter().map(|(_, page)| page.values).sum::<u64>(), 100_000);
        assert!(pages.iter().all(|(_, page)| page.unpacked > 0), "{pages:?}");
        let rows = source.batches(0, 1000).unwrap().map(|batch| batch.unwrap().num_rows());
        assert_eq!(rows.collect::<Vec<_>>(), [1000; 100]);
    }
}

#[test]
fn a_page_header_that_the_library_would_not_come_to_an_end_with_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let numbers: Vec<i64> = (0..100_000).map(|n| n * 7919 % 100_003).collect();
    let columns = vec![("수", Arc::new(Int64Array::from(numbers)) as ArrayRef)];
    let path = write(dir.path(), columns, |p| p);
    let (pages, _) = pages(&ParquetSource::open(&path).unwrap(), 0);
    // The last page's kind becomes a list of two truth values.
    let mut bytes = fs_err::read(&path).unwrap();
    let last = pages.last().unwrap().0 as usize;
    assert_eq!(bytes[last], 0x15);
    bytes[last..last + 2].copy_from_slice(b"\x19\x21");
    fs_err::write(&path, bytes).unwrap();
    let source = ParquetSource::open(&path).unwrap();
    let error = source.batches(0, 1000).err().unwrap().to_string();
    let what = "a page header of the column 수 has a list of truth values, as none has";
    assert!(error.starts_with(&path.display().to_string()) && error.contains(what), "{error}");
}

#[test]
fn pages_said_to_take_more_than_their_file_can_fill_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let columns = vec![("a", Arc::clone(&numbers)), ("b", numbers)];
    let path = write(dir.path(), columns, |p| p);
    let bytes = fs_err::read(&path).unwrap();
    let source = ParquetSource::open(&path).unwrap();
    let starts: Vec<usize> = (0..2).map(|column| pages(&source, column).0[0].0 as usize).collect();
    // The first page of each column becomes one that is said to take so many bytes.
    let claiming = |claim: u64| {
        let mut changed = bytes.clone();
        // Zigzag, seven bits in each of five bytes.
        let byte = |n: u32| (claim << 1 >> (7 * n)) as u8 & 0x7f | if n < 4 { 0x80 } else { 0 };
        let size: Vec<u8> = (0..5).map(byte).collect();
        for &at in &starts {
            // A dictionary page (type 2) of so many bytes, packed into none.
            let header = [&b"\x15\x04\x15"[..], &size, b"\x15\x00\x00"].concat();
            changed[at..at + header.len()].copy_from_slice(&header);
        }
        let path = dir.path().join("b.parquet");
        fs_err::write(&path, changed).unwrap();
        ParquetSource::open(&path).unwrap().bounded_rows(0, 256)
    };
    assert_eq!(claiming(UNPACKED_BYTES / 2).unwrap(), 256);
    let error = claiming(UNPACKED_BYTES / 2 + 1).unwrap_err().to_string();
    assert!(error.contains("b.parquet"), "{error}");
    let what = "pages of row group 0 are said to take 268435458 bytes once unpacked, where its columns take ";
    assert!(error.contains(what) && error.contains(": over 4096 times as much"), "{error}");
}

#[test]
fn fewer_rows_at_once_are_decoded_where_texts_may_be_long() {
    let dir = tempfile::tempdir().unwrap();
    let rows = |bytes: usize, wanted: usize| {
        let text = "가나다라".repeat(bytes / 12);
        let texts: ArrayRef = Arc::new(StringArray::from(vec![text.as_str(); 4]));
        let path =
            write(dir.path(), vec![("말", texts)], |p| p.set_dictionary_page_size_limit(1 << 30));
        let source = ParquetSource::open(&path).unwrap();
        let rows = source.bounded_rows(0, wanted).unwrap();
        let batches: Vec<_> = source.batches(0, wanted).unwrap().map(Result::unwrap).collect();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 4);
        assert!(batches.iter().all(|batch| batch.num_rows() <= rows));
        rows
    };
    assert_eq!(rows(120, 256), 256);
    // A page is a text and the four bytes of its length.
    assert_eq!(rows(12 << 20, 256), 21);
    assert_eq!(rows(12 << 20, 16), 16);
    assert_eq!(rows(144 << 20, 256), 1);
}

#[test]
fn the_longest_row_is_found_by_the_levels() {
    let dir = tempfile::tempdir().unwrap();
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        // Lists of every length up to 40, runs of which are packed or not; one of 777, null and empty ones; small pages.
        let length = |row: usize| match row {
            1234 => 777,
            row => row * 7919 % 41,
        };
        let list = |row: usize| {
            (row % 50 != 3).then(|| {
                (0..length(row)).map(|n| (n % 7 != 0).then_some(n as i32)).collect::<Vec<_>>()
            })
        };
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>((0..3000).map(list));
        // Lists of lists: three, of twenty each, in one row, two levels deep.
        let mut deep = ListBuilder::new(ListBuilder::new(Int32Builder::new()));
        for row in 0..3000 {
            for _ in 0..if row == 77 { 3 } else { 1 } {
                for n in 0..if row == 77 { 20 } else { row % 5 } {
                    deep.values().values().append_value(n);
                }
                deep.values().append(true);
            }
            deep.append(true);
        }
        let columns: Vec<(&str, ArrayRef)> =
            vec![("a", Arc::new(lists)), ("b", Arc::new(deep.finish()))];
        let path = write(dir.path(), columns, |p| {
            p.set_writer_version(version)
                .set_data_page_row_count_limit(100)
                .set_write_batch_size(64)
        });
        let source = ParquetSource::open(&path).unwrap();
        assert_eq!(source.longest_row(0).unwrap(), 777 + 60);
        let (pages, _) = pages(&source, 0);
        assert!(pages.len() > 10, "{pages:?}");
    }
}

#[test]
fn levels_are_runs_and_packed_bits() {
    let longest = |bytes: &[u8], width, values| {
        let mut lengths = Lengths::default();
        lengths.levels(bytes, width, values);
        (lengths.longest, lengths.current)
    };
    // A run of three zeros, a run of five ones: rows of 1, 1 and 6.
    assert_eq!(longest(&[3 << 1, 0, 5 << 1, 1], 1, 8), (6, 6));
    // Eight packed bits, the lowest first: 0 1 1 0 1 1 1 0.
    assert_eq!(longest(&[1 << 1 | 1, 0b0111_0110], 1, 8), (4, 1));
    assert_eq!(longest(&[1 << 1 | 1, 0b0111_0110], 1, 6), (3, 3), "the last two are no values");
    // Two bits each: 0 2 1 0 3 0 0 1.
    assert_eq!(longest(&[1 << 1 | 1, 0b0001_1000, 0b0100_0011], 2, 8), (3, 2));
    // A run longer than the values; a length of three bytes.
    assert_eq!(longest(&[0x80, 0x80, 0x04, 1], 1, 1000), (1000, 1000));
    assert_eq!(longest(&[0x80, 0x80, 0x04, 1], 1, 100_000), (100_000, 100_000));
    // What has no level goes on with the last row.
    assert_eq!(longest(&[2 << 1, 0], 1, 10), (9, 9));
    for cut in [&[][..], &[0x80], &[9 << 1], &[0xff; 11], &[9 << 1 | 1]] {
        assert_eq!(longest(cut, 1, 10), (10, 10), "{cut:?}");
    }
    assert_eq!(longest(&[], 1, 0), (0, 0));
}

#[test]
fn a_row_of_lists_without_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bounded = |lengths: &[usize]| {
        let items = vec![Some(7); lengths.iter().sum()];
        let rows = lengths.iter().scan(items.iter(), |items, &n| {
            Some(Some(items.by_ref().take(n).copied().collect::<Vec<_>>()))
        });
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(rows));
        let path = write(dir.path(), vec![("list", lists)], |p| p);
        assert!(path.metadata().unwrap().len() < 2000, "what is refused is a small file");
        ParquetSource::open(&path).unwrap().bounded_rows(0, 256)
    };
    let limit = LIST_ITEMS as usize;
    assert_eq!(bounded(&[limit - 1, 1]).unwrap(), 256, "so many in all rows");
    assert_eq!(bounded(&[limit / 8, limit - limit / 8, 5]).unwrap(), 1);
    let error = bounded(&[3, limit + 1]).unwrap_err().to_string();
    let what = "a row of row group 0 has lists of 16777217 items, over 16777216";
    assert!(error.contains("a.parquet") && error.contains(what), "{error}");
}

#[test]
fn a_type_of_too_many_bytes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bounded = |length: i32| {
        let null = FixedSizeBinaryArray::try_from_sparse_iter_with_size(
            std::iter::repeat_n(None::<&[u8]>, 1),
            length,
        );
        let path = write(dir.path(), vec![("b", Arc::new(null.unwrap()) as ArrayRef)], |p| p);
        ParquetSource::open(&path).unwrap().bounded_rows(0, 256)
    };
    assert_eq!(bounded(16).unwrap(), 256);
    let error = bounded(FIXED_BYTES as i32 + 1).unwrap_err().to_string();
    let what =
        "a row of row group 0 takes 268435457 bytes by the types of its columns, over 268435456";
    assert!(error.contains(what), "{error}");
}

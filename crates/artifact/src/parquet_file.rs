//! Opening and writing Parquet with errors that name the file: shared by token rows, tables, and the readers of
//! files from elsewhere.

use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{ChunkReader, Length};

use crate::atomic::AtomicFile;
use crate::error::{Error, Result};
use crate::guard;
use crate::thrift;

mod pages;

/// The footer key under which temper keeps its JSON.
const FOOTER_KEY: &str = "temper";

/// A Parquet file being written; it has its name only after [`finish`](Self::finish).
pub(crate) struct ParquetSink {
    writer: ArrowWriter<AtomicFile>,
    path: PathBuf,
}

impl ParquetSink {
    /// Row groups are cut by [`flush`](Self::flush) only; the bytes depend on the rows alone.
    pub(crate) fn create(path: &Path, schema: SchemaRef) -> Result<Self> {
        let level = ZstdLevel::try_new(3).map_err(|e| fault(path, &e))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_created_by(concat!("temper version ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_max_row_group_row_count(None)
            .build();
        let file = AtomicFile::create(path)?;
        let writer =
            ArrowWriter::try_new(file, schema, Some(properties)).map_err(|e| fault(path, &e))?;
        Ok(Self { writer, path: path.to_path_buf() })
    }

    /// Writes a batch as one row group.
    pub(crate) fn write_group(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer
            .write(batch)
            .and_then(|()| self.writer.flush())
            .map_err(|e| fault(&self.path, &e))
    }

    /// Writes the footer with `record` as JSON, and gives the file its name.
    pub(crate) fn finish(mut self, record: Option<String>) -> Result<()> {
        if let Some(json) = record {
            self.writer.append_key_value_metadata(KeyValue::new(FOOTER_KEY.to_owned(), json));
        }
        let mut file = self.writer.into_inner().map_err(|e| fault(&self.path, &e))?;
        file.flush()?;
        Ok(file.commit()?)
    }
}

/// A Parquet file open for reading: the footer in memory, row groups read on demand from any thread.
///
/// Types are Parquet's own. The Arrow schema that writers add to the footer is not looked at: it could only say again what
/// text is (large, a view, a dictionary), and one of a few kilobytes can name fields without end.
#[derive(Debug, Clone)]
pub struct ParquetSource {
    path: PathBuf,
    file: SharedFile,
    footer: ArrowReaderMetadata,
}

impl ParquetSource {
    /// Opens a file and reads its footer.
    ///
    /// # Errors
    /// If it cannot be read, or is not (whole) Parquet; the file is named.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fs_err::File::open(path)?;
        let meta = file.metadata()?;
        if meta.is_dir() {
            let e = io::Error::new(
                io::ErrorKind::IsADirectory,
                format!("{}: is a directory, not a Parquet file", path.display()),
            );
            return Err(e.into());
        }
        let file = SharedFile { len: meta.len(), file: Arc::new(file) };
        check_footer(&file).map_err(|what| Error::Parquet {
            path: path.to_path_buf(),
            what: format!("its footer {what}"),
        })?;
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let footer = guarded(path, || ArrowReaderMetadata::load(&file, options))?;
        check_places(path, &footer, file.len)?;
        Ok(Self { path: path.to_path_buf(), file, footer })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The columns and their types.
    pub fn schema(&self) -> &Schema {
        self.footer.schema()
    }

    /// Temper's JSON in the footer.
    pub(crate) fn record(&self) -> Option<&str> {
        let pairs = self.footer.metadata().file_metadata().key_value_metadata()?;
        pairs.iter().find(|pair| pair.key == FOOTER_KEY)?.value.as_deref()
    }

    pub(crate) fn num_rows(&self) -> u64 {
        (0..self.num_groups()).map(|group| self.group_rows(group) as u64).sum()
    }

    /// How many row groups.
    pub fn num_groups(&self) -> usize {
        self.footer.metadata().num_row_groups()
    }

    pub(crate) fn group_rows(&self, group: usize) -> usize {
        usize::try_from(self.footer.metadata().row_group(group).num_rows()).unwrap_or(0)
    }

    /// The batches of one row group, of at most `rows_at_once` rows each; fewer where rows may be large.
    ///
    /// # Errors
    /// If the group cannot be read, or could take memory out of proportion (`pages`); so says each batch that cannot be.
    pub fn batches(
        &self,
        group: usize,
        rows_at_once: usize,
    ) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
        let rows_at_once = self.bounded_rows(group, rows_at_once.max(1))?;
        let (file, footer) = (self.file.clone(), self.footer.clone());
        let mut reader = guarded(&self.path, || {
            ParquetRecordBatchReaderBuilder::new_with_metadata(file, footer)
                .with_row_groups(vec![group])
                .with_batch_size(rows_at_once)
                .build()
        })?;
        let path = self.path.clone();
        let fail = move |what| Error::Parquet { path: path.clone(), what };
        Ok(std::iter::from_fn(move || match guard::catching(|| reader.next()) {
            Ok(batch) => batch.map(|batch| batch.map_err(|e| fail(e.to_string()))),
            Err(panic) => Some(Err(fail(panic))),
        }))
    }

    /// The columns as `name: type`, for messages.
    pub(crate) fn describe_columns(&self) -> String {
        let fields = self.schema().fields().iter();
        fields.map(|f| format!("{}: {}", f.name(), f.data_type())).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn schema_error(&self, what: String, advice: &str) -> Error {
        Error::Schema { path: self.path.clone(), what, advice: advice.to_owned() }
    }
}

/// Refuses a footer that the library would not come to an end with. What is no footer at all is left to the library's words.
fn check_footer(file: &SharedFile) -> std::result::Result<(), &'static str> {
    const TAIL: u64 = 8;
    let read = |back: u64, length: usize| {
        file.len.checked_sub(back).and_then(|start| file.get_bytes(start, length).ok())
    };
    let Some(tail) = read(TAIL, TAIL as usize).filter(|tail| tail.ends_with(b"PAR1")) else {
        return Ok(());
    };
    let length = tail.iter().take(4).rev().fold(0, |length, &byte| length << 8 | u64::from(byte));
    read(length + TAIL, length as usize).map_or(Ok(()), |footer| thrift::check(&footer))
}

/// Refuses a footer that places columns where they cannot be: the library would panic when it came to read them.
fn check_places(path: &Path, footer: &ArrowReaderMetadata, len: u64) -> Result<()> {
    for column in footer.metadata().row_groups().iter().flat_map(RowGroupMetaData::columns) {
        if place(column).is_none_or(|(_, end)| end > len) {
            let (start, size) = (first_page(column), column.compressed_size());
            let what =
                format!("a column is said to take {size} bytes from {start} of a file of {len}");
            return Err(Error::Parquet { path: path.to_path_buf(), what });
        }
    }
    Ok(())
}

/// Where a column's bytes begin and end.
fn place(column: &ColumnChunkMetaData) -> Option<(u64, u64)> {
    let start = u64::try_from(first_page(column)).ok()?;
    let size = u64::try_from(column.compressed_size()).ok()?;
    Some((start, start.checked_add(size)?))
}

fn first_page(column: &ColumnChunkMetaData) -> i64 {
    column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset())
}

/// Runs a part of the Parquet library, which panics on some damaged files; its errors and panics name the file.
fn guarded<T>(path: &Path, read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    match guard::catching(read) {
        Ok(outcome) => outcome.map_err(|e| fault(path, &e)),
        Err(panic) => Err(Error::Parquet { path: path.to_path_buf(), what: panic }),
    }
}

/// An error of the Parquet library as ours; an I/O error inside it keeps its own words.
fn fault(path: &Path, error: &ParquetError) -> Error {
    if let ParquetError::External(inner) = error
        && let Some(io) = inner.downcast_ref::<io::Error>()
    {
        return Error::Io(io::Error::new(io.kind(), io.to_string()));
    }
    Error::Parquet { path: path.to_path_buf(), what: error.to_string() }
}

/// Reads at offsets, so that clones in several threads do not move each other's position.
#[derive(Debug, Clone)]
struct SharedFile {
    file: Arc<fs_err::File>,
    len: u64,
}

impl Length for SharedFile {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for SharedFile {
    type T = io::BufReader<ReadFrom>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(io::BufReader::new(ReadFrom { file: Arc::clone(&self.file), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.len) {
            let what = format!("bytes {start}+{length} asked of a file of {} bytes", self.len);
            return Err(ParquetError::EOF(what));
        }
        let mut buffer = vec![0; length];
        self.file.file().read_exact_at(&mut buffer, start)?;
        Ok(buffer.into())
    }
}

/// A reader with its own position.
#[derive(Debug)]
struct ReadFrom {
    file: Arc<fs_err::File>,
    at: u64,
}

impl Read for ReadFrom {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.file().read_at(buffer, self.at)?;
        self.at += n as u64;
        // The library takes what is missing at the end for passed over, and goes on to the end of a list of any length.
        if n == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, StringArray};
    use parquet::arrow::arrow_writer::ArrowWriterOptions;

    use super::*;

    #[test]
    fn a_footer_that_the_library_would_not_come_to_an_end_with_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        // A field that no footer has: two billion truth values.
        let footer = b"\x09\x28\xf1\xff\xff\xff\xff\x07\x00";
        let bytes = [b"PAR1", &footer[..], &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat();
        fs_err::write(&path, bytes).unwrap();
        let error = ParquetSource::open(&path).unwrap_err().to_string();
        assert!(error.starts_with(&path.display().to_string()), "{error}");
        assert!(error.contains("its footer has a list of truth values"), "{error}");
    }

    #[test]
    fn an_arrow_schema_in_the_footer_is_not_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let text: ArrayRef = Arc::new(StringArray::from(vec!["하나", "two"]));
        let batch = RecordBatch::try_from_iter([("text", text)]).unwrap();
        let file = fs_err::File::create(&path).unwrap();
        let options = ArrowWriterOptions::new().with_skip_arrow_metadata(true);
        let mut writer = ArrowWriter::try_new_with_options(file, batch.schema(), options).unwrap();
        writer.write(&batch).unwrap();
        let lie = KeyValue::new("ARROW:schema".to_owned(), "no schema".to_owned());
        writer.append_key_value_metadata(lie);
        writer.close().unwrap();

        let source = ParquetSource::open(&path).unwrap();
        let rows: Vec<_> = source.batches(0, 10).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].column(0), batch.column(0));
    }

    #[test]
    fn reading_beyond_the_end_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs_err::write(&path, b"abc").unwrap();
        let file = SharedFile { file: Arc::new(fs_err::File::open(&path).unwrap()), len: 3 };
        let mut reader = file.get_read(1).unwrap();
        let mut buffer = [0; 2];
        reader.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"bc");
        assert_eq!(reader.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

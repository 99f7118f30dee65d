//! Opening and writing Parquet with errors that name the file: shared by token rows and tables.

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
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{ChunkReader, Length};

use crate::atomic::AtomicFile;
use crate::error::{Error, Result};
use crate::guard;

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
#[derive(Debug, Clone)]
pub(crate) struct ParquetSource {
    path: PathBuf,
    file: SharedFile,
    footer: ArrowReaderMetadata,
}

impl ParquetSource {
    pub(crate) fn open(path: &Path) -> Result<Self> {
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
        let footer = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())
            .map_err(|e| fault(path, &e))?;
        check_places(path, &footer, file.len)?;
        Ok(Self { path: path.to_path_buf(), file, footer })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn schema(&self) -> &Schema {
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

    pub(crate) fn num_groups(&self) -> usize {
        self.footer.metadata().num_row_groups()
    }

    pub(crate) fn group_rows(&self, group: usize) -> usize {
        usize::try_from(self.footer.metadata().row_group(group).num_rows()).unwrap_or(0)
    }

    /// The batches of one row group.
    pub(crate) fn batches(
        &self,
        group: usize,
        rows_at_once: usize,
    ) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(
            self.file.clone(),
            self.footer.clone(),
        );
        let reader = builder
            .with_row_groups(vec![group])
            .with_batch_size(rows_at_once.max(1))
            .build()
            .map_err(|e| fault(&self.path, &e))?;
        let (path, mut reader) = (self.path.clone(), reader);
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

/// Refuses a footer that places columns where they cannot be: the library would panic when it came to read them.
fn check_places(path: &Path, footer: &ArrowReaderMetadata, len: u64) -> Result<()> {
    for column in footer.metadata().row_groups().iter().flat_map(RowGroupMetaData::columns) {
        let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
        let size = column.compressed_size();
        let end = u64::try_from(start).ok().zip(u64::try_from(size).ok());
        if end.and_then(|(start, size)| start.checked_add(size)).is_none_or(|end| end > len) {
            let what =
                format!("a column is said to take {size} bytes from {start} of a file of {len}");
            return Err(Error::Parquet { path: path.to_path_buf(), what });
        }
    }
    Ok(())
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
        Ok(n)
    }
}

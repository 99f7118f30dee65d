//! CSV and TSV.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use csv::{ByteRecord, ErrorKind, ReaderBuilder, Terminator};
use serde_json::{Map, Value};

use super::open::Stream;
use super::text::to_text;
use super::{FileRecords, MAX_RECORD_BYTES, Origin, Record, RecordError, open_stream};

/// Counts the bytes read since the last row, so that a lost quote cannot swallow a large file.
struct Metered {
    stream: Stream,
    since_row: usize,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since_row > MAX_RECORD_BYTES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        let read = self.stream.read(buffer)?;
        self.since_row += read;
        Ok(read)
    }
}

/// Opens a delimited file. With `columns` the file has no header row.
pub(super) fn open(
    path: &Path,
    delimiter: u8,
    columns: Option<&[String]>,
) -> Result<FileRecords, RecordError> {
    let stream = open_stream(path)?;
    let file: Arc<Path> = Arc::from(path);
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(delimiter == b',')
        // Taking CRLF for a terminator, the reader would count lines wrongly; see `read`.
        .terminator(Terminator::Any(b'\n'))
        .has_headers(false)
        .flexible(true)
        .from_reader(Metered { stream, since_row: 0 });
    let mut row = ByteRecord::new();
    let columns = if let Some(columns) = columns {
        columns.to_vec()
    } else {
        if !read(&mut reader, &mut row, &file, 0)? {
            return Ok(Box::new(std::iter::empty()));
        }
        header(&row, &file)?
    };
    check_columns(&columns, path)?;
    let mut seen = 0;
    Ok(Box::new(std::iter::from_fn(move || {
        match read(&mut reader, &mut row, &file, seen) {
            Err(error) => return Some(Err(error)),
            Ok(false) => return None,
            Ok(true) => seen += 1,
        }
        let line = row.position().map_or(0, csv::Position::line);
        Some(to_record(&row, &columns, Origin { file: Arc::clone(&file), row: line }))
    })))
}

fn read(
    reader: &mut csv::Reader<Metered>,
    row: &mut ByteRecord,
    file: &Arc<Path>,
    seen: u64,
) -> Result<bool, RecordError> {
    loop {
        reader.get_mut().since_row = 0;
        let more = read_once(reader, row, file, seen)?;
        if !(more && row.len() == 1 && &row[0] == b"\r") {
            if row.iter().next_back().is_some_and(|last| last.ends_with(b"\r")) {
                row_without_cr(row);
            }
            return Ok(more);
        }
    }
}

/// Takes the `\r` of a CRLF off the last field.
fn row_without_cr(row: &mut ByteRecord) {
    let position = row.position().cloned();
    let last = row.len() - 1;
    let mut trimmed = ByteRecord::with_capacity(row.as_slice().len(), row.len());
    for (index, field) in row.iter().enumerate() {
        trimmed.push_field(if index == last { &field[..field.len() - 1] } else { field });
    }
    trimmed.set_position(position);
    *row = trimmed;
}

fn read_once(
    reader: &mut csv::Reader<Metered>,
    row: &mut ByteRecord,
    file: &Arc<Path>,
    seen: u64,
) -> Result<bool, RecordError> {
    reader.read_byte_record(row).map_err(|error| {
        let message = error.to_string();
        match error.into_kind() {
            ErrorKind::Io(source) if source.kind() == io::ErrorKind::FileTooLarge => {
                let origin = Origin { file: Arc::clone(file), row: reader.position().line() };
                RecordError::TooLarge { origin }
            }
            ErrorKind::Io(source) => reader.get_ref().stream.error(source, seen),
            _ => RecordError::Io { path: file.to_path_buf(), source: io::Error::other(message) },
        }
    })
}

/// Column names; an empty name (what pandas writes for its index) becomes `column_1`, ...
fn header(row: &ByteRecord, file: &Arc<Path>) -> Result<Vec<String>, RecordError> {
    let origin = Origin { file: Arc::clone(file), row: 1 };
    row.iter()
        .enumerate()
        .map(|(index, name)| {
            let name = to_text(name, origin.clone())?;
            let name = name.trim();
            Ok(if name.is_empty() { format!("column_{}", index + 1) } else { name.to_owned() })
        })
        .collect()
}

fn check_columns(columns: &[String], path: &Path) -> Result<(), RecordError> {
    for (index, column) in columns.iter().enumerate() {
        if columns[..index].contains(column) {
            return Err(RecordError::DuplicateColumn {
                path: path.to_owned(),
                column: column.clone(),
            });
        }
    }
    Ok(())
}

fn to_record(row: &ByteRecord, columns: &[String], origin: Origin) -> Result<Record, RecordError> {
    if row.len() != columns.len() {
        return Err(RecordError::Ragged { origin, expected: columns.len(), found: row.len() });
    }
    let mut fields = Map::new();
    for (column, value) in columns.iter().zip(row) {
        fields.insert(column.clone(), Value::String(to_text(value, origin.clone())?));
    }
    Ok(Record { fields, origin })
}

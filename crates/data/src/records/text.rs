//! Plain text: documents, paragraphs, lines, or what a line of its own divides.

use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::open::Stream;
use super::{
    DOCUMENT_PIECE_BYTES, FileRecords, MAX_RECORD_BYTES, Origin, Record, RecordError, TextUnit,
    open_stream,
};

/// Reads lines without their ends and counts them.
pub(super) struct Lines {
    pub(super) stream: Stream,
    file: Arc<Path>,
    buffer: Vec<u8>,
    /// 1-based number of the line last read.
    pub(super) line: u64,
}

impl Lines {
    pub(super) fn new(stream: Stream) -> Self {
        let file = Arc::from(stream.path());
        Self { stream, file, buffer: Vec::new(), line: 0 }
    }

    pub(super) fn origin(&self, row: u64) -> Origin {
        Origin { file: Arc::clone(&self.file), row }
    }

    /// The next line as bytes, without `\n` or `\r\n`; `None` at the end.
    pub(super) fn next_bytes(&mut self) -> Option<Result<&[u8], RecordError>> {
        self.buffer.clear();
        let limit = MAX_RECORD_BYTES as u64 + 1;
        let read = self.stream.by_ref().take(limit).read_until(b'\n', &mut self.buffer);
        match read {
            Err(source) => return Some(Err(self.stream.error(source, self.line))),
            Ok(0) => return None,
            Ok(_) => {}
        }
        self.line += 1;
        if self.buffer.len() > MAX_RECORD_BYTES {
            return Some(Err(RecordError::TooLarge { origin: self.origin(self.line) }));
        }
        if self.buffer.last() == Some(&b'\n') {
            self.buffer.pop();
            if self.buffer.last() == Some(&b'\r') {
                self.buffer.pop();
            }
        }
        Some(Ok(&self.buffer))
    }

    /// The next line as text.
    fn next_text(&mut self) -> Option<Result<String, RecordError>> {
        let origin = self.origin(self.line + 1);
        Some(self.next_bytes()?.and_then(|bytes| to_text(bytes, origin)))
    }
}

/// Checks UTF-8.
pub(super) fn to_text(bytes: &[u8], origin: Origin) -> Result<String, RecordError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(RecordError::Utf8 { origin, at: error.valid_up_to() }),
    }
}

struct TextRecords {
    lines: Lines,
    unit: TextUnit,
}

impl TextRecords {
    fn record(&self, text: String, row: u64) -> Record {
        let mut fields = Map::new();
        fields.insert("text".to_owned(), Value::String(text));
        Record { fields, origin: self.lines.origin(row) }
    }

    fn next_block(&mut self) -> Option<Result<Record, RecordError>> {
        let mut text = String::new();
        let mut first = 0;
        loop {
            let line = match self.lines.next_text() {
                None => break,
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(line)) => line,
            };
            if matches!(&self.unit, TextUnit::Until(end) if line.trim() == end.trim()) {
                if text.is_empty() {
                    continue;
                }
                break;
            }
            if line.trim().is_empty() {
                if self.unit == TextUnit::Paragraph && !text.is_empty() {
                    break;
                }
                if text.is_empty() {
                    continue;
                }
            }
            if text.is_empty() {
                first = self.lines.line;
            }
            text.push_str(&line);
            text.push('\n');
            if self.unit == TextUnit::Line || text.len() >= DOCUMENT_PIECE_BYTES {
                break;
            }
        }
        if text.is_empty() {
            return None;
        }
        if self.unit != TextUnit::Document {
            text.pop();
        }
        Some(Ok(self.record(text, first)))
    }
}

impl Iterator for TextRecords {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_block()
    }
}

pub(super) fn open(path: &Path, unit: TextUnit) -> Result<FileRecords, RecordError> {
    let lines = Lines::new(open_stream(path)?);
    Ok(Box::new(TextRecords { lines, unit }))
}

/// The first byte that is not white space, without consuming it.
pub(super) fn peek(stream: &mut Stream) -> io::Result<Option<u8>> {
    loop {
        let buffer = stream.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let found = buffer.get(blank).copied();
        stream.consume(blank);
        if found.is_some() {
            return Ok(found);
        }
    }
}

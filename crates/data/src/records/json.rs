//! JSON Lines, JSON arrays and sequences of JSON objects, streamed one value at a time.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::open::Stream;
use super::text::{Lines, peek, to_text};
use super::{FileRecords, MAX_RECORD_BYTES, Origin, Record, RecordError, open_stream};

/// One object a line; blank lines are skipped. A file that begins with `[` is read as an array.
pub(super) fn open_lines(path: &Path) -> Result<FileRecords, RecordError> {
    let mut stream = open_stream(path)?;
    // Looking past blank lines would lose their count, so only the very first byte decides.
    let first = stream.fill_buf().map(|buffer| buffer.first().copied());
    if first.map_err(|source| stream.error(source, 0))? == Some(b'[') {
        return Ok(Box::new(Values::new(stream, None, false)?));
    }
    let mut lines = Lines::new(stream);
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            let origin = lines.origin(lines.line + 1);
            return Some(match lines.next_bytes()? {
                Err(error) => Err(error),
                Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => continue,
                Ok(bytes) => to_record(bytes, origin),
            });
        }
    })))
}

/// The elements of the top-level array, of the array under `field`, or the top-level objects; with `by_key` the values of the
/// top-level object, or of the object under `field`.
pub(super) fn open(
    path: &Path,
    field: Option<&str>,
    by_key: bool,
) -> Result<FileRecords, RecordError> {
    Ok(Box::new(Values::new(open_stream(path)?, field, by_key)?))
}

fn to_record(bytes: &[u8], origin: Origin) -> Result<Record, RecordError> {
    let text = to_text(bytes, origin.clone())?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(fields)) => Ok(Record { fields, origin }),
        Ok(other) => Err(RecordError::NotObject { origin, found: type_name(&other) }),
        Err(error) => Err(RecordError::Json { origin, message: error.to_string() }),
    }
}

/// The JSON name of a value's type, with an article.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Mode {
    /// Inside `[ ... ]` or, where that is `}`, inside `{ ... }`; `separated` after the first value.
    Inside {
        end: u8,
        separated: bool,
    },
    /// Objects one after another.
    Sequence,
    Done,
}

/// Cuts a stream into top-level values by tracking brackets and strings only, so that a value that
/// is bad inside does not hide the ones after it.
struct Values {
    stream: Stream,
    file: Arc<Path>,
    mode: Mode,
    in_field: bool,
    row: u64,
}

impl Values {
    fn new(stream: Stream, field: Option<&str>, by_key: bool) -> Result<Self, RecordError> {
        let file = Arc::from(stream.path());
        let mut values = Self { stream, file, mode: Mode::Sequence, in_field: false, row: 0 };
        match (values.peek()?, field) {
            (Some(_), Some(field)) => values.enter_field(field, by_key)?,
            (Some(b'{'), None) if by_key => values.enter(b'}'),
            (Some(other), None) if by_key => {
                return Err(values.structure("`{`, because by_key is set,", other));
            }
            (Some(b'['), None) => values.enter(b']'),
            (Some(_), None) => {}
            (None, _) => values.mode = Mode::Done,
        }
        Ok(values)
    }

    fn origin(&self) -> Origin {
        Origin { file: Arc::clone(&self.file), row: self.row }
    }

    fn peek(&mut self) -> Result<Option<u8>, RecordError> {
        let row = self.row;
        peek(&mut self.stream).map_err(|source| self.stream.error(source, row))
    }

    fn structure(&self, expected: &'static str, found: u8) -> RecordError {
        let found = if found.is_ascii() { char::from(found) } else { char::REPLACEMENT_CHARACTER };
        RecordError::JsonStructure { origin: self.origin(), expected, found }
    }

    /// Steps over the bracket that `end` closes.
    fn enter(&mut self, end: u8) {
        self.stream.consume(1);
        self.mode = Mode::Inside { end, separated: false };
    }

    /// Reads a key and its colon.
    fn key(&mut self) -> Result<String, RecordError> {
        match self.peek()? {
            Some(b'"') => {}
            Some(other) => return Err(self.structure("a key", other)),
            None => return Err(RecordError::JsonCut { origin: self.origin() }),
        }
        let key = self.cut()?;
        let key = serde_json::from_slice(&key).map_err(|error| RecordError::Json {
            origin: self.origin(),
            message: error.to_string(),
        })?;
        match self.peek()? {
            Some(b':') => self.stream.consume(1),
            Some(other) => return Err(self.structure("`:`", other)),
            None => return Err(RecordError::JsonCut { origin: self.origin() }),
        }
        Ok(key)
    }

    /// Walks the keys of the top-level object up to the array (with `by_key`, the object) under `field`.
    fn enter_field(&mut self, field: &str, by_key: bool) -> Result<(), RecordError> {
        let (begin, end) = if by_key { (b'{', b'}') } else { (b'[', b']') };
        let mut found = Vec::new();
        let no_field = |values: &Self, found: &[String]| RecordError::NoField {
            path: values.file.to_path_buf(),
            field: field.to_owned(),
            by_key,
            found: if found.is_empty() { "none".to_owned() } else { found.join(", ") },
        };
        match self.peek()? {
            Some(b'{') => self.stream.consume(1),
            _ => return Err(no_field(self, &found)),
        }
        loop {
            match self.peek()? {
                Some(b',') => self.stream.consume(1),
                Some(b'}') => return Err(no_field(self, &found)),
                _ => {
                    let key = self.key()?;
                    if self.peek()? == Some(begin) && key == field {
                        self.enter(end);
                        self.in_field = true;
                        return Ok(());
                    }
                    self.cut()?;
                    found.push(key);
                }
            }
        }
    }

    /// Moves to the start of the next value; false at the end.
    fn advance(&mut self) -> Result<bool, RecordError> {
        let next = self.peek()?;
        match (self.mode, next) {
            (Mode::Done, _) | (Mode::Sequence, None) => Ok(false),
            (Mode::Sequence, Some(b'{')) => Ok(true),
            (Mode::Sequence, Some(other)) => {
                self.row += 1;
                Err(self.structure("`{`", other))
            }
            (Mode::Inside { end, .. }, Some(found)) if found == end => {
                self.stream.consume(1);
                self.mode = Mode::Done;
                match self.peek()? {
                    Some(other) if !self.in_field => Err(self.structure("the end", other)),
                    _ => Ok(false),
                }
            }
            (Mode::Inside { end, separated: false }, Some(_)) => {
                self.mode = Mode::Inside { end, separated: true };
                self.reach_value(end)
            }
            (Mode::Inside { end, separated: true }, Some(b',')) => {
                self.stream.consume(1);
                match self.peek()? {
                    Some(found) if found == end => Err(self.structure("a record", found)),
                    _ => self.reach_value(end),
                }
            }
            (Mode::Inside { end: b'}', .. }, Some(other)) => {
                Err(self.structure("`,` or `}`", other))
            }
            (Mode::Inside { .. }, Some(other)) => Err(self.structure("`,` or `]`", other)),
            (Mode::Inside { .. }, None) => {
                self.row += 1;
                Err(RecordError::JsonCut { origin: self.origin() })
            }
        }
    }

    /// Steps over the key that stands before a value of an object.
    fn reach_value(&mut self, end: u8) -> Result<bool, RecordError> {
        if end == b'}' {
            self.key()?;
        }
        Ok(true)
    }

    /// Reads the bytes of one value.
    fn cut(&mut self) -> Result<Vec<u8>, RecordError> {
        let mut bytes = Vec::new();
        let mut scan = Scan::default();
        loop {
            let row = self.row;
            let buffer = match self.stream.fill_buf() {
                Ok(buffer) => buffer,
                Err(source) => return Err(self.stream.error(source, row)),
            };
            if buffer.is_empty() {
                if scan.depth == 0 && !scan.in_string && !bytes.is_empty() {
                    return Ok(bytes);
                }
                return Err(RecordError::JsonCut { origin: self.origin() });
            }
            let (taken, done) = scan.feed(buffer);
            bytes.extend_from_slice(&buffer[..taken]);
            self.stream.consume(taken);
            if done {
                return Ok(bytes);
            }
            if bytes.len() > MAX_RECORD_BYTES {
                return Err(RecordError::TooLarge { origin: self.origin() });
            }
        }
    }

    fn step(&mut self) -> Result<Option<Record>, RecordError> {
        if !self.advance()? {
            return Ok(None);
        }
        self.row += 1;
        let bytes = self.cut()?;
        to_record(&bytes, self.origin()).map(Some)
    }
}

impl Iterator for Values {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// Bracket and string state while cutting a value.
#[derive(Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
    started: bool,
}

impl Scan {
    /// How many bytes of `buffer` belong to the value, and whether it ends there.
    fn feed(&mut self, buffer: &[u8]) -> (usize, bool) {
        for (index, &byte) in buffer.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return (index + 1, true);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' | b',' if self.depth == 0 => return (index, true),
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (index + 1, true);
                    }
                }
                _ if self.depth == 0 && self.started && byte.is_ascii_whitespace() => {
                    return (index, true);
                }
                _ => {}
            }
            self.started = true;
        }
        (buffer.len(), false)
    }
}

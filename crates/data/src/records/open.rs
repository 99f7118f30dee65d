//! Finds files and opens them through the decompressor their name asks for.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::{FileFormat, ReadOptions, RecordError};

/// The size of read buffers, in bytes.
const BUFFER_BYTES: usize = 128 << 10;

/// Resolves paths, folders and patterns; see [`super::Source::open`].
pub(super) fn resolve(
    specs: &[String],
    options: &ReadOptions,
) -> Result<Vec<(PathBuf, FileFormat)>, RecordError> {
    let mut files: Vec<(PathBuf, FileFormat)> = Vec::new();
    for spec in specs {
        for path in expand(spec, options)? {
            let Some(format) = options.format.or_else(|| format_of(&path)) else {
                return Err(RecordError::UnknownFormat { path });
            };
            if !files.iter().any(|(known, _)| *known == path) {
                files.push((path, format));
            }
        }
    }
    Ok(files)
}

fn expand(spec: &str, options: &ReadOptions) -> Result<Vec<PathBuf>, RecordError> {
    let path = Path::new(spec);
    if path.is_dir() {
        let mut found = Vec::new();
        walk(path, options, &mut found)?;
        if found.is_empty() {
            return Err(RecordError::EmptyFolder { path: path.to_owned() });
        }
        return Ok(found);
    }
    if path.exists() {
        return Ok(vec![path.to_owned()]);
    }
    let matches = glob::glob(spec).map_err(|error| RecordError::Pattern {
        spec: spec.to_owned(),
        message: error.to_string(),
    })?;
    let mut found = Vec::new();
    for entry in matches {
        let entry = entry.map_err(|error| RecordError::Io {
            path: error.path().to_owned(),
            source: error.into(),
        })?;
        if entry.is_file() {
            found.push(entry);
        }
    }
    if found.is_empty() {
        return Err(RecordError::NoMatch { spec: spec.to_owned() });
    }
    found.sort();
    Ok(found)
}

fn walk(folder: &Path, options: &ReadOptions, found: &mut Vec<PathBuf>) -> Result<(), RecordError> {
    let at = |source| RecordError::Io { path: folder.to_owned(), source };
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(at)? {
        entries.push(entry.map_err(at)?.path());
    }
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        let notes = strip_compression(&path).extension().is_some_and(|ext| ext == "md");
        if hidden {
            continue;
        }
        if path.is_dir() {
            walk(&path, options, found)?;
        } else if options.format.is_some() || (format_of(&path).is_some() && !notes) {
            found.push(path);
        }
    }
    Ok(())
}

fn strip_compression(path: &Path) -> PathBuf {
    match path.extension().and_then(|ext| ext.to_str()) {
        Some("gz" | "zst") => path.with_extension(""),
        _ => path.to_owned(),
    }
}

/// The format that a file's name promises, ignoring `.gz` and `.zst`.
pub(super) fn format_of(path: &Path) -> Option<FileFormat> {
    let stem = strip_compression(path);
    Some(match stem.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "txt" | "text" | "md" => FileFormat::Text,
        "jsonl" | "ndjson" => FileFormat::Jsonl,
        "json" => FileFormat::Json,
        "csv" => FileFormat::Csv,
        "tsv" => FileFormat::Tsv,
        "parquet" if stem == path => FileFormat::Parquet,
        _ => return None,
    })
}

/// A decompressed byte stream that knows what to call its codec in errors.
pub(super) struct Stream {
    inner: Box<dyn BufRead + Send>,
    path: PathBuf,
    codec: Option<&'static str>,
}

impl Stream {
    /// The file's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Turns a read error into one that says whether the compression or the disk is at fault.
    pub(super) fn error(&self, source: io::Error, row: u64) -> RecordError {
        match self.codec {
            Some(codec) => RecordError::Compressed {
                path: self.path.clone(),
                codec,
                row,
                message: source.to_string(),
            },
            None => RecordError::Io { path: self.path.clone(), source },
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}

/// Opens `path`, through gzip or zstd when its name ends so, and drops a byte order mark.
pub(super) fn open_stream(path: &Path) -> Result<Stream, RecordError> {
    let io_error = |source| RecordError::Io { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(io_error)?.into_parts().0;
    let (inner, codec): (Box<dyn Read + Send>, _) =
        match path.extension().and_then(|ext| ext.to_str()) {
            Some("gz") => {
                let buffered = BufReader::with_capacity(BUFFER_BYTES, file);
                (Box::new(flate2::bufread::MultiGzDecoder::new(buffered)), Some("gzip"))
            }
            Some("zst") => {
                (Box::new(zstd::stream::read::Decoder::new(file).map_err(io_error)?), Some("zstd"))
            }
            _ => (Box::new(file), None),
        };
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, inner);
    let mut head = Vec::with_capacity(3);
    let read = reader.by_ref().take(3).read_to_end(&mut head);
    let mut stream = Stream { inner: Box::new(io::empty()), path: path.to_owned(), codec };
    read.map_err(|source| stream.error(source, 0))?;
    if head == [0xEF, 0xBB, 0xBF] {
        head.clear();
    }
    stream.inner = Box::new(Cursor::new(head).chain(reader));
    Ok(stream)
}

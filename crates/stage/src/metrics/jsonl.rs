//! `metrics.jsonl`: one object a line, appended.

use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

use fs_err as fs;
use serde_json::{Map, Number, Value};

/// The file, open at its end.
#[derive(Debug)]
pub(super) struct JsonLines {
    file: fs::File,
}

impl JsonLines {
    /// Opens the file and cuts it where a run resumed from step `resumed` goes on: before the first line
    /// that is of a later step or was left half-written. `None` empties it.
    pub(super) fn open(path: &Path, resumed: Option<u64>) -> std::io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let end = match resumed {
            Some(step) => end_of_step(&mut file, step)?,
            None => 0,
        };
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        Ok(Self { file })
    }

    /// Appends a line in one write.
    pub(super) fn write(
        &mut self,
        step: u64,
        values: &[(&str, f64)],
        time: f64,
    ) -> std::io::Result<()> {
        let number = |value| Number::from_f64(value).map_or(Value::Null, Value::Number);
        let mut object = Map::new();
        object.insert("step".to_owned(), step.into());
        for (name, value) in values {
            object.insert((*name).to_owned(), number(*value));
        }
        object.insert("time".to_owned(), number((time * 1e3).round() / 1e3));
        let mut line = serde_json::to_vec(&object)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

/// The length of the part that ends with the last whole line of a step up to `step`.
fn end_of_step(file: &mut fs::File, step: u64) -> std::io::Result<u64> {
    let mut reader = BufReader::new(file);
    let mut end = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        let object: Option<Value> = serde_json::from_slice(&line).ok();
        let found = object.as_ref().and_then(|object| object.get("step")?.as_u64());
        match found {
            Some(found) if found <= step && line.ends_with(b"\n") => end += length as u64,
            _ => return Ok(end),
        }
    }
}

//! TensorBoard event files: scalars and texts.
//!
//! A file is a sequence of records, each `length: u64 | masked crc of length: u32 | event | masked crc of
//! event: u32`, little-endian; an event is a protocol buffer of TensorFlow's `event.proto`, of which
//! the messages here are the part that scalars and texts need.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err as fs;
use prost::Message;

const PREFIX: &str = "events.out.tfevents.";
/// `DT_STRING` of TensorFlow's `types.proto`.
const DT_STRING: i32 = 7;
/// `START` of `SessionLog.SessionStatus`.
const SESSION_START: i32 = 1;

/// `tensorflow.Event`; at most one of the optional parts is there.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<TensorProto>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<SummaryMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryMetadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    tensor_shape: Option<TensorShape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShape {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {
    #[prost(int64, tag = "1")]
    size: i64,
}

/// Writes one event file; every call leaves whole records on disk.
#[derive(Debug)]
pub struct EventWriter {
    out: BufWriter<fs::File>,
}

impl EventWriter {
    /// Starts a file in `dir`. `None` removes the event files of earlier runs there; `Some(s)` leaves
    /// them and tells TensorBoard to forget what they say of steps after `s`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(dir: &Path, resumed: Option<u64>) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        if resumed.is_none() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        let now = now();
        let file =
            fs::OpenOptions::new().write(true).create_new(true).open(dir.join(file_name(now)))?;
        let mut writer = Self { out: BufWriter::new(file) };
        let version = Some("brain.Event:2".to_owned());
        writer.record(&Event { wall_time: now, file_version: version, ..Event::default() })?;
        if let Some(step) = resumed {
            let session_log = Some(SessionLog { status: SESSION_START });
            let step = step as i64 + 1;
            writer.record(&Event { wall_time: now, step, session_log, ..Event::default() })?;
        }
        writer.out.flush()?;
        Ok(writer)
    }

    /// Writes one event with a scalar for each name. `wall_time` is in seconds since 1970.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)], wall_time: f64) -> io::Result<()> {
        let value = |(tag, value): &(&str, f64)| SummaryValue {
            tag: (*tag).to_owned(),
            simple_value: Some(*value as f32),
            ..SummaryValue::default()
        };
        self.summary(step, values.iter().map(value).collect(), wall_time)
    }

    /// Writes one event with a text. `wall_time` is in seconds since 1970.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn text(&mut self, tag: &str, step: u64, text: &str, wall_time: f64) -> io::Result<()> {
        let plugin = PluginData { plugin_name: "text".to_owned() };
        let value = SummaryValue {
            tag: tag.to_owned(),
            simple_value: None,
            tensor: Some(TensorProto {
                dtype: DT_STRING,
                tensor_shape: Some(TensorShape { dim: vec![Dim { size: 1 }] }),
                string_val: vec![text.as_bytes().to_vec()],
            }),
            metadata: Some(SummaryMetadata { plugin_data: Some(plugin) }),
        };
        self.summary(step, vec![value], wall_time)
    }

    fn summary(&mut self, step: u64, value: Vec<SummaryValue>, wall_time: f64) -> io::Result<()> {
        let summary = Some(Summary { value });
        self.record(&Event { wall_time, step: step as i64, summary, ..Event::default() })?;
        self.out.flush()
    }

    fn record(&mut self, event: &Event) -> io::Result<()> {
        let event = event.encode_to_vec();
        let length = (event.len() as u64).to_le_bytes();
        self.out.write_all(&length)?;
        self.out.write_all(&masked_crc(&length).to_le_bytes())?;
        self.out.write_all(&event)?;
        self.out.write_all(&masked_crc(&event).to_le_bytes())
    }
}

/// CRC-32C, rotated and shifted so that a CRC of data with CRCs in it stays good.
pub(super) fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// As TensorBoard's own: time, host, process, count; files are read in the order of their names.
fn file_name(now: f64) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let host: String =
        crate::lock::host().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    let host = if host.is_empty() { "localhost" } else { &host };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{:010}.{host}.{}.{count}", now as u64, std::process::id())
}

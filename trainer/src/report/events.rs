//! TensorBoard event files, as far as scalars, histograms and hyperparameters need them.
//!
//! A file is a sequence of records `length u64 | masked crc32c of the length | data | masked crc32c of the data`, each
//! holding one `Event` message of TensorFlow's event.proto. The few fields used are encoded by hand: the crates that
//! offer this bring a protobuf compiler and some hundred dependencies for the few lines below.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
}

impl EventWriter {
    /// Starts `events.out.tfevents.SECONDS.sae` in `dir`; a name that exists is not touched.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let mut seconds = now() as u64;
        let file = loop {
            match File::create_new(dir.join(format!("events.out.tfevents.{seconds}.sae"))) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => seconds += 1,
                other => break other?,
            }
        };
        let mut writer = EventWriter { file };
        let mut version = Vec::new();
        put_bytes(&mut version, 3, b"brain.Event:2");
        writer.record(0, version)?;
        Ok(writer)
    }

    /// Says that a process goes on from `step`: TensorBoard then drops what earlier files have of that step and later ones, since
    /// they are made again.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn session_start(&mut self, step: u64) -> io::Result<()> {
        const START: u64 = 1;
        let mut log = Vec::new();
        put_integer(&mut log, 1, START);
        let mut rest = Vec::new();
        put_bytes(&mut rest, 7, &log);
        self.record(step, rest)
    }

    /// Writes what a plugin of TensorBoard reads: bytes of its own, beside a tensor without values.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn plugin(&mut self, tag: &str, plugin: &str, content: &[u8]) -> io::Result<()> {
        const FLOAT: u64 = 1;
        let mut data = Vec::new();
        put_bytes(&mut data, 1, plugin.as_bytes());
        put_bytes(&mut data, 2, content);
        let mut metadata = Vec::new();
        put_bytes(&mut metadata, 1, &data);
        // No numbers: one dimension of size 0.
        let (mut shape, mut tensor) = (Vec::new(), Vec::new());
        put_bytes(&mut shape, 2, &[]);
        put_integer(&mut tensor, 1, FLOAT);
        put_bytes(&mut tensor, 2, &shape);
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, tag.as_bytes());
        put_bytes(&mut entry, 8, &tensor);
        put_bytes(&mut entry, 9, &metadata);
        let mut summary = Vec::new();
        put_bytes(&mut summary, 1, &entry);
        self.summary(0, &summary)
    }

    /// Writes scalars of one step.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, tag.as_bytes());
            put_key(&mut entry, 2, 5);
            entry.extend_from_slice(&(*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &entry);
        }
        self.summary(step, &summary)
    }

    /// Writes a histogram: `counts[i]` values lie at or below `limits[i]` and above the limit before.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn histogram(&mut self, step: u64, tag: &str, limits: &[f64], counts: &[f64]) -> io::Result<()> {
        let mut histogram = Vec::new();
        put_double(&mut histogram, 1, limits.first().copied().unwrap_or(0.0));
        put_double(&mut histogram, 2, limits.last().copied().unwrap_or(0.0));
        put_double(&mut histogram, 3, counts.iter().sum());
        put_packed(&mut histogram, 6, limits);
        put_packed(&mut histogram, 7, counts);
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, tag.as_bytes());
        put_bytes(&mut entry, 5, &histogram);
        let mut summary = Vec::new();
        put_bytes(&mut summary, 1, &entry);
        self.summary(step, &summary)
    }

    fn summary(&mut self, step: u64, summary: &[u8]) -> io::Result<()> {
        let mut rest = Vec::new();
        put_bytes(&mut rest, 5, summary);
        self.record(step, rest)
    }

    fn record(&mut self, step: u64, rest: Vec<u8>) -> io::Result<()> {
        let mut event = Vec::with_capacity(rest.len() + 20);
        put_double(&mut event, 1, now());
        put_integer(&mut event, 2, step);
        event.extend_from_slice(&rest);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_crc(&length));
        record.extend_from_slice(&event);
        record.extend_from_slice(&masked_crc(&event));
        self.file.write_all(&record)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

/// An integer, a truth value or a member of an enumeration.
pub(crate) fn put_integer(out: &mut Vec<u8>, field: u64, value: u64) {
    put_key(out, field, 0);
    put_varint(out, value);
}

/// Bytes, a text or a message.
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_key(out, field, 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_packed(out: &mut Vec<u8>, field: u64, values: &[f64]) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    put_bytes(out, field, &bytes);
}

//! One entry of the log: how it is written, and how people read it.

use crate::console::printable;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt::{self, Write};
use tracing::field::{Field, Visit};

/// Longest value of a field, in characters.
const WIDTH: usize = 4096;

/// One entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since 1970, by the host's clock.
    pub time_ms: u64,
    /// `ERROR`, `WARN`, `INFO`, `DEBUG`, `TRACE`.
    pub level: String,
    /// Which part of the program said it; `kernel` for the kernel.
    pub target: String,
    /// In words.
    pub message: String,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub fields: Map<String, Value>,
}

impl Entry {
    /// Of something that the program says.
    pub(super) fn of_event(event: &tracing::Event<'_>) -> Self {
        let mut entry = Self::now(event.metadata().level().as_str(), event.metadata().target());
        event.record(&mut Collect(&mut entry));
        entry
    }

    /// An entry without words yet.
    pub(super) fn now(level: &str, target: &str) -> Self {
        let time = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self {
            time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            level: level.into(),
            target: target.into(),
            message: String::new(),
            fields: Map::new(),
        }
    }
}

/// One line for people, without control characters: some of it comes from the guest and from strangers.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.time_ms / 86_400_000, self.time_ms % 86_400_000);
        let (year, month, day) = date(days);
        let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
        let (second, ms) = (ms / 1000 % 60, ms % 1000);
        let mut line = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z ");
        let who = if self.target == KERNEL { "kernel: " } else { "" };
        write!(line, "{:>5} {who}{}", self.level, self.message)?;
        for (name, value) in &self.fields {
            match value {
                Value::String(text) => write!(line, " {name}={text:?}")?,
                value => write!(line, " {name}={value}")?,
            }
        }
        f.write_str(&printable(&line, 4 * WIDTH))
    }
}

/// Target of what the kernel says.
pub(super) const KERNEL: &str = "kernel";

/// Year, month and day of a day counted from 1970-01-01 (days from the civil calendar, by eras of 400 years from March on).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day - (153 * march + 2) / 5 + 1)
}

struct Collect<'a>(&'a mut Entry);

impl Collect<'_> {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.0.message = text,
            (name, value) => drop(self.0.fields.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Collect<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Value::String(cut(format!("{value:?}"))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::String(cut(value.to_owned())));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }
}

fn cut(text: String) -> String {
    match text.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line_that_steers_no_terminal() {
        let entry = Entry {
            time_ms: 1_767_225_600_123,
            level: "WARN".into(),
            target: "host_os::guest".into(),
            message: "QEMU\nsays \x1b[31m".into(),
            fields: serde_json::from_str(r#"{"line":"a\nb","count":3}"#).unwrap(),
        };
        assert_eq!(entry.to_string(), r#"2026-01-01T00:00:00.123Z  WARN QEMUsays [31m count=3 line="a\nb""#);
        let kernel = Entry { target: KERNEL.into(), ..entry.clone() };
        assert!(kernel.to_string().starts_with("2026-01-01T00:00:00.123Z  WARN kernel: QEMU"), "{kernel}");
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
        assert_eq!((date(0), date(11_016), date(59)), ((1970, 1, 1), (2000, 2, 29), (1970, 3, 1)));
        assert_eq!(cut("é".repeat(5000)).chars().count(), WIDTH + 1);
    }
}

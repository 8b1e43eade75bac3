//! Log files of bounded size: the guest's console and the agent's own log.

use crate::node::open_options;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How many old files are kept beside the current one: `.1` (newest) to `.3`.
pub const KEPT: usize = 3;
/// Size at which a file is put aside, in bytes.
pub const LIMIT: u64 = 4 << 20;

/// A file that is put aside when it reaches its limit. A guest that prints without end costs
/// `(KEPT + 1) * limit` bytes of disk and no more.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl RotatingFile {
    /// Opens for appending.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = open_options().append(true).create(true).open(path)?;
        let written = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, written, limit })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let old = |number: usize| {
            let mut name = self.path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..KEPT).rev() {
            match fs::rename(old(number), old(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, old(1))?;
        *self = Self::open(&self.path, self.limit)?;
        Ok(())
    }
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written >= self.limit {
            self.rotate()?;
        }
        let room = usize::try_from(self.limit - self.written).unwrap_or(usize::MAX);
        let count = self.file.write(&bytes[..bytes.len().min(room)])?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The last lines of a stream, for error messages.
#[derive(Debug, Default)]
pub struct Tail {
    lines: VecDeque<String>,
    current: Vec<u8>,
}

impl Tail {
    const LINES: usize = 12;
    const WIDTH: usize = 400;

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.current.len() < Self::WIDTH {
                self.current.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let line = printable(&String::from_utf8_lossy(&std::mem::take(&mut self.current)), Self::WIDTH);
        if line.trim().is_empty() {
            return;
        }
        if self.lines.len() == Self::LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The last whole or broken-off line with something in it.
    pub fn last(&mut self) -> Option<&str> {
        self.end_line();
        self.lines.back().map(String::as_str)
    }
}

/// `text` without control characters, which could otherwise steer the terminal that shows it, and not longer
/// than `limit` characters. Everything that comes out of the guest goes through here before a person sees it.
pub fn printable(text: &str, limit: usize) -> String {
    text.chars()
        .map(|c| if c == '\t' { ' ' } else { c })
        .filter(|c| {
            !c.is_control()
                && !matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        })
        .take(limit)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_rotate_at_their_limit_and_only_three_old_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = RotatingFile::open(&path, 10).unwrap();
        for number in 0..6 {
            log.write_all(format!("line {number:04}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("console.log"), "line 0005\n");
        assert_eq!(read("console.log.1"), "line 0004\n");
        assert_eq!(read("console.log.3"), "line 0002\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
        // A new agent goes on where the last one stopped.
        drop(log);
        let mut log = RotatingFile::open(&path, 10).unwrap();
        log.write_all(b"x").unwrap();
        assert_eq!(read("console.log.1"), "line 0005\n");
        // What is longer than a file is spread over several.
        log.write_all(&[b'y'; 25]).unwrap();
        assert_eq!(read("console.log.2"), "xyyyyyyyyy");
        assert_eq!(read("console.log"), "yyyyyy");
    }

    #[test]
    fn the_tail_is_printable_and_bounded() {
        let mut tail = Tail::default();
        tail.push(b"first\r\n\x1b[31mKernel panic\x07 - not ");
        tail.push(b"syncing\r\n   \r\n");
        assert_eq!(tail.last(), Some("[31mKernel panic - not syncing"));
        tail.push(&[b'a'; 100_000]);
        assert_eq!(tail.last().map(str::len), Some(Tail::WIDTH));
        for _ in 0..1000 {
            tail.push(b"line\n");
        }
        assert!(tail.lines.len() <= Tail::LINES);
    }
}

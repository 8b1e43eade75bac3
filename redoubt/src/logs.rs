//! `redoubt logs`.

use crate::node::NodeDirArg;
use crate::operator::Remote;
use crate::output::{Failure, Output, Reply, print_line};
use clap::Args;
use host_os::console::printable;
use host_os::log::{Entry, Reader};
use serde_json::json;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How far back from the end lines are looked for, in bytes.
const WINDOW: u64 = 1 << 20;
/// Longest line that is shown, in characters.
const WIDTH: usize = 4096;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    node: NodeDirArg,
    #[command(flatten)]
    remote: Remote,
    /// The guest's console instead of the agent's log
    #[arg(long)]
    console: bool,
    /// Go on with what comes
    #[arg(long, short, conflicts_with = "node")]
    follow: bool,
    /// Number of lines from the end
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    lines: usize,
}

pub(crate) fn run(args: &Logs, output: &Output) -> Result<Reply, Failure> {
    let (file, format) = match (args.console, output.json) {
        (true, _) => ("console", "text"),
        (false, false) => ("agent", "text"),
        (false, true) => ("agent", "json"),
    };
    let path = format!("/v1/logs?file={file}&lines={}&format={format}", args.lines);
    if let Some(text) = args.remote.get(&path)? {
        let show =
            |line: &str| if args.console { print(line, output) } else { print_line(&printable(line, WIDTH)) };
        String::from_utf8_lossy(&text).lines().all(show);
        return Ok(Reply::silent());
    }
    let node = args.node.node()?;
    let path = if args.console { node.console_log() } else { node.agent_log() };
    let failed = |error: &io::Error| {
        Failure::new("no-log", format!("cannot read {}: {error}; has a node run here?", path.display()))
    };
    let shown = if args.console { console(&path, args, output) } else { agent(&path, args, output) };
    shown.map_err(|error| failed(&error))?;
    Ok(Reply::silent())
}

/// Shows entries of the agent's log; ends when nobody reads any more.
fn agent(path: &Path, args: &Logs, output: &Output) -> io::Result<()> {
    let mut log = Reader::open(path)?;
    let mut entries = log.read()?;
    entries.drain(..entries.len().saturating_sub(args.lines));
    let show = |entry: &Entry| match output.json {
        true => print_line(&serde_json::to_string(entry).unwrap_or_default()),
        false => print_line(&entry.to_string()),
    };
    while entries.iter().all(show) && args.follow {
        std::thread::sleep(Duration::from_millis(500));
        entries = log.read()?;
    }
    Ok(())
}

fn console(path: &Path, args: &Logs, output: &Output) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut lines = Lines::default();
    let last = tail(&mut file, args.lines, &mut lines)?;
    let mut read_by_someone = last.iter().all(|line| print(line, output));
    while read_by_someone && args.follow {
        std::thread::sleep(Duration::from_millis(200));
        let renamed = was_put_aside(&file, path);
        let mut show = |line: &str| read_by_someone = read_by_someone && print(line, output);
        lines.read(&mut file, &mut show)?;
        // What the old file still got was read just now.
        if renamed {
            file = File::open(path)?;
        }
    }
    Ok(())
}

/// A log is renamed when it is full; then its name leads to another file.
fn was_put_aside(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(open), Ok(named)) => open.ino() != named.ino(),
        // For an instant there is none of that name.
        _ => false,
    }
}

fn tail(file: &mut File, count: usize, lines: &mut Lines) -> io::Result<Vec<String>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
    let mut all = Vec::new();
    lines.read(file, &mut |line| all.push(line.to_owned()))?;
    Ok(all.split_off(all.len().saturating_sub(count)))
}

fn print(line: &str, output: &Output) -> bool {
    // The console is the guest's, and a guest may try to steer the terminal.
    let line = printable(line, WIDTH);
    print_line(&if output.json { json!({ "line": line }).to_string() } else { line })
}

/// Cuts a growing file into lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn read(&mut self, file: &mut File, line: &mut dyn FnMut(&str)) -> io::Result<()> {
        file.read_to_end(&mut self.0)?;
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let whole: Vec<u8> = self.0.drain(..=end).collect();
            line(String::from_utf8_lossy(&whole[..end]).trim_end_matches('\r'));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_has_whole_lines_and_the_rest_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "one\r\ntwo\nthree\nfo").unwrap();
        let mut file = File::open(&path).unwrap();
        let mut lines = Lines::default();
        assert_eq!(tail(&mut file, 2, &mut lines).unwrap(), ["two", "three"]);
        std::fs::write(&path, "one\r\ntwo\nthree\nfour\n").unwrap();
        let mut next = Vec::new();
        lines.read(&mut file, &mut |line| next.push(line.to_owned())).unwrap();
        assert_eq!(next, ["four"]);
        assert!(!was_put_aside(&file, &path));
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        assert!(!was_put_aside(&file, &path));
        std::fs::write(&path, "").unwrap();
        assert!(was_put_aside(&file, &path));
    }
}

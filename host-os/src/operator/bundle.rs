//! The support bundle: a tar file of what helps to understand a node's trouble. No secrets are in it: the host has none
//! of the guest's, and its own key is left out.

use crate::console::KEPT;
use crate::node::NodeDir;
use crate::samples::Sample;
use crate::status::{Status, metrics};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Most that is taken of one log file: whole files of [`crate::console::LIMIT`] and a bit. Of the audit log it is the beginning.
const MAX_LOG: u64 = crate::console::LIMIT + 4096;

/// Packs a bundle.
pub fn pack(status: &Status, history: &[Sample], node: &NodeDir, now_unix_s: u64) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now_unix_s);
        tar.append_data(&mut header, Path::new("redoubt-support").join(name), bytes)
    };
    add("status.json", &serde_json::to_vec_pretty(status)?)?;
    add("history.json", &serde_json::to_vec(history)?)?;
    add("metrics.txt", metrics(status).as_bytes())?;
    if let Some(record) = node.read_record() {
        add("agent.json", &serde_json::to_vec_pretty(&record)?)?;
    }
    match last_entries(&node.agent_log(), usize::MAX, true) {
        Ok(text) => add("agent.jsonl", text.as_bytes())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let audit = crate::upgrade::Store::of(node).log();
    for path in with_older(&node.console_log()).into_iter().chain([node.candidate_log(), audit]) {
        match File::open(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                file.take(MAX_LOG).read_to_end(&mut bytes)?;
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                add(&name, &bytes)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    tar.into_inner()
}

fn with_older(log: &Path) -> Vec<PathBuf> {
    let older = (1..=KEPT).map(|number| {
        let mut name = log.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    });
    std::iter::once(log.to_owned()).chain(older).collect()
}

/// The last entries of the agent's log, a line each: for people, or as JSON.
pub fn last_entries(path: &Path, count: usize, json: bool) -> io::Result<String> {
    let entries = crate::log::last(path, count)?;
    let line = |entry: crate::log::Entry| match json {
        true => serde_json::to_string(&entry).unwrap_or_default() + "\n",
        false => format!("{entry}\n"),
    };
    Ok(entries.into_iter().map(line).collect())
}

/// The last lines of a log, at most 1 MiB of them.
pub fn last_lines(path: &Path, lines: usize) -> io::Result<String> {
    use io::{Seek, SeekFrom};
    const WINDOW: u64 = 1 << 20;
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(WINDOW);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(WINDOW).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    // In the middle of a long file the first line is a part of one.
    let first = all.len().saturating_sub(lines).max(usize::from(start > 0));
    Ok(all.get(first..).unwrap_or_default().iter().map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_holds_status_and_logs_and_no_key() {
        let directory = tempfile::tempdir().unwrap();
        let node = NodeDir::at(directory.path());
        crate::log::tests::write(&node.agent_log(), &["before", "now"]);
        std::fs::write(directory.path().join("console.log.2"), "before\n").unwrap();
        crate::upgrade::Store::of(&node).audit(7, "fetching").unwrap();
        std::fs::write(node.host_key(), "secret").unwrap();
        let bytes = pack(&crate::status::tests::example(), &[Sample::default()], &node, 7).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut names: Vec<String> = Vec::new();
        for entry in archive.entries().unwrap() {
            names.push(entry.unwrap().path().unwrap().display().to_string());
        }
        let expected =
            ["status.json", "history.json", "metrics.txt", "agent.jsonl", "console.log.2", "audit.log"];
        assert_eq!(names, expected.map(|name| format!("redoubt-support/{name}")));
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
    }

    #[test]
    fn the_last_lines_are_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "a\nb\nc\n").unwrap();
        assert_eq!(last_lines(&path, 2).unwrap(), "b\nc\n");
        assert_eq!(last_lines(&path, 9).unwrap(), "a\nb\nc\n");
        std::fs::write(&path, format!("{}\nend\n", "x".repeat(2 << 20))).unwrap();
        assert_eq!(last_lines(&path, 9).unwrap(), "end\n");
    }
}

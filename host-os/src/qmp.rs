//! The little of QEMU's control protocol (QMP) that the agent needs: why QEMU stops, and a request to quit.

use crate::guest::{Report, Reporter};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Longest line that is read, in bytes. QEMU's own are far shorter.
const LINE: u64 = 64 * 1024;

/// What QEMU tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// QEMU is about to end; the cause in QEMU's words ("guest-shutdown", "guest-reset", "host-signal", ...).
    Shutdown(String),
    /// QEMU stopped the guest's processors, for instance because the disk image could not be written.
    Paused(String),
}

#[derive(Deserialize)]
struct Line {
    event: Option<String>,
    #[serde(default)]
    data: Data,
}

#[derive(Deserialize, Default)]
struct Data {
    reason: Option<String>,
}

/// Understands one line; `None` for what does not matter.
pub fn parse(line: &str) -> Option<Notice> {
    let line: Line = serde_json::from_str(line).ok()?;
    let reason = line.data.reason.unwrap_or_default();
    match line.event?.as_str() {
        "SHUTDOWN" => Some(Notice::Shutdown(reason)),
        "BLOCK_IO_ERROR" => Some(Notice::Paused(format!("QEMU cannot write the disk image: {reason}"))),
        _ => None,
    }
}

/// Talks to QEMU until it is gone: passes notices on, and asks QEMU to quit when told so.
pub(crate) async fn serve(
    stream: UnixStream,
    mut quit: mpsc::Receiver<()>,
    reporter: &Reporter,
) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    // QEMU accepts no command before this one.
    writer.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").await?;
    let mut line = Vec::new();
    loop {
        let mut limited = (&mut reader).take(LINE);
        tokio::select! {
            read = limited.read_until(b'\n', &mut line) => {
                if read? == 0 {
                    return Ok(());
                }
                if let Some(found) = parse(&String::from_utf8_lossy(&line)) {
                    reporter.send(Report::Qemu(found)).await;
                }
                line.clear();
            }
            Some(()) = quit.recv() => writer.write_all(b"{\"execute\":\"quit\"}\n").await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_understood_and_the_rest_is_passed_over() {
        let shutdown = r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-reset"}}"#;
        assert_eq!(parse(shutdown), Some(Notice::Shutdown("guest-reset".into())));
        for other in [r#"{"return":{}}"#, r#"{"event":"RESUME"}"#, r#"{"QMP":{"version":{}}}"#, "", "[]", "{"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}

//! Does KVM really boot a guest here? `/dev/kvm` alone says little: some hosts offer one on which no guest
//! gets far. So the probe boots the release's own kernel without an initrd and waits for the kernel to say
//! that it found none; then processor, memory, interrupts and timers have all worked.

use crate::launch::{Accel, probe_arguments};
use crate::node::write_atomically;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::OpenOptions;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long the kernel may take to get there.
pub const PROBE_LIMIT: Duration = Duration::from_secs(8);

/// The operator's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// KVM where the probe shows that it boots, else TCG.
    #[default]
    Auto,
    /// KVM, without a probe.
    Kvm,
    /// TCG.
    Tcg,
}

/// The answer of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// See [`cache_key`].
    pub key: String,
    /// Whether KVM boots this kernel.
    pub works: bool,
    /// In words.
    pub detail: String,
}

/// An answer holds for one kernel until the host boots again: its hypervisor may be another one then.
pub fn cache_key(kernel_sha256: &[u8; 32], host_boot_id: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(kernel_sha256);
    hash.update(host_boot_id.trim().as_bytes());
    hex::encode(hash.finalize())
}

/// What the kernel prints when it has started all of itself and finds no first program.
pub fn has_booted(console: &str) -> bool {
    console.contains("Linux version")
        && ["Unable to mount root fs", "No working init found", "Attempted to kill init"]
            .iter()
            .any(|end| console.contains(end))
}

/// Decides, with an answer from `cache` when it fits.
pub fn choose(
    choice: Choice,
    cache: &Path,
    kernel_sha256: &[u8; 32],
    probe: impl FnOnce() -> Result<(), String>,
) -> (Accel, String) {
    match choice {
        Choice::Kvm => return (Accel::Kvm, "as asked".into()),
        Choice::Tcg => return (Accel::Tcg, "as asked".into()),
        Choice::Auto => {}
    }
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let key = cache_key(kernel_sha256, &boot_id);
    let cached = std::fs::read(cache).ok().and_then(|bytes| serde_json::from_slice::<Answer>(&bytes).ok());
    let answer = cached.filter(|answer| answer.key == key).unwrap_or_else(|| {
        let (works, detail) = match probe() {
            Ok(()) => (true, "KVM boots this kernel".to_owned()),
            Err(detail) => (false, detail),
        };
        let answer = Answer { key, works, detail };
        let kept = serde_json::to_vec(&answer).map_err(Into::into);
        if let Err(error) = kept.and_then(|bytes| write_atomically(cache, &bytes)) {
            tracing::warn!(%error, path = %cache.display(), "cannot keep the KVM probe's answer");
        }
        answer
    });
    (if answer.works { Accel::Kvm } else { Accel::Tcg }, answer.detail)
}

/// Boots `kernel` under KVM; the error says how far it got. Blocks for at most [`PROBE_LIMIT`].
pub fn probe(qemu: &Path, firmware: &Path, kernel: &Path) -> Result<(), String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| format!("/dev/kvm: {error}"))?;
    // One pipe for both, so that QEMU's own complaint is the last line when it gives up by itself.
    let pipe = || -> std::io::Result<_> {
        let (reader, writer) = std::io::pipe()?;
        Ok((reader, writer.try_clone()?, writer))
    };
    let (output, stdout, stderr) = pipe().map_err(|error| format!("cannot make a pipe: {error}"))?;
    let mut command = Command::new(qemu);
    command.args(probe_arguments(firmware, kernel)).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", qemu.display()))?;
    // The command holds the pipe's other end; with it open, the end of QEMU would not end the reading.
    drop(command);
    let (sender, chunks) = mpsc::channel();
    let reader = std::thread::spawn(move || read_chunks(output, &sender));
    let end = Instant::now() + PROBE_LIMIT;
    let mut console = String::new();
    while let Ok(chunk) = chunks.recv_timeout(end.saturating_duration_since(Instant::now())) {
        console.push_str(&String::from_utf8_lossy(&chunk));
        if has_booted(&console) || console.len() > 1 << 20 {
            break;
        }
    }
    // Whatever came of it, this QEMU has done its work. It may already be gone.
    let _ = child.kill();
    let _ = child.wait();
    let _ = reader.join();
    if has_booted(&console) {
        return Ok(());
    }
    let last = console.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
    let last = crate::console::printable(last, 120);
    Err(format!(
        "KVM does not boot this kernel within {} s; the console ends with: {last}",
        PROBE_LIMIT.as_secs()
    ))
}

fn read_chunks(mut output: std::io::PipeReader, sender: &mpsc::Sender<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer) {
        if sender.send(buffer[..count].to_vec()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const ONE: [u8; 32] = [1; 32];
    const TWO: [u8; 32] = [2; 32];

    #[test]
    fn the_key_changes_with_kernel_and_host_boot_only() {
        let key = cache_key(&[1; 32], "boot-1\n");
        assert_eq!(key, cache_key(&[1; 32], "boot-1"));
        assert_ne!(key, cache_key(&[2; 32], "boot-1"));
        assert_ne!(key, cache_key(&[1; 32], "boot-2"));
    }

    #[test]
    fn a_kernel_that_starts_and_hangs_has_not_booted() {
        assert!(!has_booted("early console in setup code\r\nProbing EDD (edd=off to disable)... ok\r\n"));
        assert!(!has_booted("Linux version 6.12.1\r\nKernel panic - not syncing: Fatal exception\r\n"));
        assert!(has_booted(
            "Linux version 6.12.1\r\nKernel panic - not syncing: VFS: Unable to mount root fs on"
        ));
    }

    #[test]
    fn the_answer_is_kept_for_the_same_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("kvm-probe.json");
        let runs = Cell::new(0);
        let ask = |kernel: &[u8; 32], answer: Result<(), String>| {
            choose(Choice::Auto, &cache, kernel, || {
                runs.set(runs.get() + 1);
                answer
            })
            .0
        };
        assert_eq!(ask(&ONE, Err("hangs".into())), Accel::Tcg);
        assert_eq!(ask(&ONE, Ok(())), Accel::Tcg);
        assert_eq!(runs.get(), 1);
        assert_eq!(ask(&TWO, Ok(())), Accel::Kvm);
        assert_eq!(ask(&TWO, Err("hangs".into())), Accel::Kvm);
        assert_eq!(runs.get(), 2);
        std::fs::write(&cache, "{").unwrap();
        assert_eq!(ask(&TWO, Err("hangs".into())), Accel::Tcg);
        assert_eq!(choose(Choice::Kvm, &cache, &TWO, || unreachable!()).0, Accel::Kvm);
        assert_eq!(runs.get(), 3);
    }
}

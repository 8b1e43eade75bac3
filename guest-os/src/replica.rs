//! Starting the replica: its configuration, its secret, its NVRAM, and the lines by which it says that it lives.

use crate::Event;
use crate::command_line::Profile;
use crate::devices::Nvram;
use crate::evidence::SOCKET;
use crate::sandbox::{CONFIGURATION, LAUNCH};
use crate::vault::Key;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::unistd::{Pid, pipe2};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;

/// Longest line that is read from the replica.
const MAX_LINE: u64 = 64;

/// What the replica is started with, the same each time.
#[derive(Debug)]
pub struct Replica {
    /// The node's secret.
    pub secret: Key,
    /// Medium of the heap.
    pub nvram: Nvram,
    /// TCP port of the HTTPS interface.
    pub port: u16,
    /// In the virtual profile the replica's log goes to the console; in production it could hold what the host
    /// must not see.
    pub profile: Profile,
}

/// A sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It answers. The heap's commits up to this one are durable.
    Ready(u64),
    /// Its executor is not stuck. As before.
    Alive(u64),
}

impl Replica {
    /// Starts the program, whose heap must have reached the commit `at_least`. Its signs of life become events that carry
    /// `start`.
    pub fn spawn(&self, start: u32, at_least: u64, events: Sender<Event>) -> io::Result<Pid> {
        // Pipes close themselves in the child, except the two ends that it inherits.
        let (secret, secret_writer) = pipe2(OFlag::O_CLOEXEC)?;
        let (ready_reader, ready) = pipe2(OFlag::O_CLOEXEC)?;
        // 32 bytes fit the pipe's buffer: nobody has to read yet.
        File::from(secret_writer).write_all(&*self.secret)?;
        let text = configuration(self, at_least, secret.as_raw_fd(), ready.as_raw_fd());
        fs::write(CONFIGURATION, text)?;
        for inherited in [secret.as_fd(), ready.as_fd(), self.nvram.bar.as_fd()] {
            fcntl(inherited, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        let (output, errors) = match self.profile {
            Profile::Virtual => (Stdio::inherit(), Stdio::inherit()),
            Profile::Production => (Stdio::null(), Stdio::null()),
        };
        // Nothing else starts programs, so the inherited ends cannot leak into another one meanwhile. The child is
        // reaped by process id with everything else that PID 1 reaps.
        let child = Command::new("/proc/self/exe")
            .args([LAUNCH, &self.port.to_string()])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()?;
        fcntl(self.nvram.bar.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        thread::Builder::new()
            .name("replica-signs".into())
            .spawn(move || forward(File::from(ready_reader), start, &events))?;
        i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other)
    }
}

fn configuration(replica: &Replica, at_least: u64, secret: i32, ready: i32) -> String {
    let Replica { nvram, port, .. } = replica;
    let bar = nvram.bar.as_raw_fd();
    let size = nvram.size;
    // Before there was a commit the NVRAM may be blank.
    let at_least = if at_least == 0 { String::new() } else { format!("at_least = {at_least}\n") };
    format!(
        "# Written by guest-os at each start.\n\
         listen = \"[::]:{port}\"\n\
         tls = true\n\
         secret_fd = {secret}\n\
         ready_fd = {ready}\n\
         evidence_socket = \"{SOCKET}\"\n\
         \n\
         [heap]\n\
         kind = \"bar\"\n\
         fd = {bar}\n\
         size = {size}\n\
         {at_least}"
    )
}

fn forward(pipe: impl Read, start: u32, events: &Sender<Event>) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match pipe.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // Whatever else it says is no sign of life.
        let Some(sign) = sign(&line) else { continue };
        if events.send(Event::Replica { start, sign }).is_err() {
            return;
        }
    }
}

/// What a whole line says.
fn sign(line: &[u8]) -> Option<Sign> {
    let (name, epoch) = std::str::from_utf8(line).ok()?.strip_suffix('\n')?.split_once(' ')?;
    let epoch = epoch.parse().ok()?;
    match name {
        "READY" => Some(Sign::Ready(epoch)),
        "ALIVE" => Some(Sign::Alive(epoch)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use zeroize::Zeroizing;

    fn replica() -> Replica {
        let nvram = Nvram { bar: tempfile::tempfile().unwrap(), size: 1 << 29, write_combining: true };
        Replica { secret: Zeroizing::new([0x41; 32]), nvram, port: 8443, profile: Profile::Virtual }
    }

    #[test]
    fn the_configuration_is_toml_without_the_secret() {
        let replica = replica();
        let text = configuration(&replica, 0, 5, 6);
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["listen"].as_str(), Some("[::]:8443"));
        assert_eq!(table["heap"]["fd"].as_integer(), Some(replica.nvram.bar.as_raw_fd().into()));
        assert_eq!(table["heap"]["size"].as_integer(), Some(1 << 29));
        assert!(!table["heap"].as_table().unwrap().contains_key("at_least"));
        let table: toml::Table = configuration(&replica, 17, 5, 6).parse().unwrap();
        assert_eq!(table["heap"]["at_least"].as_integer(), Some(17));
        assert!(!text.contains("AAAA") && !text.contains(&hex::encode([0x41; 4])));
    }

    #[test]
    fn only_whole_known_lines_are_signs_of_life() {
        let (sender, events) = channel();
        let noise = "x".repeat(1000);
        let text = format!(
            "READY 1\nALIVE 2\nalive 3\n ALIVE 4\n{noise}\nREADY ALIVE\nALIVE\nALIVE -1\nALIVE 5\nALIVE 6"
        );
        forward(text.as_bytes(), 3, &sender);
        drop(sender);
        let signs: Vec<_> = events
            .iter()
            .map(|event| match event {
                Event::Replica { start: 3, sign } => sign,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(signs, [Sign::Ready(1), Sign::Alive(2), Sign::Alive(5)]);
    }
}

//! The link to the host agent, and what the guest accepts from it: everything that arrives is hostile.

use crate::Event;
use host_guest::{FrameError, GuestConfig, ToGuest, ToHost, decode, encode};
use ring::digest::{SHA256, digest};
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Frames that wait for a host that does not read; more are dropped.
const BACKLOG: usize = 8;
/// The kernel says at once that no host is connected, so asking again needs a pause.
const RECONNECT: Duration = Duration::from_millis(50);

/// Why a configuration is refused. The guest goes on waiting for the right one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the one that the guest was launched with.
    #[error(
        "the host sent a configuration whose SHA-256 {found} is not the HOST_DATA {expected} of this guest; \
         start the guest with HOST_DATA of the configuration it shall get"
    )]
    HostData {
        /// HOST_DATA of the own report.
        expected: String,
        /// Hash of what came.
        found: String,
    },
    /// Not understood, although it is the right one.
    #[error("the configuration of this guest cannot be read: {0}; start the guest with one of its release")]
    Malformed(String),
}

/// Accepts the text of a configuration if it is the one whose hash stands in the own report.
pub fn accept(json: &str, host_data: &[u8; 32]) -> Result<GuestConfig, ConfigError> {
    let hash = digest(&SHA256, json.as_bytes());
    if hash.as_ref() != host_data {
        return Err(ConfigError::HostData {
            expected: hex::encode(host_data),
            found: hex::encode(hash.as_ref()),
        });
    }
    let config: GuestConfig =
        serde_json::from_str(json).map_err(|error| ConfigError::Malformed(error.to_string()))?;
    if config.version != 1 {
        return Err(ConfigError::Malformed(format!("its version is {}, expected 1", config.version)));
    }
    Ok(config)
}

/// The guest's end of the link. Frames are written and read by threads of their own: a host that does not read
/// must not stop the guest's watchdog.
#[derive(Debug)]
pub struct Link {
    frames: SyncSender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
}

impl Link {
    /// Starts the threads; what arrives is sent to `events`.
    pub fn start(port: File, events: Sender<Event>) -> io::Result<Self> {
        let reader = port.try_clone()?;
        thread::Builder::new().name("host-reader".into()).spawn(move || read(reader, &events))?;
        let (frames, queue) = sync_channel(BACKLOG);
        let waiting = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&waiting);
        thread::Builder::new().name("host-writer".into()).spawn(move || write(port, &queue, &counter))?;
        Ok(Self { frames, waiting })
    }

    /// Sends a message, or drops it when the host does not read: the next state will be told again.
    pub fn send(&self, message: &ToHost) {
        // A message of this guest is far below the limit of a frame.
        let Ok(frame) = encode(message) else { return };
        self.waiting.fetch_add(1, Ordering::AcqRel);
        if self.frames.try_send(frame).is_err() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits until everything was taken by the host, but not longer than `limit`.
    pub fn drain(&self, limit: Duration) {
        let end = Instant::now() + limit;
        while self.waiting.load(Ordering::Acquire) > 0 && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn write(mut port: File, queue: &Receiver<Vec<u8>>, waiting: &AtomicUsize) {
    while let Ok(frame) = queue.recv() {
        // A failed write is one that nobody reads; the reader notices the same.
        let _ = port.write_all(&frame);
        waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Reads until the port is gone. A host that breaks the protocol is ignored until it connects anew.
fn read(mut port: File, events: &Sender<Event>) {
    let mut frames = Frames::default();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let event = match port.read(&mut chunk) {
            Ok(0) => {
                frames = Frames::default();
                thread::sleep(RECONNECT);
                continue;
            }
            Ok(length) => {
                frames.take(&chunk[..length], &mut |message| {
                    // Fails only when PID 1 ended.
                    let _ = events.send(Event::Host(message));
                })
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(FrameError::Io(error)),
        };
        let Err(error) = event else { continue };
        let gone = matches!(error, FrameError::Io(_));
        if events.send(Event::HostFailed(error)).is_err() || gone {
            return;
        }
    }
}

/// Cuts a stream of bytes into messages; after the first error of one connection everything else is dropped.
#[derive(Debug, Default)]
struct Frames {
    buffer: Vec<u8>,
    broken: bool,
}

impl Frames {
    fn take(&mut self, bytes: &[u8], deliver: &mut dyn FnMut(ToGuest)) -> Result<(), FrameError> {
        if self.broken {
            return Ok(());
        }
        self.buffer.extend_from_slice(bytes);
        loop {
            match decode(&mut self.buffer) {
                Ok(Some(message)) => deliver(message),
                Ok(None) => return Ok(()),
                Err(error) => {
                    *self = Self { buffer: Vec::new(), broken: true };
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_guest::Ipv6Config;

    fn hash(text: &str) -> [u8; 32] {
        digest(&SHA256, text.as_bytes()).as_ref().try_into().unwrap()
    }

    const GOOD: &str = r#"{"version":1,"ipv6":"router_advertisement","port":8443}"#;

    #[test]
    fn only_the_configuration_of_host_data_is_accepted() {
        let config = accept(GOOD, &hash(GOOD)).unwrap();
        assert_eq!((config.ipv6, config.port), (Ipv6Config::RouterAdvertisement, 8443));
        // The same meaning in other bytes is another configuration.
        let spaced = GOOD.replace(',', ", ");
        assert!(matches!(accept(&spaced, &hash(GOOD)), Err(ConfigError::HostData { .. })));
        assert!(matches!(accept(GOOD, &[0; 32]), Err(ConfigError::HostData { .. })));
    }

    #[test]
    fn a_bound_configuration_must_still_make_sense() {
        for bad in
            ["", "{}", &GOOD.replace("\"version\":1", "\"version\":2"), &GOOD.replace("8443", "8443,\"x\":1")]
        {
            assert!(matches!(accept(bad, &hash(bad)), Err(ConfigError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn after_a_broken_frame_nothing_more_of_the_connection_is_heard() {
        let good = encode(&ToGuest::PowerOff).unwrap();
        let mut frames = Frames::default();
        let mut heard = 0;
        let mut count = |_| heard += 1;
        assert!(frames.take(&[&good[..], &good[..3]].concat(), &mut count).is_ok());
        assert!(frames.take(&[&good[3..], b"\x01\0\0\0x", &good].concat(), &mut count).is_err());
        assert!(frames.take(&good, &mut count).is_ok());
        assert_eq!(heard, 2);
    }

    #[test]
    fn a_host_that_does_not_read_costs_frames_and_no_time() {
        let (frames, _queue) = sync_channel(BACKLOG);
        let link = Link { frames, waiting: Arc::default() };
        for _ in 0..BACKLOG + 5 {
            link.send(&ToHost::Hello { version: 1 });
        }
        assert_eq!(link.waiting.load(Ordering::Acquire), BACKLOG);
    }
}

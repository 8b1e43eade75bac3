//! The small protocol between the host agent and the confidential guest.
//!
//! It runs over one virtio-serial port named [`PORT`] as frames: a 32-bit little-endian length
//! (at most [`MAX_FRAME`] bytes), then that many bytes of JSON. Both sides treat the other as hostile:
//! a frame that is too long, is not JSON, or has an unknown field ends the connection with a typed error.
//!
//! Nothing secret travels here. The configuration is believed by the guest only because its SHA-256
//! stands in HOST_DATA of the guest's own report.

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// Name of the virtio-serial port (`/sys/class/virtio-ports/*/name`).
pub const PORT: &str = "redoubt.host";
/// Version of this protocol; [`ToHost::Hello`] carries it.
pub const VERSION: u32 = 2;
/// Longest frame body, in bytes.
pub const MAX_FRAME: usize = 256 * 1024;

/// What the guest tells the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "type")]
pub enum ToHost {
    /// First frame after boot; the host answers with [`ToGuest::Config`].
    Hello {
        /// [`VERSION`] of the guest.
        version: u32,
    },
    /// Sent at every change and at least every five seconds: the host's watchdog feeds on it.
    Health(Health),
    /// For the other guest of a hand-over, to be carried as it is (crate `upgrade`, module `exchange`).
    HandOver {
        /// The message.
        message: String,
    },
    /// A hand-over ended at this guest: the key lies in its vault, or on the other side left with the last message.
    HandOverDone,
    /// A hand-over ended at this guest without a key.
    HandOverFailed {
        /// A short fixed name.
        code: String,
        /// In words.
        error: String,
    },
    /// The guest stops on its own accord or as asked; the reason is for the operator.
    Stopping {
        /// One line.
        reason: String,
    },
}

/// State of the guest as it tells it itself. Availability only: the host may show it, nobody may trust it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Where the guest stands.
    pub phase: Phase,
    /// Seconds since PID 1 started.
    pub uptime_s: u64,
    /// How often the replica was started again.
    pub replica_restarts: u32,
    /// Memory in use beside page cache, in bytes (`MemTotal - MemAvailable`).
    pub memory_used: u64,
    /// Global addresses of the guest, as text.
    pub addresses: Vec<String>,
    /// Medium of the persistent heap ("bar", "file", ...) or why there is none.
    pub heap: String,
    /// Last error in words, empty when there is none.
    pub error: String,
}

/// Phases of the guest, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// PID 1 runs, the configuration is not accepted yet.
    Booting,
    /// Configuration accepted; storage and keys are being opened.
    Opening,
    /// The replica was started and has not reported ready.
    Starting,
    /// The replica answers.
    Ready,
    /// There is no replica: the guest holds the node's key for a release that is brought.
    Recovery,
    /// The replica stopped and waits for its next start.
    Backoff,
    /// The guest is powering off.
    Stopping,
}

/// What the host tells the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "type")]
pub enum ToGuest {
    /// The configuration, as the exact bytes whose SHA-256 is HOST_DATA.
    Config {
        /// JSON of [`GuestConfig`]; kept as text so that the hash is over exactly these bytes.
        json: String,
    },
    /// The certificates that endorse the reports of this machine. QEMU has no way to put them beside a report, so they
    /// come from here; the guest checks them against its own report and hands them on, and every verifier checks them.
    Certificates {
        /// Certificate table as of an extended guest request (GHCB specification, section 4.1.8.1), base64.
        table: String,
    },
    /// To a guest whose task is to receive: begin. All documents are signed.
    TakeOver {
        /// Manifest of the release that has the key.
        giver: String,
        /// The roots that follow the one in the image.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        roots: Vec<String>,
        /// Manifest of the guest's own release.
        manifest: String,
        /// The blessing that names it.
        blessing: String,
        /// It shall ask for the key as a recovery release, and not as a node.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        recovery: bool,
    },
    /// From the other guest of a hand-over.
    HandOver {
        /// The message.
        message: String,
    },
    /// Power off cleanly: stop the replica, sync, power off.
    PowerOff,
}

/// Configuration of one guest, made by the host agent, bound in HOST_DATA. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// Version of this structure: 1.
    pub version: u32,
    /// Static IPv4, absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Config>,
    /// How the guest gets its IPv6 address.
    pub ipv6: Ipv6Config,
    /// TCP port of the replica's HTTPS interface.
    pub port: u16,
    /// What it is started for.
    #[serde(default, skip_serializing_if = "Task::is_run")]
    pub task: Task,
}

/// What a guest is started for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// To be the node.
    #[default]
    Run,
    /// To take over the node's key from another guest into its own vault, and then to power off. It needs no network, no
    /// NVRAM and little memory.
    Receive,
    /// To hand the node's key over, without being the node.
    Give,
    /// The same for a guest that was given the key for recovery: both slots failed, and it waits for a release that is brought.
    /// It needs no network, no NVRAM and little memory.
    Recover,
}

impl Task {
    /// The usual one, which is not written.
    pub fn is_run(&self) -> bool {
        *self == Task::Run
    }
}

/// Static IPv4 configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipv4Config {
    /// Address of the guest.
    pub address: std::net::Ipv4Addr,
    /// Prefix length, 0 to 32.
    pub prefix: u8,
    /// Default gateway.
    pub gateway: Option<std::net::Ipv4Addr>,
}

/// IPv6 configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ipv6Config {
    /// By router advertisement (RFC 4862).
    RouterAdvertisement,
    /// Fixed by the operator.
    Static {
        /// Address of the guest.
        address: std::net::Ipv6Addr,
        /// Prefix length, 0 to 128.
        prefix: u8,
        /// Default gateway.
        gateway: Option<std::net::Ipv6Addr>,
    },
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or ended.
    #[error("the host-guest port failed: {0}")]
    Io(#[from] io::Error),
    /// The peer announced more than [`MAX_FRAME`] bytes.
    #[error("the peer sent a frame of {0} bytes; at most {MAX_FRAME} are allowed")]
    TooLong(usize),
    /// The body is not a message of this protocol.
    #[error("the peer sent a frame that is no message of this protocol: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Encodes one message as a frame.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MAX_FRAME {
        return Err(FrameError::TooLong(body.len()));
    }
    let mut frame = Vec::with_capacity(body.len() + 4);
    // The bound above is far below u32::MAX.
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Takes the first whole frame out of `buffer`; `None` when more bytes are needed.
pub fn decode<M: for<'de> Deserialize<'de>>(buffer: &mut Vec<u8>) -> Result<Option<M>, FrameError> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[4..4 + length])?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

/// Reads one frame from a blocking stream.
pub fn read_frame<M: for<'de> Deserialize<'de>>(stream: &mut impl Read) -> Result<M, FrameError> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let length = u32::from_le_bytes(head) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Writes one frame to a blocking stream.
pub fn write_frame<M: Serialize>(stream: &mut impl Write, message: &M) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?)?;
    Ok(stream.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_splitting_at_every_byte() {
        let message = ToHost::Hello { version: VERSION };
        let frame = encode(&message).unwrap();
        for cut in 0..frame.len() {
            let mut buffer = frame[..cut].to_vec();
            assert!(decode::<ToHost>(&mut buffer).unwrap().is_none());
            buffer.extend_from_slice(&frame[cut..]);
            assert_eq!(decode::<ToHost>(&mut buffer).unwrap(), Some(message.clone()));
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_its_body_is_read() {
        let mut buffer = (MAX_FRAME as u32 + 1).to_le_bytes().to_vec();
        assert!(matches!(decode::<ToHost>(&mut buffer), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn unknown_fields_are_refused() {
        let body = br#"{"type":"hello","version":1,"extra":0}"#;
        let mut buffer = (body.len() as u32).to_le_bytes().to_vec();
        buffer.extend_from_slice(body);
        assert!(matches!(decode::<ToHost>(&mut buffer), Err(FrameError::Malformed(_))));
    }
}

//! The agent's line to PID 1: signs of life, and requests to restart the machine or to switch it off.
//!
//! PID 1 gives the agent one end of a socket pair as standard input, so that no other process can ask for anything. Every
//! message is one byte, hence nothing can be cut in two or grow.

use crate::http::{GetError, get_once};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// How often the agent says that it answers.
pub const BEAT: Duration = Duration::from_secs(5);

/// What becomes of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It starts again.
    Reboot,
    /// It is switched off.
    PowerOff,
}

impl Action {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reboot => "restart",
            Self::PowerOff => "power off",
        }
    }
}

/// What the agent tells PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// The agent answers its own health check.
    Beat,
    /// The guest was launched, or the agent has found that it cannot be.
    Launched,
    /// Somebody who may do so wants this.
    Ask(Action),
}

impl Message {
    /// On the line. What is not of this protocol is nothing.
    pub(crate) fn parse(byte: u8) -> Option<Self> {
        match byte {
            b'b' => Some(Self::Beat),
            b'l' => Some(Self::Launched),
            b'r' => Some(Self::Ask(Action::Reboot)),
            b'o' => Some(Self::Ask(Action::PowerOff)),
            _ => None,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Beat => b'b',
            Self::Launched => b'l',
            Self::Ask(Action::Reboot) => b'r',
            Self::Ask(Action::PowerOff) => b'o',
        }
    }
}

/// PID 1 was not reached.
#[derive(Debug, thiserror::Error)]
#[error("PID 1 cannot be asked to {action}: {source}; switch the machine off and on", action = action.name())]
pub struct PowerError {
    action: Action,
    source: io::Error,
}

/// The line to PID 1.
#[derive(Debug, Clone)]
pub struct Power(Arc<UnixStream>);

/// What PID 1 tells the agent: the machine is ready for it.
const BEGIN: u8 = b'g';

/// Tells an agent that it may begin.
pub(crate) fn begin(mut line: &UnixStream) -> io::Result<()> {
    line.write_all(&[BEGIN])
}

/// Waits until PID 1 says that the machine is ready. An agent is loaded before, which takes a while and disturbs nobody.
pub(crate) fn until_begin() -> io::Result<()> {
    let mut said = [0];
    io::stdin().lock().read_exact(&mut said)?;
    if said == [BEGIN] {
        Ok(())
    } else {
        Err(io::Error::other("PID 1 said something else than that it may begin"))
    }
}

impl Power {
    /// The line of an agent that PID 1 started: its standard input.
    pub fn of_agent() -> io::Result<Self> {
        let line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // Fails for what is no socket, such as a terminal.
        line.peer_addr()?;
        line.set_nonblocking(true)?;
        Ok(Self(Arc::new(line)))
    }

    /// Asks PID 1 for the end of this run. It then tells the agent to stop (SIGTERM), which tells the guest, and after a
    /// bounded time unmounts and acts. Whoever calls has made sure that the operator may want this.
    pub fn request(&self, action: Action, reason: &str) -> Result<(), PowerError> {
        tracing::warn!(reason, "the machine will {}", action.name());
        self.send(Message::Ask(action)).map_err(|source| PowerError { action, source })
    }

    /// Says that the machine has time for what need not be done first.
    pub(crate) fn launched(&self) {
        // PID 1 does not wait for it for ever.
        let _ = self.send(Message::Launched);
    }

    fn send(&self, message: Message) -> io::Result<()> {
        (&*self.0).write_all(&[message.byte()])
    }

    /// Says "I answer" to PID 1 each time that the agent's status port really answers, for ever.
    pub(crate) async fn beat(self, status_port: u16) {
        const PATIENCE: Duration = Duration::from_secs(5);
        const ANSWER: usize = 64 * 1024;
        let mut interval = tokio::time::interval(BEAT);
        loop {
            interval.tick().await;
            let asked = async {
                let Ok(stream) = tokio::net::TcpStream::connect(("127.0.0.1", status_port)).await else {
                    return false;
                };
                let answer = get_once(stream, "127.0.0.1", "/healthz", ANSWER).await;
                // A guest that is not ready is a fact about the guest; the agent has answered.
                matches!(answer, Ok(_) | Err(GetError::Refused { code: 503, .. }))
            };
            if let Ok(true) = tokio::time::timeout(PATIENCE, asked).await
                && let Err(error) = self.send(Message::Beat)
                && error.kind() != io::ErrorKind::WouldBlock
            {
                tracing::error!(%error, "PID 1 does not hear");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn messages_survive_the_line_and_nothing_else_is_one() {
        let known =
            [Message::Beat, Message::Launched, Message::Ask(Action::Reboot), Message::Ask(Action::PowerOff)];
        for byte in 0..=u8::MAX {
            assert_eq!(
                Message::parse(byte).map(Message::byte),
                known.iter().map(|message| message.byte()).find(|known| *known == byte)
            );
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let power = Power(Arc::new(ours));
        power.request(Action::Reboot, "test").unwrap();
        power.request(Action::PowerOff, "test").unwrap();
        let mut said = [0; 2];
        theirs.read_exact(&mut said).unwrap();
        assert_eq!(
            said.map(Message::parse),
            [Some(Message::Ask(Action::Reboot)), Some(Message::Ask(Action::PowerOff))]
        );
        drop(theirs);
        assert!(power.request(Action::Reboot, "test").unwrap_err().to_string().contains("restart"));
    }
}

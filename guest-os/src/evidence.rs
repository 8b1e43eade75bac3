//! The evidence socket: the replica asks for evidence that binds a nonce and its TLS key.
//!
//! One request and one response for each connection, as frames of `host_guest`:
//! `{"nonce":"<64 hexadecimal digits>","spki":"<base64 of the SubjectPublicKeyInfo in DER>"}` and then
//! `{"evidence":{...}}` or `{"error":"..."}`.

use crate::console::{chain, say};
use crate::sandbox::REPLICA_ID;
use crate::tsm::{Tsm, TsmError};
use attestation::{Evidence, EvidenceError, EvidenceKind, binding};
use base64::{Engine, engine::general_purpose::STANDARD};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Uid, chown};
use serde::{Deserialize, Serialize};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Where the replica finds the socket.
pub const SOCKET: &str = "/run/evidence.sock";
/// The replica is on the same machine: a request that takes longer than this is no request.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest key that is bound, in bytes of DER.
const MAX_SPKI: usize = 4096;
/// Requests that may come at once, and how many more in each second. The PSP is slow, is shared with all guests of
/// the machine, and anybody on the Internet can make the replica ask.
const BURST: u32 = 20;
const PER_SECOND: u32 = 5;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    nonce: String,
    spki: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Response {
    Evidence(Box<Evidence>),
    Error(String),
}

/// Why a request gets no evidence.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("the nonce is not 64 hexadecimal digits")]
    Nonce,
    #[error("the key is not base64 of 1 to {MAX_SPKI} bytes")]
    Spki,
    #[error("too many requests for evidence; ask again in a second")]
    TooMany,
    #[error(transparent)]
    Tsm(#[from] TsmError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
}

/// Opens the socket, for the replica's user only, and answers on a thread of its own.
pub fn serve(tsm: Arc<Tsm>, kind: EvidenceKind) -> io::Result<()> {
    let listener = UnixListener::bind(SOCKET)?;
    fs::set_permissions(SOCKET, Permissions::from_mode(0o600))?;
    chown(SOCKET, Some(Uid::from_raw(REPLICA_ID)), Some(Gid::from_raw(REPLICA_ID)))?;
    thread::Builder::new().name("evidence".into()).spawn(move || {
        let mut limit = RateLimit::new(Instant::now());
        for connection in listener.incoming() {
            let answered = connection.and_then(|connection| answer(connection, &tsm, kind, &mut limit));
            if let Err(error) = answered {
                say(format_args!("evidence socket: {error}"));
            }
        }
    })?;
    Ok(())
}

fn answer(mut stream: UnixStream, tsm: &Tsm, kind: EvidenceKind, limit: &mut RateLimit) -> io::Result<()> {
    // The file's permissions say the same; root could connect too and has no reason to.
    if getsockopt(&stream, PeerCredentials)?.uid() != REPLICA_ID {
        return Err(io::Error::other("somebody else than the replica connected"));
    }
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = host_guest::read_frame(&mut stream).map_err(io::Error::other)?;
    let response = match evidence(&request, tsm, kind, limit) {
        Ok(evidence) => Response::Evidence(Box::new(evidence)),
        Err(error) => Response::Error(chain(&error)),
    };
    host_guest::write_frame(&mut stream, &response).map_err(io::Error::other)
}

fn evidence(
    request: &Request,
    tsm: &Tsm,
    kind: EvidenceKind,
    limit: &mut RateLimit,
) -> Result<Evidence, RequestError> {
    let (nonce, spki) = decode(request)?;
    if !limit.take(Instant::now()) {
        return Err(RequestError::TooMany);
    }
    let quote = tsm.quote(&binding::report_data(kind, &nonce, &spki))?;
    Ok(Evidence::from_tsm(kind, quote.report.as_bytes().to_vec(), &quote.auxiliary)?)
}

fn decode(request: &Request) -> Result<([u8; 32], Vec<u8>), RequestError> {
    let mut nonce = [0; 32];
    hex::decode_to_slice(&request.nonce, &mut nonce).map_err(|_| RequestError::Nonce)?;
    let spki = STANDARD.decode(&request.spki).map_err(|_| RequestError::Spki)?;
    if spki.is_empty() || spki.len() > MAX_SPKI {
        return Err(RequestError::Spki);
    }
    Ok((nonce, spki))
}

/// A token bucket.
#[derive(Debug)]
struct RateLimit {
    /// Time since when the bucket fills, moved on by what was taken.
    empty_at: Instant,
}

impl RateLimit {
    const TOKEN: Duration = Duration::from_millis(1000 / PER_SECOND as u64);

    /// Starts with a full bucket.
    fn new(now: Instant) -> Self {
        Self { empty_at: now.checked_sub(Self::TOKEN * BURST).unwrap_or(now) }
    }

    /// Takes a token if there is one.
    fn take(&mut self, now: Instant) -> bool {
        let tokens = now.saturating_duration_since(self.empty_at);
        if tokens < Self::TOKEN {
            return false;
        }
        // More than a full bucket is lost.
        let overflow = tokens.saturating_sub(Self::TOKEN * BURST);
        self.empty_at += overflow + Self::TOKEN;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(nonce: &str, spki: &[u8]) -> Request {
        Request { nonce: nonce.into(), spki: STANDARD.encode(spki) }
    }

    #[test]
    fn requests_are_checked() {
        let nonce = "01".repeat(32);
        assert_eq!(decode(&request(&nonce, b"key")).unwrap(), ([1; 32], b"key".to_vec()));
        for bad in ["", "01", &"0g".repeat(32), &"01".repeat(33)] {
            assert!(matches!(decode(&request(bad, b"key")), Err(RequestError::Nonce)), "{bad}");
        }
        assert!(matches!(decode(&request(&nonce, b"")), Err(RequestError::Spki)));
        assert!(matches!(decode(&request(&nonce, &[0; MAX_SPKI + 1])), Err(RequestError::Spki)));
        assert!(serde_json::from_str::<Request>(r#"{"nonce":"","spki":"","more":1}"#).is_err());
    }

    #[test]
    fn responses_have_the_form_of_the_protocol() {
        let json = serde_json::to_value(Response::Error("no".into())).unwrap();
        assert_eq!(json, serde_json::json!({ "error": "no" }));
    }

    #[test]
    fn a_burst_passes_and_then_only_the_rate() {
        let start = Instant::now() + RateLimit::TOKEN * BURST;
        let mut limit = RateLimit::new(start);
        let taken = |limit: &mut RateLimit, now| (0..100).filter(|_| limit.take(now)).count();
        assert_eq!(taken(&mut limit, start), BURST as usize);
        assert_eq!(taken(&mut limit, start + Duration::from_secs(1)), PER_SECOND as usize);
        assert_eq!(taken(&mut limit, start + Duration::from_secs(3600)), BURST as usize);
    }
}

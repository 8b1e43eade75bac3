//! The evidence socket: the replica asks for evidence that binds its TLS key.
//!
//! One request and one response for each connection, as frames of `host_guest`:
//!
//! | request | response | freshness |
//! |---|---|---|
//! | `{"nonce":"<64 hexadecimal digits>","spki":"<base64 of the SubjectPublicKeyInfo in DER>"}` | `{"evidence":{...}}` | the asker's nonce |
//! | `{"spki":"..."}` | `{"extension":{"oid":"...","value":"<base64>","issued_unix_s":...,"renew_after_s":...}}` for the TLS certificate | the time of this guest |
//!
//! or `{"error":"..."}`.
//!
//! The certificates that endorse a report stand beside it where the platform put them there (`auxblob`), else the host
//! sent them over its channel. Either way they are nothing but a hint: the guest compares those of the host with a
//! report of its own, so that it does not serve nonsense, and whoever gets the evidence verifies them.

use crate::clock;
use crate::console::{chain, say};
use crate::sandbox::REPLICA_ID;
use crate::tsm::{Tsm, TsmError};
use attestation::binding::{Binding, Freshness, Role};
use attestation::{Evidence, EvidenceError, Refusal, TrustAnchors, authenticate, handshake};
use base64::{Engine, engine::general_purpose::STANDARD};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Uid, chown};
use serde::{Deserialize, Serialize};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
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

/// The replica renews the evidence in its certificate after this time, well before a verifier finds it stale.
const RENEW_AFTER: u64 = handshake::MAX_AGE / 4;
/// Longest certificate table that is taken from the host, in bytes.
const MAX_TABLE: usize = 32 * 1024;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    nonce: Option<String>,
    spki: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Response {
    Evidence(Box<Evidence>),
    Extension(Extension),
    Error(String),
}

#[derive(Debug, Serialize)]
struct Extension {
    oid: String,
    value: String,
    issued_unix_s: u64,
    renew_after_s: u64,
}

/// Why a request gets no evidence.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("the nonce is not 64 hexadecimal digits")]
    Nonce,
    #[error("the key is not base64 of 1 to {MAX_SPKI} bytes")]
    Spki,
    #[error("too many requests for evidence; ask again in a second")]
    TooMany,
    #[error(transparent)]
    Tsm(#[from] TsmError),
    #[error(
        "there are no certificates for the report of this machine: {0}; the host has to give them to the guest"
    )]
    Certificates(#[source] EvidenceError),
    #[error("the evidence is too long for a TLS certificate; give the guest a shorter certificate chain")]
    Extension,
}

/// Why certificates of the host are not taken. The guest goes on without them, or with those it has.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// Not a table.
    #[error("the host sent certificates that are not base64 of at most {MAX_TABLE} bytes")]
    Encoding,
    /// No table of ARK, ASK and VCEK or VLEK.
    #[error("the host sent certificates that cannot be read")]
    Table(#[source] EvidenceError),
    /// They do not endorse this machine.
    #[error("the host sent certificates that do not endorse the report of this machine")]
    Refused(#[source] Refusal),
}

/// Makes evidence.
#[derive(Debug)]
pub struct Provider {
    tsm: Tsm,
    anchors: TrustAnchors,
    /// The certificate table that the host sent, checked against a report of this guest.
    supplied: Mutex<Vec<u8>>,
}

impl Provider {
    /// Evidence that `anchors` can vouch for, with reports from `tsm`.
    pub fn new(tsm: Tsm, anchors: TrustAnchors) -> Self {
        Self { tsm, anchors, supplied: Mutex::default() }
    }

    /// Who makes reports.
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// Takes certificates from the host if they endorse `report`, which is one of this guest.
    pub fn supply(&self, table: &str, report: &[u8]) -> Result<(), CertificatesError> {
        let table = STANDARD
            .decode(table)
            .ok()
            .filter(|table| table.len() <= MAX_TABLE)
            .ok_or(CertificatesError::Encoding)?;
        let evidence = Evidence::from_tsm(self.anchors.kind(), report.to_vec(), &table)
            .map_err(CertificatesError::Table)?;
        authenticate(&evidence, &self.anchors).map_err(CertificatesError::Refused)?;
        *self.supplied.lock().unwrap_or_else(PoisonError::into_inner) = table;
        Ok(())
    }

    /// Evidence for the replica's TLS key.
    fn evidence(&self, freshness: Freshness, key: &[u8]) -> Result<Evidence, RequestError> {
        let binding = Binding { kind: self.anchors.kind(), role: Role::Replica, freshness, key, peer: None };
        self.quote(&binding.report_data())
    }

    /// Evidence with this REPORT_DATA.
    pub(crate) fn quote(&self, report_data: &[u8; 64]) -> Result<Evidence, RequestError> {
        let quote = self.tsm.quote(report_data)?;
        let supplied = self.supplied.lock().unwrap_or_else(PoisonError::into_inner);
        let table = if quote.auxiliary.is_empty() { &*supplied } else { &quote.auxiliary };
        let kind = self.anchors.kind();
        Evidence::from_tsm(kind, quote.report.as_bytes().to_vec(), table).map_err(RequestError::Certificates)
    }
}

/// Opens the socket, for the replica's user only, and answers on a thread of its own.
pub fn serve(provider: Arc<Provider>) -> io::Result<()> {
    let listener = UnixListener::bind(SOCKET)?;
    fs::set_permissions(SOCKET, Permissions::from_mode(0o600))?;
    chown(SOCKET, Some(Uid::from_raw(REPLICA_ID)), Some(Gid::from_raw(REPLICA_ID)))?;
    thread::Builder::new().name("evidence".into()).spawn(move || {
        let mut limit = RateLimit::new(Instant::now());
        for connection in listener.incoming() {
            let answered = connection.and_then(|connection| answer(connection, &provider, &mut limit));
            if let Err(error) = answered {
                say(format_args!("evidence socket: {error}"));
            }
        }
    })?;
    Ok(())
}

fn answer(mut stream: UnixStream, provider: &Provider, limit: &mut RateLimit) -> io::Result<()> {
    // The file's permissions say the same; root could connect too and has no reason to.
    if getsockopt(&stream, PeerCredentials)?.uid() != REPLICA_ID {
        return Err(io::Error::other("somebody else than the replica connected"));
    }
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = host_guest::read_frame(&mut stream).map_err(io::Error::other)?;
    let response = respond(&request, provider, limit).unwrap_or_else(|error| Response::Error(chain(&error)));
    host_guest::write_frame(&mut stream, &response).map_err(io::Error::other)
}

fn respond(request: &Request, provider: &Provider, limit: &mut RateLimit) -> Result<Response, RequestError> {
    let (nonce, key) = decode(request)?;
    let Some(nonce) = nonce else {
        // Only the replica itself asks for this, and seldom, so that clients cannot use up its share.
        let issued_unix_s = clock::now();
        let evidence = provider.evidence(Freshness::IssuedAt(issued_unix_s), &key)?;
        let value = handshake::extension(&evidence).ok_or(RequestError::Extension)?;
        return Ok(Response::Extension(Extension {
            oid: handshake::OID.map(|arc| arc.to_string()).join("."),
            value: STANDARD.encode(value),
            issued_unix_s,
            renew_after_s: RENEW_AFTER,
        }));
    };
    if !limit.take(Instant::now()) {
        return Err(RequestError::TooMany);
    }
    Ok(Response::Evidence(Box::new(provider.evidence(Freshness::Nonce(nonce), &key)?)))
}

fn decode(request: &Request) -> Result<(Option<[u8; 32]>, Vec<u8>), RequestError> {
    let nonce = match &request.nonce {
        None => None,
        Some(text) => {
            let mut nonce = [0; 32];
            hex::decode_to_slice(text, &mut nonce).map_err(|_| RequestError::Nonce)?;
            Some(nonce)
        }
    };
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
        Request { nonce: Some(nonce.into()), spki: STANDARD.encode(spki) }
    }

    #[test]
    fn requests_are_checked() {
        let nonce = "01".repeat(32);
        assert_eq!(decode(&request(&nonce, b"key")).unwrap(), (Some([1; 32]), b"key".to_vec()));
        let without = Request { nonce: None, ..request(&nonce, b"key") };
        assert_eq!(decode(&without).unwrap(), (None, b"key".to_vec()));
        for bad in ["", "01", &"0g".repeat(32), &"01".repeat(33)] {
            assert!(matches!(decode(&request(bad, b"key")), Err(RequestError::Nonce)), "{bad}");
        }
        assert!(matches!(decode(&request(&nonce, b"")), Err(RequestError::Spki)));
        assert!(matches!(decode(&request(&nonce, &[0; MAX_SPKI + 1])), Err(RequestError::Spki)));
        assert!(serde_json::from_str::<Request>(r#"{"nonce":"","spki":"","more":1}"#).is_err());
    }

    /// A report and the certificate table of a simulated chip.
    fn chip() -> (Vec<u8>, Vec<u8>) {
        use simulated_psp::chip::{Chip, LaunchContext};
        use simulated_psp::protocol::{Bytes, Request, Response};
        let chip = Chip::open_or_create(tempfile::tempdir().unwrap().path()).unwrap();
        let psp = chip.launch(LaunchContext::new(attestation::Measurement([1; 48]), [2; 32])).unwrap();
        let request = Request::Report { report_data: Bytes([3; 64]), vmpl: 0 };
        let Response::Report { report, .. } = psp.handle(&request) else { panic!("refused") };
        (report.0.to_vec(), chip.certificate_table().to_vec())
    }

    #[test]
    fn certificates_of_the_host_must_endorse_the_own_report() {
        let ((report, table), (_, of_another)) = (chip(), chip());
        let provider = |anchors| Provider::new(Tsm::at("/nowhere"), anchors);
        let simulated = provider(simulated_psp::root::trust_anchors());
        let supplied = || simulated.supplied.lock().unwrap().clone();
        let supply = |table: &[u8]| simulated.supply(&STANDARD.encode(table), &report);
        assert!(matches!(simulated.supply("no base64!", &report), Err(CertificatesError::Encoding)));
        assert!(matches!(supply(&[0; MAX_TABLE + 1]), Err(CertificatesError::Encoding)));
        assert!(matches!(supply(&table[..100]), Err(CertificatesError::Table(_))));
        let error = supply(&of_another).unwrap_err();
        let CertificatesError::Refused(refusal) = error else { panic!("{error}") };
        assert!(refusal.codes().any(|code| code == "vek-binding"), "{refusal}");
        assert!(supplied().is_empty(), "nothing of this is kept");
        supply(&table).unwrap();
        assert_eq!(supplied(), table);
        assert!(supply(&of_another).is_err());
        assert_eq!(supplied(), table, "good ones stay");

        let production = provider(TrustAnchors::amd());
        let error = production.supply(&STANDARD.encode(&table), &report).unwrap_err();
        let CertificatesError::Refused(refusal) = error else { panic!("{error}") };
        assert!(refusal.codes().any(|code| code == "unknown-root"), "{refusal}");
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

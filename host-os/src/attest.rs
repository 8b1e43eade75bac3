//! The verifier's side of attestation, in its two ways: fetch evidence from a guest with a fresh nonce and verify it for
//! the very TLS connection over which it came, or verify the evidence in the guest's TLS certificate within the handshake.

use crate::http::{GetError, get_once};
use crate::tls::{Attesting, Judge, KeyHash, Pinned, client_config, public_key};
use attestation::{
    Evidence, Measurement, Policy, Refusal, TrustAnchors, Verified,
    policy::{CrlDemand, Demand},
};
use release::Profile;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Longest evidence that is read, in bytes. Report and certificates have about 8 KiB.
pub const MAX_EVIDENCE: usize = 64 * 1024;
/// Patience for connection, handshake and answer; an emulated guest is slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a verifier insists on.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// Everything but REPORT_DATA, which follows from nonce, time and TLS key of each connection.
    pub policy: Policy,
    /// The roots that are believed.
    pub anchors: TrustAnchors,
}

impl Expectations {
    /// The strict policy for a guest with one of these measurements and this hash of its configuration.
    pub fn of_guest(
        measurements: impl IntoIterator<Item = Measurement>,
        host_data: [u8; 32],
        anchors: TrustAnchors,
    ) -> Self {
        let mut policy = Policy::new(measurements, [0; 64]);
        policy.host_data = Demand::only([host_data]);
        // Nodes keep no revocation list; a verifier that has one gives it with the anchors.
        policy.revocation.crl = CrlDemand::IfGiven;
        Self { policy, anchors }
    }
}

/// The roots that a verifier believes for nodes of this kind; `None` where this build knows none.
pub fn anchors(profile: Profile) -> Option<TrustAnchors> {
    match profile {
        Profile::Production => Some(TrustAnchors::amd()),
        #[cfg(feature = "virtual")]
        Profile::Virtual => Some(simulated_psp::root::trust_anchors()),
        #[cfg(not(feature = "virtual"))]
        Profile::Virtual => None,
    }
}

/// Why no evidence could be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection.
    #[error("cannot connect to {address}: {source}; check that the node runs and that the port is right")]
    Connect {
        /// The guest.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// No TLS, or no certificate in it.
    #[error("no TLS with {address}: {reason}")]
    Tls {
        /// The guest.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The guest does not give evidence.
    #[error("{address} gives no evidence")]
    Evidence {
        /// The guest.
        address: SocketAddr,
        /// Why.
        source: GetError,
    },
    /// What came is no evidence.
    #[error("what {address} gave is no evidence")]
    Malformed {
        /// The guest.
        address: SocketAddr,
        /// Why.
        source: serde_json::Error,
    },
    /// Too slow.
    #[error("{address} did not answer within {} s", PATIENCE.as_secs())]
    Timeout {
        /// The guest.
        address: SocketAddr,
    },
    /// The machine has no randomness or no clock.
    #[error("this machine cannot make a fresh nonce")]
    Nonce,
}

/// Evidence is missing or refused.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// No evidence.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Evidence that proves something else, or nothing.
    #[error("the evidence is refused")]
    Refused(#[from] Refusal),
    /// The proved key cannot be used for TLS.
    #[error("the proved TLS key cannot be pinned: {0}")]
    Pin(#[from] rustls::Error),
}

/// Evidence as it came, with what it has to be bound to. Proves nothing yet.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The evidence.
    pub evidence: Evidence,
    /// The nonce that was sent.
    pub nonce: [u8; 32],
    /// SubjectPublicKeyInfo (DER) of the TLS connection.
    pub tls_key: Vec<u8>,
    /// The certificate that the server showed in its handshake, DER.
    pub certificate: Vec<u8>,
}

/// What verified evidence proved about one TLS key.
#[derive(Debug, Clone)]
pub struct Attested {
    /// What was verified, with the report.
    pub verified: Verified,
    /// What was presented.
    pub fetched: Fetched,
    /// Seconds since 1970 of the verification.
    pub at_unix_s: u64,
    /// For connections to the same guest.
    pub pin: Pin,
}

/// A TLS key that verified evidence proved. Only [`fetch_and_verify`] makes one.
#[derive(Clone)]
pub struct Pin {
    key_hash: KeyHash,
    connector: TlsConnector,
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pin({})", hex::encode(self.key_hash))
    }
}

impl Pin {
    pub(crate) fn of(key_hash: KeyHash) -> Result<Self, rustls::Error> {
        Ok(Self { key_hash, connector: TlsConnector::from(client_config(Arc::new(Pinned(Some(key_hash))))?) })
    }

    /// SHA-256 of the key.
    pub fn key_hash(&self) -> &KeyHash {
        &self.key_hash
    }

    /// Opens TLS to the proved key and to no other.
    pub fn connector(&self) -> PinnedConnector<'_> {
        PinnedConnector(&self.connector)
    }
}

/// See [`Pin::connector`].
pub struct PinnedConnector<'a>(&'a TlsConnector);

impl PinnedConnector<'_> {
    /// Opens TLS over `stream`.
    pub async fn connect(
        &self,
        address: std::net::IpAddr,
        stream: TcpStream,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.0.connect(ServerName::IpAddress(address.into()), stream).await
    }
}

/// Fetches evidence with a fresh nonce.
pub async fn fetch(address: SocketAddr) -> Result<Fetched, FetchError> {
    match tokio::time::timeout(PATIENCE, fetch_without_limit(address)).await {
        Ok(result) => result,
        Err(_) => Err(FetchError::Timeout { address }),
    }
}

/// The answer to `GET /evidence`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    evidence: Evidence,
}

async fn fetch_without_limit(address: SocketAddr) -> Result<Fetched, FetchError> {
    let mut nonce = [0; 32];
    SystemRandom::new().fill(&mut nonce).map_err(|_| FetchError::Nonce)?;
    let tls = |error: &dyn std::fmt::Display| FetchError::Tls { address, reason: error.to_string() };
    let stream = connect_judged(address, Arc::new(Pinned(None))).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = certificate.ok_or_else(|| tls(&"it shows no certificate"))?.clone();
    let tls_key = public_key(&certificate).map_err(|error| tls(&error))?;
    let path = format!("/evidence?nonce={}", hex::encode(nonce));
    let body = get_once(stream, &address.to_string(), &path, MAX_EVIDENCE)
        .await
        .map_err(|source| FetchError::Evidence { address, source })?;
    let Answer { evidence } =
        serde_json::from_slice(&body).map_err(|source| FetchError::Malformed { address, source })?;
    Ok(Fetched { evidence, nonce, tls_key, certificate: certificate.to_vec() })
}

async fn connect_judged(
    address: SocketAddr,
    judge: Arc<dyn Judge>,
) -> Result<TlsStream<TcpStream>, FetchError> {
    let tls = |error: &dyn std::fmt::Display| FetchError::Tls { address, reason: error.to_string() };
    let connector = TlsConnector::from(client_config(judge).map_err(|error| tls(&error))?);
    let stream =
        TcpStream::connect(address).await.map_err(|source| FetchError::Connect { address, source })?;
    let name = ServerName::IpAddress(address.ip().into());
    connector.connect(name, stream).await.map_err(|error| tls(&error))
}

/// Opens TLS to a guest whose certificate carries evidence of at most `max_age_s` that is verified within the handshake
/// (RA-TLS): nothing is sent to a server that did not prove what it is.
pub async fn connect(
    address: SocketAddr,
    expected: &Expectations,
    max_age_s: u64,
) -> Result<(TlsStream<TcpStream>, Verified), AttestError> {
    let attesting = Arc::new(Attesting {
        expected: expected.clone(),
        now_unix_s: unix_time(),
        max_age_s,
        verdict: Mutex::default(),
    });
    let connected = tokio::time::timeout(PATIENCE, connect_judged(address, attesting.clone())).await;
    match (connected, attesting.verdict.lock().unwrap_or_else(PoisonError::into_inner).take()) {
        (Err(_), _) => Err(FetchError::Timeout { address }.into()),
        (Ok(_), Some(Err(refusal))) => Err(refusal.into()),
        (Ok(Ok(stream)), Some(Ok(verified))) => Ok((stream, verified)),
        (Ok(Err(error)), _) => Err(error.into()),
        (Ok(Ok(_)), None) => {
            Err(FetchError::Tls { address, reason: "it showed no certificate".into() }.into())
        }
    }
}

/// Verifies evidence for this nonce and TLS key. No I/O.
pub fn verify(fetched: &Fetched, expected: &Expectations, now_unix_s: u64) -> Result<Verified, Refusal> {
    let kind = expected.anchors.kind();
    let report_data = attestation::binding::report_data(kind, &fetched.nonce, &fetched.tls_key);
    let policy = expected.policy.clone().with_report_data(report_data);
    attestation::verify(&fetched.evidence, &policy, &expected.anchors, now_unix_s)
}

/// Fetches evidence with a fresh nonce and verifies it; what comes back is proved for the TLS key it names.
pub async fn fetch_and_verify(address: SocketAddr, expected: &Expectations) -> Result<Attested, AttestError> {
    let fetched = fetch(address).await?;
    let at_unix_s = unix_time();
    let verified = verify(&fetched, expected, at_unix_s)?;
    let pin = Pin::of(Sha256::digest(&fetched.tls_key).into())?;
    Ok(Attested { verified, fetched, at_unix_s, pin })
}

/// Seconds since 1970; 0 on a machine whose clock is before that.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An error with all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors repeat their cause in their own text.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
#[cfg(feature = "virtual")]
mod tests {
    use super::*;
    use crate::tls::testing::Server;
    use attestation::binding::{Binding, Freshness, Role};
    use attestation::{EvidenceKind, handshake};
    use simulated_psp::chip::{Chip, LaunchContext};
    use simulated_psp::protocol::{Bytes, Request, Response};

    const MEASUREMENT: Measurement = Measurement([3; 48]);
    const HOST_DATA: [u8; 32] = [4; 32];

    fn psp() -> impl Fn(&[u8; 64]) -> Evidence + Send + 'static {
        let dir = tempfile::tempdir().unwrap();
        let chip = Chip::open_or_create(dir.path()).unwrap();
        let psp = chip.launch(LaunchContext::new(MEASUREMENT, HOST_DATA)).unwrap();
        move |report_data| {
            let request = Request::Report { report_data: Bytes(*report_data), vmpl: 0 };
            let Response::Report { report, certificates } = psp.handle(&request) else { panic!("refused") };
            Evidence::from_tsm(EvidenceKind::SimSnp, report.0.to_vec(), &certificates.0).unwrap()
        }
    }

    /// A server that gives evidence of a simulated chip for `REPORT_DATA` as `bind` makes it of nonce and key.
    async fn guest(bind: impl Fn([u8; 32], &[u8]) -> [u8; 64] + Send + 'static) -> SocketAddr {
        let psp = psp();
        let answer = move |head: &str, tls_key: &[u8]| {
            let path = "GET /evidence?nonce=";
            assert!(head.starts_with(path), "{head}");
            let mut nonce = [0; 32];
            hex::decode_to_slice(&head[path.len()..path.len() + 64], &mut nonce).unwrap();
            let evidence = psp(&bind(nonce, tls_key));
            let body = format!("{{\"evidence\":{}}}", evidence.to_json().unwrap());
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        };
        Server::start_with(Box::new(|_| None), answer).await.address
    }

    fn bound(nonce: [u8; 32], tls_key: &[u8]) -> [u8; 64] {
        attestation::binding::report_data(EvidenceKind::SimSnp, &nonce, tls_key)
    }

    fn expected() -> Expectations {
        let anchors = anchors(Profile::Virtual).unwrap();
        Expectations::of_guest([MEASUREMENT], HOST_DATA, anchors)
    }

    async fn codes(address: SocketAddr, expected: &Expectations) -> Vec<&'static str> {
        match fetch_and_verify(address, expected).await {
            Err(AttestError::Refused(refusal)) => refusal.codes().collect(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn evidence_for_this_nonce_and_key_is_believed() {
        let attested = fetch_and_verify(guest(bound).await, &expected()).await.unwrap();
        assert_eq!(attested.verified.measurement(), MEASUREMENT);
        let key_hash: KeyHash = Sha256::digest(&attested.fetched.tls_key).into();
        assert_eq!(attested.pin.key_hash(), &key_hash);
    }

    #[tokio::test]
    async fn a_replayed_nonce_is_refused() {
        let address = guest(|_, tls_key| bound([0; 32], tls_key)).await;
        assert_eq!(codes(address, &expected()).await, ["report-data-mismatch"]);
    }

    #[tokio::test]
    async fn evidence_for_another_tls_key_is_refused() {
        // What a host does that puts itself between verifier and guest.
        let address = guest(|nonce, _| bound(nonce, b"the key of the real guest")).await;
        assert_eq!(codes(address, &expected()).await, ["report-data-mismatch"]);
    }

    #[tokio::test]
    async fn another_guest_or_configuration_is_refused() {
        let address = guest(bound).await;
        let anchors = expected().anchors;
        let other = Expectations::of_guest([Measurement([9; 48])], HOST_DATA, anchors.clone());
        assert_eq!(codes(address, &other).await, ["measurement-not-allowed"]);
        let other = Expectations::of_guest([MEASUREMENT], [9; 32], anchors);
        assert_eq!(codes(address, &other).await, ["host-data-mismatch"]);
    }

    #[tokio::test]
    async fn a_production_verifier_refuses_the_simulation() {
        let anchors = anchors(Profile::Production).unwrap();
        let refused = codes(guest(bound).await, &Expectations { anchors, ..expected() }).await;
        assert!(refused.contains(&"kind-not-allowed"), "{refused:?}");
    }

    /// A server whose certificate carries evidence, bound as `bind` says of the server's key and the time.
    async fn certified(issued: u64, bind: impl FnOnce(&[u8]) -> Binding<'_> + 'static) -> SocketAddr {
        let certify = move |tls_key: &[u8]| {
            let evidence = psp()(&bind(tls_key).report_data());
            Some((handshake::extension(&evidence).unwrap(), i64::try_from(issued).unwrap()))
        };
        Server::start_with(Box::new(certify), |_, _| "HTTP/1.1 200 OK\r\n\r\n".to_owned()).await.address
    }

    fn issued(at: u64, key: &[u8]) -> Binding<'_> {
        let freshness = Freshness::IssuedAt(at);
        Binding { kind: EvidenceKind::SimSnp, role: Role::Replica, freshness, key, peer: None }
    }

    async fn handshake_codes(address: SocketAddr) -> Vec<&'static str> {
        match connect(address, &expected(), handshake::MAX_AGE).await {
            Ok(_) => vec![],
            Err(AttestError::Refused(refusal)) => refusal.codes().collect(),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_certificate_with_evidence_is_believed_within_the_handshake() {
        let now = unix_time();
        let address = certified(now, move |key| issued(now, key)).await;
        let (_, verified) = connect(address, &expected(), handshake::MAX_AGE).await.unwrap();
        assert_eq!(verified.measurement(), MEASUREMENT);
    }

    #[tokio::test]
    async fn the_handshake_fails_by_name() {
        let now = unix_time();
        let other_key = move || issued(now, b"the key of the real guest");
        assert_eq!(
            handshake_codes(certified(now, move |_| other_key()).await).await,
            ["report-data-mismatch"]
        );
        // Evidence of an hour ago, and the same in a certificate that says it is of now.
        let then = now - handshake::MAX_AGE - 10;
        let stale = certified(then, move |key| issued(then, key)).await;
        assert_eq!(handshake_codes(stale).await, ["handshake-stale"]);
        let dressed_up = certified(now, move |key| issued(then, key)).await;
        assert_eq!(handshake_codes(dressed_up).await, ["report-data-mismatch"]);
        let ahead = certified(now + 1000, move |key| issued(now + 1000, key)).await;
        assert_eq!(handshake_codes(ahead).await, ["handshake-early"]);
        let role = certified(now, move |key| Binding { role: Role::Host, ..issued(now, key) }).await;
        assert_eq!(handshake_codes(role).await, ["report-data-mismatch"]);
        let peer = certified(now, move |key| Binding { peer: Some(b"peer"), ..issued(now, key) }).await;
        assert_eq!(handshake_codes(peer).await, ["report-data-mismatch"]);
        let plain = Server::start("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
        assert_eq!(handshake_codes(plain.address).await, ["handshake-evidence"]);
    }

    #[tokio::test]
    async fn no_evidence_is_an_error_of_its_own() {
        let server = Server::start("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy").await;
        let error = fetch_and_verify(server.address, &expected()).await.unwrap_err();
        assert!(chain(&error).contains("503: busy"), "{error:?}");
        let server = Server::start("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
        let error = fetch_and_verify(server.address, &expected()).await.unwrap_err();
        assert!(matches!(error, AttestError::Fetch(FetchError::Malformed { .. })), "{error:?}");
    }
}

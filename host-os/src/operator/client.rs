//! The operator's side: one request to a node's operator interface.

use super::identity::Identity;
use super::orders::{Action, Challenge, Order};
use super::tls::client_config;
use crate::decommission::Signed;
use crate::http::{GetError, JSON, send_once};
use hyper::{Method, body::Bytes};
use rustls::pki_types::ServerName;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Patience for one request.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer: a support bundle.
const MAX_ANSWER: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// No connection.
    #[error("cannot connect to {node}: {source}; check the address, and that the node has operators")]
    Connect {
        /// The node.
        node: String,
        /// Why.
        source: std::io::Error,
    },
    /// The node is another, or speaks no TLS.
    #[error("no TLS with {node}: {source}; the node's key must be the one given with --node-key")]
    Tls {
        /// The node.
        node: String,
        /// Why.
        source: std::io::Error,
    },
    /// The operator's key cannot be used for TLS.
    #[error("the operator's key cannot be used")]
    Key(#[source] rustls::Error),
    /// The node refuses.
    #[error("{message}")]
    Refused {
        /// The node's code for it.
        code: String,
        /// In words.
        message: String,
    },
    /// No proper answer.
    #[error("{node} gives no answer")]
    Answer {
        /// The node.
        node: String,
        /// Why.
        source: GetError,
    },
    /// Too slow.
    #[error("{node} did not answer within {} s", PATIENCE.as_secs())]
    Timeout {
        /// The node.
        node: String,
    },
}

impl OperateError {
    /// A short fixed name, for scripts and tests; the node's own if it refuses.
    pub fn code(&self) -> &str {
        match self {
            Self::Connect { .. } => "node-unreachable",
            Self::Tls { .. } => "node-key-differs",
            Self::Key(_) => "operator-key-unusable",
            Self::Refused { code, .. } => code,
            Self::Answer { .. } => "node-answer-unusable",
            Self::Timeout { .. } => "node-silent",
        }
    }
}

/// `GET path` of the node at `node` ("host:port"), whose key has this hash.
pub async fn get(
    node: &str,
    node_key: [u8; 32],
    identity: Option<&Identity>,
    path: &str,
) -> Result<Bytes, OperateError> {
    request(node, node_key, identity, Method::GET, path, Vec::new()).await
}

/// `POST path` of the node, with JSON.
pub async fn post(
    node: &str,
    node_key: [u8; 32],
    identity: Option<&Identity>,
    path: &str,
    body: Vec<u8>,
) -> Result<Bytes, OperateError> {
    request(node, node_key, identity, Method::POST, path, body).await
}

/// Has the node do something. `agreed` is asked with the node's name before the order is given, and can refuse.
/// A statement of what was erased comes back from a node that was decommissioned.
pub async fn order<E: From<OperateError>>(
    node: &str,
    node_key: [u8; 32],
    identity: Option<&Identity>,
    action: Action,
    agreed: impl FnOnce(&str) -> Result<(), E>,
) -> Result<Option<Signed>, E> {
    let form = |error: serde_json::Error| OperateError::Answer {
        node: node.to_owned(),
        source: GetError::Body(error.to_string()),
    };
    let given = get(node, node_key, identity, "/v1/challenge").await?;
    let Challenge { node: name, nonce, .. } = serde_json::from_slice(&given).map_err(form)?;
    agreed(&name)?;
    let body = serde_json::to_vec(&Order { version: 1, action, node: name, nonce }).map_err(form)?;
    let answer = request(node, node_key, identity, Method::POST, "/v1/orders", body).await?;
    match action {
        Action::Decommission => Ok(Some(serde_json::from_slice(&answer).map_err(form)?)),
        _ => Ok(None),
    }
}

/// The certificate, in PEM, that the node at `node` with this key shows.
pub async fn certificate(node: &str, node_key: [u8; 32]) -> Result<String, OperateError> {
    let stream = in_time(node, connect(node, node_key, None)).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    // The key in it was compared, so there is one.
    Ok(shown.map(|certificate| super::identity::pem(certificate)).unwrap_or_default())
}

async fn request(
    node: &str,
    node_key: [u8; 32],
    identity: Option<&Identity>,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Bytes, OperateError> {
    let request = async {
        let stream = connect(node, node_key, identity).await?;
        let answer = send_once(stream, node, method, path, JSON, body, MAX_ANSWER).await;
        answer.map_err(|source| refused(node, source))
    };
    in_time(node, request).await
}

async fn connect(
    node: &str,
    node_key: [u8; 32],
    identity: Option<&Identity>,
) -> Result<TlsStream<TcpStream>, OperateError> {
    let connector = TlsConnector::from(client_config(identity, node_key).map_err(OperateError::Key)?);
    let failed = |source| OperateError::Connect { node: node.to_owned(), source };
    let stream = TcpStream::connect(node).await.map_err(failed)?;
    let address = stream.peer_addr().map_err(failed)?;
    let tls = |source| OperateError::Tls { node: node.to_owned(), source };
    connector.connect(ServerName::IpAddress(address.ip().into()), stream).await.map_err(tls)
}

async fn in_time<T>(
    node: &str,
    work: impl Future<Output = Result<T, OperateError>>,
) -> Result<T, OperateError> {
    let limited = tokio::time::timeout(PATIENCE, work).await;
    limited.unwrap_or_else(|_| Err(OperateError::Timeout { node: node.to_owned() }))
}

/// What the node said in its own form, if it did.
pub(crate) fn refused(node: &str, error: GetError) -> OperateError {
    if let GetError::Refused { body, .. } = &error
        && let Ok(value) = serde_json::from_str::<serde_json::Value>(body)
        && let (Some(code), Some(message)) =
            (value["error"]["code"].as_str(), value["error"]["message"].as_str())
    {
        return OperateError::Refused { code: code.to_owned(), message: message.to_owned() };
    }
    OperateError::Answer { node: node.to_owned(), source: error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Shared, get_once};
    use crate::node::NodeDir;
    use crate::operator::keys::{Operator, Operators};
    use crate::operator::{Interface, serve};
    use rustls::SignatureScheme;
    use rustls::client::ResolvesClientCert;
    use rustls::sign::CertifiedKey;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    struct Server {
        address: SocketAddr,
        key: [u8; 32],
        directory: tempfile::TempDir,
        received: tokio::sync::mpsc::Receiver<crate::operator::carry::Command>,
    }

    impl Server {
        async fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let node = NodeDir::at(directory.path());
            let identity = Identity::create(&node.host_key()).unwrap();
            let key = identity.key_sha256;
            let shared = Shared::new(crate::status::tests::example(), Instant::now());
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            crate::log::tests::write(&node.agent_log(), &["one", "two"]);
            let (commands, received) = tokio::sync::mpsc::channel(4);
            let orders = crate::operator::carry::Orders::new(hex::encode(key), None, None, commands);
            tokio::spawn(serve(listener, identity, Interface { shared, node, orders }));
            Self { address, key, directory, received }
        }

        /// Enters this key alone.
        fn allow(&self, key_sha256: [u8; 32], not_after_unix_s: Option<u64>, revoked: bool) {
            let operator = Operator { name: "alice".into(), key_sha256, not_after_unix_s, revoked };
            let list = Operators { version: 1, operators: vec![operator], installed: None };
            let path = NodeDir::at(self.directory.path()).operators();
            std::fs::write(path, serde_json::to_vec(&list).unwrap()).unwrap();
        }

        async fn get(&self, identity: Option<&Identity>, path: &str) -> Result<Bytes, OperateError> {
            get(&self.address.to_string(), self.key, identity, path).await
        }
    }

    fn alice(directory: &tempfile::TempDir) -> Identity {
        Identity::create(&directory.path().join("alice.pem")).unwrap()
    }

    #[tokio::test]
    async fn an_operator_sees_status_logs_and_bundle() {
        let server = Server::start().await;
        let alice = alice(&server.directory);
        server.allow(alice.key_sha256, None, false);
        let status = server.get(Some(&alice), "/v1/status").await.unwrap();
        let status: crate::status::Status = serde_json::from_slice(&status).unwrap();
        assert_eq!(status.state, "ready");
        let line = server.get(Some(&alice), "/v1/logs?lines=1").await.unwrap();
        assert!(line.ends_with(b"Z  INFO two\n"), "{line:?}");
        let entry = server.get(Some(&alice), "/v1/logs?lines=1&format=json").await.unwrap();
        assert_eq!(serde_json::from_slice::<crate::log::Entry>(&entry).unwrap().message, "two");
        assert!(server.get(Some(&alice), "/v1/support").await.unwrap().len() > 1024);
        assert_eq!(server.get(Some(&alice), "/v1/other").await.unwrap_err().code(), "no-such-path");
    }

    #[tokio::test]
    async fn no_wrong_expired_and_revoked_keys_are_refused_by_name() {
        let server = Server::start().await;
        let alice = alice(&server.directory);
        let refused =
            async |identity| server.get(identity, "/v1/status").await.unwrap_err().code().to_owned();
        assert_eq!(refused(Some(&alice)).await, "operators-unusable", "there is no list");
        server.allow([7; 32], None, false);
        assert_eq!(refused(None).await, "operator-key-missing");
        assert_eq!(refused(Some(&alice)).await, "operator-key-unknown");
        server.allow(alice.key_sha256, Some(1), false);
        assert_eq!(refused(Some(&alice)).await, "operator-key-expired");
        server.allow(alice.key_sha256, None, true);
        assert_eq!(refused(Some(&alice)).await, "operator-key-revoked");
        // Not the path decides.
        assert_eq!(server.get(Some(&alice), "/v1/other").await.unwrap_err().code(), "operator-key-revoked");
        server.allow(alice.key_sha256, None, false);
        assert!(server.get(Some(&alice), "/v1/status").await.is_ok());
    }

    #[tokio::test]
    async fn orders_are_carried_out_once_and_by_name() {
        let mut server = Server::start().await;
        let alice = alice(&server.directory);
        server.allow(alice.key_sha256, None, false);
        let (node, key) = (server.address.to_string(), server.key);
        let agree = |_: &str| Ok::<(), OperateError>(());
        order(&node, key, Some(&alice), Action::RestartGuest, agree).await.unwrap();
        assert!(matches!(server.received.recv().await, Some(crate::operator::carry::Command::RestartGuest)));
        // This node is no machine of its own.
        let error = order(&node, key, Some(&alice), Action::Reboot, agree).await.unwrap_err();
        assert_eq!(error.code(), "order-not-possible");

        let given = server.get(Some(&alice), "/v1/challenge").await.unwrap();
        let Challenge { node: name, nonce, .. } = serde_json::from_slice(&given).unwrap();
        let post = async |order: &Order| {
            let body = serde_json::to_vec(order).unwrap();
            request(&node, key, Some(&alice), Method::POST, "/v1/orders", body).await
        };
        let action = Action::RestartGuest;
        let recorded = Order { version: 1, action, node: name, nonce };
        post(&recorded).await.unwrap();
        let refused = async |order: &Order| post(order).await.unwrap_err().code().to_owned();
        assert_eq!(refused(&recorded).await, "order-challenge-unknown", "a replay");
        let elsewhere = Order { node: "00".repeat(32), ..recorded.clone() };
        assert_eq!(refused(&elsewhere).await, "order-for-another-node");
        let made_up = Order { nonce: "00".repeat(16), ..recorded.clone() };
        assert_eq!(refused(&made_up).await, "order-challenge-unknown");
        assert_eq!(refused(&Order { version: 2, ..recorded }).await, "order-malformed");
        for body in [&b"{"[..], b"", &[0xff; 100], &[b'x'; 9000]] {
            let answer = request(&node, key, Some(&alice), Method::POST, "/v1/orders", body.to_vec()).await;
            assert!(answer.is_err(), "{body:?}");
        }
        server.allow(alice.key_sha256, None, true);
        let error = order(&node, key, Some(&alice), Action::RestartGuest, agree).await.unwrap_err();
        assert_eq!(error.code(), "operator-key-revoked");
    }

    #[tokio::test]
    async fn another_node_in_its_place_is_noticed() {
        let server = Server::start().await;
        let alice = alice(&server.directory);
        let error = get(&server.address.to_string(), [0; 32], Some(&alice), "/v1/status").await.unwrap_err();
        assert_eq!(error.code(), "node-key-differs");
    }

    /// Shows one certificate and signs with another key, which rustls' own builder refuses to do.
    #[derive(Debug)]
    struct Thief(Arc<CertifiedKey>);

    impl ResolvesClientCert for Thief {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
        fn has_certs(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn a_key_in_the_certificate_that_the_client_does_not_hold_is_refused() {
        let server = Server::start().await;
        let alice = alice(&server.directory);
        let other = Identity::create(&server.directory.path().join("thief.pem")).unwrap();
        server.allow(alice.key_sha256, None, false);
        let ask = async |key: &Identity| {
            let mut config = Arc::unwrap_or_clone(client_config(None, server.key).unwrap());
            let signer = rustls::crypto::ring::sign::any_supported_type(&key.key).unwrap();
            let shown = CertifiedKey::new(vec![alice.certificate.clone()], signer);
            config.client_auth_cert_resolver = Arc::new(Thief(Arc::new(shown)));
            let name = ServerName::IpAddress(server.address.ip().into());
            let stream = TcpStream::connect(server.address).await.unwrap();
            let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
            get_once(stream, "node", "/v1/health", 4096).await
        };
        assert!(ask(&alice).await.is_ok());
        // The handshake breaks off: not even an answer comes.
        let error = ask(&other).await.unwrap_err();
        assert!(matches!(error, GetError::Http(_)), "{error:?}");
    }

    #[tokio::test]
    async fn garbage_leaves_the_port_open_for_operators() {
        let server = Server::start().await;
        let alice = alice(&server.directory);
        server.allow(alice.key_sha256, None, false);
        let mut random = 88_172_645_463_325_252u64;
        for _ in 0..10_000 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            let garbage: Vec<u8> = (0..random % 300)
                .map(|_| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random as u8
                })
                .collect();
            let _ = stream.write_all(&garbage).await;
            let _ = stream.shutdown().await;
            let _ = stream.read(&mut [0; 64]).await;
        }
        // And the same within TLS.
        let connector = TlsConnector::from(client_config(Some(&alice), server.key).unwrap());
        for request in [
            "GET",
            "\0\0\0\0\r\n\r\n",
            "GET /v1/logs?lines=-1 HTTP/1.1\r\nHost: x\r\n\r\n",
            "POST /v1/status HTTP/9\r\n\r\n",
        ] {
            let stream = TcpStream::connect(server.address).await.unwrap();
            let name = ServerName::IpAddress(server.address.ip().into());
            let mut stream = connector.connect(name, stream).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{request:?}");
        }
        assert!(server.get(Some(&alice), "/v1/health").await.is_ok());
    }
}

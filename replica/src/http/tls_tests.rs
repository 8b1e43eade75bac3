//! TLS and attestation evidence over it, with a provider of evidence that is a thread here.

use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;

use crate::config::Config;
use crate::node::Node;

/// Takes any certificate that its key signs for, and keeps it.
#[derive(Debug)]
struct Any(Mutex<Option<CertificateDer<'static>>>);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.0.lock().unwrap() = Some(certificate.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 was negotiated".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// The whole answer to a GET over TLS, and the certificate.
async fn get(
    address: std::net::SocketAddr,
    version: &'static SupportedProtocolVersion,
    path: &str,
) -> std::io::Result<(String, CertificateDer<'static>)> {
    let verifier = Arc::new(Any(Mutex::new(None)));
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let certificate = verifier.0.lock().unwrap().take().unwrap();
    Ok((answer, certificate))
}

/// Answers questions with what it was asked, as evidence; refuses the nonce of zeros. Without a nonce it gives an
/// extension that says how many were given before and that is old at once.
async fn provider(listener: UnixListener) {
    let mut extensions = 0;
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut question = vec![0; stream.read_u32_le().await.unwrap() as usize];
        stream.read_exact(&mut question).await.unwrap();
        let question: serde_json::Value = serde_json::from_slice(&question).unwrap();
        let answer = if question["nonce"].is_null() {
            let value = BASE64_STANDARD.encode(format!("extension {extensions}"));
            let oid = "1.3.6.1.5.5.7.1.35";
            extensions += 1;
            serde_json::json!({ "extension":
                { "oid": oid, "value": value, "issued_unix_s": 1_794_700_800, "renew_after_s": 0 } })
        } else if question["nonce"] == "0".repeat(64) {
            serde_json::json!({ "error": "not this one" })
        } else {
            serde_json::json!({ "evidence": question })
        };
        let answer = answer.to_string();
        stream.write_all(&(answer.len() as u32).to_le_bytes()).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

fn config(directory: &Path) -> Config {
    let text = format!(
        "listen = \"127.0.0.1:0\"\nsecret_file = \"{0}/secret\"\ncreate_secret = true\n\
         evidence_socket = \"{0}/evidence\"\n[heap]\nkind = \"file\"\npath = \"{0}/heap\"\nsize = 16777216",
        directory.display()
    );
    Config::parse(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_is_asked_for_the_key_that_the_connection_uses() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("evidence")).unwrap();
    let provider = tokio::spawn(provider(listener));
    let node = Node::start(config(directory.path()), crate::clock::system()).await.unwrap();
    let address = node.address().unwrap();
    let (stop, stopped) = oneshot::channel();
    let end = tokio::spawn(node.serve(async {
        let _ = stopped.await;
    }));

    let nonce = "ab".repeat(32);
    let (answer, certificate) = get(address, &TLS13, &format!("/evidence?nonce={nonce}")).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["evidence"]["nonce"], nonce.as_str());
    let spki = BASE64_STANDARD.decode(body["evidence"]["spki"].as_str().unwrap()).unwrap();
    assert_eq!(spki.len(), 91);
    let holds = |certificate: &CertificateDer<'_>, part: &[u8]| {
        certificate.windows(part.len()).any(|window| window == part)
    };
    assert!(holds(&certificate, &spki), "the certificate has another key");
    assert!(holds(&certificate, b"extension 0"), "the first certificate has evidence");
    let mut renewed = false;
    for _ in 0..100 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let (_, certificate) = get(address, &TLS13, "/").await.unwrap();
        assert!(holds(&certificate, &spki), "the key changed");
        renewed = holds(&certificate, b"extension 1");
        if renewed {
            break;
        }
    }
    assert!(renewed, "the evidence in the certificate was not renewed");

    let (answer, _) = get(address, &TLS13, &format!("/evidence?nonce={}", "0".repeat(64))).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && answer.ends_with(r#"{"error":"not this one"}"#),
        "{answer}"
    );
    provider.abort();
    let _ = provider.await;
    let (answer, _) = get(address, &TLS13, &format!("/evidence?nonce={nonce}")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("did not answer"), "{answer}");

    assert!(get(address, &TLS12, "/").await.is_err(), "TLS 1.2 was accepted");
    stop.send(()).unwrap();
    end.await.unwrap().unwrap();
}

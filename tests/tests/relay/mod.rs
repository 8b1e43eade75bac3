//! Somebody between a client and a node: takes TLS with a key of his own and passes on what is said.

use anyhow::{Context, Result};
use attestation::handshake::{self, Presented};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection};
use rustls::{Error, SignatureScheme, Stream};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Evidence for a TLS key.
type Make = Box<dyn FnOnce(&[u8]) -> Result<Presented>>;

/// What he shows.
pub(crate) enum Certificate {
    /// A certificate without evidence.
    Plain,
    /// One with the evidence that the node showed.
    Copied(Presented),
    /// One with evidence made for his own key.
    Made(Make),
}

/// He serves until the test ends.
pub(crate) struct Relay {
    /// Where he listens.
    pub(crate) url: String,
    requests: Arc<AtomicUsize>,
}

impl Relay {
    /// Stands between clients and the node at `upstream`.
    pub(crate) fn start(upstream: &str, certificate: Certificate) -> Result<Self> {
        let upstream = upstream.trim_start_matches("https://").trim_end_matches('/').to_owned();
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()])?;
        let presented = match certificate {
            Certificate::Plain => None,
            Certificate::Copied(presented) => Some(presented),
            Certificate::Made(make) => Some(make(&rcgen::PublicKeyData::subject_public_key_info(&key))?),
        };
        if let Some(presented) = presented {
            params.not_before =
                time::OffsetDateTime::from_unix_timestamp(presented.issued_unix_s.try_into()?)?;
            let content = handshake::extension(&presented.evidence).context("too long")?;
            params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&handshake::OID, content));
        }
        let certificate = params.self_signed(&key)?.der().clone();
        let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], private)?;
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("https://{}", listener.local_addr()?);
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A client that hangs up in the handshake is what the test wants to see.
                let _ = pass_on(client, config.clone(), &upstream, &counter);
            }
        });
        Ok(Self { url, requests })
    }

    /// How many requests clients sent to him.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn pass_on(
    mut client: TcpStream,
    config: Arc<ServerConfig>,
    upstream: &str,
    requests: &AtomicUsize,
) -> Result<()> {
    let mut tls = ServerConnection::new(config)?;
    let mut client = Stream::new(&mut tls, &mut client);
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    requests.fetch_add(1, Ordering::SeqCst);
    let mut answer = Vec::new();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    let mut tls = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
    let mut node = TcpStream::connect(upstream)?;
    let mut node = Stream::new(&mut tls, &mut node);
    node.write_all(&request)?;
    // The request asks to close after the answer; a server that does so without a goodbye did answer.
    let _ = node.read_to_end(&mut answer);
    client.write_all(&answer)?;
    client.conn.send_close_notify();
    client.flush()?;
    Ok(())
}

/// He does not care who the node is.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

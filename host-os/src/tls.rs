//! TLS to a guest, whose certificate no authority signs: its key is recorded, or compared with one that evidence proved,
//! or proved by the evidence in the certificate itself.

use crate::attest::Expectations;
use attestation::{Refusal, Verified, handshake::Presented};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex, PoisonError};

/// SHA-256 of a SubjectPublicKeyInfo in DER.
pub(crate) type KeyHash = [u8; 32];

/// Decides whether a server's certificate will do. That the server holds its private key is checked besides; names,
/// dates and issuers in it mean nothing here.
pub(crate) trait Judge: std::fmt::Debug + Send + Sync {
    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), Error>;
}

/// Takes the key with this hash; with `None` any key, and the caller must not believe anything that the server says
/// until evidence has tied the key to a guest.
#[derive(Debug)]
pub(crate) struct Pinned(pub(crate) Option<KeyHash>);

impl Judge for Pinned {
    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let key: KeyHash = Sha256::digest(public_key(certificate)?).into();
        match self.0 {
            Some(pin) if pin != key => Err(Error::General(
                "its TLS key is not the one that its evidence proved, or that was given".into(),
            )),
            _ => Ok(()),
        }
    }
}

/// Takes a key that the evidence in its certificate proves (RA-TLS), and keeps the verdict.
#[derive(Debug)]
pub(crate) struct Attesting {
    pub(crate) expected: Expectations,
    pub(crate) now_unix_s: u64,
    pub(crate) max_age_s: u64,
    pub(crate) verdict: Mutex<Option<Result<Verified, Refusal>>>,
}

impl Judge for Attesting {
    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let Expectations { policy, anchors } = &self.expected;
        let verdict = Presented::from_certificate(certificate)
            .map_err(Refusal::from)
            .and_then(|presented| presented.verify(policy, anchors, self.now_unix_s, self.max_age_s));
        let result = match &verdict {
            Ok(_) => Ok(()),
            Err(refusal) => {
                Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal.clone())))))
            }
        };
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
        result
    }
}

/// Configuration of connections to a server whose certificate this judge takes.
pub(crate) fn client_config(judge: Arc<dyn Judge>) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { judge, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session shows no certificate, and what was proved of it once may be old.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// SubjectPublicKeyInfo (DER) of the key that a certificate holds.
pub(crate) fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, Error> {
    Ok(rustls::server::ParsedCertificate::try_from(certificate)?.subject_public_key_info().as_ref().to_vec())
}

/// Checks that the server holds the private key to a certificate that the judge takes.
#[derive(Debug)]
pub(crate) struct Verifier {
    pub(crate) judge: Arc<dyn Judge>,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge.judge(certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use rustls::pki_types::PrivateKeyDer;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A TLS server with a key of its own that gives one fixed answer to each connection.
    pub(crate) struct Server {
        pub(crate) address: SocketAddr,
        pub(crate) key_hash: KeyHash,
    }

    /// What a server puts into its certificate for its key: content of the extension and beginning of the validity.
    type Certify = Box<dyn FnOnce(&[u8]) -> Option<(Vec<u8>, i64)>>;

    impl Server {
        pub(crate) async fn start(answer: &'static str) -> Self {
            Self::start_with(Box::new(|_| None), move |_, _| answer.to_owned()).await
        }

        /// The answer may depend on the request's head and on the server's key.
        pub(crate) async fn start_with(
            certify: Certify,
            answer: impl Fn(&str, &[u8]) -> String + Send + 'static,
        ) -> Self {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(["guest".to_owned()]).unwrap();
            let tls_key = rcgen::PublicKeyData::subject_public_key_info(&key);
            if let Some((content, issued)) = certify(&tls_key) {
                params.not_before = time::OffsetDateTime::from_unix_timestamp(issued).unwrap();
                let extension =
                    rcgen::CustomExtension::from_oid_content(&attestation::handshake::OID, content);
                params.custom_extensions.push(extension);
            }
            let certificate = params.self_signed(&key).unwrap().der().clone();
            assert_eq!(public_key(&certificate).unwrap(), tls_key);
            let key_hash = Sha256::digest(&tls_key).into();
            let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate], private)
                .unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                    let mut head = vec![0; 4096];
                    let count = stream.read(&mut head).await.unwrap_or(0);
                    let answer = answer(&String::from_utf8_lossy(&head[..count]), &tls_key);
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            });
            Self { address, key_hash }
        }
    }
}

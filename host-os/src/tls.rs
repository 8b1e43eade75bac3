//! TLS to a guest, whose certificate no authority signs: its key is recorded, or compared with one that evidence proved.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// SHA-256 of a SubjectPublicKeyInfo in DER.
pub(crate) type KeyHash = [u8; 32];

/// Configuration of connections whose server holds the key with this hash; with `None` any key is taken, and the
/// caller must not believe anything the server says until evidence has tied the key to a guest.
pub(crate) fn client_config(pin: Option<KeyHash>) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(KeyVerifier { pin, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// SubjectPublicKeyInfo (DER) of the key that a certificate holds.
pub(crate) fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, Error> {
    Ok(rustls::server::ParsedCertificate::try_from(certificate)?.subject_public_key_info().as_ref().to_vec())
}

/// Checks that the server holds the private key to its certificate, and which key that is. Names, dates and
/// issuers in the certificate mean nothing here.
#[derive(Debug)]
struct KeyVerifier {
    pin: Option<KeyHash>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key: KeyHash = Sha256::digest(public_key(certificate)?).into();
        match self.pin {
            Some(pin) if pin != key => {
                Err(Error::General("the guest's TLS key is not the one that its evidence proved".into()))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
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

    impl Server {
        pub(crate) async fn start(answer: &'static str) -> Self {
            Self::start_with(move |_, _| answer.to_owned()).await
        }

        /// The answer may depend on the request's head and on the server's key.
        pub(crate) async fn start_with(answer: impl Fn(&str, &[u8]) -> String + Send + 'static) -> Self {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate =
                rcgen::CertificateParams::new(["guest".to_owned()]).unwrap().self_signed(&key).unwrap();
            let certificate = certificate.der().clone();
            let tls_key = public_key(&certificate).unwrap();
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

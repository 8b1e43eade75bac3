//! The TLS key and its certificate, which carries evidence where there is a provider of it (RA-TLS).

use std::sync::{Arc, PoisonError, RwLock};

use rcgen::{CertificateParams, CustomExtension, KeyPair, PublicKeyData as _};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::version::TLS13;
use tokio_rustls::TlsAcceptor;

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No key or certificate.
    #[error("the TLS key or certificate cannot be made; the cryptographic library is broken")]
    Certificate(#[from] rcgen::Error),
    /// rustls refuses them.
    #[error("the TLS configuration is refused; the cryptographic library is broken")]
    Configuration(#[from] rustls::Error),
    /// An extension that no certificate can have.
    #[error("the evidence for the TLS certificate has {0}; provider and replica must be of one release")]
    Extension(&'static str),
}

/// What a provider of evidence puts into the certificate. What it means is for the client to judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Arcs of its object identifier.
    pub oid: Vec<u64>,
    /// Its value, DER.
    pub value: Vec<u8>,
    /// Beginning of the certificate's validity, in seconds since 1970: the evidence binds it.
    pub issued_unix_s: u64,
}

/// A TLS key, made now and gone with this process, with a certificate that it signed itself. Clients do not
/// look at names in it: they pin the key, which attestation evidence binds.
pub struct TlsIdentity {
    key: KeyPair,
    signer: Arc<dyn SigningKey>,
    shown: Arc<Shown>,
    acceptor: TlsAcceptor,
}

/// The certificate that the next handshake shows.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl TlsIdentity {
    /// Makes the key (ECDSA on P-256) and a certificate without evidence.
    pub fn generate() -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let key = KeyPair::generate()?;
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = provider.key_provider.load_private_key(private)?;
        let shown = Arc::new(Shown(RwLock::new(certified(&key, &signer, None)?)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A resumed session shows no certificate: each connection is attested anew.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { key, signer, shown, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// SubjectPublicKeyInfo of the key, DER.
    pub fn spki(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// Takes connections with this identity.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// From now on handshakes show a certificate with this extension, and with the same key as before.
    pub fn show(&self, extension: &Extension) -> Result<(), TlsError> {
        let next = certified(&self.key, &self.signer, Some(extension))?;
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}

fn certified(
    key: &KeyPair,
    signer: &Arc<dyn SigningKey>,
    extension: Option<&Extension>,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let mut params = CertificateParams::new(["localhost".to_owned()])?;
    if let Some(Extension { oid, value, issued_unix_s }) = extension {
        // What rcgen takes for granted.
        if !matches!(oid.as_slice(), [0..=1, 0..=39, _, ..] | [2, 0..=47, _, ..]) {
            return Err(TlsError::Extension("no object identifier"));
        }
        let seconds = i64::try_from(*issued_unix_s).ok();
        // X.509 ends with the year 9999.
        let issued = seconds
            .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
            .filter(|issued| (1970..=9999).contains(&issued.year()))
            .ok_or(TlsError::Extension("a time that X.509 cannot express"))?;
        params.not_before = issued;
        params.custom_extensions.push(CustomExtension::from_oid_content(oid, value.clone()));
    }
    let certificate = params.self_signed(key)?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(identity: &TlsIdentity) -> Vec<u8> {
        identity.shown.0.read().unwrap().cert[0].to_vec()
    }

    fn holds(certificate: &[u8], part: &[u8]) -> bool {
        certificate.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn the_extension_changes_and_the_key_stays() {
        let identity = TlsIdentity::generate().unwrap();
        let spki = identity.spki();
        assert!(holds(&shown(&identity), &spki));
        for value in [b"first evidence", b"later evidence"] {
            let issued_unix_s = 1_794_700_800;
            let oid = vec![1, 3, 6, 1, 5, 5, 7, 1, 35];
            identity.show(&Extension { oid, value: value.to_vec(), issued_unix_s }).unwrap();
            let certificate = shown(&identity);
            assert!(holds(&certificate, value) && holds(&certificate, &spki));
            // The object identifier in DER and the beginning of the validity as UTCTime.
            assert!(holds(&certificate, &[6, 8, 43, 6, 1, 5, 5, 7, 1, 35]));
            assert!(holds(&certificate, b"261115000000Z"));
        }
        assert!(!holds(&shown(&identity), b"first evidence"));
    }

    #[test]
    fn what_no_certificate_can_hold_is_refused_and_changes_nothing() {
        let identity = TlsIdentity::generate().unwrap();
        let before = shown(&identity);
        let refused = |oid: &[u64], issued_unix_s| {
            let extension = Extension { oid: oid.to_vec(), value: vec![4, 0], issued_unix_s };
            matches!(identity.show(&extension), Err(TlsError::Extension(_)))
        };
        assert!(refused(&[], 0) && refused(&[1], 0) && refused(&[3, 1, 1], 0) && refused(&[1, 40, 1], 0));
        assert!(refused(&[1, 3, 6], u64::MAX) && refused(&[1, 3, 6], 253_402_300_800));
        assert_eq!(shown(&identity), before);
    }
}

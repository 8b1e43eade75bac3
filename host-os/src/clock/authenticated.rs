//! Asks servers with Network Time Security: keys over TLS, then the time.

use super::nts::{self, Given, Keys, LABEL, MAX_ANSWER, PROTOCOL, Random};
use super::{Agreement, Sample, agree, build_time, ntp};
use installer::network::Nts;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// For the keys, and for one answer.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(2));
/// Port of the time.
const NTP: u16 = 123;

type Anything = Box<dyn std::error::Error + Send + Sync>;

/// One server, with the keys that it gave.
pub struct Server {
    address: SocketAddr,
    name: String,
    tls: Result<Arc<ClientConfig>, String>,
    session: Option<Session>,
}

struct Session {
    address: SocketAddr,
    keys: Keys,
    cookies: Vec<Vec<u8>>,
}

/// Certificates are judged by a clock that may be wrong: at least it is not before this program was built (8.5).
#[derive(Debug)]
struct NotBeforeBuild;

impl TimeProvider for NotBeforeBuild {
    fn current_time(&self) -> Option<UnixTime> {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Some(UnixTime::since_unix_epoch(now.max(Duration::from_secs_f64(build_time()))))
    }
}

fn tls(authority: &str) -> Result<Arc<ClientConfig>, Anything> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(NotBeforeBuild))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}

impl Server {
    /// As configured.
    pub fn new(server: &Nts) -> Self {
        Self {
            address: (server.address, server.port.unwrap_or(nts::PORT)).into(),
            name: server.name.clone(),
            tls: tls(&server.authority).map_err(|error| error.to_string()),
            session: None,
        }
    }

    async fn keys(&self) -> Result<Session, Anything> {
        let tls = self.tls.clone()?;
        let name = ServerName::try_from(self.name.clone())?;
        let stream = TcpStream::connect(self.address).await?;
        let mut stream = TlsConnector::from(tls).connect(name, stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
            return Err("it does not speak NTS".into());
        }
        let key = |to_client| {
            stream.get_ref().1.export_keying_material([0; 32], LABEL, Some(&nts::context(to_client)))
        };
        let keys = Keys { to_server: key(false)?, to_client: key(true)? };
        stream.write_all(&nts::request()).await?;
        stream.flush().await?;
        let (mut bytes, mut part) = (Vec::new(), [0; 2048]);
        let Given { cookies, server, port } = loop {
            if let Some(given) = nts::given(&bytes)? {
                break given;
            }
            match stream.read(&mut part).await? {
                0 => return Err("its answer breaks off".into()),
                _ if bytes.len() > MAX_ANSWER => return Err("its answer has no end".into()),
                length => bytes.extend(&part[..length]),
            }
        };
        // No name service is asked: a server that sends elsewhere says so by address.
        let address = match server {
            Some(text) if text != self.name => text.parse::<IpAddr>()?,
            _ => self.address.ip(),
        };
        Ok(Session { address: (address, port.unwrap_or(NTP)).into(), keys, cookies })
    }

    async fn ask(&mut self) -> Option<Sample> {
        if self.session.as_ref().is_none_or(|session| session.cookies.is_empty()) {
            let keys =
                timeout(PATIENCE.0, self.keys()).await.unwrap_or_else(|_| Err("it does not answer".into()));
            self.session = keys
                .map_err(|error| tracing::warn!(server = self.name, %error, "no keys from a server of time"))
                .ok();
        }
        let session = self.session.as_mut()?;
        let sample = timeout(PATIENCE.1, session.ask()).await;
        let sample = sample.unwrap_or_else(|_| Err("it does not answer".into()));
        if let Err(error) = &sample {
            // The server may have forgotten its keys: new ones next time.
            tracing::debug!(server = self.name, %error, "time");
            self.session = None;
        }
        sample.ok()
    }
}

impl Session {
    async fn ask(&mut self) -> Result<Sample, Anything> {
        let own: IpAddr =
            if self.address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((own, 0)).await?;
        socket.connect(self.address).await?;
        let mut random = Random::default();
        for part in [&mut random.time[..], &mut random.unique, &mut random.nonce] {
            getrandom::fill(part).map_err(|error| error.to_string())?;
        }
        let cookie = self.cookies.pop().ok_or("no cookie is left")?;
        let question = nts::question(&random, &cookie, &self.keys)?;
        let (sent, start) = (super::keeper::now(), Instant::now());
        socket.send(&question).await?;
        let mut packet = [0; 4096];
        loop {
            let length = socket.recv(&mut packet).await?;
            let took = start.elapsed().as_secs_f64();
            match nts::answer(&packet[..length], &random.unique, &self.keys) {
                Ok(cookies) => {
                    self.cookies.extend(cookies);
                    return Ok(ntp::answer(&packet[..length], random.time, sent, took)?);
                }
                Err(error) => tracing::debug!(%error, "time"),
            }
        }
    }
}

/// Asks all of them at the same time.
pub(super) async fn round(servers: &mut Vec<Server>) -> Option<Agreement> {
    let count = servers.len();
    let asked: Vec<_> = servers
        .drain(..)
        .map(|mut server| {
            tokio::spawn(async move {
                let sample = server.ask().await;
                (server, sample)
            })
        })
        .collect();
    let mut samples = Vec::new();
    for answer in asked {
        if let Ok((server, sample)) = answer.await {
            servers.push(server);
            samples.extend(sample);
        }
    }
    agree(&samples, count)
}

#[cfg(test)]
mod tests;

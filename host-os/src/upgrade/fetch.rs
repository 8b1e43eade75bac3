//! Fetching the files of a release: over HTTP or HTTPS, from mirrors, going on where an earlier fetch ended.
//!
//! What comes is believed because of its hash, which a signed manifest states, and hashed as it comes. TLS hides what is
//! fetched and from whom; nothing rests on it.

#[cfg(test)]
mod tests;

use super::delta;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_RANGE, HOST, LOCATION, RANGE};
use hyper::{Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use release::File;
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::fs::OpenOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For a connection, and for each piece of a body.
const PATIENCE: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 5;

/// A file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not an address that can be fetched from.
    #[error("{0} is no address of a release; give http:// or https:// and a path")]
    Address(String),
    /// Network, server or protocol.
    #[error(
        "cannot fetch {address}: {reason}; check the address and the network, then ask again: it goes on from there"
    )]
    Server {
        /// What was asked for.
        address: String,
        /// Why.
        reason: String,
    },
    /// The server has none, or shows none.
    #[error("{0} is not there; check the address")]
    Absent(String),
    /// It is another file.
    #[error(
        "{address} is not the file that the manifest names ({what}); ask the release's owners or take another mirror"
    )]
    Wrong {
        /// What was asked for.
        address: String,
        /// What differs.
        what: &'static str,
    },
    /// No room.
    #[error("no room for {path}: {needed} bytes are needed and {free} are free; make room, then ask again")]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Bytes still to come.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The disk failed.
    #[error("cannot write {path}: {source}; check the disk, its owner and mode")]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FetchError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Address(_) => "fetch-address",
            Self::Server { .. } | Self::Absent(_) => "fetch-failed",
            Self::Wrong { .. } => "fetch-wrong-file",
            Self::DiskFull { .. } => "fetch-disk-full",
            Self::Disk { source, .. } if source.kind() == io::ErrorKind::StorageFull => "fetch-disk-full",
            Self::Disk { .. } => "fetch-disk",
        }
    }
}

/// Where a release lies: the address of its manifest, and mirrors of the directory that it is in.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Address of the manifest.
    pub manifest: String,
    /// Other directories with the same files.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Most bytes in a second; none for as fast as it goes.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
}

impl Source {
    /// Whether somebody elsewhere may name these addresses: not files of this machine.
    pub fn check_remote(&self) -> Result<(), FetchError> {
        let local = |address: &&String| local(address).is_some();
        match std::iter::once(&self.manifest).chain(&self.mirrors).find(local) {
            Some(address) => Err(FetchError::Address(address.clone())),
            None => Ok(()),
        }
    }

    /// Where a release in a directory beside this one's manifest lies.
    pub(super) fn within(&self, directory: &str) -> Self {
        let own = self.manifest.rsplit_once('/').map_or("", |(parent, _)| parent);
        let mirrors = self.mirrors.iter();
        Self {
            manifest: format!("{own}/{directory}/manifest.json"),
            mirrors: mirrors.map(|one| format!("{}/{directory}", one.trim_end_matches('/'))).collect(),
            bytes_per_second: self.bytes_per_second,
        }
    }

    /// Addresses of a file of the release, the first choice first.
    pub fn addresses(&self, name: &str) -> Vec<String> {
        let own = self.manifest.rsplit_once('/').map(|(directory, _)| directory);
        let mirrors = self.mirrors.iter().map(|mirror| mirror.trim_end_matches('/'));
        own.into_iter().chain(mirrors).map(|directory| format!("{directory}/{name}")).collect()
    }
}

/// The file that an address names, if it is one of this machine.
fn local(address: &str) -> Option<&Path> {
    address.strip_prefix("file://").map(Path::new)
}

fn failed(address: &str) -> impl Fn(String) -> FetchError {
    move |reason| FetchError::Server { address: address.to_owned(), reason }
}

/// A document: at most `limit` bytes, and at most `rate` in a second.
pub(super) async fn document(address: &str, limit: usize, rate: Option<u64>) -> Result<Vec<u8>, FetchError> {
    if let Some(path) = local(address) {
        let file = tokio::fs::File::open(path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => FetchError::Absent(address.to_owned()),
            _ => failed(address)(error.to_string()),
        })?;
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .await
            .map_err(|error| failed(address)(error.to_string()))?;
        if bytes.len() > limit {
            return Err(FetchError::Wrong { address: address.to_owned(), what: "it is longer" });
        }
        return Ok(bytes);
    }
    let answer = get(address, 0).await?;
    let (began, mut bytes) = (Instant::now(), Vec::new());
    let mut body = Limited::new(answer.into_body(), limit);
    while let Some(frame) = timeout(PATIENCE, body.frame()).await.map_err(|_| halted(address))? {
        let frame = frame.map_err(|error| failed(address)(error.to_string()))?;
        bytes.extend(frame.into_data().unwrap_or_default());
        keep_to(rate, bytes.len() as u64, began).await;
    }
    Ok(bytes)
}

fn halted(address: &str) -> FetchError {
    failed(address)("it came to a halt".to_owned())
}

/// Waits until so many bytes may have moved.
async fn keep_to(rate: Option<u64>, moved: u64, began: Instant) {
    if let Some(rate) = rate.filter(|rate| *rate > 0) {
        let due = Duration::from_secs_f64(moved as f64 / rate as f64);
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
    }
}

/// A document beside the manifest, from the first address that has it.
pub(super) async fn beside(source: &Source, name: &str, limit: usize) -> Result<Vec<u8>, FetchError> {
    let mut last = FetchError::Address(source.manifest.clone());
    for address in source.addresses(name) {
        match document(&address, limit, source.bytes_per_second).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The same if an address has it; none where each server says that it has none.
pub(super) async fn beside_if_there(
    source: &Source,
    name: &str,
    limit: usize,
) -> Result<Option<Vec<u8>>, FetchError> {
    let mut failed = None;
    for address in source.addresses(name) {
        match document(&address, limit, source.bytes_per_second).await {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(FetchError::Absent(_)) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(None), Err)
}

/// A file of a release, into `directory`. Where the release that runs has a file `former` and the server a difference to it,
/// that is fetched; what an earlier try left is used; `progress` hears how many bytes are there. Returns how many moved.
pub(super) async fn file(
    source: &Source,
    file: &File,
    former: Option<(&File, &Path)>,
    directory: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<u64, FetchError> {
    let path = directory.join(&file.path);
    if let Some((old, place)) = former.filter(|_| !path.exists())
        && let Some(moved) = difference(source, old, place, file, &path).await?
    {
        progress(file.size);
        return Ok(moved);
    }
    let mut last = None;
    for address in source.addresses(&file.path) {
        let mut fetched = from(&address, file, &path, source.bytes_per_second, progress).await;
        if let Err(FetchError::Wrong { .. }) = fetched {
            // It may have gone on from what was left of another file; that is gone now.
            fetched = from(&address, file, &path, source.bytes_per_second, progress).await;
        }
        match fetched {
            Ok(moved) => return Ok(moved),
            // What this machine cannot do, no mirror can mend.
            Err(error @ (FetchError::DiskFull { .. } | FetchError::Disk { .. })) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a mirror fails");
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| FetchError::Address(source.manifest.clone())))
}

/// Makes the new file from the old one, if a server has the difference and the right bytes come out.
async fn difference(
    source: &Source,
    old: &File,
    place: &Path,
    new: &File,
    path: &Path,
) -> Result<Option<u64>, FetchError> {
    let disk = |source| FetchError::Disk { path: path.to_owned(), source };
    // A device is longer than the file on it.
    let old_bytes = || async {
        let mut bytes = Vec::new();
        tokio::fs::File::open(place).await?.take(old.size).read_to_end(&mut bytes).await?;
        Ok::<_, io::Error>(bytes)
    };
    let made = if old.sha256 == new.sha256 {
        (0, old_bytes().await.ok())
    } else {
        // A difference that is not much smaller is not worth having.
        let limit = usize::try_from(new.size / 2).unwrap_or(usize::MAX);
        let delta = beside(source, &delta::name(old, new), limit).await.ok();
        let (Some(delta), Ok(old)) = (delta, old_bytes().await) else { return Ok(None) };
        let moved = delta.len() as u64;
        // Packing takes seconds.
        let made = tokio::task::spawn_blocking(move || delta::apply(&old, &delta)).await;
        match made {
            Ok(Ok(bytes)) => (moved, Some(bytes)),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a difference is no use");
                (moved, None)
            }
            Err(_) => (moved, None),
        }
    };
    let (moved, Some(bytes)) = made else { return Ok(None) };
    if Sha256::digest(&bytes)[..] != new.sha256.0 {
        return Ok(None);
    }
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(disk)?;
    }
    crate::node::write_atomically(path, &bytes).map_err(disk)?;
    Ok(Some(moved))
}

async fn from(
    address: &str,
    file: &File,
    path: &Path,
    limit: Option<u64>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<u64, FetchError> {
    let disk = |source: io::Error| FetchError::Disk { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(disk)?;
    }
    let mut options = OpenOptions::new();
    let mut part = options.read(true).write(true).create(true).mode(0o600).open(path).await.map_err(disk)?;
    let (mut hash, mut have) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match part.read(&mut buffer).await.map_err(disk)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                have += count as u64;
            }
        }
    }
    if have > file.size || have == file.size && hash.clone().finalize()[..] != file.sha256.0 {
        // Something else lies there.
        part.set_len(0).await.map_err(disk)?;
        (hash, have) = (Sha256::new(), 0);
    }
    if have == file.size {
        return Ok(0);
    }
    let free = nix::sys::statvfs::fstatvfs(&part)
        .map(|found| found.blocks_available() * found.fragment_size())
        .map_err(|errno| disk(errno.into()))?;
    if free < file.size - have {
        return Err(FetchError::DiskFull { path: path.to_owned(), needed: file.size - have, free });
    }
    if local(address).is_some() {
        let bytes = document(address, usize::try_from(file.size).unwrap_or(usize::MAX), None).await?;
        if Sha256::digest(&bytes)[..] != file.sha256.0 {
            return Err(FetchError::Wrong { address: address.to_owned(), what: "its hash differs" });
        }
        crate::node::write_atomically(path, &bytes).map_err(disk)?;
        progress(file.size);
        return Ok(file.size);
    }
    let answer = get(address, have).await?;
    if have > 0 && !continues(&answer, have) {
        part.set_len(0).await.map_err(disk)?;
        (hash, have) = (Sha256::new(), 0);
    }
    use tokio::io::AsyncSeekExt;
    part.seek(io::SeekFrom::Start(have)).await.map_err(disk)?;
    let (began, mut moved) = (Instant::now(), 0_u64);
    let mut body = answer.into_body();
    while let Some(frame) = timeout(PATIENCE, body.frame()).await.map_err(|_| halted(address))? {
        let frame = frame.map_err(|error| failed(address)(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        moved += data.len() as u64;
        have += data.len() as u64;
        if have > file.size {
            part.set_len(0).await.map_err(disk)?;
            return Err(FetchError::Wrong { address: address.to_owned(), what: "it is longer" });
        }
        hash.update(&data);
        part.write_all(&data).await.map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull => {
                FetchError::DiskFull { path: path.to_owned(), needed: file.size - have, free: 0 }
            }
            _ => disk(source),
        })?;
        progress(have);
        keep_to(limit, moved, began).await;
    }
    part.flush().await.map_err(disk)?;
    part.sync_all().await.map_err(disk)?;
    if have < file.size {
        return Err(failed(address)(format!("it ended after {have} of {} bytes", file.size)));
    }
    if hash.finalize()[..] != file.sha256.0 {
        part.set_len(0).await.map_err(disk)?;
        return Err(FetchError::Wrong { address: address.to_owned(), what: "its hash differs" });
    }
    Ok(moved)
}

/// Whether an answer goes on at this byte.
fn continues(answer: &Response<Incoming>, at: u64) -> bool {
    let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
    answer.status() == StatusCode::PARTIAL_CONTENT && range.starts_with(&format!("bytes {at}-"))
}

/// The answer to one GET, from byte `start` on if the server can do that.
async fn get(address: &str, start: u64) -> Result<Response<Incoming>, FetchError> {
    let mut address = address.to_owned();
    for _ in 0..=REDIRECTS {
        let answer = timeout(PATIENCE, get_once(&address, start))
            .await
            .map_err(|_| failed(&address)("there is no answer".to_owned()))??;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let location = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok());
        match location {
            Some(to) if status.is_redirection() && to.contains("://") => address = to.to_owned(),
            // Some stores of files say so of what they do not have.
            _ if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN) => {
                return Err(FetchError::Absent(address));
            }
            _ => return Err(failed(&address)(format!("the server answers {status}"))),
        }
    }
    Err(failed(&address)("it is redirected too often".to_owned()))
}

async fn get_once(address: &str, start: u64) -> Result<Response<Incoming>, FetchError> {
    let unusable = || FetchError::Address(address.to_owned());
    let uri: Uri = address.parse().map_err(|_| unusable())?;
    let (host, authority) = uri.host().zip(uri.authority()).ok_or_else(unusable)?;
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(unusable()),
    };
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let failed = failed(address);
    let stream = TcpStream::connect((name, port)).await.map_err(|error| failed(error.to_string()))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = hyper::Request::get(path).header(HOST, authority.as_str());
    if start > 0 {
        request = request.header(RANGE, format!("bytes={start}-"));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| unusable())?;
    if tls {
        let name = name.to_owned().try_into().map_err(|_| unusable())?;
        let stream = connector().connect(name, stream).await.map_err(|error| failed(error.to_string()))?;
        send(stream, request).await.map_err(|error| failed(error.to_string()))
    } else {
        send(stream, request).await.map_err(|error| failed(error.to_string()))
    }
}

fn connector() -> tokio_rustls::TlsConnector {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: hyper::Request<Empty<Bytes>>,
) -> hyper::Result<Response<Incoming>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends when the body was read or dropped.
    tokio::spawn(connection);
    sender.send_request(request).await
}

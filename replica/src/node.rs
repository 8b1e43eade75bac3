//! Putting a node together: secret, keys, heap, engine, executor, sockets.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use execution::{Engine, RunError, canister_id};
use heap::{BarMedia, DaxMedia, FileMedia, Media, MediaError, MediaKind};
use heap::{Heap, Key, OpenOptions as HeapOptions};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{Semaphore, oneshot};
use zeroize::Zeroizing;

use crate::certified_state::CertifiedState;
use crate::clock::Clock;
use crate::config::{Config, ConfigError, HeapConfig, HeapKind, Source};
use crate::evidence::Provider;
use crate::executor::{Executor, RekeyError, SpawnError};
use crate::http::{self, App};
use crate::keys::{KeyError, NodeSecret};
use crate::metrics::Metrics;
use crate::pulse::Pulse;
use crate::server::Server;
use crate::state_tree::Topology;
use crate::sys;
use crate::tls::{TlsError, TlsIdentity};

/// Canister numbers of this subnet: all, while there is no other subnet.
const CANISTERS: (u64, u64) = (0, u64::MAX);
/// The executor gets this time to finish its step when the replica stops; what it does not finish is undone.
const STOP_TIME: Duration = Duration::from_secs(10);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The secret.
    #[error("the node secret cannot be read from {from}; it must be 32 bytes, and nothing else")]
    Secret {
        /// File or descriptor.
        from: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The secret lies open.
    #[error("the node secret {path} can be read by others (mode {mode:o}); run: chmod 600 {path}")]
    SecretMode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// An inherited descriptor.
    #[error("{what} ({fd}) is not an open file descriptor; whoever starts the replica must pass it on")]
    Descriptor {
        /// Key of the configuration.
        what: &'static str,
        /// The number.
        fd: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The medium.
    #[error("the heap's medium cannot be opened; check heap.path, its permissions and its size")]
    Media(#[from] MediaError),
    /// Not persistent memory.
    #[error(
        "{path} is not on a file system of persistent memory mounted with dax, which heap.kind = \"dax\" asks for; \
         attach that, or ask for \"file\""
    )]
    NotDax {
        /// The file.
        path: PathBuf,
    },
    /// Another length than announced.
    #[error(
        "the heap's medium is {found} bytes long, but the configuration says {expected}; check heap.size"
    )]
    MediaSize {
        /// By the configuration.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// The heap.
    #[error("the heap cannot be opened")]
    Heap(#[from] heap::OpenError),
    /// The engine.
    #[error("the canisters cannot be loaded")]
    Engine(#[from] execution::OpenError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The socket.
    #[error("cannot listen on {address}; check that the address is this machine's and the port is free")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread.
    #[error(transparent)]
    Executor(#[from] SpawnError),
}

/// Why a running node ended on its own.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The engine.
    #[error("execution cannot go on")]
    Run(#[from] RunError),
    /// A bug.
    #[error(
        "the executor panicked; report it with the log, then restart the replica: what was committed is safe"
    )]
    Panic,
}

/// A node that is ready to serve.
pub struct Node {
    server: Server,
    tls: Option<TlsIdentity>,
    /// When the evidence in the TLS certificate wants to be renewed.
    renewal: Duration,
    app: Arc<App>,
    executor: Executor,
    thread: JoinHandle<Result<(), RunError>>,
    pulse: Arc<Pulse>,
    ready: Option<File>,
    secret: Arc<NodeSecret>,
    /// Number of the heap's key.
    key: u64,
}

/// Puts the heap of a node that serves under another key.
pub struct Rotation {
    executor: Executor,
    secret: Arc<NodeSecret>,
    number: u64,
}

/// Why the heap stays under its key.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// Keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The heap, or whoever owns it.
    #[error(transparent)]
    Rekey(#[from] RekeyError),
}

impl Rotation {
    /// Has the heap go on under the key of this number; whether it was under another.
    pub async fn rotate(&mut self, number: u64) -> Result<bool, RotateError> {
        if number == self.number {
            return Ok(false);
        }
        self.executor.rekey(Key::new(*self.secret.heap_key(number)?)).await?;
        self.number = number;
        Ok(true)
    }
}

impl Node {
    /// Opens everything that the configuration names. Nothing is served yet.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        // Inherited descriptors first, before anything else is opened under their numbers.
        let ready = config.ready_fd.map(|fd| inherited("ready_fd", fd)).transpose()?;
        let secret = Arc::new(NodeSecret::take(&mut *read_secret(&config)?)?);
        let media = open_media(&config.heap)?;

        let (subnet_key, node_key) = (secret.subnet_key()?, secret.node_key()?);
        let (subnet_id, node_id) = (subnet_key.subnet_id(), node_key.node_id());
        let root_key_der = subnet_key.public_key_der();

        let kind = (config.heap.kind == HeapKind::Dax).then_some(MediaKind::Dax);
        let key = |number| secret.heap_key(number).map(|key| Key::new(*key));
        let former = config.heap.former_key.map(key).transpose()?;
        let options = HeapOptions {
            create: config.heap.create,
            at_least: config.heap.at_least,
            kind,
            former,
            ..HeapOptions::default()
        };
        let (heap, recovery) = Heap::open(media, &key(config.heap.key)?, &options)?;
        let medium = heap.status().kind;
        if medium == MediaKind::SharedMemory {
            tracing::warn!(
                "the heap's medium is ordinary shared memory: what it holds is gone when this machine stops"
            );
        }
        tracing::info!(
            %medium,
            epoch = recovery.epoch,
            created = recovery.created,
            replayed = recovery.replayed,
            torn_tail = recovery.torn_tail,
            rekeyed = recovery.rekeyed,
            at_least = config.heap.at_least.unwrap_or_default(),
            "heap open; that its medium was put back to an earlier state is seen only before the commit at_least"
        );
        let engine = Engine::open(
            heap,
            execution::Config {
                subnet_id,
                node_id,
                root_public_key_der: root_key_der.clone(),
                canister_range: CANISTERS,
                randomness: Box::new(random),
                limits: execution_limits(),
                lazy_memory: true,
            },
        )?;
        let topology = Topology {
            subnet_id,
            subnet_key_der: root_key_der.clone(),
            nodes: vec![(node_id, node_key.public_key_der())],
            canister_range: (canister_id(CANISTERS.0), canister_id(CANISTERS.1)),
        };
        let certified = Arc::new(CertifiedState::new(subnet_key, &topology));
        let (pulse, metrics) = (Arc::new(Pulse::default()), Arc::new(Metrics::default()));

        let tls = config.tls.then(TlsIdentity::generate).transpose()?;
        let provider = |tls: &TlsIdentity| config.evidence_socket.map(|at| Provider::new(at, &tls.spki()));
        let evidence = tls.as_ref().and_then(provider).map(Arc::new);
        let renewal = match (&tls, &evidence) {
            (Some(tls), Some(evidence)) => evidence.certify_or_warn(tls).await,
            _ => Duration::MAX,
        };
        let address = config.listen;
        let server = Server::bind(address, tls.as_ref(), config.limits.clone(), metrics.clone())
            .await
            .map_err(|source| StartError::Listen { address, source })?;

        let (executor, thread) = Executor::spawn(
            engine,
            certified.clone(),
            clock.clone(),
            pulse.clone(),
            metrics.clone(),
            config.limits.queue,
        )?;
        let app = Arc::new(App {
            executor: executor.clone(),
            certified,
            node_key,
            node_id,
            subnet_id,
            root_key_der,
            clock,
            metrics,
            evidence,
            bodies: Semaphore::new(config.limits.bodies),
            call_wait: Duration::from_secs(config.limits.call_wait_s),
        });
        let key = config.heap.key;
        Ok(Self { server, tls, renewal, app, executor, thread, pulse, ready, secret, key })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.server.address()
    }

    /// For putting the heap under other keys while the node serves; one is enough.
    pub fn rotation(&self) -> Rotation {
        let Self { executor, secret, key, .. } = self;
        Rotation { executor: executor.clone(), secret: secret.clone(), number: *key }
    }

    /// Serves until `stop` comes or execution cannot go on.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), EndError> {
        let Self { server, tls, renewal, app, executor, thread, pulse, ready, .. } = self;
        let last =
            ready.as_ref().and_then(|ready| ready.try_clone().ok()).map(|ready| (ready, pulse.clone()));
        tracing::info!(subnet = %app.subnet_id, node = %app.node_id, address = ?server.address().ok(), "ready");
        if let Some(ready) = ready
            && let Err(error) = pulse.announce(ready)
        {
            tracing::warn!("nobody listens for signs of life: {error}");
        }
        let (ended, mut end) = oneshot::channel();
        std::thread::spawn(move || {
            // Fails only when nobody waits any more.
            let _ = ended
                .send(thread.join().map_or(Err(EndError::Panic), |outcome| outcome.map_err(EndError::Run)));
        });
        let mut outcome = None;
        let evidence = app.evidence.clone();
        let keep_certified = async {
            match (&tls, evidence) {
                (Some(tls), Some(evidence)) => evidence.keep_certified(tls, renewal).await,
                _ => std::future::pending().await,
            }
        };
        let until = async {
            tokio::select! {
                () = keep_certified => {}
                () = stop => tracing::info!("asked to stop"),
                ended = &mut end => outcome = Some(ended.unwrap_or(Err(EndError::Panic))),
            }
        };
        server.serve(http::router(app), until).await;
        executor.stop();
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => match tokio::time::timeout(STOP_TIME, end).await {
                Ok(ended) => ended.unwrap_or(Err(EndError::Panic)),
                Err(_) => {
                    tracing::warn!("a message is still executing; it is undone and will be executed anew");
                    Ok(())
                }
            },
        };
        if let Some((ready, pulse)) = last {
            pulse.last(&ready);
        }
        outcome
    }
}

fn inherited(what: &'static str, fd: i32) -> Result<File, StartError> {
    sys::inherited(fd).map(File::from).map_err(|source| StartError::Descriptor { what, fd, source })
}

fn open_media(config: &HeapConfig) -> Result<Box<dyn Media>, StartError> {
    let media: Box<dyn Media> = match (config.kind, config.source()?) {
        (HeapKind::Bar, Source::Fd(fd)) => Box::new(BarMedia::from_fd(inherited("heap.fd", fd)?.into())?),
        (HeapKind::Bar, Source::Path(path)) => Box::new(BarMedia::open(path)?),
        (HeapKind::File, Source::Path(path)) => {
            Box::new(FileMedia::open_or_create(path, config.size.unwrap_or_default())?)
        }
        (HeapKind::Auto, Source::Path(path)) => heap::probe(path, config.size.unwrap_or_default())?,
        (HeapKind::Dax, Source::Path(path)) => match DaxMedia::open(path)? {
            Some(media) => Box::new(media),
            None => return Err(StartError::NotDax { path: path.to_owned() }),
        },
        (HeapKind::File | HeapKind::Dax | HeapKind::Auto, Source::Fd(_)) => {
            return Err(ConfigError::Missing("heap.path").into());
        }
    };
    match config.size {
        Some(expected) if expected != media.len() => {
            Err(StartError::MediaSize { expected, found: media.len() })
        }
        _ => Ok(media),
    }
}

fn read_secret(config: &Config) -> Result<Zeroizing<[u8; 32]>, StartError> {
    if let Some(fd) = config.secret_fd {
        let from = format!("file descriptor {fd}");
        return exactly(inherited("secret_fd", fd)?).map_err(|source| StartError::Secret { from, source });
    }
    let path = config.secret_file.as_deref().ok_or(ConfigError::OneOf("secret_fd", "secret_file"))?;
    let failed = |source| StartError::Secret { from: path.display().to_string(), source };
    if config.create_secret && !path.exists() {
        create_secret(path).map_err(failed)?;
        tracing::info!("made a new node secret: {}", path.display());
    }
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StartError::SecretMode { path: path.to_owned(), mode });
    }
    exactly(file).map_err(failed)
}

/// Reads 32 bytes and the end.
fn exactly(mut file: File) -> io::Result<Zeroizing<[u8; 32]>> {
    let mut secret = Zeroizing::new([0; 32]);
    file.read_exact(&mut *secret)?;
    match file.read(&mut [0])? {
        0 => Ok(secret),
        _ => Err(io::Error::other("it is longer than 32 bytes")),
    }
}

fn create_secret(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&*Zeroizing::new(random()))?;
    file.sync_all()
}

/// 32 bytes from the system's generator.
fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    #[expect(
        clippy::expect_used,
        reason = "without randomness nothing that is secret can be made; stop here"
    )]
    SystemRandom::new().fill(&mut bytes).expect("the system's random generator works");
    bytes
}

/// The Internet Computer's limits. A message that exhausted the machine would be executed again after each restart, so
/// programs leave a part of its memory alone: an eighth, between 64 MiB and 1 GiB.
fn execution_limits() -> execution::Limits {
    let limits = execution::Limits::default();
    let Ok(machine) = nix::sys::sysinfo::sysinfo() else { return limits };
    let spare_ram_bytes = (machine.ram_total() / 8).clamp(64 << 20, 1 << 30);
    execution::Limits { spare_ram_bytes, ..limits }
}

//! The configuration file: TOML, every key known, nothing guessed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What the file says. `examples/laptop.toml` shows it with comments.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port of the HTTP interface. `[::]` takes IPv4 too.
    pub listen: SocketAddr,
    /// TLS with a key made at each start. Without it only a loopback address is accepted.
    #[serde(default = "yes")]
    pub tls: bool,
    /// Inherited file descriptor from which the 32-byte node secret is read.
    pub secret_fd: Option<i32>,
    /// File of the 32-byte node secret, instead of `secret_fd`.
    pub secret_file: Option<PathBuf>,
    /// Makes `secret_file` with a new secret if it is not there.
    #[serde(default)]
    pub create_secret: bool,
    /// Where the canisters' state is kept.
    pub heap: HeapConfig,
    /// Unix socket that gives attestation evidence; without it `/evidence` answers 404.
    pub evidence_socket: Option<PathBuf>,
    /// Inherited file descriptor that gets a line READY N once requests are answered, then ALIVE N every two seconds; N is
    /// the number of a commit of the heap that is durable.
    pub ready_fd: Option<i32>,
    /// Form of the log lines on standard output.
    #[serde(default)]
    pub log: LogFormat,
    /// What one node takes on at a time.
    #[serde(default)]
    pub limits: Limits,
}

/// Medium of the persistent heap.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeapConfig {
    /// What kind of medium it is.
    pub kind: HeapKind,
    /// File, or resource file of the PCI device.
    pub path: Option<PathBuf>,
    /// Inherited file descriptor of an open BAR, instead of `path`.
    pub fd: Option<i32>,
    /// Length in bytes: of a file that is made, else what the medium must have.
    pub size: Option<u64>,
    /// Begin with an empty heap if the medium is blank.
    #[serde(default = "yes")]
    pub create: bool,
    /// Number of the key that seals the heap; all of them come from the secret. When the program is told to read this
    /// file again (SIGHUP), the heap goes on under the key of this number.
    #[serde(default)]
    pub key: u64,
    /// A commit that the heap is known to have reached. A medium that ends before it is an older image, and is refused.
    pub at_least: Option<u64>,
    /// Key that the heap may still be under at a start. Whoever knows that one can forge a medium as long as this stands
    /// here.
    pub former_key: Option<u64>,
}

/// Kinds of media.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeapKind {
    /// A file, written and then flushed.
    File,
    /// Shared memory of a PCI device, mapped.
    Bar,
    /// A file on persistent memory, mapped with MAP_SYNC; anything weaker is refused.
    Dax,
    /// The best that the path allows; metrics say what that is.
    Auto,
}

/// Forms of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

/// What one node takes on at a time.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections; more wait in the kernel's queue.
    pub connections: usize,
    /// Requests at a time on one HTTP/2 connection.
    pub streams: u32,
    /// Request bodies being read and checked at a time; each takes up to 2 MiB.
    pub bodies: usize,
    /// Calls and queries that wait for the executor.
    pub queue: usize,
    /// Seconds that a synchronous call waits for its answer.
    pub call_wait_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1024, streams: 32, bodies: 64, queue: 512, call_wait_s: 10 }
    }
}

/// What the heap lies on, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source<'a> {
    /// A path to open.
    Path(&'a Path),
    /// An inherited file descriptor.
    Fd(i32),
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not readable.
    #[error("the configuration {path} cannot be read; check the path and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, or not these keys.
    #[error("the configuration is not usable: {0}")]
    Parse(#[from] toml::de::Error),
    /// Plain HTTP for the world.
    #[error("plain HTTP is for loopback only, not for {0}: set tls = true, or listen on 127.0.0.1 or [::1]")]
    PlainHttp(SocketAddr),
    /// Two sources, or none.
    #[error("the configuration needs exactly one of {0} and {1}")]
    OneOf(&'static str, &'static str),
    /// Something that does not fit the rest.
    #[error("the configuration sets {key}, which {why}; remove it")]
    Superfluous {
        /// The key.
        key: &'static str,
        /// Why it does not fit.
        why: &'static str,
    },
    /// A needed key.
    #[error("the configuration lacks {0}")]
    Missing(&'static str),
    /// A descriptor that cannot have been inherited, or two uses of one.
    #[error("the configuration uses file descriptor {0}; each must be above 2 and used once")]
    Descriptor(i32),
    /// A limit of zero.
    #[error("limits.{0} is 0; at least 1 is needed")]
    Limit(&'static str),
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Checks the text of a file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if !self.tls && !self.listen.ip().is_loopback() {
            return Err(ConfigError::PlainHttp(self.listen));
        }
        if self.secret_fd.is_some() == self.secret_file.is_some() {
            return Err(ConfigError::OneOf("secret_fd", "secret_file"));
        }
        if self.create_secret && self.secret_file.is_none() {
            return Err(ConfigError::Superfluous { key: "create_secret", why: "is for secret_file only" });
        }
        self.heap.source()?;
        let descriptors = [self.secret_fd, self.ready_fd, self.heap.fd];
        for (at, fd) in descriptors.iter().enumerate() {
            if let Some(number) = *fd
                && (number <= 2 || descriptors[..at].contains(fd))
            {
                return Err(ConfigError::Descriptor(number));
            }
        }
        let Limits { connections, streams, bodies, queue, call_wait_s } = self.limits;
        for (name, zero) in [
            ("connections", connections == 0),
            ("streams", streams == 0),
            ("bodies", bodies == 0),
            ("queue", queue == 0),
            ("call_wait_s", call_wait_s == 0),
        ] {
            if zero {
                return Err(ConfigError::Limit(name));
            }
        }
        Ok(())
    }
}

impl HeapConfig {
    /// Where the medium comes from.
    pub fn source(&self) -> Result<Source<'_>, ConfigError> {
        match (self.kind, &self.path, self.fd) {
            (HeapKind::File | HeapKind::Auto, Some(_), None) if self.size.is_none() => {
                Err(ConfigError::Missing("heap.size"))
            }
            (_, Some(path), None) => Ok(Source::Path(path)),
            (HeapKind::Bar, None, Some(fd)) => Ok(Source::Fd(fd)),
            (HeapKind::File | HeapKind::Dax | HeapKind::Auto, None, _) => {
                Err(ConfigError::Missing("heap.path"))
            }
            (HeapKind::File | HeapKind::Dax | HeapKind::Auto, _, Some(_)) => {
                Err(ConfigError::Superfluous { key: "heap.fd", why: "is for kind = \"bar\" only" })
            }
            (HeapKind::Bar, ..) => Err(ConfigError::OneOf("heap.path", "heap.fd")),
        }
    }
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: &str = r#"
        listen = "[::]:8443"
        secret_fd = 3
        ready_fd = 4
        evidence_socket = "/run/evidence"
        [heap]
        kind = "bar"
        fd = 5
        size = 536870912
    "#;

    #[test]
    fn the_example_and_a_guests_configuration_are_good() {
        let laptop = Config::parse(include_str!("../examples/laptop.toml")).unwrap();
        assert!(!laptop.tls && laptop.listen.ip().is_loopback());
        let guest = Config::parse(GUEST).unwrap();
        assert!(guest.tls && guest.heap.create);
        assert_eq!(guest.heap.source().unwrap(), Source::Fd(5));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |from: &str, to: &str| {
            assert!(GUEST.contains(from), "{from}");
            Config::parse(&GUEST.replace(from, to)).unwrap_err()
        };
        let error = wrong("secret_fd = 3", "secret_fd = 3\ntls = false");
        assert!(matches!(error, ConfigError::PlainHttp(_)), "{error}");
        let error = wrong("secret_fd = 3", "secret_fd = 3\nsecret = 1");
        assert!(error.to_string().contains("unknown field `secret`"), "{error}");
        let error = wrong("secret_fd = 3", "secret_fd = 4");
        assert!(matches!(error, ConfigError::Descriptor(4)), "{error}");
        let error = wrong("secret_fd = 3", "secret_fd = 1");
        assert!(matches!(error, ConfigError::Descriptor(1)), "{error}");
        let error = wrong("secret_fd = 3", "");
        assert!(matches!(error, ConfigError::OneOf("secret_fd", "secret_file")), "{error}");
        let error = wrong("secret_fd = 3", "secret_fd = 3\ncreate_secret = true");
        assert!(matches!(error, ConfigError::Superfluous { key: "create_secret", .. }), "{error}");
        let error = wrong("fd = 5", "");
        assert!(matches!(error, ConfigError::OneOf("heap.path", "heap.fd")), "{error}");
        let error = wrong("kind = \"bar\"", "kind = \"file\"");
        assert!(matches!(error, ConfigError::Missing("heap.path")), "{error}");
        let error = wrong("[heap]", "limits.queue = 0\n[heap]");
        assert!(matches!(error, ConfigError::Limit("queue")), "{error}");
    }
}

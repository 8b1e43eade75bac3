//! Runs a program inside the build root, in namespaces of its own: user, mount, pid, net (without a network), uts, ipc.
//!
//! Paths, user, host name, umask, environment and clock zone are the same on every machine, whoever builds. The
//! namespaces are made by bubblewrap, which comes from the build root too and runs with its own C library, so the
//! machine needs nothing but a kernel that allows user namespaces.

use crate::root::BuildRoot;
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// 2026-01-01 00:00:00 UTC: the time that outputs carry.
pub const SOURCE_DATE_EPOCH: &str = "1767225600";
/// Lines of a failed program that its error quotes.
const QUOTED_LINES: usize = 25;

/// What surrounds a build without being an input. Outputs must not depend on any of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Numeric user and group.
    pub user: u32,
    /// Host name.
    pub host: &'static str,
    /// File mode creation mask, octal.
    pub umask: &'static str,
    /// `TZ`.
    pub time_zone: &'static str,
    /// `LC_ALL`.
    pub locale: &'static str,
    /// Programs that run at the same time.
    pub jobs: usize,
    /// How far the clock is moved, as libfaketime takes it; `None` leaves it alone.
    pub clock: Option<&'static str>,
}

impl Surroundings {
    /// Those of every ordinary build; only the number of jobs is the machine's.
    #[must_use]
    pub fn usual() -> Self {
        Self {
            user: 1000,
            host: "build",
            umask: "022",
            time_zone: "UTC",
            locale: "C",
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            clock: None,
        }
    }

    /// Everything otherwise than usual: what `reproduce --vary` builds with.
    #[must_use]
    pub fn varied() -> Self {
        Self {
            user: 4711,
            host: "elsewhere",
            umask: "077",
            time_zone: "Asia/Kathmandu",
            locale: "C.UTF-8",
            jobs: Self::usual().jobs + 1,
            clock: Some("+403d"),
        }
    }
}

/// A program did not run in the build root, or failed there.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel or a policy forbids namespaces.
    #[error(
        "this machine does not let {who} make the namespaces in which compilers run ({message}). Run as root, or allow it: \
         'sysctl kernel.unprivileged_userns_clone=1' (Debian), 'sysctl kernel.apparmor_restrict_unprivileged_userns=0' \
         (Ubuntu), 'sysctl user.max_user_namespaces=15000'; in a container, start it with user namespaces (for Docker: \
         --security-opt seccomp=unconfined --security-opt systempaths=unconfined)"
    )]
    Namespaces {
        /// Root or an ordinary user.
        who: &'static str,
        /// What bubblewrap said.
        message: String,
    },
    /// The program could not be started.
    #[error("cannot start the sandbox {path}: {source}; remove the cache's build-root folders and try again")]
    Start {
        /// The loader of the build root.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The program ended with an error.
    #[error("{what} failed in the build root:\n{tail}")]
    Failed {
        /// What it was to do.
        what: String,
        /// Its last lines.
        tail: String,
    },
    /// The output of the program could not be read.
    #[error("cannot read the output of {what}: {source}")]
    Output {
        /// What it was to do.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

enum Access {
    Read,
    Write,
}

/// A place to run programs in.
pub struct Sandbox<'a> {
    root: &'a BuildRoot,
    surroundings: &'a Surroundings,
    mounts: Vec<(Access, PathBuf, &'static str)>,
    environment: BTreeMap<&'static str, OsString>,
    directory: &'static str,
}

impl<'a> Sandbox<'a> {
    /// A sandbox with nothing but the build root.
    #[must_use]
    pub fn new(root: &'a BuildRoot, surroundings: &'a Surroundings) -> Self {
        let mut environment = BTreeMap::new();
        for (name, value) in [
            ("PATH", "/rust/bin:/usr/bin:/usr/sbin"),
            ("HOME", "/tmp"),
            ("USER", "build"),
            ("LC_ALL", surroundings.locale),
            ("TZ", surroundings.time_zone),
            ("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH),
        ] {
            environment.insert(name, value.into());
        }
        if let Some(clock) = surroundings.clock {
            environment.insert("LD_PRELOAD", "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1".into());
            environment.insert("FAKETIME", clock.into());
            // Times of files stay the real ones' distance apart: make and cargo compare them with each other.
            environment.insert("FAKETIME_DONT_FAKE_MONOTONIC", "1".into());
        }
        Self { root, surroundings, mounts: Vec::new(), environment, directory: "/" }
    }

    /// Shows a folder or file of this machine, read-only, under a fixed path of [`crate::root`]'s mount points.
    #[must_use]
    pub fn read(mut self, path: impl Into<PathBuf>, at: &'static str) -> Self {
        self.mounts.push((Access::Read, path.into(), at));
        self
    }

    /// Shows a folder of this machine for writing.
    #[must_use]
    pub fn write(mut self, path: impl Into<PathBuf>, at: &'static str) -> Self {
        self.mounts.push((Access::Write, path.into(), at));
        self
    }

    /// Leaves the clock alone whatever the surroundings say: rustc's own allocator asks for the time while it starts,
    /// before libfaketime can answer, and waits for ever.
    #[must_use]
    pub fn real_clock(mut self) -> Self {
        for name in ["LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"] {
            self.environment.remove(name);
        }
        self
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn set(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.insert(name, value.into());
        self
    }

    /// Folder, inside, in which programs start.
    #[must_use]
    pub fn directory(mut self, directory: &'static str) -> Self {
        self.directory = directory;
        self
    }

    /// How many programs may run at the same time.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.surroundings.jobs
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let root = &self.root.path;
        let id = self.surroundings.user.to_string();
        let mut command = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
        command.env_clear().arg("--library-path").arg(root.join("usr/lib/x86_64-linux-gnu"));
        command.arg(root.join("usr/bin/bwrap"));
        for namespace in ["user", "pid", "net", "uts", "ipc"] {
            command.arg(format!("--unshare-{namespace}"));
        }
        // A mount namespace is what bubblewrap always makes.
        command.args(["--die-with-parent", "--new-session", "--uid", &id, "--gid", &id]);
        command.args(["--hostname", self.surroundings.host, "--clearenv"]);
        command.arg("--ro-bind").arg(root).arg("/");
        command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
        for (access, path, at) in &self.mounts {
            let option = match access {
                Access::Read => "--ro-bind",
                Access::Write => "--bind",
            };
            command.arg(option).arg(path).arg(at);
        }
        for (name, value) in &self.environment {
            command.arg("--setenv").arg(name).arg(value);
        }
        // sh sets the mask, which is inherited and cannot be given to bubblewrap.
        let masked = format!("umask {}; exec \"$@\"", self.surroundings.umask);
        command.args(["--chdir", self.directory, "--", "/bin/sh", "-c", &masked, "sh"]).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program; `line` sees each line of its standard output, which is returned as a whole.
    pub fn run_with<S: AsRef<OsStr>>(
        &self,
        what: &str,
        arguments: &[S],
        mut line: impl FnMut(&str),
    ) -> Result<String, SandboxError> {
        let mut command = self.command(arguments);
        let start = |source| SandboxError::Start { path: command_path(&self.root.path), source };
        let unread = |source| SandboxError::Output { what: what.to_owned(), source };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(start)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // Both are read at once: a program that fills one pipe while the other is read would wait for ever.
        let errors = std::thread::spawn(move || -> std::io::Result<String> {
            let mut bytes = Vec::new();
            if let Some(mut stderr) = stderr {
                std::io::Read::read_to_end(&mut stderr, &mut bytes)?;
            }
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        });
        let mut output = String::new();
        if let Some(stdout) = stdout {
            for bytes in BufReader::new(stdout).split(b'\n') {
                let bytes = bytes.map_err(unread)?;
                let text = String::from_utf8_lossy(&bytes);
                line(&text);
                output.push_str(&text);
                output.push('\n');
            }
        }
        let status = child.wait().map_err(unread)?;
        let errors = errors.join().unwrap_or_else(|_| Ok(String::new())).map_err(unread)?;
        if status.success() {
            return Ok(output);
        }
        // bubblewrap's own complaints, before anything runs.
        if let Some(message) = errors.lines().find(|line| line.starts_with("bwrap: ")) {
            let namespaces =
                ["namespace", "uid map", "gid map", "setgroups", "mount proc", "Permission", "not permitted"];
            if namespaces.iter().any(|word| message.contains(word)) {
                let who = if nix::unistd::geteuid().is_root() { "root" } else { "an ordinary user" };
                return Err(SandboxError::Namespaces { who, message: message.to_owned() });
            }
        }
        let all = output + &errors;
        let lines: Vec<&str> = all.lines().collect();
        let tail = lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n");
        Err(SandboxError::Failed { what: what.to_owned(), tail })
    }

    /// Runs a program and returns its standard output.
    pub fn run<S: AsRef<OsStr>>(&self, what: &str, arguments: &[S]) -> Result<String, SandboxError> {
        self.run_with(what, arguments, |_| {})
    }
}

fn command_path(root: &Path) -> PathBuf {
    root.join("usr/lib64/ld-linux-x86-64.so.2")
}

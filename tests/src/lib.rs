//! End-to-end scenarios and the must-fail suite: what they share.
//!
//! A scenario tells a story in terms of a [`Node`] and its clients; everything goes through the programs that
//! a user has (`redoubt`, the JavaScript agent). `cargo xtask test` builds programs and images first and names
//! them in `REDOUBT_BIN` and `REDOUBT_RELEASE`; without these a scenario says that it is skipped.

pub mod blessing;
pub mod host_evidence;
pub mod lies;
pub mod machine;
pub mod mirror;
pub mod screen;
pub mod strangers;

use anyhow::{Context, Result, bail, ensure};
use nix::{sys::signal, unistd::Pid};
use serde_json::Value;
use std::{
    ffi::OsStr,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// Says, past what captures the output of tests, that one is skipped; in CI none may be.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "in CI this must run: {why}");
    // Who does not read it loses nothing.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Programs and release under test.
pub struct Setup {
    bin: PathBuf,
    /// Directory of the release.
    pub release: PathBuf,
}

impl Setup {
    /// From the environment; `None`, with a line that says so, when this is not a run by `cargo xtask test`.
    pub fn find() -> Option<Self> {
        let of = |name| std::env::var_os(name).map(PathBuf::from);
        match (of("REDOUBT_BIN"), of("REDOUBT_RELEASE")) {
            (Some(bin), Some(release)) => Some(Self { bin, release }),
            _ => {
                skip("needs the programs and images that `cargo xtask test` builds first");
                None
            }
        }
    }

    /// A copy of the release that a test may damage.
    pub fn copy_of_release(&self) -> Result<tempfile::TempDir> {
        let copy = tempfile::tempdir()?;
        for entry in std::fs::read_dir(&self.release)? {
            let entry = entry?;
            std::fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
        }
        Ok(copy)
    }

    /// A program under test.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The command `redoubt`.
    pub fn redoubt<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(&self, arguments: I) -> Result<Output> {
        Command::new(self.bin.join("redoubt"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot run redoubt")
    }
}

/// Writes the manifest in `dir` anew with a change, signed by the first of the development keys.
pub fn signed_by_development_keys(
    dir: &Path,
    signers: usize,
    change: impl FnOnce(&mut release::Manifest),
) -> Result<()> {
    signed_by(dir, &release::development::signing_keys()?[..signers], change)
}

/// Makes the release in `dir` one with a longer kernel command line: measured anew and signed.
pub fn with_command_line(dir: &Path, addition: &str) -> Result<()> {
    let read =
        |name: &str| std::fs::read(dir.join(name)).with_context(|| format!("no {name} in the release"));
    let (firmware, kernel, initrd) = (read("firmware.bin")?, read("vmlinuz")?, read("initrd.zst")?);
    let mut guest = manifest_in(dir)?.guest;
    guest.command_line = format!("{} {addition}", guest.command_line);
    for entry in &mut guest.measurements {
        let launch = attestation::measurement::Launch {
            firmware: &firmware,
            kernel: &kernel,
            initrd: &initrd,
            command_line: &guest.command_line,
            vcpus: entry.vcpus,
            vcpu_type: entry.vcpu_type.parse()?,
            guest_features: guest.guest_features,
        };
        entry.measurement = release::Measurement(launch.measurement()?.0);
    }
    signed_by_development_keys(dir, 2, |manifest| manifest.guest = guest)
}

fn manifest_in(dir: &Path) -> Result<release::Manifest> {
    let bytes = std::fs::read(dir.join("manifest.json")).context("no manifest in the release")?;
    Ok(release::Envelope::from_bytes(&bytes)?.manifest().clone())
}

/// Writes the manifest in `dir` anew with a change, signed by these keys.
pub fn signed_by(
    dir: &Path,
    keys: &[release::SigningKey],
    change: impl FnOnce(&mut release::Manifest),
) -> Result<()> {
    let mut manifest = manifest_in(dir)?;
    change(&mut manifest);
    let mut envelope = release::Envelope::new(manifest)?;
    for key in keys {
        release::sign(&mut envelope, key)?;
    }
    Ok(std::fs::write(dir.join("manifest.json"), envelope.to_bytes())?)
}

/// A virtual node with a directory of its own; it is stopped when this is dropped.
pub struct Node<'a> {
    setup: &'a Setup,
    dir: tempfile::TempDir,
    /// Of the guest, the gateway and the status.
    ports: [String; 3],
    _alone: MutexGuard<'static, ()>,
}

/// One node at a time: an emulated guest takes all cores, and time limits should not depend on other tests.
static ALONE: Mutex<()> = Mutex::new(());

/// A port that nothing listens on, and that stays free while its node is down: below those which the kernel
/// gives to outgoing connections (32768 and up, ip_local_port_range), and never the same twice in a process.
pub fn free_port() -> Result<String> {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        // Test programs that run at the same time start at different places.
        let offset = (std::process::id() * 64 + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port.to_string());
        }
    }
    bail!("no free port from {FIRST} to {}", FIRST + COUNT - 1)
}

impl<'a> Node<'a> {
    /// A node that was never started.
    pub fn new(setup: &'a Setup) -> Result<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = [free_port()?, free_port()?, free_port()?];
        Ok(Self { setup, dir: tempfile::tempdir()?, ports, _alone: alone })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where its simulated secure processor is kept.
    pub fn chip(&self) -> PathBuf {
        self.dir.path().join("chip")
    }

    /// The file behind its NVRAM.
    pub fn nvram(&self) -> PathBuf {
        self.dir.path().join("nvram.img")
    }

    /// `redoubt COMMAND --node-dir ...`, whatever comes of it.
    pub fn redoubt(&self, command: &str, arguments: &[&OsStr]) -> Result<Output> {
        let node_dir = [OsStr::new(command), OsStr::new("--node-dir"), self.dir.path().as_os_str()];
        self.setup.redoubt(node_dir.iter().chain(arguments))
    }

    /// Lets a key operate the node, as `redoubt operator allow` does.
    pub fn allow(&self, name: &str, key_sha256: &str, arguments: &[&str]) -> Result<Value> {
        let words = [&["--json", "allow", "--name", name, key_sha256], arguments].concat();
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        json(self.operator(&words)?)
    }

    /// `redoubt operator ... --node-dir ...`.
    pub fn operator(&self, arguments: &[&OsStr]) -> Result<Output> {
        let node_dir = [OsStr::new("--node-dir"), self.dir.path().as_os_str()];
        let words = [OsStr::new("operator")];
        self.setup.redoubt(words.iter().chain(arguments).chain(&node_dir))
    }

    /// Boots the node and waits until it is attested; what `redoubt up --json` prints.
    pub fn up(&self) -> Result<Value> {
        json(self.up_with(&self.setup.release, &[])?)
    }

    /// `redoubt up` with another release or further arguments, whatever comes of it. The guest is always
    /// emulated, so that the scenarios take the same road on every machine.
    pub fn up_with(&self, release: &Path, arguments: &[&str]) -> Result<Output> {
        let [https, http, status] = &self.ports;
        let ports = ["--https-port", https, "--http-port", http, "--status-port", status];
        let fixed = ["--json", "--detach", "--accel", "tcg"];
        let mut all: Vec<&OsStr> = fixed.iter().chain(&ports).map(OsStr::new).collect();
        all.push(OsStr::new("--release"));
        all.push(release.as_os_str());
        all.extend(arguments.iter().map(OsStr::new));
        self.redoubt("up", &all)
    }

    /// What `redoubt status --json` prints; its exit code says whether the node is ready.
    pub fn status(&self) -> Result<Value> {
        let output = self.redoubt("status", &[OsStr::new("--json")])?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {}", text(&output)))
    }

    /// Address of the plain HTTP gateway.
    pub fn url(&self) -> Result<String> {
        Ok(self.status()?["urls"]["http"].as_str().context("status names no HTTP address")?.to_owned())
    }

    /// Asks until the status fulfils the condition.
    pub fn wait_for(&self, what: &str, limit: Duration, condition: impl Fn(&Value) -> bool) -> Result<Value> {
        let started = Instant::now();
        loop {
            let status = self.status()?;
            if condition(&status) {
                return Ok(status);
            }
            if started.elapsed() > limit {
                bail!("waited {limit:?} for {what}; the last status was {status:#}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The host agent's process.
    pub fn agent(&self) -> Result<Pid> {
        let agent = self.status()?["pid"].as_i64().context("status names no agent process")?;
        Ok(Pid::from_raw(i32::try_from(agent)?))
    }

    /// The QEMU process of this node.
    pub fn qemu(&self) -> Result<Pid> {
        let agent = self.agent()?;
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            // A process may end while it is being looked at.
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let Some((program, rest)) = stat.rsplit_once(')') else { continue };
            let parent = rest.split_whitespace().nth(1).and_then(|p| p.parse::<i32>().ok());
            if parent == Some(agent.as_raw()) && program.contains("qemu-system") {
                return Ok(Pid::from_raw(pid));
            }
        }
        bail!("the agent {agent} has no QEMU process")
    }

    /// A power cut: SIGKILL to QEMU.
    pub fn cut_power(&self) -> Result<()> {
        signal::kill(self.qemu()?, signal::SIGKILL).context("cannot kill QEMU")
    }

    /// SIGKILL to the host agent itself; returns the QEMU that it leaves.
    pub fn kill_agent(&self) -> Result<Pid> {
        let qemu = self.qemu()?;
        signal::kill(self.agent()?, signal::SIGKILL).context("cannot kill the agent")?;
        Ok(qemu)
    }

    /// Stops the node cleanly.
    pub fn down(&self) -> Result<Value> {
        json(self.redoubt("down", &[OsStr::new("--json")])?)
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // The scenario has its verdict already; a node that never ran has nothing to stop.
        let _ = self.redoubt("down", &[]);
    }
}

/// Whether a process exists and is no zombie.
pub fn runs(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Whether this is a node's status, by the schema that `redoubt` prints.
pub fn is_status(setup: &Setup, status: &Value) -> Result<()> {
    let schema = json(setup.redoubt(["--json", "status", "--schema"])?)?;
    let validator = jsonschema::validator_for(&schema)?;
    validator.validate(status).map_err(|error| anyhow::anyhow!("{error}: {status:#}"))
}

/// Standard output of a successful command as JSON.
pub fn json(output: Output) -> Result<Value> {
    if !output.status.success() {
        bail!("{}: {}", output.status, text(&output));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {}", text(&output)))
}

/// Both outputs of a command, for messages.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The body of an address on this machine, such as `http://127.0.0.1:1/status`.
pub fn get(url: &str) -> Result<String> {
    use std::io::{Read, Write};
    let rest = url.strip_prefix("http://").context("not http")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = std::net::TcpStream::connect(host).with_context(|| format!("cannot reach {url}"))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    // Some answers are binary, and only asked for to see that there is one.
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{url}: {answer}");
    Ok(body.to_owned())
}

/// Deploys the Motoko counter; its canister id.
pub fn deploy_counter(url: &str) -> Result<String> {
    deploy(url, "counter")
}

/// Deploys a program of `canisters/`; its canister id.
pub fn deploy(url: &str, name: &str) -> Result<String> {
    let deployed = script("deploy.mjs", &[url, &format!("../canisters/{name}.mo")])?;
    Ok(deployed["canister_id"].as_str().context("deploy.mjs names no canister")?.to_owned())
}

/// Calls a method without arguments through the official agent; its result as a number.
pub fn call(url: &str, canister: &str, method: &str) -> Result<u64> {
    let called = script("call.mjs", &[url, canister, method])?;
    number(&called["result"])
}

/// A natural number as the scripts print it: candid's `nat` has no bound, so it may be a string.
pub fn number(value: &Value) -> Result<u64> {
    match value {
        Value::String(text) => text.parse().with_context(|| format!("no number: {text}")),
        other => other.as_u64().with_context(|| format!("no number: {other}")),
    }
}

/// What official agents do beyond a plain call: delegations, other keys, wrong clocks, a wrong root key.
pub fn check_interface(url: &str, canister: &str) -> Result<()> {
    let output = node("interface.mjs").args([url, canister]).output().context("cannot run node")?;
    if !output.status.success() {
        bail!("{}: {}", output.status, text(&output));
    }
    Ok(())
}

/// What a script prints.
pub fn script(name: &str, arguments: &[&str]) -> Result<Value> {
    json(node(name).args(arguments).output().context("cannot run node")?)
}

/// Starts a script that prints a line per acknowledged update until its node dies.
pub fn start_stream(url: &str, canister: &str) -> Result<Child> {
    start_script("stream.mjs", &[url, canister])
}

/// Starts a script whose output is read meanwhile.
pub fn start_script(name: &str, arguments: &[&str]) -> Result<Child> {
    node(name).args(arguments).stdout(Stdio::piped()).spawn().context("cannot run node")
}

fn node(script: &str) -> Command {
    let mut command = Command::new("node");
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("js")).arg(script).stdin(Stdio::null());
    command
}

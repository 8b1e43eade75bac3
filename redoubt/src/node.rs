//! The node directory's whereabouts, `redoubt status` and `redoubt down`.

use crate::operator::Remote;
use crate::output::{Failure, Reply};
use clap::Args;
use host_os::node::{AgentRecord, NodeDir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Longest status that is read, in bytes.
const MAX_STATUS: usize = 256 * 1024;
/// The agent asks the guest for at most 20 s and then kills it.
const STOP_LIMIT: Duration = Duration::from_secs(40);

#[derive(Debug, Clone, Args)]
pub(crate) struct NodeDirArg {
    /// Directory of the node [default: $XDG_STATE_HOME/redoubt/node or ~/.local/state/redoubt/node]
    // One of this group: a node of this machine or one elsewhere.
    #[arg(long, value_name = "DIR", group = "whose")]
    node_dir: Option<PathBuf>,
}

impl NodeDirArg {
    /// The directory, if the operator gave one.
    pub(crate) fn given(&self) -> Option<&std::path::Path> {
        self.node_dir.as_deref()
    }

    pub(crate) fn node(&self) -> Result<NodeDir, Failure> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let default = || {
            // The XDG specification has relative paths ignored.
            let state = variable("XDG_STATE_HOME").filter(|path| path.is_absolute());
            let state = state.or_else(|| variable("HOME").map(|home| home.join(".local/state")));
            state.map(|state| state.join("redoubt/node"))
        };
        let path = self.node_dir.clone().or_else(default);
        let path = path.ok_or_else(|| {
            Failure::new("no-node-dir", "neither HOME nor XDG_STATE_HOME is set; give --node-dir")
        })?;
        let path = std::path::absolute(&path).map_err(|error| Failure::of("no-node-dir", &error))?;
        Ok(NodeDir::at(path))
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 the node is ready; 1 it is not; 2 the command line was wrong")]
pub(crate) struct Status {
    #[command(flatten)]
    node: NodeDirArg,
    #[command(flatten)]
    remote: Remote,
    /// Print the JSON schema of a node's status, and ask no node
    #[arg(long)]
    schema: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    #[command(flatten)]
    node: NodeDirArg,
    /// Delete what the node stored: NVRAM, disk, simulated chip, logs
    #[arg(long)]
    wipe: bool,
}

/// An event loop on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::of("no-event-loop", &error))?.block_on(future)
}

/// Asks the agent on its status port.
pub(crate) async fn ask(record: &AgentRecord) -> Result<host_os::status::Status, Failure> {
    let port = record.ports.status;
    let failed = |error: &dyn std::error::Error| {
        let text = host_os::attest::chain(error);
        let message = format!("the agent (process {}) does not answer on port {port}: {text}", record.pid);
        Failure::new("agent-silent", message)
    };
    let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| failed(&error))?;
    let answer = host_os::http::get_once(stream, "127.0.0.1", "/status", MAX_STATUS);
    let answer =
        tokio::time::timeout(Duration::from_secs(5), answer).await.map_err(|error| failed(&error))?;
    serde_json::from_slice(&answer.map_err(|error| failed(&error))?).map_err(|error| failed(&error))
}

pub(crate) fn status(args: &Status) -> Result<Reply, Failure> {
    if args.schema {
        let schema = host_os::status::SCHEMA;
        let json = serde_json::from_str(schema).map_err(|error| Failure::of("schema-unreadable", &error))?;
        return Ok(Reply::good(schema.trim_end(), json));
    }
    if let Some(answer) = args.remote.get("/v1/status")? {
        let status: host_os::status::Status =
            serde_json::from_slice(&answer).map_err(|error| Failure::of("status-unreadable", &error))?;
        return Ok(Reply {
            text: describe(&status, None),
            json: json!(status),
            good: status.state == "ready",
        });
    }
    let node = args.node.node()?;
    let directory = node.path().display();
    let Some(record) = node.agent() else {
        let last = node.read_record();
        let mut text = format!("no node runs in {directory}");
        if let Some(end) = last.as_ref().and_then(|last| last.end.as_ref()) {
            match end.error.as_str() {
                "" => text.push_str("; the last one was stopped as asked"),
                error => text.push_str(&format!("; the last one ended with: {error}")),
            }
        } else if last.is_some() {
            text.push_str("; the last one was killed");
        }
        let json = json!({ "running": false, "node_dir": node.path(), "last": last });
        return Ok(Reply { text, json, good: false });
    };
    let status = block_on(ask(&record))?;
    let mut json = serde_json::to_value(&status).map_err(|error| Failure::of("status-unreadable", &error))?;
    json["running"] = true.into();
    json["node_dir"] = json!(node.path());
    Ok(Reply { text: describe(&status, Some(&node)), json, good: status.state == "ready" })
}

fn describe(status: &host_os::status::Status, node: Option<&NodeDir>) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    let step = if status.step.is_empty() { String::new() } else { format!(" ({})", status.step) };
    line("state", &format!("{}{step}", status.state));
    if let Some(release) = &status.release {
        let signatures = release.signatures;
        line("release", &format!("{} ({}), {signatures} signatures", release.version, release.profile));
        line("measurement", &release.measurement);
    }
    match (&status.attested, status.attestation_error.as_str()) {
        (Some(attested), _) => {
            line("attested", &format!("yes ({}), TLS key {}", attested.kind, attested.tls_key_sha256))
        }
        (None, "") => line("attested", "not yet"),
        (None, error) => line("attested", &format!("no: {error}")),
    }
    if let Some(guest) = &status.guest {
        line(
            "guest",
            &format!("{:?}, up {} s, {} MiB in use", guest.phase, guest.uptime_s, guest.memory_used >> 20),
        );
        line("heap", &guest.heap);
        line("addresses", &guest.addresses.join(", "));
        if !guest.error.is_empty() {
            line("guest error", &guest.error);
        }
    }
    if let Some(accel) = status.accel {
        line("execution", &format!("{accel}: {}", status.accel_reason));
    }
    if let Some(hardware) = &status.hardware {
        line("hardware", &format!("{}: {}", hardware.spec, hardware.verdict));
    }
    line("restarts", &status.restarts.to_string());
    for reason in &status.reasons {
        line("", &format!("after {} s: {}", reason.at_s, reason.reason));
    }
    line("https", &status.urls.https);
    line("http", &status.urls.http);
    line("metrics", &format!("{}/metrics", status.urls.status));
    line("agent", &format!("process {}, up {} s", status.pid, status.uptime_s));
    if let Some(operator) = &status.operator {
        line("operators", &format!("{}, host key {}", operator.address, operator.key_sha256));
    }
    if let Some(node) = node {
        line("directory", &node.path().display().to_string());
    }
    text.truncate(text.trim_end().len());
    text
}

/// Asks the agent to stop and waits until it is gone.
pub(crate) fn stop(node: &NodeDir, record: &AgentRecord) -> Result<(), Failure> {
    let pid = i32::try_from(record.pid).map_err(|error| Failure::of("agent-lost", &error))?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|error| Failure::of("agent-lost", &error))?;
    let end = Instant::now() + STOP_LIMIT;
    while node.is_running() {
        if Instant::now() > end {
            let seconds = STOP_LIMIT.as_secs();
            let message = format!(
                "the agent (process {pid}) has not stopped after {seconds} s; `kill -9 {pid}` ends it and its QEMU"
            );
            return Err(Failure::new("agent-does-not-stop", message));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

pub(crate) fn down(args: &Down) -> Result<Reply, Failure> {
    let node = args.node.node()?;
    let record = node.agent();
    let was_running = record.is_some();
    if let Some(record) = &record {
        stop(&node, record)?;
    }
    if args.wipe && node.path().exists() {
        node.wipe(&node.lock()?)?;
    }
    let directory = node.path().display();
    let mut text = match was_running {
        true => format!("the node in {directory} is stopped"),
        false => format!("no node runs in {directory}"),
    };
    if args.wipe {
        text.push_str("; what it stored is deleted");
    }
    let json = json!({ "was_running": was_running, "wiped": args.wipe, "node_dir": node.path() });
    Ok(Reply::good(text, json))
}

//! `redoubt up`.

use crate::attest::{expectations, proof, refused, trust_anchors, words};
use crate::node::{NodeDirArg, ask, block_on, stop};
use crate::output::{Failure, Output, Progress, Reply};
use crate::releases::{RootArgs, manifest_path};
use clap::Args;
use host_guest::Phase;
use host_os::attest::{AttestError, Attested, Expectations, fetch_and_verify};
use host_os::cli::{GuestArgs, root_source};
use host_os::node::{AgentRecord, NodeDir};
use host_os::status::Status;
use host_os::upgrade::Store;
use release::ApprovedManifest;
use serde_json::{Map, Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

/// How often the agent is asked while waiting.
const POLL: Duration = Duration::from_millis(150);

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// The release: the directory that holds manifest.json, or the manifest
    #[arg(long, value_name = "DIR")]
    pub(crate) release: PathBuf,
    #[command(flatten)]
    pub(crate) root: RootArgs,
    #[command(flatten)]
    pub(crate) node: NodeDirArg,
    /// A whole machine in QEMU, with Secure Boot, TPM, NVMe and NVDIMM: the installer flashes it, HostOS starts from its disk
    /// and starts the guest. A machine that was flashed before starts from its disk
    #[arg(long, conflicts_with_all = ["detach", "dry_run"])]
    pub(crate) full: bool,
    /// Directory of that machine [default: `machine` in the node's directory]
    #[arg(long, value_name = "DIR", requires = "full")]
    pub(crate) machine: Option<PathBuf>,
    /// Leave that machine running until Ctrl-C, with its screen on VNC and its serial console on a socket
    #[arg(long, requires = "full")]
    pub(crate) keep: bool,
    /// Leave the node running and return; `redoubt down` stops it
    #[arg(long)]
    detach: bool,
    /// Delete what the node stored before starting it
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Check the release, print QEMU's command line and what is measured, and start nothing
    #[arg(long, conflicts_with_all = ["detach", "fresh"])]
    dry_run: bool,
    /// Give up when the node is not ready after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
}

/// The agent, as far as this command has it.
struct Agent {
    node: NodeDir,
    /// The process, if this command started it.
    child: Option<Child>,
}

pub(crate) fn run(args: Up, output: &Output) -> Result<Reply, Failure> {
    if args.full {
        return crate::full::run(&args, output);
    }
    let node = args.node.node()?;
    let manifest_path = std::path::absolute(manifest_path(&args.release))
        .map_err(|error| Failure::of("release-unreadable", &error))?;
    if args.dry_run {
        return dry_run(&args, manifest_path, &node);
    }
    let mut progress = Progress::new();
    progress.step("manifest");
    // The verdict at the end is this command's own; it takes nothing of it from the agent but the roots that follow the given one.
    let manifest = match args.fresh {
        true => args.root.approve(&manifest_path)?,
        // Upgrades may have brought another one since.
        false => args.root.approve_of_node(&Store::of(&node), &manifest_path, node.is_running())?,
    };
    let expected = expectations(&manifest, trust_anchors(args.root.profile.profile())?)?;

    let running = running(&node, &manifest)?;
    let mut agent = Agent { node, child: None };
    if !running {
        if args.fresh {
            agent.node.wipe(&agent.node.lock()?)?;
        }
        agent.child = Some(start(&args, &agent.node, &manifest_path)?);
    } else if args.fresh {
        let message = "the node runs, so what it stored cannot be deleted; `redoubt down` first";
        return Err(Failure::new("already-running", message));
    }
    let result = block_on(async {
        let ready = agent.bring_up(&args, &expected, &mut progress).await;
        let (record, status, attested) = match ready {
            Ok(ready) => ready,
            // It goes on without this command, for its operators.
            Err(failure) if failure.code == IN_RECOVERY && (args.detach || running) => return Err(failure),
            Err(failure) if failure.code == IN_RECOVERY => {
                eprintln!("{}", failure.message);
                let Some(record) = agent.record() else { return Err(failure) };
                return agent.follow(&record).await;
            }
            Err(failure) => return Err(agent.give_up(failure)),
        };
        let reply = summary(&args, &agent, &manifest, &status, &attested, running, progress.finish());
        if args.detach || running {
            return Ok(reply);
        }
        output.print(&reply);
        agent.follow(&record).await
    });
    // `give_up` and `follow` have waited for it, and a detached one is not ours to wait for.
    drop(agent);
    result
}

fn dry_run(args: &Up, manifest: PathBuf, node: &NodeDir) -> Result<Reply, Failure> {
    let options =
        args.guest.options(manifest, root_source(args.root.root.clone()), args.root.profile.profile());
    let plan = host_os::dry_run::plan(&options, node).map_err(|error| Failure::of(error.code(), &error))?;
    Ok(Reply::good(plan.to_string().trim_end(), plan.to_json()))
}

/// Whether a node with this release runs; another release is an error.
fn running(node: &NodeDir, manifest: &ApprovedManifest) -> Result<bool, Failure> {
    if !node.is_running() {
        return Ok(false);
    }
    // An agent that has just started writes its record at once, the digest when it has verified the manifest.
    let end = Instant::now() + Duration::from_secs(15);
    while Instant::now() < end {
        match node.agent() {
            Some(record) if record.digest == manifest.digest().to_string() => return Ok(true),
            Some(AgentRecord { digest, release, .. }) if !digest.is_empty() => {
                let message = format!(
                    "a node with another release ({release}, digest {digest}) runs in {}; `redoubt down` first",
                    node.path().display()
                );
                return Err(Failure::new("other-release-running", message));
            }
            None if !node.is_running() => return Ok(false),
            _ => std::thread::sleep(POLL),
        }
    }
    Err(Failure::new("agent-silent", "an agent runs but does not say what; look at `redoubt logs`"))
}

/// Starts the agent: this same program, so that the two are always of one version.
fn start(args: &Up, node: &NodeDir, manifest: &Path) -> Result<Child, Failure> {
    let failed = |error: std::io::Error| Failure::of("agent-not-started", &error);
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.arg("host-os").arg("--node-dir").arg(node.path()).arg("--release").arg(manifest);
    command.args(args.root.to_words()).args(args.guest.to_words());
    if args.detach {
        command.arg("--new-session");
    } else {
        // Ctrl-C is for this command, which then stops the agent. Should this command die, so does the agent.
        command.arg("--stop-with").arg(std::process::id().to_string()).process_group(0);
    }
    // The agent writes its own log.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(failed)
}

impl Agent {
    /// Waits until the guest is ready and its evidence verified.
    async fn bring_up(
        &mut self,
        args: &Up,
        expected: &Expectations,
        progress: &mut Progress,
    ) -> Result<(AgentRecord, Status, Attested), Failure> {
        let limit = Duration::from_secs(args.timeout);
        let end = Instant::now() + limit;
        let (mut told, mut given_up) = (0, None);
        progress.step("agent");
        let (record, status) = loop {
            if let Some(failure) = self.ended()? {
                return Err(failure);
            }
            if Instant::now() > end {
                let message = format!(
                    "the node is not ready after {} s; look at `redoubt logs --console`",
                    limit.as_secs()
                );
                return Err(Failure::new("not-ready-in-time", message));
            }
            if let Some(record) = self.record()
                && let Ok(status) = ask(&record).await
            {
                for reason in status.reasons.iter().skip(told) {
                    progress.line(&format!("  {}", reason.reason));
                }
                told = told.max(status.reasons.len());
                if let Some(guest) = &status.guest
                    && guest.phase <= Phase::Opening
                    && !guest.error.is_empty()
                {
                    // It has stopped there, and tells why; starting it again would change nothing.
                    let message = format!(
                        "the guest does not start: {}; to begin with empty storage: `redoubt up --fresh`",
                        guest.error
                    );
                    return Err(Failure::new("guest-does-not-start", message));
                }
                let over = is_over(&status, &mut given_up);
                match status.state.as_str() {
                    "ready" => break (record, status),
                    "stopping" | "stopped" => return Err(failed(&status)),
                    "failed" if over => return Err(failed(&status)),
                    "recovery" => return Err(in_recovery(&status)),
                    "checking" if !status.step.is_empty() => progress.step(&status.step),
                    "booting" | "launching" => progress.step(&booting(&status)),
                    state => progress.step(state),
                }
            }
            sleep(POLL).await;
        };
        progress.step("evidence with a fresh nonce");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, record.ports.https));
        let attested = evidence(address, expected).await?;
        // The gateway opens when the agent has verified for itself.
        progress.step("gateway");
        while Instant::now() < end {
            let status = ask(&record).await?;
            if status.attested.is_some() {
                return Ok((record, status, attested));
            }
            sleep(POLL).await;
        }
        Err(Failure::new(
            "gateway-closed",
            format!("the agent has not verified the guest: {}", status.attestation_error),
        ))
    }

    /// The record of the agent that runs now.
    fn record(&self) -> Option<AgentRecord> {
        let record = self.node.agent()?;
        // While a new agent has not written its record, an old one may still be there.
        let ours = self.child.as_ref().is_none_or(|child| child.id() == record.pid);
        (ours && record.ports.status != 0).then_some(record)
    }

    /// Whether the agent has ended, and why.
    fn ended(&mut self) -> Result<Option<Failure>, Failure> {
        let Some(child) = &mut self.child else {
            let gone = !self.node.is_running();
            return Ok(gone.then(|| Failure::new("agent-ended", "the agent has just ended; start it again")));
        };
        let Some(status) = child.try_wait().map_err(|error| Failure::of("agent-lost", &error))? else {
            return Ok(None);
        };
        let pid = child.id();
        let record = self.node.read_record().filter(|record| record.pid == pid);
        let failure = match record.and_then(|record| record.end) {
            Some(end) if end.exit != 0 => Failure::new(&end.code, end.error),
            _ if status.code() == Some(7) => {
                Failure::new("already-running", "another agent has just started; try again")
            }
            _ => Failure::new("agent-ended", format!("the agent ended ({status}); look at `redoubt logs`")),
        };
        Ok(Some(failure))
    }

    /// Stops what this command started; the failure remains the reason.
    fn give_up(&mut self, failure: Failure) -> Failure {
        if let Some(child) = &mut self.child {
            if let Some(record) = self.node.agent().filter(|record| record.pid == child.id())
                && let Err(second) = stop(&self.node, &record)
            {
                eprintln!("error: {}", second.message);
            }
            // It has ended, or has been told to and will be waited for by init.
            let _ = child.try_wait();
        }
        failure
    }

    /// Stays until Ctrl-C, then stops the node.
    async fn follow(&mut self, record: &AgentRecord) -> Result<Reply, Failure> {
        let signals = |error: std::io::Error| Failure::of("no-event-loop", &error);
        let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
        eprintln!("\nCtrl-C stops the node.");
        let (mut told, mut given_up) = (0, None);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = sleep(Duration::from_secs(1)) => {}
            }
            if let Some(failure) = self.ended()? {
                return Err(failure);
            }
            if let Ok(status) = ask(record).await {
                for reason in status.reasons.iter().skip(told) {
                    eprintln!("after {} s: {}", reason.at_s, reason.reason);
                }
                told = status.reasons.len();
                if is_over(&status, &mut given_up) {
                    return Err(self.give_up(failed(&status)));
                }
            }
        }
        eprintln!("stopping");
        stop(&self.node, record)?;
        if let Some(child) = &mut self.child {
            child.wait().map_err(|error| Failure::of("agent-lost", &error))?;
        }
        Ok(Reply::silent())
    }
}

/// Fetches and verifies; a guest that has just become ready may not answer the first time.
pub(crate) async fn evidence(address: SocketAddr, expected: &Expectations) -> Result<Attested, Failure> {
    for _ in 0..5 {
        match fetch_and_verify(address, expected).await {
            Err(AttestError::Fetch(_)) => sleep(Duration::from_secs(1)).await,
            other => return other.map_err(refused),
        }
    }
    fetch_and_verify(address, expected).await.map_err(refused)
}

/// For the agent to start the recovery release in place of a guest that it has given up.
const TO_RECOVERY: Duration = Duration::from_secs(60);

/// Whether the guest is given up, and no recovery release takes its place; `since` is kept between two calls.
fn is_over(status: &Status, since: &mut Option<Instant>) -> bool {
    if status.state != "failed" {
        *since = None;
        return false;
    }
    let since = since.get_or_insert_with(Instant::now);
    status.upgrade.recovery.is_empty() || since.elapsed() > TO_RECOVERY
}

/// Code of a node that nothing but its recovery release is left of.
const IN_RECOVERY: &str = "node-in-recovery";

fn in_recovery(status: &Status) -> Failure {
    let message = format!(
        "the node is in recovery, because neither slot could be started: {}; its operators see it by `redoubt support`, and bring \
         a release by `redoubt upgrade`, both with --node, --node-key and --key",
        status.upgrade.reason
    );
    Failure::new(IN_RECOVERY, message)
}

fn booting(status: &Status) -> String {
    let accel = status.accel.map_or_else(String::new, |accel| format!(" ({accel})"));
    match &status.guest {
        None => format!("guest boots{accel}"),
        Some(_) => "replica starts".into(),
    }
}

fn failed(status: &Status) -> Failure {
    let reasons: Vec<_> = status.reasons.iter().map(|reason| format!("- {}", reason.reason)).collect();
    let message = format!(
        "the guest does not run (state {}):\n{}\nlook at `redoubt logs --console`",
        status.state,
        reasons.join("\n")
    );
    Failure::new("guest-failed", message)
}

fn summary(
    args: &Up,
    agent: &Agent,
    manifest: &ApprovedManifest,
    status: &Status,
    attested: &Attested,
    was_running: bool,
    steps: Vec<(String, f64)>,
) -> Reply {
    let verified = words(Some(manifest), &attested.verified, Some(&attested.fetched.nonce));
    let mut text = String::new();
    if was_running {
        text.push_str("The node already runs with this release.\n\n");
    }
    text.push_str("Verified:\n");
    for line in &verified {
        text.push_str(&format!("  {line}\n"));
    }
    let urls = &status.urls;
    text.push_str(&format!(
        "\nAddresses:\n  {:<32}Internet Computer HTTPS interface, straight to the guest\n  \
         {:<32}the same for tools on this machine: the gateway pins the verified TLS key\n  \
         {:<32}status and metrics of the agent\n",
        urls.https, urls.http, urls.status
    ));
    let node_dir = match args.node.given() {
        Some(path) => format!(" --node-dir {}", path.display()),
        None => String::new(),
    };
    text.push_str(&format!(
        "\nNext:\n  redoubt status{node_dir}\n  redoubt logs --console -f{node_dir}\n  redoubt down{node_dir}"
    ));
    let seconds: Map<String, Value> = steps.into_iter().map(|(name, time)| (name, json!(time))).collect();
    let json = json!({
        "already_running": was_running,
        "pid": status.pid,
        "node_dir": agent.node.path(),
        "urls": { "https": urls.https, "http": urls.http, "status": urls.status },
        "release": status.release,
        "accel": status.accel,
        "verified": verified,
        "proof": proof(&attested.verified),
        "seconds": seconds,
    });
    Reply::good(text, json)
}

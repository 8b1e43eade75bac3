//! `redoubt upgrade`: asks a node to bring a release, and shows how that goes.

use crate::node::{NodeDirArg, ask, block_on};
use crate::operator::Remote;
use crate::output::{Failure, Progress, Reply};
use clap::{Args, Subcommand};
use host_os::upgrade::{Order, Source, Store, UpgradeStatus};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a node is asked.
const LOOK: Duration = Duration::from_millis(500);
/// A machine that restarts does not answer for so long at most; a try that fails takes several restarts.
const SILENCE: Duration = Duration::from_secs(1800);

const HELP: &str = "\
The node fetches the release, verifies it against its root and the blessing beside the manifest, puts it into the other slot,
has the running guest hand the storage key to the new one, and runs that. If it serves, is attested and answers for the time
set with `up --healthy`, the node commits to it and erases the old one's key; otherwise it goes back by itself and says why.

A machine of its own takes the release's host first: it writes it into the other slot of its disk, lets its TPM open the host's
secret to it, and has the firmware start it once. If its guest is well for the same time, the machine starts it always, and the
guest follows; otherwise the machine comes back on the old host, and no guest is touched. --wait bears with the restarts.

A node whose state is `recovery` has nothing else left to start: its recovery release hands the key to the release that this
command brings, which has to be ordered with an operator's key.

Exit codes: 0 asked for, or with --wait committed; 1 refused or failed; 2 the command line was wrong";

/// Bring a node a new release, or show how that goes
#[derive(Debug, Args)]
#[command(after_help = HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct Upgrade {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    start: Start,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show how an upgrade goes, or how the last one ended
    Status(Whose),
}

#[derive(Debug, Args)]
struct Whose {
    #[command(flatten)]
    node: NodeDirArg,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Start {
    /// Address of the release's manifest (http:// or https://), its files beside it; for a node of this machine also a path
    #[arg(value_name = "MANIFEST", required = true)]
    manifest: Option<String>,
    /// Address of another directory with the same files; may be repeated
    #[arg(long, value_name = "URL")]
    mirror: Vec<String>,
    /// Most bytes in a second [default: as fast as it goes]
    #[arg(long, value_name = "BYTES")]
    bytes_per_second: Option<u64>,
    /// Do not try the release before this time, in seconds since 1970; it is fetched and staged at once
    #[arg(long, value_name = "TIME", default_value_t = 0)]
    not_before: u64,
    /// Wait until the node has committed to the release or given it up
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    whose: Whose,
}

pub(crate) fn run(args: &Upgrade) -> Result<Reply, Failure> {
    match &args.action {
        Some(Action::Status(whose)) => {
            let status = whose.status()?;
            Ok(Reply::good(describe(&status), json!(status)))
        }
        None => start(&args.start),
    }
}

impl Whose {
    fn status(&self) -> Result<UpgradeStatus, Failure> {
        let status = match self.remote.get("/v1/status")? {
            Some(answer) => {
                let status: host_os::status::Status = serde_json::from_slice(&answer)
                    .map_err(|error| Failure::of("status-unreadable", &error))?;
                status
            }
            None => {
                let node = self.node.node()?;
                let record = node.agent().ok_or_else(|| {
                    let message =
                        format!("no node runs in {}; start it with `redoubt up`", node.path().display());
                    Failure::new("no-node", message)
                })?;
                block_on(ask(&record))?
            }
        };
        Ok(status.upgrade)
    }
}

fn start(args: &Start) -> Result<Reply, Failure> {
    let before = args.whose.status()?;
    if !before.is_settled() {
        return Err(host_os::upgrade::UpgradeError::Running(before.phase).into());
    }
    let manifest = args.manifest.clone().unwrap_or_default();
    let source = Source {
        manifest: address(&manifest)?,
        mirrors: args.mirror.clone(),
        bytes_per_second: args.bytes_per_second,
    };
    let order = Order { source, not_before: args.not_before, operator: None };
    let body = serde_json::to_vec(&order).map_err(|error| Failure::of("upgrade-order-malformed", &error))?;
    if args.whose.remote.post("/v1/upgrade", body)?.is_none() {
        Store::of(&args.whose.node.node()?).ask(&order)?;
    }
    if !args.wait {
        let text = "the node brings the release; `redoubt upgrade status` shows how it goes";
        return Ok(Reply::good(text, json!({ "asked": order })));
    }
    let mut progress = Progress::new();
    let mut heard = Instant::now();
    loop {
        std::thread::sleep(LOOK);
        let status = match args.whose.status() {
            Ok(status) => status,
            // Only a machine of its own restarts.
            Err(_) if before.host.is_some() && heard.elapsed() < SILENCE => {
                progress.step("no answer: the machine restarts");
                continue;
            }
            Err(failure) => return Err(failure),
        };
        heard = Instant::now();
        // The order of which this is the end, not the one before it: each begins with an entry.
        if status.is_settled() && status.audit_entries > before.audit_entries {
            progress.finish();
            let good = status.code.is_empty();
            return Ok(Reply { text: describe(&status), json: json!(status), good });
        }
        let (part, phase) = match &status.host {
            Some(host) if !matches!(host.phase.as_str(), "idle" | "failed") => ("host ", &host.phase),
            _ => ("", &status.phase),
        };
        progress.step(&format!("{part}{phase} {}", status.step));
    }
}

/// A path as an address.
fn address(manifest: &str) -> Result<String, Failure> {
    if manifest.contains("://") {
        return Ok(manifest.to_owned());
    }
    let path =
        std::path::absolute(Path::new(manifest)).map_err(|error| Failure::of("fetch-address", &error))?;
    Ok(format!("file://{}", path.display()))
}

fn describe(status: &UpgradeStatus) -> String {
    let mut text = format!("phase       {}", status.phase);
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("\n{name:<12}{value}"));
        }
    };
    line("step", &status.step);
    line("slot", &status.active);
    line("recovery", &status.recovery);
    line("incoming", &status.incoming);
    let (have, all) = status.fetched;
    if all > 0 {
        line("fetched", &format!("{have} of {all} bytes, {} over the network", status.moved));
    }
    if let Some(host) = &status.host {
        line(
            "host",
            &format!("{}, slot {} runs, slot {} is committed", host.phase, host.running, host.active),
        );
        line("its release", &host.release);
    }
    line("no keys", &status.no_keys);
    line("given up", &status.reason);
    line("code", &status.code);
    line("audit", &format!("{} entries, the last {}", status.audit_entries, status.audit_digest));
    text
}

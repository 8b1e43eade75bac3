//! `redoubt up --full`: a node provider's whole way, on a virtual machine. The installer starts from a USB stick under Secure
//! Boot, checks, flashes, and restarts; the firmware then starts HostOS from the disk, HostOS starts the guest under KVM,
//! and the guest's evidence is verified from outside.

mod machine;

use crate::attest::{expectations, proof, trust_anchors, words};
use crate::flash;
use crate::node::block_on;
use crate::output::{Failure, Output, Progress, Reply};
use crate::up::{Up, evidence};
use host_os::attest::Expectations;
use host_os::operator::identity::Identity;
use machine::{Machine, Place, Wires, free_port, tail};
use release::ApprovedManifest;
use serde_json::{Map, Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

/// How often the console is looked at.
const POLL: Duration = Duration::from_millis(200);
/// A guest that accepts connections but does not answer yet is asked again.
const ASK: Duration = Duration::from_secs(10);
/// The machine's address in QEMU's user network, which gives it to the one machine there, and the ports behind it: the
/// guest's HTTPS interface and the host's operators' interface.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));
const GUEST: SocketAddr = SocketAddr::new(ADDRESS, 8443);
const HOST: SocketAddr = SocketAddr::new(ADDRESS, 18444);

/// What lines of the console mean, in the order of their coming: text, and the name of the step that it begins.
const STEPS: &[(&str, &str)] = &[
    ("installer: ", "installer"),
    (" % ", "flash"),
    ("is installed", "firmware and kernel"),
    ("host-os: root hash", "host"),
    ("host-os: agent started", "guest"),
];

/// What a line of the console says of the machine's way.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    /// A step begins.
    Step(&'static str),
    /// The installer has finished.
    Installed,
    /// The node's name.
    Identity(&'a str),
    /// SHA-256 of the host's TLS key.
    HostKey(&'a str),
    /// Name of the error with which the agent is about to end.
    Code(&'a str),
    /// The agent has ended.
    Ended,
    /// It will not get further; the reason's name.
    Refused(String),
}

/// Understands a line of the console.
fn understand(line: &str) -> Option<Said<'_>> {
    if let Some((_, rest)) = line.split_once("nothing more is done (") {
        let code = rest.split(')').next().unwrap_or_default();
        return Some(Said::Refused(code.to_owned()));
    }
    if line.contains("host-os: the host cannot start") {
        return Some(Said::Refused("host-does-not-start".into()));
    }
    if line.contains("host-os: agent ended") {
        return Some(Said::Ended);
    }
    // The end of the error's text, which may have several lines.
    if let Some((_, code)) = line.split_once(" code=\"") {
        return code.strip_suffix('"').map(Said::Code);
    }
    if line.contains("installer: ") && line.contains("is installed") {
        return Some(Said::Installed);
    }
    if let Some((_, key)) =
        line.split_once("operators may connect").and_then(|(_, rest)| rest.split_once("key_sha256=\""))
    {
        return key.strip_suffix('"').map(Said::HostKey);
    }
    if let Some((_, node)) = line.split_once("identity of this node: ") {
        return Some(Said::Identity(node.trim()));
    }
    let (_, step) = STEPS.iter().rev().find(|(text, _)| line.contains(text))?;
    Some(Said::Step(step))
}

/// Writes the stick: the release's installer, unattended.
fn write_stick(place: &Place, release: &Path) -> Result<(), Failure> {
    let operator = Identity::read_or_create(&place.operator_key())?;
    let key = operator.public_key().map(hex::encode).unwrap_or_default();
    let config = json!({
        "version": 1, "disk": "auto", "erase": true, "hardware": "virtual", "enrol_keys": true,
        "operator": { "public_key": key }, "when_done": "reboot",
        "network": { "uplink": {
            "devices": ["eth0"], "ipv6": "router-advertisement",
            "ipv4": { "address": ADDRESS, "prefix": 24, "gateway": "10.0.2.2" },
        } },
    });
    let bytes = serde_json::to_vec(&config).map_err(|error| Failure::of("machine-not-made", &error))?;
    flash::image(release, &bytes, &place.stick())
}

pub(crate) fn run(args: &Up, output: &Output) -> Result<Reply, Failure> {
    let mut progress = Progress::new();
    progress.step("manifest");
    let manifest = args.root.approve(&crate::releases::manifest_path(&args.release))?;
    let expected = expectations(&manifest, trust_anchors(args.root.profile.profile())?)?;
    let place = Place::new(match &args.machine {
        Some(folder) => {
            std::path::absolute(folder).map_err(|error| Failure::of("machine-not-made", &error))?
        }
        None => args.node.node()?.path().join("machine"),
    });
    let flashing = args.fresh || !place.is_installed();
    if flashing {
        progress.step("stick");
        place.make(&args.release)?;
        write_stick(&place, &args.release)?;
    }
    let wires = Wires {
        guest: (args.guest.https_port.map_or_else(free_port, Ok)?, GUEST),
        operators: (free_port()?, HOST),
        vnc: args.keep.then(free_port).transpose()?,
    };
    block_on(async {
        progress.step("firmware");
        let mut machine = Machine::start(&place, &wires, flashing)?;
        let node = Watch { args, place: &place, wires, manifest: &manifest, expected: &expected, flashing };
        let reply = node.until_answer(&mut machine, &mut progress).await?;
        if !args.keep {
            return Ok(reply);
        }
        output.print(&reply);
        eprintln!("\nCtrl-C switches the machine off.");
        node.stay(&mut machine).await?;
        Ok(Reply::silent())
    })
}

/// What a console has said so far.
#[derive(Default)]
struct Heard {
    identity: Option<String>,
    host_key: Option<String>,
    /// Name of the last error.
    code: String,
    /// The agent runs.
    agent: bool,
}

/// One start of a machine.
struct Watch<'a> {
    args: &'a Up,
    place: &'a Place,
    wires: Wires,
    manifest: &'a ApprovedManifest,
    expected: &'a Expectations,
    flashing: bool,
}

impl Watch<'_> {
    /// Follows the console until the guest is verified.
    async fn until_answer(&self, machine: &mut Machine, progress: &mut Progress) -> Result<Reply, Failure> {
        let end = Instant::now() + Duration::from_secs(self.args.timeout);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.wires.guest.0));
        let mut heard = Heard { code: "agent-ended".to_owned(), ..Heard::default() };
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        loop {
            self.hear(machine, progress, &mut heard)?;
            if Instant::now() > end {
                let message = format!(
                    "the machine's guest does not answer after {} s; its console ends with:{}",
                    self.args.timeout,
                    tail(&machine.text)
                );
                return Err(Failure::new("not-ready-in-time", message));
            }
            if heard.agent
                && let Ok(Ok(attested)) = tokio::time::timeout(ASK, evidence(address, self.expected)).await
            {
                // The connection may have waited for the guest, while the console went on.
                self.hear(machine, progress, &mut heard)?;
                return Ok(self.summary(&attested, &heard, progress.finish()));
            }
            tokio::select! {
                _ = terminate.recv() => return Err(Failure::new("interrupted", "the machine was switched off as asked")),
                _ = interrupt.recv() => return Err(Failure::new("interrupted", "the machine was switched off as asked")),
                () = sleep(POLL) => {}
            }
        }
    }

    /// What the console says now.
    fn hear(&self, machine: &mut Machine, progress: &mut Progress, heard: &mut Heard) -> Result<(), Failure> {
        for line in machine.lines(self.place)? {
            match understand(&line) {
                Some(Said::Step(step)) => {
                    heard.agent |= step == "guest";
                    progress.step(step);
                }
                Some(Said::Installed) if self.flashing => {
                    self.place.note_installed().map_err(|error| Failure::of("machine-lost", &error))?;
                    progress.step("firmware and kernel");
                }
                Some(Said::Identity(node)) => heard.identity = Some(node.to_owned()),
                Some(Said::HostKey(key)) => heard.host_key = Some(key.to_owned()),
                Some(Said::Code(name)) => name.clone_into(&mut heard.code),
                Some(Said::Ended) => return Err(ended(&heard.code, machine)),
                Some(Said::Refused(code)) => return Err(ended(&code, machine)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Stays until Ctrl-C.
    async fn stay(&self, machine: &mut Machine) -> Result<(), Failure> {
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        loop {
            machine.lines(self.place)?;
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                () = sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    fn summary(
        &self,
        attested: &host_os::attest::Attested,
        Heard { identity, host_key, .. }: &Heard,
        seconds: Vec<(String, f64)>,
    ) -> Reply {
        let verified = words(Some(self.manifest), &attested.verified, Some(&attested.fetched.nonce));
        let folder = self.place.folder().display();
        let mut text = String::from("Verified, from outside the machine:\n");
        for line in &verified {
            text.push_str(&format!("  {line}\n"));
        }
        let total: f64 = seconds.iter().map(|(_, time)| time).sum();
        text.push_str("\nTime per step:\n");
        for (name, time) in &seconds {
            text.push_str(&format!("  {name:<24}{time:>8.1} s\n"));
        }
        text.push_str(&format!("  {:<24}{total:>8.1} s\n", "total"));
        let https = format!("https://127.0.0.1:{}", self.wires.guest.0);
        let operators = format!("127.0.0.1:{}", self.wires.operators.0);
        let serial = self.place.path("serial.sock");
        if let Some(vnc) = self.wires.vnc {
            text.push_str(&format!(
                "\nLook around:\n  {https}   the guest\n  127.0.0.1:{vnc}   screen (VNC)\n  {}   serial console: socat - \
                 UNIX-CONNECT:FILE\n  redoubt status --node {operators} --node-key {} --key {}",
                serial.display(),
                host_key.as_deref().unwrap_or("SHA256"),
                self.place.operator_key().display(),
            ));
        } else {
            text.push_str(&format!(
                "\nThe machine is switched off; its parts are in {folder}. --keep leaves it running."
            ));
        }
        let times: Map<String, Value> = seconds.into_iter().map(|(name, time)| (name, json!(time))).collect();
        let json = json!({
            "machine": self.place.folder(),
            "flashed": self.flashing,
            "identity": identity,
            "host_key": host_key,
            "verified": verified,
            "proof": proof(&attested.verified),
            "urls": { "https": https, "operators": operators },
            "vnc": self.wires.vnc,
            "serial": serial,
            "seconds": times,
            "total_seconds": total,
        });
        Reply::good(text, json)
    }
}

/// The machine will not get further.
fn ended(code: &str, machine: &Machine) -> Failure {
    Failure::new(code, format!("the machine's console ends with:{}", tail(&machine.text)))
}

fn no_signals(error: std::io::Error) -> Failure {
    Failure::of("no-event-loop", &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_tells_how_far_the_machine_is() {
        let node = "ab".repeat(32);
        let step = |line| match understand(line) {
            Some(Said::Step(step)) => step,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(step("[    4.1] installer: the machine meets the specification"), "installer");
        assert_eq!(step("[    9.1] installer:  40 % root"), "flash");
        assert_eq!(step("[    6.3] host-os: root hash 12ab"), "host");
        assert_eq!(step("[    7.3] host-os: agent started as process 82"), "guest");
        assert_eq!(
            understand("[   60.1] installer: release 1 is installed; take the medium out"),
            Some(Said::Installed)
        );
        assert_eq!(
            understand(&format!("[    7.3] host-os: identity of this node: {node}")),
            Some(Said::Identity(&node))
        );
        assert_eq!(
            understand("INFO operators may connect address=[::]:18444 key_sha256=\"cd\""),
            Some(Said::HostKey("cd"))
        );
        let refused = |line| matches!(understand(line), Some(Said::Refused(code)) if !code.is_empty());
        assert!(refused("[    5.0] installer: nothing more is done (tpm-missing)"));
        assert!(refused("[    5.0] host-os: the host cannot start: no slot"));
        assert_eq!(
            understand("or accept one of these code=\"hardware-refused\""),
            Some(Said::Code("hardware-refused"))
        );
        assert_eq!(understand("[   12.8] host-os: agent ended with code 3"), Some(Said::Ended));
        assert_eq!(understand("BdsDxe: starting Boot0001"), None);
    }
}

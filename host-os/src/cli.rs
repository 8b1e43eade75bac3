//! The command line of the agent: `host-os run`. Also inside `redoubt`, which starts itself as the agent.

use crate::accel::Choice;
use crate::agent::{self, AgentError};
use crate::attest::{chain, unix_time};
use crate::bundle::RootSource;
use crate::check::{CheckError, Options, PortChoice};
use crate::confine::Level;
use crate::log::{self, Log};
use crate::machine::Policy;
use crate::node::{AgentRecord, End, NodeDir, NodeDirError, Ports};
use crate::upgrade::{Patience, UpgradeError};
use clap::{Args, ValueEnum};
use release::Profile;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Exit codes of the agent, for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  the node was stopped as asked
  1  something else failed (node directory, ports, QEMU)
  2  the command line was wrong
  3  this machine does not fit the hardware specification
  4  the manifest or the root is refused (signatures, form, profile)
  5  a file of the release is refused (size, hash)
  6  the launch measurement is not the manifest's, or the ID block is refused
  7  another agent runs in the node directory
  8  the node was decommissioned

Environment:
  REDOUBT_LOG  what is logged, such as `debug` or `host_os=debug` [default: info]";

/// Runs a node in the foreground: checks machine and release, launches the guest, watches it, serves status.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct RunArgs {
    /// Directory that holds everything of this node; made if absent
    #[arg(long, value_name = "DIR")]
    pub node_dir: PathBuf,
    /// Manifest of the release to run; its files lie beside it
    #[arg(long, value_name = "FILE")]
    pub release: PathBuf,
    /// Root: the keys that may sign releases [default in builds for virtual nodes: the development root]
    #[arg(long, value_name = "FILE")]
    #[cfg_attr(not(feature = "virtual"), arg(required = true))]
    pub root: Option<PathBuf>,
    /// Kind of node
    #[arg(long, value_enum)]
    pub profile: ProfileArg,
    /// The guest and its ports
    #[command(flatten)]
    pub guest: GuestArgs,
    /// Stop when this process, which started the agent, ends
    #[arg(long, value_name = "PID", hide = true)]
    pub stop_with: Option<u32>,
    /// Leave the terminal's session
    #[arg(long, hide = true)]
    pub new_session: bool,
    /// PID 1 of a host started the agent; standard input is the line to it
    #[arg(long, hide = true)]
    pub under_pid1: bool,
    /// Check the release, print QEMU's command line and what is measured, and start nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the dry run as JSON
    #[arg(long, requires = "dry_run")]
    pub json: bool,
}

/// The guest and its ports.
#[derive(Debug, Clone, Args)]
pub struct GuestArgs {
    /// Memory of the guest in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(256..=1_048_576))]
    pub memory: u32,
    /// Number of virtual processors; the release has a measurement for each number it supports
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub vcpus: u32,
    /// QEMU's model of the virtual processors, measured [default: the release's own]
    #[arg(long, value_name = "MODEL")]
    pub vcpu_type: Option<String>,
    /// Size of the NVRAM in MiB, a power of two; cannot be changed later
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = power_of_two)]
    pub nvram: u32,
    /// Size of the disk in MiB; cannot be changed later
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    pub disk: u32,
    /// Port on 127.0.0.1 of the guest's HTTPS interface [default: 18443, or a free one]
    #[arg(long, value_name = "PORT")]
    pub https_port: Option<u16>,
    /// Port on 127.0.0.1 of the gateway, plain HTTP to the attested guest [default: 18080, or a free one]
    #[arg(long, value_name = "PORT")]
    pub http_port: Option<u16>,
    /// Port on 127.0.0.1 of status and metrics [default: 18081, or a free one]
    #[arg(long, value_name = "PORT")]
    pub status_port: Option<u16>,
    /// Address and port of the operators' interface; it is open if the node has an operators.json
    /// [default: 127.0.0.1:18444, or a free port]
    #[arg(long, value_name = "ADDRESS")]
    pub operator_listen: Option<SocketAddr>,
    /// Seconds that a new release has to become healthy, or the node goes back to the old one
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub trial: u64,
    /// Seconds that it has to stay healthy before the node commits to it
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub healthy: u64,
    /// How to execute the guest
    #[arg(long, value_enum, default_value_t = AccelArg::Auto)]
    pub accel: AccelArg,
    /// How far to confine QEMU [default: process; full under PID 1 of a host]
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub confinement: Option<ConfinementArg>,
    /// The QEMU program
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// Go on although the hardware check of this name fails; may be repeated
    #[arg(long, value_name = "CHECK")]
    pub ignore_hardware: Vec<String>,
}

/// See [`Profile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProfileArg {
    /// Machines with SEV-SNP
    Production,
    /// Virtual nodes with a simulated secure processor
    Virtual,
}

/// See [`Level`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConfinementArg {
    /// Own user, namespaces and control group, and all of `process`; needs root
    Full,
    /// Its own files and port only, no capabilities, no new privileges
    Process,
    /// Not at all; for tests
    #[value(hide = true)]
    Off,
}

/// See [`Choice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccelArg {
    /// KVM where a probe shows that it boots, else TCG
    Auto,
    /// Hardware virtualisation
    Kvm,
    /// QEMU's translator
    Tcg,
}

fn power_of_two(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(mib) if mib.is_power_of_two() && mib <= 65_536 => Ok(mib),
        Ok(_) => Err("must be a power of two, at most 65536".into()),
        Err(error) => Err(error.to_string()),
    }
}

impl ProfileArg {
    /// The profile.
    pub fn profile(self) -> Profile {
        match self {
            Self::Production => Profile::Production,
            Self::Virtual => Profile::Virtual,
        }
    }
}

/// The root that `--root` names, or the default of this build. clap has made sure that there is one.
pub fn root_source(root: Option<PathBuf>) -> RootSource {
    #[cfg(feature = "virtual")]
    return root.map_or(RootSource::Development, RootSource::File);
    #[cfg(not(feature = "virtual"))]
    RootSource::File(root.unwrap_or_default())
}

impl GuestArgs {
    /// The same options as words of a command line.
    pub fn to_words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| words.extend([OsString::from(name), value]);
        option("--memory", self.memory.to_string().into());
        option("--vcpus", self.vcpus.to_string().into());
        option("--nvram", self.nvram.to_string().into());
        option("--disk", self.disk.to_string().into());
        option("--trial", self.trial.to_string().into());
        option("--healthy", self.healthy.to_string().into());
        if let Some(model) = &self.vcpu_type {
            option("--vcpu-type", model.into());
        }
        let ports = [
            ("--https-port", self.https_port),
            ("--http-port", self.http_port),
            ("--status-port", self.status_port),
        ];
        for (name, port) in ports {
            if let Some(port) = port {
                option(name, port.to_string().into());
            }
        }
        if let Some(address) = &self.operator_listen {
            option("--operator-listen", address.to_string().into());
        }
        if let Some(accel) = self.accel.to_possible_value() {
            option("--accel", accel.get_name().into());
        }
        if let Some(level) = self.confinement.and_then(|level| level.to_possible_value()) {
            option("--confinement", level.get_name().into());
        }
        option("--qemu", self.qemu.clone().into());
        for check in &self.ignore_hardware {
            option("--ignore-hardware", check.into());
        }
        words
    }
}

impl GuestArgs {
    /// All that the agent is asked to run.
    pub fn options(&self, manifest: PathBuf, root: RootSource, profile: Profile) -> Options {
        let guest = self;
        Options {
            manifest,
            root,
            profile,
            memory_mib: guest.memory,
            vcpus: guest.vcpus,
            vcpu_type: guest.vcpu_type.clone(),
            nvram_bytes: u64::from(guest.nvram) << 20,
            disk_bytes: u64::from(guest.disk) << 20,
            ports: PortChoice {
                https: guest.https_port,
                http: guest.http_port,
                status: guest.status_port,
                operator: guest.operator_listen,
            },
            accel: match guest.accel {
                AccelArg::Auto => Choice::Auto,
                AccelArg::Kvm => Choice::Kvm,
                AccelArg::Tcg => Choice::Tcg,
            },
            qemu: guest.qemu.clone(),
            ignore_hardware: guest.ignore_hardware.clone(),
            policy: Policy::default(),
            trial: Patience {
                trial: Duration::from_secs(guest.trial),
                healthy: Duration::from_secs(guest.healthy),
            },
            confinement: match guest.confinement {
                Some(ConfinementArg::Full) => Level::Full,
                Some(ConfinementArg::Process) | None => Level::Process,
                Some(ConfinementArg::Off) => Level::Off,
            },
            placement: None,
            power: None,
        }
    }
}

impl RunArgs {
    fn options(&self) -> Options {
        self.guest.options(self.release.clone(), root_source(self.root.clone()), self.profile.profile())
    }
}

fn dry_run(args: &RunArgs) -> u8 {
    match crate::dry_run::plan(&args.options(), &NodeDir::at(&args.node_dir)) {
        Ok(plan) if args.json => println!("{:#}", plan.to_json()),
        Ok(plan) => println!("{plan}"),
        Err(error) => {
            let error = AgentError::Check(error);
            eprintln!("error: {}\n({})", chain(&error), error.code());
            return exit_code(&error);
        }
    }
    0
}

/// Runs the agent to its end; the result is the exit code.
pub fn run(args: &RunArgs) -> u8 {
    if args.dry_run {
        return dry_run(args);
    }
    if args.under_pid1 {
        // PID 1 blocks what it reads itself, and a program inherits that: the agent would never hear SIGTERM.
        let _ = nix::sys::signal::SigSet::all().thread_unblock();
        if let Err(error) = crate::power::until_begin() {
            eprintln!("error: PID 1 does not say that this machine is ready: {error}");
            return 1;
        }
    }
    if args.new_session
        && let Err(error) = nix::unistd::setsid()
    {
        eprintln!("cannot leave the terminal's session: {error}");
        return 1;
    }
    if let Some(parent) = args.stop_with {
        let asked = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM);
        // It may have ended before it could be watched.
        if asked.is_err() || std::os::unix::process::parent_id() != parent {
            eprintln!("error: process {parent}, with which the agent should stop, is not there");
            return 1;
        }
    }
    let node = NodeDir::at(&args.node_dir);
    let lock = match node.lock() {
        Ok(lock) => Arc::new(lock),
        Err(error) => {
            eprintln!("error: {error}");
            return exit_code(&AgentError::NodeDir(error));
        }
    };
    if let Err(error) = start_log(&node, args.under_pid1) {
        eprintln!("error: cannot write {}: {error}", node.agent_log().display());
        return 1;
    }
    let mut record = AgentRecord {
        pid: std::process::id(),
        started_unix_s: unix_time(),
        ports: Ports { https: 0, http: 0, status: 0 },
        manifest: args.release.clone(),
        digest: String::new(),
        release: String::new(),
        measurement: String::new(),
        end: None,
    };
    let result = start(args, &node, &lock, &mut record);
    let end = match &result {
        Ok(()) => End { exit: 0, code: String::new(), error: String::new() },
        Err(error) => End { exit: exit_code(error), code: error.code().into(), error: chain(error) },
    };
    if let Err(error) = &result {
        tracing::error!(code = error.code(), "{}", chain(error));
    }
    let exit = end.exit;
    record.end = Some(end);
    if let Err(error) = node.write_record(&record) {
        tracing::error!("{error}");
    }
    // Whoever waits for the lock finds the record complete.
    drop(lock);
    exit
}

fn start(
    args: &RunArgs,
    node: &NodeDir,
    lock: &Arc<crate::node::NodeLock>,
    record: &mut AgentRecord,
) -> Result<(), AgentError> {
    node.write_record(record)?;
    // One thread: the agent has little to do, and QEMU must be started from a thread that never ends.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AgentError::Runtime)?;
    let mut options = args.options();
    if args.under_pid1 {
        options.confinement = Level::Full;
        options.power = Some(crate::power::Power::of_agent().map_err(AgentError::Pid1)?);
    }
    let result = runtime.block_on(agent::run(options, node.clone(), lock.clone(), record));
    // Checks that still run after a stop request are not waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// The exit code for an error; see [`EXIT_CODES`].
pub fn exit_code(error: &AgentError) -> u8 {
    use crate::bundle::ReleaseError as R;
    let error = match error {
        AgentError::Check(error) | AgentError::Upgrade(UpgradeError::Check(error)) => error,
        AgentError::NodeDir(NodeDirError::Running(_)) => return 7,
        AgentError::Decommissioned => return 8,
        _ => return 1,
    };
    match error {
        CheckError::Hardware { .. } | CheckError::Processor(_) => 3,
        CheckError::Release(error) => match error {
            R::Unreadable { .. }
            | R::Root { .. }
            | R::NextRoot { .. }
            | R::DevelopmentRoot(_)
            | R::Manifest { .. }
            | R::Profile { .. }
            | R::Refused { .. }
            | R::NoBlessing(_) => 4,
            R::File(_) => 5,
            R::Measurement(_)
            | R::Launch(_)
            | R::GuestFeatures(_)
            | R::IdBlockSignatures(_)
            | R::NoIdBlock { .. }
            | R::IdBlock { .. } => 6,
            R::Copy { .. } | R::Seen(_) | R::Anchor(_) | R::Unwritable { .. } => 1,
        },
        CheckError::Profile(_) => 4,
        _ => 1,
    }
}

/// What is said goes to the node's log, with its fields, and to standard error as lines.
fn start_log(node: &NodeDir, under_pid1: bool) -> io::Result<()> {
    use tracing_subscriber::layer::SubscriberExt;
    let log = Log::open(&node.agent_log())?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("REDOUBT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).with_writer(io::stderr);
    let subscriber = tracing_subscriber::registry().with(filter).with(log.clone()).with(lines);
    // Fails only where a log was set up before, as in tests; then that one is used.
    let _ = tracing::subscriber::set_global_default(subscriber);
    if under_pid1 {
        log::follow_kernel(&log, &node.agent_log());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Guest {
        #[command(flatten)]
        guest: GuestArgs,
    }

    #[test]
    fn guest_options_survive_as_words() {
        for line in [
            "x",
            "x --memory 2048 --vcpus 4 --vcpu-type EPYC-Milan --nvram 64 --disk 100 --trial 7 --healthy 3 --https-port 1 --http-port 2 --status-port 3 \
             --accel tcg --confinement full --qemu /opt/q --ignore-hardware memory --ignore-hardware disk",
        ] {
            let first = Guest::try_parse_from(line.split_whitespace()).unwrap();
            let words = std::iter::once(OsString::from("x")).chain(first.guest.to_words());
            let second = Guest::try_parse_from(words).unwrap();
            assert_eq!(format!("{first:?}"), format!("{second:?}"));
        }
    }

    #[test]
    fn an_nvram_that_cannot_be_a_pci_bar_is_refused() {
        assert!(Guest::try_parse_from(["x", "--nvram", "500"]).is_err());
        assert!(Guest::try_parse_from(["x", "--nvram", "0"]).is_err());
    }
}

//! The order of a boot, and the loop that follows.

use crate::Event;
use crate::clock::{self, ClockError};
use crate::command_line::{self, CommandLine, CommandLineError, Profile};
use crate::console::{chain, power_off, restart, say};
use crate::devices::{self, DeviceError};
use crate::evidence::{self, Provider};
use crate::hand_over::{Giving, Party, Receiving, Step};
use crate::health::{Facts, Reporter};
use crate::host::{Link, accept};
use crate::keys::{KeyError, KeySource, Level};
use crate::mounts::{self, MountError};
use crate::network::{self, NetworkError};
use crate::replica::{Replica, Sign};
use crate::storage::{self, StorageError, Vault};
use crate::supervisor::{self, Action, Policy, Supervisor};
use crate::sysctl::{self, SysctlError};
use crate::tsm::{self, Tsm, TsmError};
use crate::vault::Identity;
use attestation::{Report, TrustAnchors};
use host_guest::{GuestConfig, PORT, Phase, Task, ToGuest, ToHost, VERSION};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use release::Purpose;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

const SYS: &str = "/sys";
/// A host that does not answer is greeted again.
const GREET_AGAIN: Duration = Duration::from_secs(2);
/// How long the last messages to the host may take.
const LAST_MESSAGES: Duration = Duration::from_millis(500);
/// How long the replica's last sign of life may take to arrive.
const LAST_SIGN: Duration = Duration::from_millis(50);
/// How often the vault is written for the heap's sake alone.
const ANCHOR: Duration = Duration::from_secs(60);
/// Exit code of a replica whose heap's medium ends before what it has to reach (`replica --help`).
const OLDER_HEAP: i32 = 5;

/// The guest cannot start, and cannot even tell the host why: the console has the reason.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant is the step of that name")]
pub enum BootError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("/proc/cmdline cannot be read: {0}; build the image with the kernel of its recipe")]
    NoCommandLine(#[source] io::Error),
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    #[error("this binary was built for the {built} profile and the image says {said}; build the image anew")]
    Profile { built: &'static str, said: &'static str },
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(transparent)]
    Clock(#[from] ClockError),
    #[error(transparent)]
    Port(#[from] DeviceError),
    #[error("starting a thread or handling signals failed: {0}; give the guest more memory")]
    Thread(#[from] io::Error),
}

/// The guest runs and cannot open what the replica needs. It tells the host and waits to be stopped: a restart would
/// not help.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("mounting the simulated PSP's reports failed: {0}; build the image with FUSE")]
    #[cfg(feature = "virtual")]
    Simulation(#[source] io::Error),
    #[error(transparent)]
    Tsm(#[from] TsmError),
    #[error(transparent)]
    Random(#[from] ClockError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    HandOver(#[from] crate::hand_over::Failure),
    #[error("opening the evidence socket failed: {0}; build the image anew")]
    Evidence(#[source] io::Error),
    #[error("asked to stop")]
    Stopped,
}

/// Boots the guest and runs it until it powers off.
pub fn run() -> Result<Infallible, BootError> {
    let started = Instant::now();
    mounts::mount_all()?;
    let text = std::fs::read_to_string("/proc/cmdline").map_err(BootError::NoCommandLine)?;
    let command_line = command_line::parse(&text)?;
    check_profile(command_line.profile)?;
    sysctl::apply()?;
    say(clock::check()?);
    clock::wait_for_entropy()?;

    let (sender, events) = channel();
    forward_signals(sender.clone())?;
    let link = Link::start(devices::open_port(Path::new(SYS), PORT)?, sender.clone())?;
    let mut guest = Guest {
        command_line,
        link,
        events,
        sender,
        started,
        reporter: Reporter::new(started),
        phase: Phase::Booting,
        restarts: 0,
        config: None,
        evidence: None,
        vault: None,
        giving: Giving::default(),
        addresses: Vec::new(),
        heap: String::new(),
        error: String::new(),
    };
    match guest.open() {
        Ok(Work::Run(replica)) => guest.supervise(&replica),
        Ok(Work::Give) => guest.give(),
        Ok(Work::Received) => guest.stop("the key was taken over"),
        Err(OpenError::Stopped) => guest.stop("asked to stop before the replica was started"),
        Err(error) => guest.park(&chain(&error)),
    }
}

/// The command line is measured and the binary is measured; they must mean the same.
fn check_profile(said: Profile) -> Result<(), BootError> {
    let name = |profile| match profile {
        Profile::Production => "production",
        Profile::Virtual => "virtual",
    };
    let built = if cfg!(feature = "virtual") { Profile::Virtual } else { Profile::Production };
    if built == said { Ok(()) } else { Err(BootError::Profile { built: name(built), said: name(said) }) }
}

/// Signals become events. All threads that are started later inherit that they are blocked, and so does the launcher
/// of the replica, which unblocks them.
fn forward_signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let descriptor = SignalFd::new(&signals)?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(Some(information)) = descriptor.read_signal() {
            let Ok(signal) = Signal::try_from(information.ssi_signo as i32) else { continue };
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Who gives reports and keys.
struct Psp {
    keys: Box<dyn KeySource>,
    /// Of the machine that makes the reports.
    anchors: TrustAnchors,
}

#[cfg(feature = "virtual")]
fn open_psp() -> Result<Psp, OpenError> {
    use simulated_psp::{guest, protocol};
    let port = devices::open_port(Path::new(SYS), protocol::PORT)?;
    let client = Arc::new(std::sync::Mutex::new(guest::Client::new(port)));
    let mounted =
        guest::mount(Path::new(tsm::DIRECTORY), Arc::clone(&client)).map_err(OpenError::Simulation)?;
    // For as long as the guest runs.
    std::mem::forget(mounted);
    say("SIMULATED PSP: the evidence of this guest proves nothing");
    Ok(Psp { keys: Box::new(crate::keys::Simulated(client)), anchors: simulated_psp::root::trust_anchors() })
}

#[cfg(not(feature = "virtual"))]
fn open_psp() -> Result<Psp, OpenError> {
    Ok(Psp { keys: Box::new(crate::keys::Hardware::open()?), anchors: TrustAnchors::amd() })
}

/// What a guest has to do, once it is open.
enum Work {
    /// To be the node.
    Run(Box<Replica>),
    /// To hand its key over.
    Give,
    /// Nothing more: the key was taken over.
    Received,
}

struct Guest {
    command_line: CommandLine,
    link: Link,
    events: Receiver<Event>,
    sender: Sender<Event>,
    started: Instant,
    reporter: Reporter,
    phase: Phase,
    restarts: u32,
    config: Option<GuestConfig>,
    /// With a report of this guest, against which the host's certificates are checked.
    evidence: Option<(Arc<Provider>, Report)>,
    /// Open, unless the guest is here to receive.
    vault: Option<Vault>,
    giving: Giving,
    addresses: Vec<String>,
    heap: String,
    error: String,
}

impl Guest {
    /// Everything that the guest's task needs.
    fn open(&mut self) -> Result<Work, OpenError> {
        self.link.send(&ToHost::Hello { version: VERSION });
        let Psp { keys, anchors } = open_psp()?;
        let tsm = Tsm::at(tsm::DIRECTORY);
        let report = tsm.quote(&clock::random()?)?.report;
        let provider = Arc::new(Provider::new(tsm, anchors));
        self.evidence = Some((provider.clone(), report.clone()));
        let us = Identity {
            measurement: report.measurement().0,
            chip_id: report.chip_id(),
            level: Level {
                tcb_version: u64::from_le_bytes(report.committed_tcb().encode()),
                guest_svn: report.guest_svn(),
            },
        };
        say(format_args!("measurement {}", hex::encode(us.measurement)));

        let config = self.wait_for_config(&report.host_data())?;
        let port = config.port;
        self.phase = Phase::Opening;
        let disk = devices::open_disk(Path::new(SYS), storage::DISK_SERIAL)?;
        if config.task == Task::Receive {
            let party = Party::new(provider, &report)?;
            self.receive(&party, disk, us, keys)?;
            return Ok(Work::Received);
        }
        let asked = if config.task == Task::Recover { Purpose::Recovery } else { Purpose::Node };
        let (vault, origin) = Vault::open(disk, us, keys, asked)?;
        say(match origin {
            storage::Origin::Opened => "vault opened",
            storage::Origin::Renewed => "vault opened and sealed anew",
            storage::Origin::Created => "the disk is empty: new vault with a new secret",
        });
        let secret = vault.content().secret.clone();
        self.vault = Some(vault);
        match config.task {
            Task::Give => return Ok(Work::Give),
            Task::Recover => {
                say("recovery: waiting for a blessed release to hand the key to");
                self.phase = Phase::Recovery;
                return Ok(Work::Give);
            }
            Task::Run | Task::Receive => {}
        }
        self.config = Some(config.clone());
        let interface = network::configure(Path::new(SYS), &config)?;
        let nvram = devices::open_nvram(Path::new(SYS))?;
        let mapping = if nvram.write_combining { "write-combining" } else { "uncached" };
        self.heap = format!("bar, {} MiB, {mapping}", nvram.size >> 20);
        say(format_args!("network on {interface}, heap on {}", self.heap));
        evidence::serve(provider).map_err(OpenError::Evidence)?;
        Ok(Work::Run(Box::new(Replica { secret, nvram, port, profile: self.command_line.profile })))
    }

    /// Takes the node's key over from another guest into the vault. A failed hand-over is told, and the host may begin anew.
    fn receive(
        &mut self,
        party: &Party,
        disk: File,
        us: Identity,
        keys: Box<dyn KeySource>,
    ) -> Result<(), OpenError> {
        let mut receiving = Receiving::default();
        loop {
            let Some(event) = self.next_event(GREET_AGAIN) else { continue };
            if is_stop(&event) {
                return Err(OpenError::Stopped);
            }
            let Event::Host(message) = &event else {
                self.note(&event);
                continue;
            };
            match receiving.step(message, party) {
                Ok(None) => self.note(&event),
                Ok(Some(Step::Send(message))) => self.link.send(&ToHost::HandOver { message }),
                Ok(Some(Step::Received(content))) => {
                    Vault::fill(disk, us, keys, content)?;
                    say("the key was taken over and lies in this guest's vault");
                    self.link.send(&ToHost::HandOverDone);
                    return Ok(());
                }
                Err(failure) => {
                    self.fail(chain(&failure));
                    self.link.send(&failure.told());
                }
            }
        }
    }

    /// Hands the key over, without being the node, until the guest is told to stop.
    fn give(mut self) -> ! {
        loop {
            match self.next_event(GREET_AGAIN) {
                Some(event) if is_stop(&event) => self.stop("asked to stop"),
                Some(event) => self.note(&event),
                None => {}
            }
        }
    }

    /// Answers a guest that wants the key.
    fn answer(&mut self, message: &str) {
        let (Some((provider, report)), Some(vault)) = (&self.evidence, &mut self.vault) else { return };
        let answered =
            Party::new(provider.clone(), report).and_then(|party| self.giving.answer(message, &party, vault));
        match answered {
            Ok((message, passed)) => {
                self.link.send(&ToHost::HandOver { message });
                if passed {
                    say("the key was handed over to a blessed release");
                    self.link.send(&ToHost::HandOverDone);
                }
            }
            Err(failure) => {
                self.fail(chain(&failure));
                self.link.send(&failure.told());
            }
        }
    }

    fn wait_for_config(&mut self, host_data: &[u8; 32]) -> Result<GuestConfig, OpenError> {
        loop {
            self.report();
            match self.next_event(GREET_AGAIN) {
                None => self.link.send(&ToHost::Hello { version: VERSION }),
                Some(Event::Host(ToGuest::Config { json })) => match accept(&json, host_data) {
                    Ok(config) => {
                        self.error.clear();
                        return Ok(config);
                    }
                    Err(error) => self.fail(chain(&error)),
                },
                Some(event) if is_stop(&event) => return Err(OpenError::Stopped),
                Some(event) => self.note(&event),
            }
        }
    }

    /// Runs the replica until the guest is told to stop.
    fn supervise(mut self, replica: &Replica) -> ! {
        let slow = self.command_line.watchdog;
        let mut supervisor = Supervisor::new(Policy {
            alive_within: slow,
            // Recovery reads the whole heap and compiles its programs.
            ready_within: slow * 20,
            // The replica takes up to 10 s to finish what it does.
            end_within: Duration::from_secs(15),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            healthy_after: Duration::from_secs(120),
        });
        let mut process: Option<Pid> = None;
        let mut anchored = Instant::now();
        let mut start = 0;
        let mut pending = vec![supervisor::Event::Tick];
        loop {
            for event in std::mem::take(&mut pending) {
                let action = supervisor.step(self.started.elapsed(), event);
                match (action, process) {
                    (Some(Action::Spawn), _) => {
                        start += 1;
                        let at_least = self.vault.as_ref().map_or(0, |vault| vault.content().heap_epoch);
                        match replica.spawn(start, at_least, self.sender.clone()) {
                            Ok(pid) => {
                                say(format_args!("replica started as process {pid}"));
                                process = Some(pid);
                            }
                            Err(error) => {
                                self.fail(format!("starting the replica failed: {error}"));
                                pending.push(supervisor::Event::SpawnFailed);
                            }
                        }
                    }
                    (Some(Action::Kill), Some(pid)) => {
                        self.fail("the replica gave no sign of life in time and was killed".into());
                        // ESRCH: it is gone and will be reaped.
                        let _ = kill(pid, Signal::SIGKILL);
                    }
                    (Some(Action::Terminate), Some(pid)) => {
                        let _ = kill(pid, Signal::SIGTERM);
                    }
                    (Some(Action::PowerOff), _) => self.stop("asked to stop"),
                    (Some(Action::Reboot), _) => restart("the replica does not end although it was killed"),
                    (Some(Action::Kill | Action::Terminate), None) | (None, _) => {}
                }
            }
            self.phase = supervisor.phase();
            self.restarts = supervisor.restarts();
            self.report();
            if !pending.is_empty() {
                continue;
            }
            let until =
                supervisor.deadline().map_or(GREET_AGAIN, |at| at.saturating_sub(self.started.elapsed()));
            pending.push(match self.next_event(until) {
                Some(Event::Signal(Signal::SIGCHLD)) => match self.reap(process) {
                    true => {
                        process = None;
                        supervisor::Event::Exited
                    }
                    false => supervisor::Event::Tick,
                },
                Some(Event::Replica { start: of, sign }) if of == start => match sign {
                    Sign::Ready(epoch) => {
                        self.anchor(epoch);
                        say(format_args!("replica ready after {} ms", self.started.elapsed().as_millis()));
                        self.error.clear();
                        supervisor::Event::Ready
                    }
                    Sign::Alive(epoch) => {
                        if anchored.elapsed() > ANCHOR || self.phase == Phase::Stopping {
                            anchored = Instant::now();
                            self.anchor(epoch);
                        }
                        supervisor::Event::Alive
                    }
                },
                Some(event) if is_stop(&event) => supervisor::Event::Stop,
                Some(event) => {
                    self.note(&event);
                    supervisor::Event::Tick
                }
                None => supervisor::Event::Tick,
            });
        }
    }

    /// Keeps in the vault how far the heap is: whoever puts back an older image of the NVRAM alone is found out.
    fn anchor(&mut self, epoch: u64) {
        if let Some(Err(error)) = self.vault.as_mut().map(|vault| vault.anchor(epoch)) {
            self.fail(chain(&error));
        }
    }

    /// Reaps every process that ended; whether the replica was among them.
    fn reap(&mut self, replica: Option<Pid>) -> bool {
        let mut ended = false;
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
                Err(Errno::EINTR) => continue,
                Ok(status) => status,
                Err(error) => {
                    self.fail(format!("reaping processes failed: {error}"));
                    return ended;
                }
            };
            let how = match status {
                WaitStatus::Exited(_, OLDER_HEAP) => self.stop(
                    "the NVRAM holds an older image of the heap than this node had reached; give the guest the present one",
                ),
                WaitStatus::Exited(_, code) => format!("ended with exit code {code}"),
                WaitStatus::Signaled(_, signal, _) => format!("was ended by {signal}"),
                _ => continue,
            };
            if replica.is_some() && status.pid() == replica {
                ended = true;
                if self.phase == Phase::Stopping {
                    say(format_args!("the replica {how}"));
                } else {
                    self.fail(format!("the replica {how}"));
                }
            }
        }
    }

    /// Waits for the next event, telling the host about the guest meanwhile. Nothing when `limit` is over.
    fn next_event(&mut self, limit: Duration) -> Option<Event> {
        let end = Instant::now() + limit;
        loop {
            self.report();
            let now = Instant::now();
            let pause = end.saturating_duration_since(now).min(self.reporter.next(now));
            match self.events.recv_timeout(pause) {
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                // Disconnected cannot be: this end holds a sender.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Events that do not change the course of things.
    fn note(&mut self, event: &Event) {
        match event {
            Event::HostFailed(error) => {
                self.fail(format!(
                    "the host's messages are ignored until it connects anew: {}",
                    chain(error)
                ));
            }
            Event::Host(ToGuest::Certificates { table }) => {
                let Some((provider, report)) = &self.evidence else { return };
                match provider.supply(table, report.as_bytes()) {
                    Ok(()) => say("the host's certificates endorse this machine"),
                    Err(error) => self.fail(chain(&error)),
                }
            }
            Event::Host(ToGuest::HandOver { message }) => self.answer(message),
            _ => {}
        }
    }

    /// Remembers an error for the host and puts it on the console.
    fn fail(&mut self, error: String) {
        say(&error);
        self.error = error;
    }

    fn report(&mut self) {
        if let Some(config) = &self.config {
            self.addresses = network::addresses(config);
        }
        let facts = Facts {
            phase: self.phase,
            restarts: self.restarts,
            addresses: &self.addresses,
            heap: &self.heap,
            error: &self.error,
        };
        if let Some(health) = self.reporter.due(Instant::now(), facts) {
            self.link.send(&health);
        }
    }

    /// Shows the error until the host stops the guest.
    fn park(mut self, error: &str) -> ! {
        self.fail(error.to_owned());
        loop {
            match self.next_event(GREET_AGAIN) {
                Some(event) if is_stop(&event) => self.stop("asked to stop"),
                Some(event) => self.note(&event),
                None => {}
            }
        }
    }

    fn stop(&mut self, reason: &str) -> ! {
        self.phase = Phase::Stopping;
        self.report();
        // The replica's last sign of life may still be on its way.
        while let Ok(event) = self.events.recv_timeout(LAST_SIGN) {
            if let Event::Replica { sign: Sign::Alive(epoch), .. } = event {
                self.anchor(epoch);
            }
        }
        self.link.send(&ToHost::Stopping { reason: reason.to_owned() });
        self.link.drain(LAST_MESSAGES);
        power_off()
    }
}

/// Whether the guest is to stop: the host asks, or a signal says so.
fn is_stop(event: &Event) -> bool {
    match event {
        Event::Host(ToGuest::PowerOff) => true,
        Event::Signal(signal) => *signal != Signal::SIGCHLD,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_of_one_profile_refuses_the_other() {
        let (own, other) = if cfg!(feature = "virtual") {
            (Profile::Virtual, Profile::Production)
        } else {
            (Profile::Production, Profile::Virtual)
        };
        assert!(check_profile(own).is_ok());
        assert!(matches!(check_profile(other), Err(BootError::Profile { .. })));
    }

    #[test]
    fn the_host_and_signals_stop_the_guest_and_children_do_not() {
        assert!(is_stop(&Event::Host(ToGuest::PowerOff)));
        assert!(is_stop(&Event::Signal(Signal::SIGTERM)));
        assert!(!is_stop(&Event::Signal(Signal::SIGCHLD)));
        assert!(!is_stop(&Event::Host(ToGuest::Config { json: String::new() })));
    }
}

//! The agent: feeds what happens into the state machine and does what it says.
//!
//! One task owns the machine, the guest and the status; everything else sends it messages. It runs on the main
//! thread (a current-thread runtime), which is also what [`crate::sys`] needs.

mod background;
mod candidate;
mod end;
mod ports;

use background::{attest, keep_pinned, watch_host};
use end::{LAST_ANSWER, end_machine, end_node};
use ports::{listen, serve_operators};

use crate::attest::{Expectations, Pin, chain};
use crate::cable::{Cable, CableError, Plug};
use crate::check::{CheckError, Checked, Options};
use crate::confine::{
    Level, Plan, THREADS,
    cgroup::{self, Limits},
    find_program, launcher,
};
use crate::decommission::{self, DecommissionError, Ordered, Signed};
use crate::guest::{Guest, Report, Reporter, Reports, SpawnError, Welcome, channels};
use crate::http::{Shared, router};
use crate::installation;
use crate::launch::{GUEST_PORT, Launch, Serving, Wire};
use crate::machine::{Effect, Event, Machine, State, Time};
use crate::node::{AgentRecord, NodeDir, NodeDirError, NodeLock, Ports};
use crate::operator::carry::Command;
use crate::operator::identity::IdentityError;
use crate::placement::Placement;
use crate::qmp::Notice;
use crate::samples::Sample;
use crate::screen::terminal as screen;
use crate::status::{AttestedStatus, ReasonStatus, ReleaseStatus, Status};
use crate::upgrade::begin::{Begin, begin};
use crate::upgrade::driver::{self as upgrade, Driver};
use crate::upgrade::hand_over::Heard;
use crate::upgrade::host::drive as upgrade_host;
use crate::upgrade::{Store, UpgradeError};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

/// Why the agent ended without having been asked to.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Hardware or release are refused.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The node directory cannot be used.
    #[error(transparent)]
    NodeDir(#[from] NodeDirError),
    /// Neither the committed release nor one that is tried can be started.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// A port is taken.
    #[error("cannot listen on {address}: {source}; choose another port with --{option}")]
    Port {
        /// The address.
        address: SocketAddr,
        /// Its option.
        option: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The guest has no network.
    #[error(transparent)]
    Cable(#[from] CableError),
    /// The node has ended for good.
    #[error(
        "this node was decommissioned and its keys are erased; to use the machine again, install it anew"
    )]
    Decommissioned,
    /// Its end failed.
    #[error("this node is being decommissioned, and its keys are not all erased")]
    NotErased(#[from] DecommissionError),
    /// The host's own key cannot be used.
    #[error("the host's own key cannot be used")]
    HostKey(#[from] IdentityError),
    /// The operating system refuses signals.
    #[error("cannot handle signals: {0}")]
    Signals(std::io::Error),
    /// PID 1 is not there.
    #[error("standard input is not the line to PID 1: {0}; `--under-pid1` is for PID 1 of a host only")]
    Pid1(std::io::Error),
    /// The operating system refuses an event loop.
    #[error("cannot make an event loop: {0}; check the limit on open files")]
    Runtime(std::io::Error),
}

impl AgentError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &str {
        match self {
            Self::Check(error) => error.code(),
            Self::NodeDir(error) => error.code(),
            Self::Upgrade(error) => error.code(),
            Self::Port { .. } => "port-taken",
            Self::Cable(_) => "guest-network-not-made",
            Self::HostKey(_) => "host-key-unusable",
            Self::Decommissioned => "node-decommissioned",
            Self::NotErased(_) => "not-erased",
            Self::Signals(_) | Self::Runtime(_) => "no-event-loop",
            Self::Pid1(_) => "no-pid1",
        }
    }
}

/// The ports that are tried first when the operator chose none.
const PREFERRED: Ports = Ports { https: 18443, http: 18080, status: 18081 };

/// Runs a node until it is told to stop. `record` is kept up to date in the node directory.
pub async fn run(
    options: Options,
    node: NodeDir,
    lock: Arc<NodeLock>,
    record: &mut AgentRecord,
) -> Result<(), AgentError> {
    let started = Instant::now();
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signals)?;
    let (stop, mut stops) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = stop.send(()).await;
        }
    });

    // Takes a moment, which this program has until it has to judge what is found.
    let probe = {
        let node = node.path().to_owned();
        std::thread::spawn(move || hwspec::probe::this_machine(&node))
    };
    let (http, http_port) = listen(options.ports.http, PREFERRED.http, "http-port").await?;
    let (status_listener, status_port) =
        listen(options.ports.status, PREFERRED.status, "status-port").await?;
    let cable = options.power.as_ref().map(|_| Cable::lay()).transpose()?;
    let https_port = match cable {
        // Where the relay listens.
        Some(_) => GUEST_PORT,
        // QEMU binds this one itself; holding it here until then would not help, since it has to be free again.
        None => listen(options.ports.https, PREFERRED.https, "https-port").await?.1,
    };
    let ports = Ports { https: https_port, http: http_port, status: status_port };
    record.ports = ports;
    node.write_record(record)?;

    let shared = Shared::new(first_status(ports, options.memory_mib), started);
    let (pin, pin_receiver) = watch::channel(None);
    let guest_address =
        cable.map_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, https_port)), Cable::guest);
    tokio::spawn(crate::gateway::serve(http, guest_address, pin_receiver));
    let routes = router(shared.clone());
    tokio::spawn(async move { axum::serve(status_listener, routes).await });
    tokio::spawn(watch_host(shared.clone()));
    if let Some(power) = options.power.clone() {
        tokio::spawn(power.beat(ports.status));
        crate::system::start(shared.clone());
    }
    let (commands, received) = mpsc::channel(4);
    let (upgrades, upgrades_received) = mpsc::channel(4);
    if decommission::read(&node).is_some() {
        tracing::warn!("this node is to be decommissioned: no guest is started");
        shared.update(|status| status.step = "erasing keys".into());
        end_node(&options, &node, "").await?;
        return end_machine(&options, stops).await;
    }
    let mut host = upgrade_host::begin(&options, &Store::of(&node));
    if let Some(host) = host.as_mut().filter(|host| host.must_leave()) {
        host.leave()?;
        let _ = stops.recv().await;
        return Ok(());
    }
    let installed = options.power.as_ref().and_then(|_| installation::read());
    let identity = installed.as_ref().map(|configuration| configuration.node.clone());
    let operator = serve_operators(&options, &node, installed, shared.clone(), commands).await?;
    let (operator, orders) = operator.unzip();
    shared.update(|status| {
        status.operator = operator;
        status.node.clone_from(&identity);
    });
    if options.power.is_some() {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, GUEST_PORT));
        match TcpListener::bind(address).await {
            Ok(outside) => drop(tokio::spawn(crate::relay::serve(outside, guest_address))),
            Err(error) => {
                tracing::error!(%error, "nobody outside reaches the guest: its port {GUEST_PORT} is taken")
            }
        }
        let screen = screen::Screen { shared: shared.clone(), node: node.clone(), identity, orders };
        tokio::spawn(screen::run(screen));
    }

    let machine = Machine::new(options.policy);
    let (reports, inbox) = mpsc::channel(64);
    let mut agent = Agent {
        machine,
        started,
        shared,
        pin,
        guest: None,
        number: 0,
        reports,
        guest_address,
        cable,
        cause: None,
        attestation: None,
        commands: received,
        upgrades: upgrades_received,
        ending: None,
        switching: None,
        giving: None,
    };

    // Hashing and probing block, so they run on a thread of their own; a stop request does not wait for them.
    let shared = agent.shared.clone();
    let progress = move |step: &str| {
        tracing::info!(step, "checking");
        shared.update(|status| status.step = step.to_owned());
    };
    let checked = {
        let (mut options, node, lock) = (options.clone(), node.clone(), lock.clone());
        tokio::task::spawn_blocking(move || {
            progress("checking this machine against the hardware specification");
            let probe = probe.join().map_err(|_| CheckError::Interrupted("probing the machine".into()))?;
            let hardware = crate::hardware::check(&options, &probe)?;
            crate::placement::machine::divide(&mut options)?;
            let begin = begin(&options, &node, &lock, &progress)?;
            Ok::<_, AgentError>((hardware, options, begin))
        })
    };
    let (hardware, options, Begin { sequence, part, checked }) = tokio::select! {
        checked = checked => match checked {
            Ok(result) => result?,
            Err(error) => return Err(CheckError::Interrupted(error.to_string()).into()),
        },
        _ = stops.recv() => return Ok(()),
    };
    agent.shared.update(|status| {
        status.hardware = Some((&hardware).into());
        status.memory_mib = options.memory_mib;
        if let Some(system) = &mut status.system {
            system.guest = options.placement.as_ref().map(Placement::words).unwrap_or_default();
            system.nvram = checked.nvram.as_ref().map(|nvram| nvram.text.clone()).unwrap_or_default();
        }
    });
    agent.checked(&checked, record);
    node.write_record(record)?;
    let driver = Driver {
        store: Store::of(&node),
        options: options.clone(),
        node: node.clone(),
        lock,
        shared: agent.shared.clone(),
        agent: upgrades,
        sequence,
        part,
        running: checked.target.place,
        last_well: 0,
        recovery_refused: false,
        judged: None,
        host,
    };
    driver.start().map_err(AgentError::Runtime)?;
    // Only a machine has a TPM of its own.
    if options.power.is_some() {
        // The guest may run another release than the host.
        let (shared, manifest) = (agent.shared.clone(), options.manifest.clone());
        tokio::task::spawn_blocking(move || {
            let manifest = std::fs::read(manifest).ok();
            let manifest = manifest.and_then(|bytes| release::Envelope::from_bytes(&bytes).ok());
            let host = manifest.as_ref().and_then(|envelope| envelope.manifest().host.as_ref());
            let found = crate::tpm::attest::own(host);
            tracing::info!(verdict = found.verdict, details = found.details.join("; "), "measured boot");
            shared.update(|status| status.measured_boot = Some(found));
        });
    }
    agent.watch(&options, &node, checked, record, &mut stops, inbox).await;
    let Some((operator, answer)) = agent.ending.take() else { return Ok(()) };
    let ended = end_node(&options, &node, &operator).await;
    let said = match &ended {
        Ok(Ordered { statement: Some(signed), .. }) => Ok(signed.clone()),
        Ok(_) => Err("the node's own key was gone already, so that nothing could be signed".into()),
        Err(error) => Err(chain(error)),
    };
    let _ = answer.send(said);
    // The answer is on its way; nothing of this node is left to wait for.
    tokio::time::sleep(LAST_ANSWER).await;
    ended?;
    end_machine(&options, stops).await
}

fn first_status(ports: Ports, memory_mib: u32) -> Status {
    Status {
        version: 1,
        pid: std::process::id(),
        node: None,
        state: State::Checking.name().into(),
        step: String::new(),
        guest: None,
        attested: None,
        attestation_error: String::new(),
        ports,
        urls: ports.into(),
        restarts: 0,
        reasons: Vec::new(),
        release: None,
        accel: None,
        accel_reason: String::new(),
        memory_mib,
        confinement: Vec::new(),
        system: None,
        measured_boot: None,
        upgrade: crate::upgrade::UpgradeStatus::default(),
        operator: None,
        hardware: None,
        sample: Sample::default(),
        uptime_s: 0,
    }
}

struct Agent {
    machine: Machine,
    started: Instant,
    shared: Shared,
    pin: watch::Sender<Option<Pin>>,
    guest: Option<Guest>,
    /// Number of the present launch.
    number: u64,
    reports: Reports,
    guest_address: SocketAddr,
    /// On a host, the way to it.
    cable: Option<Cable>,
    /// What QEMU or the guest announced as the cause of its end.
    cause: Option<String>,
    /// The task that fetches evidence.
    attestation: Option<AbortHandle>,
    /// What operators order.
    commands: mpsc::Receiver<Command>,
    /// What upgrades ask for.
    upgrades: mpsc::Receiver<upgrade::Command>,
    /// What is launched next, and who waits for it.
    switching: Option<(Box<Checked>, oneshot::Sender<()>)>,
    /// Where the running guest's part in a hand-over goes.
    giving: Option<mpsc::Sender<Heard>>,
    /// The order to end the node: by whom, and where the answer goes.
    ending: Option<(String, oneshot::Sender<Result<Signed, String>>)>,
}

impl Agent {
    fn now(&self) -> Time {
        self.started.elapsed()
    }

    fn checked(&self, checked: &Checked, record: &mut AgentRecord) {
        let manifest = checked.release.manifest();
        let release = ReleaseStatus {
            version: manifest.manifest().version.clone(),
            profile: manifest.manifest().profile.to_string(),
            digest: manifest.digest().to_string(),
            signatures: manifest.signers().len(),
            security_epoch: manifest.manifest().security_epoch,
            vcpus: checked.release.measured().vcpus,
            measurement: hex::encode(checked.release.measurement().0),
            host_data: hex::encode(checked.config.host_data()),
        };
        tracing::info!(
            version = release.version,
            measurement = release.measurement,
            "the release is approved and its files are as signed"
        );
        record.release = release.version.clone();
        record.digest = release.digest.clone();
        record.measurement = release.measurement.clone();
        self.shared.update(|status| {
            status.release = Some(release);
            if let Some((accel, reason)) = checked.platform.accel() {
                tracing::info!(%accel, reason, "how the guest is executed");
                status.accel = Some(accel);
                status.accel_reason = reason.to_owned();
            }
        });
    }

    /// The main loop: until the machine is stopped.
    async fn watch(
        &mut self,
        options: &Options,
        node: &NodeDir,
        mut checked: Checked,
        record: &mut AgentRecord,
        stops: &mut mpsc::Receiver<()>,
        mut inbox: mpsc::Receiver<(u64, Report)>,
    ) {
        let mut event = Event::CheckPassed;
        loop {
            let before = self.machine.state();
            let effect = self.machine.step(event, self.now());
            self.entered(before, &checked.expectations);
            event = match effect {
                Some(Effect::Launch) => {
                    if let Some((next, answer)) = self.switching.take() {
                        checked = *next;
                        self.checked(&checked, record);
                        if let Err(error) = node.write_record(record) {
                            tracing::error!("{}", chain(&error));
                        }
                        // Who asked may be gone; this is what runs all the same.
                        let _ = answer.send(());
                    }
                    let launched = match self.launch(options, node, &checked) {
                        Ok(()) => Event::Launched,
                        Err(error) => Event::LaunchFailed(chain(&error)),
                    };
                    if let Some(power) = &options.power {
                        power.launched();
                    }
                    launched
                }
                Some(Effect::PowerOff) => {
                    tracing::info!("asking the guest to power off");
                    if let Some(guest) = &self.guest {
                        guest.power_off();
                    }
                    self.next(options, node, stops, &mut inbox).await
                }
                Some(Effect::Kill) => {
                    tracing::warn!("killing QEMU");
                    if let Some(guest) = &mut self.guest {
                        guest.kill();
                    }
                    self.next(options, node, stops, &mut inbox).await
                }
                None if self.machine.state() == State::Stopped => return,
                None => self.next(options, node, stops, &mut inbox).await,
            };
        }
    }

    /// Waits for the next event.
    async fn next(
        &mut self,
        options: &Options,
        node: &NodeDir,
        stops: &mut mpsc::Receiver<()>,
        inbox: &mut mpsc::Receiver<(u64, Report)>,
    ) -> Event {
        loop {
            let deadline = self.machine.deadline().map(|deadline| self.started + deadline);
            let timer = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            let guest = &mut self.guest;
            let ended = async {
                match guest {
                    Some(guest) => guest.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(()) = stops.recv() => return Event::StopRequested,
                Some(command) = self.commands.recv() => match command {
                    Command::RestartGuest => {
                        return Event::RestartRequested("an operator ordered to start the guest again");
                    }
                    Command::Decommission { operator, answer } => {
                        self.ending = Some((operator, answer));
                        return Event::StopRequested;
                    }
                },
                Some(command) = self.upgrades.recv() => match command {
                    upgrade::Command::HandOver { checked, documents, answer } => {
                        self.hand_over(options, node, &checked, documents, answer);
                    }
                    upgrade::Command::Switch { checked, answer } => {
                        self.switching = Some((checked, answer));
                        return Event::RestartRequested("an upgrade starts the release of the other slot");
                    }
                },
                status = ended => {
                    self.giving = None;
                    let cause = self.cause.take();
                    self.pin.send_replace(None);
                    self.shared.update(|status| {
                        status.guest = None;
                        status.attested = None;
                    });
                    let reason = match self.guest.take() {
                        Some(guest) => guest.explain(status, cause.as_deref()).await,
                        None => "QEMU ended".into(),
                    };
                    tracing::info!(reason, "QEMU ended");
                    return Event::Exited(reason);
                }
                Some((number, report)) = inbox.recv() => {
                    if number == self.number && self.guest.is_some()
                        && let Some(event) = self.heard(report)
                    {
                        return event;
                    }
                }
                () = timer => return Event::Timer,
            }
        }
    }

    /// Takes one report of the present guest; some are events.
    fn heard(&mut self, report: Report) -> Option<Event> {
        match report {
            Report::Greeted => {
                if let Some(guest) = &mut self.guest {
                    guest.greeted = true;
                }
                self.shared.update(|status| status.step = "the guest has its configuration".into());
                None
            }
            Report::Health(health) => {
                let phase = health.phase;
                self.shared.update(|status| status.guest = Some(health));
                Some(Event::Health(phase))
            }
            Report::Stopping(reason) => {
                tracing::info!(reason, "the guest is stopping");
                self.cause = Some(format!("the guest said: {reason}"));
                None
            }
            Report::HandOver(heard) => {
                // Nobody listens to a guest that begins one by itself, and one that says too much is not waited for.
                if let Some(giving) = &self.giving {
                    let _ = giving.try_send(heard);
                }
                None
            }
            Report::PortClosed(reason) => Some(Event::PortClosed(reason)),
            Report::Qemu(Notice::Shutdown(reason)) => {
                self.cause.get_or_insert(reason);
                None
            }
            Report::Qemu(Notice::Paused(reason)) => {
                tracing::error!(reason, "the guest is paused");
                self.cause = Some(reason.clone());
                self.shared.update(|status| status.step = reason);
                None
            }
            Report::Attested(Ok(attested)) => {
                tracing::info!(tls_key = ?attested.pin, "the guest's evidence is verified");
                self.shared.update(|status| {
                    status.attested = Some(AttestedStatus::from(&*attested));
                    status.attestation_error.clear();
                });
                self.pin.send_replace(Some(attested.pin.clone()));
                None
            }
            Report::Attested(Err(error)) => {
                tracing::warn!(error, "the guest is not attested");
                self.shared.update(|status| status.attestation_error = error);
                None
            }
        }
    }

    /// Follows a change of state.
    fn entered(&mut self, before: State, expectations: &Expectations) {
        let state = self.machine.state();
        let name = state.name();
        if before.name() != name {
            tracing::info!(from = before.name(), to = name, "state");
        }
        let machine = &self.machine;
        self.shared.update(|status| {
            if status.state != name {
                status.step.clear();
            }
            status.state = name.to_owned();
            status.restarts = machine.restarts();
            status.reasons = machine
                .reasons()
                .map(|(at, reason)| ReasonStatus { at_s: at.as_secs(), reason: reason.clone() })
                .collect();
        });
        let ready_again = matches!(state, State::Ready { .. }) && !matches!(before, State::Ready { .. });
        // The replica makes its TLS key at its start, so what was proved before may no longer hold.
        if ready_again && let Some(guest) = &mut self.guest {
            self.pin.send_replace(None);
            self.shared.update(|status| status.attested = None);
            let report = Reporter { number: self.number, reports: self.reports.clone() };
            if let Some(older) = self.attestation.take() {
                older.abort();
            }
            let task = attest(self.guest_address, expectations.clone(), report);
            self.attestation = Some(guest.attach(task));
        }
    }

    fn launch(&mut self, options: &Options, node: &NodeDir, checked: &Checked) -> Result<(), SpawnError> {
        self.number += 1;
        self.cause = None;
        let (ends, _qemu_ends, channels) = channels()?;
        let connected = checked.platform.connect()?;
        // Held until QEMU has inherited it. A guest that serves nobody needs none.
        let plug = self.cable.filter(|_| checked.nvram.is_some()).map(Cable::plug).transpose()?;
        let launch = Launch {
            platform: connected.platform,
            measured: checked.release.measured().clone(),
            memory_mib: match checked.nvram {
                Some(_) => options.memory_mib,
                None => candidate::MEMORY_MIB.min(options.memory_mib),
            },
            disk: checked.disk.clone(),
            serving: checked.nvram.clone().map(|nvram| Serving {
                nvram,
                placement: options.placement.clone(),
                wire: plug.as_ref().map_or(Wire::Port(self.guest_address.port()), Plug::wire),
            }),
            channels,
        };
        let qemu = find_program(&options.qemu);
        let plan = self.confine(options, &qemu, &launch, "guest");
        let root = nix::unistd::Uid::effective().is_root();
        self.shared.update(|status| status.confinement = plan.measures(launcher::landlock(), root));
        let mut guest = Guest::spawn(
            &qemu,
            &launch,
            &plan,
            ends,
            &node.console_log(),
            Welcome { config: checked.config.clone(), certificates: connected.certificates },
            self.number,
            &self.reports,
        )?;
        guest.attach(connected.task);
        if let Some(placement) = options.placement.clone() {
            guest.attach(keep_pinned(guest.pid(), plan.cgroup.clone(), placement));
        }
        tracing::info!(pid = guest.pid(), launch = self.number, "QEMU runs");
        self.guest = Some(guest);
        Ok(())
    }
}

impl Agent {
    /// What QEMU may do, with a control group where there can be one.
    fn confine(&self, options: &Options, qemu: &Path, launch: &Launch, kind: &str) -> Plan {
        let level = options.confinement;
        let group = match level {
            Level::Full => {
                let vcpus = u64::from(launch.measured.vcpus);
                let limits = Limits {
                    // The page cache of NVRAM and disk counts too, and the translator's code.
                    memory: (u64::from(launch.memory_mib) << 20)
                        + launch.serving.as_ref().map_or(0, |serving| serving.nvram.bytes)
                        + (1 << 30),
                    processes: THREADS + vcpus,
                    processors: vcpus + 1,
                    bounds: launch
                        .serving
                        .as_ref()
                        .and_then(|serving| serving.placement.as_ref())
                        .and_then(Placement::bounds),
                };
                let name = format!("redoubt-{kind}-{}", std::process::id());
                cgroup::make(Path::new(cgroup::ROOT), &name, &limits)
                    .map_err(|error| tracing::warn!(%error, "QEMU gets no control group"))
                    .ok()
            }
            Level::Process | Level::Off => None,
        };
        Plan::new(level, qemu, launch, group)
    }
}

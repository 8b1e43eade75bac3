//! One running QEMU and the tasks that talk to it. Everything they learn goes to the agent as [`Report`]s.

use crate::config::ConfigText;
use crate::confine::{Plan, launcher};
use crate::console::{RotatingFile, Tail, printable};
use crate::launch::{Channels, Launch};
use crate::qmp::{self, Notice};
use crate::upgrade::hand_over::Heard;
use base64::{Engine, engine::general_purpose::STANDARD};
use host_guest::{FrameError, Health, ToGuest, ToHost};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

/// What a guest's tasks tell the agent.
#[derive(Debug)]
pub(crate) enum Report {
    /// The guest speaks the host protocol and has its configuration.
    Greeted,
    /// The guest's words about itself.
    Health(Health),
    /// The guest goes down, as it says, for this reason.
    Stopping(String),
    /// The guest's part in a hand-over of the node's key.
    HandOver(Heard),
    /// The host protocol ended.
    PortClosed(String),
    /// QEMU tells something.
    Qemu(Notice),
    /// Evidence was fetched and verified, or not.
    Attested(Result<Box<crate::attest::Attested>, String>),
}

/// A report and the number of the launch that it is about: what an earlier QEMU left in the queue is dropped.
pub(crate) type Reports = mpsc::Sender<(u64, Report)>;

/// QEMU could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("cannot make the channels to QEMU: {0}")]
    Channels(#[source] io::Error),
    #[error("the platform cannot begin a guest: {0}")]
    #[cfg_attr(not(feature = "virtual"), expect(dead_code, reason = "no platform is built in"))]
    Platform(String),
    #[error(transparent)]
    Network(#[from] crate::cable::CableError),
    #[error("cannot open the console's log: {0}")]
    Console(#[source] io::Error),
    #[error("cannot start {program}: {source}; install the package qemu-system-x86, or give --qemu")]
    Start { program: String, source: io::Error },
    #[error("the plan that confines QEMU cannot be written: {0}")]
    Plan(#[source] serde_json::Error),
}

/// What every guest is told when it greets.
pub(crate) struct Welcome {
    /// Its configuration.
    pub(crate) config: ConfigText,
    /// Certificate table that endorses the machine.
    pub(crate) certificates: Vec<u8>,
}

/// A running QEMU. Dropping it kills the process and ends its tasks.
pub(crate) struct Guest {
    child: Child,
    /// Tasks that end with QEMU by themselves.
    tasks: JoinSet<()>,
    /// Tasks that have to be ended.
    attached: JoinSet<()>,
    to_guest: mpsc::Sender<ToGuest>,
    quit: mpsc::Sender<()>,
    /// Whether the host protocol has begun.
    pub(crate) greeted: bool,
    notes: Notes,
    kill: Signal,
    /// Processes killed for want of memory when this one was started.
    oom_kills: Option<u64>,
}

fn oom_kills() -> Option<u64> {
    crate::samples::oom_kills(&std::fs::read_to_string("/proc/vmstat").ok()?)
}

/// What may explain the end of a QEMU.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<(Tail, Tail)>>);

impl Notes {
    fn console(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.push(bytes);
    }

    fn qemu(&self, line: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.push(line.as_bytes());
    }

    fn last(&self) -> (Option<String>, Option<String>) {
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (console, qemu) = &mut *both;
        (console.last().map(str::to_owned), qemu.last().map(str::to_owned))
    }
}

/// The agent's ends of the channels.
pub(crate) struct Ends {
    console: UnixStream,
    qmp: UnixStream,
    host: UnixStream,
}

/// QEMU's end of one channel, closed when QEMU has inherited it.
pub(crate) struct QemuEnd(std::os::unix::net::UnixStream);

impl QemuEnd {
    pub(crate) fn fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// A connected pair: the agent's end, and one that a child process inherits.
pub(crate) fn channel() -> io::Result<(UnixStream, QemuEnd)> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok((UnixStream::from_std(ours)?, QemuEnd(theirs)))
}

/// The channels that every platform has.
pub(crate) fn channels() -> Result<(Ends, [QemuEnd; 3], Channels), SpawnError> {
    let pair = || channel().map_err(SpawnError::Channels);
    let ((console, console_end), (qmp, qmp_end), (host, host_end)) = (pair()?, pair()?, pair()?);
    let channels = Channels { console: console_end.fd(), qmp: qmp_end.fd(), host: host_end.fd() };
    Ok((Ends { console, qmp, host }, [console_end, qmp_end, host_end], channels))
}

impl Guest {
    /// Starts QEMU. Must be called on the agent's main thread (see [`crate::sys`]).
    #[expect(clippy::too_many_arguments, reason = "each is another thing; one caller")]
    pub(crate) fn spawn(
        qemu: &Path,
        launch: &Launch,
        plan: &Plan,
        ends: Ends,
        console_log: &Path,
        welcome: Welcome,
        number: u64,
        reports: &Reports,
    ) -> Result<Self, SpawnError> {
        let log = RotatingFile::open(console_log, crate::console::LIMIT).map_err(SpawnError::Console)?;
        let mut command = launcher::command(plan, qemu, launch.arguments()).map_err(SpawnError::Plan)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C on the terminal is for the agent, which then asks the guest to power off.
            .process_group(0);
        crate::sys::die_with_spawning_thread(&mut command);
        let mut command = tokio::process::Command::from(command);
        let start = |source| SpawnError::Start { program: qemu.display().to_string(), source };
        let mut child = command.kill_on_drop(true).spawn().map_err(start)?;

        let notes = Notes::default();
        let mut tasks = JoinSet::new();
        let report = Reporter { number, reports: reports.clone() };
        tasks.spawn(console(ends.console, log, notes.clone()));
        if let Some(stderr) = child.stderr.take() {
            tasks.spawn(complaints(stderr, notes.clone()));
        }
        let (quit, quit_receiver) = mpsc::channel(1);
        let qemu_report = report.clone();
        tasks.spawn(async move {
            if let Err(error) = qmp::serve(ends.qmp, quit_receiver, &qemu_report).await {
                tracing::debug!(%error, "QEMU's control channel ended");
            }
        });
        let (to_guest, to_guest_receiver) = mpsc::channel(16);
        tasks.spawn(async move {
            let end = host_port(ends.host, &welcome, to_guest_receiver, &report).await;
            report.send(Report::PortClosed(end)).await;
        });
        Ok(Self {
            child,
            tasks,
            attached: JoinSet::new(),
            to_guest,
            quit,
            greeted: false,
            notes,
            kill: launcher::kill_signal(plan),
            oom_kills: oom_kills(),
        })
    }

    /// Gives the guest one more task, which ends with it.
    pub(crate) fn attach(&mut self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.attached.spawn(task)
    }

    /// The way to the guest's ear.
    pub(crate) fn to_guest(&self) -> mpsc::Sender<ToGuest> {
        self.to_guest.clone()
    }

    /// Asks the guest to power off; where nobody listens yet, QEMU quits at once.
    pub(crate) fn power_off(&self) {
        // A full queue means that the same request is already in it, or that the guest does not read;
        // then the kill at the deadline remains.
        if self.greeted {
            let _ = self.to_guest.try_send(ToGuest::PowerOff);
        } else {
            let _ = self.quit.try_send(());
        }
    }

    /// Kills QEMU; [`Guest::ended`] tells when it is gone.
    pub(crate) fn kill(&mut self) {
        // Not reaped while this value holds the child, so the number is its own.
        let pid = self.child.id().map(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(Err(error)) = pid.map(|pid| kill(pid, self.kill)) {
            tracing::debug!(%error, "QEMU was already gone");
        }
    }

    /// Process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for the end of QEMU. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Explains the end, after what QEMU had written was read.
    pub(crate) async fn explain(mut self, status: io::Result<ExitStatus>, cause: Option<&str>) -> String {
        // The channels have ended with QEMU; the limit is for a descendant of QEMU that holds one open.
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            while self.tasks.join_next().await.is_some() {}
        })
        .await;
        let killed = status.as_ref().is_ok_and(|status| status.signal() == Some(Signal::SIGKILL as i32));
        let mut text = match status {
            Ok(status) => format!("QEMU ended ({status}"),
            Err(error) => format!("QEMU was lost ({error}"),
        };
        if killed && oom_kills() > self.oom_kills {
            text.push_str(
                ", out of memory: the kernel killed it; end what else runs here, or give the guest less",
            );
        }
        if let Some(cause) = cause {
            text.push_str(&format!(", {}", printable(cause, 200)));
        }
        text.push(')');
        let (console, qemu) = self.notes.last();
        for (name, line) in [("QEMU says", qemu), ("the console ends with", console)] {
            if let Some(line) = line {
                text.push_str(&format!("; {name}: {line}"));
            }
        }
        text
    }
}

/// Sends reports of one launch.
#[derive(Clone)]
pub(crate) struct Reporter {
    pub(crate) number: u64,
    pub(crate) reports: Reports,
}

impl Reporter {
    pub(crate) async fn send(&self, report: Report) {
        // The agent reads until it ends itself; then nobody needs the report.
        let _ = self.reports.send((self.number, report)).await;
    }
}

async fn console(mut stream: UnixStream, mut log: RotatingFile, notes: Notes) {
    let mut buffer = vec![0; 16 * 1024];
    // An error is the end as well: QEMU is gone.
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        notes.console(&buffer[..count]);
        if let Err(error) = log.write_all(&buffer[..count]) {
            tracing::warn!(%error, "the console's log cannot be written");
        }
    }
}

async fn complaints(stderr: impl AsyncRead + Unpin, notes: Notes) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let line = printable(&line, 500);
        notes.qemu(&format!("{line}\n"));
        tracing::warn!(qemu = line, "QEMU complains");
    }
}

/// Serves the host protocol; returns why it ended.
async fn host_port(
    stream: UnixStream,
    welcome: &Welcome,
    mut to_guest: mpsc::Receiver<ToGuest>,
    report: &Reporter,
) -> String {
    let (mut reader, mut writer) = stream.into_split();
    let mut buffer = Vec::new();
    let mut greeted = false;
    loop {
        let message = tokio::select! {
            message = next_frame::<ToHost>(&mut reader, &mut buffer) => match message {
                Ok(message) => message,
                Err(error) => return error.to_string(),
            },
            Some(message) = to_guest.recv() => {
                match send(&mut writer, &message).await {
                    Ok(()) => continue,
                    Err(error) => return error.to_string(),
                }
            }
        };
        match message {
            ToHost::Hello { version } if version == host_guest::VERSION => {
                // In this order, so that the guest has the certificates before it starts anything that asks for evidence.
                let certificates = ToGuest::Certificates { table: STANDARD.encode(&welcome.certificates) };
                let config = ToGuest::Config { json: welcome.config.as_str().to_owned() };
                for message in [certificates, config] {
                    if let Err(error) = send(&mut writer, &message).await {
                        return error.to_string();
                    }
                }
                greeted = true;
                report.send(Report::Greeted).await;
            }
            ToHost::Hello { version } => {
                let ours = host_guest::VERSION;
                return format!(
                    "the guest speaks version {version} of the host protocol, this agent {ours}; \
                     use an agent and a release of the same age"
                );
            }
            _ if !greeted => return "the guest did not begin with a greeting".into(),
            ToHost::Health(health) => report.send(Report::Health(crate::status::shown(health))).await,
            ToHost::HandOver { message } => report.send(Report::HandOver(Heard::Message(message))).await,
            ToHost::HandOverDone => report.send(Report::HandOver(Heard::Done)).await,
            ToHost::HandOverFailed { code, error } => {
                let heard = Heard::Failed { code: printable(&code, 60), error: printable(&error, 600) };
                report.send(Report::HandOver(heard)).await;
            }
            ToHost::Stopping { reason } => report.send(Report::Stopping(printable(&reason, 300))).await,
        }
    }
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), message: &ToGuest) -> Result<(), FrameError> {
    Ok(writer.write_all(&host_guest::encode(message)?).await?)
}

/// Reads up to the next whole message. Nothing is lost when the future is dropped before it is ready.
pub(crate) async fn next_frame<M: DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> Result<M, FrameError> {
    loop {
        if let Some(message) = host_guest::decode(buffer)? {
            return Ok(message);
        }
        if reader.read_buf(buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_guest::Phase;

    async fn play(frames: &[Vec<u8>]) -> (Vec<Report>, String, Vec<u8>) {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let (reports, mut received) = mpsc::channel(64);
        let config = ConfigText::new(&crate::config::virtual_guest()).unwrap();
        for frame in frames {
            guest.write_all(frame).await.unwrap();
        }
        guest.shutdown().await.unwrap();
        let (_to_guest, to_guest_receiver) = mpsc::channel(1);
        let welcome = Welcome { config, certificates: vec![1, 2, 3] };
        let end = host_port(ours, &welcome, to_guest_receiver, &Reporter { number: 1, reports }).await;
        let mut written = Vec::new();
        guest.read_to_end(&mut written).await.unwrap_or_default();
        let mut all = Vec::new();
        while let Some((1, report)) = received.recv().await {
            all.push(report);
        }
        (all, end, written)
    }

    fn frame(message: &ToHost) -> Vec<u8> {
        host_guest::encode(message).unwrap()
    }

    fn health() -> ToHost {
        ToHost::Health(crate::status::tests::example().guest.unwrap())
    }

    #[tokio::test]
    async fn a_guest_gets_certificates_and_configuration_and_is_heard() {
        let hello = frame(&ToHost::Hello { version: host_guest::VERSION });
        let (reports, end, mut written) = play(&[hello, frame(&health())]).await;
        assert!(matches!(&reports[..], [Report::Greeted, Report::Health(h)] if h.phase == Phase::Ready));
        assert!(end.contains("failed"), "{end}");
        let sent: ToGuest = host_guest::decode(&mut written).unwrap().unwrap();
        assert_eq!(sent, ToGuest::Certificates { table: "AQID".into() });
        let sent: ToGuest = host_guest::decode(&mut written).unwrap().unwrap();
        let ToGuest::Config { json } = sent else { panic!("{sent:?}") };
        assert_eq!(json, ConfigText::new(&crate::config::virtual_guest()).unwrap().as_str());
    }

    #[tokio::test]
    async fn a_guest_that_breaks_the_protocol_is_cut_off() {
        let (reports, end, _) = play(&[frame(&health())]).await;
        assert!(reports.is_empty() && end.contains("greeting"), "{end}");
        let (_, end, _) = play(&[frame(&ToHost::Hello { version: 99 })]).await;
        assert!(end.contains("version 99"), "{end}");
        let (_, end, _) = play(&[vec![0xff; 8]]).await;
        assert!(end.contains("at most"), "{end}");
        let (_, end, _) = play(&[b"\x02\0\0\0{}".to_vec()]).await;
        assert!(end.contains("no message of this protocol"), "{end}");
    }
}

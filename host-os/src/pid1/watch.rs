//! The rest of PID 1's life: the agent, the watchdog, orphans, and an orderly end.

use super::{
    MANIFEST, NODE, Started,
    command_line::CommandLine,
    keeper::{Effect, Event, Keeper},
    read_root, say,
};
use crate::{
    power::{self, Action, Message},
    watchdog::Watchdog,
};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        reboot::{RebootMode, reboot, set_cad_enabled},
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, sync},
};
use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Whom the agent trusts for releases, in the verified root.
const ROOT: &str = "/etc/redoubt/root.json";
/// The agent is this program.
const PROGRAM: &str = "/proc/self/exe";
/// Between two looks at the clock.
const TICK: u16 = 1000;
/// What holds a file system busy has been killed; the kernel may need a moment to let go.
const UNMOUNTING: Duration = Duration::from_secs(10);

/// The root is read then even if the agent did not say that it launched anything.
const UNTIL_READ: Duration = Duration::from_secs(30);

/// The agent and PID 1's end of the line to it.
pub(super) struct Agent {
    child: Child,
    line: UnixStream,
    launched: bool,
}

impl Agent {
    /// Has its program loaded. It does nothing before it is told to begin.
    pub(super) fn load(line: &CommandLine) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Command::new(PROGRAM)
            .args(["run", "--node-dir", NODE, "--release", MANIFEST, "--profile", &line.profile])
            // This kernel has it wherever the processor does; a host that translates its guest would serve nobody.
            .args(["--accel", "kvm", "--under-pid1"])
            .args(Path::new(ROOT).exists().then_some(["--root", ROOT]).into_iter().flatten())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .env_clear()
            .env("PATH", "/usr/bin")
            .current_dir("/")
            .spawn()?;
        Ok(Self { child, line: ours, launched: false })
    }
}

/// Keeps the agent running until the machine ends.
pub(super) fn watch(machine: Started) -> ! {
    let Started { line, agent: loaded, watchdog, facts } = machine;
    let (line, watchdog) = (&line, watchdog.as_ref());
    let mut to_read = Some((line.verity.clone(), facts));
    let started = Instant::now();
    // Nobody at the keyboard restarts this machine, and no process that is not the agent.
    let _ = set_cad_enabled(false);
    // What arrives is read below, so that nothing is lost between two looks.
    let signals = SigSet::all();
    let signals = signals
        .thread_block()
        .and_then(|()| SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC));
    if let Err(errno) = &signals {
        say(format_args!("signals cannot be read ({errno}); children are looked for every second"));
    }
    let signals = signals.ok();
    let mut keeper = Keeper::new();
    let mut agent: Option<Agent> = None;
    let mut events = vec![begin(loaded, &mut agent)];
    loop {
        for event in std::mem::take(&mut events) {
            match keeper.step(event, started.elapsed()) {
                None => {}
                Some(Effect::Start) => events.push(begin(Agent::load(line), &mut agent)),
                Some(Effect::Terminate) => tell(agent.as_ref(), Signal::SIGTERM),
                Some(Effect::Kill) => {
                    say("the agent does not answer and is killed");
                    tell(agent.as_ref(), Signal::SIGKILL);
                }
                Some(Effect::Finish(action)) => finish(action),
            }
        }
        if keeper.feeds(started.elapsed())
            && let Some(Err(error)) = watchdog.map(Watchdog::feed)
        {
            say(format_args!("the watchdog takes no food: {error}"));
        }
        if events.is_empty() {
            wait(signals.as_ref(), agent.as_ref());
        }
        reap(&mut agent, &mut events);
        hear(agent.as_mut(), &mut events);
        // Nothing is launched by an agent that ended.
        let launched = agent.as_ref().is_none_or(|agent| agent.launched);
        if (launched || started.elapsed() > UNTIL_READ)
            && let Some((expected, facts)) = to_read.take()
        {
            std::thread::spawn(move || read_root(&expected, facts));
        }
        events.push(Event::Tick);
    }
}

/// Has a loaded agent begin.
fn begin(loaded: io::Result<Agent>, agent: &mut Option<Agent>) -> Event {
    match loaded.and_then(|new| power::begin(&new.line).map(|()| new)) {
        Ok(new) => {
            say(format_args!("agent started as process {}", new.child.id()));
            *agent = Some(new);
            Event::Started
        }
        Err(error) => {
            say(format_args!("the agent does not start: {error}"));
            Event::NotStarted
        }
    }
}

fn tell(agent: Option<&Agent>, signal: Signal) {
    if let Some(agent) = agent {
        // It was not reaped yet, so the number is its own.
        let _ = kill(Pid::from_raw(agent.child.id().cast_signed()), signal);
    }
}

/// Until something happens, one second at most.
fn wait(signals: Option<&SignalFd>, agent: Option<&Agent>) {
    let mut polled: Vec<_> = [signals.map(AsFd::as_fd), agent.map(|agent| agent.line.as_fd())]
        .into_iter()
        .flatten()
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    let _ = poll(&mut polled, PollTimeout::from(TICK));
    // What they are does not matter: children are looked for in any case, and everything else is ignored.
    while let Some(Ok(Some(_))) = signals.map(SignalFd::read_signal) {}
}

/// Takes every process that ended: the agent, and what anybody left behind.
fn reap(agent: &mut Option<Agent>, events: &mut Vec<Event>) {
    loop {
        let status = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return,
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        let Some(ended) = agent
            .as_mut()
            .filter(|agent| status.pid().is_some_and(|pid| pid.as_raw().unsigned_abs() == agent.child.id()))
        else {
            continue;
        };
        match status {
            WaitStatus::Exited(_, code) => say(format_args!("the agent ended with code {code}")),
            WaitStatus::Signaled(_, signal, _) => say(format_args!("the agent was ended by {signal}")),
            _ => continue,
        }
        // What it said last counts.
        hear(Some(ended), events);
        *agent = None;
        events.push(Event::Ended);
    }
}

fn hear(agent: Option<&mut Agent>, events: &mut Vec<Event>) {
    let Some(agent) = agent else { return };
    let mut said = [0; 64];
    while let Ok(count @ 1..) = agent.line.read(&mut said) {
        for message in said[..count].iter().filter_map(|byte| Message::parse(*byte)) {
            match message {
                Message::Beat => events.push(Event::Beat),
                Message::Launched => agent.launched = true,
                Message::Ask(action) => {
                    say(format_args!("the agent asks to {}", action.name()));
                    events.push(Event::Asked(action));
                }
            }
        }
    }
}

/// Ends the machine. The watchdog is not fed any more: a disk that does not let go is ended by the hardware.
pub(super) fn finish(action: Action) -> ! {
    say(format_args!("the machine will {}", action.name()));
    // All that is left, but PID 1.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    sync();
    let started = Instant::now();
    loop {
        while matches!(waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
        match umount2(super::storage::STATE, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {
                say("the state is unmounted");
                break;
            }
            Err(errno) if errno == Errno::EBUSY && started.elapsed() < UNMOUNTING => {
                sleep(Duration::from_millis(100));
            }
            Err(errno) => {
                let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                let read_only = mount(None::<&str>, super::storage::STATE, None::<&str>, flags, None::<&str>);
                say(format_args!("the state is not unmounted ({errno}); read-only instead: {read_only:?}"));
                break;
            }
        }
    }
    sync();
    let _ = reboot(match action {
        Action::Reboot => RebootMode::RB_AUTOBOOT,
        Action::PowerOff => RebootMode::RB_POWER_OFF,
    });
    // Fails only without the privilege; then the end of PID 1 makes the kernel panic and, with panic=, restart.
    std::process::exit(1)
}

//! Network namespaces for tests: one alone, or two with a cable (a veth pair) between them. What the namespace does is done by a
//! thread of its own, because a namespace belongs to a thread.

use crate::netlink::{CREATE, EXCLUSIVE, Message, Socket};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::mpsc;

/// Says so where it is seen.
pub(crate) fn say(reason: &str) {
    // Past cargo's capture; appended, for the output may be a file.
    let stderr = std::fs::OpenOptions::new().append(true).open("/dev/stderr");
    let _ = stderr.and_then(|mut stderr| writeln!(stderr, "SKIPPED: {reason}"));
}

/// Says so, and fails in CI.
pub(crate) fn skip(reason: &str) {
    say(reason);
    assert!(std::env::var_os("CI").is_none(), "in CI this has to run: {reason}");
}

/// Runs `test` in a namespace of its own; `Err` says why there is none.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| format!("no network namespace: {errno}; run as root"))?;
        test();
        Ok(())
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread in its namespace, with one end of the cable.
pub(crate) struct Machine {
    jobs: mpsc::Sender<Job>,
    pub(crate) interface: &'static str,
}

impl Machine {
    fn new(interface: &'static str) -> Result<Self, String> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            let result = unshare(CloneFlags::CLONE_NEWNET);
            let _ = ready.send(result);
            if result.is_ok() {
                queue.into_iter().for_each(|job| job());
            }
        });
        match is_ready.recv() {
            Ok(Ok(())) => Ok(Self { jobs, interface }),
            other => Err(format!("no network namespace: {other:?}; run as root")),
        }
    }

    /// Does something there.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        self.jobs
            .send(Box::new(move || {
                let _ = answer.send(job());
            }))
            .unwrap();
        answered.recv().expect("the job in the namespace failed")
    }

    /// Runs `ip` there.
    pub(crate) fn ip(&self, words: &str) {
        let words: Vec<String> = words.split_whitespace().map(Into::into).collect();
        let output = self.run(move || std::process::Command::new("ip").args(&words).output().unwrap());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Switches the cable's end on with these addresses.
    pub(crate) fn up(&self, six: &str, four: &str) {
        let interface = self.interface;
        self.ip("link set lo up");
        self.ip(&format!("link set {interface} up"));
        self.ip(&format!("addr add {six} dev {interface} nodad"));
        self.ip(&format!("addr add {four} dev {interface}"));
    }
}

/// A host and a peer with a cable between them: `eth0` of the one, `eth1` of the other.
pub(crate) fn with_peer(test: impl FnOnce(Machine, Machine)) -> Result<(), String> {
    let (host, peer) = (Machine::new("eth0")?, Machine::new("eth1")?);
    let other = peer.run(|| File::open("/proc/thread-self/ns/net").unwrap());
    let made = host.run(move || {
        let pair =
            Message::new(16, CREATE | EXCLUSIVE, &[0; 16]).with_text(3, "eth0").with_nested(18, |info| {
                info.with_text(1, "veth").with_nested(2, |data| {
                    let mut peer = vec![0; 16];
                    let name = b"eth1\0\0\0\0";
                    // struct ifinfomsg, IFLA_IFNAME, IFLA_NET_NS_FD.
                    peer.extend([9, 0, 3, 0]);
                    peer.extend(name);
                    peer.extend([8, 0, 28, 0]);
                    peer.extend(other.as_raw_fd().to_ne_bytes());
                    data.with(1, &peer)
                })
            });
        Socket::route().and_then(|mut socket| socket.request(pair)).map_err(|error| error.to_string())
    });
    made.map_err(|error| format!("no pair of virtual cards: {error}"))?;
    test(host, peer);
    Ok(())
}

//! The agent as a process with a simulated QEMU: restarts, stop, and what is left behind.

use crate::world::{Agent, World};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

fn lives(pid: u32) -> bool {
    // A zombie is no more than a number.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_ready_guest_is_shown_and_stopped_politely() {
    let world = World::new(2);
    let mut agent = Agent::start(&world, "ready");
    // Nobody serves evidence here, so the guest is ready and never attested.
    let status = agent.wait_for("a failed attestation", |status| !status.attestation_error.is_empty());
    assert_eq!(status.state, "ready");
    assert_eq!(status.attested, None);
    assert_eq!(status.release.as_ref().unwrap().version, "1.2.3");
    assert_eq!(status.guest.as_ref().unwrap().heap, "none: simulated");
    assert_eq!(agent.get("/healthz").unwrap(), "ready\n");
    assert!(agent.get("/metrics").unwrap().contains("redoubt_guest_state{state=\"ready\"} 1\n"));
    let closed = agent.get_from(status.ports.http, "/api/v2/status").unwrap_err().to_string();
    assert!(closed.contains("502") && closed.contains("not attested"), "{closed}");

    // A second agent must not touch the node.
    let second = world.command("crash").output().unwrap();
    assert_eq!(second.status.code(), Some(7), "{second:?}");

    let begin = Instant::now();
    agent.signal(Signal::SIGTERM);
    let exit = agent.child.wait().unwrap();
    assert_eq!(exit.code(), Some(0));
    // It did what it was asked, and was not killed after 20 s.
    assert!(begin.elapsed() < Duration::from_secs(10));
    let [qemu] = world.qemus()[..] else { panic!("{:?}", world.qemus()) };
    assert!(!lives(qemu));
    assert!(!world.node().is_running());
    let end = world.node().read_record().unwrap().end.unwrap();
    assert_eq!((end.exit, end.error.as_str()), (0, ""));
}

#[test]
fn a_guest_that_crashes_is_started_again_until_it_is_given_up() {
    let world = World::new(2);
    let mut agent = Agent::start(&world, "crash");
    let status = agent.wait_for("giving up", |status| status.state == "failed");
    assert_eq!(world.qemus().len(), 5);
    assert_eq!(status.restarts, 4);
    let reasons: Vec<_> = status.reasons.iter().map(|reason| reason.reason.as_str()).collect();
    // The end of the port may be seen before that of the process.
    let crash =
        |reason: &&str| reason.contains("exit status: 3") && reason.contains("QEMU says: simulated crash");
    assert!(reasons.iter().any(crash), "{reasons:?}");
    assert!(reasons.last().unwrap().contains("5 crashes within 10 minutes"), "{reasons:?}");
    // Given up is not gone: the reason stays readable until the operator stops the node.
    agent.signal(Signal::SIGINT);
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    assert_eq!(world.qemus().len(), 5);
}

#[test]
fn a_killed_agent_leaves_no_qemu() {
    let world = World::new(2);
    let mut agent = Agent::start(&world, "silent");
    agent.wait_for("a start", |status| status.state == "booting");
    wait_until("the simulated QEMU", || world.qemus().len() == 1);
    let qemu = world.qemus()[0];
    assert!(lives(qemu));
    agent.signal(Signal::SIGKILL);
    agent.child.wait().unwrap();
    wait_until("the end of QEMU", || !lives(qemu));
    assert!(!world.node().is_running());
    // The next agent takes over.
    let agent = Agent::start(&world, "ready");
    agent.wait_for("a new guest", |status| status.state == "ready");
}

//! What happens to nodes: strangers at every port, a guest that is killed, one that hangs, a full disk. Each is survived or
//! refused, and named.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{self, Signal};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};
use tests::{Node, Setup, call, deploy_counter};

/// To each port.
const MALFORMED: u64 = 10_000;
/// At the same time.
const STRANGERS: u64 = 8;
/// For a guest under translation to be ready again, on a busy machine.
const READY: Duration = Duration::from_secs(240);

/// Sends garbage, half of it with the beginning of something sensible, and reads what comes.
fn stranger(port: u16, seed: u64, count: u64) -> Result<()> {
    const BEGINNINGS: [&[u8]; 6] = [
        b"",
        b"GET / HTTP/1.1\r\nHost: ",
        b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
        b"POST /api/v2/canister/aaaaa-aa/call HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        // A TLS record of a client's greeting, too long.
        &[0x16, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xfb, 3, 3],
        b"\xd9\xd9\xf7\xa3",
    ];
    let mut random = (seed * 0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..count {
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut bytes = BEGINNINGS[(next() % 6) as usize].to_vec();
        bytes.extend((0..next() % 200).map(|_| next() as u8));
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        // The other side may have hung up already.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..length]);
        ensure!(!answer.starts_with("HTTP/1.1 2"), "port {port} takes garbage: {answer}");
    }
    Ok(())
}

fn strangers(port: u16) -> Result<()> {
    let threads = (0..STRANGERS)
        .map(|number| std::thread::spawn(move || stranger(port, number + 1, MALFORMED / STRANGERS)));
    for thread in threads.collect::<Vec<_>>() {
        thread.join().ok().context("a stranger panicked")??;
    }
    Ok(())
}

#[test]
fn strangers_a_killed_guest_and_one_that_hangs() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    node.up()?;
    let url = node.url()?;
    let canister = deploy_counter(&url)?;
    let before = node.status()?;
    for name in ["https", "http", "status"] {
        let port = before["ports"][name].as_u64().context("no port")?;
        strangers(u16::try_from(port)?)?;
    }
    let after = node.status()?;
    ensure!(after["state"] == "ready" && after["restarts"] == 0, "{after:#}");
    ensure!(after["guest"]["replica_restarts"] == before["guest"]["replica_restarts"], "{after:#}");
    ensure!(call(&url, &canister, "inc")? == 1);

    signal::kill(node.qemu()?, Signal::SIGKILL)?;
    let killed = node.wait_for("a new guest", READY, |status| ready_again(status, 1))?;
    ensure!(reasons(&killed).contains("SIGKILL"), "{killed:#}");
    ensure!(call(&url, &canister, "inc")? == 2, "an acknowledged update is lost");

    // It hangs: the agent loses patience, kills it, and starts another.
    signal::kill(node.qemu()?, Signal::SIGSTOP)?;
    let unhealthy =
        node.wait_for("the silence to be noticed", READY, |status| status["state"] == "unhealthy")?;
    ensure!(reasons(&unhealthy).contains("no health message"), "{unhealthy:#}");
    node.wait_for("a new guest", READY, |status| ready_again(status, 2))?;
    ensure!(call(&url, &canister, "inc")? == 3, "an acknowledged update is lost");
    Ok(())
}

fn ready_again(status: &Value, restarts: u64) -> bool {
    status["state"] == "ready" && status["restarts"] == restarts && !status["attested"].is_null()
}

fn reasons(status: &Value) -> String {
    status["reasons"].to_string()
}

#[test]
fn a_full_disk() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    // A file system of 64 MiB that only this process sees.
    let mut refused = Command::new("unshare");
    refused.args(["--map-root-user", "--mount", "sh", "-c"]);
    refused.arg("mount -t tmpfs -o size=64m tmpfs /mnt && exec \"$0\" \"$@\"");
    refused.arg(setup.program("redoubt")).args(["--json", "up", "--detach", "--accel", "tcg"]);
    refused.args(["--node-dir", "/mnt/node", "--release"]).arg(&setup.release);
    let output = refused.output().context("cannot run unshare")?;
    let answer: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no JSON: {}", tests::text(&output)))?;
    ensure!(answer["error"]["code"] == "hardware-refused", "{answer:#}");
    ensure!(answer["error"]["message"].as_str().is_some_and(|text| text.contains("disk-free")), "{answer:#}");
    Ok(())
}

//! What happens to nodes: strangers at every port, a guest that is killed, one without memory, one that hangs, a full disk. Each
//! is survived or refused, and named.

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tests::{Node, Setup, call, deploy_counter, strangers::strangers};

/// For a guest under translation to be ready again, on a busy machine.
const READY: Duration = Duration::from_secs(240);

#[test]
fn strangers_and_guests_that_are_killed_starve_or_hang() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    node.allow("nobody", &"00".repeat(32), &[])?;
    node.up()?;
    let url = node.url()?;
    let canister = deploy_counter(&url)?;
    let before = node.status()?;
    for name in ["https", "http", "status"] {
        let port = before["ports"][name].as_u64().context("no port")?;
        strangers(u16::try_from(port)?)?;
    }
    let operators = before["operator"]["address"].as_str().context("no operators' port")?;
    strangers(operators.parse::<SocketAddr>()?.port())?;
    let after = node.status()?;
    ensure!(after["state"] == "ready" && after["restarts"] == 0, "{after:#}");
    ensure!(after["guest"]["replica_restarts"] == before["guest"]["replica_restarts"], "{after:#}");
    ensure!(call(&url, &canister, "inc")? == 1);

    signal::kill(node.qemu()?, Signal::SIGKILL)?;
    let killed = node.wait_for("a new guest", READY, |status| ready_again(status, 1))?;
    ensure!(reasons(&killed).contains("SIGKILL"), "{killed:#}");
    ensure!(call(&url, &canister, "inc")? == 2, "an acknowledged update is lost");

    // The kernel has no memory for it.
    let group = Group::without_memory(node.qemu()?)?;
    // Whether an answer comes is open: it needs memory that was not touched yet.
    let _ = deploy_counter(&url);
    let starved = node.wait_for("a new guest", READY, |status| ready_again(status, 2))?;
    ensure!(reasons(&starved).contains("out of memory"), "{starved:#}");
    drop(group);
    ensure!(call(&url, &canister, "inc")? == 3, "an acknowledged update is lost");

    // It hangs: the agent loses patience, kills it, and starts another.
    signal::kill(node.qemu()?, Signal::SIGSTOP)?;
    let unhealthy =
        node.wait_for("the silence to be noticed", READY, |status| status["state"] == "unhealthy")?;
    ensure!(reasons(&unhealthy).contains("no health message"), "{unhealthy:#}");
    node.wait_for("a new guest", READY, |status| ready_again(status, 3))?;
    ensure!(call(&url, &canister, "inc")? == 4, "an acknowledged update is lost");
    Ok(())
}

/// A control group that has no memory to give; removed at the end, when it is empty.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

impl Group {
    /// Puts a process into one.
    fn without_memory(pid: Pid) -> Result<Self> {
        let all = Path::new("/sys/fs/cgroup");
        // Version 2, or the older one that some machines still have.
        let (root, limit) = if all.join("cgroup.controllers").exists() {
            (all.to_owned(), "memory.max")
        } else {
            (all.join("memory"), "memory.limit_in_bytes")
        };
        let group = Self(root.join(format!("redoubt-test-{}", std::process::id())));
        fs::create_dir(&group.0).context("cannot make a control group; run the tests as root")?;
        fs::write(group.0.join(limit), (1 << 20).to_string())?;
        fs::write(group.0.join("cgroup.procs"), pid.to_string())?;
        Ok(group)
    }
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

/// A small file system on a folder, until it is dropped.
struct Small<'a>(&'a Path);

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
        let _ = fs::remove_dir(self.0);
    }
}

impl<'a> Small<'a> {
    fn on(folder: &'a Path, mebibytes: u32) -> Result<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"]).arg(folder);
        ensure!(mount.status()?.success(), "cannot mount a file system; run the tests as root");
        Ok(Self(folder))
    }

    /// Takes all the space that is left.
    fn fill(&self) -> Result<PathBuf> {
        let filler = self.0.join("filler");
        let mut file = fs::File::create(&filler)?;
        let full =
            std::io::copy(&mut std::io::repeat(1), &mut file).err().context("there is no end of space")?;
        ensure!(full.kind() == std::io::ErrorKind::StorageFull, "{full}");
        Ok(filler)
    }
}

#[test]
fn a_disk_that_fills_up_while_the_node_runs() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    let folder = node.path().to_owned();
    let small = Small::on(&folder, 512)?;
    let ended = fill_up(&setup, &node, &small);
    // Before its file system goes.
    drop(node);
    ended
}

fn fill_up(setup: &Setup, node: &Node<'_>, small: &Small<'_>) -> Result<()> {
    // What is not there cannot be reserved.
    let output = node.up_with(&setup.release, &["--ignore-hardware", "disk-free"])?;
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(answer["error"]["code"] == "disk-full", "{answer:#}");

    tests::json(node.up_with(&setup.release, &["--ignore-hardware", "disk-free", "--nvram", "256"])?)?;
    let url = node.url()?;
    let canister = deploy_counter(&url)?;
    ensure!(call(&url, &canister, "inc")? == 1);
    let filler = small.fill()?;
    // Messages go to the NVRAM, whose space is reserved.
    ensure!(call(&url, &canister, "inc")? == 2);
    node.cut_power()?;
    let full = node.wait_for("a guest or a reason", READY, |status| {
        ready_again(status, 1) || reasons(status).contains("No space left on device")
    })?;
    fs::remove_file(filler)?;
    let restarts = full["restarts"].as_u64().unwrap_or_default();
    node.wait_for("a guest again", READY, |status| {
        (restarts..restarts + 3).any(|restarts| ready_again(status, restarts))
    })?;
    ensure!(call(&url, &canister, "inc")? == 3, "an acknowledged update is lost");
    Ok(())
}

//! A node with a made-up release, and the agent as a process.

use crate::made_up;
use host_os::node::NodeDir;
use host_os::status::Status;
use release::Manifest;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    /// A release for two vCPUs in `release/`, signed by that many development keys.
    pub(crate) fn new(signatures: usize) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        made_up::write(&world.release(), &made_up::manifest(), signatures);
        world
    }

    pub(crate) fn release(&self) -> PathBuf {
        self.dir.path().join("release")
    }

    pub(crate) fn node(&self) -> NodeDir {
        NodeDir::at(self.dir.path().join("node"))
    }

    pub(crate) fn manifest_path(&self) -> PathBuf {
        self.release().join("manifest.json")
    }

    pub(crate) fn write_manifest(&self, manifest: Manifest, signatures: usize) {
        made_up::write(&self.release(), &manifest, signatures);
    }

    /// Changes a file in place.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.release().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }

    /// `host-os run` on this release, with the simulated QEMU and whatever this machine is made of.
    pub(crate) fn command(&self, behaviour: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_host-os"));
        command.arg("run").arg("--node-dir").arg(self.node().path());
        command.arg("--release").arg(self.manifest_path()).args(["--profile", "virtual", "--accel", "tcg"]);
        // What stands in for QEMU here writes files of the test.
        command.args(["--confinement", "off"]);
        command
            .arg("--qemu")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agent/simulated-qemu.sh"));
        for check in hwspec::Spec::named("virtual").unwrap().requirements {
            command.args(["--ignore-hardware", &check.id]);
        }
        for port in ["--https-port", "--http-port", "--status-port"] {
            command.args([port, "0"]);
        }
        command.env("SIMULATED_QEMU", behaviour).env("SIMULATED_QEMU_PIDS", self.pids_path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn pids_path(&self) -> PathBuf {
        self.dir.path().join("pids")
    }

    /// Process ids of the simulated QEMUs so far.
    pub(crate) fn qemus(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.pids_path()).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Runs the agent to its end; it must refuse.
    pub(crate) fn refused(&self, arguments: &[&str]) -> Refusal {
        let Output { status, stderr, .. } = self.command("crash").args(arguments).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        let exit = status.code().unwrap();
        assert_ne!(exit, 0, "{stderr}");
        assert!(self.qemus().is_empty(), "something was launched: {stderr}");
        let end = self.node().read_record().and_then(|record| record.end);
        let end = end.unwrap_or_else(|| panic!("no end recorded: {stderr}"));
        assert_eq!(i32::from(end.exit), exit);
        assert!(stderr.contains(&end.error.lines().next().unwrap().to_owned()), "{stderr}");
        Refusal { exit, code: end.code, error: end.error }
    }
}

#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) exit: i32,
    pub(crate) code: String,
    pub(crate) error: String,
}

/// A running agent; killed when the test ends.
pub(crate) struct Agent {
    pub(crate) child: Child,
    node: NodeDir,
}

impl Agent {
    pub(crate) fn start(world: &World, behaviour: &str) -> Self {
        let child = world.command(behaviour).stderr(Stdio::null()).spawn().unwrap();
        Self { child, node: world.node() }
    }

    pub(crate) fn get(&self, path: &str) -> Result<String, host_os::http::GetError> {
        let port = self.node.agent().map_or(0, |record| record.ports.status);
        self.get_from(port, path)
    }

    pub(crate) fn get_from(&self, port: u16, path: &str) -> Result<String, host_os::http::GetError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
            let stream = stream.map_err(|error| host_os::http::GetError::Body(error.to_string()))?;
            let body = host_os::http::get_once(stream, "127.0.0.1", path, 1 << 20).await?;
            Ok(String::from_utf8(body.to_vec()).unwrap())
        })
    }

    /// Waits for a status that fits.
    pub(crate) fn wait_for(&self, what: &str, fits: impl Fn(&Status) -> bool) -> Status {
        let end = Instant::now() + Duration::from_secs(60);
        let mut last = None;
        while Instant::now() < end {
            if let Ok(text) = self.get("/status") {
                let status: Status = serde_json::from_str(&text).unwrap();
                if fits(&status) {
                    return status;
                }
                last = Some(status);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("never came: {what}; the last status is {last:#?}");
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! Image size, time to the first answer, memory at idle.
//!
//! The reference is what one would build without Redoubt: Debian's cloud kernel with its initramfs, a minimal
//! systemd root on ext4, and an HTTP server, in the same QEMU with the same machine, CPU and network. Both are
//! measured from the start of the QEMU process to the first HTTP answer that reaches the outside.

use super::table::{Table, row};
use crate::{Consent, setup, tools};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(300);
const MB: f64 = 1e6;

/// Measures all figures.
pub(crate) fn measure(consent: Consent, runs: usize) -> Result<Table> {
    setup::run(consent, &[setup::FOR_BUILD, setup::FOR_UP, setup::FOR_BENCH])?;
    tools::build_tools()?;
    let release = tools::build_release()?;
    let image = file_size(&release.join("vmlinuz"))? + file_size(&release.join("initrd.zst"))?;

    let reference = Reference::build()?;
    let (mut ours, mut theirs, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for run in 1..=runs {
        // Alternating, so that both see the same weather on the machine.
        let (time, used) = boot_node(&release)?;
        ours.push(time);
        memory.push(used);
        theirs.push(reference.boot()?);
        eprintln!("run {run} of {runs}: ours {:.2} s, reference {:.2} s", ours[run - 1], theirs[run - 1]);
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    Ok(Table {
        rows: vec![
            row("guest image, kernel + initrd, compressed", "MB", image / MB, None, 30.0, false),
            row("QEMU start to first answer, TCG, 2 vCPU", "s", ours, Some(theirs), 10.0, false),
            row("the same as a ratio", "s", ours, Some(theirs), 0.3, true),
            row("guest memory at idle, beside canisters", "MB", median(&mut memory) / MB, None, 200.0, false),
        ],
        notes: vec![
            format!("reference: {}", reference.describe),
            format!("median of {runs} runs, alternating; both with QEMU's TCG, 2 vCPU, 1 GiB"),
            "limit: TCG translates every instruction of kernel and userland; hardware virtualisation is faster".into(),
        ],
    })
}

/// Boots a fresh node; seconds from QEMU's start to the replica's first answer, and the guest's memory.
///
/// The answer is asked for from outside, over TLS, without waiting for the agent's own checks.
fn boot_node(release: &Path) -> Result<(f64, f64)> {
    let dir = tempfile::tempdir()?;
    let redoubt = |arguments: &[&str]| -> Command {
        let mut command = tools::command(tools::binary("redoubt"));
        command.args(arguments).arg("--node-dir").arg(dir.path()).stdout(Stdio::null());
        command
    };
    let port = free_port()?.port().to_string();
    let mut up = Running(
        redoubt(&[
            "up",
            "--detach",
            "--accel",
            "tcg",
            "--vcpus",
            "2",
            "--memory",
            "1024",
            "--https-port",
            &port,
        ])
        .arg("--release")
        .arg(release)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run redoubt")?,
    );
    let url = format!("https://127.0.0.1:{port}/api/v2/status");
    let started = Instant::now();
    let answered_at = loop {
        let answer = Command::new("curl")
            .args(["--silent", "--insecure", "--max-time", "1", "--output", "/dev/null", "--fail", &url])
            .status()
            .context("cannot run curl")?;
        if answer.success() {
            break uptime()?;
        }
        if started.elapsed() > LIMIT {
            bail!("the node did not answer within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let started_at = start_of_qemu(dir.path())?;
    let status = up.0.wait()?;
    if !status.success() {
        bail!("redoubt up failed: {status}");
    }
    let status: Value =
        serde_json::from_str(&tools::output(redoubt(&["status", "--json"]).stdout(Stdio::piped()))?)?;
    tools::run(&mut redoubt(&["down"]))?;
    let memory = status["guest"]["memory_used"].as_f64().context("status has no guest.memory_used")?;
    Ok((answered_at - started_at, memory))
}

/// Seconds since this machine booted.
fn uptime() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    Ok(text.split_whitespace().next().context("/proc/uptime is empty")?.parse()?)
}

/// When the QEMU process of a node started, in seconds since this machine booted (proc_pid_stat(5), field 22,
/// in ticks of 1/100 s).
fn start_of_qemu(node_dir: &Path) -> Result<f64> {
    let node_dir = node_dir.to_string_lossy().into_owned();
    for entry in std::fs::read_dir("/proc")? {
        let process = entry?.path();
        // Processes end while they are being looked at.
        let Ok(words) = std::fs::read_to_string(process.join("cmdline")) else { continue };
        if words.contains("qemu-system") && words.contains(&node_dir) {
            let stat = std::fs::read_to_string(process.join("stat"))?;
            let (_, fields) = stat.rsplit_once(')').context("unexpected /proc/PID/stat")?;
            let ticks: f64 =
                fields.split_whitespace().nth(19).context("unexpected /proc/PID/stat")?.parse()?;
            return Ok(ticks / 100.0);
        }
    }
    bail!("no QEMU process of the node {node_dir}")
}

struct Reference {
    kernel: PathBuf,
    initrd: PathBuf,
    disk: PathBuf,
    describe: String,
}

impl Reference {
    /// Builds it once; later runs find it under the target directory.
    fn build() -> Result<Self> {
        let dir = tools::target().join("bench-boot-reference");
        let done = dir.join("describe");
        if !done.is_file() {
            eprintln!("building the reference system ...");
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir)?;
            let root = dir.join("root");
            tools::run(
                Command::new("mmdebstrap")
                    .args(["--quiet", "--variant=minbase", "--include"])
                    .arg("systemd-sysv,systemd,udev,linux-image-cloud-amd64,busybox,iproute2,dbus")
                    .arg(format!("--customize-hook={}", CUSTOMIZE))
                    .arg(suite()?)
                    .arg(&root),
            )?;
            tools::run(
                Command::new("mke2fs")
                    .args(["-q", "-t", "ext4", "-d"])
                    .arg(&root)
                    .arg(dir.join("disk"))
                    .arg("2G"),
            )?;
            let version = std::fs::read_dir(root.join("lib/modules"))?
                .next()
                .context("the reference has no kernel")??
                .file_name();
            let version = version.to_string_lossy().into_owned();
            std::fs::copy(root.join(format!("boot/vmlinuz-{version}")), dir.join("vmlinuz"))?;
            std::fs::copy(root.join(format!("boot/initrd.img-{version}")), dir.join("initrd"))?;
            std::fs::remove_dir_all(&root)?;
            std::fs::write(
                &done,
                format!("Debian kernel {version}, initramfs, systemd minbase on ext4, busybox httpd"),
            )?;
        }
        Ok(Self {
            kernel: dir.join("vmlinuz"),
            initrd: dir.join("initrd"),
            disk: dir.join("disk"),
            describe: std::fs::read_to_string(done)?,
        })
    }

    fn boot(&self) -> Result<f64> {
        let address = free_port()?;
        let started = Instant::now();
        let mut qemu = Running(
            Command::new("qemu-system-x86_64")
                .args([
                    "-machine",
                    "q35",
                    "-accel",
                    "tcg,thread=multi",
                    "-cpu",
                    "max",
                    "-smp",
                    "2",
                    "-m",
                    "1024",
                ])
                .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "null", "-snapshot"])
                .arg("-kernel")
                .arg(&self.kernel)
                .arg("-initrd")
                .arg(&self.initrd)
                .args(["-append", "root=/dev/vda rw quiet console=ttyS0"])
                .args(["-drive", &format!("if=virtio,format=raw,file={}", self.disk.display())])
                .args(["-netdev", &format!("user,id=n,hostfwd=tcp:{address}-:80")])
                .args(["-device", "virtio-net-pci,netdev=n,romfile="])
                .stdin(Stdio::null())
                .spawn()
                .context("cannot run qemu-system-x86_64")?,
        );
        while started.elapsed() < LIMIT {
            if answers(address) {
                return Ok(started.elapsed().as_secs_f64());
            }
            if let Some(status) = qemu.0.try_wait()? {
                bail!("the reference's QEMU ended: {status}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the reference did not answer within {LIMIT:?}")
    }
}

/// Static address, and busybox's HTTP server as a unit.
const CUSTOMIZE: &str = r#"cd "$1" && printf '[Match]\nName=en* eth*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' > etc/systemd/network/10-all.network && chroot . systemctl enable systemd-networkd && printf '[Service]\nExecStart=/bin/busybox httpd -f -p 80 -h /srv\n[Install]\nWantedBy=multi-user.target\n' > etc/systemd/system/http.service && chroot . systemctl enable http && echo ok > srv/index.html"#;

/// The suite of this machine's Debian, else the one that Redoubt is developed on.
fn suite() -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let found = release.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME="));
    Ok(found.unwrap_or("bookworm").trim_matches('"').to_owned())
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to save in it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn answers(address: SocketAddr) -> bool {
    let attempt = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(200))?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        Ok(&head == b"HTTP/")
    };
    attempt().unwrap_or(false)
}

fn free_port() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn file_size(path: &Path) -> Result<f64> {
    Ok(std::fs::metadata(path).with_context(|| format!("no {}", path.display()))?.len() as f64)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

//! The host: memory of its agent, time to the guest's launch, speed of flashing, ports that are open.
//!
//! Reference for the launch: the same kernel on the same machine with the least that does the same: a busybox that mounts
//! the same root and starts the same QEMU with the same guest. It verifies nothing, and emulated processors hash slowly, so
//! there is a second one that mounts the root through dm-verity and hashes the guest's files before it launches them.
//! Reference for flashing: dd of the same bytes to the same file system, with fsync, and the same read back past the page cache.

use super::table::{Table, row};
use crate::{Consent, setup, tools};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(240);
const MB: f64 = 1e6;
/// The ports of an agent that are in docs/OPERATING.md, beside the operators' one.
const DOCUMENTED: [&str; 3] = ["https", "http", "status"];

/// Measures all figures.
pub(crate) fn measure(consent: Consent, runs: usize) -> Result<Table> {
    setup::run(consent, &[setup::FOR_BUILD, setup::FOR_UP, setup::FOR_TEST, setup::FOR_BENCH])?;
    tools::build_tools()?;
    let release = tools::build_images("virtual")?;

    let agent = agent(&release)?;
    let machine = Machine::prepare(&release)?;
    let (mut ours, mut bare, mut verified) = (Vec::new(), Vec::new(), Vec::new());
    for run in 1..=runs {
        // Alternating, so that all see the same weather on the machine.
        let times = [System::Ours, System::Bare, System::Verified].map(|system| machine.boot(system));
        let [our, least, verifying] = times;
        let (our, least, verifying) = (our?, least?, verifying?);
        eprintln!("run {run} of {runs}: ours {our:.1} s, references {least:.1} s and {verifying:.1} s");
        ours.push(our);
        bare.push(least);
        verified.push(verifying);
    }
    let (mut write, mut flash, mut dd, mut both) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let stick = tools::target().join("bench-host-stick");
    flashed(&release, &stick)?;
    for _ in 0..runs.max(3) {
        let times = copied(&stick)?;
        dd.push(times.0);
        both.push(times.1);
        let times = flashed(&release, &tools::target().join("bench-host-flash"))?;
        write.push(times.0);
        flash.push(times.1);
    }
    std::fs::remove_file(&stick)?;
    let launch = median(&mut ours);
    let (write, flash) = (median(&mut write), median(&mut flash));
    let (dd, both) = (median(&mut dd), median(&mut both));
    Ok(Table {
        rows: vec![
            row("host agent, resident memory", "MB", agent.memory / MB, None, 40.0, false),
            row("kernel's start to guest launched, TCG", "s", launch, Some(median(&mut bare)), 1.3, true),
            row("the same, against what verifies too", "s", launch, Some(median(&mut verified)), 1.3, true),
            row("flashing: writing and flushing, against dd with fsync", "s", write, Some(dd), 1.0 / 0.9, true),
            row("reading back too, against dd that does as well", "s", flash, Some(both), 1.0 / 0.9, true),
            row("open ports that are not documented", "", agent.undocumented.len() as f64, None, 0.0, false),
        ],
        notes: vec![
            format!("medians of {runs} boots and {} copies, alternating; TCG, 2 vCPU", runs.max(3)),
            "launch: direct boot, so that no firmware is counted; reference: the same kernel, busybox, the same QEMU and guest"
                .into(),
            "what verifies too: that busybox with the root through dm-verity, and sha256sum of the guest's files".into(),
            "memory: VmRSS of the agent (optimised as in the image) once the guest is ready".into(),
            format!("ports: every listening socket of the agent and of QEMU: {}", agent.open.join(", ")),
            format!("not documented: {}", if agent.undocumented.is_empty() { "none".into() } else { agent.undocumented.join(", ") }),
        ],
    })
}

/// What a running agent takes.
struct Agent {
    /// Resident memory in bytes.
    memory: f64,
    /// Ports that it and QEMU listen on.
    open: Vec<String>,
    undocumented: Vec<String>,
}

/// Starts a node with an agent optimised as the release's, and looks at its processes.
fn agent(release: &Path) -> Result<Agent> {
    let dir = tempfile::tempdir()?;
    let redoubt = |arguments: &[&str]| {
        let mut command = tools::command(tools::binary("redoubt"));
        command.args(arguments).arg("--node-dir").arg(dir.path());
        command
    };
    // An operator, so that this port is open too.
    tools::run(redoubt(&["operator", "allow", "--name", "nobody", &"ab".repeat(32)]).stdout(Stdio::null()))?;
    // Optimised as in the image, whose own needs the C library of the host's root.
    tools::run(tools::command("cargo").args(["build", "--locked", "--profile", "guest", "-p", "host-os"]))?;
    let program = tools::target().join("guest/host-os");
    let mut agent = Running(
        Command::new(&program)
            .args(["run", "--profile", "virtual", "--accel", "tcg", "--release"])
            .arg(release.join("manifest.json"))
            .arg("--node-dir")
            .arg(dir.path())
            .args(["--https-port", "0", "--http-port", "0", "--status-port", "0"])
            .args(["--operator-listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run host-os")?,
    );
    let started = Instant::now();
    let status = loop {
        let status = redoubt(&["status", "--json"]).stderr(Stdio::null()).output()?;
        if let Ok(status) = serde_json::from_slice::<Value>(&status.stdout)
            && status["state"] == "ready"
            && !status["attested"].is_null()
        {
            break status;
        }
        if let Some(ended) = agent.0.try_wait()? {
            bail!("the agent ended: {ended}; see `redoubt logs --node-dir {}`", dir.path().display());
        }
        ensure!(started.elapsed() < LIMIT, "the node is not ready within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(200));
    };
    let pid = status["pid"].as_u64().context("status names no process")?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    let mut documented: BTreeSet<String> =
        DOCUMENTED.iter().map(|name| format!("tcp {}", status["ports"][name])).collect();
    let operators = status["operator"]["address"].as_str().unwrap_or_default();
    documented.insert(format!("tcp {}", operators.rsplit(':').next().unwrap_or_default()));
    let open = listening(&family(pid)?)?;
    let undocumented = open.iter().filter(|port| !documented.contains(*port)).cloned().collect();
    tools::run(redoubt(&["down"]).stdout(Stdio::null()))?;
    Ok(Agent { memory: kib * 1024.0, open: open.into_iter().collect(), undocumented })
}

/// A process and all that it started.
fn family(first: u64) -> Result<Vec<u64>> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else {
            continue;
        };
        // Processes end while they are being looked at.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parents.push((pid, parent.unwrap_or(0_u64)));
    }
    let mut family = vec![first];
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    Ok(family)
}

/// Ports that these processes listen on: TCP in state LISTEN (0A), and every bound UDP socket (proc_net(5)).
fn listening(family: &[u64]) -> Result<BTreeSet<String>> {
    let mut sockets = BTreeSet::new();
    for pid in family {
        for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = std::fs::read_link(fd.path()) else { continue };
            if let Some(inode) = target.to_string_lossy().strip_prefix("socket:[") {
                sockets.insert(inode.trim_end_matches(']').to_owned());
            }
        }
    }
    let mut open = BTreeSet::new();
    for (table, name, state) in
        [("tcp", "tcp", Some("0A")), ("tcp6", "tcp", Some("0A")), ("udp", "udp", None), ("udp6", "udp", None)]
    {
        for line in std::fs::read_to_string(format!("/proc/net/{table}"))?.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(found), Some(inode)) = (words.get(1), words.get(3), words.get(9)) else {
                continue;
            };
            if sockets.contains(*inode) && state.is_none_or(|state| state == *found) {
                let port = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
                open.insert(format!("{name} {}", port.context("no port in /proc/net")?));
            }
        }
    }
    Ok(open)
}

/// A system that is started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum System {
    Ours,
    /// The least that launches the guest.
    Bare,
    /// The least that verifies what it launches.
    Verified,
}

/// The machine that they are started on.
struct Machine {
    dir: tempfile::TempDir,
    disk: PathBuf,
    command_line: String,
}

impl Machine {
    fn prepare(release: &Path) -> Result<Self> {
        let dir = tempfile::tempdir_in(tools::target())?;
        for (section, name) in [(".linux", "kernel"), (".cmdline", "command-line")] {
            tools::run(
                Command::new("objcopy")
                    .args(["-O", "binary", &format!("--only-section={section}")])
                    .arg(release.join("host.efi"))
                    .arg(dir.path().join(name)),
            )?;
        }
        let command_line = std::fs::read_to_string(dir.path().join("command-line"))?;
        let disk = dir.path().join("disk");
        tools::run(Command::new("cp").arg("--sparse=always").arg(release.join("host-disk.img")).arg(&disk))?;
        // Room for what the agent's specification asks for; the first boot makes the file system, and is not counted.
        std::fs::File::options().write(true).open(&disk)?.set_len(10 << 30)?;

        let tree = dir.path().join("tree");
        for folder in ["bin", "dev", "proc", "sys", "mnt"] {
            std::fs::create_dir_all(tree.join(folder))?;
        }
        std::fs::copy("/bin/busybox", tree.join("bin/busybox")).context("no /bin/busybox")?;
        for file in ["vmlinuz", "initrd.zst", "firmware.bin"] {
            std::fs::copy(release.join(file), tree.join(file))?;
        }
        std::fs::write(tree.join("start"), START)?;
        tools::run(
            Command::new("sh")
                .args(["-c", "find . | cpio --quiet -o -H newc > ../initrd"])
                .current_dir(&tree),
        )?;
        let machine = Self { dir, disk, command_line: command_line.trim_end_matches('\0').trim().to_owned() };
        machine.boot(System::Ours)?;
        Ok(machine)
    }

    /// What of our command line has the kernel set up dm-verity.
    fn verity(&self) -> Result<String> {
        let line = &self.command_line;
        let at = line.find("dm-mod.create=\"").context("no dm-verity on the host's command line")?;
        let end = line[at..]
            .match_indices('"')
            .nth(1)
            .context("an open quotation mark on the host's command line")?;
        let wait = line.split(' ').find(|word| word.starts_with("dm-mod.waitfor=")).unwrap_or_default();
        Ok(format!("{wait} {}", &line[at..=at + end.0]))
    }

    /// Seconds from QEMU's start until the guest's QEMU runs.
    fn boot(&self, system: System) -> Result<f64> {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-machine",
                "q35",
                "-accel",
                "tcg,thread=multi,tb-size=512",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "3G",
            ])
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(self.dir.path().join("kernel"))
            .arg("-drive")
            .arg(format!("if=none,id=disk,format=raw,file={}", self.disk.display()))
            .args(["-device", "nvme,drive=disk,serial=bench"]);
        if system == System::Ours {
            command.arg("-append").arg(&self.command_line);
        } else {
            let (table, root) = match system {
                System::Verified => (self.verity()?, "/dev/dm-0"),
                _ => (String::new(), "/dev/nvme0n1p2"),
            };
            let words = "console=ttyS0 no_timer_check quiet loglevel=4 rdinit=/bin/busybox";
            command.arg("-initrd").arg(self.dir.path().join("initrd"));
            command.arg("-append").arg(format!("{words} {table} -- sh /start {root}"));
        }
        let started = Instant::now();
        let mut qemu =
            Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
        let console = qemu.0.stdout.take().context("no console")?;
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let mut text = String::new();
        while let Ok(line) = lines.recv_timeout(LIMIT.saturating_sub(started.elapsed())) {
            // The agent's words, and the reference's.
            if line.contains("QEMU runs") {
                return Ok(started.elapsed().as_secs_f64());
            }
            text.push_str(&line);
            text.push('\n');
        }
        bail!("the guest is not launched within {LIMIT:?}:\n{text}")
    }
}

/// The references' first program; its argument is the device of the root.
const START: &str = "\
export PATH=/bin; /bin/busybox --install -s /bin
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys
exec >/dev/console 2>&1 </dev/console
mount -t erofs -o ro $1 /mnt
mount -t tmpfs t /mnt/tmp; cp /vmlinuz /initrd.zst /firmware.bin /mnt/tmp
if [ $1 = /dev/dm-0 ]; then sha256sum /mnt/tmp/vmlinuz & sha256sum /mnt/tmp/initrd.zst /mnt/tmp/firmware.bin; wait; fi
for d in dev proc sys; do mount --bind /$d /mnt/$d; done
chroot /mnt /usr/bin/qemu-system-x86_64 -machine q35,usb=off,vmport=off -accel kvm -cpu host,-tsc-deadline -smp 2 -m 1024 \
-nodefaults -no-user-config -no-reboot -display none -serial null -bios /tmp/firmware.bin -kernel /tmp/vmlinuz \
-initrd /tmp/initrd.zst -append console=ttyS0 &
echo QEMU runs
sleep 1000
";

/// Makes a stick; seconds without what is read, and for all of it.
fn flashed(release: &Path, to: &Path) -> Result<(f64, f64)> {
    let _ = std::fs::remove_file(to);
    let mut flash = tools::command(tools::binary("redoubt"));
    flash.args(["flash", "--json", "--release"]).arg(release).arg("--image").arg(to).stderr(Stdio::null());
    let printed: Value = serde_json::from_str(&tools::output(&mut flash)?)?;
    let time = |name: &str| printed[name].as_f64().with_context(|| format!("flash printed no {name}"));
    let (all, reading) = (time("seconds")?, time("seconds_reading")?);
    Ok((all - reading, all))
}

/// Seconds of dd with fsync for the same bytes, and with reading back.
fn copied(stick: &Path) -> Result<(f64, f64)> {
    let to = tools::target().join("bench-host-dd");
    let _ = std::fs::remove_file(&to);
    let dd = |from: &Path, to: &Path, options: &[&str]| {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", from.display())).arg(format!("of={}", to.display()));
        tools::run(dd.args(["bs=1M", "status=none"]).args(options))
    };
    // It comes out of memory, as the installer's does.
    dd(stick, Path::new("/dev/null"), &[])?;
    let started = Instant::now();
    dd(stick, &to, &["conv=fsync"])?;
    let written = started.elapsed().as_secs_f64();
    dd(&to, Path::new("/dev/null"), &["iflag=direct"])?;
    let both = started.elapsed().as_secs_f64();
    std::fs::remove_file(&to)?;
    Ok((written, both))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to save in it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

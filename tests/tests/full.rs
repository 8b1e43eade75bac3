//! The whole way of a node provider on a virtual machine: the installer flashes it, HostOS starts the guest, and the guest is
//! verified from outside; then again from the flashed disk; then the node's end. What the disk held at 20 moments of the
//! flashing, as after a power cut, is completed by installing again.

use anyhow::{Context, Result, ensure};
use installer::{
    config::Operator,
    disk::{Content, Disk, inspect},
    linux::Device,
    medium::Medium,
    parts::Parts,
    plan::{self, Wanted},
    run,
};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};
use tests::{Setup, json, text};

/// What CI has for it, on two cores.
const FLASHED: Duration = Duration::from_secs(15 * 60);
/// Until the second start must have answered; other tests use the machine too, so this is more than the target, which
/// `cargo xtask bench host` measures.
const STARTED: Duration = Duration::from_secs(5 * 60);

/// `redoubt up --full --keep`, which runs until it is dropped.
struct Machine {
    up: Child,
    reply: Value,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let id = Pid::from_raw(self.up.id().cast_signed());
        // It may have ended by itself.
        let _ = signal::kill(id, Signal::SIGTERM);
        let _ = self.up.wait();
    }
}

impl Machine {
    fn start(setup: &Setup, folder: &Path, limit: Duration) -> Result<Self> {
        let seconds = limit.as_secs().to_string();
        let mut up = Command::new(setup.program("redoubt"));
        up.args(["--json", "up", "--full", "--keep", "--timeout", &seconds, "--release"]);
        up.arg(&setup.release).arg("--machine").arg(folder);
        let mut up = up.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let output = up.stdout.take().context("no output")?;
        let mut errors = up.stderr.take().context("no errors")?;
        let (sender, printed) = mpsc::channel();
        std::thread::spawn(move || {
            // The reply ends with the first line that closes its first brace.
            let mut reply = String::new();
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                reply.push_str(&line);
                if line == "}" {
                    break;
                }
            }
            let _ = sender.send(reply);
        });
        let complaints = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let printed = printed.recv_timeout(limit + Duration::from_secs(30));
        let mut machine = Self { up, reply: Value::Null };
        match serde_json::from_str::<Value>(&printed.unwrap_or_default()) {
            Ok(reply) if reply["error"].is_null() => {
                machine.reply = reply;
                Ok(machine)
            }
            other => {
                drop(machine);
                anyhow::bail!("{other:?}: {}", complaints.join().unwrap_or_default())
            }
        }
    }

    /// A command about this node, by its operator.
    fn operate(&self, setup: &Setup, command: &[&str], host_key: &str) -> Result<std::process::Output> {
        let folder = self.reply["machine"].as_str().context("no machine")?;
        let node = self.reply["urls"]["operators"].as_str().context("no operators' port")?;
        let key = format!("{folder}/operator.pem");
        let rest = ["--node", node, "--node-key", host_key, "--key", &key, "--json"];
        setup.redoubt(command.iter().chain(&rest))
    }
}

/// How often the power goes.
const CUTS: u32 = 20;

/// The emulator of the machine in this folder.
fn emulator(place: &Path) -> Option<Pid> {
    let place = place.to_str()?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).into_owned();
        (line.starts_with("qemu-system") && line.contains(place)).then_some(Pid::from_raw(pid))
    })
}

/// Copies the disk at random moments while the installer writes it, as a power cut would leave it. The machine stands still
/// meanwhile, so that all the copies fit into the time that it writes.
fn cut_power(place: PathBuf, to: PathBuf) -> Result<u32> {
    let (disk, console) = (place.join("disk.img"), place.join("console.log"));
    let end = Instant::now() + FLASHED;
    let (mut copies, mut random) = (0, u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    while Instant::now() < end && copies < CUTS {
        let text = fs::read(&console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        if text.contains("is installed") {
            break;
        }
        if let Some(emulator) = emulator(&place).filter(|_| text.contains(" % ")) {
            signal::kill(emulator, Signal::SIGSTOP)?;
            let mut copy = Command::new("cp");
            copy.arg("--sparse=always").arg(&disk).arg(to.join(copies.to_string()));
            let copied = copy.status();
            signal::kill(emulator, Signal::SIGCONT)?;
            ensure!(copied?.success(), "cannot copy the disk");
            copies += 1;
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_millis(2 + random % 30));
    }
    Ok(copies)
}

/// Installs on a disk that lost power, as the installer does: what is there already stays.
fn install_again(disk: &Path, release: &Medium) -> Result<()> {
    let root = release::development::root()?;
    let parts = Parts::of(release.files()?, &root, release::Profile::Virtual)?;
    let mut device = Device::open(disk)?;
    let content = inspect(&mut device)?;
    let erase = !matches!(content, Content::Node(_));
    let operator = Operator::typed(&"ab".repeat(32));
    let operator = match &content {
        // Whose node it is already.
        Content::Node(node) => match &node.configuration {
            Some(Ok(signed)) => signed.configuration.operator.clone(),
            _ => operator,
        },
        _ => operator,
    };
    let wanted = Wanted { erase, operator: &operator, hardware: "virtual", network: None };
    let target = Disk {
        name: "disk".into(),
        model: String::new(),
        serial: String::new(),
        size: run::Medium::size(&device),
        block: 512,
        removable: false,
        used_by: None,
        is_medium: false,
    };
    let mut number = 0_u8;
    let mut bytes = || {
        number = number.wrapping_add(1);
        [number; 32]
    };
    let plan = plan::plan(&target, &content, &parts, &wanted, &mut bytes)?;
    run::run(&plan, &mut device, &mut |_| ())?;
    drop(plan);
    let Content::Node(node) = inspect(&mut device)? else { anyhow::bail!("no node on the disk") };
    ensure!(node.release.version == parts.version);
    // Every file is as it was signed.
    let again =
        plan::plan(&target, &inspect(&mut device)?, &parts, &Wanted { erase: false, ..wanted }, &mut || {
            [9; 32]
        })?;
    let outcome = run::run(&again, &mut device, &mut |_| ())?;
    ensure!(outcome.kept > outcome.written, "{outcome:?}");
    Ok(())
}

#[test]
fn from_an_empty_disk_to_a_verified_guest_and_to_the_end_of_the_node() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("machine");

    let cuts = folder.path().join("cuts");
    fs::create_dir(&cuts)?;
    let cutter = {
        let (place, cuts) = (place.clone(), cuts.clone());
        std::thread::spawn(move || cut_power(place, cuts))
    };
    let begun = Instant::now();
    let machine = Machine::start(&setup, &place, FLASHED)?;
    ensure!(begun.elapsed() < FLASHED, "{:?}", begun.elapsed());
    ensure!(machine.reply["flashed"] == true, "{:#}", machine.reply);
    let identity = machine.reply["identity"].as_str().context("no identity")?.to_owned();
    let host_key = machine.reply["host_key"].as_str().context("no host key")?.to_owned();
    ensure!(!machine.reply["verified"].as_array().context("nothing verified")?.is_empty());
    let status = json(machine.operate(&setup, &["status"], &host_key)?)?;
    ensure!(status["node"] == identity.as_str(), "{status:#}");
    drop(machine);
    let copies = cutter.join().ok().context("the copies failed")??;
    ensure!(copies == CUTS, "only {copies} copies while the installer wrote");
    let medium = Medium::read(&mut Device::open_read_only(&setup.release.join("installer.img"))?)?;
    for copy in 0..copies {
        install_again(&cuts.join(copy.to_string()), &medium).with_context(|| format!("cut {copy}"))?;
    }

    // A power cut it was; the machine now starts from its disk.
    let machine = Machine::start(&setup, &place, STARTED)?;
    ensure!(machine.reply["flashed"] == false && machine.reply["identity"] == identity.as_str());

    // Orders: what is asked over the network happens, to this node and by this operator only.
    let refused = machine.operate(&setup, &["decommission", "--confirm", "00000000"], &host_key)?;
    ensure!(text(&refused).contains("not-confirmed"), "{}", text(&refused));
    let statement = folder.path().join("statement.json");
    let out = statement.to_str().context("a path")?;
    let ended =
        machine.operate(&setup, &["decommission", "--confirm", &identity[..8], "--out", out], &host_key)?;
    let signed = json(ended)?;
    ensure!(signed["public_key"] == identity.as_str(), "{signed:#}");
    let erased = signed["statement"]["erased"].as_array().context("nothing erased")?;
    ensure!(
        erased
            .iter()
            .any(|entry| entry["what"] == "the guest's vault (disk of slot A)" && entry["bytes"] != 0)
    );
    ensure!(
        erased.iter().any(|entry| entry["what"] == "the node's key and configuration" && entry["bytes"] != 0)
    );
    drop(machine);

    // The machine does not start anything any more, and says why.
    let third = Machine::start(&setup, &place, STARTED);
    let error = third.err().context("the machine of a decommissioned node starts a guest")?.to_string();
    ensure!(error.contains("decommissioned"), "{error}");
    Ok(())
}

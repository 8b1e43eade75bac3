//! The whole way of a node provider on a virtual machine: the installer flashes it, HostOS starts the guest, and the guest is
//! verified from outside; then again from the flashed disk, whose start its TPM proves; then the node's end. What the disk held at 20 moments of the
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
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tests::{
    Setup, host_evidence, is_status, json, machine::Machine, screen::Screen, strangers::strangers, text,
};

/// What CI has for it, on two cores.
const FLASHED: Duration = Duration::from_secs(15 * 60);
/// Until the second start must have answered; other tests use the machine too, so this is more than the target, which
/// `cargo xtask bench host` measures.
const STARTED: Duration = Duration::from_secs(5 * 60);

/// For something to appear on the screen or the console of a translated machine.
const SHOWN: Duration = Duration::from_secs(120);

/// The screen shows who the machine is, and its menu does nothing without an operator's signature.
fn before_the_screen(setup: &Setup, machine: &Machine<'_>) -> Result<()> {
    let mut screen = Screen::of(&machine.path("qmp.sock")?)?;
    let identity = machine.said("identity")?.to_uppercase();
    ensure!(screen.code(&identity[..8], SHOWN)? == identity);
    let (stranger, operator) = (machine.path("stranger.pem")?, machine.path("operator.pem")?);
    let stranger = stranger.to_str().context("a path")?;
    json(setup.redoubt(["--json", "operator", "key", stranger])?)?;
    for (key, said) in [
        (stranger, "an order at the console is refused"),
        (operator.to_str().context("a path")?, "an operator's order is carried out"),
    ] {
        // The third entry: the guest starts again.
        screen.write("m3")?;
        let text = screen.code("REDOUBT1:RESTART-GUEST:", SHOWN)?;
        let signed = json(setup.redoubt(["--json", "operator", "sign", "--key", key, &text])?)?;
        screen.write(signed["answer"].as_str().context("no answer")?)?;
        screen.press("ret")?;
        machine.until_said(said, SHOWN)?;
    }
    Ok(())
}

/// Ten thousand malformed requests to the host's operators' port leave it as it was.
fn among_strangers(machine: &Machine<'_>) -> Result<()> {
    let (_, port) = machine.operators()?.rsplit_once(':').context("no port")?;
    strangers(port.parse()?)?;
    let log = machine.operate(&["logs", "-n", "1"])?;
    ensure!(log.status.success(), "{}", text(&log));
    Ok(())
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
    let identity = machine.said("identity")?.to_owned();
    ensure!(!machine.reply["verified"].as_array().context("nothing verified")?.is_empty());
    let status = json(machine.operate(&["status"])?)?;
    ensure!(status["node"] == identity.as_str(), "{status:#}");
    is_status(&setup, &status)?;
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
    host_evidence::judge(&setup, machine.operators()?, machine.said("host_key")?)?;
    before_the_screen(&setup, &machine)?;
    among_strangers(&machine)?;

    // Orders: what is asked over the network happens, to this node and by this operator only.
    let refused = machine.operate(&["decommission", "--confirm", "00000000"])?;
    ensure!(text(&refused).contains("not-confirmed"), "{}", text(&refused));
    let statement = folder.path().join("statement.json");
    let out = statement.to_str().context("a path")?;
    let ended = machine.operate(&["decommission", "--confirm", &identity[..8], "--out", out])?;
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

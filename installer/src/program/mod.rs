//! The installer as PID 1: looks at the machine, asks or reads what to do, carries it out, restarts.

mod efivars;
mod error;
mod ui;

use crate::{
    archive,
    config::{Operator, Unattended, WhenDone},
    disk::{self, Content, Disk, Reader},
    esp,
    layout::{self, labels},
    linux::{self, Device},
    parts::Parts,
    plan::{self, Plan, Purpose, Wanted},
    run,
    uefi::{Keys, SecureBootRefusal},
};
use error::InstallError;
use hwspec::{Fact, Spec, Status};
use nix::{
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};
use release::{Profile, Root};
use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};
use ui::Ui;

/// What the initrd holds beside this program: the release root, and the Secure Boot keys.
const ROOT: &str = "/etc/redoubt/root.json";
const CERTIFICATE: &str = "/etc/redoubt/secure-boot/certificate.der";
const KEYS: &str = "/etc/redoubt/secure-boot";
/// Boot partition of the medium.
const ESP: &str = "/esp";
/// USB devices appear late.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an unattended machine shows why it stopped.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// What the installed host judges, because this program cannot: it has neither QEMU nor the node's directory. Secure Boot has
/// its own rule here.
const LATER: &[Fact] = &[
    Fact::Accelerators,
    Fact::DirectoryFree,
    Fact::DirectoryPersistent,
    Fact::NvramMedia,
    Fact::QemuDevices,
    Fact::QemuObjects,
    Fact::QemuVersion,
    Fact::SecureBoot,
    Fact::SecureBootSetupMode,
];

/// Runs as PID 1.
pub fn run() -> ! {
    let mut ui = Ui::default();
    let mounted = mount_all();
    ui.open();
    let mut unattended = None;
    let result = mounted.and_then(|()| install(&mut ui, &mut unattended));
    let end = match result {
        Ok(end) => end,
        Err(error) => {
            ui.say(&format!("nothing more is done ({}): {error}", error.code()));
            if unattended.is_some() {
                sleep(LAST_WORDS);
                WhenDone::PowerOff
            } else {
                let _ = ui.ask("Press Enter to restart");
                WhenDone::Reboot
            }
        }
    };
    nix::unistd::sync();
    let mode = match end {
        WhenDone::Reboot => RebootMode::RB_AUTOBOOT,
        WhenDone::PowerOff => RebootMode::RB_POWER_OFF,
    };
    // Fails only without the privilege; then the end of PID 1 makes the kernel panic and, with panic=, restart.
    let _ = reboot(mode);
    std::process::exit(1)
}

fn mount_all() -> Result<(), InstallError> {
    for (kind, target) in
        [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/tmp")]
    {
        mount(Some(kind), target, Some(kind), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, None::<&str>)
            .map_err(|errno| InstallError::Mount(target, errno.into()))?;
    }
    let variables = "/sys/firmware/efi/efivars";
    mount(
        Some("efivarfs"),
        variables,
        Some("efivarfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .map_err(|errno| InstallError::Mount(variables, errno.into()))
}

fn read(path: &str) -> Result<Vec<u8>, InstallError> {
    fs::read(path).map_err(|source| InstallError::Read(path.to_owned(), source))
}

fn profile() -> Result<Profile, InstallError> {
    let line = String::from_utf8_lossy(&read("/proc/cmdline")?).into_owned();
    let word = line.split_whitespace().find_map(|word| word.strip_prefix("redoubt.profile="));
    match word {
        Some("production") => Ok(Profile::Production),
        Some("virtual") => Ok(Profile::Virtual),
        _ => Err(InstallError::CommandLine),
    }
}

fn install(ui: &mut Ui, unattended: &mut Option<Unattended>) -> Result<WhenDone, InstallError> {
    let profile = profile()?;
    ui.say(&format!("installer of profile {profile}, version {}", env!("CARGO_PKG_VERSION")));
    let (medium, disks) = find_medium()?;
    *unattended = configuration(&medium)?;
    let config = unattended.as_ref();
    ui.say(match config {
        Some(_) => "unattended, by REDOUBT.CFG on the medium",
        None => "no REDOUBT.CFG on the medium: questions follow",
    });
    check_hardware(ui, profile, config)?;
    secure_boot(ui, config)?;
    let parts = release(ui, &medium, profile)?;

    let name = match config {
        Some(config) => config.disk.clone(),
        None => ask_disk(ui, &disks)?,
    };
    let disk = plan::choose(&disks, &name)?;
    plan::usable(disk, layout::smallest())?;
    let path = Path::new("/dev").join(&disk.name);
    let unreadable = |source| InstallError::Read(path.display().to_string(), source);
    let mut device = Device::open(&path).map_err(unreadable)?;
    let content = disk::inspect(&mut device).map_err(unreadable)?;
    ui.say(&format!(
        "{}, {}, {:.1} GB: {}",
        disk.name,
        disk.model,
        disk.size as f64 / 1e9,
        describe(&content)
    ));
    let operator = match config {
        Some(config) => config.operator.clone(),
        None => {
            Operator::typed(&ui.ask("Fingerprint of the operator's key (64 hexadecimal digits)")).checked()?
        }
    };
    let mut erase = config.is_some_and(|config| config.erase);
    if config.is_none() && !matches!(content, Content::Empty | Content::Node(_)) {
        let sentence = format!("ERASE {}", disk.name);
        erase = ui.ask(&format!("All of it will be lost. To go on, type: {sentence}")) == sentence;
    }
    let hardware = config.map_or_else(|| default_spec(profile), |config| config.hardware.as_str());
    let wanted = Wanted {
        erase,
        operator: &operator,
        hardware,
        network: config.and_then(|config| config.network.as_ref()),
    };
    let mut failed = None;
    let plan = plan::plan(disk, &content, &parts, &wanted, &mut || {
        let mut random = [0; 32];
        if let Err(error) = getrandom::fill(&mut random) {
            failed = Some(error);
        }
        random
    })?;
    if let Some(error) = failed {
        return Err(InstallError::Random(error.to_string()));
    }
    ui.say(&format!(
        "{}; {:.0} MB are written and read back",
        purpose(&plan, &parts),
        plan.bytes() as f64 / 1e6
    ));
    let started = Instant::now();
    let outcome = run::run(&plan, &mut device, &mut |progress| ui.progress(progress))?;
    ui.say(&format!(
        "written {:.1} MB, already there {:.1} MB, {:.1} s; everything was read back",
        outcome.written as f64 / 1e6,
        outcome.kept as f64 / 1e6,
        started.elapsed().as_secs_f64()
    ));
    match boot_entries(&plan) {
        Ok(()) => ui.say("boot entry set: the firmware starts this disk first"),
        // The firmware finds the disk without an entry too.
        Err(error) => {
            ui.say(&format!("the boot entry could not be set ({error}); choose the disk in the firmware"))
        }
    }
    if let Ok(Content::Node(node)) = disk::inspect(&mut device)
        && let Some(Ok(signed)) = &node.configuration
    {
        ui.say(&format!("identity of this node: {}", signed.configuration.node));
    }
    ui.say(&format!("release {} is installed; take the medium out", parts.version));
    Ok(config.map_or(WhenDone::Reboot, |config| config.when_done))
}

fn purpose(plan: &Plan, parts: &Parts) -> String {
    match plan.purpose {
        Purpose::New => format!("a new node with release {}", parts.version),
        Purpose::Update(slot) => {
            format!("release {} goes into slot {slot}; the node keeps its state", parts.version)
        }
        Purpose::Guest => format!("the guest of release {} replaces the one before", parts.version),
        Purpose::Verify => format!("release {} is there already and is compared", parts.version),
    }
}

fn describe(content: &Content) -> String {
    match content {
        Content::Empty => "empty".into(),
        Content::Foreign(labels) if labels.is_empty() => "data that this installer does not know".into(),
        Content::Foreign(labels) => format!("partitions {}", labels.join(", ")),
        Content::Damaged(part) => format!("a node whose installation is incomplete ({part})"),
        Content::Node(node) => format!("a node with release {} in slot {}", node.release.version, node.slot),
    }
}

/// Waits for the medium; gives its name and all disks.
fn find_medium() -> Result<(String, Vec<Disk>), InstallError> {
    let end = Instant::now() + PATIENCE;
    loop {
        let disks = linux::disks(labels::RELEASE)
            .map_err(|source| InstallError::Read("/sys/block".into(), source))?;
        if let Some(medium) = disks.iter().find(|disk| disk.is_medium) {
            let name = medium.name.clone();
            // A disk of the machine may appear a moment later than a stick.
            sleep(Duration::from_secs(2));
            let again = linux::disks(labels::RELEASE);
            return Ok((name, again.unwrap_or(disks)));
        }
        if Instant::now() > end {
            return Err(InstallError::NoMedium);
        }
        sleep(Duration::from_millis(500));
    }
}

fn configuration(medium: &str) -> Result<Option<Unattended>, InstallError> {
    let device = linux::partition(medium, labels::ESP).ok_or(InstallError::NoMedium)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount(Some(&device), ESP, Some("vfat"), flags, None::<&str>)
        .map_err(|errno| InstallError::Mount(ESP, errno.into()))?;
    let path = Path::new(ESP).join(esp::CONFIG);
    let content = if path.exists() { Some(read(&path.to_string_lossy())?) } else { None };
    // The medium must not look as if it were in use when it is not.
    let _ = nix::mount::umount(ESP);
    Ok(content.map(|content| Unattended::parse(&content)).transpose()?)
}

fn default_spec(profile: Profile) -> &'static str {
    match profile {
        Profile::Production => "gen2",
        Profile::Virtual => "virtual",
    }
}

fn check_hardware(ui: &mut Ui, profile: Profile, config: Option<&Unattended>) -> Result<(), InstallError> {
    let name = config.map_or_else(|| default_spec(profile), |config| config.hardware.as_str());
    let mut spec = Spec::named(name).map_err(|error| InstallError::Spec(error.to_string()))?;
    spec.requirements.retain(|requirement| !LATER.contains(&requirement.fact));
    let probe = hwspec::probe::this_machine(Path::new("/run"));
    let report = hwspec::check(&spec, &probe);
    let passed = report.checks.iter().filter(|check| check.status == Status::Pass).count();
    ui.say(&format!(
        "hardware {name}: {} ({passed} of {} checks passed)",
        report.verdict,
        report.checks.len()
    ));
    for check in report.checks.iter().filter(|check| check.status != Status::Pass) {
        ui.say(&format!(
            "  {} {}: expected {}, found {}. {}",
            check.status, check.id, check.expected, check.found, check.fix
        ));
    }
    if !report.meets_spec() {
        return Err(InstallError::Hardware(name.to_owned()));
    }
    match probe.tpm.version.get() {
        Ok(version) if version == "2.0" => Ok(()),
        found => Err(InstallError::NoTpm(found.map_or_else(str::to_owned, Clone::clone))),
    }
}

fn secure_boot(ui: &mut Ui, config: Option<&Unattended>) -> Result<(), InstallError> {
    let certificate = read(CERTIFICATE)?;
    let state = efivars::secure_boot(&certificate)?;
    match state.judge()? {
        Keys::Enrolled => ui.say("Secure Boot: on, with the project's key"),
        Keys::Enrol => {
            let agreed = match config {
                Some(config) => config.enrol_keys,
                None => ui.ask("Secure Boot is in setup mode. Enrol the project's keys? Type: yes") == "yes",
            };
            if !agreed {
                return Err(SecureBootRefusal::NotAgreed.into());
            }
            efivars::enrol(Path::new(KEYS))?;
            ui.say("Secure Boot: the project's keys are enrolled; they count from the next start on");
        }
    }
    Ok(())
}

fn release(ui: &mut Ui, medium: &str, profile: Profile) -> Result<Parts, InstallError> {
    let root = Root::from_bytes(&read(ROOT)?).map_err(|error| InstallError::Root(error.to_string()))?;
    let path = linux::partition(medium, labels::RELEASE).ok_or(InstallError::NoMedium)?;
    let unreadable = |source| InstallError::Read(path.display().to_string(), source);
    let mut device = Device::open_read_only(&path).map_err(unreadable)?;
    let end = run::Medium::size(&device);
    let files = archive::unpack(Reader { medium: &mut device, at: 0, end })?;
    let parts = Parts::of(files, &root, profile)?;
    ui.say(&format!(
        "release {}, security epoch {}, {}: signatures and hashes are right",
        parts.version, parts.security_epoch, parts.digest
    ));
    Ok(parts)
}

fn ask_disk(ui: &mut Ui, disks: &[Disk]) -> Result<String, InstallError> {
    ui.say("disks of this machine:");
    for disk in disks.iter().filter(|disk| !disk.is_medium) {
        let content = Device::open_read_only(&Path::new("/dev").join(&disk.name))
            .and_then(|mut device| disk::inspect(&mut device))
            .map_or_else(|error| error.to_string(), |content| describe(&content));
        ui.say(&format!(
            "  {:<10} {:>8.1} GB  {} {}: {content}",
            disk.name,
            disk.size as f64 / 1e9,
            disk.model,
            disk.serial
        ));
    }
    let name = ui.ask("Name of the disk to install on");
    if name.is_empty() { Err(InstallError::Cancelled) } else { Ok(name) }
}

fn boot_entries(plan: &Plan) -> Result<(), InstallError> {
    let number = plan.table.partitions.iter().position(|partition| partition.name == labels::ESP);
    let Some(number) = number else { return Ok(()) };
    efivars::set_boot_entries(
        number as u32 + 1,
        &plan.table.partitions[number],
        &[("Redoubt", esp::CURRENT), ("Redoubt (previous)", esp::PREVIOUS)],
    )
}

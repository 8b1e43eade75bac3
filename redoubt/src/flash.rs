//! `redoubt flash`: the installer's medium, on a USB stick or in a file.

use crate::output::{Failure, Output, Progress, Reply};
use clap::Args;
use installer::{
    archive::{self, Files, MANIFEST},
    config::Unattended,
    disk::Disk,
    linux::{self, Device},
    medium::Medium,
    parts, plan,
    run::{self, Outcome},
};
use release::Envelope;
use serde_json::json;
use std::{
    fs::{self, File},
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    time::Instant,
};

const HELP: &str = "\
A stick is erased. It must be a whole device that can be taken out, is not mounted, and whose name you type (or give with
--confirm). Everything is read back from the device and compared. A power cut or an early end does no harm: run it again, and
only what differs is written.

Exit codes:
  0  written and read back
  1  refused or failed; the error says what and what to do
  2  the command line was wrong, or a file that it names cannot be read";

/// Writes the installer to a USB stick or into a file, with the release that it installs.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Flash {
    /// The stick: a whole device, such as /dev/sdb
    #[arg(long, value_name = "DEV", required_unless_present_any = ["image", "schema"])]
    device: Option<PathBuf>,
    /// A new file instead, for virtual machines and for HTTP boot
    #[arg(long, value_name = "FILE", conflicts_with = "device")]
    image: Option<PathBuf>,
    /// The installer [default: installer.img in the directory of --release]
    #[arg(long, value_name = "FILE", required_unless_present_any = ["release", "schema"])]
    installer: Option<PathBuf>,
    /// Directory of another release that it shall install [default: the one that it carries]
    #[arg(long, value_name = "DIR")]
    release: Option<PathBuf>,
    /// Makes the installation unattended: a JSON file by the schema that --schema prints. It holds no secret
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The device's name again, instead of typing it
    #[arg(long, value_name = "NAME", requires = "device")]
    confirm: Option<String>,
    /// Also write to a device that cannot be taken out
    #[arg(long, requires = "device")]
    allow_fixed: bool,
    /// Print the JSON schema of --config, and write nothing
    #[arg(long)]
    schema: bool,
}

pub(crate) fn run(args: &Flash, output: &Output) -> Result<Reply, Failure> {
    if args.schema {
        let schema = Unattended::schema();
        return Ok(Reply::good(format!("{schema:#}"), schema));
    }
    let medium = medium(args)?;
    let files = medium.files().map_err(|error| Failure::of("release-unreadable", &error))?;
    let version = version(&files)?;
    let (path, size) = match (&args.device, &args.image) {
        (Some(device), _) => (device.clone(), check_device(args, device, medium.smallest(), output)?),
        (None, Some(image)) => {
            let size = medium.smallest();
            let made = File::create_new(image).and_then(|file| file.set_len(size));
            made.map_err(|error| {
                Failure::usage("image-not-made", format!("cannot make {}: {error}", image.display()))
            })?;
            (image.clone(), size)
        }
        (None, None) => return Err(Failure::usage("nothing-to-write", "give --device or --image")),
    };
    let started = Instant::now();
    let outcome = write(&medium, &path, size)?;
    let seconds = started.elapsed().as_secs_f64();
    let text = format!(
        "{}: installer with release {version}; {:.1} MB written, {:.1} MB were there, all read back",
        path.display(),
        outcome.written as f64 / 1e6,
        outcome.kept as f64 / 1e6
    );
    let unattended = medium.config.is_some();
    let json = json!({
        "target": path, "release": version, "unattended": unattended, "verified": true,
        "bytes_written": outcome.written, "bytes_kept": outcome.kept, "seconds": seconds,
        "seconds_reading": outcome.reading.as_secs_f64(),
    });
    Ok(Reply::good(text, json))
}

/// Makes a file with a release's installer, unattended by this configuration.
pub(crate) fn image(release: &Path, config: &[u8], image: &Path) -> Result<(), Failure> {
    Unattended::parse(config).map_err(|error| Failure::of(error.code(), &error))?;
    let path = release.join("installer.img");
    let mut device = Device::open_read_only(&path).map_err(|error| {
        Failure::usage("installer-unreadable", format!("cannot read {}: {error}", path.display()))
    })?;
    let mut medium = Medium::read(&mut device).map_err(|error| Failure::of(error.code(), &error))?;
    medium.release = pack(release)?;
    medium.config = Some(config.to_vec());
    let size = medium.smallest();
    let made = File::create_new(image).and_then(|file| file.set_len(size));
    made.map_err(|error| {
        Failure::usage("image-not-made", format!("cannot make {}: {error}", image.display()))
    })?;
    write(&medium, image, size).map(drop)
}

fn read(path: &Path, code: &str) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::usage(code, format!("cannot read {}: {error}", path.display())))
}

/// The installer, with the wanted release and configuration.
fn medium(args: &Flash) -> Result<Medium, Failure> {
    let beside = || args.release.as_ref().map(|folder| folder.join("installer.img")).unwrap_or_default();
    let path = args.installer.clone().unwrap_or_else(beside);
    let mut device = Device::open_read_only(&path).map_err(|error| {
        Failure::usage("installer-unreadable", format!("cannot read {}: {error}", path.display()))
    })?;
    let mut medium = Medium::read(&mut device)
        .map_err(|error| Failure::new(error.code(), format!("{}: {error}", path.display())))?;
    if let Some(folder) = &args.release {
        medium.release = pack(folder)?;
    }
    if let Some(path) = &args.config {
        let config = read(path, "configuration-unreadable")?;
        Unattended::parse(&config)
            .map_err(|error| Failure::new(error.code(), format!("{}: {error}", path.display())))?;
        medium.config = Some(config);
    }
    Ok(medium)
}

/// A release out of a directory, each file held against the manifest. Who signed the manifest is for the installer to judge,
/// which has its own root.
fn pack(folder: &Path) -> Result<Vec<u8>, Failure> {
    let mut files = Files::from([(MANIFEST.to_owned(), read(&folder.join(MANIFEST), "release-unreadable")?)]);
    let envelope =
        Envelope::from_bytes(&files[MANIFEST]).map_err(|error| Failure::of("manifest-refused", &error))?;
    let manifest = envelope.manifest();
    let (required, optional) = parts::carried(manifest);
    for path in required {
        files.insert(path.clone(), read(&folder.join(&path), "release-unreadable")?);
    }
    for path in optional {
        if let Ok(content) = fs::read(folder.join(&path)) {
            files.insert(path, content);
        }
    }
    for (name, file) in manifest.files() {
        if let Some(content) = files.get(&file.path) {
            file.check(name, content).map_err(|error| Failure::of("release-file-changed", &error))?;
        }
    }
    archive::pack(&files).map_err(|error| Failure::of("release-not-packed", &error))
}

fn version(files: &Files) -> Result<String, Failure> {
    let manifest = files.get(MANIFEST).map(|bytes| Envelope::from_bytes(bytes));
    match manifest {
        Some(Ok(envelope)) => Ok(envelope.manifest().version.clone()),
        Some(Err(error)) => Err(Failure::of("manifest-refused", &error)),
        None => {
            Err(Failure::new("release-without-manifest", "the installer carries no release; give --release"))
        }
    }
}

/// Whether a device may be erased; gives its length.
fn judge(args: &Flash, disk: Option<&Disk>, device: &Path, needed: u64) -> Result<u64, Failure> {
    let disk = disk.ok_or_else(|| {
        let message = format!(
            "{} is no whole disk of this machine; give the stick itself, not a partition",
            device.display()
        );
        Failure::new("disk-not-found", message)
    })?;
    if !disk.removable && !args.allow_fixed {
        let message = format!(
            "{} ({}, {:.1} GB) cannot be taken out; if it is really meant, add --allow-fixed",
            disk.name,
            disk.model,
            disk.size as f64 / 1e9
        );
        return Err(Failure::new("disk-not-removable", message));
    }
    plan::usable(disk, needed).map_err(|refusal| Failure::new(refusal.code(), refusal.to_string()))?;
    Ok(disk.size)
}

fn check_device(args: &Flash, device: &Path, needed: u64, output: &Output) -> Result<u64, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::usage("device-unreadable", format!("cannot look at {}: {error}", device.display()))
    };
    let path = device.canonicalize().map_err(unreadable)?;
    // Whatever is on the stick may be written over, an installer too.
    let disks = linux::disks("").map_err(unreadable)?;
    let disk = disks.iter().find(|disk| Path::new("/dev").join(&disk.name) == path);
    let size = judge(args, disk, device, needed)?;
    let name = disk.map(|disk| disk.name.as_str()).unwrap_or_default();
    let model = disk.map(|disk| disk.model.as_str()).unwrap_or_default();
    let typed = match &args.confirm {
        Some(typed) => typed.trim_start_matches("/dev/").to_owned(),
        None if output.json || !std::io::stdin().is_terminal() => String::new(),
        None => {
            eprint!(
                "All of {name} ({model}, {:.1} GB) will be lost. Type its name to go on: ",
                size as f64 / 1e9
            );
            let mut line = String::new();
            let _ = std::io::stderr().flush();
            std::io::stdin().read_line(&mut line).map_err(unreadable)?;
            line.trim().trim_start_matches("/dev/").to_owned()
        }
    };
    if typed == name {
        Ok(size)
    } else {
        Err(Failure::new(
            "erase-not-confirmed",
            format!("nothing was written; confirm with --confirm {name}"),
        ))
    }
}

fn write(medium: &Medium, path: &Path, size: u64) -> Result<Outcome, Failure> {
    let plan = medium.plan(size).map_err(|refusal| Failure::new(refusal.code(), refusal.to_string()))?;
    let mut device = Device::open(path).map_err(|error| {
        Failure::usage("device-unwritable", format!("cannot write {}: {error}", path.display()))
    })?;
    let mut progress = Progress::new();
    let outcome = run::run(&plan, &mut device, &mut |at| {
        progress.step(at.step);
        progress.percent(at.done * 100 / at.total.max(1));
    });
    progress.finish();
    outcome.map_err(|error| Failure::new(error.code(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flash: Flash,
    }

    fn line(words: &[&str]) -> Flash {
        Line::try_parse_from(["flash"].iter().chain(words)).unwrap().flash
    }

    fn disk() -> Disk {
        Disk {
            name: "sdb".into(),
            model: "Stick".into(),
            serial: String::new(),
            size: 1 << 30,
            block: 512,
            removable: true,
            used_by: None,
            is_medium: false,
        }
    }

    #[test]
    fn only_a_stick_that_nobody_uses_is_written() {
        let args = line(&["--device", "/dev/sdb", "--installer", "i"]);
        let judge = |change: fn(&mut Disk)| {
            let mut disk = disk();
            change(&mut disk);
            judge(&args, Some(&disk), Path::new("/dev/sdb"), 1 << 28).map_err(|failure| failure.code)
        };
        assert_eq!(judge(|_| ()), Ok(1 << 30));
        assert_eq!(judge(|disk| disk.removable = false), Err("disk-not-removable".into()));
        assert_eq!(judge(|disk| disk.used_by = Some("mounted".into())), Err("disk-in-use".into()));
        assert_eq!(judge(|disk| disk.size = 1 << 20), Err("disk-too-small".into()));
        let absent = super::judge(&args, None, Path::new("/dev/sdb1"), 1).unwrap_err();
        assert_eq!(absent.code, "disk-not-found");
        let fixed = line(&["--device", "/dev/sdb", "--installer", "i", "--allow-fixed"]);
        let disk = Disk { removable: false, ..disk() };
        assert!(super::judge(&fixed, Some(&disk), Path::new("/dev/sdb"), 1).is_ok());
    }

    #[test]
    fn a_file_gets_the_installer_and_what_is_no_installer_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let golden = include_bytes!("../../release/tests/golden/manifest.json");
        let release = archive::pack(&Files::from([(MANIFEST.into(), golden.to_vec())])).unwrap();
        let medium = Medium { uki: vec![7; 100_000], config: None, release };
        let (from, to) = (dir.path().join("installer.img"), dir.path().join("out.img"));
        File::create(&from).unwrap().set_len(medium.smallest()).unwrap();
        write(&medium, &from, medium.smallest()).unwrap();

        let config = dir.path().join("node.json");
        let text = json!({ "version": 1, "disk": "auto", "hardware": "virtual",
            "operator": { "fingerprint": "ab".repeat(32) } });
        fs::write(&config, text.to_string()).unwrap();
        let [from, to_text, config] = [&from, &to, &config].map(|path| path.to_str().unwrap());
        let output = Output::new(true);
        let args = line(&["--installer", from, "--image", to_text, "--config", config]);
        assert_eq!(run(&args, &output).unwrap().json["verified"], true);
        let read = Medium::read(&mut Device::open_read_only(&to).unwrap()).unwrap();
        assert_eq!((&read.uki, &read.release), (&medium.uki, &medium.release));
        assert_eq!(read.config, Some(text.to_string().into_bytes()));
        assert_eq!(run(&args, &output).unwrap_err().code, "image-not-made");

        let elsewhere = dir.path().join("other").display().to_string();
        let no_installer = line(&["--installer", config, "--image", &elsewhere]);
        assert_eq!(run(&no_installer, &output).unwrap_err().code, "installer-not-an-image");
        fs::write(config, "{}").unwrap();
        let bad = line(&["--installer", from, "--image", &elsewhere, "--config", config]);
        assert_eq!(run(&bad, &output).unwrap_err().code, "configuration-invalid");
    }
}

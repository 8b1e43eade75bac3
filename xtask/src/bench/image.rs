//! `cargo xtask bench image`: times and sizes of the images.

use super::table::{Row, Table};
use crate::{Consent, double_build, setup, tools};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// What IC-OS publishes of itself: dfinity/ic, ci/scripts/repro-check (room, and the shorter of its times), and pull requests
/// 11541 and 6177 (update images of guest and host, installer).
const REFERENCE: &str =
    "reference: what IC-OS publishes of its images and their reproduction; not measured here";
const IC_OS_MINUTES: f64 = 60.0;
const IC_OS_GB: f64 = 100.0;
const IC_OS_MB: [f64; 3] = [527.0, 1126.0, 2100.0];

/// Measures. `full` also builds everything from an empty cache.
pub(super) fn measure(consent: Consent, full: bool, runs: usize) -> Result<Table> {
    setup::run(consent, &[setup::FOR_BUILD, setup::FOR_UP])?;
    tools::build_tools()?;
    let release = tools::build_images("virtual")?;
    let mut table = Table { rows: Vec::new(), notes: vec![REFERENCE.into()] };
    sizes(&release, "virtual", &mut table)?;
    let times = (0..runs).map(|_| verify_only(&release)).collect::<Result<Vec<_>>>()?;
    table.rows.push(row("verify-only, slowest run", "s", times.into_iter().fold(0.0, f64::max), 10.0));

    let folder = tools::target().join("bench-image");
    let warm = warm(&folder)?;
    table.rows.push(row("rebuild after a change of the replica only", "min", warm / 60.0, 3.0));
    if full {
        let (time, space) = empty(&folder, &mut table)?;
        let whole = row("whole production build from an empty cache", "min", time / 60.0, 60.0);
        table.rows.push(Row { reference: Some(IC_OS_MINUTES), ..whole });
        let room = row("room that it takes at most", "GB", space / 1e9, 15.0);
        table.rows.push(Row { reference: Some(IC_OS_GB), ..room });
    } else {
        table.notes.push("whole build from an empty cache: not measured; give --full".into());
        let production = tools::release_dir("production");
        if production.join("manifest.json").is_file() {
            sizes(&production, "production", &mut table)?;
        }
    }
    table.notes.push(format!("processors: {}", std::thread::available_parallelism()?));
    table.notes.push("builds: guest, host, disk and installer; inputs were fetched before; the rebuild is one of the virtual profile".into());
    Ok(table)
}

fn row(figure: &str, unit: &'static str, ours: f64, target: f64) -> Row {
    Row { figure: figure.to_owned(), unit, ours, reference: None, target, of_ratio: false }
}

/// Sizes as shipped, by the manifest, and what can be executed.
fn sizes(release: &Path, profile: &str, table: &mut Table) -> Result<()> {
    let read = |name: &str| -> Result<Value> {
        let path = release.join(name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    };
    let manifest = read("manifest.json")?;
    let (guest, host) = (&manifest["signed"]["guest"]["files"], &manifest["signed"]["host"]);
    let total = |files: &Value, names: &[&str]| -> Result<f64> {
        let mut sizes = names.iter().map(|name| files[name]["size"].as_u64());
        let sum = sizes.try_fold(0, |sum, size| Some(sum + size?)).context("a file without a size")?;
        Ok(sum as f64 / 1e6)
    };
    let name = |what: &str| format!("{what}, {profile}");
    let guest = total(guest, &["kernel", "initrd", "firmware"])?;
    let slot = total(host, &["uki", "root", "root_hash_tree"])?;
    let installer =
        std::fs::metadata(release.join("installer.img")).context("installer.img")?.len() as f64 / 1e6;
    let of_release = [
        ("guest: kernel, initrd, firmware", guest, 20.0),
        ("slot of the host", slot, 80.0),
        ("installer", installer, 150.0),
    ];
    for ((what, size, target), theirs) in of_release.into_iter().zip(IC_OS_MB) {
        table.rows.push(Row { reference: Some(theirs), ..row(&name(what), "MB", size, target) });
    }
    let list = read("host.cdx.json")?;
    let packages = list["components"].as_array().context("the list of the host's files is empty")?;
    let files = packages.iter().flat_map(|package| package["components"].as_array().into_iter().flatten());
    let executable = |file: &&Value| {
        let properties = file["properties"].as_array().into_iter().flatten();
        properties.into_iter().any(|p| p["name"] == "redoubt:executable" && p["value"] == "true")
    };
    let names: Vec<&str> = files.filter(executable).filter_map(|file| file["name"].as_str()).collect();
    table.notes.push(format!("executables of the host, {profile}: {} ({})", names.len(), names.join(", ")));
    Ok(())
}

fn redoubt(words: &[&str]) -> Command {
    let mut command = tools::command(tools::binary("redoubt"));
    command.args(["--json", "image"]).args(words);
    command
}

/// Seconds of a run.
fn timed(command: &mut Command) -> Result<(f64, String)> {
    let started = Instant::now();
    let output = tools::output(command)?;
    Ok((started.elapsed().as_secs_f64(), output))
}

fn verify_only(release: &Path) -> Result<f64> {
    let (time, output) = timed(redoubt(&["reproduce", "--verify-only"]).arg(release))?;
    let verdict: Value = serde_json::from_str(&output)?;
    ensure!(verdict["equal"] == true, "the release is not what its manifest says: {verdict}");
    Ok(time)
}

/// A build of the copy of this checkout in `folder`, all that cargo writes in `target` there.
fn build(folder: &Path, profile: &str, target: &Path) -> Command {
    let mut command = redoubt(&["build", "--profile", profile, "--repository"]);
    command.arg(folder.join("checkout")).arg("--out").arg(target.join("out")).env("CARGO_TARGET_DIR", target);
    command
}

/// Seconds of a rebuild after the replica alone was changed.
fn warm(folder: &Path) -> Result<f64> {
    changed(folder, &[]).map(|(_, _, time)| time)
}

/// Two releases that differ by one line of the replica, and the seconds that the second took. `words` are for the builds.
pub(super) fn changed(folder: &Path, words: &[&str]) -> Result<(PathBuf, PathBuf, f64)> {
    let (checkout, target) = (folder.join("checkout"), folder.join("target"));
    if checkout.exists() {
        std::fs::remove_dir_all(&checkout)?;
    }
    double_build::copy_checkout(&checkout)?;
    timed(build(folder, "virtual", &target).args(words))?;
    let (out, before) = (target.join("out"), target.join("before"));
    if before.exists() {
        std::fs::remove_dir_all(&before)?;
    }
    tools::run(Command::new("cp").arg("-r").arg(&out).arg(&before))?;
    // A change that nobody made before, so that neither cargo nor the cache knows the result.
    let source = checkout.join("replica/src/main.rs");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let text = std::fs::read_to_string(&source).with_context(|| source.display().to_string())?;
    std::fs::write(&source, format!("{text}\n#[used]\nstatic CHANGED: u128 = {now};\n"))?;
    let (time, _) = timed(build(folder, "virtual", &target).args(words))?;
    let initrd = |of: &Path| std::fs::read(of.join("initrd.zst"));
    ensure!(initrd(&before)? != initrd(&out)?, "the change did not reach the initrd");
    Ok((before, out, time))
}

/// Seconds of a whole build with nothing but the inputs, and the room in bytes that it took at most. Of the production
/// profile, since its firmware is compiled too; the sizes of what was built go into `table`.
fn empty(folder: &Path, table: &mut Table) -> Result<(f64, f64)> {
    let trust = tools::production_keys()?.join("trust");
    let anew = tempfile::Builder::new().prefix("empty-").tempdir_in(folder)?;
    let cache = anew.path().join("cache");
    double_build::copy_store(&cache)?;
    let target = anew.path().join("target");
    let mut whole = build(folder, "production", &target);
    whole.env("REDOUBT_CACHE", cache).arg("--trust").arg(trust);
    let (most, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let time = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(room(anew.path()).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_secs(20));
            }
        });
        let built = timed(&mut whole);
        done.store(true, Ordering::Relaxed);
        built
    })?
    .0;
    sizes(&target.join("out"), "production", table)?;
    Ok((time, most.into_inner() as f64))
}

/// Bytes on the disk below a folder.
fn room(folder: &Path) -> Result<u64> {
    let output =
        Command::new("du").args(["--summarize", "--block-size=1"]).arg(PathBuf::from(folder)).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
}

//! The heap: beside bare copying, sealing and hashing, in execution, and beside other embedded stores.

use super::execution::{self, Measured};
use super::plot;
use super::table::{Row, Table};
use crate::tools;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;

/// The page with the figures, and the plots beside it.
const PAGE: &str = "docs/heap-figures.md";
const TARGETS: &str = "docs/heap-targets.svg";
const RIVALS: &str = "docs/heap-rivals.svg";

/// What a store needs for a transaction, as `heap-rivals` prints it.
#[derive(Deserialize)]
struct Rival {
    store: String,
    directory: String,
    pages: u32,
    us: f64,
}

/// Our store in the comparison.
const OURS: &str = "heap, sealed";

/// Measures; writes the page and its plots if asked to.
pub(crate) fn measure(docs: bool) -> Result<Table> {
    let before = load()?;
    let bench = ["bench", "--quiet", "--locked", "-p", "heap", "--bench", "heap"];
    let text = tools::output(tools::command("cargo").args(bench))?;
    let measured: Measured = serde_json::from_str(&text).context("the benchmark of the heap")?;
    let mut table = measured.table();
    let limits = limits(&table.rows);
    let execution = execution::measure()?;
    table.rows.extend(execution.rows);
    table.notes.extend(execution.notes);
    let rivals = rivals()?;
    let targets = table.rows.len();
    table.rows.extend(compared(&rivals));
    table.notes.push(
        "stores: wall time of a transaction of random pages of 4 KiB, durable on return (redb, LMDB: default; fjall: \
         SyncAll; sled: flush; SQLite: WAL, synchronous=FULL), means of 20, the middle one of these, maintenance included; sled's flush is a sync_file_range, \
         which does not empty the disk's own cache, so on a disk it promises less than the others; /dev/shm stands for NVRAM, \
         the other directory is on this machine's disk"
            .into(),
    );
    table.notes.extend(limits);
    table.notes.push(format!("load of the machine: {before} before, {} after", load()?));
    if docs {
        let root = tools::repository();
        write(&root.join(TARGETS), &plot::targets(&table.rows[..targets]))?;
        write(&root.join(RIVALS), &plot::rivals(&groups(&rivals)))?;
        write(&root.join(PAGE), &page(&table)?)?;
    }
    Ok(table)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What the machine does at most, by the references of the same run.
fn limits(rows: &[Row]) -> Vec<String> {
    let reference = |figure: &str| {
        let found = rows.iter().find(|row| row.figure.starts_with(figure));
        found.and_then(|row| row.reference)
    };
    let bytes = 1000.0 * 4096.0;
    let copy = reference("commit of 1000 pages, plain");
    let seal = reference("commit of 1000 pages, sealed").zip(copy).map(|(both, copy)| both - copy);
    let hash = reference("Merkle root of 1000");
    [("copying", copy), ("AES-256-GCM", seal), ("BLAKE3", hash)]
        .into_iter()
        .filter_map(|(what, time)| Some((what, bytes / time? / 1e3)))
        .map(|(what, speed)| {
            format!("limit of this machine in this run, one thread, {what}: {speed:.1} GB/s")
        })
        .collect()
}

fn rivals() -> Result<Vec<Rival>> {
    let manifest = tools::repository().join("replica/heap/rivals/Cargo.toml");
    let disk = tools::target().join("rivals");
    std::fs::create_dir_all(&disk).with_context(|| format!("cannot make {}", disk.display()))?;
    let mut cargo = tools::command("cargo");
    cargo.args(["run", "--quiet", "--release", "--locked", "--manifest-path"]).arg(manifest);
    cargo.arg("--target-dir").arg(tools::target()).args(["--", "/dev/shm"]).arg(&disk);
    serde_json::from_str(&tools::output(&mut cargo)?).context("the comparison with other stores")
}

/// Ours beside each other store, on the same medium and with as many pages.
fn compared(rivals: &[Rival]) -> Vec<Row> {
    let mut rows = Vec::new();
    for ours in rivals.iter().filter(|rival| rival.store == OURS) {
        let same = |rival: &&Rival| rival.directory == ours.directory && rival.pages == ours.pages;
        for other in rivals.iter().filter(same).filter(|rival| !rival.store.starts_with("heap")) {
            rows.push(Row {
                figure: format!("{} pages, {}: {OURS} / {}", ours.pages, medium(ours), other.store),
                unit: "us",
                ours: ours.us,
                reference: Some(other.us),
                target: 1.0,
                of_ratio: true,
            });
        }
    }
    rows
}

fn medium(rival: &Rival) -> &'static str {
    if rival.directory == "/dev/shm" { "memory" } else { "disk" }
}

/// The stores' times by medium and number of pages.
fn groups(rivals: &[Rival]) -> Vec<plot::Group> {
    let mut groups: Vec<plot::Group> = Vec::new();
    for rival in rivals {
        let name = format!("{}, {} pages", medium(rival), rival.pages);
        let bar = (rival.store.clone(), rival.us);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.bars.push(bar),
            None => groups.push(plot::Group { name, bars: vec![bar] }),
        }
    }
    groups
}

fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

fn page(table: &Table) -> Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches(['\t', ':', ' ']);
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let rows: String = table.rows.iter().map(Row::markdown).collect();
    let notes: String = table.notes.iter().map(|note| format!("- {note}\n")).collect();
    Ok(format!(
        "# Figures of the heap\n\nMade by `cargo xtask bench heap --docs` on {count} processors ({model}); nothing here \
         is written by hand.\n\n![Figures beside their targets](heap-targets.svg)\n\n![Durable transactions in \
         embedded stores](heap-rivals.svg)\n\n| figure | ours | reference | ratio | target | verdict |\n\
         |---|---|---|---|---|---|\n{rows}\n{notes}"
    ))
}

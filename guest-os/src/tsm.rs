//! Attestation reports from Linux' configfs-tsm (Documentation/ABI/testing/configfs-tsm).
//!
//! The same code runs on hardware, where the kernel's driver serves the files, and in the virtual profile, where the
//! simulated PSP's file system is mounted over the directory.

use attestation::{ParseError, Report};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where the kernel has the interface.
pub const DIRECTORY: &str = "/sys/kernel/config/tsm/report";
/// The only provider whose reports are understood.
const PROVIDER: &str = "sev_guest";
/// How often to try when somebody else interfered or the PSP was busy.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(50);

/// A report with the certificate table that came along.
#[derive(Debug, Clone)]
pub struct Quote {
    /// The report, parsed.
    pub report: Report,
    /// `auxblob`: the certificate table, empty when the host gave none.
    pub auxiliary: Vec<u8>,
}

/// No report could be had.
#[derive(Debug, thiserror::Error)]
pub enum TsmError {
    /// A file failed.
    #[error("{step} at {path} failed: {source}; is this an SEV-SNP guest?")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another kind of machine.
    #[error("the kernel reports as {0:?}, expected {PROVIDER:?}; start the guest on SEV-SNP")]
    Provider(String),
    /// The report is not one.
    #[error("the report from the PSP cannot be read: {0}")]
    Parse(#[from] ParseError),
    /// The report binds something else than what was asked.
    #[error("the report from the PSP does not hold the data it was asked to hold; start the guest again")]
    ReportData,
    /// Somebody writes to the same report.
    #[error("the report at {0} was changed by somebody else {ATTEMPTS} times; start the guest again")]
    Contended(PathBuf),
}

/// The interface.
#[derive(Debug)]
pub struct Tsm {
    directory: PathBuf,
    /// Each request works in a directory of its own.
    requests: AtomicU64,
}

impl Tsm {
    /// Uses the interface at `directory`.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), requests: AtomicU64::new(0) }
    }

    /// Gets a report that holds `report_data`.
    pub fn quote(&self, report_data: &[u8; 64]) -> Result<Quote, TsmError> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let directory = self.directory.join(format!("guest-os-{number}"));
        fs::create_dir(&directory).map_err(failed("making a report", &directory))?;
        let quote = quote_in(&directory, report_data);
        // Fails only when somebody else removed it already.
        let _ = fs::remove_dir(&directory);
        quote
    }
}

fn quote_in(directory: &Path, report_data: &[u8; 64]) -> Result<Quote, TsmError> {
    let provider = read_text(directory, "provider")?;
    if provider != PROVIDER {
        return Err(TsmError::Provider(provider));
    }
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        let Some([report, auxiliary]) = attempt_in(directory, report_data)? else { continue };
        let report = Report::parse(&report)?;
        if report.report_data() != *report_data {
            return Err(TsmError::ReportData);
        }
        return Ok(Quote { report, auxiliary });
    }
    Err(TsmError::Contended(directory.to_owned()))
}

/// One write and its two reads, report and certificate table; nothing when another writer came between or the PSP was busy.
fn attempt_in(directory: &Path, report_data: &[u8; 64]) -> Result<Option<[Vec<u8>; 2]>, TsmError> {
    let before = generation(directory)?;
    let busy = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        )
    };
    let inblob = directory.join("inblob");
    match fs::write(&inblob, report_data) {
        Err(error) if busy(&error) => return Ok(None),
        result => result.map_err(failed("writing", &inblob))?,
    }
    let mut blobs = [Vec::new(), Vec::new()];
    for (name, blob) in ["outblob", "auxblob"].into_iter().zip(&mut blobs) {
        let path = directory.join(name);
        match fs::read(&path) {
            Err(error) if busy(&error) => return Ok(None),
            result => *blob = result.map_err(failed("reading", &path))?,
        }
    }
    Ok((generation(directory)? == before.wrapping_add(1)).then_some(blobs))
}

fn generation(directory: &Path) -> Result<u64, TsmError> {
    let text = read_text(directory, "generation")?;
    text.parse().map_err(|_| TsmError::Io {
        step: "reading",
        path: directory.join("generation"),
        source: io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no number")),
    })
}

fn read_text(directory: &Path, name: &str) -> Result<String, TsmError> {
    let path = directory.join(name);
    let text = fs::read_to_string(&path).map_err(failed("reading", &path))?;
    Ok(text.trim_end().to_owned())
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TsmError {
    move |source| TsmError::Io { step, path: path.to_owned(), source }
}

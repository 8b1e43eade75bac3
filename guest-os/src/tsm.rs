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
/// The guest runs at the highest privilege level and asks for reports of it.
const VMPL: u32 = 0;
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
    /// Something runs above this guest, or the report is another level's.
    #[error("the report from the PSP is of VMPL {0}, this guest runs at {VMPL}; start it without an SVSM")]
    Vmpl(u32),
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
        let quote = quote_in(&mut Files, &directory, report_data);
        // Fails only when somebody else removed it already.
        let _ = fs::remove_dir(&directory);
        quote
    }
}

/// The attributes of one report, so that tests can interfere between two of them.
trait Attributes {
    fn read(&mut self, path: &Path) -> io::Result<Vec<u8>>;
    fn write(&mut self, path: &Path, value: &[u8]) -> io::Result<()>;
}

struct Files;

impl Attributes for Files {
    fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn write(&mut self, path: &Path, value: &[u8]) -> io::Result<()> {
        fs::write(path, value)
    }
}

fn quote_in(
    files: &mut impl Attributes,
    directory: &Path,
    report_data: &[u8; 64],
) -> Result<Quote, TsmError> {
    let provider = read_text(files, directory, "provider")?;
    if provider != PROVIDER {
        return Err(TsmError::Provider(provider));
    }
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        let Some([report, auxiliary]) = attempt_in(files, directory, report_data)? else { continue };
        let report = Report::parse(&report)?;
        if report.report_data() != *report_data {
            return Err(TsmError::ReportData);
        }
        // The files say which level was asked for; the report is signed.
        if report.vmpl() != VMPL {
            return Err(TsmError::Vmpl(report.vmpl()));
        }
        return Ok(Quote { report, auxiliary });
    }
    Err(TsmError::Contended(directory.to_owned()))
}

/// Writes the level and the data and reads report and certificate table; nothing when another writer came between or
/// the PSP was busy. Each write adds one to the generation, so a report is of these writes if it is two higher after it.
fn attempt_in(
    files: &mut impl Attributes,
    directory: &Path,
    report_data: &[u8; 64],
) -> Result<Option<[Vec<u8>; 2]>, TsmError> {
    let busy = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        )
    };
    let before = generation(files, directory)?;
    for (name, value) in [("privlevel", VMPL.to_string().as_bytes()), ("inblob", report_data)] {
        let path = directory.join(name);
        match files.write(&path, value) {
            Err(error) if busy(&error) => return Ok(None),
            result => result.map_err(failed("writing", &path))?,
        }
    }
    let mut blobs = [Vec::new(), Vec::new()];
    for (name, blob) in ["outblob", "auxblob"].into_iter().zip(&mut blobs) {
        let path = directory.join(name);
        match files.read(&path) {
            Err(error) if busy(&error) => return Ok(None),
            result => *blob = result.map_err(failed("reading", &path))?,
        }
    }
    Ok((generation(files, directory)? == before.wrapping_add(2)).then_some(blobs))
}

fn generation(files: &mut impl Attributes, directory: &Path) -> Result<u64, TsmError> {
    let text = read_text(files, directory, "generation")?;
    text.parse().map_err(|_| TsmError::Io {
        step: "reading",
        path: directory.join("generation"),
        source: io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no number")),
    })
}

fn read_text(files: &mut impl Attributes, directory: &Path, name: &str) -> Result<String, TsmError> {
    let path = directory.join(name);
    let bytes = files.read(&path).map_err(failed("reading", &path))?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TsmError {
    move |source| TsmError::Io { step, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attestation::report::offset;

    /// The driver's side: reports of version 2 that hold what was written last.
    #[derive(Default)]
    struct Driver {
        generation: u64,
        privlevel: u8,
        inblob: Vec<u8>,
        reads: usize,
        /// How often somebody else writes after the guest read `outblob`.
        others: usize,
        /// How often the PSP is busy.
        busy: usize,
        /// Ignores the level and the data that are asked for.
        vmpl: Option<u8>,
        data: Option<u8>,
    }

    impl Attributes for Driver {
        fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
            match path.file_name().unwrap().to_str().unwrap() {
                "provider" => Ok(b"sev_guest\n".to_vec()),
                "generation" => Ok(format!("{}\n", self.generation).into_bytes()),
                "auxblob" => Ok(b"table".to_vec()),
                "outblob" => {
                    self.reads += 1;
                    if self.busy > 0 {
                        self.busy -= 1;
                        return Err(io::ErrorKind::ResourceBusy.into());
                    }
                    let mut report = vec![0; attestation::report::LENGTH];
                    report[offset::VERSION] = 2;
                    report[offset::SIGNATURE_ALGO] = 1;
                    report[offset::VMPL] = self.vmpl.unwrap_or(self.privlevel);
                    report[offset::REPORT_DATA..][..64].copy_from_slice(&self.inblob);
                    if let Some(data) = self.data {
                        report[offset::REPORT_DATA] = data;
                    }
                    if self.others > 0 {
                        self.others -= 1;
                        self.generation += 1;
                    }
                    Ok(report)
                }
                other => panic!("{other}"),
            }
        }

        fn write(&mut self, path: &Path, value: &[u8]) -> io::Result<()> {
            self.generation += 1;
            match path.file_name().unwrap().to_str().unwrap() {
                "privlevel" => self.privlevel = std::str::from_utf8(value).unwrap().parse().unwrap(),
                "inblob" => self.inblob = value.to_vec(),
                other => panic!("{other}"),
            }
            Ok(())
        }
    }

    fn quote(driver: &mut Driver) -> Result<Quote, TsmError> {
        quote_in(driver, Path::new("report/x"), &[7; 64])
    }

    #[test]
    fn a_report_holds_what_was_asked_at_the_own_level() {
        let mut driver = Driver { privlevel: 3, ..Driver::default() };
        let quote = quote(&mut driver).unwrap();
        assert_eq!((quote.report.report_data(), quote.report.vmpl()), ([7; 64], 0));
        assert_eq!((quote.auxiliary.as_slice(), driver.reads), (&b"table"[..], 1));
    }

    #[test]
    fn interference_is_noticed_and_tried_again_for_a_while() {
        let mut driver = Driver { others: 2, busy: 2, ..Driver::default() };
        quote(&mut driver).unwrap();
        assert_eq!(driver.reads, 5);
        let mut driver = Driver { others: ATTEMPTS, ..Driver::default() };
        assert!(matches!(quote(&mut driver), Err(TsmError::Contended(_))));
        let mut driver = Driver { busy: ATTEMPTS, ..Driver::default() };
        assert!(matches!(quote(&mut driver), Err(TsmError::Contended(_))));
        assert_eq!(driver.reads, ATTEMPTS);
    }

    #[test]
    fn a_report_of_something_else_is_refused() {
        let error = quote(&mut Driver { data: Some(8), ..Driver::default() });
        assert!(matches!(error, Err(TsmError::ReportData)));
        let error = quote(&mut Driver { vmpl: Some(2), ..Driver::default() });
        assert!(matches!(error, Err(TsmError::Vmpl(2))));
    }
}

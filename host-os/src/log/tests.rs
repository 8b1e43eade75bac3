use super::*;
use std::process::{Command, Stdio};
use tracing_subscriber::layer::SubscriberExt;

fn entry(message: impl Into<String>) -> Entry {
    Entry { message: message.into(), ..Entry::now("INFO", "test") }
}

/// A log with these messages.
pub(crate) fn write(path: &Path, messages: &[&str]) {
    let log = Log::open(path).unwrap();
    messages.iter().for_each(|message| log.add(&entry(*message), false));
}

fn messages(entries: Vec<Entry>) -> Vec<String> {
    entries.into_iter().map(|entry| entry.message).collect()
}

#[test]
fn what_the_program_says_is_kept_with_its_fields_and_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = Log::open(&path).unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(log), || {
        tracing::info!(port = 8443_u64, name = "a", "listens");
        tracing::error!(error = %io::Error::other("no"), "fails");
    });
    let found = last(&path, 10).unwrap();
    assert_eq!((found[0].level.as_str(), found[0].message.as_str()), ("INFO", "listens"));
    assert_eq!((&found[0].fields["port"], &found[0].fields["name"]), (&8443.into(), &"a".into()));
    assert_eq!(found[0].fields.len(), 2);
    assert_eq!(found[1].fields["error"], "no");
    assert!(found[1].time_ms >= found[0].time_ms && found[1].target.contains("log"));
    let log = Log::open(&path).unwrap();
    let mut reader = Reader::open(&path).unwrap();
    assert_eq!(reader.read().unwrap().len(), 2);
    log.add(&entry("later"), false);
    assert_eq!(messages(reader.read().unwrap()), ["later"]);
    assert_eq!(reader.read().unwrap(), []);
    assert_eq!(messages(last(&path, 2).unwrap()), ["fails", "later"]);
}

#[test]
fn it_stays_in_its_bounds_and_tells_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = Log::open(&path).unwrap();
    let mut reader = Reader::open(&path).unwrap();
    log.add(&entry("first"), false);
    assert_eq!(messages(reader.read().unwrap()), ["first"]);
    let long = "x".repeat(1 << 20);
    for number in 0..1500 {
        log.add(&entry(format!("{number} {}", &long[..8000])), number % 100 == 0);
    }
    // Longer than a record may be: its words are cut, and it is an entry still.
    let mut large = entry("large");
    large.fields.insert("much".into(), long.into());
    log.add(&large, true);
    log.sync().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE as u64);
    use std::os::unix::fs::MetadataExt;
    let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(blocks >= SIZE as u64, "{blocks} bytes are the file's own: a full disk would end the log");
    let found = messages(reader.read().unwrap());
    assert!(
        found[0].ends_with("entries are missing here: overwritten, or lost in a power cut"),
        "{}",
        found[0]
    );
    assert_eq!(found.last().unwrap(), "large");
    let numbers: Vec<u64> = found[1..found.len() - 1]
        .iter()
        .map(|text| text.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(
        numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]) && numbers.len() > 900,
        "{}",
        numbers.len()
    );
}

#[test]
fn what_was_torn_is_left_out_and_the_log_goes_on_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = Log::open(&path).unwrap();
    for number in 0..3 {
        log.add(&entry(format!("{number}")), true);
    }
    drop(log);
    let mut bytes = std::fs::read(&path).unwrap();
    let torn = ring::scan(&bytes)[2].at;
    bytes[torn + 40] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let log = Log::open(&path).unwrap();
    assert_eq!(messages(last(&path, 9).unwrap()), ["0", "1"]);
    log.add(&entry("again"), true);
    assert_eq!(messages(last(&path, 9).unwrap()), ["0", "1", "again"]);
    // Not a log at all: it becomes one.
    std::fs::write(&path, "rubbish").unwrap();
    Log::open(&path).unwrap().add(&entry("anew"), true);
    assert_eq!(messages(last(&path, 9).unwrap()), ["anew"]);
}

/// Whoever is killed has lost nothing that he said: it was given to the kernel at once.
#[test]
fn a_killed_writer_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    if let Some(path) = std::env::var_os("LOG_WRITER") {
        let log = Log::open(Path::new(&path)).unwrap();
        for number in 0..100 {
            log.add(&entry(format!("{number}")), false);
        }
        // Nobody cleans up.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "log::tests::a_killed_writer_loses_nothing"])
        .env("LOG_WRITER", &path)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(9), "{status}");
    assert_eq!(last(&path, 1000).unwrap().len(), 100);
}

/// A disk without room: the log has its room already, and says what it cannot write only where it never had any.
#[test]
fn a_full_disk_does_not_end_the_log() {
    let done = crate::network::namespace::in_namespace(|| {
        use nix::mount::{MsFlags, mount};
        let dir = Path::new("/tmp");
        let none: Option<&str> = None;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("size=9m")).unwrap();
        let path = dir.join("log");
        let log = Log::open(&path).unwrap();
        // The rest of the disk goes to somebody else.
        let full = std::fs::write(dir.join("full"), vec![1; 9 << 20]).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(nix::libc::ENOSPC));
        for number in 0..2000 {
            log.add(&entry(format!("{number} {}", "y".repeat(8000))), false);
        }
        log.sync().unwrap();
        assert!(messages(last(&path, 1).unwrap())[0].starts_with("1999 "));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(dir.join("more"), vec![1; 9 << 20]).unwrap_err();
        let error = Log::open(&path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC), "{error}");
    });
    done.unwrap_or_else(|why| crate::network::namespace::skip(&why));
}

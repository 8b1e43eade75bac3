//! The file system, really mounted: what a program sees of configfs-tsm. Needs root and /dev/fuse, else it says so.
#![cfg(feature = "guest")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a failure ends the test")]

use simulated_psp::guest::{Client, mount};
use simulated_psp::protocol::{Blob, Bytes, REPORT_LENGTH, Request, Response};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const EFBIG: i32 = 27;

/// A PSP whose reports begin with REPORT_DATA and the VMPL.
fn client() -> Client<File> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        while let Ok(request) = host_guest::read_frame(&mut theirs) {
            let Request::Report { report_data, vmpl } = request else { panic!("{request:?}") };
            let mut report = [0; REPORT_LENGTH];
            report[..64].copy_from_slice(&report_data.0);
            report[64] = vmpl as u8;
            let response =
                Response::Report { report: Box::new(Bytes(report)), certificates: Blob(b"table".to_vec()) };
            host_guest::write_frame(&mut theirs, &response).unwrap();
        }
    });
    Client::new(OwnedFd::from(ours).into())
}

fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().unwrap().raw_os_error().unwrap()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn programs_see_what_the_kernel_would_show() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().metadata().unwrap().uid() == 0;
    if !root || File::options().read(true).write(true).open("/dev/fuse").is_err() {
        // Past what captures the output of tests.
        let _ = writeln!(std::io::stderr(), "SKIPPED: mounting needs root and /dev/fuse");
        return;
    }
    let mounted = mount(directory.path(), Arc::new(Mutex::new(client()))).unwrap();
    let report = directory.path().join("one");
    fs::create_dir(&report).unwrap();
    assert_eq!(errno(fs::create_dir(&report)), EEXIST);

    let mut names: Vec<_> = fs::read_dir(&report).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let expected = ["auxblob", "generation", "inblob", "outblob", "privlevel", "privlevel_floor", "provider"];
    assert_eq!(names, expected);
    assert_eq!(text(&report.join("provider")), "sev_guest\n");
    assert_eq!(text(&report.join("privlevel_floor")), "0\n");
    assert_eq!(text(&report.join("generation")), "0\n");

    // Nothing to report on yet.
    assert_eq!(errno(fs::read(report.join("outblob"))), EINVAL);
    fs::write(report.join("inblob"), [7; 64]).unwrap();
    assert_eq!(text(&report.join("generation")), "1\n");
    let first = fs::read(report.join("outblob")).unwrap();
    assert_eq!((first.len(), &first[..65]), (REPORT_LENGTH, &[&[7; 64][..], &[0]].concat()[..]));
    assert_eq!(fs::read(report.join("auxblob")).unwrap(), b"table");
    fs::write(report.join("privlevel"), "2\n").unwrap();
    assert_eq!(fs::read(report.join("outblob")).unwrap()[64], 2);
    assert_eq!(text(&report.join("generation")), "2\n");

    // An open file keeps the report that it began with.
    let mut open = File::open(report.join("outblob")).unwrap();
    let mut begin = [0; 64];
    open.read_exact(&mut begin).unwrap();
    fs::write(report.join("inblob"), [8; 64]).unwrap();
    let mut rest = Vec::new();
    open.read_to_end(&mut rest).unwrap();
    assert_eq!((begin, rest.len(), rest[0]), ([7; 64], REPORT_LENGTH - 64, 2));
    assert_eq!(fs::read(report.join("outblob")).unwrap()[..64], [8; 64]);

    // Refusals.
    assert_eq!(errno(fs::write(report.join("privlevel"), "4")), EINVAL);
    assert_eq!(errno(fs::write(report.join("inblob"), [0; 65])), EFBIG);
    assert_eq!(errno(fs::read(report.join("inblob"))), EACCES);
    assert_eq!(errno(OpenOptions::new().write(true).open(report.join("outblob"))), EACCES);
    assert!(File::create(report.join("other")).is_err());
    assert!(fs::remove_file(report.join("inblob")).is_err());

    // Two reports know nothing of each other, and a removed one is gone.
    let second = directory.path().join("two");
    fs::create_dir(&second).unwrap();
    assert_eq!(text(&second.join("generation")), "0\n");
    let mut late = OpenOptions::new().write(true).open(second.join("privlevel")).unwrap();
    fs::remove_dir(&second).unwrap();
    assert_eq!(errno(late.write_all(b"1")), ENOENT);
    assert_eq!(errno(fs::read(second.join("provider"))), ENOENT);
    fs::create_dir(&second).unwrap();
    assert_eq!(text(&second.join("generation")), "0\n");

    // Busy while files are open.
    drop((open, late));
    drop(mounted);
    assert!(!report.exists(), "still mounted");
}

//! The program: exit codes, inherited descriptors, signs of life, and the end on SIGTERM.

#![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

fn replica(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replica"));
    command.arg("--config").arg(config).env_remove("RUST_LOG");
    command
}

/// Exit code and standard error with this configuration.
fn refused(text: &str) -> (i32, String) {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("replica.toml");
    std::fs::write(&config, text.replace("DIR", directory.path().to_str().unwrap())).unwrap();
    let output = replica(&config).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

const GOOD: &str = "listen = \"127.0.0.1:0\"\ntls = false\nsecret_file = \"DIR/secret\"\ncreate_secret = true\n\
                    [heap]\nkind = \"file\"\npath = \"DIR/heap\"\nsize = 16777216\n";

#[test]
fn exit_codes_say_what_went_wrong() {
    let (code, text) = refused("listen = 1");
    assert_eq!(code, 3, "{text}");
    let (code, text) = refused(&GOOD.replace("127.0.0.1:0", "[::]:0"));
    assert!(code == 3 && text.contains("plain HTTP is for loopback only"), "{code}: {text}");
    let (code, text) = refused(&GOOD.replace("create_secret = true\n", ""));
    assert!(code == 4 && text.contains("the node secret cannot be read"), "{code}: {text}");
    let (code, text) = refused(&GOOD.replace("DIR/heap", "DIR/nowhere/heap"));
    assert!(code == 4 && text.contains("because: "), "{code}: {text}");
    let (code, text) =
        refused(&GOOD.replace("secret_file = \"DIR/secret\"\ncreate_secret = true", "secret_fd = 999"));
    assert!(code == 4 && text.contains("secret_fd (999) is not an open file descriptor"), "{code}: {text}");
    let output = Command::new(env!("CARGO_BIN_EXE_replica")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn secret_and_signs_of_life_go_through_inherited_pipes() {
    let directory = tempfile::tempdir().unwrap();
    let (secret, secret_writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let (signs, ready) = pipe2(OFlag::O_CLOEXEC).unwrap();
    File::from(secret_writer).write_all(&[0x51; 32]).unwrap();
    let text = GOOD.replace("DIR", directory.path().to_str().unwrap()).replace(
        &format!("secret_file = \"{}/secret\"\ncreate_secret = true", directory.path().display()),
        &format!("secret_fd = {}\nready_fd = {}\nlog = \"json\"", secret.as_raw_fd(), ready.as_raw_fd()),
    );
    let config = directory.path().join("replica.toml");
    std::fs::write(&config, text).unwrap();
    for inherited in [secret.as_fd(), ready.as_fd()] {
        fcntl(inherited, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    }
    let mut child = replica(&config).stdout(Stdio::piped()).spawn().unwrap();
    drop((secret, ready));

    let mut lines = BufReader::new(File::from(signs)).lines().map(Result::unwrap);
    assert!(lines.next().is_some_and(|line| line.starts_with("READY ")));
    assert!(lines.next().is_some_and(|line| line.starts_with("ALIVE ")));
    let asked = Instant::now();
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(8));
    let mut log = String::new();
    child.stdout.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.lines().all(|line| line.starts_with('{')), "{log}");
    assert!(!log.contains(&"51".repeat(8)) && !log.contains("QQQQ"), "the log shows the secret");
}

#[test]
fn the_heap_goes_on_under_another_key() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("replica.toml");
    let configure = |more: &str| {
        let text = GOOD.replace("DIR", directory.path().to_str().unwrap());
        std::fs::write(&config, format!("{text}{more}\n")).unwrap();
    };
    let start = || {
        let mut child = replica(&config).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        (child, lines)
    };
    let say = |child: &std::process::Child, signal| kill(Pid::from_raw(child.id() as i32), signal).unwrap();

    configure("");
    let (mut child, mut log) = start();
    assert!(log.any(|line| line.contains(" ready ") || line.contains("ready subnet")));
    configure("key = ");
    say(&child, Signal::SIGHUP);
    assert!(
        log.any(|line| line.contains("stays under its key")),
        "a configuration that is none changes nothing"
    );
    configure("key = 1");
    say(&child, Signal::SIGHUP);
    assert!(log.any(|line| line.contains("goes on under another key") && line.contains("key=1")));
    say(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));

    // The former key opens it no more, unless it is named as such.
    configure("key = 0");
    let (child, _) = start();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8(output.stderr).unwrap().contains("because: "));
    configure("key = 2\nformer_key = 1");
    let (mut child, mut log) = start();
    assert!(log.any(|line| line.contains("heap open") && line.contains("rekeyed=true")));
    say(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    configure("key = 2");
    let (mut child, mut log) = start();
    assert!(log.any(|line| line.contains("heap open") && line.contains("rekeyed=false")));
    say(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

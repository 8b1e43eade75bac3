//! What compilers see, and do not see, inside the build root. Needs the build root in the cache, where building any
//! release puts it.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test says where it failed")]

mod skip;

use image_build::{
    cache::Cache,
    fetch::Sources,
    inputs::Inputs,
    root,
    sandbox::{Sandbox, SandboxError, Surroundings},
};
use std::{net::TcpListener, path::Path, process::Command};

/// The build root, from the store alone. Without it the test is skipped, except where a release was built before.
fn build_root() -> Option<root::BuildRoot> {
    let sources = Sources::only(Vec::new());
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let cache = Cache::open().unwrap();
    let inputs = Inputs::open(repository, &cache, sources).unwrap();
    match root::open(&cache, &inputs) {
        Ok(root) => Some(root),
        Err(error) if std::env::var_os("REDOUBT_RELEASE").is_some() => panic!("no build root: {error}"),
        Err(error) => {
            skip::skip(&format!("no build root here; run 'redoubt image fetch' first ({error})"));
            None
        }
    }
}

fn run(root: &root::BuildRoot, surroundings: &Surroundings, script: &str) -> Result<String, SandboxError> {
    Sandbox::new(root, surroundings).run("the test", &["bash", "-c", script])
}

#[test]
fn there_is_no_network_not_even_this_machine() {
    let Some(root) = build_root() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    // The same program reaches the listener from outside, so it is the sandbox that stops it.
    assert!(Command::new("bash").args(["-c", &connect]).status().unwrap().success());
    let usual = Surroundings::usual();
    let refused = run(&root, &usual, &connect).unwrap_err();
    assert!(matches!(&refused, SandboxError::Failed { tail, .. } if tail.contains("refused")), "{refused}");
    let outside = run(&root, &usual, "exec 3<>/dev/tcp/192.0.2.1/80").unwrap_err();
    assert!(
        matches!(&outside, SandboxError::Failed { tail, .. } if tail.contains("unreachable")),
        "{outside}"
    );
    assert_eq!(run(&root, &usual, "ls /sys/class/net 2>/dev/null; tail -n +2 /proc/net/route").unwrap(), "");
}

#[test]
fn user_host_mask_places_and_environment_are_fixed() {
    let Some(root) = build_root() else { return };
    let seen = run(
        &root,
        &Surroundings::usual(),
        "id -u; id -g; uname -n; umask; pwd; env | grep -v ^SHLVL | grep -v ^_= | grep -v ^PWD | grep -v ^OLDPWD | sort",
    );
    assert_eq!(
        seen.unwrap(),
        "1000\n1000\nbuild\n0022\n/\nHOME=/tmp\nLC_ALL=C\nPATH=/rust/bin:/usr/bin:/usr/sbin\n\
         SOURCE_DATE_EPOCH=1767225600\nTZ=UTC\nUSER=build\n"
    );
    let varied = run(&root, &Surroundings::varied(), "id -u; uname -n; umask; date +%Z; date +%Y").unwrap();
    let now = run(&root, &Surroundings::usual(), "date +%Y").unwrap();
    let lines: Vec<&str> = varied.lines().collect();
    assert_eq!(lines[..4], ["4711", "elsewhere", "0077", "+0545"]);
    assert_ne!(lines[4], now.trim(), "the clock was not moved");
}

#[test]
fn nothing_of_this_machine_is_there_and_the_root_cannot_be_changed() {
    let Some(root) = build_root() else { return };
    let usual = Surroundings::usual();
    let home = std::env::var("HOME").unwrap();
    assert_eq!(
        run(&root, &usual, &format!("ls {home} /build /rust /home 2>/dev/null | grep -v :$ | sort -u"))
            .unwrap()
            .trim(),
        ""
    );
    assert_eq!(
        run(&root, &usual, "ls /proc | grep -c '^[0-9]'").unwrap().trim().parse::<u32>().unwrap() / 10,
        0
    );
    let refused = run(&root, &usual, "touch /usr/bin/more-of-it").unwrap_err();
    assert!(refused.to_string().contains("Read-only file system"), "{refused}");
}

/// The part of the next test that runs where namespaces are forbidden.
#[test]
fn inner_without_namespaces() {
    if std::env::var_os("REDOUBT_TEST_WITHOUT_NAMESPACES").is_none() {
        return;
    }
    let root = build_root().unwrap();
    let refused = run(&root, &Surroundings::usual(), "true").unwrap_err();
    assert!(matches!(refused, SandboxError::Namespaces { .. }), "{refused}");
    println!("REFUSED: {refused}");
}

#[test]
fn forbidden_namespaces_are_said_to_be_that() {
    let Some(_) = build_root() else { return };
    // Forbids further user namespaces inside a new one.
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", forbid, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inner_without_namespaces", "--nocapture"])
        .env("REDOUBT_TEST_WITHOUT_NAMESPACES", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("REFUSED") && text.contains("sysctl"), "{text}");
}

//! What QEMU may do, tried by a shell in its place that tries to get out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test helpers fail the test")]

use host_os::confine::launcher::{OUTER, landlock};
use host_os::confine::{Allowed, Landlock, Level, Network, Plan, QEMU_ID, Right};
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Says so where it is seen, and fails in CI: a check that is left out there would be missed by nobody.
fn skip(reason: &str) {
    say(reason);
    assert!(std::env::var_os("CI").is_none(), "in CI this has to run: {reason}");
}

fn say(reason: &str) {
    // Past cargo's capture; appended, for the output may be a file.
    let stderr = fs::OpenOptions::new().append(true).open("/dev/stderr");
    let _ = stderr.and_then(|mut stderr| writeln!(stderr, "SKIPPED: {reason}"));
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Files of a pretended node, in a folder that only root enters.
struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["nvram.img", "secret"] {
            fs::write(dir.path().join(name), "content of a file\n").unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn plan(&self, level: Level, network: Network) -> Plan {
        let allow = |path: &str, right, optional| Allowed { path: path.into(), right, optional };
        Plan {
            level,
            files: vec![
                allow("/usr", Right::Program, false),
                allow("/bin", Right::Program, true),
                allow("/lib", Right::Program, true),
                allow("/lib64", Right::Program, true),
                allow("/proc", Right::Read, false),
                allow("/dev/null", Right::Device, false),
                allow(self.path("nvram.img").to_str().unwrap(), Right::Write, false),
            ],
            network,
            processes: 64,
            cgroup: None,
        }
    }

    fn spawn(&self, plan: &Plan, script: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_host-os"))
            .arg(OUTER)
            .arg(serde_json::to_string(plan).unwrap())
            .args(["/usr/bin/bash", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// What the script printed, errors included.
    fn run(&self, plan: &Plan, script: &str) -> String {
        let output = self.spawn(plan, &format!("exec 2>&1; {script}")).wait_with_output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

/// A process that must not be reached; it ends with the test.
struct Bystander(Child);

impl Bystander {
    fn new() -> Self {
        let sleep = Command::new("sleep").arg("60").stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(sleep.unwrap())
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Both levels that this machine offers to this user.
fn levels() -> Vec<Level> {
    if is_root() {
        return vec![Level::Process, Level::Full];
    }
    skip("not root: QEMU's own user and namespaces are not tried");
    vec![Level::Process]
}

#[test]
fn it_has_its_own_files_and_no_others() {
    let node = Node::new();
    for level in levels() {
        let plan = node.plan(level, Network::Port(1));
        let [nvram, secret] = ["nvram.img", "secret"].map(|name| node.path(name).display().to_string());
        let said = node.run(&plan, &format!("cat {nvram} && echo more >> {nvram} && tail -n 1 {nvram}"));
        assert!(said.ends_with("more\n"), "{level:?}: {said}");
        for attempt in [
            format!("cat {secret}"),
            "cat /etc/passwd".to_owned(),
            format!("echo x > {}/new", node.dir.path().display()),
            "echo x > /tmp/new".into(),
            format!("mv {nvram} {nvram}.old"),
            format!("cp /usr/bin/true {nvram} && chmod +x {nvram} && {nvram}"),
            "ls /root".into(),
            "ls /home".into(),
        ] {
            let said = node.run(&plan, &format!("{attempt} && echo escaped"));
            assert!(!said.contains("escaped") && !said.contains("content of"), "{level:?} {attempt}: {said}");
        }
        assert!(!Path::new("/tmp/new").exists());
    }
    // Without confinement it would have succeeded.
    let said =
        node.run(&node.plan(Level::Off, Network::Port(1)), &format!("cat {}", node.path("secret").display()));
    assert!(said.contains("content of"), "{said}");
}

#[test]
fn it_has_no_privileges_and_gains_none() {
    let node = Node::new();
    for level in levels() {
        let plan = node.plan(level, Network::Port(1));
        let said = node.run(&plan, "grep -E '^(Cap|NoNewPrivs)' /proc/self/status");
        for line in said.lines().filter(|line| line.starts_with("Cap")) {
            // An ordinary user has no capability to lose, and cannot empty the set that bounds them.
            let bounds = line.starts_with("CapBnd") && !is_root();
            assert!(bounds || line.ends_with("0000000000000000"), "{level:?}: {line}");
        }
        assert!(said.contains("NoNewPrivs:\t1"), "{level:?}: {said}");
        for attempt in
            ["mount -t tmpfs none /usr", "chown 0:0 /proc/self/fd/1 && chroot / true", "unshare -m true"]
        {
            let said = node.run(&plan, &format!("{attempt} && echo escaped"));
            assert!(!said.contains("escaped"), "{level:?} {attempt}: {said}");
        }
    }
}

#[test]
fn it_is_somebody_else_and_sees_nobody() {
    if !is_root() {
        return skip("not root");
    }
    let node = Node::new();
    let plan = node.plan(Level::Full, Network::Port(1));
    let mut bystander = Bystander::new();
    let said = node.run(&plan, "echo $UID $$; ls -d /proc/[0-9]*");
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some(format!("{QEMU_ID} 1").as_str()), "{said}");
    // Itself and the program that looks.
    assert!(lines.all(|line| line.trim_start_matches("/proc/").parse::<u32>().unwrap() < 10), "{said}");
    for attempt in [format!("kill -9 {}", bystander.id()), "kill -9 -1".into()] {
        node.run(&plan, &attempt);
        assert!(bystander.lives(), "{attempt} killed another process");
    }
}

/// Without namespaces, signals are kept in by Landlock.
#[test]
fn it_kills_nobody_as_the_agents_user_either() {
    if landlock() != Landlock::Full {
        return skip("this kernel has no Landlock of Linux 6.12");
    }
    let node = Node::new();
    let mut bystander = Bystander::new();
    let plan = node.plan(Level::Process, Network::Port(1));
    let said = node.run(&plan, &format!("kill -9 {} && echo escaped", bystander.id()));
    assert!(!said.contains("escaped"), "{said}");
    assert!(bystander.lives());
}

#[test]
fn it_reaches_no_network() {
    let node = Node::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    for (level, network) in
        [(Level::Process, Network::Port(1)), (Level::Full, Network::Port(1)), (Level::Full, Network::Device)]
    {
        if level == Level::Full && !is_root() {
            skip("not root");
            continue;
        }
        let plan = node.plan(level, network);
        let said = node.run(&plan, &format!("exec 3<>/dev/tcp/127.0.0.1/{port} && echo escaped"));
        assert!(!said.contains("escaped"), "{level:?} {network:?}: {said}");
        if network == Network::Device {
            let said = node.run(&plan, "cat /sys/class/net/*/address /proc/net/dev && echo escaped");
            assert!(!said.contains("escaped"), "{said}");
            let said = node.run(&plan, &format!("exec 3<>/dev/udp/127.0.0.1/{port} && echo escaped"));
            assert!(!said.contains("escaped"), "its loopback is on: {said}");
        }
    }
    // The stand-in would have reached it: without confinement it does.
    let said = node.run(
        &node.plan(Level::Off, Network::Port(1)),
        &format!("exec 3<>/dev/tcp/127.0.0.1/{port} && echo escaped"),
    );
    assert!(said.contains("escaped"), "{said}");
}

#[test]
fn its_processes_are_bounded_and_end_with_it() {
    if !is_root() {
        return skip("not root: processes of an ordinary user are bounded for all of the user's together");
    }
    let node = Node::new();
    let plan = node.plan(Level::Full, Network::Port(1));
    let said = node.run(&plan, "for i in {1..200}; do sleep 600 & done; echo survived");
    assert!(said.contains("Resource temporarily unavailable"), "{said}");
    // Told to end, the launcher ends after all of them.
    let mut child = node.spawn(&plan, "sleep 601 & sleep 602 & echo up; wait");
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    until(2);
    let id = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(sleepers(), 0);
    // A launcher that is killed itself takes them along, if not at once.
    let mut child = node.spawn(&plan, "sleep 601 & sleep 602 & echo up; wait");
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    until(2);
    child.kill().unwrap();
    child.wait().unwrap();
    until(0);
}

/// Waits for so many of the test's sleepers.
fn until(count: usize) {
    let end = Instant::now() + Duration::from_secs(10);
    while sleepers() != count {
        assert!(Instant::now() < end, "{} and not {count}", sleepers());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn sleepers() -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        (line == b"sleep\x00601\0" || line == b"sleep\x00602\0").then_some(())
    });
    processes.count()
}

#[test]
fn what_cannot_be_confined_is_not_started() {
    let node = Node::new();
    let mut plan = node.plan(Level::Process, Network::Port(1));
    plan.files.push(Allowed { path: "/no/such/file".into(), right: Right::Read, optional: false });
    let said = node.run(&plan, "echo started");
    assert!(said.contains("not started") && !said.contains("\nstarted"), "{said}");
    let mut plan = node.plan(Level::Process, Network::Port(1));
    plan.cgroup = Some("/no/such/group".into());
    let said = node.run(&plan, "echo started");
    assert!(said.contains("the control group"), "{said}");
}

/// The group's own limits, where this machine has control groups of version 2.
#[test]
fn a_control_group_bounds_memory_and_processes() {
    use host_os::confine::cgroup::{Limits, ROOT, make};
    let limits = Limits { memory: 64 << 20, processes: 20, processors: 1, bounds: None };
    let name = format!("redoubt-test-{}", std::process::id());
    let group = match make(Path::new(ROOT), &name, &limits) {
        Ok(group) => group,
        Err(error) => return say(&format!("no control group can be made here: {error}")),
    };
    let node = Node::new();
    let mut plan = node.plan(Level::Full, Network::Port(1));
    plan.cgroup = Some(group.clone());
    let said = node.run(&plan, "for i in {1..100}; do sleep 600 & done; echo survived");
    assert!(said.contains("Resource temporarily unavailable"), "{said}");
    let said = node.run(&plan, "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo survived");
    assert!(!said.contains("survived"), "{}", said.len());
    fs::remove_dir(group).unwrap();
}

//! What QEMU may do on this machine: its own files and devices, and nothing else.
//!
//! QEMU parses what a hostile guest sends it, so a guest that finds a fault in QEMU becomes QEMU. Confined, that gives it
//! little: no other process, no other file, no way to the network but its own device, bounded memory and processes.
//!
//! The agent starts itself again as the launcher ([`launcher`]), which gives everything up and becomes QEMU. (Not code
//! between fork and exec: the agent has several threads, and little is allowed there.)

pub mod cgroup;
pub mod launcher;

use crate::launch::{Launch, Platform, Serving, Wire};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// User and group of QEMU on a host; nothing there belongs to them but what the launcher gives them.
pub const QEMU_ID: u32 = 64_733;
/// Threads of QEMU beside those of the guest's processors; its pool for block devices has at most 64.
pub(crate) const THREADS: u64 = 256;

/// How much is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// On a host: own user, own namespaces, a control group, and all of `Process`. Needs root. What fails is an error, but for
    /// the control group.
    Full,
    /// What every user can give up: files and ports (Landlock), capabilities, new privileges.
    Process,
    /// Nothing, for tests with something else in QEMU's place.
    Off,
}

/// What QEMU may do with a path and what is below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Right {
    /// Programs and libraries: read and execute.
    Program,
    /// Read.
    Read,
    /// Read and write.
    Write,
    /// A device: read, write, ioctl.
    Device,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// The path.
    pub path: PathBuf,
    /// What for.
    pub right: Right,
    /// A machine may be without it.
    pub optional: bool,
}

/// How QEMU reaches the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// It listens on one TCP port of this machine and forwards it to the guest itself.
    Port(u16),
    /// Not at all: it was given the guest's network device, open.
    Device,
}

/// All that the launcher needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How much.
    pub level: Level,
    /// Paths that QEMU may use beside those that it gets open.
    pub files: Vec<Allowed>,
    /// The way to the network.
    pub network: Network,
    /// Most processes and threads.
    pub processes: u64,
    /// Group for it, made by the agent.
    pub cgroup: Option<PathBuf>,
}

/// One thing that confines QEMU, or why it does not, for the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Measure {
    /// A short fixed name: `user`, `namespaces`, `network`, `files`, `capabilities`, `privileges`, `system-calls`,
    /// `limits`.
    pub name: String,
    /// Whether it is in force.
    pub in_force: bool,
    /// In words.
    pub text: String,
}

impl Plan {
    /// What this launch of `qemu`, a path, needs.
    pub fn new(level: Level, qemu: &Path, launch: &Launch, cgroup: Option<PathBuf>) -> Self {
        let allow = |path: &str, right, optional| Allowed { path: path.into(), right, optional };
        let mut files = vec![
            allow("/usr", Right::Program, false),
            allow("/lib", Right::Program, true),
            allow("/lib64", Right::Program, true),
            // How many processors and memory nodes there are.
            allow("/sys/devices/system", Right::Read, true),
            allow("/proc", Right::Read, true),
            allow("/dev/null", Right::Device, false),
            allow("/dev/urandom", Right::Device, false),
            Allowed { path: launch.disk.clone(), right: Right::Write, optional: false },
        ];
        if let Some(Serving { nvram, .. }) = &launch.serving {
            let right = if nvram.nvdimm.is_some() { Right::Device } else { Right::Write };
            files.push(Allowed { path: nvram.path.clone(), right, optional: false });
            let described = nvram.nvdimm.iter().flat_map(|nvdimm| &nvdimm.described);
            files.extend(described.map(|path| Allowed {
                path: path.clone(),
                right: Right::Read,
                optional: true,
            }));
        }
        if level == Level::Process {
            // Where distributions keep the list of libraries; a host has none.
            files.push(allow("/etc/ld.so.cache", Right::Read, true));
        }
        let devices: &[&str] = match &launch.platform {
            Platform::Snp(_) => &["/dev/kvm", "/dev/sev"],
            Platform::Virtual { accel: crate::launch::Accel::Kvm, .. } => &["/dev/kvm"],
            Platform::Virtual { .. } => &[],
        };
        files.extend(devices.iter().map(|device| allow(device, Right::Device, false)));
        if let Some(own) = own_folder(qemu) {
            files.push(Allowed { path: own, right: Right::Program, optional: false });
        }
        Self {
            level,
            files,
            network: match launch.serving.as_ref().map(|serving| serving.wire) {
                Some(Wire::Port(port)) => Network::Port(port),
                Some(Wire::Tap { .. }) | None => Network::Device,
            },
            processes: THREADS + u64::from(launch.measured.vcpus),
            cgroup,
        }
    }

    /// What is in force with this plan, and what is not. `landlock` is what the kernel offers.
    pub fn measures(&self, landlock: Landlock, root: bool) -> Vec<Measure> {
        let full = self.level == Level::Full;
        let on = self.level != Level::Off;
        let why = "only where the agent is root on a host, or with --confinement full";
        let measure = |name: &str, in_force, yes: &str, no: &str| Measure {
            name: name.into(),
            in_force,
            text: if in_force { yes } else { no }.to_owned(),
        };
        let landlocked = on && landlock != Landlock::Absent;
        vec![
            measure(
                "user",
                full,
                "QEMU runs as a user of its own",
                &format!("QEMU runs as the agent's user: {why}"),
            ),
            measure(
                "namespaces",
                full,
                "QEMU sees its own files, no other process, no other machine's name and no shared memory",
                &format!("QEMU sees this machine's processes: {why}"),
            ),
            match (self.network, full) {
                (Network::Device, true) => measure(
                    "network",
                    true,
                    "QEMU has the guest's network device and no network of its own",
                    "",
                ),
                _ => measure(
                    "network",
                    landlocked && landlock == Landlock::Full,
                    "QEMU listens on the port of the guest, and cannot connect by TCP",
                    "QEMU can use this machine's network: the kernel has no Landlock for TCP (Linux 6.7)",
                ),
            },
            measure(
                "files",
                full || landlocked,
                "QEMU can open its own files and devices only",
                "QEMU can open the files of the agent's user: the kernel has no Landlock (Linux 5.13)",
            ),
            measure(
                "capabilities",
                on || !root,
                "QEMU has no capability",
                "QEMU has the capabilities of root",
            ),
            measure(
                "privileges",
                on,
                "QEMU and what it starts gain no privilege",
                "QEMU may start programs that gain privileges",
            ),
            measure("system-calls", true, "QEMU's own filter is on: no new process, no privilege", ""),
            measure(
                "limits",
                self.cgroup.is_some(),
                "QEMU's memory, processor time and number of processes are bounded by a control group",
                "QEMU's memory is bounded by the machine's only: no control group of version 2 could be made (it needs root)",
            ),
        ]
    }
}

/// The folder of a QEMU that lies outside `/usr`: `/opt/q` of `/opt/q/bin/qemu`, where its firmware and data are.
fn own_folder(qemu: &Path) -> Option<PathBuf> {
    let qemu = qemu.canonicalize().ok().filter(|qemu| !qemu.starts_with("/usr"))?;
    let folder = qemu.parent()?;
    Some(if folder.ends_with("bin") { folder.parent()? } else { folder }.to_owned())
}

/// What the kernel offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landlock {
    /// Files, TCP ports, signals (Linux 6.12).
    Full,
    /// Less.
    Part,
    /// Nothing.
    Absent,
}

/// Finds a program as execvp(3) does.
pub fn find_program(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| program.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_outside_usr_brings_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir(dir.join("bin")).unwrap();
        std::fs::write(dir.join("bin/qemu"), "").unwrap();
        std::fs::write(dir.join("qemu"), "").unwrap();
        assert_eq!(own_folder(&dir.join("bin/qemu")), Some(dir.clone()));
        assert_eq!(own_folder(&dir.join("qemu")), Some(dir));
        assert_eq!(own_folder(Path::new("/usr/bin/env")), None);
        assert_eq!(find_program(Path::new("sh")).file_name(), Some("sh".as_ref()));
        assert!(find_program(Path::new("sh")).is_absolute());
        assert_eq!(find_program(Path::new("no such program")), Path::new("no such program"));
    }

    #[test]
    fn words_follow_the_plan() {
        let plan = |level, network, cgroup| Plan { level, files: vec![], network, processes: 1, cgroup };
        let off = |measures: Vec<Measure>| -> Vec<String> {
            measures.into_iter().filter(|measure| !measure.in_force).map(|measure| measure.name).collect()
        };
        let full = plan(Level::Full, Network::Device, Some("/c".into()));
        assert_eq!(off(full.measures(Landlock::Full, true)), Vec::<String>::new());
        let process = plan(Level::Process, Network::Port(1), None);
        assert_eq!(off(process.measures(Landlock::Full, false)), ["user", "namespaces", "limits"]);
        assert_eq!(
            off(process.measures(Landlock::Absent, false)),
            ["user", "namespaces", "network", "files", "limits"]
        );
        let nothing = plan(Level::Off, Network::Port(1), None);
        assert_eq!(off(nothing.measures(Landlock::Full, true)).len(), 7);
    }
}

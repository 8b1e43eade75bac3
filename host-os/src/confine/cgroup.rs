//! A control group (cgroup v2) for QEMU: memory, processes, processor time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the groups are.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Controllers that are needed.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Length of a period of processor time, in microseconds.
const PERIOD_US: u64 = 100_000;

/// Limits of one launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory, page cache included; huge pages are counted elsewhere.
    pub memory: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Whole processors.
    pub processors: u64,
    /// Processors and memory nodes, as lists; `None` for all.
    pub bounds: Option<(String, String)>,
}

impl Limits {
    /// Files of a group, and what is written to them (Documentation/admin-guide/cgroup-v2.rst), in order.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("memory.max", self.memory.to_string()),
            // What the guest holds must not go to a disk.
            ("memory.swap.max", "0".into()),
            ("memory.oom.group", "1".into()),
            ("pids.max", self.processes.to_string()),
            ("cpu.max", format!("{} {PERIOD_US}", self.processors * PERIOD_US)),
        ];
        if let Some((processors, nodes)) = &self.bounds {
            settings.extend([("cpuset.cpus", processors.clone()), ("cpuset.mems", nodes.clone())]);
        }
        settings
    }
}

/// Makes the group, or empties the limits of one that is there, and returns its path.
pub fn make(root: &Path, name: &str, limits: &Limits) -> io::Result<PathBuf> {
    let offered = fs::read_to_string(root.join("cgroup.controllers"))?;
    let controllers: Vec<_> =
        CONTROLLERS.into_iter().chain(limits.bounds.is_some().then_some("cpuset")).collect();
    if let Some(absent) = controllers.iter().find(|name| !offered.split_whitespace().any(|one| one == **name))
    {
        let why = format!("{} has no controller {absent}", root.display());
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let enable: Vec<_> = controllers.iter().map(|name| format!("+{name}")).collect();
    fs::write(root.join("cgroup.subtree_control"), enable.join(" "))?;
    let group = root.join(name);
    match fs::create_dir(&group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for (file, value) in limits.settings() {
        // A kernel without swap has no such file, and to make one there is forbidden.
        if file != "memory.swap.max" || group.join(file).exists() {
            fs::write(group.join(file), &value)?;
        }
    }
    Ok(group)
}

/// Processes in the group.
pub fn processes(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Moves the calling process into the group.
pub fn enter(group: &Path) -> io::Result<()> {
    // 0 stands for whoever writes.
    fs::write(group.join("cgroup.procs"), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_gets_all_limits_and_a_machine_without_controllers_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Some(("2-5".to_owned(), "0".to_owned()));
        let limits = Limits { memory: 1 << 30, processes: 300, processors: 4, bounds };
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory\n").unwrap();
        let error = make(dir.path(), "guest", &limits).unwrap_err();
        assert!(error.to_string().contains("no controller pids"), "{error}");
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids\n").unwrap();
        let swap = dir.path().join("guest/memory.swap.max");
        make(dir.path(), "guest", &limits).unwrap();
        assert!(!swap.exists(), "a file that the kernel does not have");
        fs::write(&swap, "max").unwrap();
        for _ in 0..2 {
            let group = make(dir.path(), "guest", &limits).unwrap();
            let read = |name: &str| fs::read_to_string(group.join(name)).unwrap();
            assert_eq!(read("memory.max"), "1073741824");
            assert_eq!((read("pids.max"), read("cpu.max")), ("300".into(), "400000 100000".into()));
            assert_eq!((read("cpuset.cpus"), read("cpuset.mems")), ("2-5".into(), "0".into()));
            assert_eq!((read("memory.swap.max"), read("memory.oom.group")), ("0".into(), "1".into()));
        }
        assert_eq!(
            fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap(),
            "+cpu +memory +pids +cpuset"
        );
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        assert!(make(dir.path(), "guest", &limits).unwrap_err().to_string().contains("no controller cpuset"));
        make(dir.path(), "guest", &Limits { bounds: None, ..limits }).unwrap();
        fs::write(dir.path().join("guest/cgroup.procs"), "12\n34\n").unwrap();
        assert_eq!(processes(&dir.path().join("guest")), [12, 34]);
    }
}

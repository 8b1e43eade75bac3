//! Reads how the machine is built (Linux, Documentation/ABI/stable/sysfs-devices-node and sysfs-devices-system-cpu), sets huge pages
//! aside, and keeps QEMU's threads on their processors.

use super::{HUGE_MIB, Node, Placement};
use crate::check::{CheckError, Options};
use crate::hardware;
use release::Profile;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

/// Where the kernel describes nodes and processors.
pub const SYSTEM: &str = "/sys/devices/system";
/// More numbers than any machine has.
const MAX: u32 = 8192;

/// Reads a list such as `0-3,8`; `None` for anything else.
pub fn list(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > MAX {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

fn read_list(path: &Path) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(path)?;
    list(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{} is no list", path.display())))
}

/// `MemTotal` or `MemFree` of a node, in MiB: `Node 0 MemTotal:  1024 kB`.
fn memory(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.split_once(name)?.1.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}

fn huge_pages(system: &Path, node: u32) -> std::path::PathBuf {
    system.join(format!("node/node{node}/hugepages/hugepages-{}kB/nr_hugepages", HUGE_MIB * 1024))
}

/// Divides this machine as the specification of the node's profile says, if the agent has it for itself.
pub(crate) fn divide(options: &mut Options) -> Result<(), CheckError> {
    let share = hardware::spec(options.profile)?.guest;
    let Some(share) = share.filter(|_| options.power.is_some()) else { return Ok(()) };
    let machine = read(Path::new(SYSTEM)).unwrap_or_else(|error| {
        tracing::error!(%error, "the kernel does not say how this machine is built");
        Vec::new()
    });
    let mut placement = super::plan(&share, &machine, options.profile == Profile::Production)?;
    set_aside(Path::new(SYSTEM), &mut placement);
    placement.words().iter().for_each(|line| tracing::info!("placement: {line}"));
    (options.memory_mib, options.vcpus) = (placement.memory_mib, placement.vcpus);
    options.placement = Some(placement);
    Ok(())
}

/// The machine's nodes with the processors that are switched on.
pub fn read(system: &Path) -> io::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for number in read_list(&system.join("node/online"))? {
        let folder = system.join(format!("node/node{number}"));
        let meminfo = fs::read_to_string(folder.join("meminfo"))?;
        let memory = |name| memory(&meminfo, name).unwrap_or(0);
        let (mut cores, mut seen) = (Vec::new(), BTreeSet::new());
        for processor in read_list(&folder.join("cpulist"))? {
            if seen.contains(&processor) {
                continue;
            }
            let topology = system.join(format!("cpu/cpu{processor}/topology/thread_siblings_list"));
            // One that is switched off has no such file.
            let Ok(core) = read_list(&topology) else { continue };
            seen.extend(core.iter().copied());
            cores.push(core);
        }
        // What was set aside for an earlier guest is free too.
        let set_aside =
            meminfo.lines().find_map(|line| line.split_once("HugePages_Free:")?.1.trim().parse().ok());
        let memory_mib = (memory("MemTotal"), memory("MemFree") + set_aside.unwrap_or(0) * HUGE_MIB);
        nodes.push(Node { number, cores, memory_mib, huge_pages: huge_pages(system, number).exists() });
    }
    Ok(nodes)
}

/// Sets the huge pages of a placement aside. Where the kernel has fewer, all are given back and the guest gets ordinary ones.
pub fn set_aside(system: &Path, placement: &mut Placement) {
    for (node, wanted) in placement.huge_pages.clone() {
        let path = huge_pages(system, node);
        let got = fs::write(&path, wanted.to_string())
            .and_then(|()| fs::read_to_string(&path))
            .map(|text| text.trim().parse::<u64>().unwrap_or(0));
        let why = match got {
            Ok(got) if got >= wanted => continue,
            Ok(got) => format!("the kernel has {got} of {wanted} on node {node}: restart the machine"),
            Err(error) => format!("{}: {error}", path.display()),
        };
        for (node, _) in placement.huge_pages.drain(..) {
            let _ = fs::write(huge_pages(system, node), "0");
        }
        placement.notes.push(format!("no huge pages: {why}"));
        return;
    }
}

/// The number of a virtual processor whose thread has this name: `CPU 3/KVM`, as QEMU names them.
fn vcpu(name: &str) -> Option<usize> {
    name.trim().strip_prefix("CPU ")?.split('/').next()?.parse().ok()
}

/// Puts each thread of these processes on its processors; returns how many virtual processors have theirs. QEMU may make threads
/// later, so this is repeated.
pub fn pin(processes: &[u32], placement: &Placement) -> usize {
    let mut pinned = 0;
    let set = |numbers: &[u32]| {
        let mut set = CpuSet::new();
        numbers
            .iter()
            .filter(|number| (**number as usize) < CpuSet::MAX_CPU)
            .for_each(|number| set.set(*number as usize));
        set
    };
    for process in processes {
        let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { continue };
        for thread in threads.flatten() {
            let number = thread.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            let Some(thread_id) = number.and_then(rustix::thread::Pid::from_raw) else { continue };
            let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            let own = vcpu(&name).and_then(|number| placement.processors.get(number));
            let processors = own.map_or(set(&placement.others), |own| set(&[*own]));
            match sched_setaffinity(Some(thread_id), &processors) {
                Ok(()) => pinned += usize::from(own.is_some()),
                Err(error) => tracing::debug!(%error, name, "a thread stays where it is"),
            }
        }
    }
    pinned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    #[test]
    fn a_machine_is_read_as_the_kernel_describes_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("node/online", "0-1\n");
        for node in 0..2 {
            let meminfo = format!(
                "Node {node} MemTotal:       2097152 kB\nNode {node} MemFree:  1046528 kB\nNode {node} HugePages_Free:     1\n"
            );
            write(&format!("node/node{node}/meminfo"), &meminfo);
            write(
                &format!("node/node{node}/cpulist"),
                &format!("{0}-{1},{2}-{3}\n", node * 2, node * 2 + 1, 4 + node * 2, 5 + node * 2),
            );
        }
        for cpu in (0..8).filter(|cpu| *cpu != 7 && *cpu != 3) {
            write(
                &format!("cpu/cpu{cpu}/topology/thread_siblings_list"),
                &format!("{},{}\n", cpu % 4, cpu % 4 + 4),
            );
        }
        write("node/node0/hugepages/hugepages-2048kB/nr_hugepages", "0\n");
        let machine = read(dir.path()).unwrap();
        let node = |number, cores: &[&[u32]], huge_pages| Node {
            number,
            cores: cores.iter().map(|core| core.to_vec()).collect(),
            memory_mib: (2048, 1024),
            huge_pages,
        };
        assert_eq!(machine, [node(0, &[&[0, 4], &[1, 5]], true), node(1, &[&[2, 6]], false)]);
        let mut placement = Placement { huge_pages: vec![(0, 100)], ..Placement::default() };
        set_aside(dir.path(), &mut placement);
        assert_eq!(placement.huge_pages, [(0, 100)]);
        // A node that gives nothing: all goes back.
        placement.huge_pages.push((1, 100));
        set_aside(dir.path(), &mut placement);
        assert!(placement.huge_pages.is_empty() && placement.notes[0].starts_with("no huge pages: "));
        assert_eq!(fs::read_to_string(huge_pages(dir.path(), 0)).unwrap(), "0");
        write("node/online", "0-x\n");
        assert_eq!(read(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn this_machine_is_read() {
        let machine = read(Path::new(SYSTEM)).unwrap();
        let threads: usize = machine.iter().flat_map(|node| &node.cores).map(Vec::len).sum();
        assert!(threads >= 1 && machine[0].memory_mib.0 > 0, "{machine:?}");
    }

    /// A process with threads that are named as QEMU's are.
    #[test]
    fn threads_are_put_on_their_processors() {
        let allowed = |thread: &str| {
            let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap();
            status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
        };
        let last = *list(&allowed("thread-self")).unwrap().last().unwrap();
        let placement = Placement { processors: vec![last], others: vec![0], ..Placement::default() };
        assert_eq!((vcpu("CPU 3/KVM\n"), vcpu("worker"), vcpu("CPU x/")), (Some(3), None, None));
        let script = "import ctypes,threading,time\n\
            def cpu():\n ctypes.CDLL(None).prctl(15,b'CPU 0/KVM',0,0,0)\n print('ready',flush=True)\n time.sleep(60)\n\
            threading.Thread(target=cpu,daemon=True).start()\ntime.sleep(60)";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        use std::io::Read;
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        assert_eq!(pin(&[child.id()], &placement), 1);
        let id = child.id();
        let tasks = fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten();
        for task in tasks {
            let task = task.file_name().into_string().unwrap();
            let wanted = if task == id.to_string() { 0 } else { last };
            assert_eq!(allowed(&format!("{id}/task/{task}")), wanted.to_string());
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A real QEMU takes the options, prepares the memory and has its processors' threads found.
    #[test]
    fn qemu_understands_a_placement() {
        let qemu = crate::confine::find_program("qemu-system-x86_64".as_ref());
        if !qemu.exists() {
            return crate::network::namespace::skip("qemu-system-x86_64 is not installed");
        }
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        let allowed = list(allowed).unwrap();
        let (first, last) = (allowed[0], *allowed.last().unwrap());
        let placement = Placement {
            memory_mib: 64,
            vcpus: 2,
            processors: vec![last, first],
            others: vec![first],
            nodes: vec![read(Path::new(SYSTEM)).unwrap()[0].number],
            prepared: true,
            ..Placement::default()
        };
        let memory = format!("memory-backend-memfd,id=memory,size=64M{}", placement.memory_options());
        let mut qemu = Command::new(qemu)
            .args([
                "-machine",
                "q35,memory-backend=memory",
                "-accel",
                "tcg,thread=multi",
                "-smp",
                "2",
                "-m",
                "64M",
            ])
            .args([
                "-object",
                &memory,
                "-name",
                "redoubt,debug-threads=on",
                "-display",
                "none",
                "-nodefaults",
                "-S",
            ])
            .args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"])
            .stdin(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let id = qemu.id();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while pin(&[id], &placement) < 2 {
            assert!(
                std::time::Instant::now() < end && qemu.try_wait().unwrap().is_none(),
                "no threads of processors"
            );
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let resident = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let shared = resident.lines().find_map(|line| line.strip_prefix("RssShmem:")).unwrap();
        let kib: u64 = shared.trim().trim_end_matches(" kB").parse().unwrap();
        qemu.kill().unwrap();
        qemu.wait().unwrap();
        assert!(kib >= 64 << 10, "only {kib} KiB are there before the guest starts");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s)([0-9]{1,12}|-|,|MemTotal:|kB| |CPU |/|.){0,30}") {
            let _ = (list(&text), memory(&text, "MemTotal"), vcpu(&text));
        }
    }
}

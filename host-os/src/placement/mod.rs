//! Which processors and which memory of the machine its guest gets, by the hardware specification. No I/O.
//!
//! The host keeps whole cores for itself, so that interrupts and QEMU's own threads take no time from the guest. Virtual
//! processors get a core each while there are any, and then the cores' other threads. The guest sees one memory node: on a machine
//! with several its memory is spread over all of them evenly.

pub mod machine;

use hwspec::Share;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Size of the huge pages that are used, in MiB. Larger ones can hardly be had once a machine runs.
pub const HUGE_MIB: u64 = 2;
/// Most threads that touch memory beforehand.
const PREPARERS: usize = 16;

/// One memory node with the processors next to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// The kernel's number.
    pub number: u32,
    /// Threads of each core, as the kernel numbers them.
    pub cores: Vec<Vec<u32>>,
    /// Memory in MiB: all, and what nobody uses.
    pub memory_mib: (u64, u64),
    /// Whether the kernel offers huge pages of [`HUGE_MIB`] here.
    pub huge_pages: bool,
}

/// What a guest gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Memory of the guest, in MiB.
    pub memory_mib: u32,
    /// Number of virtual processors.
    pub vcpus: u32,
    /// The processor of each virtual processor; none if they are free to move.
    pub processors: Vec<u32>,
    /// Processors for everything else that QEMU does.
    pub others: Vec<u32>,
    /// Memory nodes that memory is taken from; none if any will do.
    pub nodes: Vec<u32>,
    /// Huge pages to be set aside: node and number. None if the guest's memory is of ordinary pages.
    pub huge_pages: Vec<(u32, u64)>,
    /// Whether memory is touched before the guest starts, so that it is there.
    pub prepared: bool,
    /// What could not be had, and why, in words.
    pub notes: Vec<String>,
}

/// The machine cannot be divided as its specification says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Not enough processors.
    #[error(
        "the specification gives {vcpus} virtual processors to the guest and {host_cores} cores to the host, but this machine \
         has only {threads} threads on {cores} cores; switch on all cores and SMT in the firmware, or correct [guest]"
    )]
    Processors {
        /// Asked for.
        vcpus: u32,
        /// Asked for.
        host_cores: u32,
        /// There.
        threads: usize,
        /// There.
        cores: usize,
    },
    /// Not enough memory.
    #[error(
        "the host keeps {host_mib} MiB, and this machine has only {total_mib} MiB; fit more memory, or correct [guest]"
    )]
    Memory {
        /// The host's.
        host_mib: u32,
        /// All.
        total_mib: u64,
    },
}

impl PlacementError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Processors { .. } => "guest-processors",
            Self::Memory { .. } => "guest-memory",
        }
    }
}

/// Divides a machine. `encrypted`: the guest's memory is the processor's to protect, so that it comes from KVM and not from a file
/// of huge pages.
pub fn plan(share: &Share, machine: &[Node], encrypted: bool) -> Result<Placement, PlacementError> {
    let total_mib: u64 = machine.iter().map(|node| node.memory_mib.0).sum();
    // Whole huge pages on each node.
    let unit = HUGE_MIB * machine.len().max(1) as u64;
    let left = total_mib.saturating_sub(u64::from(share.host_memory_mib)) / unit * unit;
    let memory_mib = u32::try_from(left).unwrap_or(u32::MAX);
    if memory_mib < MIN_MEMORY_MIB {
        return Err(PlacementError::Memory { host_mib: share.host_memory_mib, total_mib });
    }
    let mut placement = Placement {
        memory_mib,
        vcpus: share.vcpus,
        prepared: !encrypted,
        nodes: machine.iter().filter(|node| node.memory_mib.0 > 0).map(|node| node.number).collect(),
        ..Placement::default()
    };
    let (others, processors) = divide(share, machine)?;
    if share.pin {
        (placement.others, placement.processors) = (others, processors);
    } else {
        placement.nodes.clear();
    }
    if encrypted {
        placement
            .notes
            .push("no huge pages and no memory prepared: KVM gives out encrypted memory by itself".into());
    } else if share.huge_pages {
        match huge_pages(memory_mib, machine) {
            Some(pages) => placement.huge_pages = pages,
            None => placement.notes.push(format!(
                "no huge pages: {memory_mib} MiB of them do not fit beside what is in use, or the kernel has none"
            )),
        }
    }
    Ok(placement)
}

/// A guest with less is of no use.
const MIN_MEMORY_MIB: u32 = 256;

/// Processors of the host and of the guest.
fn divide(share: &Share, machine: &[Node]) -> Result<(Vec<u32>, Vec<u32>), PlacementError> {
    let cores: Vec<(u32, &Vec<u32>)> =
        machine.iter().flat_map(|node| node.cores.iter().map(|core| (node.number, core))).collect();
    let refused = || PlacementError::Processors {
        vcpus: share.vcpus,
        host_cores: share.host_cores,
        threads: cores.iter().map(|(_, core)| core.len()).sum(),
        cores: cores.len(),
    };
    let (host, guest) = cores.split_at_checked(share.host_cores as usize).ok_or_else(refused)?;
    let most = guest.iter().map(|(_, core)| core.len()).max().unwrap_or(0);
    // The first thread of every core, then the second of every core.
    let mut chosen: Vec<(u32, u32)> = (0..most)
        .flat_map(|thread| guest.iter().filter_map(move |(node, core)| Some((*node, *core.get(thread)?))))
        .take(share.vcpus as usize)
        .collect();
    if chosen.len() < share.vcpus as usize {
        return Err(refused());
    }
    // Neighbours in the guest are neighbours here.
    chosen.sort_by_key(|(node, _)| *node);
    let others = host.iter().flat_map(|(_, core)| core.iter().copied()).collect();
    Ok((others, chosen.into_iter().map(|(_, processor)| processor).collect()))
}

/// The same number on each node, unless one has no room for that: then the others take over.
fn huge_pages(memory_mib: u32, machine: &[Node]) -> Option<Vec<(u32, u64)>> {
    let mut wanted = u64::from(memory_mib) / HUGE_MIB;
    let mut room: Vec<(u32, u64)> = machine
        .iter()
        .filter(|node| node.huge_pages)
        .map(|node| (node.number, node.memory_mib.1 / HUGE_MIB))
        .collect();
    room.sort_by_key(|(_, free)| *free);
    let mut pages = Vec::new();
    let mut nodes = room.len() as u64;
    for (node, free) in room {
        let here = (wanted / nodes).min(free);
        pages.push((node, here));
        wanted -= here;
        nodes -= 1;
    }
    pages.sort_unstable();
    (wanted == 0).then_some(pages)
}

/// Numbers as the kernel and QEMU take them: `0-3,8`.
pub fn ranges(numbers: impl IntoIterator<Item = u32>, between: &str) -> String {
    let mut numbers: Vec<u32> = numbers.into_iter().collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut text = String::new();
    for run in numbers.chunk_by(|one, next| one + 1 == *next) {
        text.push_str(if text.is_empty() { "" } else { between });
        // Writing to a String never fails.
        let _ = match run {
            [first, .., last] => write!(text, "{first}-{last}"),
            _ => write!(text, "{}", run[0]),
        };
    }
    text
}

impl Placement {
    /// What follows the size in QEMU's options of the guest's memory.
    pub fn memory_options(&self) -> String {
        let mut options = String::new();
        if !self.huge_pages.is_empty() {
            options.push_str(&format!(",hugetlb=on,hugetlbsize={HUGE_MIB}M"));
        }
        if self.prepared {
            let threads = (self.vcpus as usize).clamp(1, PREPARERS);
            options.push_str(&format!(",prealloc=on,prealloc-threads={threads}"));
        } else {
            options.push_str(",prealloc=off");
        }
        match self.nodes.len() {
            0 => {}
            1 => options.push_str(&format!(",host-nodes={},policy=bind", self.nodes[0])),
            _ => {
                for run in ranges(self.nodes.iter().copied(), " ").split(' ') {
                    options.push_str(&format!(",host-nodes={run}"));
                }
                options.push_str(",policy=interleave");
            }
        }
        options
    }

    /// Processors and memory nodes of everything that QEMU does, for its control group; `None` if it may use all.
    pub fn bounds(&self) -> Option<(String, String)> {
        let processors = ranges(self.processors.iter().chain(&self.others).copied(), ",");
        (!processors.is_empty()).then(|| (processors, ranges(self.nodes.iter().copied(), ",")))
    }

    /// For people, a line for each fact.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![format!("{} virtual processors, {} MiB of memory", self.vcpus, self.memory_mib)];
        if !self.processors.is_empty() {
            let guest = ranges(self.processors.iter().copied(), ", ");
            let host = ranges(self.others.iter().copied(), ", ");
            words.push(format!("the guest's processors are {guest}; QEMU's other threads use {host}"));
        }
        if !self.nodes.is_empty() {
            words.push(format!("memory of the nodes {}", ranges(self.nodes.iter().copied(), ", ")));
        }
        for (node, pages) in &self.huge_pages {
            words.push(format!("{pages} huge pages of {HUGE_MIB} MiB on node {node}"));
        }
        words.extend(self.notes.iter().cloned());
        words
    }
}

#[cfg(test)]
mod tests;

use super::*;
use proptest::prelude::*;

const SHARE: Share = Share { vcpus: 32, host_cores: 2, host_memory_mib: 24_576, pin: true, huge_pages: true };

/// Two sockets of 16 cores; the kernel numbers first threads first.
fn gen2() -> Vec<Node> {
    let node = |number: u32| Node {
        number,
        cores: (0..16).map(|core| vec![number * 16 + core, 32 + number * 16 + core]).collect(),
        memory_mib: (257_000, 250_000),
        huge_pages: true,
    };
    vec![node(0), node(1)]
}

#[test]
fn a_confidential_guest_is_pinned_and_its_memory_comes_from_kvm() {
    let placement = plan(&SHARE, &gen2(), true).unwrap();
    assert_eq!(ranges(placement.others.iter().copied(), ","), "0-1,32-33");
    assert_eq!(ranges(placement.processors.iter().copied(), ","), "2-31,34-35");
    // The first two cores are the host's, so the 31st and 32nd virtual processor share a core with others.
    assert_eq!(placement.processors[..16], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 34, 35]);
    assert_eq!(placement.memory_mib, 514_000 - 24_576);
    assert_eq!(placement.memory_options(), ",prealloc=off,host-nodes=0-1,policy=interleave");
    assert_eq!(placement.bounds(), Some(("0-35".into(), "0-1".into())));
    assert!(placement.huge_pages.is_empty() && placement.notes[0].contains("no huge pages"));
}

#[test]
fn other_guests_get_huge_pages_that_are_there_before_they_start() {
    let placement = plan(&SHARE, &gen2(), false).unwrap();
    assert_eq!(placement.huge_pages, [(0, 122_356), (1, 122_356)]);
    assert_eq!(
        placement.memory_options(),
        ",hugetlb=on,hugetlbsize=2M,prealloc=on,prealloc-threads=16,host-nodes=0-1,policy=interleave"
    );
    let mut uneven = gen2();
    uneven[1].memory_mib.1 = 240_000;
    assert_eq!(plan(&SHARE, &uneven, false).unwrap().huge_pages, [(0, 124_712), (1, 120_000)]);
    uneven[0].memory_mib.1 = 240_000;
    let placement = plan(&SHARE, &uneven, false).unwrap();
    assert!(placement.huge_pages.is_empty() && placement.notes[0].contains("do not fit"), "{placement:?}");
    assert!(placement.memory_options().starts_with(",prealloc=on"));
    let single = &gen2()[..1];
    let placement = plan(&Share { vcpus: 16, huge_pages: false, ..SHARE }, single, false).unwrap();
    assert_eq!(placement.memory_options(), ",prealloc=on,prealloc-threads=16,host-nodes=0,policy=bind");
    let free = plan(&Share { pin: false, ..SHARE }, &gen2(), false).unwrap();
    assert_eq!((free.bounds(), free.processors.len()), (None, 0));
}

#[test]
fn a_machine_that_is_too_small_is_refused_by_name() {
    let error = plan(&Share { vcpus: 61, ..SHARE }, &gen2(), true).unwrap_err();
    assert_eq!(error.code(), "guest-processors");
    assert!(plan(&Share { vcpus: 60, ..SHARE }, &gen2(), true).is_ok());
    assert_eq!(
        plan(&Share { host_cores: 33, ..SHARE }, &gen2(), true).unwrap_err().code(),
        "guest-processors"
    );
    let error = plan(&Share { host_memory_mib: 513_900, ..SHARE }, &gen2(), true).unwrap_err();
    assert_eq!(error.code(), "guest-memory");
    assert_eq!(plan(&SHARE, &[], true).unwrap_err().code(), "guest-memory");
}

#[test]
fn built_in_specifications_divide_the_machines_that_they_accept() {
    for name in ["gen1", "gen2"] {
        let share = hwspec::Spec::named(name).unwrap().guest.unwrap();
        plan(&share, &gen2(), name == "gen2").unwrap();
    }
    assert_eq!(hwspec::Spec::named("virtual").unwrap().guest, None);
}

fn machine() -> impl Strategy<Value = Vec<Node>> {
    let node = (0..9_usize, 1..3_usize, 0..100_000_u64, 0..100_u64, any::<bool>());
    proptest::collection::vec(node, 0..5).prop_map(|nodes| {
        let mut next = 0..;
        let mut node = |(number, (cores, threads, total, used, huge_pages))| {
            let core = |next: &mut std::ops::RangeFrom<u32>| next.take(threads).collect();
            Node {
                number,
                cores: (0..cores).map(|_| core(&mut next)).collect(),
                memory_mib: (total, total - total * used / 100),
                huge_pages,
            }
        };
        (0_u32..).zip(nodes).map(&mut node).collect()
    })
}

proptest! {
    /// Nobody gets a processor twice, the host's cores are its own, and no node gives more huge pages than it has room for.
    #[test]
    fn whatever_the_machine_nothing_is_given_twice(
        machine in machine(), vcpus in 1..40_u32, host_cores in 1..6_u32, host_memory_mib in 1..50_000_u32,
        pin: bool, huge_pages: bool, encrypted: bool,
    ) {
        let share = Share { vcpus, host_cores, host_memory_mib, pin, huge_pages };
        let threads: usize = machine.iter().flat_map(|node| &node.cores).map(Vec::len).sum();
        let Ok(placement) = plan(&share, &machine, encrypted) else { return Ok(()) };
        let total: u64 = machine.iter().map(|node| node.memory_mib.0).sum();
        prop_assert!(u64::from(placement.memory_mib) + u64::from(host_memory_mib) <= total);
        prop_assert!(threads >= vcpus as usize + host_cores as usize);
        let mut all: Vec<u32> = placement.processors.iter().chain(&placement.others).copied().collect();
        prop_assert_eq!(placement.processors.len(), if pin { vcpus as usize } else { 0 });
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        prop_assert_eq!(all.len(), count);
        let pages: u64 = placement.huge_pages.iter().map(|(_, pages)| pages).sum();
        if !placement.huge_pages.is_empty() {
            prop_assert_eq!(pages * HUGE_MIB, u64::from(placement.memory_mib));
            prop_assert!(huge_pages && !encrypted);
        }
        for (node, pages) in &placement.huge_pages {
            let node = machine.iter().find(|found| found.number == *node).unwrap();
            prop_assert!(pages * HUGE_MIB <= node.memory_mib.1 && node.huge_pages);
        }
        let _ = placement.words();
    }

    #[test]
    fn ranges_name_just_these_numbers(numbers: std::collections::BTreeSet<u8>) {
        let text = ranges(numbers.iter().map(|number| u32::from(*number)), ",");
        let parsed = machine::list(&text).unwrap();
        prop_assert_eq!(parsed, numbers.into_iter().map(u32::from).collect::<Vec<_>>());
    }
}

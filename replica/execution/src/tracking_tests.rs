//! What is marked against what the kernel saw written, and instructions counted against those of the uploaded
//! module.

#![allow(unsafe_code, reason = "the oracle is the kernel's, reached by ioctls")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]
#![allow(unreachable_pub, reason = "shared with the other tests")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/programs/mod.rs"]
mod programs;

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use candid::Principal;
use common::Node;
use proptest::prelude::*;

use crate::store::{PAGE, SpaceId};

/// Asynchronous write protection of userfaultfd(2), read with PAGEMAP_SCAN.
struct Written {
    uffd: OwnedFd,
    pagemap: File,
    start: u64,
    length: u64,
}

const WP_ASYNC: u64 = 1 << 15;
const WP_UNPOPULATED: u64 = 1 << 13;
const MODE_WP: u64 = 2;
const PAGEMAP_SCAN: u64 = 0xc060_6610;
const SCAN_WP_MATCHING: u64 = 1;
const SCAN_CHECK_WPASYNC: u64 = 2;
const IS_WRITTEN: u64 = 1 << 1;

impl Written {
    /// Watches a range. `None` where the kernel does not offer it.
    fn watch(start: usize, length: usize) -> Option<Self> {
        // SAFETY: makes a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: it was just made.
        let uffd = unsafe { OwnedFd::from_raw_fd(fd) };
        let ioctl = |request: u64, words: &mut [u64]| {
            // SAFETY: the words are the request's structure.
            unsafe { libc::ioctl(uffd.as_raw_fd(), request as _, words.as_mut_ptr()) == 0 }
        };
        let (start, length) = (start as u64, length as u64);
        ioctl(0xc018_aa3f, &mut [0xaa, WP_ASYNC | WP_UNPOPULATED, 0]).then_some(())?;
        ioctl(0xc020_aa00, &mut [start, length, MODE_WP, 0]).then_some(())?;
        let watched = Self { uffd, pagemap: File::open("/proc/self/pagemap").ok()?, start, length };
        watched.take();
        Some(watched)
    }

    /// Pages written since this was last asked.
    fn take(&self) -> Vec<u64> {
        assert!(self.uffd.as_raw_fd() >= 0);
        let mut pages = Vec::new();
        let mut at = self.start;
        while at < self.start + self.length {
            let mut regions = [[0u64; 3]; 512];
            let mut words = [
                96,
                SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
                at,
                self.start + self.length,
                0,
                regions.as_mut_ptr() as u64,
                regions.len() as u64,
                0,
                0,
                IS_WRITTEN,
                0,
                IS_WRITTEN,
            ];
            // SAFETY: `struct pm_scan_arg`, with a buffer of as many regions as it says.
            let count =
                unsafe { libc::ioctl(self.pagemap.as_raw_fd(), PAGEMAP_SCAN as _, words.as_mut_ptr()) };
            assert!(count >= 0, "PAGEMAP_SCAN: {}", std::io::Error::last_os_error());
            for [start, end, _] in &regions[..count as usize] {
                pages.extend((start - self.start) / PAGE as u64..(end - self.start) / PAGE as u64);
            }
            assert!(words[4] > at, "the scan goes on");
            at = words[4];
        }
        pages
    }
}

/// Makes a call and compares the pages that it committed with those that the kernel saw written.
fn compare(node: &mut Node, canister: Principal, method: &str, arg: Vec<u8>) -> (usize, usize) {
    let record = node.engine.world.state.canisters.committed().get(&canister).unwrap();
    let space: SpaceId = record.memory_space();
    // The instance is there, and so are all pages.
    node.engine.attach(canister).unwrap();
    let (start, length) = node.engine.codes[&canister].memory_range();
    let Some(watched) = Written::watch(start, length) else {
        // Past what captures the output of tests.
        use std::io::Write;
        let _ =
            writeln!(std::io::stderr(), "SKIPPED: the kernel does not offer asynchronous write protection");
        return (0, 0);
    };
    let before = node.engine.world.snapshot.epoch();
    let outcome = node.update(canister, method, arg);
    let written = watched.take();
    let snapshot = node.engine.world.snapshot.clone();
    let committed = snapshot.changed_since(before, space).unwrap();
    // A rollback writes pages back; then there must be nothing committed.
    if outcome.as_ref().is_err_and(|reject| reject.error_code != crate::ErrorCode::CanisterDidNotReply) {
        assert!(committed.is_empty(), "{outcome:?}");
    }
    // The memory as it was may have been followed by pages that were added.
    for page in committed.iter().filter(|page| **page < (length / PAGE) as u64) {
        assert!(written.contains(page), "page {page} is marked, and was not written");
    }
    for page in written.iter().filter(|page| !committed.contains(page)) {
        let mut expected = [0; PAGE];
        snapshot.read_page(space, *page, &mut expected).unwrap();
        let now = node.engine.codes[&canister].memory_page(*page);
        assert!(now == &expected, "page {page} was written, and is not marked");
    }
    (written.len(), committed.len())
}

#[test]
fn marks_of_motoko_programs_agree_with_the_kernel() {
    let Some(directory) = programs::motoko() else { return };
    let module = std::fs::read(directory.join("store.wasm")).unwrap();
    let mut node = Node::choosing(crate::Limits::default(), 256 << 20, false);
    let canister = node.deploy(&module);
    let mut committed = 0;
    for round in 0..20u32 {
        let arg = candid::encode_one(candid::Nat::from(50 * round)).unwrap();
        committed += compare(&mut node, canister, "fill", arg).1;
        compare(&mut node, canister, "fail", candid::encode_args(()).unwrap());
    }
    assert!(committed > 100 || Written::watch(0, 0).is_none(), "{committed}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn marks_of_generated_programs_agree_with_the_kernel(
        statements in prop::collection::vec(programs::statement(), 1..40),
        memory64: bool,
    ) {
        let module = programs::module(&statements, memory64);
        let mut node = Node::choosing(common::limits(), 16 << 20, false);
        let canister = node.deploy(&wat::parse_str(module).unwrap());
        for _ in 0..2 {
            compare(&mut node, canister, "go", Vec::new());
        }
    }

    /// The count is that of the module as uploaded, by wasmtime's own table of costs.
    #[test]
    fn instructions_are_counted_as_if_nothing_were_added(
        statements in prop::collection::vec(programs::statement(), 1..40),
        memory64: bool,
    ) {
        let module = wat::parse_str(programs::module(&statements, memory64)).unwrap();
        let mut config = wasmtime::Config::new();
        config.consume_fuel(true);
        let engine = wasmtime::Engine::new(&config).unwrap();
        let plain = wasmtime::Module::new(&engine, &module).unwrap();
        let mut store = wasmtime::Store::new(&engine, ());
        store.set_fuel(u64::MAX).unwrap();
        let instance = wasmtime::Instance::new(&mut store, &plain, &[]).unwrap();
        let go = instance.get_typed_func::<(), ()>(&mut store, "canister_update go").unwrap();
        // Instantiation may have taken some.
        store.set_fuel(u64::MAX).unwrap();
        let plain = go.call(&mut store, ());
        let expected = u64::MAX - store.get_fuel().unwrap();

        let mut node = Node::choosing(common::limits(), 16 << 20, true);
        let canister = node.deploy(&module);
        let outcome = node.update(canister, "go", Vec::new());
        let trapped = outcome.unwrap_err().error_code == crate::ErrorCode::CanisterTrapped;
        prop_assert_eq!(trapped, plain.is_err());
        // Where a program traps, wasmtime does not count the instructions since the last branch.
        if !trapped {
            prop_assert_eq!(node.engine.instructions, expected);
        }
    }
}

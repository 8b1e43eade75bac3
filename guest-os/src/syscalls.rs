//! System calls that the replica may make, as one list. Everything else fails with ENOSYS, as if the kernel did not
//! have it: programs and libraries know how to live with that, and it does not tell an attacker more.

use libc::{
    AF_INET, AF_INET6, AF_UNIX, CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID,
    CLONE_NEWUSER, CLONE_NEWUTS, FIONBIO, FIONREAD, O_CLOEXEC, PR_SET_NAME, SYS_accept4, SYS_arch_prctl,
    SYS_bind, SYS_brk, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_close,
    SYS_connect, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_wait, SYS_eventfd2, SYS_execve,
    SYS_exit, SYS_exit_group, SYS_fcntl, SYS_fstat, SYS_fstatfs, SYS_futex, SYS_getegid, SYS_geteuid,
    SYS_getgid, SYS_getpeername, SYS_getpid, SYS_getrandom, SYS_getsockname, SYS_getsockopt, SYS_gettid,
    SYS_getuid, SYS_ioctl, SYS_listen, SYS_lseek, SYS_madvise, SYS_mmap, SYS_mprotect, SYS_mremap,
    SYS_munmap, SYS_newfstatat, SYS_openat, SYS_pipe2, SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect,
    SYS_poll, SYS_prctl, SYS_pread64, SYS_prlimit64, SYS_read, SYS_readlink, SYS_readlinkat, SYS_readv,
    SYS_recvfrom, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_sched_getaffinity, SYS_sched_yield, SYS_sendto, SYS_set_robust_list, SYS_set_tid_address,
    SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_socket, SYS_socketpair, SYS_statx, SYS_sysinfo,
    SYS_tgkill, SYS_uname, SYS_userfaultfd, SYS_write, SYS_writev, TCGETS,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use std::collections::BTreeMap;

/// Which calls of one system call are allowed.
#[derive(Debug, Clone, Copy)]
enum Only {
    /// All.
    Any,
    /// Those whose argument (counted from 0) is one of these.
    Argument(u8, &'static [u64]),
    /// Those whose argument has none of these bits.
    Without(u8, u64),
}
use Only::{Any, Argument, Without};

const NEW_NAMESPACES: u64 = (CLONE_NEWCGROUP
    | CLONE_NEWIPC
    | CLONE_NEWNET
    | CLONE_NEWNS
    | CLONE_NEWPID
    | CLONE_NEWUSER
    | CLONE_NEWUTS) as u64;

const fn number(constant: i32) -> u64 {
    constant as u64
}

/// linux/userfaultfd.h: faults of user mode only.
const UFFD_USER_MODE_ONLY: u64 = 1;

/// Requests of ioctl: for sockets and terminals, and the ones of a userfaultfd (linux/userfaultfd.h) to start, to
/// register and unregister a range, to wake, to fill pages, to fill them with zeros.
const IOCTLS: &[u64] = &[
    FIONBIO,
    FIONREAD,
    TCGETS,
    0xc018_aa3f,
    0xc020_aa00,
    0x8010_aa01,
    0x8010_aa02,
    0xc028_aa03,
    0xc020_aa04,
];

/// Groups of system calls, each with the reason why the replica needs them.
const ALLOWED: &[(&str, &[(i64, Only)])] = &[
    (
        "memory: allocator, wasm memories, compiled code (wasmtime maps it writable, then executable)",
        &[
            (SYS_brk, Any),
            (SYS_madvise, Any),
            (SYS_mmap, Any),
            (SYS_mprotect, Any),
            (SYS_mremap, Any),
            (SYS_munmap, Any),
        ],
    ),
    (
        "memories of canisters are read page by page when touched: faults of the replica's own code only, since \
         those of the kernel could be held up to win races in it (ioctls below)",
        &[(SYS_userfaultfd, Argument(0, &[O_CLOEXEC as u64 | UFFD_USER_MODE_ONLY]))],
    ),
    (
        "memory protection keys of wasmtime's pooling allocator",
        &[(SYS_pkey_alloc, Any), (SYS_pkey_free, Any), (SYS_pkey_mprotect, Any)],
    ),
    (
        "threads; no new namespaces (clone3, whose flags a filter cannot see, is absent: libc falls back to clone)",
        &[
            (SYS_clone, Without(0, NEW_NAMESPACES)),
            (SYS_exit, Any),
            (SYS_exit_group, Any),
            (SYS_futex, Any),
            (SYS_gettid, Any),
            (SYS_rseq, Any),
            (SYS_sched_getaffinity, Any),
            (SYS_sched_yield, Any),
            (SYS_set_robust_list, Any),
            (SYS_set_tid_address, Any),
            (SYS_prctl, Argument(0, &[number(PR_SET_NAME)])),
        ],
    ),
    (
        "signals: wasm traps arrive as SIGSEGV, SIGILL, SIGFPE; abort raises SIGABRT in the own thread",
        &[
            (SYS_rt_sigaction, Any),
            (SYS_rt_sigprocmask, Any),
            (SYS_rt_sigreturn, Any),
            (SYS_sigaltstack, Any),
            (SYS_restart_syscall, Any),
            (SYS_tgkill, Any),
        ],
    ),
    (
        "start of the program; Landlock leaves one file that can be executed",
        &[(SYS_arch_prctl, Any), (SYS_execve, Any), (SYS_prlimit64, Any)],
    ),
    (
        "files: configuration, evidence socket, BAR of the heap (fstatfs tells that it is one); Landlock says which",
        &[
            (SYS_close, Any),
            (SYS_fcntl, Any),
            (SYS_fstat, Any),
            (SYS_fstatfs, Any),
            (SYS_ioctl, Argument(1, IOCTLS)),
            (SYS_lseek, Any),
            (SYS_newfstatat, Any),
            (SYS_openat, Any),
            (SYS_pipe2, Any),
            (SYS_pread64, Any),
            (SYS_read, Any),
            (SYS_readlink, Any),
            (SYS_readlinkat, Any),
            (SYS_readv, Any),
            (SYS_statx, Any),
            (SYS_write, Any),
            (SYS_writev, Any),
        ],
    ),
    (
        "the event loop",
        &[
            (SYS_epoll_create1, Any),
            (SYS_epoll_ctl, Any),
            (SYS_epoll_pwait, Any),
            (SYS_epoll_wait, Any),
            (SYS_eventfd2, Any),
            (SYS_poll, Any),
        ],
    ),
    (
        "IP and Unix sockets; no netlink, packet or vsock sockets, whose code only PID 1 should reach",
        &[
            (SYS_accept4, Any),
            (SYS_bind, Any),
            (SYS_connect, Any),
            (SYS_getpeername, Any),
            (SYS_getsockname, Any),
            (SYS_getsockopt, Any),
            (SYS_listen, Any),
            (SYS_recvfrom, Any),
            (SYS_sendto, Any),
            (SYS_setsockopt, Any),
            (SYS_shutdown, Any),
            (SYS_socket, Argument(0, &[number(AF_INET), number(AF_INET6), number(AF_UNIX)])),
            (SYS_socketpair, Argument(0, &[number(AF_UNIX)])),
        ],
    ),
    (
        "time (the vDSO falls back to these), randomness, and facts about itself and the machine",
        &[
            (SYS_clock_getres, Any),
            (SYS_clock_gettime, Any),
            (SYS_clock_nanosleep, Any),
            (SYS_getegid, Any),
            (SYS_geteuid, Any),
            (SYS_getgid, Any),
            (SYS_getpid, Any),
            (SYS_getrandom, Any),
            (SYS_getuid, Any),
            (SYS_sysinfo, Any),
            (SYS_uname, Any),
        ],
    ),
];

/// The list as a program for the kernel.
pub fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::new();
    for (call, only) in ALLOWED.iter().flat_map(|(_, calls)| *calls) {
        rules.insert(*call, conditions(*only)?);
    }
    let refuse = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// No rules mean any arguments; of several rules one must match.
fn conditions(only: Only) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule = |argument, operator, value| {
        // The kernel takes all of these arguments as 32 bits, except the flags of clone.
        let length =
            if matches!(only, Without(..)) { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
        SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])
    };
    match only {
        Any => Ok(Vec::new()),
        Argument(argument, values) => {
            values.iter().map(|value| rule(argument, SeccompCmpOp::Eq, *value)).collect()
        }
        Without(argument, bits) => Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(bits), 0)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_call_stands_once_and_every_group_has_a_reason() {
        let mut seen = BTreeSet::new();
        for (reason, calls) in ALLOWED {
            assert!(reason.len() > 10 && !calls.is_empty());
            for (call, _) in *calls {
                assert!(seen.insert(*call), "{call} twice");
            }
        }
    }

    #[test]
    fn dangerous_calls_are_absent() {
        let allowed: BTreeSet<i64> =
            ALLOWED.iter().flat_map(|(_, calls)| *calls).map(|(call, _)| *call).collect();
        for (call, why) in [
            (libc::SYS_ptrace, "reads other processes"),
            (libc::SYS_process_vm_readv, "reads other processes"),
            (libc::SYS_bpf, "runs code in the kernel"),
            (libc::SYS_perf_event_open, "side channels, large attack surface"),
            (libc::SYS_io_uring_setup, "works around this filter"),
            (libc::SYS_mount, "changes what others see"),
            (libc::SYS_unshare, "opens code of the kernel that only root should reach"),
            (libc::SYS_setns, "opens code of the kernel that only root should reach"),
            (libc::SYS_clone3, "hides its flags from this filter"),
            (libc::SYS_execveat, "executes files without a name"),
            (libc::SYS_memfd_create, "makes files without a name"),
            (libc::SYS_keyctl, "large attack surface"),
            (libc::SYS_kill, "the replica has no other process"),
            (libc::SYS_setuid, "the replica stays who it is"),
            (libc::SYS_shmget, "leaves memory behind"),
            (libc::SYS_add_key, "large attack surface"),
        ] {
            assert!(!allowed.contains(&call), "{call} is allowed; it {why}");
        }
    }

    /// Applies the filter to a thread of this test and tries both sides of each kind of rule.
    #[test]
    #[allow(unsafe_code, reason = "a system call that no library has")]
    fn the_kernel_enforces_the_list() {
        let program = filter().unwrap();
        // SAFETY: makes a descriptor or fails, and touches no memory.
        let faults = |flags: u64| unsafe { libc::syscall(SYS_userfaultfd, flags) };
        // Not every kernel has it.
        let offered = faults(O_CLOEXEC as u64 | UFFD_USER_MODE_ONLY) >= 0;
        std::thread::spawn(move || {
            seccompiler::apply_filter(&program).unwrap();
            use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
            let open = |family| socket(family, SockType::Raw, SockFlag::empty(), None).map(drop);
            assert_eq!(open(AddressFamily::Netlink), Err(nix::Error::ENOSYS));
            assert_eq!(open(AddressFamily::Packet), Err(nix::Error::ENOSYS));
            assert!(std::net::TcpListener::bind("127.0.0.1:0").is_ok());
            assert_eq!(nix::unistd::getsid(None), Err(nix::Error::ENOSYS));
            assert_eq!(faults(O_CLOEXEC as u64), -1, "faults of the kernel may not be served");
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOSYS));
            assert_eq!(faults(O_CLOEXEC as u64 | UFFD_USER_MODE_ONLY) >= 0, offered);
            assert_eq!(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS), Err(nix::Error::ENOSYS));
            // Threads and memory still work.
            assert_eq!(std::thread::spawn(|| vec![1_u8; 1 << 20].len()).join().unwrap(), 1 << 20);
        })
        .join()
        .unwrap();
    }
}

//! The host agent: checks the machine and the release, launches and watches the guest.
//!
//! | module | holds |
//! |---|---|
//! | [`machine`] | the life of one guest: states, events, transitions; pure |
//! | [`launch`] | what is launched: the QEMU command line and the launch measurement from one value; pure |
//! | [`config`] | the guest's configuration and its hash, HOST_DATA; pure |
//! | [`system`] | firewall, network and clock of a host, started under PID 1 |
//! | [`clock`] | the time that several servers agree on: what to do with it, pure; asking them |
//! | [`firewall`] | what may come in: rules as data, and as the kernel takes them |
//! | [`network`] | the host's links, addresses and routes: what to change, pure; keeping them so |
//! | [`placement`], [`nvram`] | processors, memory and NVDIMM of the machine for its guest: plans, pure; carrying them out |
//! | [`confine`] | what QEMU may do: plans, pure; the launcher that enforces them |
//! | [`status`], [`page`] | status, metrics, the page that shows them; pure |
//! | [`samples`] | figures of the last hour |
//! | [`check`], [`bundle`], [`hardware`], [`platform`], [`accel`] | what must be true before anything is launched |
//! | [`dry_run`] | what would be launched, for people to read |
//! | [`node`], [`console`], [`log`] | files of the node |
//! | [`pid1`] | PID 1 of the host's image: mounts, the verified root, the agent's process, the orderly end |
//! | [`power`], [`watchdog`], [`crashes`], [`boot_facts`] | the agent's line to PID 1; what PID 1 knows of the machine |
//! | `guest`, [`qmp`], `psp` | one running QEMU and its channels |
//! | [`attest`], `tls`, `gateway`, `relay`, [`cable`] | evidence of the guest, and the ways to it |
//! | [`operator`] | HTTPS for the node's operators, by their keys; what they may order |
//! | [`screen`] | the first terminal of the machine: facts, QR code, a menu that asks for signatures |
//! | [`decommission`], [`slots`], [`installation`] | the end of a node; its disk's other system; what the installer made of it |
//! | [`agent`], [`http`], [`cli`] | the loop that joins them, its status port, its command line |
//!
//! The host is trusted for availability only. Nothing here can make a guest pass for what it is not: a verifier
//! compares the guest's own evidence with the signed manifest, as this agent does for its gateway.

pub mod accel;
pub mod agent;
pub mod attest;
pub mod boot_facts;
pub mod bundle;
pub mod cable;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod confine;
pub mod console;
pub mod crashes;
pub mod decommission;
pub mod dry_run;
pub mod firewall;
mod gateway;
mod guest;
pub mod hardware;
pub mod http;
pub mod installation;
pub mod launch;
pub mod log;
pub mod machine;
mod netlink;
pub mod network;
pub mod node;
pub mod nvram;
pub mod operator;
pub mod page;
pub mod pid1;
pub mod placement;
pub mod platform;
pub mod power;
#[cfg(feature = "virtual")]
mod psp;
pub mod qmp;
mod relay;
pub mod samples;
pub mod screen;
pub mod slots;
pub mod status;
mod sys;
pub mod system;
mod tls;
pub mod tpm;
pub mod upgrade;
pub mod watchdog;

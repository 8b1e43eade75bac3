//! Stands in for the replica in `tests/qemu.rs`: started like it, it prints what it was given, tries what it must
//! not be able to do, and obeys one-word commands on the replica's port.
#![allow(unsafe_code, clippy::unwrap_used, reason = "a test program; takes over inherited file descriptors")]

use heap::{BarMedia, Media};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn inherited(table: &toml::Table, name: &str) -> OwnedFd {
    let number = table[name].as_integer().unwrap();
    // SAFETY: PID 1 says in the configuration that this descriptor is ours, and nothing else uses it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(number).unwrap()) }
}

/// Prints whether something was refused, with the error, or that it was not.
fn probe<T>(name: &str, result: Result<T, impl std::fmt::Display>) {
    match result {
        Ok(_) => println!("stand-in: PROBE {name} ALLOWED"),
        Err(error) => println!("stand-in: probe {name} refused: {error}"),
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    assert_eq!(arguments[1..], ["--config", "/run/replica.toml"]);
    let config: toml::Table = fs::read_to_string(&arguments[2]).unwrap().parse().unwrap();

    let mut secret = Vec::new();
    File::from(inherited(&config, "secret_fd")).read_to_end(&mut secret).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, &secret);
    println!("stand-in: secret of {} bytes, {}", secret.len(), hex::encode(digest));

    let heap = config["heap"].as_table().unwrap();
    let bar = BarMedia::from_fd(inherited(heap, "fd")).unwrap();
    let mut line = [0; 64];
    bar.read(0, &mut line).unwrap();
    println!("stand-in: nvram {} of {} bytes, starts {}", bar.kind(), bar.len(), line[0]);
    line[0] += 1;
    bar.write(0, &line).unwrap();
    bar.fence().unwrap();

    for line in fs::read_to_string("/proc/self/status").unwrap().lines() {
        if ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:", "SigBlk"]
            .iter()
            .any(|key| line.starts_with(key))
        {
            println!("stand-in: status {}", line.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    let port = config["listen"].as_str().unwrap().parse::<SocketAddr>().unwrap().port();
    probe("read-pid1", fs::read("/proc/1/environ"));
    probe("see-pid1", fs::metadata("/proc/1"));
    probe("read-disk", File::open("/dev/vda"));
    probe("read-init", File::open("/init"));
    probe("write-run", File::create("/run/x"));
    probe("write-config", OpenOptions::new().append(true).open("/run/replica.toml"));
    probe("sysctl", fs::write("/proc/sys/kernel/kptr_restrict", "0"));
    probe("reports", fs::read_dir("/sys/kernel/config/tsm/report"));
    probe("exec-init", Command::new("/init").status());
    probe("other-port", TcpListener::bind(("0.0.0.0", port - 1)));
    probe("connect-out", TcpStream::connect_timeout(&([10, 0, 2, 2], 9).into(), Duration::from_secs(1)));
    probe("netlink", socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), None));
    probe("kill-pid1", nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), None));
    println!("stand-in: probes done");

    let listener = TcpListener::bind(config["listen"].as_str().unwrap()).unwrap();
    let socket_path = config["evidence_socket"].as_str().unwrap().to_owned();
    let alive = Arc::new(AtomicBool::new(true));
    let mut ready = File::from(inherited(&config, "ready_fd"));
    ready.write_all(b"READY 1\n").unwrap();
    let beats = Arc::clone(&alive);
    std::thread::spawn(move || {
        while beats.load(Ordering::Relaxed) {
            ready.write_all(b"ALIVE\n").unwrap();
            std::thread::sleep(Duration::from_secs(2));
        }
        // Stays open: a closed pipe is not what is tested.
        std::thread::sleep(Duration::from_secs(3600));
    });
    for connection in listener.incoming() {
        if let Err(error) = connection.and_then(|stream| obey(stream, &socket_path, &alive)) {
            println!("stand-in: {error}");
        }
    }
}

fn obey(mut stream: TcpStream, evidence: &str, alive: &AtomicBool) -> io::Result<()> {
    let request: serde_json::Value = host_guest::read_frame(&mut stream).map_err(io::Error::other)?;
    match request.as_str() {
        Some("crash") => std::process::abort(),
        Some("hang") => alive.store(false, Ordering::Relaxed),
        _ => {
            let mut socket = UnixStream::connect(evidence)?;
            host_guest::write_frame(&mut socket, &request).map_err(io::Error::other)?;
            let response: serde_json::Value =
                host_guest::read_frame(&mut socket).map_err(io::Error::other)?;
            host_guest::write_frame(&mut stream, &response).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

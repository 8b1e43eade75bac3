//! Stands in QEMU's place for the tests of hand-overs: a host that lies ([`tests::lies`]).
//!
//! Started as QEMU it puts a process of its own between the agent and QEMU, on the host's port and on that of the simulated
//! Secure Processor, and becomes QEMU.
#![allow(unsafe_code, reason = "channels are inherited by number")]

use anyhow::{Context, Result, bail};
use attestation::{Report, report::GuestPolicy};
use base64::{Engine, prelude::BASE64_STANDARD};
use host_guest::{ToGuest, ToHost, read_frame, write_frame};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::{Value, json};
use simulated_psp::{
    chip::{Chip, LaunchContext, Psp},
    protocol::{Bytes, Request, Response},
};
use std::{
    fs,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};
use tests::lies::{Lie, told};

const BETWEEN: &str = "--between";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, numbers)) if first == BETWEEN => between(numbers),
        _ => become_qemu(arguments),
    }
}

/// One of the two channels that this process was started with.
fn inherited(number: &str) -> Result<UnixStream> {
    let number = number.parse().context("no number of a channel")?;
    // SAFETY: the number was given for this process alone, which takes it once and knows it by nothing else.
    Ok(unsafe { UnixStream::from_raw_fd(number) })
}

fn keep(stream: &UnixStream, keep: bool) -> Result<()> {
    let flags = if keep { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(stream, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

fn become_qemu(mut arguments: Vec<String>) -> Result<()> {
    let gets_a_key = !arguments.iter().any(|argument| argument == "-netdev");
    let mut between = Command::new(std::env::current_exe()?);
    between.arg(BETWEEN).arg(gets_a_key.to_string());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for name in ["host", "psp"] {
        let start = format!("socket,id={name},fd=");
        let channel = arguments.iter_mut().find(|argument| argument.starts_with(&start));
        // `qemu --version` and the like have none.
        let Some(channel) = channel else { continue };
        let agents = inherited(channel.trim_start_matches(&start))?;
        let (between_end, qemu_end) = UnixStream::pair()?;
        *channel = format!("{start}{}", qemu_end.as_raw_fd());
        for end in [agents, between_end] {
            keep(&end, true)?;
            between.arg(end.as_raw_fd().to_string());
            ours.push(end);
        }
        theirs.push(qemu_end);
    }
    if !ours.is_empty() {
        between.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    }
    ours.iter().try_for_each(|end| keep(end, false))?;
    theirs.iter().try_for_each(|end| keep(end, true))?;
    Err(Command::new("/usr/bin/qemu-system-x86_64").args(arguments).exec().into())
}

fn between(words: &[String]) -> Result<()> {
    let [gets_a_key, numbers @ ..] = words else { bail!("not started by itself") };
    let streams = numbers.iter().map(|number| inherited(number)).collect::<Result<Vec<_>>>()?;
    let folder = std::env::current_exe()?.parent().context("no folder")?.to_owned();
    // The guest that gives a key lives through many hand-overs; lies are told to the one that gets it.
    let lie = if gets_a_key == "true" { told(&folder)? } else { Lie::None };
    let [agent, guest, more @ ..] = &streams[..] else { bail!("no host's port") };
    let certificates = Arc::new(Mutex::new(None));
    if let [agents_psp, guests_psp] = more {
        let pair = (agents_psp.try_clone()?, guests_psp.try_clone()?);
        match lie.clone() {
            Lie::Launch { chip, policy, another } => {
                let chip = Chip::open_or_create(&chip)?;
                let table = BASE64_STANDARD.encode(chip.certificate_table());
                *certificates.lock().unwrap_or_else(PoisonError::into_inner) = Some(table);
                let psp = launch(&chip, pair.0, policy, another)?;
                thread::spawn(move || serve(pair.1, &psp));
            }
            _ => {
                let (from, to) = (pair.0.try_clone()?, pair.1.try_clone()?);
                thread::spawn(move || carry(from, to));
                thread::spawn(move || carry(pair.1, pair.0));
            }
        }
    }
    let host = Host {
        lie,
        folder,
        certificates: certificates.lock().unwrap_or_else(PoisonError::into_inner).take(),
    };
    let (to_agent, mut from_guest) = (agent.try_clone()?, guest.try_clone()?);
    let replay = host.lie.clone();
    let folder = host.folder.clone();
    thread::spawn(move || {
        let ended = upwards(&replay, &folder, &mut from_guest, &to_agent);
        let _ = to_agent.shutdown(std::net::Shutdown::Both);
        ended
    });
    let ended = host.downwards(&mut agent.try_clone()?, guest);
    let _ = guest.shutdown(std::net::Shutdown::Both);
    ended
}

fn carry(mut from: UnixStream, mut to: UnixStream) {
    // Either end going away ends it.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// What the agent's processor was told of the guest, changed, on this chip.
fn launch(chip: &Chip, mut agents: UnixStream, policy: u64, another: bool) -> Result<Psp> {
    write_frame(&mut agents, &Request::Report { report_data: Bytes([0; 64]), vmpl: 0 })?;
    let Response::Report { report, .. } = read_frame(&mut agents)? else { bail!("no report") };
    let report = Report::parse(&report.0)?;
    let mut measurement = report.measurement();
    measurement.0[0] ^= u8::from(another);
    let mut context = LaunchContext::new(measurement, report.host_data());
    context.policy = GuestPolicy(report.policy().0 ^ policy);
    Ok(chip.launch(context)?)
}

fn serve(mut guest: UnixStream, psp: &Psp) -> Result<()> {
    loop {
        let mut response = psp.handle(&read_frame(&mut guest)?);
        if let Response::Report { certificates, .. } = &mut response {
            certificates.0.clear();
        }
        write_frame(&mut guest, &response)?;
    }
}

/// What the guest says to the agent.
fn upwards(lie: &Lie, folder: &Path, guest: &mut UnixStream, mut agent: &UnixStream) -> Result<()> {
    let mut count = 0;
    loop {
        let mut said: ToHost = read_frame(guest)?;
        if let ToHost::HandOver { message } = &mut said {
            count += 1;
            // The second is the request.
            if count == 2 {
                request(lie, &folder.join("request"), message)?;
            }
        }
        write_frame(&mut agent, &said)?;
    }
}

fn request(lie: &Lie, kept: &PathBuf, message: &mut String) -> Result<()> {
    match lie {
        Lie::Report => {
            let mut request: Value = serde_json::from_str(message)?;
            let report = request["evidence"]["report"].as_str().context("no report")?;
            let mut report = BASE64_STANDARD.decode(report)?;
            // In MEASUREMENT.
            *report.get_mut(0x90).context("a short report")? ^= 1;
            request["evidence"]["report"] = json!(BASE64_STANDARD.encode(report));
            *message = request.to_string();
        }
        Lie::Replay => match fs::read_to_string(kept) {
            Ok(earlier) => *message = earlier,
            Err(_) => {
                fs::write(kept, &*message)?;
                // The hand-over must end without a key, or there would be no next one.
                "{}".clone_into(message);
            }
        },
        _ => {}
    }
    Ok(())
}

struct Host {
    lie: Lie,
    folder: PathBuf,
    certificates: Option<String>,
}

impl Host {
    /// What the agent says to the guest.
    fn downwards(&self, agent: &mut UnixStream, mut guest: &UnixStream) -> Result<()> {
        let mut challenged = false;
        loop {
            let mut said: ToGuest = read_frame(agent)?;
            match (&mut said, &self.lie) {
                (ToGuest::Certificates { table }, _) => {
                    if let Some(own) = &self.certificates {
                        table.clone_from(own);
                    }
                }
                (ToGuest::TakeOver { .. }, Lie::Documents(other)) => {
                    let mut documents = serde_json::to_value(&said)?;
                    documents.as_object_mut().context("no object")?.extend(other.clone());
                    said = serde_json::from_value(documents)?;
                }
                (ToGuest::HandOver { message }, Lie::Key) if !challenged => {
                    challenged = true;
                    let mut challenge: Value = serde_json::from_str(message)?;
                    challenge["key"] = json!("09".repeat(32));
                    *message = challenge.to_string();
                }
                _ => {}
            }
            write_frame(&mut guest, &said)?;
        }
    }
}

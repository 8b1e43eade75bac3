//! What firmware and systemd's stub measure of a release, and every difference between that and a log.
//!
//! | PCR | what is held against the release |
//! |---|---|
//! | 4 | which executables the firmware started, by their Authenticode hashes: the image, then at most the kernel in it |
//! | 7 | Secure Boot is on; its keys, and the certificate that vouched for the image, are the release's |
//! | 11 | the sections of the unified kernel image, as `systemd-measure` predicts them |
//! | 12, 13 | nothing: no command line, credential or extension from outside of the image |
//!
//! The other PCRs are the machine's own firmware and settings: they are quoted, the log leads to them, and they are shown.

use crate::{
    Hash, extend,
    log::{ACTION, APPLICATION, Event, EventLog, SEPARATOR, VARIABLE_AUTHORITY, VARIABLE_CONFIG},
    reader::{CutOff, Reader},
    sha256,
};
use std::collections::BTreeMap;

/// Sections of a unified kernel image that systemd's stub measures into PCR 11, in the order in which it does (systemd
/// 257, src/fundamental/uki.h; systemd-stub(7)).
const MEASURED: [&str; 12] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey",
    ".profile", ".dtbauto",
];

/// One measured section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name, such as `.cmdline`.
    pub name: String,
    /// SHA-256 of its content.
    pub sha256: Hash,
}

/// What is expected of a host that was started from a release.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Authenticode hashes of the executables that the firmware starts: the unified kernel image, then the kernel in it. Of
    /// the latter there is no event where the stub starts it past the firmware's own check, as systemd's does under Secure
    /// Boot; it is among the sections in any case.
    pub images: Vec<Hash>,
    /// Sections of the image, in the order in which they are measured.
    pub sections: Vec<Section>,
    /// SHA-256 of the certificates (DER) that may be in the firmware's PK, KEK and db.
    pub certificates: Vec<Hash>,
}

/// The sections of an image that are measured, in order; `sections` are all of them, with their contents.
pub fn measured<'a>(sections: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<Section> {
    let found: BTreeMap<&str, &[u8]> = sections.into_iter().collect();
    let section = |name: &&str| {
        let content = found.get(*name)?;
        Some(Section { name: (*name).to_owned(), sha256: sha256(content) })
    };
    MEASURED.iter().filter_map(section).collect()
}

/// What PCR 11 is extended by for each section: its name with the final zero, then its content.
fn extensions(section: &Section) -> [Hash; 2] {
    [sha256(format!("{}\0", section.name).as_bytes()), section.sha256]
}

/// PCR 11 after systemd's stub measured these sections.
pub fn pcr11(sections: &[Section]) -> Hash {
    sections.iter().flat_map(extensions).fold([0; 32], |pcr, event| extend(&pcr, &event))
}

/// One difference between what is expected and what was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// A short fixed name, for scripts and tests.
    pub code: &'static str,
    /// The PCR.
    pub pcr: u8,
    /// Number of the event in the log, if it is one event's.
    pub event: Option<usize>,
    /// What differs, in words.
    pub what: String,
    /// What the release says.
    pub expected: String,
    /// What the log says.
    pub found: String,
    /// What to do.
    pub fix: &'static str,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let event = self.event.map_or_else(String::new, |event| format!(", event {event}"));
        write!(
            f,
            "PCR {}{event}: {}: expected {}, found {}; {} ({})",
            self.pcr, self.what, self.expected, self.found, self.fix, self.code
        )
    }
}

/// Every difference. `quoted` are the values that the TPM vouches for.
pub fn compare(log: &EventLog, quoted: &BTreeMap<u8, Hash>, expected: &Expected) -> Vec<Difference> {
    let mut out = Vec::new();
    let replayed = log.replay();
    for (pcr, value) in quoted {
        let found = replayed.get(usize::from(*pcr)).copied().unwrap_or_default();
        if found != *value {
            out.push(Difference {
                code: "log-differs",
                pcr: *pcr,
                event: None,
                what: "the event log does not lead to what the TPM quoted: events were changed, left out or added, or something was measured that the log does not tell of".into(),
                expected: hex::encode(value),
                found: hex::encode(found),
                fix: "do not believe this log; fetch it again, and if that gives the same, do not believe this host",
            });
        }
    }
    images(log, expected, &mut out);
    secure_boot(log, expected, &mut out);
    sections(log, expected, &mut out);
    for pcr in [12, 13] {
        out.extend(log.of(pcr).map(|event| Difference {
            code: "foreign-input",
            pcr,
            event: Some(event.number),
            what: format!("the stub took something from outside of the signed image: {}", words(&event.data)),
            expected: "nothing".into(),
            found: hex::encode(event.digest),
            fix: "remove add-ons, credentials and command lines from the boot partition and the boot entry, and restart",
        }));
    }
    out
}

/// PCR 4.
fn images(log: &EventLog, expected: &Expected, out: &mut Vec<Difference>) {
    let difference = |code, event: Option<usize>, what: String, expected: String, found: String| Difference {
        code,
        pcr: 4,
        event,
        what,
        expected,
        found,
        fix: "start the machine from the disk of the release, with nothing before it; install the release again if it was",
    };
    let mut wanted = expected.images.iter();
    for event in log.of(4) {
        match event.kind {
            APPLICATION => {
                let want = wanted.next();
                if want != Some(&event.digest) {
                    let want = want.map_or_else(|| "no further executable".to_owned(), hex::encode);
                    let what = "the firmware started another executable (Authenticode hash)".to_owned();
                    out.push(difference(
                        "image-differs",
                        Some(event.number),
                        what,
                        want,
                        hex::encode(event.digest),
                    ));
                }
            }
            SEPARATOR if event.digest == sha256(&[0; 4]) => {}
            ACTION if event.digest == sha256(b"Calling EFI Application from Boot Option") => {}
            _ => {
                let what = format!("the boot loader's register has an unknown {}", event.name());
                let found = words(&event.data);
                out.push(difference(
                    "unknown-event",
                    Some(event.number),
                    what,
                    "no such event".into(),
                    found,
                ));
            }
        }
    }
    if wanted.len() == expected.images.len()
        && let Some(missing) = wanted.next()
    {
        let what = "the firmware did not start the release's image".to_owned();
        out.push(difference("image-missing", None, what, hex::encode(missing), "no event".into()));
    }
}

/// PCR 11.
fn sections(log: &EventLog, expected: &Expected, out: &mut Vec<Difference>) {
    let difference = |code, event: Option<usize>, what: String, expected: String, found: String| Difference {
        code,
        pcr: 11,
        event,
        what,
        expected,
        found,
        fix: "the machine runs another image than the release's: install the release, or compare with the manifest of what it runs",
    };
    let mut events = log.of(11);
    for section in &expected.sections {
        for (part, want) in ["name", "content"].into_iter().zip(extensions(section)) {
            let what = format!("the {part} of section {} of the unified kernel image", section.name);
            match events.next() {
                Some(event) if event.digest == want => {}
                Some(event) => {
                    let found = hex::encode(event.digest);
                    out.push(difference(
                        "section-differs",
                        Some(event.number),
                        what,
                        hex::encode(want),
                        found,
                    ));
                    if part == "name" {
                        // From here on sections are compared with their neighbours.
                        return;
                    }
                }
                None => {
                    out.push(difference("section-missing", None, what, hex::encode(want), "no event".into()))
                }
            }
        }
    }
    out.extend(events.map(|event| {
        let what = format!("something more than the release's sections was measured: {}", words(&event.data));
        difference("section-extra", Some(event.number), what, "no event".into(), hex::encode(event.digest))
    }));
}

/// A variable of UEFI, as it is measured: UEFI_VARIABLE_DATA.
struct Variable<'a> {
    name: String,
    value: &'a [u8],
}

fn variable(data: &[u8]) -> Result<Variable<'_>, CutOff> {
    let mut reader = Reader::new(data);
    let _owner = reader.take(16)?;
    let (name, value) = (reader.le64()?, reader.le64()?);
    let length = |number: u64| usize::try_from(number).map_err(|_| CutOff);
    let name = reader.take(length(name)?.checked_mul(2).ok_or(CutOff)?)?;
    let name: Vec<u16> = name.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    let value = reader.take(length(value)?)?;
    if !reader.is_empty() {
        return Err(CutOff);
    }
    Ok(Variable { name: String::from_utf16_lossy(&name), value })
}

/// EFI_CERT_X509_GUID, as it is stored.
const X509: [u8; 16] =
    [0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72];

/// The entries of EFI_SIGNATURE_LISTs (UEFI specification 2.10, 32.4.1): the SHA-256 of each certificate; of what is none
/// there is only its type.
fn signatures(value: &[u8]) -> Result<Vec<Result<Hash, String>>, CutOff> {
    let mut reader = Reader::new(value);
    let mut found = Vec::new();
    while !reader.is_empty() {
        let kind: [u8; 16] = reader.array()?;
        let (list, header, size) =
            (reader.le32()? as usize, reader.le32()? as usize, reader.le32()? as usize);
        let mut entries = Reader::new(reader.take(list.checked_sub(28).ok_or(CutOff)?)?);
        let _header = entries.take(header)?;
        if size <= 16 {
            return Err(CutOff);
        }
        while !entries.is_empty() {
            let entry = &entries.take(size)?[16..];
            found.push(if kind == X509 { Ok(sha256(entry)) } else { Err(hex::encode(entry)) });
        }
    }
    Ok(found)
}

/// PCR 7 (TCG PC Client Platform Firmware Profile, 3.3.4.8).
fn secure_boot(log: &EventLog, expected: &Expected, out: &mut Vec<Difference>) {
    let difference = |code, event: Option<&Event>, what: String, expected: String, found: String, fix| {
        Difference { code, pcr: 7, event: event.map(|event| event.number), what, expected, found, fix }
    };
    const FIRMWARE: &str = "switch Secure Boot on in the firmware, with the project's keys only, and restart";
    let known = |hash: &Hash| expected.certificates.contains(hash);
    let listed = || expected.certificates.iter().map(hex::encode).collect::<Vec<_>>().join(" or ");
    let (mut on, mut vouched) = (None, false);
    for event in log.of(7) {
        if event.kind == SEPARATOR && event.digest == sha256(&[0; 4]) {
            continue;
        }
        let read = event.data_is_measured().then(|| variable(&event.data).ok()).flatten();
        let Some(variable) = read.filter(|_| [VARIABLE_CONFIG, VARIABLE_AUTHORITY].contains(&event.kind))
        else {
            let what = format!("the register of Secure Boot has an unknown {}", event.name());
            let found = words(&event.data);
            out.push(difference("unknown-event", Some(event), what, "no such event".into(), found, FIRMWARE));
            continue;
        };
        match (event.kind, variable.name.as_str()) {
            (VARIABLE_CONFIG, "SecureBoot") => on = Some((event, variable.value == [1])),
            (VARIABLE_CONFIG, name @ ("PK" | "KEK" | "db")) => match signatures(variable.value) {
                Ok(entries) => {
                    for entry in entries {
                        let found = match entry {
                            Ok(hash) if known(&hash) => continue,
                            Ok(hash) => hex::encode(hash),
                            Err(other) => format!("an entry that is no certificate: {other}"),
                        };
                        let what = format!("the firmware's {name} trusts another certificate (SHA-256)");
                        out.push(difference("key-unknown", Some(event), what, listed(), found, FIRMWARE));
                    }
                }
                Err(CutOff) => {
                    let what = format!("the firmware's {name}");
                    let (expected, found) = ("lists of signatures".into(), hex::encode(variable.value));
                    out.push(difference("key-unknown", Some(event), what, expected, found, FIRMWARE));
                }
            },
            // What is forbidden only makes it stricter.
            (VARIABLE_CONFIG, _) => {}
            // EFI_SIGNATURE_DATA: an owner, then the certificate.
            (_, name) => match variable.value.get(16..).map(sha256) {
                Some(hash) if name == "db" && known(&hash) => vouched = true,
                hash => {
                    let found = hash.map_or_else(|| "nothing".into(), hex::encode);
                    let what =
                        format!("an entry of {name} vouched for an executable (SHA-256 of the certificate)");
                    out.push(difference("authority-unknown", Some(event), what, listed(), found, FIRMWARE));
                }
            },
        }
    }
    let what = || "Secure Boot".to_owned();
    match on {
        Some((_, true)) if vouched => {}
        Some((_, true)) => {
            let what = "the certificate that vouched for the image".to_owned();
            out.push(difference("authority-missing", None, what, listed(), "no event".into(), FIRMWARE));
        }
        Some((event, false)) => {
            out.push(difference("secure-boot-off", Some(event), what(), "on".into(), "off".into(), FIRMWARE));
        }
        None => {
            out.push(difference("secure-boot-off", None, what(), "on".into(), "no event".into(), FIRMWARE))
        }
    }
}

/// What an event is called, as far as it can be shown.
fn words(data: &[u8]) -> String {
    let wide = data.len() >= 2
        && data.len().is_multiple_of(2)
        && data.iter().skip(1).step_by(2).all(|byte| *byte == 0);
    let step = if wide { 2 } else { 1 };
    let text: String = data.iter().step_by(step).take(80).map(|byte| char::from(*byte)).collect();
    let text = text.trim_end_matches('\0');
    if !text.is_empty() && text.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
        format!("\"{text}\"")
    } else {
        let cut = &data[..data.len().min(40)];
        format!("{} bytes, {}{}", data.len(), hex::encode(cut), if cut.len() < data.len() { "…" } else { "" })
    }
}

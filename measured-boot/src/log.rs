//! The event log: what was measured into which PCR, in order (TCG PC Client Platform Firmware Profile Specification,
//! 1.06, section 10). Only logs in the crypto-agile form with a SHA-256 bank are read.

use crate::{
    Hash, PCRS, SHA256, extend,
    reader::{CutOff, Reader},
    sha256,
};

/// Longest log that is looked at, in bytes.
pub const MAX_LOG: usize = 2 << 20;
/// Most events that are looked at.
pub const MAX_EVENTS: usize = 4096;
/// Most banks that a TPM may have here.
const MAX_BANKS: u32 = 8;

/// EV_NO_ACTION: says something and measures nothing.
pub const NO_ACTION: u32 = 3;
/// EV_SEPARATOR: the firmware's part of a PCR ends here, or an error did.
pub const SEPARATOR: u32 = 4;
/// EV_IPL: what systemd's stub measures.
pub const IPL: u32 = 0x0d;
/// EV_EFI_VARIABLE_DRIVER_CONFIG: a variable that configures the firmware, such as the Secure Boot keys.
pub const VARIABLE_CONFIG: u32 = 0x8000_0001;
/// EV_EFI_BOOT_SERVICES_APPLICATION: an executable that was started; the digest is its Authenticode hash.
pub const APPLICATION: u32 = 0x8000_0003;
/// EV_EFI_ACTION: something that the firmware did, in words.
pub const ACTION: u32 = 0x8000_0007;
/// EV_EFI_VARIABLE_AUTHORITY: the entry of a signature database that vouched for an executable.
pub const VARIABLE_AUTHORITY: u32 = 0x8000_00e0;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Number in the log; the first, which describes the log, is 0.
    pub number: usize,
    /// The PCR that was extended.
    pub pcr: u8,
    /// What kind: the constants of this module.
    pub kind: u32,
    /// What the PCR was extended by; zeros for [`NO_ACTION`].
    pub digest: Hash,
    /// What was measured, or what it is called. Means nothing unless [`Event::data_is_measured`] or the digest is known.
    pub data: Vec<u8>,
}

impl Event {
    /// Whether the digest is the data's, so that the data is as true as the PCR.
    pub fn data_is_measured(&self) -> bool {
        sha256(&self.data) == self.digest
    }

    /// The kind's name in the specification.
    pub fn name(&self) -> String {
        let name = match self.kind {
            0 => "EV_PREBOOT_CERT",
            1 => "EV_POST_CODE",
            NO_ACTION => "EV_NO_ACTION",
            SEPARATOR => "EV_SEPARATOR",
            5 => "EV_ACTION",
            6 => "EV_EVENT_TAG",
            7 => "EV_S_CRTM_CONTENTS",
            8 => "EV_S_CRTM_VERSION",
            9 => "EV_CPU_MICROCODE",
            10 => "EV_PLATFORM_CONFIG_FLAGS",
            IPL => "EV_IPL",
            VARIABLE_CONFIG => "EV_EFI_VARIABLE_DRIVER_CONFIG",
            0x8000_0002 => "EV_EFI_VARIABLE_BOOT",
            APPLICATION => "EV_EFI_BOOT_SERVICES_APPLICATION",
            0x8000_0004 => "EV_EFI_BOOT_SERVICES_DRIVER",
            0x8000_0005 => "EV_EFI_RUNTIME_SERVICES_DRIVER",
            0x8000_0006 => "EV_EFI_GPT_EVENT",
            ACTION => "EV_EFI_ACTION",
            0x8000_0008 => "EV_EFI_PLATFORM_FIRMWARE_BLOB",
            0x8000_0009 => "EV_EFI_HANDOFF_TABLES",
            0x8000_000a => "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
            0x8000_000b => "EV_EFI_HANDOFF_TABLES2",
            0x8000_000c => "EV_EFI_VARIABLE_BOOT2",
            VARIABLE_AUTHORITY => "EV_EFI_VARIABLE_AUTHORITY",
            other => return format!("event type {other:#x}"),
        };
        name.to_owned()
    }
}

/// Bytes are no event log that can be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Nothing of that length is looked at.
    #[error("the event log has {0} bytes, at most {MAX_LOG} are read; fetch it again")]
    TooLong(usize),
    /// Neither is that many events.
    #[error("the event log has more than {MAX_EVENTS} events; fetch it again")]
    TooMany,
    /// The log ends within an event.
    #[error("the event log is cut off in event {event}, at byte {at}; fetch it again")]
    CutOff {
        /// Number of the event.
        event: usize,
        /// Where the log ends too early.
        at: usize,
    },
    /// The form of TPM 1.2, or no log at all.
    #[error(
        "the event log is not in the crypto-agile form of TPM 2.0; switch the firmware's TPM to version 2.0"
    )]
    NotCryptoAgile,
    /// SHA-1 only, for example.
    #[error(
        "the event log has no SHA-256 digests, only of algorithms {0}; enable the TPM's SHA-256 bank in the firmware"
    )]
    Bank(String),
    /// The log contradicts itself.
    #[error("event {event} has no sound digests ({reason}); fetch the log again")]
    Digests {
        /// Number of the event.
        event: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// There is no such register.
    #[error("event {event} is for PCR {pcr}, which no PC has; fetch the log again")]
    Pcr {
        /// Number of the event.
        event: usize,
        /// The register.
        pcr: u32,
    },
}

/// A parsed log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    /// The events after the first one, which describes the log.
    pub events: Vec<Event>,
    /// Locality at which the firmware started the TPM; PCR 0 begins with it (TPM 2.0 Library, Part 1, 34.3).
    pub locality: u8,
}

impl EventLog {
    /// Reads a log as Linux gives it: `/sys/kernel/security/tpm0/binary_bios_measurements`.
    pub fn parse(bytes: &[u8]) -> Result<Self, LogError> {
        if bytes.len() > MAX_LOG {
            return Err(LogError::TooLong(bytes.len()));
        }
        let mut reader = Reader::new(bytes);
        let banks = header(&mut reader).map_err(|_| LogError::NotCryptoAgile)?;
        let banks = banks.ok_or(LogError::NotCryptoAgile)?;
        if !banks.contains(&(SHA256, 32)) {
            let names: Vec<String> = banks.iter().map(|(id, _)| format!("{id:#06x}")).collect();
            return Err(LogError::Bank(names.join(", ")));
        }
        let mut log = Self { events: Vec::new(), locality: 0 };
        while !reader.is_empty() {
            let number = log.events.len() + 1;
            if number > MAX_EVENTS {
                return Err(LogError::TooMany);
            }
            let event = match event(&mut reader, number, &banks) {
                Ok(event) => event?,
                Err(CutOff) => return Err(LogError::CutOff { event: number, at: reader.at() }),
            };
            if event.kind == NO_ACTION
                && event.pcr == 0
                && let Some(&[locality]) = event.data.strip_prefix(b"StartupLocality\0")
            {
                log.locality = locality;
            }
            log.events.push(event);
        }
        Ok(log)
    }

    /// The events of one PCR that measure something, in order.
    pub fn of(&self, pcr: u8) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.pcr == pcr && event.kind != NO_ACTION)
    }

    /// The values that the PCRs have after these events.
    pub fn replay(&self) -> [Hash; PCRS] {
        let mut pcrs = [[0; 32]; PCRS];
        // Registers of dynamic launches are set to ones at start (PC Client Platform TPM Profile, 4.6).
        pcrs[17..23].fill([0xff; 32]);
        pcrs[0][31] = self.locality;
        for event in self.events.iter().filter(|event| event.kind != NO_ACTION) {
            if let Some(pcr) = pcrs.get_mut(usize::from(event.pcr)) {
                *pcr = extend(pcr, &event.digest);
            }
        }
        pcrs
    }
}

/// The first event has the old form (TCG_PCClientPCREvent) and holds a TCG_EfiSpecIDEvent: which digests follow, and of how
/// many bytes.
fn header(reader: &mut Reader<'_>) -> Result<Option<Vec<(u16, u16)>>, CutOff> {
    let (_pcr, kind) = (reader.le32()?, reader.le32()?);
    let _sha1 = reader.take(20)?;
    let length = reader.le32()? as usize;
    let mut data = Reader::new(reader.take(length)?);
    if kind != NO_ACTION || data.take(16)? != b"Spec ID Event03\0" {
        return Ok(None);
    }
    let _class_version_errata_size = data.take(8)?;
    let count = data.le32()?;
    if count == 0 || count > MAX_BANKS {
        return Ok(None);
    }
    let banks = (0..count).map(|_| Ok((data.le16()?, data.le16()?))).collect::<Result<Vec<_>, CutOff>>()?;
    let vendor = data.u8()?;
    data.take(vendor.into())?;
    Ok(Some(banks))
}

/// One TCG_PCR_EVENT2.
fn event(
    reader: &mut Reader<'_>,
    number: usize,
    banks: &[(u16, u16)],
) -> Result<Result<Event, LogError>, CutOff> {
    let wrong = |reason| Ok(Err(LogError::Digests { event: number, reason }));
    let (pcr, kind, count) = (reader.le32()?, reader.le32()?, reader.le32()?);
    if count as usize != banks.len() {
        return wrong("their number is not that of the TPM's banks");
    }
    let mut found = None;
    for _ in 0..count {
        let algorithm = reader.le16()?;
        let Some((_, size)) = banks.iter().find(|(id, _)| *id == algorithm) else {
            return wrong("one is of an algorithm that the TPM has no bank for");
        };
        let digest = reader.take((*size).into())?;
        if algorithm == SHA256 && found.replace(digest).is_some() {
            return wrong("there are two of SHA-256");
        }
    }
    let Some(digest) = found.and_then(|digest| Hash::try_from(digest).ok()) else {
        return wrong("there is none of SHA-256");
    };
    let length = reader.le32()? as usize;
    let data = reader.take(length)?.to_vec();
    let index = match u8::try_from(pcr) {
        Ok(index) if usize::from(index) < PCRS => index,
        // Some firmware marks events that measure nothing by an index of all ones.
        _ if kind == NO_ACTION => u8::MAX,
        _ => return Ok(Err(LogError::Pcr { event: number, pcr })),
    };
    Ok(Ok(Event { number, pcr: index, kind, digest, data }))
}

/// Writes logs, for tests and for comparing with other tools.
pub mod write {
    use super::{Event, SHA256};

    /// A log with a SHA-256 bank of these events.
    pub fn log(events: &[Event]) -> Vec<u8> {
        let mut out = header(&[(SHA256, 32)]);
        for event in events {
            out.extend(u32::from(event.pcr).to_le_bytes());
            out.extend(event.kind.to_le_bytes());
            out.extend(1_u32.to_le_bytes());
            out.extend(SHA256.to_le_bytes());
            out.extend(event.digest);
            out.extend((event.data.len() as u32).to_le_bytes());
            out.extend(&event.data);
        }
        out
    }

    /// The event that begins a log: the TPM's banks, each an algorithm and the bytes of its digests.
    pub fn header(banks: &[(u16, u16)]) -> Vec<u8> {
        let mut id = b"Spec ID Event03\0".to_vec();
        id.extend([0, 0, 0, 0, 0, 2, 0, 2]);
        id.extend((banks.len() as u32).to_le_bytes());
        for (algorithm, size) in banks {
            id.extend(algorithm.to_le_bytes());
            id.extend(size.to_le_bytes());
        }
        id.push(0);
        let mut out = 0_u32.to_le_bytes().to_vec();
        out.extend(super::NO_ACTION.to_le_bytes());
        out.extend([0; 20]);
        out.extend((id.len() as u32).to_le_bytes());
        out.extend(id);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(number: usize, pcr: u8, kind: u32, data: &[u8]) -> Event {
        let digest = if kind == NO_ACTION { [0; 32] } else { sha256(data) };
        Event { number, pcr, kind, digest, data: data.to_vec() }
    }

    fn sample() -> Vec<Event> {
        vec![
            event(1, 0, NO_ACTION, b"StartupLocality\0\x03"),
            event(2, 7, VARIABLE_CONFIG, b"x"),
            event(3, 7, SEPARATOR, &[0; 4]),
        ]
    }

    #[test]
    fn what_is_written_is_read_and_replayed() {
        let log = EventLog::parse(&write::log(&sample())).unwrap();
        assert_eq!((log.events.clone(), log.locality), (sample(), 3));
        let pcrs = log.replay();
        assert_eq!(pcrs[7], extend(&extend(&[0; 32], &sha256(b"x")), &sha256(&[0; 4])));
        assert_eq!(pcrs[0], std::array::from_fn(|at| if at == 31 { 3 } else { 0 }));
        assert_eq!((pcrs[1], pcrs[17]), ([0; 32], [0xff; 32]));
    }

    #[test]
    fn logs_that_cannot_be_judged_are_refused_by_name() {
        let good = write::log(&sample());
        let parse = |bytes: &[u8]| EventLog::parse(bytes).unwrap_err();
        assert!(matches!(parse(&good[..good.len() - 1]), LogError::CutOff { event: 3, .. }));
        assert_eq!(parse(&[]), LogError::NotCryptoAgile);
        assert_eq!(parse(&write::header(&[(4, 20)])), LogError::Bank("0x0004".into()));
        let mut pcr = good.clone();
        let at = write::header(&[(SHA256, 32)]).len() + 4 + 4 + 4 + 2 + 32 + 4 + 17;
        pcr[at] = 24;
        assert_eq!(parse(&pcr), LogError::Pcr { event: 2, pcr: 24 });
        let mut algorithm = good.clone();
        algorithm[at + 12] ^= 1;
        assert!(matches!(parse(&algorithm), LogError::Digests { event: 2, .. }));
        assert_eq!(parse(&vec![0; MAX_LOG + 1]), LogError::TooLong(MAX_LOG + 1));
        let many: Vec<Event> = (0..=MAX_EVENTS).map(|_| event(0, 1, SEPARATOR, &[])).collect();
        assert_eq!(parse(&write::log(&many)), LogError::TooMany);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let _ = EventLog::parse(&bytes);
            let mut changed = write::log(&sample());
            for (at, to) in flips {
                let at = at.index(changed.len());
                changed[at] = to;
            }
            if let Ok(log) = EventLog::parse(&changed) {
                log.replay();
            }
            let mut longer = write::header(&[(SHA256, 32)]);
            longer.extend(bytes);
            let _ = EventLog::parse(&longer);
        }

        #[test]
        fn any_events_come_back(events in proptest::collection::vec(
            (0..24_u8, any::<u32>(), any::<[u8; 32]>(), proptest::collection::vec(any::<u8>(), 0..50)), 0..20,
        )) {
            let events: Vec<Event> = events.into_iter().enumerate().map(|(index, (pcr, kind, digest, data))| {
                Event { number: index + 1, pcr, kind, digest, data }
            }).collect();
            prop_assert_eq!(EventLog::parse(&write::log(&events)).unwrap().events, events);
        }
    }
}

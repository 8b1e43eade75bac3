//! The semantics of configfs-tsm, after Linux 6.12 `drivers/virt/coco/tsm.c` with the provider `sev_guest`. No I/O.
//!
//! A directory made under `report/` is one [`Report`] with its attributes as files. Every write of `inblob` or
//! `privlevel` advances `generation`; reading `outblob` or `auxblob` makes a new report when something was written
//! since the last one.

use super::client::{Answer, ClientError};
use crate::protocol::Status;

/// Longest `inblob` (TSM_INBLOB_MAX), in bytes. The provider takes exactly this length.
pub(super) const INBLOB_MAX: usize = 64;
/// Highest `privlevel` (TSM_PRIVLEVEL_MAX).
const PRIVLEVEL_MAX: u32 = 3;
/// Lowest `privlevel` that the provider takes: the VMPL of the guest.
const PRIVLEVEL_FLOOR: u32 = 0;

/// The files of one report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute {
    Generation,
    Provider,
    Privlevel,
    PrivlevelFloor,
    Inblob,
    Outblob,
    Auxblob,
}

/// Error numbers that the kernel returns at the same places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TsmError {
    /// EINVAL: a value out of range, or no valid `inblob` yet.
    Invalid,
    /// EBUSY: written so often without a read that `generation` would come round.
    Busy,
    /// ENXIO: the provider failed.
    NoDevice,
    /// EACCES: not an attribute for this direction.
    Access,
}

impl Attribute {
    /// All of them, in the order of a directory listing. (`manifestblob` and `service_*` exist in Linux only under
    /// an SVSM.)
    pub(super) const ALL: [Self; 7] = [
        Self::Generation,
        Self::Provider,
        Self::Privlevel,
        Self::PrivlevelFloor,
        Self::Inblob,
        Self::Outblob,
        Self::Auxblob,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Generation => "generation",
            Self::Provider => "provider",
            Self::Privlevel => "privlevel",
            Self::PrivlevelFloor => "privlevel_floor",
            Self::Inblob => "inblob",
            Self::Outblob => "outblob",
            Self::Auxblob => "auxblob",
        }
    }

    pub(super) const fn writable(self) -> bool {
        matches!(self, Self::Privlevel | Self::Inblob)
    }

    /// Binary attributes are stored as a whole when their file is closed, the others at each write(2).
    pub(super) const fn binary(self) -> bool {
        matches!(self, Self::Inblob | Self::Outblob | Self::Auxblob)
    }
}

/// State of one report directory.
#[derive(Debug, Default)]
pub(super) struct Report {
    inblob: Vec<u8>,
    privlevel: u32,
    write_generation: u64,
    read_generation: u64,
    made: Option<(Vec<u8>, Vec<u8>)>,
}

impl Report {
    pub(super) fn write(&mut self, attribute: Attribute, value: &[u8]) -> Result<(), TsmError> {
        match attribute {
            Attribute::Privlevel => {
                let level = parse_unsigned(value)?;
                if !(PRIVLEVEL_FLOOR..=PRIVLEVEL_MAX).contains(&level) {
                    return Err(TsmError::Invalid);
                }
                self.advance()?;
                self.privlevel = level;
            }
            Attribute::Inblob => {
                if value.len() > INBLOB_MAX {
                    return Err(TsmError::Invalid);
                }
                self.advance()?;
                self.inblob = value.to_vec();
            }
            _ => return Err(TsmError::Access),
        }
        Ok(())
    }

    pub(super) fn read(
        &mut self,
        attribute: Attribute,
        psp: impl FnOnce([u8; 64], u32) -> Result<Answer, ClientError>,
    ) -> Result<Vec<u8>, TsmError> {
        match attribute {
            Attribute::Generation => Ok(format!("{}\n", self.write_generation).into_bytes()),
            Attribute::Provider => Ok(b"sev_guest\n".to_vec()),
            Attribute::PrivlevelFloor => Ok(format!("{PRIVLEVEL_FLOOR}\n").into_bytes()),
            Attribute::Outblob => Ok(self.current(psp)?.0.clone()),
            Attribute::Auxblob => Ok(self.current(psp)?.1.clone()),
            Attribute::Privlevel | Attribute::Inblob => Err(TsmError::Access),
        }
    }

    fn advance(&mut self) -> Result<(), TsmError> {
        if self.write_generation == self.read_generation.wrapping_sub(1) {
            return Err(TsmError::Busy);
        }
        self.write_generation = self.write_generation.wrapping_add(1);
        Ok(())
    }

    /// Report and certificates for what was written last. The kernel's EWOULDBLOCK between its cached and its slow
    /// path never leaves the kernel either.
    fn current(
        &mut self,
        psp: impl FnOnce([u8; 64], u32) -> Result<Answer, ClientError>,
    ) -> Result<&(Vec<u8>, Vec<u8>), TsmError> {
        let report_data: [u8; 64] = self.inblob.as_slice().try_into().map_err(|_| TsmError::Invalid)?;
        if self.read_generation != self.write_generation {
            self.made = None;
        }
        if self.made.is_none() {
            let answer = psp(report_data, self.privlevel).map_err(|error| match error {
                ClientError::Refused {
                    status: Status::InvalidParameter | Status::InvalidKeySelection,
                    ..
                } => TsmError::Invalid,
                _ => TsmError::NoDevice,
            })?;
            self.read_generation = self.write_generation;
            self.made = Some((answer.report.to_vec(), answer.certificates));
        }
        self.made.as_ref().ok_or(TsmError::NoDevice)
    }
}

/// `kstrtouint` with base 0: decimal, octal with a leading 0, hexadecimal with 0x; a `+` and one newline are allowed.
fn parse_unsigned(text: &[u8]) -> Result<u32, TsmError> {
    let text = std::str::from_utf8(text).map_err(|_| TsmError::Invalid)?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        (hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        (&text[1..], 8)
    } else {
        (text, 10)
    };
    // from_str_radix would take a sign of its own.
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return Err(TsmError::Invalid);
    }
    u32::from_str_radix(digits, radix).map_err(|_| TsmError::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A provider that puts number of calls, VMPL and first byte of REPORT_DATA into the report.
    fn provider(calls: &Cell<u8>) -> impl FnOnce([u8; 64], u32) -> Result<Answer, ClientError> + '_ {
        |data, vmpl| {
            calls.set(calls.get() + 1);
            let mut report = [0; 1184];
            report[..3].copy_from_slice(&[calls.get(), vmpl as u8, data[0]]);
            Ok(Answer { report, certificates: vec![calls.get()] })
        }
    }

    fn never(_: [u8; 64], _: u32) -> Result<Answer, ClientError> {
        panic!("the provider must not be asked")
    }

    fn generation(report: &mut Report) -> Vec<u8> {
        report.read(Attribute::Generation, never).unwrap()
    }

    #[test]
    fn generation_counts_every_write_and_no_read() {
        let calls = Cell::new(0);
        let mut report = Report::default();
        assert_eq!(generation(&mut report), b"0\n");
        report.write(Attribute::Inblob, &[7; 64]).unwrap();
        assert_eq!(generation(&mut report), b"1\n");
        report.write(Attribute::Privlevel, b"2\n").unwrap();
        assert_eq!(generation(&mut report), b"2\n");
        assert!(report.write(Attribute::Privlevel, b"4").is_err());
        report.read(Attribute::Outblob, provider(&calls)).unwrap();
        assert_eq!(generation(&mut report), b"2\n");
    }

    #[test]
    fn a_report_is_made_once_for_each_generation_and_shared_by_both_blobs() {
        let calls = Cell::new(0);
        let mut report = Report::default();
        report.write(Attribute::Inblob, &[7; 64]).unwrap();
        assert_eq!(report.read(Attribute::Outblob, provider(&calls)).unwrap()[..3], [1, 0, 7]);
        assert_eq!(report.read(Attribute::Auxblob, never).unwrap(), [1]);
        assert_eq!(report.read(Attribute::Outblob, never).unwrap()[..3], [1, 0, 7]);
        report.write(Attribute::Privlevel, b"0x1").unwrap();
        assert_eq!(report.read(Attribute::Auxblob, provider(&calls)).unwrap(), [2]);
        assert_eq!(report.read(Attribute::Outblob, never).unwrap()[..3], [2, 1, 7]);
    }

    #[test]
    fn without_a_whole_inblob_reading_is_invalid() {
        let mut report = Report::default();
        assert_eq!(report.read(Attribute::Outblob, never), Err(TsmError::Invalid));
        report.write(Attribute::Inblob, &[0; 63]).unwrap();
        assert_eq!(report.read(Attribute::Auxblob, never), Err(TsmError::Invalid));
        assert_eq!(report.write(Attribute::Inblob, &[0; 65]), Err(TsmError::Invalid));
    }

    #[test]
    fn a_failed_provider_is_asked_again() {
        let calls = Cell::new(0);
        let mut report = Report::default();
        report.write(Attribute::Inblob, &[1; 64]).unwrap();
        let broken = |_, _| Err(ClientError::Broken);
        assert_eq!(report.read(Attribute::Outblob, broken), Err(TsmError::NoDevice));
        let refused =
            |_, _| Err(ClientError::Refused { status: Status::InvalidParameter, reason: String::new() });
        assert_eq!(report.read(Attribute::Outblob, refused), Err(TsmError::Invalid));
        assert!(report.read(Attribute::Outblob, provider(&calls)).is_ok());
    }

    #[test]
    fn a_stale_report_is_never_returned_after_a_failure() {
        let calls = Cell::new(0);
        let mut report = Report::default();
        report.write(Attribute::Inblob, &[1; 64]).unwrap();
        report.read(Attribute::Outblob, provider(&calls)).unwrap();
        report.write(Attribute::Inblob, &[2; 64]).unwrap();
        assert!(report.read(Attribute::Outblob, |_, _| Err(ClientError::Broken)).is_err());
        assert!(report.read(Attribute::Auxblob, |_, _| Err(ClientError::Broken)).is_err());
        assert_eq!(report.read(Attribute::Outblob, provider(&calls)).unwrap()[2], 2);
    }

    #[test]
    fn writes_stop_before_the_generation_comes_round() {
        let mut report = Report { write_generation: u64::MAX - 1, ..Report::default() };
        report.write(Attribute::Privlevel, b"0").unwrap();
        assert_eq!(report.write(Attribute::Privlevel, b"0"), Err(TsmError::Busy));
        assert_eq!(report.write(Attribute::Inblob, &[0; 64]), Err(TsmError::Busy));
    }

    #[test]
    fn directions_are_enforced_and_levels_read_as_the_kernel_reads_them() {
        let mut report = Report::default();
        for attribute in Attribute::ALL {
            if attribute.writable() {
                assert_eq!(report.read(attribute, never), Err(TsmError::Access));
            } else {
                assert_eq!(report.write(attribute, b"0"), Err(TsmError::Access));
            }
        }
        for (text, level) in [("0", 0), ("3\n", 3), ("0x2", 2), ("01", 1), ("+1", 1)] {
            assert_eq!(parse_unsigned(text.as_bytes()), Ok(level), "{text:?}");
        }
        for text in ["", "\n", "-1", "1 ", "0x", "1\n\n", "++1", "09", "4294967296", "\u{661}"] {
            assert_eq!(parse_unsigned(text.as_bytes()), Err(TsmError::Invalid), "{text:?}");
        }
    }
}

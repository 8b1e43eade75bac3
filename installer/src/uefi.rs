//! Boot entries and Secure Boot keys, as UEFI stores them in its variables (UEFI specification 2.10).

use crate::gpt::{Guid, Partition, SECTOR};

/// EFI_GLOBAL_VARIABLE: boot entries, PK, KEK.
pub const GLOBAL: Guid = Guid::new(0x8be4df61_93ca_11d2_aa0d_00e098032b8c);
/// EFI_IMAGE_SECURITY_DATABASE_GUID: db.
pub const SECURITY_DATABASE: Guid = Guid::new(0xd719b2cb_3d3a_4596_a3bc_dad00e67656f);
/// Non-volatile, boot service, runtime: what boot entries are stored with.
pub const ATTRIBUTES: u32 = 0x7;

/// EFI_LOAD_OPTION (3.1.3): start this file of a partition, which is number `number` in its table.
#[must_use]
pub fn load_option(description: &str, number: u32, partition: &Partition, path: &str) -> Vec<u8> {
    let text =
        |text: &str| -> Vec<u8> { text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect() };
    // Hard drive media device path (10.3.5.1): a GPT partition by its identifier.
    let mut device = vec![4, 1, 42, 0];
    device.extend(number.to_le_bytes());
    device.extend((partition.start / SECTOR).to_le_bytes());
    device.extend((partition.size / SECTOR).to_le_bytes());
    device.extend(partition.id.stored());
    device.extend([2, 2]);
    // File path (10.3.5.4), then the end of the path.
    let file = text(&format!("\\{}", path.replace('/', "\\")));
    device.extend([4, 4]);
    device.extend((file.len() as u16 + 4).to_le_bytes());
    device.extend(file);
    device.extend([0x7f, 0xff, 4, 0]);
    let mut option = 1_u32.to_le_bytes().to_vec(); // active
    option.extend((device.len() as u16).to_le_bytes());
    option.extend(text(description));
    option.extend(device);
    option
}

/// Description of a load option.
#[must_use]
pub fn description(option: &[u8]) -> Option<String> {
    let units = option.get(6..)?.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    Some(String::from_utf16_lossy(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>()))
}

/// Where to store entries with these descriptions among those that there are, and the new order: ours first, as given, then
/// the others as they were. An entry of the same description is replaced.
#[must_use]
pub fn place(entries: &[(u16, Vec<u8>)], order: &[u16], ours: &[&str]) -> (Vec<u16>, Vec<u16>) {
    let mut numbers: Vec<u16> = Vec::new();
    for wanted in ours {
        let same = entries.iter().find(|(_, option)| description(option).as_deref() == Some(wanted));
        let free = || {
            let taken = |number: &u16| entries.iter().any(|(n, _)| n == number) || numbers.contains(number);
            (0..=u16::MAX).find(|number| !taken(number)).unwrap_or(u16::MAX)
        };
        numbers.push(same.map_or_else(free, |(number, _)| *number));
    }
    let others = order.iter().copied().filter(|number| !numbers.contains(number));
    let order = numbers.iter().copied().chain(others).collect();
    (numbers, order)
}

/// What the firmware says of Secure Boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecureBoot {
    /// `SecureBoot`: signatures are checked.
    pub on: bool,
    /// `SetupMode`: keys can be enrolled without a signature.
    pub setup: bool,
    /// Whether the project's certificate is in `db`.
    pub ours: bool,
}

/// What to do about Secure Boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// All is well.
    Enrolled,
    /// Ask, then enrol the project's keys.
    Enrol,
}

/// The machine would not verify what it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecureBootRefusal {
    /// Switched off.
    #[error(
        "Secure Boot is off; switch it on in the firmware's menu, or put it into setup mode to have keys enrolled"
    )]
    Off,
    /// Keys of somebody else only.
    #[error(
        "Secure Boot is on, but the project's key is not among the firmware's (db); add it in the firmware's menu, or clear \
         the keys there and start again"
    )]
    OtherKeys,
    /// Nobody agreed.
    #[error(
        "the firmware is in setup mode and nobody agreed to enrol the project's keys; agree, or set enrol_keys"
    )]
    NotAgreed,
}

impl SecureBootRefusal {
    /// A short fixed name, for scripts and tests.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Off => "secure-boot-off",
            Self::OtherKeys => "secure-boot-other-keys",
            Self::NotAgreed => "secure-boot-keys-not-agreed",
        }
    }
}

impl SecureBoot {
    /// Judges it.
    pub fn judge(self) -> Result<Keys, SecureBootRefusal> {
        match self {
            Self { setup: true, .. } => Ok(Keys::Enrol),
            Self { on: false, .. } => Err(SecureBootRefusal::Off),
            Self { ours: false, .. } => Err(SecureBootRefusal::OtherKeys),
            _ => Ok(Keys::Enrolled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_as_the_specification_says() {
        let partition = Partition {
            kind: crate::layout::ESP,
            id: Guid::new(0x00112233_4455_6677_8899_aabbccddeeff),
            name: "esp".into(),
            start: 1 << 20,
            size: 128 << 20,
        };
        let option = load_option("Re", 1, &partition, "EFI/A");
        let expected = "01000000 4000 520065000000 \
            0401 2a00 01000000 0008000000000000 0000040000000000 33221100554477668899aabbccddeeff 02 02 \
            0404 1200 5c004500460049005c0041000000 7fff0400";
        assert_eq!(hex::encode(&option), expected.replace(' ', ""));
        assert_eq!(description(&option).as_deref(), Some("Re"));
        assert_eq!(description(&[0; 3]), None);
    }

    #[test]
    fn our_entries_come_first_and_replace_only_themselves() {
        let option = |name: &str| {
            let text: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
            [vec![0; 6], text].concat()
        };
        let entries = [(0, option("UEFI Shell")), (2, option("Redoubt")), (3, option("Disk"))];
        let (numbers, order) = place(&entries, &[3, 2, 0], &["Redoubt", "Redoubt (previous)"]);
        assert_eq!((numbers, order), (vec![2, 1], vec![2, 1, 3, 0]));
        let (numbers, order) = place(&[], &[], &["a", "b"]);
        assert_eq!((numbers, order), (vec![0, 1], vec![0, 1]));
    }

    #[test]
    fn only_a_machine_that_verifies_by_our_key_is_accepted() {
        let judge = |on, setup, ours| SecureBoot { on, setup, ours }.judge();
        assert_eq!(judge(true, false, true), Ok(Keys::Enrolled));
        assert_eq!(judge(true, false, false), Err(SecureBootRefusal::OtherKeys));
        assert_eq!(judge(false, false, true), Err(SecureBootRefusal::Off));
        assert_eq!(judge(false, true, false), Ok(Keys::Enrol));
    }
}

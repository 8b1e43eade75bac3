//! The firmware's variables (Linux efivarfs: four bytes of attributes, then the value).

use super::error::InstallError;
use crate::{
    gpt::{Guid, Partition},
    uefi::{self, GLOBAL, SECURITY_DATABASE, SecureBoot},
};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

const VARIABLES: &str = "/sys/firmware/efi/efivars";

fn path(name: &str, owner: Guid) -> PathBuf {
    Path::new(VARIABLES).join(format!("{name}-{owner}"))
}

fn read(name: &str, owner: Guid) -> Result<Option<Vec<u8>>, InstallError> {
    match fs::read(path(name, owner)) {
        Ok(bytes) => Ok(bytes.get(4..).map(<[u8]>::to_vec)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(InstallError::Variable(name.to_owned(), error)),
    }
}

fn write(name: &str, owner: Guid, attributes: u32, value: &[u8]) -> Result<(), InstallError> {
    // One write is one call of the firmware.
    let bytes = [&attributes.to_le_bytes()[..], value].concat();
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path(name, owner))
        .and_then(|mut file| file.write_all(&bytes))
        .map_err(|error| InstallError::Variable(name.to_owned(), error))
}

/// State of Secure Boot, with respect to this certificate (X.509, DER).
pub(super) fn secure_boot(certificate: &[u8]) -> Result<SecureBoot, InstallError> {
    let flag =
        |name| Ok::<_, InstallError>(read(name, GLOBAL)?.is_some_and(|value| value.first() == Some(&1)));
    let database = read("db", SECURITY_DATABASE)?.unwrap_or_default();
    let ours =
        !certificate.is_empty() && database.windows(certificate.len()).any(|window| window == certificate);
    Ok(SecureBoot { on: flag("SecureBoot")?, setup: flag("SetupMode")?, ours })
}

/// Enrols the signed keys in this folder. The platform key comes last: it ends setup mode.
pub(super) fn enrol(folder: &Path) -> Result<(), InstallError> {
    /// As [`uefi::ATTRIBUTES`], with time-based authenticated write access.
    const AUTHENTICATED: u32 = uefi::ATTRIBUTES | 0x20;
    for (name, owner) in [("db", SECURITY_DATABASE), ("KEK", GLOBAL), ("PK", GLOBAL)] {
        let file = folder.join(format!("{name}.auth"));
        let value =
            fs::read(&file).map_err(|source| InstallError::Read(file.display().to_string(), source))?;
        write(name, owner, AUTHENTICATED, &value)?;
    }
    Ok(())
}

/// Makes the firmware start these files (description, path) of a partition before anything else, in this order.
pub(super) fn set_boot_entries(
    number: u32,
    partition: &Partition,
    files: &[(&str, &str)],
) -> Result<(), InstallError> {
    let mut entries = Vec::new();
    let listed = fs::read_dir(VARIABLES).map_err(|error| InstallError::Variable("Boot####".into(), error))?;
    for entry in listed.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let digits = name.strip_prefix("Boot").and_then(|rest| rest.strip_suffix(&format!("-{GLOBAL}")));
        let digits = digits.filter(|digits| digits.len() == 4);
        if let Some(number) = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok())
            && let Some(option) = read(&format!("Boot{number:04X}"), GLOBAL)?
        {
            entries.push((number, option));
        }
    }
    let order: Vec<u16> = read("BootOrder", GLOBAL)?
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
        .collect();
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let (numbers, order) = uefi::place(&entries, &order, &names);
    for ((name, path), entry) in files.iter().zip(numbers) {
        let option = uefi::load_option(name, number, partition, path);
        if entries.iter().all(|(number, old)| *number != entry || *old != option) {
            write(&format!("Boot{entry:04X}"), GLOBAL, uefi::ATTRIBUTES, &option)?;
        }
    }
    let order: Vec<u8> = order.iter().flat_map(|number| number.to_le_bytes()).collect();
    write("BootOrder", GLOBAL, uefi::ATTRIBUTES, &order)
}

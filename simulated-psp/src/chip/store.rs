//! The file of a chip: its secret and its signing key.

use super::ChipError;
use crate::protocol::{Blob, Bytes};
use ring::{
    rand::{SecureRandom, SystemRandom},
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

const VERSION: u32 = 1;

/// What is stored.
pub(super) struct Stored {
    pub(super) secret: Zeroizing<[u8; 32]>,
    /// P-384, PKCS#8.
    pub(super) key: Zeroizing<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    secret: Bytes<32>,
    key: Blob,
}

impl Stored {
    pub(super) fn path(folder: &Path) -> PathBuf {
        folder.join("chip.json")
    }

    pub(super) fn open_or_create(folder: &Path) -> Result<Self, ChipError> {
        let path = Self::path(folder);
        let failed = |action| {
            let path = path.clone();
            move |source| ChipError::Io { action, path, source }
        };
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                create(folder, &path, &generate()?).map_err(failed("write"))?;
                // Whoever was first: two programs that start at once get the same chip.
                fs::read(&path).map_err(failed("read"))?
            }
            other => other.map_err(failed("read"))?,
        };
        let text = Zeroizing::new(text);
        let damaged = |what: String| ChipError::Damaged { path: path.clone(), what };
        let wire: Wire = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if wire.version != VERSION {
            return Err(damaged(format!("version {} instead of {VERSION}", wire.version)));
        }
        Ok(Self { secret: Zeroizing::new(wire.secret.0), key: Zeroizing::new(wire.key.0) })
    }
}

fn generate() -> Result<Vec<u8>, ChipError> {
    let random = SystemRandom::new();
    let mut secret = Bytes([0; 32]);
    random.fill(&mut secret.0).map_err(|_| ChipError::Crypto("make its secret"))?;
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random)
        .map_err(|_| ChipError::Crypto("make its signing key"))?;
    let wire = Wire { version: VERSION, secret, key: Blob(key.as_ref().to_vec()) };
    serde_json::to_vec(&wire).map_err(|_| ChipError::Crypto("write its keys as JSON"))
}

/// Whole or not at all, and never over a chip that is already there. Temporary files have mode 0600, which stays.
fn create(folder: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != ErrorKind::AlreadyExists => return Err(error.error),
        _ => {}
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_chip_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        let first = Stored::open_or_create(&inner).unwrap();
        let again = Stored::open_or_create(&inner).unwrap();
        assert_eq!((&first.secret, &first.key), (&again.secret, &again.key));
        let names: Vec<_> = fs::read_dir(&inner).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["chip.json"]);
        let mode = fs::metadata(Stored::path(&inner)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let other = Stored::open_or_create(&folder.path().join("c")).unwrap();
        assert_ne!(first.secret, other.secret);
        assert_ne!(first.key, other.key);
    }

    #[test]
    fn an_existing_chip_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = Stored::path(folder.path());
        fs::write(&path, "first").unwrap();
        create(folder.path(), &path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        Stored::open_or_create(folder.path()).unwrap();
        let path = Stored::path(folder.path());
        let good = fs::read_to_string(&path).unwrap();
        for bad in [
            "",
            &good[..good.len() / 2],
            &good.replace("\"version\":1", "\"version\":2"),
            &good.replace("{", "{\"x\":1,"),
        ] {
            fs::write(&path, bad).unwrap();
            let Err(error) = Stored::open_or_create(folder.path()) else { panic!("accepted {bad}") };
            assert!(matches!(error, ChipError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("chip.json"), "{error}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let Err(error) = Stored::open_or_create(Path::new("/proc/none")) else { panic!("made") };
        assert!(matches!(error, ChipError::Io { action: "write", .. }), "{error}");
    }
}

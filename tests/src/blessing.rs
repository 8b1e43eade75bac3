//! Blessings by the development keys.

use anyhow::{Context, Result};
use release::{Blessing, Profile, Purpose, Signed};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

fn signed(content: Blessing, signers: &[usize]) -> Result<Vec<u8>> {
    let mut envelope = Signed::new(content)?;
    for index in signers {
        release::sign(&mut envelope, &release::development::signing_keys()?[*index])?;
    }
    Ok(envelope.to_bytes())
}

/// Digest of the release in a directory.
pub fn digest(directory: &Path) -> Result<release::Digest> {
    let bytes = fs::read(directory.join("manifest.json"))?;
    Ok(release::verify(&bytes, &release::development::root()?)?.digest())
}

/// What a blessing says, and who signs it.
#[derive(Clone)]
pub struct Words {
    /// Its version.
    pub version: u64,
    /// When it expires, in seconds since 1970.
    pub expires: u64,
    /// The security epoch that it asks for.
    pub epoch: u64,
    /// Which of the development keys sign it.
    pub signers: Vec<usize>,
}

impl Words {
    /// A good one for a day.
    pub fn version(version: u64) -> Self {
        Self { version, expires: now() + 86_400, epoch: 0, signers: vec![0, 1] }
    }

    /// Puts a blessing of these releases beside the first.
    pub fn beside(&self, releases: &[&Path]) -> Result<()> {
        let names: Result<BTreeMap<_, _>> =
            releases.iter().map(|release| Ok((digest(release)?, Purpose::Node))).collect();
        let blessing = Blessing {
            version: self.version,
            profile: Profile::Virtual,
            issued: 1,
            expires: self.expires,
            security_epoch: self.epoch,
            releases: names?,
            revoked: Default::default(),
        };
        let to = releases.first().context("no release")?.join(release::BLESSING_FILE);
        Ok(fs::write(to, signed(blessing, &self.signers)?)?)
    }
}

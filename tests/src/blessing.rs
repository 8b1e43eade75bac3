//! Blessings by the development keys.

use anyhow::{Context, Result};
use release::{Blessing, Document, Profile, Purpose, RootContent, Signed};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

fn signed<T: Document>(content: T, signers: &[usize]) -> Result<Vec<u8>>
where
    T::Invalid: std::error::Error + Send + Sync + 'static,
{
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
    /// Which of them it revokes.
    pub revoked: Vec<usize>,
}

impl Words {
    /// A good one for a day.
    pub fn version(version: u64) -> Self {
        Self { version, expires: now() + 86_400, epoch: 0, signers: vec![0, 1], revoked: Vec::new() }
    }

    /// Puts a blessing of these releases beside the first.
    pub fn beside(&self, releases: &[&Path]) -> Result<()> {
        let to = releases.first().context("no release")?.join(release::BLESSING_FILE);
        Ok(fs::write(to, self.of(releases)?)?)
    }

    /// A blessing of these releases.
    pub fn of(&self, releases: &[&Path]) -> Result<Vec<u8>> {
        let keys = release::development::signing_keys()?;
        let revoked: BTreeSet<_> =
            self.revoked.iter().map(|index| release::key_id(&keys[*index].verifying_key())).collect();
        let names: Result<BTreeMap<_, _>> =
            releases.iter().map(|release| Ok((digest(release)?, Purpose::Node))).collect();
        let blessing = Blessing {
            version: self.version,
            profile: Profile::Virtual,
            issued: 1,
            expires: self.expires,
            security_epoch: self.epoch,
            releases: names?,
            revoked: release::Revoked { keys: revoked, ..Default::default() },
        };
        signed(blessing, &self.signers)
    }
}

/// The development root's next version, signed by these of its keys.
pub fn next_root(expires: u64, signers: &[usize]) -> Result<String> {
    let content = release::development::root()?.content().clone();
    let next = RootContent { version: content.version + 1, expires, ..content };
    Ok(String::from_utf8(signed(next, signers)?)?)
}

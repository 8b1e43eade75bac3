//! Blessings and roots by the development keys, or by others that follow them.

use anyhow::{Context, Result};
use release::{Blessing, Document, Profile, Purpose, RootContent, Signed, SigningKey};
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

fn signed<T: Document>(content: T, keys: &[SigningKey]) -> Result<Vec<u8>>
where
    T::Invalid: std::error::Error + Send + Sync + 'static,
{
    let mut envelope = Signed::new(content)?;
    for key in keys {
        release::sign(&mut envelope, key)?;
    }
    Ok(envelope.to_bytes())
}

/// These of the development keys.
fn development_keys(indices: &[usize]) -> Result<Vec<SigningKey>> {
    let keys = release::development::signing_keys()?;
    indices.iter().map(|index| keys.get(*index).cloned().context("no such key")).collect()
}

/// Digest of the release in a directory.
pub fn digest(directory: &Path) -> Result<release::Digest> {
    Ok(release::Envelope::from_bytes(&fs::read(directory.join("manifest.json"))?)?.digest())
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
    /// Who else does.
    pub others: Vec<SigningKey>,
    /// Which of them it revokes.
    pub revoked: Vec<usize>,
    /// The releases that it names for recovery.
    pub recovery: Vec<release::Digest>,
}

impl Words {
    /// A good one for a day.
    pub fn version(version: u64) -> Self {
        let (revoked, recovery, others) = (Vec::new(), Vec::new(), Vec::new());
        Self { version, expires: now() + 86_400, epoch: 0, signers: vec![0, 1], others, revoked, recovery }
    }

    /// The same by these keys, which are none of the development's.
    pub fn by(self, keys: &[SigningKey]) -> Self {
        Self { signers: Vec::new(), others: keys.to_vec(), ..self }
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
        let mut names: BTreeMap<_, _> =
            releases.iter().map(|release| Ok((digest(release)?, Purpose::Node))).collect::<Result<_>>()?;
        names.extend(self.recovery.iter().map(|release| (*release, Purpose::Recovery)));
        let blessing = Blessing {
            version: self.version,
            profile: Profile::Virtual,
            issued: 1,
            expires: self.expires,
            security_epoch: self.epoch,
            releases: names,
            revoked: release::Revoked { keys: revoked, ..Default::default() },
        };
        signed(blessing, &[development_keys(&self.signers)?, self.others.clone()].concat())
    }
}

/// The development root's next version, signed by these of its keys.
pub fn next_root(expires: u64, signers: &[usize]) -> Result<String> {
    let content = release::development::root()?.content().clone();
    let next = RootContent { version: content.version + 1, expires, ..content };
    Ok(String::from_utf8(signed(next, &development_keys(signers)?)?)?)
}

/// The root that follows the development's with these keys instead for everything, two of which are needed; signed by all of them
/// and by these of the development's.
pub fn root_of(keys: &[SigningKey], signers: &[usize]) -> Result<Vec<u8>> {
    let present = release::development::root()?;
    let (version, expires) = (present.version() + 1, present.content().expires);
    let next = RootContent::of_keys(version, expires, 2, keys.iter().map(SigningKey::verifying_key));
    signed(next, &[development_keys(signers)?, keys.to_vec()].concat())
}

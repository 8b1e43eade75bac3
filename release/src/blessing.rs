//! Which releases are blessed now: the statement, and what follows from it for a node.
//!
//! A **manifest** says what a release is; it never expires and its signatures never become wrong. A **blessing** says
//! which manifests may run now: it has a version, bounds in time, the security epoch, and what is revoked. In the terms of
//! The Update Framework (TUF) it is snapshot and timestamp in one. Everything here is plain functions over plain data.

use crate::{
    ApprovedManifest, BLESSING_TYPE, Digest, KeyId, Profile, RoleName, Root, RootExpired, Seen,
    canonical::{self, CanonicalError},
    document::{Document, DocumentError, Signed, document_codes},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a blessed release is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Runs nodes.
    #[default]
    Node,
    /// Is started when both slots fail: it holds the key for a release that is brought then, and is never the node.
    Recovery,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "a node",
            Self::Recovery => "a recovery release",
        })
    }
}

/// What must not be believed any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// Release keys whose signatures count no longer, until a new root leaves them out.
    pub keys: BTreeSet<KeyId>,
    /// Releases, by the digests of their manifests.
    pub releases: BTreeSet<Digest>,
}

/// The signed part of a blessing. On the wire it also has `_type` and `spec_version`. Times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blessing {
    /// 1 for the first; each later statement has a higher one.
    pub version: u64,
    /// Kind of node.
    pub profile: Profile,
    /// When it was made. It is never earlier than that, whatever a clock says.
    pub issued: u64,
    /// From when on it is worth nothing for new decisions.
    pub expires: u64,
    /// Releases of a lower epoch run no more. Only rises.
    pub security_epoch: u64,
    /// The blessed releases, by the digests of their manifests.
    pub releases: BTreeMap<Digest, Purpose>,
    /// What is revoked.
    pub revoked: Revoked,
}

/// The content of a blessing breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBlessing {
    /// Versions count from 1.
    #[error("the blessing has version 0; the first is version 1")]
    Version,
    /// It would never hold.
    #[error(
        "the blessing is issued at {issued} and expires at {expires}; it must expire after it was issued"
    )]
    Bounds {
        /// Seconds since 1970.
        issued: u64,
        /// Seconds since 1970.
        expires: u64,
    },
    /// Both blessed and revoked.
    #[error("the release {0} is both blessed and revoked; decide for one")]
    Contradiction(Digest),
    /// A text or number outside of the canonical form.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}

impl Document for Blessing {
    const TYPE: &'static str = BLESSING_TYPE;
    const NAME: &'static str = "blessing";
    const CODES: [&'static str; 11] = document_codes!("blessing");
    type Invalid = InvalidBlessing;

    fn validate(&self) -> Result<(), InvalidBlessing> {
        let Blessing { version, issued, expires, .. } = *self;
        if version == 0 {
            return Err(InvalidBlessing::Version);
        }
        if issued >= expires {
            return Err(InvalidBlessing::Bounds { issued, expires });
        }
        match self.revoked.releases.iter().find(|release| self.releases.contains_key(release)) {
            Some(&release) => Err(InvalidBlessing::Contradiction(release)),
            None => Ok(()),
        }
    }
}

impl Blessing {
    fn digest(&self) -> Result<Digest, CanonicalError> {
        Ok(Digest::of(&canonical::encode(&canonical::to_typed(self, BLESSING_TYPE))?))
    }
}

/// Bytes are not a statement of the authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// No document that enough keys have signed.
    #[error(transparent)]
    Document(#[from] DocumentError<Blessing>),
    /// No certified answer of a registry.
    #[error("the blessing is not certified by the registry ({0}); fetch it again")]
    NotCertified(String),
}

/// Who may say what is blessed. Today that is the blessing role of the root. A governing subnet can take its place: its
/// certified registry is then TUF's snapshot and timestamp, and its implementation verifies a certificate where
/// [`Root`] verifies signatures. Everything behind is the same.
pub trait Authority {
    /// Decides whether `statement` is what the authority said, and reads it. Neither time nor what was seen before
    /// matters here: [`accept`] looks at them.
    fn authenticate(&self, statement: &[u8]) -> Result<Blessing, StatementError>;
}

impl Authority for Root {
    fn authenticate(&self, statement: &[u8]) -> Result<Blessing, StatementError> {
        let signed = Signed::<Blessing>::from_bytes(statement)?;
        signed.require_role(self.content(), self.role(RoleName::Blessing))?;
        Ok(signed.content().clone())
    }
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The statement is not the authority's.
    #[error("the blessing is refused")]
    Statement(#[from] StatementError),
    /// Nothing new is believed under it.
    #[error(transparent)]
    RootExpired(#[from] RootExpired),
    /// This node has followed a later root already.
    #[error(
        "the root has version {found}, this node has followed version {seen}; give the roots up to that one"
    )]
    RootRolledBack {
        /// Highest version seen.
        seen: u64,
        /// Version offered.
        found: u64,
    },
    /// Frozen, or nobody renewed it.
    #[error(
        "the blessing expired at {expires}, now it is at least {now} (seconds since 1970); fetch the present one; \
         until then the node keeps running what it runs and hands out no keys"
    )]
    BlessingExpired {
        /// Seconds since 1970.
        expires: u64,
        /// The clock, or the latest time known to have passed.
        now: u64,
    },
    /// This node has seen a later statement.
    #[error("the blessing has version {found}, this node has seen version {seen}; fetch the present one")]
    BlessingRolledBack {
        /// Highest version seen.
        seen: u64,
        /// Version offered.
        found: u64,
    },
    /// Two statements of one version: the authority was tricked or lies.
    #[error(
        "there are two different blessings of version {version}; report both to the release's owners, and trust neither"
    )]
    BlessingEquivocates {
        /// Their version.
        version: u64,
    },
    /// For other nodes.
    #[error(
        "the blessing is for the {found} profile, the release is {expected}; fetch the one for this node"
    )]
    BlessingProfile {
        /// Profile of the release.
        expected: Profile,
        /// Profile of the blessing.
        found: Profile,
    },
    /// Nobody said that it may run now.
    #[error(
        "the release {release} is not blessed; use one that the blessing names, or fetch the present blessing"
    )]
    NotBlessed {
        /// Digest of its manifest.
        release: Digest,
    },
    /// It was said that it may run as something else.
    #[error(
        "the release {release} is blessed as {blessed}, not as {asked}; use one that the blessing names as that"
    )]
    OtherPurpose {
        /// Digest of its manifest.
        release: Digest,
        /// What it may run as.
        blessed: Purpose,
        /// What it was to run as.
        asked: Purpose,
    },
    /// It was said that it must not run.
    #[error("the release {release} is revoked; use one that the blessing names")]
    Revoked {
        /// Digest of its manifest.
        release: Digest,
    },
    /// Without the revoked key there are too few signatures.
    #[error(
        "the release's manifest is signed by the revoked key {keyid}; without it {valid} signatures remain of {needed}; \
         have other release keys sign it"
    )]
    KeyRevoked {
        /// The key.
        keyid: KeyId,
        /// Signatures that count.
        valid: usize,
        /// Threshold of the release role.
        needed: usize,
    },
    /// Its keys were replaced since.
    #[error(
        "the release {release} has {valid} signatures by release keys of the present root, which asks for {needed}; have holders \
         of its keys sign it"
    )]
    KeysReplaced {
        /// Digest of its manifest.
        release: Digest,
        /// Signatures that count.
        valid: usize,
        /// Threshold of the release role.
        needed: usize,
    },
    /// It has a hole that was closed.
    #[error("the release has security epoch {found}, at least {floor} is asked for; use a later release")]
    BelowEpoch {
        /// Least epoch.
        floor: u64,
        /// Epoch of the release.
        found: u64,
    },
}

impl Refusal {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Statement(StatementError::Document(error)) => error.code(),
            Self::Statement(StatementError::NotCertified(_)) => "blessing-not-certified",
            Self::RootExpired(_) => "root-expired",
            Self::RootRolledBack { .. } => "root-rolled-back",
            Self::BlessingExpired { .. } => "blessing-expired",
            Self::BlessingRolledBack { .. } => "blessing-rolled-back",
            Self::BlessingEquivocates { .. } => "blessing-equivocates",
            Self::BlessingProfile { .. } => "blessing-profile",
            Self::NotBlessed { .. } => "release-not-blessed",
            Self::OtherPurpose { .. } => "release-other-purpose",
            Self::Revoked { .. } => "release-revoked",
            Self::KeyRevoked { .. } => "release-key-revoked",
            Self::KeysReplaced { .. } => "release-keys-replaced",
            Self::BelowEpoch { .. } => "release-below-epoch",
        }
    }
}

/// What holds for a node at one moment: only [`accept`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing<'a> {
    root: &'a Root,
    blessing: Blessing,
    seen: Seen,
    stale: Option<Refusal>,
}

/// Whether and how a release may be launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launch {
    /// It is blessed now.
    Blessed,
    /// Root or blessing expired, or the keys that signed the release were replaced; this node has committed to this very release
    /// before, so it goes on with it, or nothing but the recovery release is left. It hands out no keys and says why.
    Stale(Refusal),
}

/// Decides whether a statement is believed by a node that has seen what `seen` says. An expired one is believed too, as
/// far as it forbids: see [`Standing::stale`].
///
/// `now` is what the clock says, in seconds since 1970; an earlier time than was seen to pass counts as that.
pub fn accept<'a>(
    root: &'a Root,
    authority: &dyn Authority,
    statement: &[u8],
    seen: &Seen,
    now: u64,
) -> Result<Standing<'a>, Refusal> {
    let blessing = authority.authenticate(statement)?;
    if root.version() < seen.root_version {
        return Err(Refusal::RootRolledBack { seen: seen.root_version, found: root.version() });
    }
    let (found, newest) = (blessing.version, seen.blessing_version);
    if found < newest {
        return Err(Refusal::BlessingRolledBack { seen: newest, found });
    }
    let digest = blessing.digest().map_err(|error| {
        Refusal::Statement(DocumentError::Invalid(InvalidBlessing::Canonical(error)).into())
    })?;
    if found == newest && seen.blessing.is_some_and(|known| known != digest) {
        return Err(Refusal::BlessingEquivocates { version: found });
    }
    let seen = Seen {
        root_version: root.version(),
        blessing_version: found,
        blessing: Some(digest),
        // The epoch only rises, also by the releases that the node has committed to.
        security_epoch: seen.security_epoch.max(blessing.security_epoch),
        time: seen.time.max(blessing.issued),
        release: seen.release,
    };
    let now = now.max(seen.time);
    let expired = || {
        let expires = blessing.expires;
        (expires <= now).then_some(Refusal::BlessingExpired { expires, now })
    };
    let stale = root.require_fresh(now).err().map(Refusal::from).or_else(expired);
    Ok(Standing { root, blessing, seen, stale })
}

impl Standing<'_> {
    /// What was said.
    pub fn blessing(&self) -> &Blessing {
        &self.blessing
    }

    /// What the node has seen now: to be kept before anything is done.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Why nothing new is done, if root or blessing expired.
    pub fn stale(&self) -> Option<&Refusal> {
        self.stale.as_ref()
    }

    /// What a release is blessed for, if it is named.
    pub fn purpose(&self, release: Digest) -> Option<Purpose> {
        self.blessing.releases.get(&release).copied()
    }

    /// Decides whether a release may be launched for a purpose.
    pub fn may_launch(&self, release: &ApprovedManifest, asked: Purpose) -> Result<Launch, Refusal> {
        let blessing = &self.blessing;
        let manifest = release.manifest();
        let (expected, found) = (manifest.profile, blessing.profile);
        if found != expected {
            return Err(Refusal::BlessingProfile { expected, found });
        }
        let (floor, found) = (self.seen.security_epoch, manifest.security_epoch);
        if found < floor {
            return Err(Refusal::BelowEpoch { floor, found });
        }
        let digest = release.digest();
        if blessing.revoked.releases.contains(&digest) {
            return Err(Refusal::Revoked { release: digest });
        }
        let (revoked, good): (Vec<KeyId>, Vec<KeyId>) =
            release.signers().iter().partition(|keyid| blessing.revoked.keys.contains(keyid));
        // The release may have been approved under an earlier root: only keys of this one count.
        let role = self.root.role(RoleName::Release);
        let valid = good.iter().filter(|keyid| role.keyids.contains(keyid)).count();
        let needed = role.threshold_count();
        if let Some(&keyid) = revoked.first().filter(|_| valid < needed) {
            return Err(Refusal::KeyRevoked { keyid, valid, needed });
        }
        let replaced = (valid < needed).then_some(Refusal::KeysReplaced { release: digest, valid, needed });
        match self.purpose(digest) {
            None => return Err(Refusal::NotBlessed { release: digest }),
            Some(blessed) if blessed != asked => {
                return Err(Refusal::OtherPurpose { release: digest, blessed, asked });
            }
            Some(_) => {}
        }
        // It is the last that is left, and can give its key only to what a fresh statement names.
        let goes_on = asked == Purpose::Recovery || self.seen.release == Some(digest);
        match replaced.or_else(|| self.stale.clone()) {
            None => Ok(Launch::Blessed),
            Some(stale) if goes_on => Ok(Launch::Stale(stale)),
            Some(stale) => Err(stale),
        }
    }

    /// Decides whether a release may be handed keys for a purpose: everything that a launch asks for, and nothing expired.
    pub fn may_have_keys(&self, release: &ApprovedManifest, asked: Purpose) -> Result<(), Refusal> {
        match self.may_launch(release, asked)? {
            Launch::Blessed => Ok(()),
            Launch::Stale(stale) => Err(stale),
        }
    }
}

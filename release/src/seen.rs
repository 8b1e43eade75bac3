//! What a node has seen of roots, blessings and releases, and must not forget.
//!
//! | kept where | what protects it |
//! |---|---|
//! | guest: in the vault, sealed to measurement and chip | nobody can write another; the host can put back an **old disk**, which only an anchor shows |
//! | guest: GUEST_SVN of the ID block that it was launched with, which is the release's security epoch | the Secure Processor; a floor for the epoch: [`Seen::anchored`] |
//! | host: a file in the node's directory | nothing against the owner of the machine; later an NV counter of the TPM, whose value is [`Seen::counter`] |
//!
//! So rewinding the disk cannot bring back a release of a lower epoch than the running guest's. It can make the guest
//! forget a blessing's version and the time, that is, prolong a blessing until its expiry by the clock that the host shows;
//! with the subnet's certified time this goes away.

use crate::{Digest, Root, SEEN_TYPE, canonical};
use serde::{Deserialize, Serialize};

/// The monotonic state. On the wire it also has `_type` and `spec_version`. [`Default`] is a node that has seen nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Version of the latest root.
    pub root_version: u64,
    /// Version of the latest blessing; 0 for none, also after its keys were replaced (TUF 5.3.11: otherwise a thief of
    /// the old keys could block all later blessings with a huge version).
    pub blessing_version: u64,
    /// Digest of that blessing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blessing: Option<Digest>,
    /// Highest security epoch. Never falls, whatever else happens.
    pub security_epoch: u64,
    /// Latest time that is known to have passed: seconds since 1970.
    pub time: u64,
    /// The release that this node has committed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Digest>,
}

/// Bytes are not what a node has seen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what this node has seen cannot be read ({0}); restore the file, or install the node anew")]
pub struct SeenError(String);

impl SeenError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        "seen-unreadable"
    }
}

impl Seen {
    /// After a root that followed another.
    pub fn after_root(self, old: &Root, new: &Root) -> Seen {
        let mut next = Seen { root_version: self.root_version.max(new.version()), ..self };
        if old.content().roles.blessing.keyids != new.content().roles.blessing.keyids {
            next.blessing_version = 0;
            next.blessing = None;
        }
        next
    }

    /// After a release was committed.
    pub fn after_commit(self, release: Digest, security_epoch: u64) -> Seen {
        Seen { release: Some(release), security_epoch: self.security_epoch.max(security_epoch), ..self }
    }

    /// With a floor for the epoch that the host cannot lower: the GUEST_SVN in a guest's own report, or a TPM's counter.
    pub fn anchored(self, epoch: u64) -> Seen {
        Seen { security_epoch: self.security_epoch.max(epoch), ..self }
    }

    /// What a counter that only rises has to reach before this state is acted upon.
    pub fn counter(&self) -> u64 {
        self.security_epoch
    }

    /// Reads what [`Seen::to_bytes`] wrote, and nothing else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Seen, SeenError> {
        let seen: Seen = canonical::parse(bytes)
            .and_then(|value| canonical::from_typed(value, SEEN_TYPE))
            .map_err(|error| SeenError(error.describe()))?;
        if seen.to_bytes() != bytes {
            return Err(SeenError("it is not in the canonical form".to_owned()));
        }
        Ok(seen)
    }

    /// The canonical form.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Every part is ASCII or an integer; one above 2^53 was in no document that was accepted.
        canonical::encode(&canonical::to_typed(self, SEEN_TYPE)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn seen()(
            root_version in 0..9u64, blessing_version in 0..9u64, blessing in any::<Option<[u8; 32]>>(),
            security_epoch in 0..9u64, time in 0..9u64, release in any::<Option<[u8; 32]>>(),
        ) -> Seen {
            let (blessing, release) = (blessing.map(Digest), release.map(Digest));
            Seen { root_version, blessing_version, blessing, security_epoch, time, release }
        }
    }

    proptest! {
        #[test]
        fn round_trip(seen in seen()) {
            prop_assert_eq!(Seen::from_bytes(&seen.to_bytes()), Ok(seen));
        }

        #[test]
        fn the_epoch_never_falls(seen in seen(), epoch in 0..9u64, release in any::<[u8; 32]>()) {
            prop_assert!(seen.anchored(epoch).security_epoch >= seen.security_epoch.max(epoch));
            prop_assert!(seen.after_commit(Digest(release), epoch).counter() >= seen.counter());
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let text = String::from_utf8(Seen::default().to_bytes()).unwrap();
        for bad in [
            format!("{text}\n"),
            text.replace("redoubt-seen", "redoubt-root"),
            text.replace("\"time\":0", "\"time\":-1"),
            text.replace("\"time\":0", "\"time\":0,\"surprise\":1"),
            String::new(),
        ] {
            assert_eq!(Seen::from_bytes(bad.as_bytes()).unwrap_err().code(), "seen-unreadable", "{bad}");
        }
    }
}

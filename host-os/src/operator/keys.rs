//! Who may operate the node: public keys with names, from a file. Pure.

use crate::node::NodeDir;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The file `operators.json` of a node directory.
///
/// A key is known by the SHA-256 of its SubjectPublicKeyInfo in DER (RFC 5280, 4.1.2.7), as `redoubt operator key`
/// prints it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operators {
    /// Version of this structure: 1.
    pub version: u32,
    /// The keys.
    pub operators: Vec<Operator>,
    /// Fingerprint of the operator's key that the node was installed with: SHA-256 of its 32 bytes. Not in the file.
    #[serde(skip)]
    pub installed: Option<[u8; 32]>,
}

/// A key that somebody proved to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownKey {
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key_sha256: [u8; 32],
    /// SHA-256 of its 32 bytes, if it is an ed25519 key.
    pub fingerprint: Option<[u8; 32]>,
}

impl ShownKey {
    /// From the 32 bytes of an ed25519 key.
    pub fn ed25519(public_key: &[u8; 32]) -> Self {
        Self {
            key_sha256: super::identity::key_sha256_of(public_key),
            fingerprint: Some(Sha256::digest(public_key).into()),
        }
    }
}

/// One operator's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// For logs.
    pub name: String,
    /// SHA-256 of the SubjectPublicKeyInfo.
    #[serde(with = "hex::serde")]
    pub key_sha256: [u8; 32],
    /// The key is refused from this time on, in seconds since 1970; never if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after_unix_s: Option<u64>,
    /// The key is refused, and stays in the file so that the refusal can say why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
}

/// Why somebody may not operate this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// No key was shown.
    #[error("no operator key was shown; give one with --key")]
    Missing,
    /// The key is nobody's.
    #[error("the key {} is not an operator's of this node; add it to operators.json", hex::encode(.0))]
    Unknown([u8; 32]),
    /// The key's time is over.
    #[error("the key of the operator {0} has expired; enter a new one in operators.json")]
    Expired(String),
    /// The key was revoked.
    #[error("the key of the operator {0} was revoked")]
    Revoked(String),
}

impl KeyRefusal {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "operator-key-missing",
            Self::Unknown(_) => "operator-key-unknown",
            Self::Expired(_) => "operator-key-expired",
            Self::Revoked(_) => "operator-key-revoked",
        }
    }
}

/// Why a list of operators cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OperatorsError {
    /// Not JSON, or not of this form.
    #[error("not a list of operators: {0}")]
    Form(#[from] serde_json::Error),
    /// Of another version.
    #[error("version {0} is not known, only 1 is")]
    Version(u32),
    /// One key twice: which entry counts could be misread.
    #[error("the key {} is listed twice", hex::encode(.0))]
    Twice([u8; 32]),
}

impl Operators {
    /// Reads the file's bytes.
    pub fn from_json(bytes: &[u8]) -> Result<Self, OperatorsError> {
        let read: Self = serde_json::from_slice(bytes)?;
        if read.version != 1 {
            return Err(OperatorsError::Version(read.version));
        }
        let mut keys: Vec<_> = read.operators.iter().map(|operator| operator.key_sha256).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(OperatorsError::Twice(pair[0])),
            None => Ok(read),
        }
    }

    /// Those of a node: of its file, if there is one, and of its installation. What is listed in the file counts first, so
    /// that the installation's key can be revoked there.
    pub fn of_node(node: &NodeDir, installed: Option<[u8; 32]>) -> Result<Self, String> {
        let listed = match std::fs::read(node.operators()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && installed.is_some() => {
                Self { version: 1, ..Self::default() }
            }
            read => {
                let bytes = read.map_err(|error| error.to_string())?;
                Self::from_json(&bytes).map_err(|error| error.to_string())?
            }
        };
        Ok(Self { installed, ..listed })
    }

    /// The name of whose key this is, if it may be used now; the time is in seconds since 1970.
    pub fn judge(&self, shown: Option<&ShownKey>, now_unix_s: u64) -> Result<String, KeyRefusal> {
        let shown = shown.ok_or(KeyRefusal::Missing)?;
        let found = self.operators.iter().find(|operator| operator.key_sha256 == shown.key_sha256);
        let Some(operator) = found else {
            let of_installation = self.installed.is_some() && self.installed == shown.fingerprint;
            return if of_installation {
                Ok("installer".into())
            } else {
                Err(KeyRefusal::Unknown(shown.key_sha256))
            };
        };
        if operator.revoked {
            return Err(KeyRefusal::Revoked(operator.name.clone()));
        }
        if operator.not_after_unix_s.is_some_and(|end| now_unix_s >= end) {
            return Err(KeyRefusal::Expired(operator.name.clone()));
        }
        Ok(operator.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entry: &str) -> String {
        format!(r#"{{"version":1,"operators":[{entry}]}}"#)
    }

    fn entry(key: u8, rest: &str) -> String {
        format!(r#"{{"name":"alice","key_sha256":"{}"{rest}}}"#, hex::encode([key; 32]))
    }

    #[test]
    fn only_listed_keys_in_their_time_are_taken() {
        let operators = |rest| Operators::from_json(list(&entry(1, rest)).as_bytes()).unwrap();
        let [key, other] = [1, 2].map(|byte| ShownKey { key_sha256: [byte; 32], fingerprint: None });
        assert_eq!(operators("").judge(Some(&key), 100).unwrap(), "alice");
        let refused = |rest, key: Option<&ShownKey>, now| operators(rest).judge(key, now).unwrap_err().code();
        assert_eq!(refused("", None, 0), "operator-key-missing");
        assert_eq!(refused("", Some(&other), 0), "operator-key-unknown");
        assert_eq!(refused(r#","revoked":true"#, Some(&key), 0), "operator-key-revoked");
        let expiring = r#","not_after_unix_s":100"#;
        assert!(operators(expiring).judge(Some(&key), 99).is_ok());
        assert_eq!(refused(expiring, Some(&key), 100), "operator-key-expired");
    }

    #[test]
    fn the_key_of_the_installation_counts_until_the_file_revokes_it() {
        let directory = tempfile::tempdir().unwrap();
        let node = NodeDir::at(directory.path());
        let key = ShownKey::ed25519(&[3; 32]);
        let judge = |installed| Operators::of_node(&node, installed).unwrap().judge(Some(&key), 0);
        assert!(Operators::of_node(&node, None).is_err(), "nobody");
        assert_eq!(judge(key.fingerprint).unwrap(), "installer");
        assert_eq!(judge(Some([9; 32])).unwrap_err().code(), "operator-key-unknown");
        let revoked = entry(1, r#","revoked":true"#).replace(&"01".repeat(32), &hex::encode(key.key_sha256));
        std::fs::write(node.operators(), list(&revoked)).unwrap();
        assert_eq!(judge(key.fingerprint).unwrap_err().code(), "operator-key-revoked");
    }

    #[test]
    fn a_list_that_could_be_misread_is_refused() {
        let twice = list(&[entry(1, r#","revoked":true"#), entry(1, "")].join(","));
        assert!(matches!(Operators::from_json(twice.as_bytes()), Err(OperatorsError::Twice(_))));
        let other = list("").replace(":1", ":2");
        assert!(matches!(Operators::from_json(other.as_bytes()), Err(OperatorsError::Version(2))));
        for form in [list(&entry(1, r#","revokd":true"#)), "[]".into(), String::new()] {
            assert!(matches!(Operators::from_json(form.as_bytes()), Err(OperatorsError::Form(_))), "{form}");
        }
    }
}

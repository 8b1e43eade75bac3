//! Who may operate the node: public keys with names, from a file. Pure.

use serde::{Deserialize, Serialize};

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

    /// Whose key this is, if it may be used now; the time is in seconds since 1970.
    pub fn judge(&self, key_sha256: Option<&[u8; 32]>, now_unix_s: u64) -> Result<&Operator, KeyRefusal> {
        let key = key_sha256.ok_or(KeyRefusal::Missing)?;
        let found = self.operators.iter().find(|operator| operator.key_sha256 == *key);
        let operator = found.ok_or(KeyRefusal::Unknown(*key))?;
        if operator.revoked {
            return Err(KeyRefusal::Revoked(operator.name.clone()));
        }
        if operator.not_after_unix_s.is_some_and(|end| now_unix_s >= end) {
            return Err(KeyRefusal::Expired(operator.name.clone()));
        }
        Ok(operator)
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
        let (key, other) = ([1; 32], [2; 32]);
        assert_eq!(operators("").judge(Some(&key), 100).unwrap().name, "alice");
        let refused = |rest, key: Option<&[u8; 32]>, now| operators(rest).judge(key, now).unwrap_err().code();
        assert_eq!(refused("", None, 0), "operator-key-missing");
        assert_eq!(refused("", Some(&other), 0), "operator-key-unknown");
        assert_eq!(refused(r#","revoked":true"#, Some(&key), 0), "operator-key-revoked");
        let expiring = r#","not_after_unix_s":100"#;
        assert!(operators(expiring).judge(Some(&key), 99).is_ok());
        assert_eq!(refused(expiring, Some(&key), 100), "operator-key-expired");
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

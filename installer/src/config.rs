//! The two configurations: the file that makes an installation unattended, and the signed one that a node keeps.

use crate::network::Network;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Longest file that is looked at, in bytes.
pub const MAX: usize = 64 << 10;

/// A configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nothing of that length is looked at.
    #[error("the configuration has {0} bytes, at most {MAX} are read; give a configuration of the installer")]
    TooLong(usize),
    /// Not of the schema.
    #[error("the configuration is not valid: {0}; see `redoubt flash --schema`")]
    Malformed(#[from] serde_json::Error),
    /// A later format.
    #[error(
        "the configuration has version {0}, this installer knows 1; use the installer that it was made for"
    )]
    Version(u64),
    /// Not 64 hexadecimal digits, or no key.
    #[error(
        "the operator's {0} is not one of 64 hexadecimal digits; give the ed25519 public key or its SHA-256"
    )]
    Operator(&'static str),
    /// The key is another one than the fingerprint says.
    #[error(
        "the operator's public key does not have the fingerprint that is given with it; correct one of them"
    )]
    Fingerprint,
    /// A secret where none belongs.
    #[error(
        "the configuration holds a private key; take it off the medium and replace the key, it is no secret any more"
    )]
    Secret,
    /// The node cannot be connected so.
    #[error("the network of the configuration is not valid: {0}; correct `network`")]
    Network(String),
    /// Changed after it was signed, or signed by another node.
    #[error("the node's configuration does not have its node's signature; install the node again")]
    Signature,
}

impl ConfigError {
    /// A short fixed name, for scripts and tests.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong(_) | Self::Malformed(_) | Self::Version(_) => "configuration-invalid",
            Self::Operator(_) | Self::Fingerprint => "operator-invalid",
            Self::Secret => "configuration-holds-secret",
            Self::Network(_) => "network-invalid",
            Self::Signature => "configuration-wrongly-signed",
        }
    }
}

/// What makes an installation unattended: `REDOUBT.CFG` on the medium, JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unattended {
    /// Version of this format: 1.
    pub version: u64,
    /// Which disk: its name (`nvme0n1`), `serial:` and its serial number, or `auto` if there is only one.
    pub disk: String,
    /// Erase whatever is on that disk. Not needed for an empty disk, nor to update a node.
    #[serde(default)]
    pub erase: bool,
    /// Hardware specification that the machine must meet: `gen1`, `gen2`, `virtual`.
    pub hardware: String,
    /// Enrol the project's Secure Boot keys if the firmware is in setup mode.
    #[serde(default)]
    pub enrol_keys: bool,
    /// Who operates the node.
    pub operator: Operator,
    /// How the node is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// What to do at the end.
    #[serde(default)]
    pub when_done: WhenDone,
}

/// What to do when all is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenDone {
    /// Start the node.
    #[default]
    Reboot,
    /// Switch the machine off.
    PowerOff,
}

/// The operator's ed25519 key, public, by itself or by its fingerprint: the SHA-256 of its 32 bytes. Hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// The key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Its fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

impl Operator {
    /// From what somebody typed.
    #[must_use]
    pub fn typed(fingerprint: &str) -> Self {
        let digits = fingerprint.chars().filter(|c| !c.is_whitespace() && *c != ':');
        Self { public_key: None, fingerprint: Some(digits.collect::<String>().to_lowercase()) }
    }

    /// Checks it and fills in the fingerprint.
    pub fn checked(&self) -> Result<Self, ConfigError> {
        let digits = |text: &str, what| {
            let bytes = hex::decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            bytes.filter(|_| text == text.to_lowercase()).ok_or(ConfigError::Operator(what))
        };
        let given = self.fingerprint.as_deref().map(|text| digits(text, "fingerprint")).transpose()?;
        let key = self.public_key.as_deref().map(|text| digits(text, "public key")).transpose()?;
        let of_key = key.map(|key| <[u8; 32]>::from(Sha256::digest(key)));
        if key.is_some_and(|key| VerifyingKey::from_bytes(&key).map_or(true, |key| key.is_weak())) {
            return Err(ConfigError::Operator("public key"));
        }
        match (of_key, given) {
            (Some(one), Some(other)) if one != other => Err(ConfigError::Fingerprint),
            (None, None) => Err(ConfigError::Operator("key or fingerprint")),
            (of_key, given) => Ok(Self {
                public_key: self.public_key.clone(),
                fingerprint: of_key.or(given).map(hex::encode),
            }),
        }
    }
}

impl Unattended {
    /// Reads the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > MAX {
            return Err(ConfigError::TooLong(bytes.len()));
        }
        if bytes.windows(11).any(|window| window == b"PRIVATE KEY") {
            return Err(ConfigError::Secret);
        }
        let mut config: Self = serde_json::from_slice(bytes)?;
        if config.version != 1 {
            return Err(ConfigError::Version(config.version));
        }
        config.operator = config.operator.checked()?;
        config.network.as_ref().map_or(Ok(()), Network::check)?;
        Ok(config)
    }

    /// The JSON schema of the file.
    #[must_use]
    pub fn schema() -> Value {
        let digits = json!({ "type": "string", "pattern": "^[0-9a-f]{64}$" });
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Unattended installation of a node (REDOUBT.CFG on the installer's boot partition)",
            "type": "object",
            "additionalProperties": false,
            "required": ["version", "disk", "hardware", "operator"],
            "properties": {
                "version": { "const": 1 },
                "disk": {
                    "type": "string", "minLength": 1,
                    "description": "Name (nvme0n1), serial:NUMBER, or auto if the machine has only one",
                },
                "erase": {
                    "type": "boolean", "default": false,
                    "description": "Erase whatever is on the disk; not needed for an empty disk or to update a node",
                },
                "hardware": {
                    "type": "string", "minLength": 1,
                    "description": "Hardware specification that the machine must meet: gen1, gen2, virtual",
                },
                "enrol_keys": {
                    "type": "boolean", "default": false,
                    "description": "Enrol the project's Secure Boot keys if the firmware is in setup mode",
                },
                "operator": {
                    "type": "object",
                    "additionalProperties": false,
                    "minProperties": 1,
                    "description": "ed25519 public key of who operates the node, or the SHA-256 of its 32 bytes",
                    "properties": { "public_key": digits, "fingerprint": digits },
                },
                "network": Network::schema(),
                "when_done": { "enum": ["reboot", "power-off"], "default": "reboot" },
            },
        })
    }
}

/// What a node knows of itself, made when it is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// Version of this format: 1.
    pub version: u64,
    /// The node's ed25519 public key, hexadecimal: its identity.
    pub node: String,
    /// Who operates it.
    pub operator: Operator,
    /// Hardware specification that it must meet.
    pub hardware: String,
    /// How it is connected. Absent: by the first network card and what routers advertise there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
}

/// A configuration with its node's signature. Whoever can write the disk can replace all of it, identity included; the
/// operator notices that by the identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// What is signed, as it is serialised here.
    pub configuration: Configuration,
    /// ed25519 signature, hexadecimal.
    pub signature: String,
}

/// The node's own key.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// ed25519 private key, hexadecimal.
    secret: String,
}

impl Identity {
    /// From 32 random bytes.
    #[must_use]
    pub fn new(random: [u8; 32]) -> Self {
        Self { secret: hex::encode(random) }
    }

    fn key(&self) -> Result<SigningKey, ConfigError> {
        let secret = hex::decode(&self.secret).ok().and_then(|bytes| bytes.try_into().ok());
        secret.map(|secret| SigningKey::from_bytes(&secret)).ok_or(ConfigError::Signature)
    }

    /// The public key, hexadecimal: the node's name.
    pub fn public_key(&self) -> Result<String, ConfigError> {
        Ok(hex::encode(self.key()?.verifying_key().as_bytes()))
    }

    /// ed25519 signature of these bytes, hexadecimal.
    pub fn sign(&self, bytes: &[u8]) -> Result<String, ConfigError> {
        Ok(hex::encode(self.key()?.sign(bytes).to_bytes()))
    }

    /// Signs what an operator and a specification make of this node.
    pub fn configure(
        &self,
        operator: Operator,
        hardware: &str,
        network: Option<Network>,
    ) -> Result<Signed, ConfigError> {
        let key = self.key()?;
        let node = hex::encode(key.verifying_key().as_bytes());
        let configuration =
            Configuration { version: 1, node, operator, hardware: hardware.to_owned(), network };
        let signature = key.sign(&serde_json::to_vec(&configuration)?);
        Ok(Signed { configuration, signature: hex::encode(signature.to_bytes()) })
    }
}

impl Signed {
    /// Reads and verifies a configuration.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let signed: Self = serde_json::from_slice(bytes)?;
        let key = hex::decode(&signed.configuration.node).ok().and_then(|bytes| bytes.try_into().ok());
        let key =
            key.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok()).ok_or(ConfigError::Signature)?;
        let signature = hex::decode(&signed.signature).ok().and_then(|bytes| bytes.try_into().ok());
        let signature = Signature::from_bytes(&signature.ok_or(ConfigError::Signature)?);
        let content = serde_json::to_vec(&signed.configuration)?;
        key.verify_strict(&content, &signature).map_err(|_| ConfigError::Signature)?;
        Ok(signed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> Value {
        let key = SigningKey::from_bytes(&[3; 32]).verifying_key();
        json!({ "version": 1, "disk": "auto", "hardware": "gen2", "operator": { "public_key": hex::encode(key) } })
    }

    fn parse(file: &Value) -> Result<Unattended, ConfigError> {
        Unattended::parse(&serde_json::to_vec(file).unwrap())
    }

    #[test]
    fn the_file_is_what_the_schema_says() {
        let schema = jsonschema::validator_for(&Unattended::schema()).unwrap();
        let config = parse(&file()).unwrap();
        assert_eq!((config.erase, config.enrol_keys, config.when_done), (false, false, WhenDone::Reboot));
        assert_eq!(config.operator.fingerprint.as_ref().map(String::len), Some(64));
        assert!(schema.is_valid(&file()));
        assert!(schema.is_valid(&serde_json::to_value(&config).unwrap()));
        let with = |name: &str, value: Value| {
            let mut file = file();
            file[name] = value;
            file
        };
        for wrong in [
            with("version", json!(2)),
            with("more", json!(1)),
            with("disk", json!(5)),
            with("when_done", json!("halt")),
            with("operator", json!({})),
            with("network", json!({})),
            with("network", json!({ "uplink": { "devices": [], "ipv6": "router-advertisement" } })),
            with("network", json!({ "uplink": { "devices": ["../x"], "ipv6": "router-advertisement" } })),
            with("network", json!({ "uplink": { "devices": ["eth0"], "ipv6": "dhcp" } })),
            with(
                "network",
                json!({ "uplink": { "devices": ["eth0"], "ipv6": "router-advertisement", "vlan": 0 } }),
            ),
            with("operator", json!({ "public_key": "00" })),
            with("operator", json!({ "fingerprint": "A".repeat(64) })),
            json!({}),
        ] {
            assert!(parse(&wrong).is_err(), "{wrong}");
            assert!(!schema.is_valid(&wrong), "{wrong}");
        }
    }

    #[test]
    fn a_network_is_what_the_schema_says() {
        let schema = jsonschema::validator_for(&Unattended::schema()).unwrap();
        let mut file = file();
        file["network"] = json!({
            "uplink": {
                "devices": ["52:54:00:00:00:01", "52:54:00:00:00:02"],
                "bond": "802.3ad",
                "vlan": 7,
                "ipv6": { "static": { "address": "2001:db8::2", "prefix": 64, "gateway": "fe80::1" } },
                "ipv4": { "address": "192.0.2.2", "prefix": 24, "gateway": "192.0.2.1" },
            },
            "management": { "devices": ["eth2"], "ipv6": "router-advertisement" },
            "time": ["2001:db8::123", "192.0.2.123"],
            "nts": [{
                "address": "192.0.2.124", "port": 4461, "name": "time.example",
                "authority": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
            }],
        });
        assert!(schema.is_valid(&file));
        let network = parse(&file).unwrap().network.unwrap();
        assert_eq!(serde_json::to_value(&network).unwrap(), file["network"]);
        // What needs a second look.
        for (path, value) in [
            ("/uplink/bond", json!(null)),
            ("/management/devices/0", json!("52:54:00:00:00:02")),
            ("/uplink/ipv6/static/address", json!("ff02::1")),
            ("/uplink/ipv4/address", json!("127.0.0.1")),
            ("/nts/0/authority", json!("a file's name")),
            ("/nts/0/name", json!("time example")),
        ] {
            let mut wrong = file.clone();
            *wrong["network"].pointer_mut(path).unwrap() = value;
            assert!(matches!(parse(&wrong), Err(ConfigError::Network(_))), "{path}");
        }
    }

    #[test]
    fn the_operators_key_and_fingerprint_belong_together() {
        let mut file = file();
        file["operator"]["fingerprint"] = json!("0".repeat(64));
        assert!(matches!(parse(&file), Err(ConfigError::Fingerprint)));
        // A point of small order signs anything.
        file["operator"] = json!({ "public_key": format!("01{}", "0".repeat(62)) });
        assert!(matches!(parse(&file), Err(ConfigError::Operator("public key"))));
        let typed = Operator::typed("ABAB abab:".repeat(8).as_str()).checked().unwrap();
        assert_eq!(typed.fingerprint, Some("ab".repeat(32)));
        assert!(matches!(Unattended::parse(b"-----BEGIN PRIVATE KEY-----"), Err(ConfigError::Secret)));
        assert!(matches!(Unattended::parse(&[b' '; MAX + 1]), Err(ConfigError::TooLong(_))));
    }

    #[test]
    fn a_configuration_is_its_nodes() {
        let operator = parse(&file()).unwrap().operator;
        let (one, other) = (Identity::new([1; 32]), Identity::new([2; 32]));
        let signed = one.configure(operator.clone(), "gen2", None).unwrap();
        assert_eq!(Signed::parse(&serde_json::to_vec(&signed).unwrap()).unwrap(), signed);
        let mut changed = signed.clone();
        changed.configuration.hardware = "virtual".into();
        let mut foreign = signed.clone();
        foreign.configuration.node = other.configure(operator, "gen2", None).unwrap().configuration.node;
        for wrong in [changed, foreign] {
            let error = Signed::parse(&serde_json::to_vec(&wrong).unwrap()).unwrap_err();
            assert!(matches!(error, ConfigError::Signature), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC*") {
            let _ = Unattended::parse(&bytes);
            let _ = Signed::parse(text.as_bytes());
            let _ = Operator::typed(&text).checked();
        }
    }
}

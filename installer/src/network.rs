//! How a node is connected: part of its signed configuration, because nobody on the wire may choose it.

use crate::config::ConfigError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most network cards of one link.
const DEVICES: usize = 8;
/// Most servers that are asked for the time.
const SERVERS: usize = 16;
/// Most of those that prove who they are: the whole configuration has little room for certificates.
const NTS_SERVERS: usize = 8;
/// Longest certificate, in bytes.
const AUTHORITY: usize = 4096;

/// The node's connections, by role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// To the outside: where the guest is reached, and operators unless there is a link for them.
    pub uplink: Link,
    /// For operators only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub management: Option<Link>,
    /// Servers to ask for the time (NTP), by address, so that no name service is asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub time: Vec<IpAddr>,
    /// Servers that prove who they are (Network Time Security, RFC 8915); asked before the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nts: Vec<Nts>,
}

/// A server of time that proves who it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nts {
    /// Where it is, so that no name service is asked.
    pub address: IpAddr,
    /// TCP port of its keys; 4460 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Name in its certificate.
    pub name: String,
    /// Certificate (PEM) of the authority that answers for it; no other is believed.
    pub authority: String,
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Network cards, each by its MAC address (`52:54:00:12:34:56`, the safe way) or the kernel's name (`eth0`). Several need
    /// `bond`.
    pub devices: Vec<String>,
    /// How several cards work as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<Bond>,
    /// Number of a VLAN (IEEE 802.1Q), 1 to 4094.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// IPv6: a static address, or what routers advertise.
    pub ipv6: Ipv6,
    /// IPv4, static; there is no DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Static4>,
}

/// How several cards work as one (the kernel's Documentation/networking/bonding.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bond {
    /// One is in use, the others wait; any switch will do.
    #[serde(rename = "active-backup")]
    ActiveBackup,
    /// All are in use; the switch has to know (LACP).
    #[serde(rename = "802.3ad")]
    Lacp,
}

/// The host's IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv6 {
    /// A fixed address; advertisements are ignored.
    Static(Static6),
    /// Prefix and router as advertised (RFC 4861, 4862), within bounds.
    RouterAdvertisement,
}

/// A fixed IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Static6 {
    /// The address.
    pub address: Ipv6Addr,
    /// Length of the prefix, in bits.
    pub prefix: u8,
    /// The router, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv6Addr>,
}

/// A fixed IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Static4 {
    /// The address.
    pub address: Ipv4Addr,
    /// Length of the prefix, in bits.
    pub prefix: u8,
    /// The router, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
}

/// A MAC address, if the text is one.
#[must_use]
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let mut parts = text.split(':');
    let mut mac = [0; 6];
    for byte in &mut mac {
        let digits = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
    }
    parts.next().is_none().then_some(mac)
}

/// A name that the kernel gives an interface: no more than 15 bytes, and no way out of a folder.
fn is_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

impl Network {
    /// Checks what the schema cannot say.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |why: &str| Err(ConfigError::Network(why.to_owned()));
        for link in [Some(&self.uplink), self.management.as_ref()].into_iter().flatten() {
            if link.devices.is_empty() || link.devices.len() > DEVICES {
                return wrong("a link has one to eight devices");
            }
            if link.devices.len() > 1 && link.bond.is_none() {
                return wrong("several devices of a link need `bond`");
            }
            if let Some(device) = link.devices.iter().find(|text| mac(text).is_none() && !is_name(text)) {
                return wrong(&format!("`{}` is no MAC address and no name", device.escape_default()));
            }
            if link.vlan.is_some_and(|id| !(1..=4094).contains(&id)) {
                return wrong("a VLAN has a number from 1 to 4094");
            }
            if let Ipv6::Static(address) = &link.ipv6 {
                check6(address)?;
            }
            if let Some(Static4 { address, prefix, .. }) = &link.ipv4 {
                let unusable = address.is_unspecified() || address.is_multicast() || address.is_loopback();
                if *prefix > 32 || unusable {
                    return wrong(&format!("{address}/{prefix} is no address of a machine"));
                }
            }
        }
        let mut devices: Vec<_> = [Some(&self.uplink), self.management.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|link| link.devices.iter().map(|text| text.to_lowercase()))
            .collect();
        let count = devices.len();
        devices.sort();
        devices.dedup();
        if devices.len() != count {
            return wrong("a device stands twice");
        }
        if self.nts.len() > NTS_SERVERS {
            return wrong("at most 8 servers with NTS");
        }
        for Nts { name, authority, .. } in &self.nts {
            if !(1..=253).contains(&name.len())
                || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
            {
                return wrong(&format!("`{}` is no name of a server", name.escape_default()));
            }
            if authority.len() > AUTHORITY || !authority.contains("-----BEGIN CERTIFICATE-----") {
                return wrong(&format!(
                    "the authority of {name} is no certificate (PEM) of at most 4096 bytes"
                ));
            }
        }
        if self.time.len() > SERVERS {
            return wrong("at most 16 servers of time");
        }
        Ok(())
    }

    /// The JSON schema.
    pub(crate) fn schema() -> Value {
        let address = |least: u8, most: u8, format: &str| {
            json!({
                "type": "object", "additionalProperties": false, "required": ["address", "prefix"],
                "properties": {
                    "address": { "type": "string", "format": format },
                    "prefix": { "type": "integer", "minimum": least, "maximum": most },
                    "gateway": { "type": "string", "format": format },
                },
            })
        };
        let link = |what: &str| {
            json!({
                "type": "object", "additionalProperties": false, "required": ["devices", "ipv6"],
                "description": what,
                "properties": {
                    "devices": {
                        "type": "array", "minItems": 1, "maxItems": DEVICES,
                        "items": { "type": "string", "pattern": "^([0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}|[A-Za-z0-9_-]{1,15})$" },
                        "description": "Network cards by MAC address or name; several need bond",
                    },
                    "bond": { "enum": ["active-backup", "802.3ad"] },
                    "vlan": { "type": "integer", "minimum": 1, "maximum": 4094 },
                    "ipv6": {
                        "description": "router-advertisement, or a static address",
                        "oneOf": [
                            { "const": "router-advertisement" },
                            {
                                "type": "object", "additionalProperties": false, "required": ["static"],
                                "properties": { "static": address(0, 128, "ipv6") },
                            },
                        ],
                    },
                    "ipv4": address(0, 32, "ipv4"),
                },
            })
        };
        json!({
            "type": "object", "additionalProperties": false, "required": ["uplink"],
            "description": "How the node is connected; without it, the first network card and router advertisements",
            "properties": {
                "uplink": link("To the outside"),
                "management": link("For operators only"),
                "time": {
                    "type": "array", "maxItems": SERVERS,
                    "items": { "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] },
                    "description": "Servers of time (NTP) by address; three or more, because most must agree",
                },
                "nts": {
                    "type": "array", "maxItems": NTS_SERVERS,
                    "items": {
                        "type": "object", "additionalProperties": false, "required": ["address", "name", "authority"],
                        "properties": {
                            "address": { "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] },
                            "port": { "type": "integer", "minimum": 1, "maximum": 65535 },
                            "name": { "type": "string", "pattern": "^[A-Za-z0-9.-]{1,253}$" },
                            "authority": { "type": "string", "maxLength": AUTHORITY, "description": "Certificate (PEM) of the authority that answers for it" },
                        },
                    },
                    "description": "Servers of time that prove who they are (NTS); asked before the others",
                },
            },
        })
    }
}

fn check6(Static6 { address, prefix, .. }: &Static6) -> Result<(), ConfigError> {
    if *prefix > 128 || address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(ConfigError::Network(format!("{address}/{prefix} is no address of a machine")));
    }
    Ok(())
}

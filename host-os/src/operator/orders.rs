//! What operators may have done to a node, and how the node knows that an order is meant for it, and now. Pure.
//!
//! Whoever gives an order asks the node for a challenge first. It names the node and is taken once, within [`VALID`], from the
//! key that it was given to; so an order that was recorded does nothing when it is given again, and needs no clock that is
//! right.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// How long a challenge may be answered.
pub const VALID: Duration = Duration::from_secs(300);
/// Most challenges that are open at a time; the oldest goes.
const OPEN: usize = 32;
/// What an off-line signature begins with, so that it can be taken for nothing else.
const SIGNED_AS: &[u8] = b"redoubt console order\0";

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The machine ends in order and starts again.
    Reboot,
    /// The machine ends in order and stays off.
    PowerOff,
    /// The guest ends in order and starts again; also one that was given up.
    RestartGuest,
    /// The machine starts again, once, from the slot that does not run now: recovery.
    StartOtherSlot,
    /// Keys and state are erased for good, and the machine is switched off.
    Decommission,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Reboot, Self::PowerOff, Self::RestartGuest, Self::StartOtherSlot, Self::Decommission];

    /// The name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reboot => "reboot",
            Self::PowerOff => "power-off",
            Self::RestartGuest => "restart-guest",
            Self::StartOtherSlot => "start-other-slot",
            Self::Decommission => "decommission",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// The answer to `GET /v1/challenge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// Version of this structure: 1.
    pub version: u32,
    /// The node's name: its identity if it was installed, else the SHA-256 of its host key; hexadecimal.
    pub node: String,
    /// To be repeated in the order: 16 bytes, hexadecimal.
    pub nonce: String,
    /// Seconds for which it holds.
    pub valid_s: u64,
}

/// The body of `POST /v1/orders`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Version of this structure: 1.
    pub version: u32,
    /// What to do.
    pub action: Action,
    /// Name of the node that shall do it.
    pub node: String,
    /// From the challenge.
    pub nonce: String,
}

/// Why an order is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderRefusal {
    /// Not of the schema.
    #[error("the order is not one of this interface: {0}; use a program of the node's version")]
    Malformed(String),
    /// Meant for another node.
    #[error("the order is for the node {0}, this is another one; check the address")]
    OtherNode(String),
    /// Never given, given to another key, used, or too old.
    #[error("the challenge was not given to this key, was used already, or is older than {} s; begin again", VALID.as_secs())]
    Challenge,
    /// The signature is not the key's.
    #[error("the answer is not a signature of this challenge; sign it again with `redoubt operator sign`")]
    Signature,
    /// The node cannot do that.
    #[error("this node cannot {action}: {why}")]
    NotPossible {
        /// What.
        action: Action,
        /// Why.
        why: String,
    },
}

impl OrderRefusal {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "order-malformed",
            Self::OtherNode(_) => "order-for-another-node",
            Self::Challenge => "order-challenge-unknown",
            Self::Signature => "order-wrongly-signed",
            Self::NotPossible { .. } => "order-not-possible",
        }
    }
}

impl Order {
    /// Reads a request's body.
    pub fn parse(bytes: &[u8]) -> Result<Self, OrderRefusal> {
        let order: Self =
            serde_json::from_slice(bytes).map_err(|error| OrderRefusal::Malformed(error.to_string()))?;
        match order.version {
            1 => Ok(order),
            version => Err(OrderRefusal::Malformed(format!("version {version} is not known, only 1 is"))),
        }
    }
}

/// To whom a challenge was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// An operator elsewhere: the SHA-256 of the key.
    Key([u8; 32]),
    /// Whoever stands before the machine, for this action.
    Console(Action),
}

/// The open challenges of a node.
#[derive(Debug)]
pub struct Challenges {
    node: String,
    open: VecDeque<([u8; 16], Holder, Duration)>,
}

impl Challenges {
    /// None yet.
    pub fn new(node: String) -> Self {
        Self { node, open: VecDeque::new() }
    }

    /// Gives one: 16 random bytes; `now` is the time of a clock that only goes forward.
    pub fn give(&mut self, holder: Holder, random: [u8; 16], now: Duration) -> Challenge {
        if self.open.len() == OPEN {
            self.open.pop_front();
        }
        self.open.push_back((random, holder, now));
        Challenge {
            version: 1,
            node: self.node.clone(),
            nonce: hex::encode(random),
            valid_s: VALID.as_secs(),
        }
    }

    /// Judges an order of this holder. Whatever comes of it, its challenge is used up.
    pub fn take(&mut self, order: &Order, holder: Holder, now: Duration) -> Result<Action, OrderRefusal> {
        if order.node != self.node {
            return Err(OrderRefusal::OtherNode(crate::console::printable(&order.node, 64)));
        }
        let given = self.open.iter().position(|(nonce, ..)| hex::encode(nonce) == order.nonce);
        let (_, to, at) = given.and_then(|index| self.open.remove(index)).ok_or(OrderRefusal::Challenge)?;
        if to == holder && now.saturating_sub(at) <= VALID {
            Ok(order.action)
        } else {
            Err(OrderRefusal::Challenge)
        }
    }
}

/// What stands on the screen for somebody to sign off-line: the action, the beginning of the node's name, the nonce. Letters
/// and digits that a QR code holds in its dense form.
pub fn console_text(challenge: &Challenge, action: Action) -> String {
    let node = challenge.node.get(..16).unwrap_or(&challenge.node);
    format!("REDOUBT1:{action}:{node}:{}", challenge.nonce).to_uppercase()
}

/// Reads a text of the console: the action, and the beginning of the node's name.
pub fn parse_console_text(text: &str) -> Option<(Action, String)> {
    let mut parts = text.strip_prefix("REDOUBT1:")?.split(':');
    let action = Action::named(&parts.next()?.to_lowercase())?;
    let (node, nonce) = (parts.next()?, parts.next()?);
    let digits = |text: &str, count| text.len() == count && hex::decode(text).is_ok();
    (digits(node, 16) && digits(nonce, 32) && parts.next().is_none()).then(|| (action, node.to_lowercase()))
}

/// The bytes that the operator signs for a text of the console.
pub fn signed_bytes(text: &str) -> Vec<u8> {
    [SIGNED_AS, text.as_bytes()].concat()
}

/// Checks an answer: hexadecimal, the public key and its ed25519 signature of the text. Returns the key.
pub fn verify_answer(text: &str, answer: &str) -> Result<[u8; 32], OrderRefusal> {
    let digits: String = answer.chars().filter(|c| !c.is_whitespace()).collect();
    let bytes = hex::decode(digits).ok().filter(|bytes| bytes.len() == 96).ok_or(OrderRefusal::Signature)?;
    let (key, signature) = bytes.split_at(32);
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key)
        .verify(&signed_bytes(text), signature)
        .map_err(|_| OrderRefusal::Signature)?;
    key.try_into().map_err(|_| OrderRefusal::Signature)
}

/// The JSON schema of the interface: what is asked for and answered on each path. The copy in the repository is
/// `host-os/operator.schema.json`.
pub fn schema() -> Value {
    let digits = |count: usize| json!({ "type": "string", "pattern": format!("^[0-9a-f]{{{count}}}$") });
    let object = |properties: Value| {
        let names: Vec<&String> =
            properties.as_object().into_iter().flat_map(|object| object.keys()).collect();
        json!({ "type": "object", "additionalProperties": false, "required": names, "properties": properties })
    };
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Operators' interface of a node, version 1: bodies of requests and answers",
        "$defs": {
            "challenge": object(json!({
                "version": { "const": 1 }, "node": digits(64), "nonce": digits(32),
                "valid_s": { "type": "integer", "minimum": 1 },
            })),
            "order": object(json!({
                "version": { "const": 1 }, "node": digits(64), "nonce": digits(32),
                "action": { "enum": Action::ALL.map(Action::name) },
            })),
            "done": object(json!({ "version": { "const": 1 }, "action": { "enum": Action::ALL.map(Action::name) } })),
            "statement": crate::decommission::schema(),
            "error": object(json!({ "error": object(json!({
                "code": { "type": "string", "pattern": "^[a-z0-9-]+$" }, "message": { "type": "string" },
            })) })),
        },
        "paths": {
            "GET /v1/status": { "200": "application/json, by the program's own type Status" },
            "GET /v1/health": { "200": "text/plain: ready", "503": "text/plain: the state" },
            "GET /v1/metrics": { "200": "text/plain, Prometheus" },
            "GET /v1/logs?file=agent|console&lines=N": { "200": "text/plain" },
            "GET /v1/support": { "200": "application/x-tar" },
            "GET /v1/challenge": { "200": { "$ref": "#/$defs/challenge" } },
            "POST /v1/orders": {
                "body": { "$ref": "#/$defs/order" },
                "200": { "oneOf": [{ "$ref": "#/$defs/done" }, { "$ref": "#/$defs/statement" }] },
                "403": { "$ref": "#/$defs/error" },
                "409": { "$ref": "#/$defs/error" },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALICE: Holder = Holder::Key([1; 32]);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn order(challenge: &Challenge, action: Action) -> Order {
        Order { version: 1, action, node: challenge.node.clone(), nonce: challenge.nonce.clone() }
    }

    #[test]
    fn a_challenge_counts_once_in_its_time_for_its_holder_and_node() {
        let mut challenges = Challenges::new("ab".repeat(32));
        let given = challenges.give(ALICE, [7; 16], seconds(0));
        let asked = order(&given, Action::Reboot);
        assert_eq!(challenges.take(&asked, ALICE, seconds(10)), Ok(Action::Reboot));
        assert_eq!(challenges.take(&asked, ALICE, seconds(10)), Err(OrderRefusal::Challenge), "again");

        let late = order(&challenges.give(ALICE, [8; 16], seconds(0)), Action::Reboot);
        assert_eq!(
            challenges.take(&late, ALICE, VALID + seconds(1)),
            Err(OrderRefusal::Challenge),
            "too late"
        );
        let other = order(&challenges.give(ALICE, [9; 16], seconds(0)), Action::Reboot);
        assert_eq!(challenges.take(&other, Holder::Key([2; 32]), seconds(1)), Err(OrderRefusal::Challenge));
        let console = challenges.give(Holder::Console(Action::Reboot), [10; 16], seconds(0));
        let other = order(&console, Action::Decommission);
        let holder = Holder::Console(Action::Decommission);
        assert_eq!(
            challenges.take(&other, holder, seconds(1)),
            Err(OrderRefusal::Challenge),
            "another action"
        );
        let mut elsewhere = order(&challenges.give(ALICE, [11; 16], seconds(0)), Action::Reboot);
        elsewhere.node = "cd".repeat(32);
        assert_eq!(
            challenges.take(&elsewhere, ALICE, seconds(1)).unwrap_err().code(),
            "order-for-another-node"
        );
    }

    #[test]
    fn open_challenges_are_bounded() {
        let mut challenges = Challenges::new("n".into());
        let first = challenges.give(ALICE, [0; 16], seconds(0));
        for number in 1..=OPEN as u8 {
            challenges.give(ALICE, [number; 16], seconds(0));
        }
        assert_eq!(challenges.open.len(), OPEN);
        assert_eq!(
            challenges.take(&order(&first, Action::Reboot), ALICE, seconds(0)),
            Err(OrderRefusal::Challenge)
        );
    }

    #[test]
    fn only_a_signature_of_this_very_text_is_an_answer() {
        use ring::signature::{Ed25519KeyPair, KeyPair};
        let key = Ed25519KeyPair::from_seed_unchecked(&[5; 32]).unwrap();
        let challenge =
            Challenges::new("ab".repeat(32)).give(Holder::Console(Action::Reboot), [7; 16], seconds(0));
        let text = console_text(&challenge, Action::Reboot);
        assert_eq!(parse_console_text(&text), Some((Action::Reboot, "ab".repeat(8))));
        let answer =
            |signed: &[u8]| hex::encode([key.public_key().as_ref(), key.sign(signed).as_ref()].concat());
        let good = answer(&signed_bytes(&text));
        assert_eq!(verify_answer(&text, &good).unwrap(), key.public_key().as_ref());
        assert_eq!(
            verify_answer(&text, &format!(" {}\n{} ", &good[..80], &good[80..])).unwrap()[..],
            key.public_key().as_ref()[..]
        );
        let other = console_text(&challenge, Action::Decommission);
        for (text, wrong) in
            [(&text, answer(text.as_bytes())), (&other, good.clone()), (&text, good[2..].to_owned())]
        {
            assert_eq!(verify_answer(text, &wrong), Err(OrderRefusal::Signature));
        }
    }

    #[test]
    fn the_schema_in_the_repository_is_the_one_of_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/operator.schema.json");
        let text = format!("{:#}\n", schema());
        if std::env::var_os("REDOUBT_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), text, "write it anew with REDOUBT_BLESS=1");
        let validator = |name: &str| {
            let mut schema = schema();
            schema["$ref"] = json!(format!("#/$defs/{name}"));
            jsonschema::validator_for(&schema).unwrap()
        };
        let given = Challenges::new("ab".repeat(32)).give(ALICE, [7; 16], seconds(0));
        assert!(validator("challenge").is_valid(&json!(given)));
        for action in Action::ALL {
            let value = json!(order(&given, action));
            assert!(validator("order").is_valid(&value), "{value}");
            assert_eq!(Order::parse(value.to_string().as_bytes()).unwrap().action, action);
        }
        let mut wrong = json!(order(&given, Action::Reboot));
        wrong["more"] = json!(1);
        assert!(!validator("order").is_valid(&wrong) && Order::parse(wrong.to_string().as_bytes()).is_err());
        let refusal = json!({ "error": { "code": OrderRefusal::Challenge.code(), "message": "m" } });
        assert!(validator("error").is_valid(&refusal));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,120}") {
            let _ = Order::parse(&bytes);
            let _ = parse_console_text(&text);
            let _ = verify_answer(&text, &text);
        }
    }
}

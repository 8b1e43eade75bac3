//! Authentication of requests: the only place that makes an [`Authenticated`] value.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use candid::Principal;
use execution::RequestId;

use crate::envelope::{self, Content, Delegation, Envelope, EnvelopeError, Invocation, StatePaths};
use crate::request_id::hash_of_map;
use crate::signature::{PublicKey, SignatureError};

/// How far ahead a request may expire. Agents set five minutes; one more is for clocks that run ahead.
pub const MAX_EXPIRY_AHEAD: Duration = Duration::from_secs(6 * 60);
/// Longest nonce, in bytes.
const MAX_NONCE: usize = 32;

/// Why a request is not authentic or not acceptable now.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationError {
    /// Not decodable.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Another kind of request.
    #[error("request_type is {found:?}, but this endpoint takes {expected:?}")]
    RequestType {
        /// What this endpoint takes.
        expected: &'static str,
        /// What the request says.
        found: String,
    },
    /// Nonce too long.
    #[error("the nonce is {0} bytes long; at most {MAX_NONCE} are allowed")]
    Nonce(usize),
    /// `sender_info` needs canister signatures.
    #[error("sender_info is not supported by this replica; leave it out")]
    SenderInfo,
    /// Expired, or too far ahead. Agents synchronise their clock when they read the first three words.
    #[error(
        "Invalid request expiry: {expiry} is not between {now} (now) and {latest} ns since 1970; check the sender's clock"
    )]
    Expiry {
        /// Expiry of the request.
        expiry: u64,
        /// Time of the replica.
        now: u64,
        /// Latest acceptable expiry.
        latest: u64,
    },
    /// Anonymous, yet signed.
    #[error("the sender is anonymous, so sender_pubkey, sender_sig and sender_delegation must be left out")]
    AnonymousWithKey,
    /// Not anonymous, yet not signed.
    #[error("the sender {sender} is not anonymous, so {field} is needed")]
    Unsigned {
        /// The sender.
        sender: Principal,
        /// The missing field.
        field: &'static str,
    },
    /// Another key's principal.
    #[error("the sender is {sender}, but sender_pubkey belongs to {owner}; sign with the sender's key")]
    WrongSender {
        /// The sender as the request says.
        sender: Principal,
        /// Self-authenticating principal of the key.
        owner: Principal,
    },
    /// A delegation ran out.
    #[error(
        "delegation {index} expired at {expiration} ns since 1970 and now is {now}; ask its issuer for a new one"
    )]
    DelegationExpired {
        /// Place in the chain, from 0.
        index: usize,
        /// When it expired.
        expiration: u64,
        /// Time of the replica.
        now: u64,
    },
    /// A key occurs twice in the chain.
    #[error("delegation {0} is to a key that is in the chain already; each key may be there once")]
    DelegationCycle(usize),
    /// A delegation with a permission that is not known.
    #[error("delegation {index} has the permissions {permissions:?}; only \"queries\" and \"all\" are known")]
    Permissions {
        /// Place in the chain, from 0.
        index: usize,
        /// What stands there.
        permissions: String,
    },
    /// An update call by a key that may only query.
    #[error(
        "a delegation of this chain allows queries only; update calls need one with the permissions \"all\""
    )]
    QueriesOnly,
    /// A canister that the delegations do not cover.
    #[error("canister {0} is not among the targets of the delegations; ask for a delegation that covers it")]
    NotATarget(Principal),
    /// A signature that does not count.
    #[error("{what}: {why}")]
    Signature {
        /// Whose signature.
        what: String,
        /// What is wrong.
        #[source]
        why: SignatureError,
    },
}

/// Canisters that a chain of delegations covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets(Option<BTreeSet<Principal>>);

impl Targets {
    /// Whether the chain covers this canister.
    pub fn contain(&self, canister: &Principal) -> bool {
        self.0.as_ref().is_none_or(|targets| targets.contains(canister))
    }

    fn restrict(&mut self, to: impl Iterator<Item = Principal>) {
        let to: BTreeSet<_> = to.collect();
        self.0 = Some(match self.0.take() {
            Some(targets) => targets.intersection(&to).copied().collect(),
            None => to,
        });
    }
}

/// A request whose sender is proven, and which is acceptable at the time it was checked. Only this module
/// makes such values; whoever holds one need not check again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated<T> {
    content: T,
    sender: Principal,
    request_id: RequestId,
    expiry_ns: u64,
    targets: Targets,
}

impl<T> Authenticated<T> {
    /// What the sender asks for.
    pub fn content(&self) -> &T {
        &self.content
    }

    /// What the sender asks for, without the proof.
    pub fn into_content(self) -> T {
        self.content
    }

    /// Who sent it.
    pub fn sender(&self) -> Principal {
        self.sender
    }

    /// Its request id.
    pub fn request_id(&self) -> RequestId {
        self.request_id
    }

    /// When it expires, in ns since 1970.
    pub fn expiry_ns(&self) -> u64 {
        self.expiry_ns
    }

    /// Canisters that the sender's key may speak to.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }
}

/// An update call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Receiving canister; `aaaaa-aa` is the management canister.
    pub canister: Principal,
    /// Method name.
    pub method: String,
    /// Argument.
    pub arg: Vec<u8>,
}

/// A query call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Receiving canister; `aaaaa-aa` is the management canister.
    pub canister: Principal,
    /// Method name.
    pub method: String,
    /// Argument.
    pub arg: Vec<u8>,
}

/// A request for parts of the state tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadState {
    /// The paths, each a list of labels.
    pub paths: Vec<Vec<Vec<u8>>>,
}

/// Authenticates the body of a `call` request at a time in ns since 1970.
pub fn call(body: &[u8], now_ns: u64) -> Result<Authenticated<Call>, AuthenticationError> {
    let request: Authenticated<Invocation> = authenticate(body, "call", now_ns)?;
    Ok(request.targeted()?.map(|Invocation { canister_id, method_name, arg, .. }| Call {
        canister: canister_id.0,
        method: method_name,
        arg: arg.0,
    }))
}

/// Authenticates the body of a `query` request at a time in ns since 1970.
pub fn query(body: &[u8], now_ns: u64) -> Result<Authenticated<Query>, AuthenticationError> {
    let request: Authenticated<Invocation> = authenticate(body, "query", now_ns)?;
    Ok(request.targeted()?.map(|Invocation { canister_id, method_name, arg, .. }| Query {
        canister: canister_id.0,
        method: method_name,
        arg: arg.0,
    }))
}

/// Authenticates the body of a `read_state` request at a time in ns since 1970. Whether the sender may read
/// the paths is decided where the state is: [`crate::read_state`].
pub fn read_state(body: &[u8], now_ns: u64) -> Result<Authenticated<ReadState>, AuthenticationError> {
    let request: Authenticated<StatePaths> = authenticate(body, "read_state", now_ns)?;
    Ok(request.map(|StatePaths { paths, .. }| ReadState {
        paths: paths.0.into_iter().map(|path| path.0.into_iter().map(|label| label.0).collect()).collect(),
    }))
}

impl<T> Authenticated<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Authenticated<U> {
        let Self { content, sender, request_id, expiry_ns, targets } = self;
        Authenticated { content: f(content), sender, request_id, expiry_ns, targets }
    }
}

impl Authenticated<Invocation> {
    fn targeted(self) -> Result<Self, AuthenticationError> {
        let canister = self.content.canister_id.0;
        if self.content.sender_info.is_some() {
            Err(AuthenticationError::SenderInfo)
        } else if self.targets.contain(&canister) {
            Ok(self)
        } else {
            Err(AuthenticationError::NotATarget(canister))
        }
    }
}

fn authenticate<C: Content>(
    body: &[u8],
    request_type: &'static str,
    now_ns: u64,
) -> Result<Authenticated<C>, AuthenticationError> {
    let envelope: Envelope<C> = envelope::decode(body)?;
    let common = envelope.content.common();
    let (sender, expiry_ns) = (*common.sender, common.ingress_expiry);
    if common.request_type != request_type {
        let found = common.request_type.to_owned();
        return Err(AuthenticationError::RequestType { expected: request_type, found });
    }
    if let Some(nonce) = common.nonce.filter(|nonce| nonce.0.len() > MAX_NONCE) {
        return Err(AuthenticationError::Nonce(nonce.0.len()));
    }
    // An agent whose clock is wrong reads the time by an anonymous request, which must not fail for its expiry.
    if request_type == "call" || sender != Principal::anonymous() {
        let latest = now_ns.saturating_add(MAX_EXPIRY_AHEAD.as_nanos() as u64);
        if !(now_ns..=latest).contains(&expiry_ns) {
            return Err(AuthenticationError::Expiry { expiry: expiry_ns, now: now_ns, latest });
        }
    }
    let request_id = hash_of_map(&envelope.content.fields());
    let targets = verify(&envelope, sender, &request_id, request_type, now_ns)?;
    Ok(Authenticated { content: envelope.content, sender, request_id, expiry_ns, targets })
}

/// Checks keys, delegations and signatures; tells which canisters the signing key may speak to.
fn verify<C>(
    envelope: &Envelope<C>,
    sender: Principal,
    request_id: &RequestId,
    request_type: &str,
    now_ns: u64,
) -> Result<Targets, AuthenticationError> {
    let Envelope { sender_pubkey, sender_sig, sender_delegation, .. } = envelope;
    if sender == Principal::anonymous() {
        return if sender_pubkey.is_none() && sender_sig.is_none() && sender_delegation.is_none() {
            Ok(Targets::default())
        } else {
            Err(AuthenticationError::AnonymousWithKey)
        };
    }
    let missing = |field| AuthenticationError::Unsigned { sender, field };
    let key = sender_pubkey.as_ref().ok_or(missing("sender_pubkey"))?;
    let signature = sender_sig.as_ref().ok_or(missing("sender_sig"))?;
    let owner = Principal::self_authenticating(&key.0);
    if owner != sender {
        return Err(AuthenticationError::WrongSender { sender, owner });
    }

    let mut targets = Targets::default();
    let mut key = &key.0;
    let mut seen = HashSet::from([key]);
    for (index, link) in sender_delegation.iter().flat_map(|chain| &chain.0).enumerate() {
        let Delegation { pubkey, expiration, targets: to, permissions } = &link.delegation;
        if *expiration < now_ns {
            return Err(AuthenticationError::DelegationExpired {
                index,
                expiration: *expiration,
                now: now_ns,
            });
        }
        if !seen.insert(&pubkey.0) {
            return Err(AuthenticationError::DelegationCycle(index));
        }
        match permissions.as_deref() {
            None | Some("all") => {}
            Some("queries") if request_type != "call" => {}
            Some("queries") => return Err(AuthenticationError::QueriesOnly),
            Some(other) => return Err(AuthenticationError::Permissions { index, permissions: other.into() }),
        }
        if let Some(to) = to {
            targets.restrict(to.0.iter().map(|id| id.0));
        }
        let what = || format!("delegation {index}");
        let message = separated("ic-request-auth-delegation", &hash_of_map(&link.delegation.fields()));
        check(key, &message, &link.signature.0, what)?;
        key = &pubkey.0;
    }
    check(key, &separated("ic-request", request_id), &signature.0, || "sender_sig".into())?;
    Ok(targets)
}

fn check(
    key: &[u8],
    message: &[u8],
    signature: &[u8],
    what: impl Fn() -> String,
) -> Result<(), AuthenticationError> {
    PublicKey::parse(key)
        .and_then(|key| key.verify(message, signature))
        .map_err(|why| AuthenticationError::Signature { what: what(), why })
}

/// A message with its domain separator: one byte of length, the domain, the message.
pub(crate) fn separated(domain: &str, message: &[u8]) -> Vec<u8> {
    // Every domain here is shorter than 256 bytes.
    [&[domain.len() as u8], domain.as_bytes(), message].concat()
}

#[cfg(test)]
#[path = "authentication_tests.rs"]
mod tests;

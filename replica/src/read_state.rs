//! Who may read which paths of the state tree (Interface Specification, "Request: Read state").

use std::collections::{BTreeSet, HashMap};

use candid::Principal;
use execution::RequestId;

use crate::authentication::{Authenticated, ReadState};
use crate::hash_tree::Selection;

/// Where a `read_state` request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/canister/ID/read_state`
    Canister(Principal),
    /// `/subnet/ID/read_state`
    Subnet(Principal),
}

/// Why a path may not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No such form of path at this endpoint.
    #[error("the path {0} cannot be read here; see the Interface Specification, \"Request: Read state\"")]
    Path(String),
    /// Another canister than the URL names.
    #[error("the path names canister {0}, the URL another one; send the request to the canister's own URL")]
    OtherCanister(String),
    /// Another sender's request.
    #[error("the status of request 0x{0} can be read by its sender only; sign with the key that sent it")]
    OtherSender(String),
    /// A key that may not speak to the canister which the request was for.
    #[error("the delegations do not cover canister {canister}, which request 0x{request} was sent to")]
    NotATarget {
        /// Request id in hex.
        request: String,
        /// Receiver of that request.
        canister: Principal,
    },
    /// More than one request.
    #[error("one read_state request can ask for one request id only; send one request for each")]
    SeveralRequests,
    /// A private section.
    #[error("the custom section {0:?} is private; sign with the key of a controller")]
    Private(String),
}

/// What decides over reading, beside the tree itself.
#[derive(Debug, Default)]
pub(crate) struct Access {
    /// Sender and receiver of each request in the tree.
    pub(crate) requests: HashMap<RequestId, (Principal, Principal)>,
    /// Canisters that have private custom sections.
    pub(crate) private: HashMap<Principal, PrivateSections>,
}

/// Private custom sections of a canister.
#[derive(Debug, Default)]
pub(crate) struct PrivateSections {
    pub(crate) names: BTreeSet<String>,
    pub(crate) readers: BTreeSet<Principal>,
}

impl Access {
    /// The parts of the tree that answer the request, if all of it is permitted.
    pub(crate) fn permit(
        &self,
        request: &Authenticated<ReadState>,
        endpoint: Endpoint,
        subnet_id: Principal,
    ) -> Result<Selection, Denied> {
        let mut request_ids = BTreeSet::new();
        for path in &request.content().paths {
            let labels: Vec<_> = path.iter().map(Vec::as_slice).collect();
            self.check(&labels, request, endpoint, subnet_id)?;
            if let [b"request_status", id, ..] = labels[..] {
                request_ids.insert(id);
            }
        }
        if request_ids.len() > 1 {
            return Err(Denied::SeveralRequests);
        }
        Ok(Selection::of(&request.content().paths))
    }

    fn check(
        &self,
        path: &[&[u8]],
        request: &Authenticated<ReadState>,
        endpoint: Endpoint,
        subnet_id: Principal,
    ) -> Result<(), Denied> {
        match *path {
            [b"time"] | [b"subnet"] | [b"subnet", _] => Ok(()),
            [b"api_boundary_nodes"] | [b"api_boundary_nodes", _] => Ok(()),
            [b"api_boundary_nodes", _, b"domain" | b"ipv4_address" | b"ipv6_address"] => Ok(()),
            [b"subnet", _, b"public_key" | b"type" | b"node"] => Ok(()),
            [b"subnet", _, b"node", _] | [b"subnet", _, b"node", _, b"public_key"] => Ok(()),
            [b"subnet", id, b"canister_ranges"] if id == subnet_id.as_slice() => Ok(()),
            [b"subnet", id, b"metrics"] if matches!(endpoint, Endpoint::Subnet(own) if own.as_slice() == id) => {
                Ok(())
            }
            [b"canister_ranges", _] if matches!(endpoint, Endpoint::Subnet(_)) => Ok(()),
            [b"request_status", id]
            | [
                b"request_status",
                id,
                b"status" | b"reply" | b"reject_code" | b"reject_message" | b"error_code",
            ] => self.check_request(id, request),
            [b"canister", id, b"module_hash" | b"controllers"] => own_canister(id, endpoint).map(|_| ()),
            [b"canister", id, b"metadata", name] => {
                let canister = own_canister(id, endpoint)?;
                let name = std::str::from_utf8(name).map_err(|_| Denied::Path(display(path)))?;
                match self.private.get(&canister) {
                    Some(private)
                        if private.names.contains(name) && !private.readers.contains(&request.sender()) =>
                    {
                        Err(Denied::Private(name.into()))
                    }
                    _ => Ok(()),
                }
            }
            _ => Err(Denied::Path(display(path))),
        }
    }

    fn check_request(&self, id: &[u8], request: &Authenticated<ReadState>) -> Result<(), Denied> {
        let known = RequestId::try_from(id).ok().and_then(|id| self.requests.get(&id));
        match known {
            Some((sender, _)) if *sender != request.sender() => Err(Denied::OtherSender(hex::encode(id))),
            Some((_, canister)) if !request.targets().contain(canister) => {
                Err(Denied::NotATarget { request: hex::encode(id), canister: *canister })
            }
            _ => Ok(()),
        }
    }
}

fn own_canister(id: &[u8], endpoint: Endpoint) -> Result<Principal, Denied> {
    match endpoint {
        Endpoint::Canister(own) if own.as_slice() == id => Ok(own),
        _ => Err(Denied::OtherCanister(
            Principal::try_from_slice(id).map_or_else(|_| hex::encode(id), |id| id.to_text()),
        )),
    }
}

/// A path for people: labels that are words as they are, others in hex.
fn display(path: &[&[u8]]) -> String {
    let label = |label: &&[u8]| match std::str::from_utf8(label) {
        Ok(text) if text.chars().all(|c| c.is_ascii_graphic()) => text.to_owned(),
        _ => format!("0x{}", hex::encode(label)),
    };
    let path: String = path.iter().map(|part| format!("/{}", label(part))).collect();
    if path.chars().count() > 200 { path.chars().take(200).chain("…".chars()).collect() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authentication;
    use crate::signature::testing::Signer;
    use crate::testing::{NOW, anonymous, blob, delegation, principal, signed, state_paths};
    use ciborium::Value as Cbor;

    const SUBNET: [u8; 2] = [2, 2];
    const CANISTER: [u8; 3] = [1, 1, 1];
    const RID: [u8; 32] = [5; 32];

    fn canister() -> Principal {
        Principal::from_slice(&CANISTER)
    }

    fn access(sender: Principal) -> Access {
        let private =
            PrivateSections { names: ["motoko:stable-types".into()].into(), readers: [sender].into() };
        Access { requests: [(RID, (sender, canister()))].into(), private: [(canister(), private)].into() }
    }

    /// What an anonymous reader gets for one path.
    fn read(path: &[&[u8]], endpoint: Endpoint) -> Result<Selection, Denied> {
        let request = anonymous(state_paths(Principal::anonymous(), &[path]));
        let request = authentication::read_state(&request, NOW).unwrap();
        access(principal(&Signer::ed25519(1))).permit(&request, endpoint, Principal::from_slice(&SUBNET))
    }

    const AT_CANISTER: fn() -> Endpoint = || Endpoint::Canister(canister());
    const AT_SUBNET: fn() -> Endpoint = || Endpoint::Subnet(Principal::from_slice(&SUBNET));

    #[test]
    fn public_paths_by_endpoint() {
        let cases: &[(&[&[u8]], bool, bool)] = &[
            (&[b"time"], true, true),
            (&[b"subnet"], true, true),
            (&[b"subnet", &SUBNET], true, true),
            (&[b"subnet", &SUBNET, b"public_key"], true, true),
            (&[b"subnet", &SUBNET, b"canister_ranges"], true, true),
            (&[b"subnet", &[9], b"canister_ranges"], false, false),
            (&[b"subnet", &SUBNET, b"node"], true, true),
            (&[b"subnet", &SUBNET, b"node", &[3], b"public_key"], true, true),
            (&[b"subnet", &SUBNET, b"metrics"], false, true),
            (&[b"canister_ranges", &SUBNET], false, true),
            (&[b"canister_ranges"], false, false),
            (&[b"request_status"], false, false),
            (&[b"request_status", &[6; 32]], true, true),
            (&[b"request_status", &[6; 32], b"reply"], true, true),
            (&[b"request_status", &[6; 32], b"reply", b"x"], false, false),
            (&[b"canister"], false, false),
            (&[b"canister", &CANISTER], false, false),
            (&[b"canister", &CANISTER, b"controllers"], true, false),
            (&[b"canister", &CANISTER, b"module_hash"], true, false),
            (&[b"canister", &[9], b"module_hash"], false, false),
            (&[b"canister", &CANISTER, b"certified_data"], false, false),
            (&[b"canister", &CANISTER, b"metadata"], false, false),
            (&[b"canister", &CANISTER, b"metadata", b"candid:service"], true, false),
            (&[b"canister", &CANISTER, b"metadata", b"motoko:stable-types"], false, false),
            (&[b"canister", &CANISTER, b"metadata", &[0xff]], false, false),
            (&[], false, false),
            (&[b"nonsense"], false, false),
        ];
        for (path, at_canister, at_subnet) in cases {
            assert_eq!(read(path, AT_CANISTER()).is_ok(), *at_canister, "{} at the canister", display(path));
            assert_eq!(read(path, AT_SUBNET()).is_ok(), *at_subnet, "{} at the subnet", display(path));
        }
    }

    #[test]
    fn a_request_is_its_senders_own() {
        let path: &[&[u8]] = &[b"request_status", &RID];
        assert_eq!(read(path, AT_CANISTER()), Err(Denied::OtherSender(hex::encode(RID))));

        let (owner, session) = (Signer::ed25519(1), Signer::ed25519(2));
        let read = |chain: Vec<Cbor>, signer: &Signer, paths: &[&[&[u8]]]| {
            let request = signed(state_paths(principal(&owner), paths), &owner, signer, chain);
            let request = authentication::read_state(&request, NOW).unwrap();
            access(principal(&owner)).permit(&request, AT_CANISTER(), Principal::from_slice(&SUBNET))
        };
        read(vec![], &owner, &[path]).unwrap();
        let chain = |target: &[u8]| {
            vec![delegation(&owner, &session, NOW, vec![("targets", Cbor::Array(vec![blob(target)]))])]
        };
        read(chain(&CANISTER), &session, &[path]).unwrap();
        assert!(matches!(read(chain(&[9]), &session, &[path]), Err(Denied::NotATarget { .. })));
        let two = read(vec![], &owner, &[path, &[b"request_status", &[6; 32]]]);
        assert_eq!(two, Err(Denied::SeveralRequests));
        // Private sections are for controllers, of whom the owner is one.
        read(vec![], &owner, &[&[b"canister", &CANISTER, b"metadata", b"motoko:stable-types"]]).unwrap();
    }
}

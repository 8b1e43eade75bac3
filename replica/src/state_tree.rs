//! What the system state tree holds of requests, canisters and the subnet (Interface Specification, "The
//! system state tree"). `/time` is added when the tree is signed: [`crate::certified_state`].

use candid::Principal;
use execution::{CanisterView, IngressStatus};
use serde_bytes::Bytes;

use crate::encoding::cbor;
use crate::hash_tree::{Labels, Tree};

/// The subnet as the tree shows it.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Subnet id.
    pub subnet_id: Principal,
    /// BLS key of the subnet, DER.
    pub subnet_key_der: Vec<u8>,
    /// Nodes with their Ed25519 keys, DER.
    pub nodes: Vec<(Principal, Vec<u8>)>,
    /// First and last canister id.
    pub canister_range: (Principal, Principal),
}

/// The tree of a subnet without requests and canisters.
pub(crate) fn base(topology: &Topology) -> Labels {
    let Topology { subnet_id, subnet_key_der, nodes, canister_range: (first, last) } = topology;
    let ranges = cbor(&[(Bytes::new(first.as_slice()), Bytes::new(last.as_slice()))]);
    let nodes: Labels = nodes
        .iter()
        .map(|(id, key)| (id.as_slice().to_vec(), level([("public_key", Tree::leaf(key))])))
        .collect();
    let subnet = level([
        // The subnet is its own root, and the root's ranges also stand here; older agents look nowhere else.
        ("canister_ranges", Tree::leaf(&ranges)),
        ("node", nodes.into()),
        ("public_key", Tree::leaf(subnet_key_der)),
        ("type", Tree::leaf("application")),
    ]);
    let shards: Labels = [(first.as_slice(), Tree::leaf(&ranges))].into_iter().collect();
    [
        ("canister", Labels::default()),
        ("canister_ranges", [(subnet_id.as_slice(), shards)].into_iter().collect()),
        ("request_status", Labels::default()),
        ("subnet", [(subnet_id.as_slice(), subnet)].into_iter().collect()),
    ]
    .into_iter()
    .collect()
}

/// The tree at `/request_status/ID`.
pub(crate) fn request(status: &IngressStatus) -> Tree {
    let name = Tree::leaf(status.name());
    match status {
        IngressStatus::Received | IngressStatus::Processing | IngressStatus::Done => {
            level([("status", name)])
        }
        IngressStatus::Replied(reply) => level([("reply", Tree::leaf(reply)), ("status", name)]),
        IngressStatus::Rejected(reject) => level([
            ("error_code", Tree::leaf(reject.error_code.to_string())),
            ("reject_code", Tree::nat(reject.code.number().into())),
            ("reject_message", Tree::leaf(&reject.message)),
            ("status", name),
        ]),
    }
}

/// The tree at `/canister/ID`.
pub(crate) fn canister(view: &CanisterView<'_>) -> Tree {
    let controllers: Vec<_> = view.controllers.iter().map(|id| Bytes::new(id.as_slice())).collect();
    let mut labels: Labels = [
        ("certified_data", Tree::leaf(view.certified_data)),
        ("controllers", Tree::leaf(cbor(&controllers))),
    ]
    .into_iter()
    .collect();
    if let Some(hash) = view.module_hash {
        labels = labels.with(b"module_hash", Tree::leaf(hash));
    }
    if let Some(metadata) = view.metadata {
        let metadata: Labels =
            metadata.iter().map(|(name, section)| (name, Tree::leaf(&section.content))).collect();
        labels = labels.with(b"metadata", metadata.into());
    }
    labels.into()
}

fn level<const N: usize>(entries: [(&str, Tree); N]) -> Tree {
    entries.into_iter().collect::<Labels>().into()
}

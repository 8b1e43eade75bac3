//! The committed state as outsiders may see it, with certificates over it.
//!
//! The executor puts in what was committed, under one lock with what decides who may read it; requests read
//! without the executor. So polling goes on while a long message executes, and nothing is shown before it is
//! durable.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use candid::Principal;
use execution::{CanisterView, IngressStatus, RequestId};
use serde::Serialize;
use serde_bytes::Bytes;

use crate::authentication::{Authenticated, ReadState, separated};
use crate::encoding::cbor;
use crate::hash_tree::{Labels, Selection, Tree, Witness};
use crate::keys::SubnetKey;
use crate::read_state::{Access, Denied, Endpoint, PrivateSections};
use crate::state_tree::{self, Topology};

/// A signature is used again for this long, in ns, while the state stays the same.
const FRESH_NS: u64 = 500_000_000;

/// The committed state and the key that certifies it.
pub struct CertifiedState {
    key: SubnetKey,
    subnet_id: Principal,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    /// Without `/time`.
    tree: Labels,
    access: Access,
    /// Last signature; time never goes back behind it.
    signed: Option<Signed>,
    last_time_ns: u64,
}

#[derive(Debug, Clone)]
struct Signed {
    /// With `/time`.
    tree: Labels,
    time_ns: u64,
    signature: [u8; 48],
}

#[derive(Serialize)]
struct Certificate<'a> {
    tree: Witness,
    signature: &'a Bytes,
}

/// What became of a request or a canister.
#[derive(Debug)]
pub enum Change<'a> {
    /// A request was received, went on, or finished.
    Request {
        /// Its id.
        id: RequestId,
        /// Where it stands.
        status: &'a IngressStatus,
        /// Who sent it.
        sender: Principal,
        /// Who it was sent to.
        canister: Principal,
    },
    /// A request was forgotten.
    NoRequest(RequestId),
    /// A canister was made or changed.
    Canister(CanisterView<'a>),
    /// A canister was deleted.
    NoCanister(Principal),
}

impl CertifiedState {
    /// A state without requests and canisters.
    pub fn new(key: SubnetKey, topology: &Topology) -> Self {
        let state = State {
            tree: state_tree::base(topology),
            access: Access::default(),
            signed: None,
            last_time_ns: 0,
        };
        Self { key, subnet_id: topology.subnet_id, state: RwLock::new(state) }
    }

    /// Shows committed changes, all at once.
    pub fn update<'a>(&self, changes: impl IntoIterator<Item = Change<'a>>) {
        let mut state = self.write();
        for change in changes {
            state.apply(change);
            state.signed = None;
        }
    }

    /// A certificate for a `read_state` request.
    pub fn read(
        &self,
        request: &Authenticated<ReadState>,
        endpoint: Endpoint,
        now_ns: u64,
    ) -> Result<Vec<u8>, Denied> {
        let selection = self.state().access.permit(request, endpoint, self.subnet_id)?;
        Ok(self.certificate(selection, now_ns))
    }

    /// A certificate for the status of a request, for the one who just sent it.
    pub fn request_certificate(&self, id: &RequestId, now_ns: u64) -> Vec<u8> {
        self.certificate(Selection::of([[&b"request_status"[..], id]]), now_ns)
    }

    /// A certificate for a canister's certified data, for the canister itself.
    pub fn data_certificate(&self, canister: &Principal, now_ns: u64) -> Vec<u8> {
        self.certificate(Selection::of([[b"canister", canister.as_slice(), b"certified_data"]]), now_ns)
    }

    /// The selected parts and `/time`, signed.
    fn certificate(&self, mut selection: Selection, now_ns: u64) -> Vec<u8> {
        selection.add([b"time"]);
        let signed = self.signed(now_ns);
        let tree = Tree::Labels(signed.tree).witness(&selection);
        cbor(&Certificate { tree, signature: Bytes::new(&signed.signature) })
    }

    fn signed(&self, now_ns: u64) -> Signed {
        let fresh = |signed: &&Signed| now_ns < signed.time_ns.saturating_add(FRESH_NS);
        if let Some(signed) = self.state().signed.as_ref().filter(fresh) {
            return signed.clone();
        }
        let mut state = self.write();
        if let Some(signed) = state.signed.as_ref().filter(fresh) {
            return signed.clone();
        }
        let time_ns = now_ns.max(state.last_time_ns);
        let tree = state.tree.with(b"time", Tree::nat(time_ns));
        let signature = self.key.sign(&separated("ic-state-root", &tree.digest()));
        let signed = Signed { tree, time_ns, signature };
        state.last_time_ns = time_ns;
        state.signed = Some(signed.clone());
        signed
    }

    // A panic elsewhere cannot leave the state half changed in a way that matters: each change is whole.
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, change: Change<'_>) {
        match change {
            Change::Request { id, status, sender, canister } => {
                self.access.requests.insert(id, (sender, canister));
                self.set(b"request_status", &id, Some(state_tree::request(status)));
            }
            Change::NoRequest(id) => {
                self.access.requests.remove(&id);
                self.set(b"request_status", &id, None);
            }
            Change::Canister(view) => {
                let sections = view.metadata.into_iter().flatten();
                let names =
                    sections.filter(|(_, section)| !section.public).map(|(name, _)| name.clone()).collect();
                let readers = view.controllers.clone();
                self.access.private.insert(view.id, PrivateSections { names, readers });
                self.set(b"canister", view.id.as_slice(), Some(state_tree::canister(&view)));
            }
            Change::NoCanister(id) => {
                self.access.private.remove(&id);
                self.set(b"canister", id.as_slice(), None);
            }
        }
    }

    fn set(&mut self, top: &[u8], label: &[u8], tree: Option<Tree>) {
        let Some(Tree::Labels(labels)) = self.tree.get(top) else { return };
        let labels = match tree {
            Some(tree) => labels.with(label, tree),
            None => labels.without(label),
        };
        self.tree = self.tree.with(top, labels.into());
    }
}

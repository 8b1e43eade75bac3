//! The development root as trust anchors, for verifiers that are asked to accept evidence of a simulation.

use crate::development;
use attestation::{Fingerprint, Product, TrustAnchors};

/// Anchors that accept evidence of this simulation and of nothing else. Such evidence proves nothing: its keys are
/// public.
#[must_use]
pub fn trust_anchors() -> TrustAnchors {
    TrustAnchors::of_simulation(Product::Genoa, Fingerprint::of(development::ARK))
}

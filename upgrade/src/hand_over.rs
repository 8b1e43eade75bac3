//! Who may be given the storage key, and from whom it may be taken: the decisions of a hand-over.
//!
//! The guest that runs and the guest that replaces it run side by side on one machine and exchange messages through the
//! host ([`crate::exchange`]). Evidence is verified by `attestation` first; what is decided here is on its facts. The host
//! carries every message, may drop, repeat or invent any, and chooses which guests run: nothing here believes it.

use attestation::{
    Authentic, EvidenceKind, Measurement, Report,
    binding::{Binding, Freshness, Role},
    report::GuestPolicy,
};
use release::{ApprovedManifest, Purpose, Refusal, Standing};

/// The facts of authentic evidence that are decided on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What made the report.
    pub kind: EvidenceKind,
    /// What was launched.
    pub measurement: Measurement,
    /// On which chip.
    pub chip_id: [u8; 64],
    /// Under which policy.
    pub policy: GuestPolicy,
    /// Security version of the launch.
    pub guest_svn: u32,
    /// Privilege level that asked: 0 is the guest's own system.
    pub vmpl: u32,
    /// What it is bound to.
    pub report_data: [u8; 64],
}

impl From<&Authentic> for Facts {
    fn from(authentic: &Authentic) -> Facts {
        Facts::stated(authentic.kind(), authentic.report())
    }
}

impl Facts {
    /// What a report states. Of a guest's own report that is enough: it comes from the Secure Processor itself.
    pub fn stated(kind: EvidenceKind, report: &Report) -> Facts {
        Facts {
            kind,
            measurement: report.measurement(),
            chip_id: report.chip_id(),
            policy: report.policy(),
            guest_svn: report.guest_svn(),
            vmpl: report.vmpl(),
            report_data: report.report_data(),
        }
    }
}

/// The channel between the two: each guest's public key for the agreement on a key, made for this hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channel<'a> {
    /// Of the old guest.
    pub old: &'a [u8],
    /// Of the new guest.
    pub new: &'a [u8],
}

impl Channel<'_> {
    /// REPORT_DATA that evidence of a side must have. `nonce` is the **other** side's.
    pub fn report_data(&self, kind: EvidenceKind, role: Role, nonce: [u8; 32]) -> [u8; 64] {
        let (key, peer) = if role == Role::HandOverOld { (self.old, self.new) } else { (self.new, self.old) };
        Binding { kind, role, freshness: Freshness::Nonce(nonce), key, peer: Some(peer) }.report_data()
    }
}

/// No key passes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    /// One is a simulation.
    #[error(
        "the other guest's evidence is of another kind than this guest's; start both on the same machine"
    )]
    OtherKind,
    /// On another machine.
    #[error("the other guest runs on another chip; a hand-over is between two guests on one machine")]
    OtherChip,
    /// An old message, one for another channel, or one by the wrong side.
    #[error("the other guest's evidence is not for this hand-over; begin it again")]
    Replayed,
    /// The host can read its memory.
    #[error("the other guest was launched with debugging allowed; launch it with the policy of its release")]
    Debug,
    /// Something below the guest's system asked.
    #[error("the other guest's evidence is from privilege level {0}; it must come from level 0")]
    PrivilegeLevel(u32),
    /// The launch allows more than this guest's.
    #[error(
        "the other guest's launch policy {found} allows what this guest's, {own}, forbids; keep the policy as strict"
    )]
    WeakerPolicy {
        /// Of the other guest, hexadecimal.
        found: String,
        /// Of this guest, hexadecimal.
        own: String,
    },
    /// The policy is not the release's.
    #[error("the other guest's launch policy is not the one of its release; launch it as the manifest says")]
    NotThePolicy,
    /// Not what the manifest names.
    #[error(
        "the other guest's measurement {0} is in no blessed release; launch the release that the manifest names"
    )]
    Unblessed(Measurement),
    /// The release may not have keys.
    #[error("the other guest's release is refused")]
    Release(#[source] Box<Refusal>),
    /// Lower than this guest's.
    #[error("the other guest's security version {found} is lower than {floor}; use a later release")]
    LowerEpoch {
        /// Least that is accepted.
        floor: u64,
        /// Found.
        found: u64,
    },
}

impl HandOverError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OtherKind => "hand-over-other-kind",
            Self::OtherChip => "hand-over-other-chip",
            Self::Replayed => "hand-over-replayed",
            Self::Debug => "hand-over-debug-guest",
            Self::PrivilegeLevel(_) => "hand-over-privilege-level",
            Self::WeakerPolicy { .. } => "hand-over-weaker-policy",
            Self::NotThePolicy => "hand-over-not-the-policy",
            Self::Unblessed(_) => "hand-over-unblessed",
            Self::Release(refusal) => refusal.code(),
            Self::LowerEpoch { .. } => "hand-over-lower-epoch",
        }
    }
}

/// Bits that allow something.
const ALLOWS: u64 = GuestPolicy::SMT | GuestPolicy::MIGRATE_MA | GuestPolicy::DEBUG | GuestPolicy::CXL_ALLOW;
/// Bits that demand something.
const DEMANDS: u64 = GuestPolicy::SINGLE_SOCKET
    | GuestPolicy::MEM_AES_256_XTS
    | GuestPolicy::RAPL_DIS
    | GuestPolicy::CIPHERTEXT_HIDING
    | GuestPolicy::PAGE_SWAP_DISABLE;

/// Whether a policy allows anything that another forbids.
pub fn is_weaker(policy: GuestPolicy, than: GuestPolicy) -> bool {
    policy.0 & !than.0 & ALLOWS != 0 || than.0 & !policy.0 & DEMANDS != 0 || policy.abi() < than.abi()
}

/// What both sides ask of each other: same kind, same chip, this very channel, no debugging, level 0.
fn common(own: &Facts, peer: &Facts, report_data: [u8; 64]) -> Result<(), HandOverError> {
    if peer.kind != own.kind {
        return Err(HandOverError::OtherKind);
    }
    if peer.report_data != report_data {
        return Err(HandOverError::Replayed);
    }
    if peer.chip_id != own.chip_id {
        return Err(HandOverError::OtherChip);
    }
    if peer.policy.has(GuestPolicy::DEBUG) {
        return Err(HandOverError::Debug);
    }
    if peer.vmpl != 0 {
        return Err(HandOverError::PrivilegeLevel(peer.vmpl));
    }
    Ok(())
}

fn require_measured(peer: &Facts, release: &ApprovedManifest) -> Result<(), HandOverError> {
    let guest = &release.manifest().guest;
    if !guest.measurements.iter().any(|entry| entry.measurement.0 == peer.measurement.0) {
        return Err(HandOverError::Unblessed(peer.measurement));
    }
    if guest.policy != peer.policy.0 {
        return Err(HandOverError::NotThePolicy);
    }
    Ok(())
}

/// Proof that the key may pass. It names the measurement that it may pass to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Of the new guest.
    pub measurement: Measurement,
    /// What its release is blessed for, and asked for.
    pub purpose: Purpose,
}

/// The old guest's side: whether the guest at the other end may have the key. `nonce` is the one that this guest made for
/// this hand-over and uses for no other request; `release` is the manifest that the new guest brought, verified;
/// `standing` what the blessing that it brought says to a node that has seen what this one has; `asked` what the new guest
/// wants the key for.
pub fn decide(
    own: &Facts,
    peer: &Facts,
    channel: Channel<'_>,
    nonce: [u8; 32],
    release: &ApprovedManifest,
    standing: &Standing<'_>,
    asked: Purpose,
) -> Result<Grant, HandOverError> {
    common(own, peer, channel.report_data(own.kind, Role::HandOverNew, nonce))?;
    require_measured(peer, release)?;
    if is_weaker(peer.policy, own.policy) {
        let hex = |policy: GuestPolicy| format!("{:#x}", policy.0);
        return Err(HandOverError::WeakerPolicy { found: hex(peer.policy), own: hex(own.policy) });
    }
    let (floor, found) = (u64::from(own.guest_svn), u64::from(peer.guest_svn));
    if found < floor {
        return Err(HandOverError::LowerEpoch { floor, found });
    }
    standing.may_have_keys(release, asked).map_err(|refusal| HandOverError::Release(Box::new(refusal)))?;
    Ok(Grant { measurement: peer.measurement, purpose: asked })
}

/// The new guest's side: whether the guest at the other end is one whose key it may take. `release` is the old guest's
/// manifest, verified; it need not be blessed any more, since that may be why it is replaced.
pub fn accept_giver(
    own: &Facts,
    peer: &Facts,
    channel: Channel<'_>,
    nonce: [u8; 32],
    release: &ApprovedManifest,
) -> Result<(), HandOverError> {
    common(own, peer, channel.report_data(own.kind, Role::HandOverOld, nonce))?;
    require_measured(peer, release)
}

//! The PSP as one launched guest sees it.

use super::{ChipError, Identity};
use crate::protocol::{
    Blob, Bytes, FieldSelect, KeyRequest, KeyRoot, REPORT_LENGTH, Request, Response, Status,
};
use attestation::{
    Measurement,
    report::{GuestPolicy, PlatformInfo, SIGNED, TcbLayout, TcbVersion, offset},
};
use ring::{hmac, rand::SecureRandom};
use std::{fmt::Display, sync::Arc};

/// Label of derived keys: no real PSP mixes it in, so nothing that a simulation sealed can be anything else's.
const KEY_LABEL: &[u8] = b"redoubt SIMULATED derived key";

/// What the host states at launch and the report repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchContext {
    /// Launch digest of exactly what is launched.
    pub measurement: Measurement,
    /// Hash of the guest's configuration.
    pub host_data: [u8; 32],
    /// POLICY.
    pub policy: GuestPolicy,
    /// ID block, if one is given.
    pub id_block: Option<IdBlock>,
}

/// What of an ID block reaches the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdBlock {
    /// FAMILY_ID.
    pub family_id: [u8; 16],
    /// IMAGE_ID.
    pub image_id: [u8; 16],
    /// Security version of the guest.
    pub guest_svn: u32,
    /// SHA-384 of the key that signed the block.
    pub id_key_digest: [u8; 48],
}

impl LaunchContext {
    /// With QEMU's default policy (SMT allowed) and without an ID block.
    #[must_use]
    pub const fn new(measurement: Measurement, host_data: [u8; 32]) -> Self {
        let policy = GuestPolicy(GuestPolicy::RESERVED_ONE | GuestPolicy::SMT);
        Self { measurement, host_data, policy, id_block: None }
    }
}

/// Answers one guest. It runs at VMPL 0.
#[derive(Debug)]
pub struct Psp {
    identity: Arc<Identity>,
    context: LaunchContext,
    /// ID block, zero without one.
    id_block: IdBlock,
    /// New for each launch.
    report_id: [u8; 32],
}

impl Psp {
    pub(super) fn new(identity: Arc<Identity>, context: LaunchContext) -> Result<Self, ChipError> {
        let mut report_id = [0; 32];
        identity.random.fill(&mut report_id).map_err(|_| ChipError::Crypto("make a report id"))?;
        let id_block = context.id_block.clone().unwrap_or(IdBlock {
            family_id: [0; 16],
            image_id: [0; 16],
            guest_svn: 0,
            id_key_digest: [0; 48],
        });
        Ok(Self { identity, context, id_block, report_id })
    }

    /// Answers a request. Nothing is kept from one to the next.
    #[must_use]
    pub fn handle(&self, request: &Request) -> Response {
        let answer = match request {
            Request::Report { report_data, vmpl } => self.report(&report_data.0, *vmpl),
            Request::DerivedKey(request) => self.derived_key(request),
        };
        answer.unwrap_or_else(|(status, reason)| Response::Refused { status, reason })
    }

    fn report(&self, report_data: &[u8; 64], vmpl: u32) -> Result<Response, Refused> {
        check_vmpl(vmpl)?;
        let mut report = [0; REPORT_LENGTH];
        let mut put = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
        put(offset::VERSION, &5_u32.to_le_bytes());
        put(offset::GUEST_SVN, &self.id_block.guest_svn.to_le_bytes());
        put(offset::POLICY, &self.context.policy.0.to_le_bytes());
        put(offset::FAMILY_ID, &self.id_block.family_id);
        put(offset::IMAGE_ID, &self.id_block.image_id);
        put(offset::VMPL, &vmpl.to_le_bytes());
        put(offset::SIGNATURE_ALGO, &1_u32.to_le_bytes());
        let platform = PlatformInfo::ECC | PlatformInfo::ALIAS_CHECK_COMPLETE;
        put(offset::PLATFORM_INFO, &platform.to_le_bytes());
        // KEY_INFO stays 0: signed by the VCEK, no author key, chip key not masked.
        put(offset::REPORT_DATA, report_data);
        put(offset::MEASUREMENT, &self.context.measurement.0);
        put(offset::HOST_DATA, &self.context.host_data);
        put(offset::ID_KEY_DIGEST, &self.id_block.id_key_digest);
        put(offset::REPORT_ID, &self.report_id);
        put(offset::REPORT_ID_MA, &[0xff; 32]);
        put(offset::CPUID_FAMILY, &[0x19, 0x11, 0x01]);
        put(offset::CHIP_ID, &self.identity.chip_id);
        for at in [offset::CURRENT_TCB, offset::REPORTED_TCB, offset::COMMITTED_TCB, offset::LAUNCH_TCB] {
            put(at, &self.identity.tcb.encode());
        }
        // Firmware 1.55.49, as the TCB above: build, minor, major.
        put(offset::CURRENT_VERSION, &[49, 55, 1]);
        put(offset::COMMITTED_VERSION, &[49, 55, 1]);
        self.identity.sign(&mut report)?;
        let certificates = Blob(self.identity.certificate_table.clone());
        Ok(Response::Report { report: Box::new(Bytes(report)), certificates })
    }

    /// Every input has a fixed place and length, and one that is not selected is zero, so that two different requests
    /// never give the same key.
    fn derived_key(&self, request: &KeyRequest) -> Result<Response, Refused> {
        check_vmpl(request.vmpl)?;
        let KeyRequest { root, fields, vmpl, guest_svn, tcb_version } = request;
        if fields.0 & !FieldSelect::DEFINED.0 != 0 {
            return invalid(format_args!("GUEST_FIELD_SELECT {:#x} has bits that are not defined", fields.0));
        }
        if *guest_svn > self.id_block.guest_svn {
            return invalid(format_args!(
                "GUEST_SVN {guest_svn} is above the guest's {}",
                self.id_block.guest_svn
            ));
        }
        let tcb = TcbVersion::decode(tcb_version.to_le_bytes(), TcbLayout::Legacy);
        if tcb.encode() != tcb_version.to_le_bytes() || !within(tcb, self.identity.tcb) {
            return invalid(format_args!(
                "TCB_VERSION {tcb_version:#x} is above the committed one ({})",
                self.identity.tcb
            ));
        }
        let mut mixed = hmac::Context::with_key(&self.identity.secret);
        mixed.update(KEY_LABEL);
        mixed.update(&[match root {
            KeyRoot::Vcek => 0,
            KeyRoot::Vmrk => 1,
        }]);
        mixed.update(&fields.0.to_le_bytes());
        mixed.update(&vmpl.to_le_bytes());
        // Always mixed in: another signer of ID blocks gets other keys.
        mixed.update(&self.id_block.id_key_digest);
        for (field, value) in [
            (FieldSelect::GUEST_POLICY, self.context.policy.0.to_le_bytes().as_slice()),
            (FieldSelect::IMAGE_ID, &self.id_block.image_id),
            (FieldSelect::FAMILY_ID, &self.id_block.family_id),
            (FieldSelect::MEASUREMENT, &self.context.measurement.0),
            (FieldSelect::GUEST_SVN, &guest_svn.to_le_bytes()),
            (FieldSelect::TCB_VERSION, &tcb_version.to_le_bytes()),
        ] {
            let zero = [0; 48];
            mixed.update(if fields.contains(field) { value } else { &zero[..value.len()] });
        }
        let mut key = Bytes([0; 32]);
        key.0.copy_from_slice(&mixed.sign().as_ref()[..32]);
        Ok(Response::DerivedKey { key })
    }
}

impl Identity {
    /// Fills in R and S.
    pub(super) fn sign(&self, report: &mut [u8; REPORT_LENGTH]) -> Result<(), Refused> {
        let signature = self
            .key
            .sign(&self.random, &report[SIGNED])
            .map_err(|_| (Status::Internal, "signing the report failed".to_owned()))?;
        let (r, s) = signature.as_ref().split_at(48);
        for (at, scalar) in [(offset::SIGNATURE_R, r), (offset::SIGNATURE_S, s)] {
            for (place, byte) in report[at..].iter_mut().zip(scalar.iter().rev()) {
                *place = *byte;
            }
        }
        Ok(())
    }
}

/// Whether no part of a TCB version is above the other's. As numbers of 64 bits they cannot be compared.
fn within(tcb: TcbVersion, limit: TcbVersion) -> bool {
    tcb.parts().into_iter().zip(limit.parts()).all(|((_, part), (_, limit))| part <= limit)
}

pub(super) type Refused = (Status, String);

fn invalid<T>(reason: impl Display) -> Result<T, Refused> {
    Err((Status::InvalidParameter, reason.to_string()))
}

fn check_vmpl(vmpl: u32) -> Result<(), Refused> {
    if vmpl > 3 { invalid(format_args!("VMPL {vmpl} does not exist; there are 0 to 3")) } else { Ok(()) }
}

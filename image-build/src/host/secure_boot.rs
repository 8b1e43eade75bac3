//! Secure Boot of virtual machines: the development key, and a variable store of OVMF in which it is enrolled.
//!
//! THE KEY IS PUBLIC: it stands in the repository, and whoever wants to signs with it. Only virtual machines of developers
//! and testers trust it. Releases of the production profile are signed elsewhere; see [`super::pe::attach`].

use super::{
    authenticode::{SignError, Signer, sign_data},
    gpt::Guid,
};

/// PUBLIC development key, PKCS #8.
#[cfg(any(test, feature = "virtual"))]
pub const KEY: &[u8] = include_bytes!("../../secure-boot/INSECURE-development.key");
/// Its certificate, X.509.
pub const CERTIFICATE: &[u8] = include_bytes!("../../secure-boot/INSECURE-development.crt");

/// gEfiAuthenticatedVariableGuid: the format of the store.
const AUTHENTICATED: Guid = Guid::new(0xaaf32c78_947b_439a_a180_2e144ec37792);
/// gEfiGlobalVariableGuid: owner of PK and KEK.
const GLOBAL: Guid = Guid::new(0x8be4df61_93ca_11d2_aa0d_00e098032b8c);
/// gEfiImageSecurityDatabaseGuid: owner of db.
const SECURITY_DATABASE: Guid = Guid::new(0xd719b2cb_3d3a_4596_a3bc_dad00e67656f);
/// gEfiCertX509Guid: kind of a signature list.
const X509: Guid = Guid::new(0xa5c059a1_94e4_4aa7_87b5_ab155c2bf072);
/// Who enrolled the keys: this project, by a GUID of its own.
const OWNER: Guid = Guid::new(0x7c1f9e0a_52d4_4f0b_9a3e_6d0b5e1c8f24);
/// Non-volatile, boot service, runtime, time-based authenticated write access.
const ATTRIBUTES: u32 = 0x27;
/// EFI_TIME of 2026-01-01.
const TIME: [u8; 16] = [0xea, 0x07, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The variables that hold a certificate, and their owners.
const VARIABLES: [(&str, Guid); 3] = [("PK", GLOBAL), ("KEK", GLOBAL), ("db", SECURITY_DATABASE)];

/// EFI_SIGNATURE_LIST with one certificate (UEFI specification 2.10, 32.4.1).
fn signature_list(certificate: &[u8]) -> Vec<u8> {
    let mut list = X509.stored().to_vec();
    let entry = 16 + certificate.len() as u32;
    for number in [28 + entry, 0, entry] {
        list.extend(number.to_le_bytes());
    }
    list.extend(OWNER.stored());
    list.extend(certificate);
    list
}

/// What is written to each of the variables PK, KEK and db in setup mode: the certificate of `platform` to the first two,
/// `certificate` to the last, each signed by `platform`. It is EFI_VARIABLE_AUTHENTICATION_2 and the new value (UEFI
/// specification 2.10, 8.2.2).
pub fn signed_variables(
    platform: Signer<'_>,
    certificate: &[u8],
) -> Result<Vec<(&'static str, Vec<u8>)>, SignError> {
    /// EFI_CERT_TYPE_PKCS7_GUID.
    const PKCS7: Guid = Guid::new(0x4aafd29d_68df_49ee_8aa9_347d375665a7);
    let variable = |(name, owner): (&'static str, Guid)| {
        let list = signature_list(if name == "db" { certificate } else { platform.certificate });
        let mut content: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        content.extend(owner.stored());
        content.extend(ATTRIBUTES.to_le_bytes());
        content.extend(TIME);
        content.extend(&list);
        let signature = sign_data(&content, platform)?;
        let mut value = TIME.to_vec();
        value.extend((24 + signature.len() as u32).to_le_bytes());
        value.extend(0x0200_u16.to_le_bytes()); // revision
        value.extend(0x0ef1_u16.to_le_bytes()); // WIN_CERT_TYPE_EFI_GUID
        value.extend(PKCS7.stored());
        value.extend(signature);
        value.extend(&list);
        Ok((name, value))
    };
    VARIABLES.into_iter().map(variable).collect()
}

/// Whether what is written to a variable puts this certificate into it, alone or among others.
#[must_use]
pub fn enrols(value: &[u8], certificate: &[u8]) -> bool {
    // The time, then WIN_CERTIFICATE, which begins with its own length.
    let length = value.get(16..20).map_or(0, |l| u32::from_le_bytes([l[0], l[1], l[2], l[3]]) as usize);
    let content = value.get(16_usize.saturating_add(length)..).unwrap_or_default();
    !certificate.is_empty() && content.windows(certificate.len()).any(|window| window == certificate)
}

/// A file is no empty variable store.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no variable store of OVMF as its package ships it ({0}); take it from the locked package again"
)]
pub struct StoreError(&'static str);

/// The empty store of OVMF (`OVMF_VARS_4M.fd`) with this certificate as platform key, key exchange key and signature
/// database. The firmware then boots nothing that its key did not sign.
pub fn enroll(empty: &[u8], certificate: &[u8]) -> Result<Vec<u8>, StoreError> {
    // EFI_FIRMWARE_VOLUME_HEADER: signature at 40, its length at 48; the store's header of 28 bytes follows.
    let length = empty.get(48..50).map_or(0, |l| usize::from(u16::from_le_bytes([l[0], l[1]])));
    if empty.get(40..44) != Some(b"_FVH") || empty.get(length..length + 16) != Some(&AUTHENTICATED.stored()) {
        return Err(StoreError("no authenticated variables"));
    }
    let list = signature_list(certificate);
    let mut variables = Vec::new();
    for (name, owner) in VARIABLES {
        let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        // AUTHENTICATED_VARIABLE_HEADER (edk2, VariableFormat.h): start 0x55aa, state "added", reserved.
        variables.extend([0xaa, 0x55, 0x3f, 0]);
        variables.extend(ATTRIBUTES.to_le_bytes());
        variables.extend(0_u64.to_le_bytes()); // count, of another kind of variable
        variables.extend(TIME);
        variables.extend(0_u32.to_le_bytes()); // key, of another kind of variable
        variables.extend((name.len() as u32).to_le_bytes());
        variables.extend((list.len() as u32).to_le_bytes());
        variables.extend(owner.stored());
        variables.extend(name);
        variables.extend(&list);
        // Erased flash reads as ones.
        variables.resize(variables.len().next_multiple_of(4), 0xff);
    }
    let mut store = empty.to_vec();
    let place =
        store.get_mut(length + 28..length + 28 + variables.len()).ok_or(StoreError("it is too small"))?;
    if place.iter().any(|byte| *byte != 0xff) {
        return Err(StoreError("it is not empty"));
    }
    place.copy_from_slice(&variables);
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_store_is_filled() {
        let mut empty = vec![0xff; 0x4000];
        empty[40..44].copy_from_slice(b"_FVH");
        empty[48..50].copy_from_slice(&72_u16.to_le_bytes());
        empty[72..88].copy_from_slice(&AUTHENTICATED.stored());
        let filled = enroll(&empty, CERTIFICATE).unwrap();
        assert_eq!(filled.windows(CERTIFICATE.len()).filter(|w| *w == CERTIFICATE).count(), 3);
        assert_eq!(filled[100..102], [0xaa, 0x55]);
        assert_eq!(enroll(&filled, CERTIFICATE), Err(StoreError("it is not empty")));
        assert_eq!(enroll(&empty[..1000], CERTIFICATE), Err(StoreError("it is too small")));
        assert_eq!(enroll(&[], CERTIFICATE), Err(StoreError("no authenticated variables")));
    }

    #[test]
    fn a_variable_enrols_what_it_holds_and_not_what_signs_it() {
        let signer = Signer { key: KEY, certificate: CERTIFICATE };
        let variables = signed_variables(signer, b"another certificate").unwrap();
        let found = variables.iter().map(|(name, value)| (*name, enrols(value, CERTIFICATE)));
        assert_eq!(found.collect::<Vec<_>>(), [("PK", true), ("KEK", true), ("db", false)]);
        assert!(enrols(&variables[2].1, b"another certificate"));
        assert!(!enrols(b"", CERTIFICATE) && !enrols(&variables[0].1, b""));
    }
}

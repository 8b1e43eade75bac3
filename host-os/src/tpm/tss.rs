//! A TPM by libtss2. A context is opened for each request: the kernel's resource manager then frees whatever it left.

use super::{PublicKeys, Quote, Tpm, TpmError, policy};
use measured_boot::{Hash, QUOTED};
use std::collections::BTreeMap;
use tss_esapi::{
    Context, Error, TctiNameConf,
    abstraction::{AsymmetricAlgorithmSelection, ek},
    attributes::{NvIndexAttributesBuilder, ObjectAttributesBuilder, SessionAttributesBuilder},
    constants::{CapabilityType, SessionType, response_code::Tss2ResponseCodeKind},
    handles::{
        AuthHandle, KeyHandle, NvIndexHandle, NvIndexTpmHandle, ObjectHandle, PersistentTpmHandle,
        SessionHandle, TpmHandle,
    },
    interface_types::{
        algorithm::{HashingAlgorithm, PublicAlgorithm},
        dynamic_handles::Persistent,
        ecc::EccCurve,
        key_bits::RsaKeyBits,
        resource_handles::{Hierarchy, NvAuth, Provision},
        session_handles::{AuthSession, PolicySession},
    },
    structures::{
        CapabilityData, Data, Digest, EccPoint, EccScheme, EncryptedSecret, HashScheme, IdObject,
        KeyDerivationFunctionScheme, KeyedHashScheme, NvPublicBuilder, PcrSelectionList,
        PcrSelectionListBuilder, PcrSlot, Private, Public, PublicBuilder, PublicEccParametersBuilder,
        PublicKeyedHashParameters, SensitiveData, SignatureScheme, SymmetricDefinition,
        SymmetricDefinitionObject,
    },
    tcti_ldr::DeviceConfig,
    traits::{Marshall, UnMarshall},
};

/// Where the endorsement key stays (TCG TPM v2.0 Provisioning Guidance, 7.8: RSA 2048).
const ENDORSEMENT: u32 = 0x8101_0001;
/// Where makers put its certificate (TCG EK Credential Profile, 2.2.1.4).
const CERTIFICATE: u32 = 0x01c0_0002;
/// Where the attestation key stays; of the owner's range.
const ATTESTATION: u32 = 0x8100_5244;
/// The counter; of the owner's range.
const COUNTER: u32 = 0x0180_5244;

/// A TPM that libtss2 reaches.
#[derive(Debug)]
pub struct LibTss {
    tcti: TctiNameConf,
}

/// Names the request in an error.
fn failed(what: &'static str) -> impl Fn(Error) -> TpmError {
    move |error| match error {
        Error::Tss2Error(code) if code.kind() == Some(Tss2ResponseCodeKind::PolicyFail) => {
            TpmError::OtherStart
        }
        Error::Tss2Error(code) if code.kind() == Some(Tss2ResponseCodeKind::Integrity) => TpmError::OtherTpm,
        error => TpmError::Failed { what, why: error.to_string() },
    }
}

impl LibTss {
    /// The kernel's.
    pub fn device() -> Result<Self, TpmError> {
        let device: DeviceConfig = super::DEVICE.parse().map_err(failed("have a device"))?;
        Ok(Self { tcti: TctiNameConf::Device(device) })
    }

    /// Another one, as libtss2 names them: `swtpm:host=127.0.0.1,port=2321` is a program.
    pub fn named(tcti: &str) -> Result<Self, TpmError> {
        Ok(Self { tcti: tcti.parse().map_err(failed("have such a name"))? })
    }

    fn with<T>(
        &self,
        what: &'static str,
        ask: impl FnOnce(&mut Context) -> Result<T, Error>,
    ) -> Result<T, TpmError> {
        Context::new(self.tcti.clone()).and_then(|mut context| ask(&mut context)).map_err(failed(what))
    }
}

/// The object at a handle, if there is one. Asking for one that is not there would make libtss2 print errors.
fn existing(context: &mut Context, handle: TpmHandle) -> Result<Option<ObjectHandle>, Error> {
    let (found, _) = context.get_capability(CapabilityType::Handles, handle.into(), 1)?;
    match found {
        CapabilityData::Handles(list) if list.first() == Some(&handle) => {
            context.tr_from_tpm_public(handle).map(Some)
        }
        _ => Ok(None),
    }
}

/// The key at a persistent handle, made and put there if nothing is.
fn persistent(
    context: &mut Context,
    handle: u32,
    template: impl FnOnce() -> Result<Public, Error>,
) -> Result<KeyHandle, Error> {
    let handle = PersistentTpmHandle::new(handle)?;
    if let Some(found) = existing(context, TpmHandle::Persistent(handle))? {
        return Ok(found.into());
    }
    let template = template()?;
    context.execute_with_nullauth_session(|context| {
        let made =
            context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)?.key_handle;
        context.execute_with_temporary_object(made.into(), |context, made| {
            let kept = context.evict_control(Provision::Owner, made, Persistent::Persistent(handle))?;
            Ok(KeyHandle::from(kept))
        })
    })
}

fn endorsement_key(context: &mut Context) -> Result<KeyHandle, Error> {
    let kind = AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048);
    persistent(context, ENDORSEMENT, || ek::create_ek_public_from_default_template_2(kind, None))
}

/// ECC P-256, in the form that attributes and scheme make a key for this purpose.
fn ecc(
    attributes: ObjectAttributesBuilder,
    symmetric: SymmetricDefinitionObject,
    scheme: EccScheme,
) -> Result<Public, Error> {
    let attributes = attributes
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_restricted(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new()
        .with_symmetric(symmetric)
        .with_ecc_scheme(scheme)
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_signing_key(attributes.sign_encrypt())
        .with_is_decryption_key(attributes.decrypt())
        .with_restricted(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// A restricted key under the endorsement hierarchy: clearing the TPM makes another one.
fn attestation_key(context: &mut Context) -> Result<KeyHandle, Error> {
    persistent(context, ATTESTATION, || {
        ecc(
            ObjectAttributesBuilder::new().with_sign_encrypt(true),
            SymmetricDefinitionObject::Null,
            EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)),
        )
    })
}

/// Runs with the storage root key, which the TPM makes anew from its seed each time.
fn with_storage_key<T>(
    context: &mut Context,
    ask: impl FnOnce(&mut Context, KeyHandle) -> Result<T, Error>,
) -> Result<T, Error> {
    let template = ecc(
        ObjectAttributesBuilder::new().with_decrypt(true).with_no_da(true),
        SymmetricDefinitionObject::AES_128_CFB,
        EccScheme::Null,
    )?;
    let made = context.execute_with_nullauth_session(|context| {
        context.create_primary(Hierarchy::Owner, template, None, None, None, None)
    })?;
    context.execute_with_temporary_object(made.key_handle.into(), |context, key| ask(context, key.into()))
}

/// Runs with a policy session whose secrets on the bus are encrypted; with a key, also against who was there before.
fn with_policy<T>(
    context: &mut Context,
    key: Option<KeyHandle>,
    ask: impl FnOnce(&mut Context, AuthSession, PolicySession) -> Result<T, Error>,
) -> Result<T, Error> {
    let session = context.execute_without_session(|context| {
        let symmetric = SymmetricDefinition::AES_128_CFB;
        context.start_auth_session(key, None, None, SessionType::Policy, symmetric, HashingAlgorithm::Sha256)
    })?;
    let session = session.ok_or(Error::WrapperError(tss_esapi::WrapperErrorKind::WrongValueFromTpm))?;
    let (attributes, mask) = SessionAttributesBuilder::new().with_decrypt(true).with_encrypt(true).build();
    context.tr_sess_set_attributes(session, attributes, mask)?;
    let object = ObjectHandle::from(SessionHandle::from(session));
    context.execute_with_temporary_object(object, |context, _| ask(context, session, session.try_into()?))
}

fn selection(pcrs: &[u8]) -> Result<PcrSelectionList, Error> {
    // Slots are named by their bit.
    let slots: Vec<PcrSlot> =
        pcrs.iter().map(|pcr| PcrSlot::try_from(1_u32 << (pcr % 32))).collect::<Result<_, _>>()?;
    PcrSelectionListBuilder::new().with_selection(HashingAlgorithm::Sha256, &slots).build()
}

/// The counter's handle, defined and incremented once (which gives it its first value) if it is not there.
fn counter(context: &mut Context) -> Result<NvIndexHandle, Error> {
    let index = NvIndexTpmHandle::new(COUNTER)?;
    if let Some(found) = existing(context, TpmHandle::NvIndex(index))? {
        return Ok(found.into());
    }
    let attributes = NvIndexAttributesBuilder::new()
        .with_nv_index_type(tss_esapi::constants::NvIndexType::Counter)
        .with_owner_write(true)
        .with_owner_read(true)
        .with_auth_write(true)
        .with_auth_read(true)
        .with_no_da(true)
        .build()?;
    let public = NvPublicBuilder::new()
        .with_nv_index(index)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes)
        .with_data_area_size(8)
        .build()?;
    context.execute_with_nullauth_session(|context| {
        let made = context.nv_define_space(Provision::Owner, None, public)?;
        context.nv_increment(NvAuth::Owner, made)?;
        Ok(made)
    })
}

/// Two parts, each with its length before it.
fn join(first: &[u8], second: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in [first, second] {
        out.extend(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend(part);
    }
    out
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let part = |bytes: &'_ [u8]| -> Option<(usize, usize)> {
        let length = usize::from(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?));
        (bytes.len() >= 2 + length).then_some((2, 2 + length))
    };
    let (from, to) = part(bytes)?;
    let (first, rest) = (&bytes[from..to], &bytes[to..]);
    let (from, to) = part(rest)?;
    (to == rest.len()).then_some((first, &rest[from..to]))
}

impl Tpm for LibTss {
    fn keys(&mut self) -> Result<PublicKeys, TpmError> {
        self.with("make its keys", |context| {
            let endorsement = endorsement_key(context)?;
            let attestation = attestation_key(context)?;
            let kind = AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048);
            let certificate = TpmHandle::NvIndex(NvIndexTpmHandle::new(CERTIFICATE)?);
            Ok(PublicKeys {
                endorsement: context.read_public(endorsement)?.0.marshall()?,
                certificate: match existing(context, certificate)? {
                    Some(_) => Some(ek::retrieve_ek_pubcert(context, kind)?),
                    None => None,
                },
                attestation: context.read_public(attestation)?.0.marshall()?,
            })
        })
    }

    fn activate(&mut self, credential: &[u8], seed: &[u8]) -> Result<[u8; 32], TpmError> {
        let wrong = |why: &str| TpmError::Failed { what: "open the challenge", why: why.to_owned() };
        let credential = IdObject::try_from(credential).map_err(failed("open the challenge"))?;
        let seed = EncryptedSecret::try_from(seed).map_err(failed("open the challenge"))?;
        let secret = self.with("open the challenge", |context| {
            let (endorsement, attestation) = (endorsement_key(context)?, attestation_key(context)?);
            with_policy(context, None, |context, session, policy| {
                context.execute_with_nullauth_session(|context| {
                    let none = Default::default;
                    context.policy_secret(
                        policy,
                        AuthHandle::Endorsement,
                        none(),
                        Digest::default(),
                        none(),
                        None,
                    )
                })?;
                let sessions = (Some(AuthSession::Password), Some(session), None);
                context.execute_with_sessions(sessions, |context| {
                    context.activate_credential(attestation, endorsement, credential, seed)
                })
            })
        })?;
        secret.value().try_into().map_err(|_| wrong("it is not of 32 bytes"))
    }

    fn quote(&mut self, qualifying: &Hash) -> Result<Quote, TpmError> {
        self.with("quote its PCRs", |context| {
            let key = attestation_key(context)?;
            let (data, selection) = (Data::try_from(&qualifying[..])?, selection(&QUOTED)?);
            let (statement, signature) = context.execute_with_nullauth_session(|context| {
                context.quote(key, data, SignatureScheme::Null, selection)
            })?;
            Ok(Quote { statement: statement.marshall()?, signature: signature.marshall()? })
        })
    }

    fn pcrs(&mut self, which: &[u8]) -> Result<BTreeMap<u8, Hash>, TpmError> {
        self.with("read its PCRs", |context| {
            // A TPM gives up to eight at once; one at a time is simple, and there are few.
            which
                .iter()
                .map(|pcr| {
                    let (_, _, values) = context.pcr_read(selection(&[*pcr])?)?;
                    let value = values.value().first().and_then(|value| value.value().try_into().ok());
                    let missing = Error::WrapperError(tss_esapi::WrapperErrorKind::WrongValueFromTpm);
                    Ok((*pcr, value.ok_or(missing)?))
                })
                .collect()
        })
    }

    fn seal(&mut self, secret: &[u8], pcrs: &BTreeMap<u8, Hash>) -> Result<Vec<u8>, TpmError> {
        self.with("seal a secret", |context| {
            let attributes = ObjectAttributesBuilder::new()
                .with_fixed_tpm(true)
                .with_fixed_parent(true)
                .with_no_da(true)
                .with_admin_with_policy(true)
                .build()?;
            let public = PublicBuilder::new()
                .with_public_algorithm(PublicAlgorithm::KeyedHash)
                .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
                .with_object_attributes(attributes)
                .with_auth_policy(Digest::try_from(&policy(pcrs)[..])?)
                .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
                .with_keyed_hash_unique_identifier(Digest::default())
                .build()?;
            let secret = SensitiveData::try_from(secret)?;
            let made = with_storage_key(context, |context, key| {
                context.execute_with_nullauth_session(|context| {
                    context.create(key, public, None, Some(secret), None, None)
                })
            })?;
            Ok(join(&made.out_public.marshall()?, made.out_private.value()))
        })
    }

    fn unseal(&mut self, sealed: &[u8], pcrs: &[u8]) -> Result<Vec<u8>, TpmError> {
        let (public, private) = split(sealed).ok_or(TpmError::Damaged)?;
        let public = Public::unmarshall(public).map_err(|_| TpmError::Damaged)?;
        let private = Private::try_from(private).map_err(|_| TpmError::Damaged)?;
        self.with("open a sealed secret", |context| {
            with_storage_key(context, |context, key| {
                let object =
                    context.execute_with_nullauth_session(|context| context.load(key, private, public))?;
                context.execute_with_temporary_object(object.into(), |context, object| {
                    with_policy(context, Some(key), |context, session, policy| {
                        context.policy_pcr(policy, Digest::default(), selection(pcrs)?)?;
                        let secret =
                            context.execute_with_session(Some(session), |context| context.unseal(object))?;
                        Ok(secret.value().to_vec())
                    })
                })
            })
        })
    }

    fn counter(&mut self) -> Result<u64, TpmError> {
        let value = self.with("read its counter", |context| {
            let index = counter(context)?;
            context
                .execute_with_nullauth_session(|context| context.nv_read(NvAuth::NvIndex(index), index, 8, 0))
        })?;
        let why = || TpmError::Failed { what: "read its counter", why: "it has no eight bytes".to_owned() };
        value.value().try_into().map(u64::from_be_bytes).map_err(|_| why())
    }

    fn increment(&mut self) -> Result<(), TpmError> {
        self.with("raise its counter", |context| {
            let index = counter(context)?;
            context
                .execute_with_nullauth_session(|context| context.nv_increment(NvAuth::NvIndex(index), index))
        })
    }
}

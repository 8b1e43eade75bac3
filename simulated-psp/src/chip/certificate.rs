//! The certificate of a simulated chip's key: the form of a VCEK (AMD document 57230), under the development ASK.

use super::{ChipError, der};
use crate::development::ASK_KEY;
use attestation::report::TcbVersion;
use ring::{
    rand::SystemRandom,
    signature::{RSA_PSS_SHA384, RsaKeyPair},
};

const ISSUER: &str = "SIM-ASK-NOT-AMD";
const SUBJECT: &str = "SIM-SEV-VCEK";
/// The stepping says that it is none.
const PRODUCT: &str = "Genoa-SIM";
/// As long as the development root: nothing is gained by a shorter life of a worthless key.
const VALIDITY: [&str; 2] = ["250101000000Z", "491231235959Z"];

const AMD: [u32; 8] = [1, 3, 6, 1, 4, 1, 3704, 1];
const SHA384: [u32; 9] = [2, 16, 840, 1, 101, 3, 4, 2, 2];

/// Issues a certificate for a key on P-384, given as an uncompressed point.
pub(super) fn issue(
    public_key: &[u8],
    chip_id: &[u8; 64],
    tcb: TcbVersion,
    random: &SystemRandom,
) -> Result<Vec<u8>, ChipError> {
    let algorithm = pss_sha384();
    let curve = der::sequence(&[&der::oid(&[1, 2, 840, 10045, 2, 1]), &der::oid(&[1, 3, 132, 0, 34])]);
    let signed = der::sequence(&[
        &der::tagged(0, &der::integer(2)), // version 3
        &der::integer(0),                  // serial number: AMD's is 0 too
        &algorithm,
        &name(ISSUER),
        &der::sequence(&[&der::utc_time(VALIDITY[0]), &der::utc_time(VALIDITY[1])]),
        &name(SUBJECT),
        &der::sequence(&[&curve, &der::bits(public_key)]),
        &der::tagged(3, &extensions(chip_id, tcb)),
    ]);
    let issuer =
        RsaKeyPair::from_pkcs8(ASK_KEY).map_err(|_| ChipError::Crypto("read the development key"))?;
    let mut signature = vec![0; issuer.public().modulus_len()];
    issuer
        .sign(&RSA_PSS_SHA384, random, &signed, &mut signature)
        .map_err(|_| ChipError::Crypto("issue its certificate"))?;
    Ok(der::sequence(&[&signed, &algorithm, &der::bits(&signature)]))
}

/// RSASSA-PSS with SHA-384, MGF1 with SHA-384, a salt of 48 bytes (RFC 4055).
fn pss_sha384() -> Vec<u8> {
    let sha384 = der::sequence(&[&der::oid(&SHA384), &der::null()]);
    let mgf1 = der::sequence(&[&der::oid(&[1, 2, 840, 113549, 1, 1, 8]), &sha384]);
    let parameters = der::sequence(&[
        &der::tagged(0, &sha384),
        &der::tagged(1, &mgf1),
        &der::tagged(2, &der::integer(48)),
    ]);
    der::sequence(&[&der::oid(&[1, 2, 840, 113549, 1, 1, 10]), &parameters])
}

fn name(common_name: &str) -> Vec<u8> {
    der::sequence(&[&der::set(&[&der::sequence(&[&der::oid(&[2, 5, 4, 3]), &der::utf8(common_name)])])])
}

fn extensions(chip_id: &[u8; 64], tcb: TcbVersion) -> Vec<u8> {
    let extension = |arcs: &[u32], value: &[u8]| {
        der::sequence(&[&der::oid(&[AMD.as_slice(), arcs].concat()), &der::octets(value)])
    };
    let spl = |number: u32, value: u8| extension(&[3, number], &der::integer(value));
    der::sequence(&[
        &extension(&[1], &der::integer(1)), // version of this structure
        &extension(&[2], &der::ia5(PRODUCT)),
        &spl(1, tcb.bootloader),
        &spl(2, tcb.tee),
        &spl(3, tcb.snp),
        &spl(4, 0),
        &spl(5, 0),
        &spl(6, 0),
        &spl(7, 0),
        &spl(8, tcb.microcode),
        &extension(&[4], chip_id), // not wrapped: AMD writes the bare bytes
    ])
}

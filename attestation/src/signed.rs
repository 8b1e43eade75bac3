//! What certificates and revocation lists have in common: a part in DER, signed with RSA-PSS and SHA-384.

use ring::signature::{RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};

/// RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes, as an AlgorithmIdentifier in DER: as AMD writes
/// it into endorsement certificates, and (with the default trailer field spelt out) into ARK and ASK.
const PSS_SHA384: [&[u8]; 2] = [
    b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\
      \x02\x02\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\
      \x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30",
    b"\x30\x46\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x39\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\
      \x02\x02\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\
      \x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30\xa3\x03\x02\x01\x01",
];

/// The signed part and its signature.
#[derive(Debug)]
pub(crate) struct Signed {
    contents: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    /// `None` unless `der` is exactly what these parts make in DER with RSA-PSS and SHA-384. What the signature does
    /// not cover is so fixed byte for byte; the X.509 parser alone would let some of it vary.
    pub(crate) fn new(der: &[u8], contents: &[u8], signature: &[u8]) -> Option<Self> {
        let bits = [&header(3, signature.len() + 1)?, &[0][..], signature].concat();
        let canonical = PSS_SHA384.into_iter().any(|algorithm| {
            let length = contents.len() + algorithm.len() + bits.len();
            header(0x30, length).is_some_and(|header| der == [&header, contents, algorithm, &bits].concat())
        });
        canonical.then(|| Self { contents: contents.to_vec(), signature: signature.to_vec() })
    }

    /// Whether this RSA key (RSAPublicKey of PKCS#1 in DER, 2048 to 8192 bits) signed it.
    pub(crate) fn is_by(&self, key: &[u8]) -> bool {
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, key).verify(&self.contents, &self.signature).is_ok()
    }
}

/// Tag and length of an element with less than 64 KiB.
fn header(tag: u8, length: usize) -> Option<Vec<u8>> {
    let [high, low] = u16::try_from(length).ok()?.to_be_bytes();
    Some(match (high, low) {
        (0, 0..0x80) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    })
}

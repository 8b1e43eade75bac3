//! The certificate table of an extended guest request: `auxblob` of configfs-tsm.
//!
//! Source: GHCB specification (AMD document 56421), section 4.1.8.1. Entries of 24 bytes (GUID, offset and length as
//! u32, little endian, from the start of the table), closed by an entry of zeros, then the certificates. Hosts put
//! certificates there in DER or PEM; both are read, DER is written.

use crate::{Certificates, pem};

/// Bytes of one entry.
const ENTRY: usize = 24;
/// Entries that are looked at; the specification names six.
const MAX_ENTRIES: usize = 32;

// In the order in which the text form is written.
const ARK: [u8; 16] = guid(0xc0b406a4_a803_4952_9743_3fb6014cd0ae);
const ASK: [u8; 16] = guid(0x4ab7b379_bbac_4fe4_a02f_05aef327c782);
const VCEK: [u8; 16] = guid(0x63da758d_e664_4564_adc5_f4b93be8accd);
const VLEK: [u8; 16] = guid(0xa8074bc2_a25a_483e_aae6_39c045a0b8a1);

const fn guid(value: u128) -> [u8; 16] {
    value.to_be_bytes()
}

/// Why a table cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// No closing entry within the table or the first entries.
    #[error("the certificate table is not closed by an entry of zeros")]
    NotClosed,
    /// An entry points outside.
    #[error("entry {0} of the certificate table points outside the table")]
    Outside(usize),
    /// The same certificate twice.
    #[error("the certificate table holds {0} twice")]
    Twice(&'static str),
    /// A certificate that is needed is not there.
    #[error("the certificate table holds no {0}; give the node its certificate chain")]
    Missing(&'static str),
    /// Neither DER nor PEM.
    #[error("{0} in the certificate table is neither DER nor PEM")]
    Encoding(&'static str),
}

/// Reads ARK, ASK and either VCEK or VLEK.
pub fn decode(table: &[u8]) -> Result<Certificates, TableError> {
    let (mut ark, mut ask, mut vek) = (None, None, None);
    let mut closed = false;
    for (index, entry) in table.chunks_exact(ENTRY).take(MAX_ENTRIES).enumerate() {
        if entry.iter().all(|byte| *byte == 0) {
            closed = true;
            break;
        }
        let word = |at: usize| {
            let word = entry.get(at..at + 4)?.first_chunk::<4>()?;
            usize::try_from(u32::from_le_bytes(*word)).ok()
        };
        let bytes = (|| {
            let start = word(16)?;
            table.get(start..start.checked_add(word(20)?)?)
        })();
        let bytes = bytes.ok_or(TableError::Outside(index))?;
        let (name, place) = match entry.first_chunk::<16>() {
            Some(&ARK) => ("ARK", &mut ark),
            Some(&ASK) => ("ASK", &mut ask),
            Some(&VCEK | &VLEK) => ("the endorsement certificate", &mut vek),
            _ => continue,
        };
        if place.replace(to_der(bytes).ok_or(TableError::Encoding(name))?).is_some() {
            return Err(TableError::Twice(name));
        }
    }
    if !closed {
        return Err(TableError::NotClosed);
    }
    Ok(Certificates {
        ark: ark.ok_or(TableError::Missing("ARK"))?,
        ask: ask.ok_or(TableError::Missing("ASK"))?,
        vek: vek.ok_or(TableError::Missing("endorsement certificate"))?,
    })
}

/// Writes a table with ARK, ASK and a VCEK, in DER.
#[must_use]
pub fn encode(certificates: &Certificates) -> Vec<u8> {
    let parts = [(ARK, &certificates.ark), (ASK, &certificates.ask), (VCEK, &certificates.vek)];
    let mut table = Vec::new();
    let mut offset = (parts.len() + 1) * ENTRY;
    for (guid, der) in parts {
        table.extend_from_slice(&guid);
        // Three certificates stay far below 4 GiB.
        table.extend_from_slice(&(offset as u32).to_le_bytes());
        table.extend_from_slice(&(der.len() as u32).to_le_bytes());
        offset += der.len();
    }
    table.extend_from_slice(&[0; ENTRY]);
    for (_, der) in parts {
        table.extend_from_slice(der);
    }
    table
}

/// DER is a SEQUENCE (0x30).
fn to_der(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(pem::to_der(bytes, "CERTIFICATE")).filter(|der| der.first() == Some(&0x30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn certificates() -> Certificates {
        Certificates { ark: vec![0x30, 1], ask: vec![0x30, 2, 2], vek: vec![0x30, 3] }
    }

    #[test]
    fn survives_encoding() {
        assert_eq!(decode(&encode(&certificates())), Ok(certificates()));
    }

    #[test]
    fn broken_tables_have_names() {
        let good = encode(&certificates());
        let with = |at: usize, bytes: &[u8]| {
            let mut table = good.clone();
            table[at..at + bytes.len()].copy_from_slice(bytes);
            decode(&table).unwrap_err()
        };
        assert_eq!(decode(&[]), Err(TableError::NotClosed));
        assert_eq!(decode(&good[..3 * ENTRY]).unwrap_err(), TableError::Outside(0));
        assert_eq!(with(3 * ENTRY, &[1]), TableError::NotClosed);
        assert_eq!(with(16, &u32::MAX.to_le_bytes()), TableError::Outside(0));
        assert_eq!(with(ENTRY + 20, &u32::MAX.to_le_bytes()), TableError::Outside(1));
        assert_eq!(with(ENTRY, &ARK), TableError::Twice("ARK"));
        assert_eq!(with(2 * ENTRY, &[0xff]), TableError::Missing("endorsement certificate"));
        assert_eq!(with(4 * ENTRY, &[0x31]), TableError::Encoding("ARK"));
    }

    proptest! {
        #[test]
        fn reading_never_panics(table in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&table);
        }
    }
}

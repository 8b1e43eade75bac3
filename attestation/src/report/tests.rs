use super::*;
use proptest::prelude::*;

fn minimal(version: u32, family: u8, model: u8) -> Vec<u8> {
    let mut bytes = vec![0; LENGTH];
    bytes[offset::VERSION] = version as u8;
    bytes[offset::SIGNATURE_ALGO] = 1;
    if version >= 3 {
        bytes[offset::CPUID_FAMILY] = family;
        bytes[offset::CPUID_MODEL] = model;
    }
    bytes
}

/// Every byte of the report either carries something or must be zero. The carrying ranges are spelt out here a
/// second time, from the specification's table, so that a slip in one of the two lists shows.
#[test]
fn exactly_the_reserved_bytes_are_refused() {
    for (version, family, model) in [(2, 0, 0), (3, 0x19, 1), (4, 0x19, 0x11), (5, 0x19, 0xa0), (5, 0x1a, 2)]
    {
        let turin = family == 0x1a;
        let tcb = |at: usize| {
            let reserved = if turin { at + 4..at + 7 } else { at + 2..at + 6 };
            (at..at + 8).filter(move |byte| !reserved.contains(byte))
        };
        let carrying: std::collections::BTreeSet<usize> = (0x004..0x034)
            .chain(tcb(0x038))
            .chain(0x040..0x048)
            .chain(0x050..0x180)
            .chain(tcb(0x180))
            .chain(if version >= 3 { 0x18a..0x18b } else { 0..0 })
            .chain(0x1a0..0x1e0)
            .chain(tcb(0x1e0))
            .chain(0x1e8..0x1eb)
            .chain(0x1ec..0x1ef)
            .chain(tcb(0x1f0))
            .chain(if version >= 4 { 0x1f8..0x208 } else { 0..0 })
            .chain(0x2a0..0x2d0)
            .chain(0x2e8..0x318)
            .collect();
        // Read by the parser itself; judged below.
        let special = |byte: &usize| {
            (0..4).contains(byte)
                || (0x034..0x038).contains(byte)
                || (0x048..0x04c).contains(byte)
                || (version >= 3 && (0x188..0x18a).contains(byte))
        };
        assert!(Report::parse(&minimal(version, family, model)).is_ok());
        for byte in (0..LENGTH).filter(|byte| !special(byte)) {
            for bit in 0..8 {
                let mut bytes = minimal(version, family, model);
                bytes[byte] ^= 1 << bit;
                let value = 1 << bit;
                let expected = if carrying.contains(&byte) {
                    Ok(())
                } else {
                    Err(ParseError::NotCanonical { offset: byte, value })
                };
                assert_eq!(Report::parse(&bytes).map(|_| ()), expected, "version {version}, byte {byte:#x}");
            }
        }
        for bit in 0..32 {
            let mut bytes = minimal(version, family, model);
            bytes[offset::KEY_INFO + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Report::parse(&bytes).is_ok(), bit < 5, "KEY_INFO bit {bit}");
        }
    }
}

#[test]
fn each_error_has_its_name() {
    let parse = |bytes: &[u8]| Report::parse(bytes).unwrap_err();
    assert_eq!(parse(&[0; LENGTH - 1]), ParseError::Length(1183));
    assert_eq!(parse(&[0; LENGTH + 1]), ParseError::Length(1185));
    for version in [0, 1, 6, 0x0100_0003_u32] {
        let mut bytes = minimal(3, 0x19, 1);
        bytes[..4].copy_from_slice(&version.to_le_bytes());
        assert_eq!(parse(&bytes), ParseError::Version(version));
    }
    for (family, model) in [(0x19, 0x20), (0x19, 0x9f), (0x19, 0xb0), (0x1a, 0x12), (0x17, 1), (0, 0)] {
        assert_eq!(parse(&minimal(3, family, model)), ParseError::Product { family, model });
    }
    let mut bytes = minimal(5, 0x1a, 2);
    bytes[offset::SIGNATURE_ALGO] = 0;
    assert_eq!(parse(&bytes), ParseError::SignatureAlgorithm(0));
    assert!(ParseError::Version(6).to_string().contains("version 6"));
}

#[test]
fn scalars_are_turned_to_big_endian() {
    let mut bytes = minimal(5, 0x19, 0x11);
    bytes[offset::SIGNATURE_R] = 1;
    bytes[offset::SIGNATURE_S + 47] = 2;
    let signature = Report::parse(&bytes).unwrap().signature();
    assert_eq!((signature[47], signature[48]), (1, 2));
    assert_eq!(signature.iter().filter(|byte| **byte != 0).count(), 2);
}

proptest! {
    #[test]
    fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..LENGTH + 8)) {
        let _ = Report::parse(&bytes);
    }

    #[test]
    fn every_getter_stays_inside(filling: u8, version in 2u32..=5) {
        let mut bytes = minimal(version, 0x19, 1);
        bytes[offset::REPORT_DATA..offset::REPORTED_TCB].fill(filling);
        bytes[offset::CHIP_ID..offset::COMMITTED_TCB].fill(filling);
        let report = Report::parse(&bytes).unwrap();
        prop_assert_eq!(report.report_data(), [filling; 64]);
        prop_assert_eq!(report.measurement().0, [filling; 48]);
        prop_assert_eq!(report.host_data(), [filling; 32]);
        prop_assert_eq!(report.id_key_digest(), [filling; 48]);
        prop_assert_eq!(report.author_key_digest(), [filling; 48]);
        prop_assert_eq!(report.report_id(), [filling; 32]);
        prop_assert_eq!(report.report_id_ma(), [filling; 32]);
        prop_assert_eq!(report.chip_id(), [filling; 64]);
        let rest = (report.guest_svn(), report.family_id(), report.image_id(), report.vmpl());
        prop_assert_eq!(rest, (0, [0; 16], [0; 16], 0));
        let vectors = (version >= 5).then_some(0);
        prop_assert_eq!((report.launch_mit_vector(), report.current_mit_vector()), (vectors, vectors));
    }
}

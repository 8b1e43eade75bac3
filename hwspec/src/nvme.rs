//! NVMe log pages (NVM Express Base Specification 2.0, section 5.16.1). The drive wrote them: they may say anything.

use crate::probe::Smart;

/// Bytes of the SMART / Health Information page, and of the endurance group page.
pub const LOG_PAGE: usize = 512;
/// Identifier of the SMART / Health Information page.
pub const SMART: u8 = 0x02;
/// Identifier of the Endurance Group Information page.
pub const ENDURANCE_GROUP: u8 = 0x09;

/// Little-endian number of up to 16 bytes; what does not fit into 64 bits becomes the largest number.
fn number(page: &[u8; LOG_PAGE], offset: usize, size: usize) -> u64 {
    let bytes = page.get(offset..offset + size).unwrap_or_default();
    let wide = bytes.iter().rev().fold(0u128, |number, byte| (number << 8) | u128::from(*byte));
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// Reads a SMART / Health Information page.
pub fn smart(page: &[u8; LOG_PAGE]) -> Smart {
    Smart {
        critical_warning: page[0],
        celsius: number(page, 1, 2).saturating_sub(273),
        spare: page[3],
        spare_threshold: page[4],
        used: page[5],
        // In thousands of sectors of 512 bytes, whatever the drive's own are.
        bytes_written: number(page, 48, 16).saturating_mul(512_000),
        hours: number(page, 128, 16),
        media_errors: number(page, 160, 16),
    }
}

/// Bytes that may be written in the life of an endurance group: "Endurance Estimate", in billions of bytes; `None`
/// if the drive does not say.
pub fn endurance_bytes(page: &[u8; LOG_PAGE]) -> Option<u64> {
    match number(page, 32, 16) {
        0 => None,
        billions => Some(billions.saturating_mul(1_000_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pages() {
        let mut page = [0; LOG_PAGE];
        page[..6].copy_from_slice(&[4, 0x35, 0x01, 99, 10, 7]);
        page[48..52].copy_from_slice(&2_000_000u32.to_le_bytes());
        page[128] = 200;
        page[160] = 3;
        let found = smart(&page);
        let expected = Smart {
            critical_warning: 4,
            celsius: 36,
            spare: 99,
            spare_threshold: 10,
            used: 7,
            bytes_written: 1_024_000_000_000,
            media_errors: 3,
            hours: 200,
        };
        assert_eq!(found, expected);
        assert_eq!(endurance_bytes(&[0; LOG_PAGE]), None);
        let full = smart(&[0xff; LOG_PAGE]);
        assert_eq!((full.media_errors, full.bytes_written, full.celsius), (u64::MAX, u64::MAX, 65_535 - 273));
        page[32..40].copy_from_slice(&35_040_000u64.to_le_bytes());
        assert_eq!(endurance_bytes(&page), Some(35_040_000_000_000_000));
    }
}

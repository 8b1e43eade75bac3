//! Checksums of a plain heap.
//!
//! A block's are four CRC-32C, each of every fourth word: as many independent chains as keep the processor's
//! instruction busy, so that they cost nothing beside the copy to the medium.

use super::batch::{PAGE, Page};

/// Chains of a block's checksum.
pub(crate) const CHAINS: usize = 4;
const WORD: usize = 8;

/// Four CRC-32C (RFC 3720, section 12.1), little-endian one after the other: the first of the words of 8 bytes
/// whose number is 0 modulo 4, the second of those with 1, and so on.
pub type PageSum = [u8; 4 * CHAINS];

/// Checksum of a block.
pub fn page_sum(page: &Page) -> PageSum {
    crate::media::stream::sum(page).unwrap_or_else(|| page_sum_portable(page))
}

/// The same, without instructions made for it.
pub(crate) fn page_sum_portable(page: &Page) -> PageSum {
    let words = page.as_chunks::<WORD>().0;
    encode(std::array::from_fn(|chain| {
        let mut bytes = [[0; WORD]; PAGE / WORD / CHAINS];
        bytes.iter_mut().zip(words.iter().skip(chain).step_by(CHAINS)).for_each(|(to, word)| *to = *word);
        crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes.as_flattened()) as u32
    }))
}

pub(crate) fn encode(chains: [u32; CHAINS]) -> PageSum {
    let mut sum = [0; 4 * CHAINS];
    sum.as_chunks_mut::<4>().0.iter_mut().zip(chains).for_each(|(to, crc)| *to = crc.to_le_bytes());
    sum
}

/// CRC-64/NVME, of everything else.
pub(crate) fn crc(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_sum_agree_and_see_every_bit() {
        let mut page: Page = std::array::from_fn(|at| (at * 7 + at / 256) as u8);
        let sum = page_sum(&page);
        assert_eq!(sum, page_sum_portable(&page));
        // CRC-32C of 32 zeros, from RFC 3720, B.4.
        let zeros = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &[0; 32]);
        assert_eq!(zeros, 0x8a91_36aa);
        for bit in (0..PAGE * 8).step_by(97) {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(page_sum(&page), sum, "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

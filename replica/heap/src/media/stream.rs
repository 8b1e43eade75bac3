//! Copies past the cache, to memory that others can change at any time.
//!
//! A page is streamed while the next one is fetched: without that each line of a page that is not in the cache
//! is waited for, and with it a copy takes two thirds of what `memcpy` takes. Miri, which knows no such stores, checks
//! the way of other processors.
#![allow(unsafe_code, reason = "stores past the cache and instructions chosen at run time have no safe form")]

use std::ptr::NonNull;

use super::LINE;
use crate::batch::Page;
use crate::checksum::{self, PageSum};

/// Checksum of a page, if the processor has the instruction for it.
pub(crate) fn sum(page: &Page) -> Option<PageSum> {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has SSE4.2.
        return Some(unsafe { x86::sum(page) });
    }
    let _ = page;
    None
}

/// Has a page fetched into the cache, which takes place beside whatever is computed meanwhile.
pub(crate) fn fetch(page: &Page) {
    page.as_chunks::<LINE>().0.iter().for_each(|line| fetch_line(line.as_ptr()));
}

/// Streams whole cache lines.
///
/// # Safety
/// `to` points at as many writable bytes as there are, aligned to 64.
pub(super) unsafe fn lines(to: NonNull<u8>, bytes: &[u8]) {
    let lines = bytes.as_chunks::<LINE>().0;
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the caller vouches for `to`; the processor has what is called.
    unsafe {
        if std::arch::is_x86_feature_detected!("avx512f") {
            x86::lines_wide(to, lines);
        } else {
            x86::lines(to, lines);
        }
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    for (index, word) in lines.as_flattened().as_chunks::<8>().0.iter().enumerate() {
        // SAFETY: within the bytes that the caller vouches for, and aligned to 8.
        unsafe { to.add(index * 8).cast::<u64>().write_volatile(u64::from_ne_bytes(*word)) };
    }
}

/// Streams a page, fetches `next` meanwhile, and gives the page's checksum.
///
/// # Safety
/// `to` points at 4096 writable bytes, aligned to 64.
pub(super) unsafe fn page_summed(to: NonNull<u8>, from: &Page, next: &Page) -> PageSum {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        let wide = std::arch::is_x86_feature_detected!("avx512f");
        // SAFETY: the processor has what is called, and the caller vouches for `to`.
        return unsafe {
            if wide { x86::page_summed_wide(to, from, next) } else { x86::page_summed(to, from, next) }
        };
    }
    fetch(next);
    // SAFETY: the caller vouches for `to`.
    unsafe { lines(to, from) };
    checksum::page_sum_portable(from)
}

#[inline(always)]
pub(crate) fn fetch_line(line: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: fetching into the cache reads nothing that the program sees and faults nowhere; SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_NTA }>(line.cast());
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    let _ = line;
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use super::{LINE, NonNull, Page, PageSum, checksum, fetch_line};
    use std::arch::x86_64::{
        _mm_crc32_u64, _mm_loadu_si128, _mm_stream_si128, _mm512_loadu_si512, _mm512_stream_si512,
    };

    type Line = [u8; LINE];

    /// # Safety
    /// `to` points at 64 writable bytes, aligned to 64.
    #[inline(always)]
    unsafe fn line(to: NonNull<u8>, line: &Line) {
        // All loads first: a store that waits for its load would hold the line's buffer.
        let from = line.as_chunks::<16>().0;
        let parts: [_; LINE / 16] = std::array::from_fn(|index| {
            // SAFETY: SSE2 is part of x86-64; the source is 16 bytes long.
            unsafe { _mm_loadu_si128(from[index].as_ptr().cast()) }
        });
        for (index, part) in parts.into_iter().enumerate() {
            // SAFETY: within the 64 bytes that the caller vouches for, and aligned to 16.
            unsafe { _mm_stream_si128(to.add(index * 16).cast().as_ptr(), part) };
        }
    }

    /// # Safety
    /// `to` points at 64 writable bytes, aligned to 64.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn line_wide(to: NonNull<u8>, line: &Line) {
        // SAFETY: the source is 64 bytes long, and the caller vouches for `to`.
        unsafe { _mm512_stream_si512(to.cast().as_ptr(), _mm512_loadu_si512(line.as_ptr().cast())) };
    }

    /// # Safety
    /// `to` points at as many writable lines, aligned to 64.
    pub(super) unsafe fn lines(to: NonNull<u8>, from: &[Line]) {
        for (index, from) in from.iter().enumerate() {
            // SAFETY: the caller vouches for it.
            unsafe { line(to.add(index * LINE), from) };
        }
    }

    /// # Safety
    /// `to` points at as many writable lines, aligned to 64.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn lines_wide(to: NonNull<u8>, from: &[Line]) {
        for (index, from) in from.iter().enumerate() {
            // SAFETY: the caller vouches for it.
            unsafe { line_wide(to.add(index * LINE), from) };
        }
    }

    #[target_feature(enable = "sse4.2")]
    #[inline]
    fn add(chains: &mut [u64; checksum::CHAINS], line: &Line) {
        for words in line.as_chunks::<{ 8 * checksum::CHAINS }>().0 {
            for (chain, word) in chains.iter_mut().zip(words.as_chunks::<8>().0) {
                *chain = _mm_crc32_u64(*chain, u64::from_le_bytes(*word));
            }
        }
    }

    const START: [u64; checksum::CHAINS] = [u32::MAX as u64; checksum::CHAINS];

    fn end(chains: [u64; checksum::CHAINS]) -> PageSum {
        checksum::encode(chains.map(|chain| !(chain as u32)))
    }

    #[target_feature(enable = "sse4.2")]
    pub(super) fn sum(page: &Page) -> PageSum {
        let mut chains = START;
        page.as_chunks::<LINE>().0.iter().for_each(|line| add(&mut chains, line));
        end(chains)
    }

    /// # Safety
    /// `to` points at 4096 writable bytes, aligned to 64.
    #[target_feature(enable = "sse4.2")]
    pub(super) unsafe fn page_summed(to: NonNull<u8>, from: &Page, next: &Page) -> PageSum {
        let mut chains = START;
        let lines = from.as_chunks::<LINE>().0.iter().zip(next.as_chunks::<LINE>().0);
        for (index, (from, ahead)) in lines.enumerate() {
            fetch_line(ahead.as_ptr());
            add(&mut chains, from);
            // SAFETY: a line within the page that the caller vouches for.
            unsafe { line(to.add(index * LINE), from) };
        }
        end(chains)
    }

    /// # Safety
    /// `to` points at 4096 writable bytes, aligned to 64.
    #[target_feature(enable = "sse4.2,avx512f")]
    pub(super) unsafe fn page_summed_wide(to: NonNull<u8>, from: &Page, next: &Page) -> PageSum {
        let mut chains = START;
        let lines = from.as_chunks::<LINE>().0.iter().zip(next.as_chunks::<LINE>().0);
        for (index, (from, ahead)) in lines.enumerate() {
            fetch_line(ahead.as_ptr());
            add(&mut chains, from);
            // SAFETY: a line within the page that the caller vouches for.
            unsafe { line_wide(to.add(index * LINE), from) };
        }
        end(chains)
    }
}

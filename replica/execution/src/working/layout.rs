//! The memory that a rewritten program notes its changes in, beside its own.
//!
//! | from | what |
//! |---|---|
//! | 0 | how many notes may still be written, 4 bytes; they are written from the last one granted to the first |
//! | [`NOTES`] | notes of [`NOTE`] bytes: the page's number, 4 bytes; at [`BEHIND`] the card of the next page; at [`HEAD`] how that one begins |
//! | [`READY`] | one byte for each page: 1 if the program may note its change by itself |
//! | [`CARDS`] | one byte for each page: 1 if its change is noted |
//!
//! The cards come last, so that whoever looks for that of a page behind all memory meets the end.

use super::RESERVATION;
use crate::prepare::cover::REACH;
use crate::state::WASM_PAGE;
use crate::store::PAGE;

const PAGES: u32 = (RESERVATION / PAGE) as u32;
pub(crate) const NOTES: u32 = 64;
pub(crate) const BEHIND: u32 = 4;
pub(crate) const HEAD: u32 = 16;
pub(crate) const NOTE: u32 = HEAD + REACH as u32;
pub(crate) const READY: u32 = WASM_PAGE as u32;
pub(crate) const CARDS: u32 = READY + PAGES;
/// Length of the memory.
pub(crate) const BYTES: usize = (CARDS + PAGES) as usize;
/// Notes that may be granted: all lie in the first page.
pub(crate) const GRANT: u32 = (PAGE as u32 - NOTES) / NOTE;

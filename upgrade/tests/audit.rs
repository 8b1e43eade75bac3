//! The audit log holds what was written, and every change of it shows.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use upgrade::audit::{AuditError, Head, MAX_TEXT, verify};

/// A log of these entries, and the head after each.
fn log(entries: &[(u64, String)]) -> (Vec<u8>, Vec<Head>) {
    let mut heads = vec![Head::default()];
    let mut bytes = Vec::new();
    for (time, text) in entries {
        let (line, head) = heads.last().unwrap().append(*time, text).unwrap();
        bytes.extend(line.into_bytes());
        heads.push(head);
    }
    (bytes, heads)
}

fn entries() -> impl Strategy<Value = Vec<(u64, String)>> {
    prop::collection::vec((0..1000u64, "[ -~]{1,20}"), 1..12)
}

#[test]
fn the_documented_form() {
    let (bytes, heads) = log(&[(7, "staged 1.2.3".into()), (5, "committed".into())]);
    let mut hashed = vec![0; 32];
    hashed.extend(0_u64.to_le_bytes());
    hashed.extend(7_u64.to_le_bytes());
    hashed.extend(b"staged 1.2.3");
    let digest: [u8; 32] = Sha256::digest(&hashed).into();
    assert_eq!(heads[1].digest.as_bytes(), &digest);
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with(&format!("{} 0 7 staged 1.2.3\n", heads[1].digest)), "{text}");
    // The clock was set back; the log was not.
    assert!(text.ends_with(" 1 7 committed\n"), "{text}");
}

#[test]
fn texts_that_could_pass_for_lines() {
    for text in ["", "two\nlines", "\u{1b}[2J", "é", &"x".repeat(MAX_TEXT + 1)] {
        assert_eq!(Head::default().append(0, text).unwrap_err().code(), "audit-text");
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read(entries in entries(), torn in 0..60usize) {
        let (mut bytes, heads) = log(&entries);
        let whole = bytes.len();
        prop_assert_eq!(verify(&bytes, None), Ok((*heads.last().unwrap(), whole)));
        for known in &heads {
            prop_assert!(verify(&bytes, Some(known)).is_ok());
        }
        // A power cut in the next write.
        let (line, _) = heads.last().unwrap().append(2000, &"x".repeat(60)).unwrap();
        bytes.extend(&line.as_bytes()[..torn]);
        prop_assert_eq!(verify(&bytes, None), Ok((*heads.last().unwrap(), whole)));
    }

    #[test]
    fn every_change_shows(entries in entries(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let (mut bytes, heads) = log(&entries);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let result = verify(&bytes, heads.last());
        prop_assert!(result.is_err(), "{result:?}");
    }

    #[test]
    fn lines_taken_out_or_moved_show(entries in entries(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let (bytes, heads) = log(&entries);
        let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        let (a, b) = (a.index(lines.len()), b.index(lines.len()));
        let mut fewer = lines.clone();
        fewer.remove(a);
        let result = verify(&fewer.concat(), heads.last());
        if a + 1 == lines.len() {
            let expected = AuditError::NotReached { known: lines.len() as u64, found: lines.len() as u64 - 1 };
            prop_assert_eq!(result, Err(expected), "cut off the end: only a known head shows it");
        } else {
            prop_assert_eq!(result, Err(AuditError::Broken { line: a as u64 + 1 }));
        }
        let mut swapped = lines.clone();
        swapped.swap(a, b);
        prop_assert_eq!(verify(&swapped.concat(), None).is_ok(), a == b);
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = verify(&bytes, None);
    }
}

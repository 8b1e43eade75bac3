//! A power cut at any byte of a write leaves the state before it or the one after it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use proptest::prelude::*;
use release::Digest;
use sha2::{Digest as _, Sha256};
use upgrade::{
    machine::{Content, Part, Phase, Slot},
    record::{LENGTH, Unreadable, encode, next, read},
};

fn release() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

prop_compose! {
    fn part()(
        phase in prop::sample::select(&Phase::ALL[..]), b in any::<bool>(), tries in any::<u8>(),
        contents in prop::array::uniform2(prop::option::of(release())), keys in any::<[bool; 2]>(),
        incoming in prop::option::of(release()), recovery in prop::option::of(release()),
    ) -> Part<Digest> {
        let content = contents.map(|release| release.map_or(Content::Partial, Content::Release));
        Part { phase, active: if b { Slot::B } else { Slot::A }, tries, content, keys, incoming, recovery }
    }
}

proptest! {
    /// As it was before there were recovery releases.
    #[test]
    fn earlier_records_are_read(part in part(), number in any::<u64>()) {
        let mut copy = encode(number, &part);
        copy.truncate(LENGTH - 32 - 33);
        let checksum = Sha256::digest(&copy);
        copy.extend(checksum);
        copy.resize(4096, 0);
        prop_assert_eq!(read([&copy, &[]]), Ok((number, Part { recovery: None, ..part })));
    }

    #[test]
    fn torn_writes(parts in prop::collection::vec(part(), 2..6), cut in 0..=LENGTH, noise in any::<u8>()) {
        let mut copies = [vec![0; LENGTH], vec![0; LENGTH]];
        let mut sequence = 0;
        let (last, before) = parts.split_last().unwrap();
        for part in before {
            let (copy, number) = next(sequence);
            copies[copy] = encode(number, part);
            sequence = number;
        }
        let held = before.last().unwrap();
        prop_assert_eq!(read([&copies[0], &copies[1]]), Ok((sequence, *held)));
        // The write of the last one stops after `cut` bytes, and the byte after them is anything.
        let (copy, number) = next(sequence);
        let new = encode(number, last);
        copies[copy][..cut].copy_from_slice(&new[..cut]);
        if cut < LENGTH {
            copies[copy][cut] = noise;
        }
        let (_, found) = read([&copies[0], &copies[1]]).unwrap();
        let whole = copies[copy] == new;
        prop_assert_eq!(found, if whole { *last } else { *held });
    }

    #[test]
    fn noise_is_no_record(one in prop::collection::vec(any::<u8>(), 0..300), two in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(read([&one, &two]), Err(Unreadable));
    }
}

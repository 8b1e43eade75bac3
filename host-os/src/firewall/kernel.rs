//! Rules as messages to the kernel (linux/netfilter/nf_tables.h). Numbers in attributes are big-endian; what is compared with a
//! packet is as it stands in the packet.

use super::{Chain, FORGET_S, Hook, Match, Rule, SOURCES, Set, Source, Table};
use crate::netlink::{ACK, APPEND, Attributes, CREATE, Message, Socket};
use std::io;

const NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;

/// NFPROTO_INET: both families.
const INET: u8 = 1;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
/// The registers that hold a value and the verdict.
const VALUE: u32 = 1;
const VERDICT: u32 = 0;

/// Replaces the table of that name in one transaction: there is no moment without rules.
pub fn replace(table: &Table) -> io::Result<()> {
    Socket::netfilter()?.batch(&messages(table))
}

/// The transaction.
pub(crate) fn messages(table: &Table) -> Vec<Message> {
    let mark = |kind| Message::new(kind, 0, &[0, 0, 0, NFTABLES as u8]);
    let name = table.name;
    let mut batch = vec![
        mark(BATCH_BEGIN),
        // Only what exists can be deleted.
        message(NEW_TABLE, CREATE).with_text(1, name),
        message(DELETE_TABLE, 0).with_text(1, name),
        message(NEW_TABLE, CREATE).with_text(1, name),
    ];
    for (number, Set { name: set, source }) in (1_u32..).zip(&table.sets) {
        // Types as nft numbers them, so that it can print the set.
        let (kind, length) = match source {
            Source::Four => (7_u32, 4_u32),
            Source::Six => (8, 16),
        };
        batch.push(
            message(NEW_SET, CREATE)
                .with_text(1, name)
                .with_text(2, set)
                .with(3, &(SET_TIMEOUT | SET_EVAL).to_be_bytes())
                .with(4, &kind.to_be_bytes())
                .with(5, &length.to_be_bytes())
                .with_nested(9, |description| description.with(1, &SOURCES.to_be_bytes()))
                .with(10, &number.to_be_bytes())
                .with(11, &(FORGET_S * 1000).to_be_bytes()),
        );
    }
    for Chain { hook, .. } in &table.chains {
        let number: u32 = match hook {
            Hook::Input => 1,
            Hook::Forward => 2,
        };
        batch.push(
            message(NEW_CHAIN, CREATE)
                .with_text(1, name)
                .with_text(3, hook.name())
                .with_nested(4, |at| at.with(1, &number.to_be_bytes()).with(2, &0_u32.to_be_bytes()))
                // NF_DROP.
                .with(5, &0_u32.to_be_bytes())
                .with_text(7, "filter"),
        );
    }
    // Rules of the same chain that are not established yet are found by their order in the batch.
    for Chain { hook, rules } in &table.chains {
        for rule in rules {
            batch.push(
                message(NEW_RULE, CREATE | APPEND)
                    .with_text(1, name)
                    .with_text(2, hook.name())
                    .with_nested(4, |list| expressions(list, rule, &table.sets))
                    .with(7, &comment(&rule.why)),
            );
        }
    }
    batch.push(mark(BATCH_END));
    batch
}

/// With `struct nfgenmsg`.
fn message(kind: u16, flags: u16) -> Message {
    Message::new(NFTABLES << 8 | kind, flags | ACK, &[INET, 0, 0, 0])
}

/// A comment as nft keeps it: type 0, length, text.
fn comment(text: &str) -> Vec<u8> {
    let text: Vec<u8> =
        text.bytes().filter(|byte| byte.is_ascii_graphic() || *byte == b' ').take(120).collect();
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend(text);
    bytes.push(0);
    bytes
}

fn expressions(mut list: Attributes, rule: &Rule, sets: &[Set]) -> Attributes {
    for part in &rule.matches {
        list = expression(list, part, sets);
    }
    list = one(list, "counter", |data| data);
    let verdict = u32::from(rule.accept);
    one(list, "immediate", |data| {
        data.with(1, &VERDICT.to_be_bytes())
            .with_nested(2, |value| value.with_nested(2, |code| code.with(1, &verdict.to_be_bytes())))
    })
}

/// One expression: NFTA_LIST_ELEM with its name and its data.
fn one(list: Attributes, name: &str, data: impl FnOnce(Attributes) -> Attributes) -> Attributes {
    list.with_nested(1, |element| element.with_text(1, name).with_nested(2, data))
}

fn expression(list: Attributes, part: &Match, sets: &[Set]) -> Attributes {
    match part {
        Match::Interface(name) => {
            let mut padded = [0; 16];
            for (to, from) in padded.iter_mut().take(15).zip(name.bytes()) {
                *to = from;
            }
            compare(meta(list, 6), &padded)
        }
        Match::Established => connection(list, 2 | 4),
        Match::Invalid => connection(list, 1),
        Match::New => connection(list, 8),
        Match::Icmp(least, most) => {
            // With the family, because ICMP is only what IPv4 carries.
            let list = compare(meta(compare(meta(list, 15), &[2]), 16), &[1]);
            between(payload(list, 2, 0, 1), *least, *most)
        }
        Match::Icmp6(least, most) => {
            let list = compare(meta(compare(meta(list, 15), &[10]), 16), &[58]);
            between(payload(list, 2, 0, 1), *least, *most)
        }
        Match::OnLink => compare(payload(list, 1, 7, 1), &[255]),
        Match::Tcp(port) => compare(payload(compare(meta(list, 16), &[6]), 2, 2, 2), &port.to_be_bytes()),
        Match::Four => compare(meta(list, 15), &[2]),
        Match::Six => compare(meta(list, 15), &[10]),
        Match::Limit { rate, burst } => one(list, "limit", |data| limit(data, *rate, *burst)),
        Match::PerSource { set, source, rate, burst } => {
            let list = match source {
                Source::Four => payload(list, 1, 12, 4),
                Source::Six => {
                    let mask = [[0xff; 8], [0; 8]].concat();
                    masked(payload(list, 1, 8, 16), &mask)
                }
            };
            let number =
                (1_u32..).zip(sets).find(|(_, have)| have.name == *set).map_or(0, |(number, _)| number);
            one(list, "dynset", |data| {
                data.with_text(1, set)
                    .with(2, &number.to_be_bytes())
                    // NFT_DYNSET_OP_UPDATE: whoever goes on is not forgotten.
                    .with(3, &1_u32.to_be_bytes())
                    .with(4, &VALUE.to_be_bytes())
                    .with_nested(7, |element| {
                        element.with_text(1, "limit").with_nested(2, |data| limit(data, *rate, *burst))
                    })
            })
        }
    }
}

fn limit(data: Attributes, rate: u32, burst: u32) -> Attributes {
    let unit = 1_u64; // a second
    data.with(1, &u64::from(rate).to_be_bytes())
        .with(2, &unit.to_be_bytes())
        .with(3, &burst.to_be_bytes())
        .with(4, &0_u32.to_be_bytes())
        .with(5, &0_u32.to_be_bytes())
}

fn meta(list: Attributes, key: u32) -> Attributes {
    one(list, "meta", |data| data.with(1, &VALUE.to_be_bytes()).with(2, &key.to_be_bytes()))
}

fn payload(list: Attributes, base: u32, offset: u32, length: u32) -> Attributes {
    one(list, "payload", |data| {
        data.with(1, &VALUE.to_be_bytes())
            .with(2, &base.to_be_bytes())
            .with(3, &offset.to_be_bytes())
            .with(4, &length.to_be_bytes())
    })
}

fn compare(list: Attributes, value: &[u8]) -> Attributes {
    comparison(list, 0, value)
}

fn comparison(list: Attributes, operator: u32, value: &[u8]) -> Attributes {
    one(list, "cmp", |data| {
        data.with(1, &VALUE.to_be_bytes())
            .with(2, &operator.to_be_bytes())
            .with_nested(3, |inside| inside.with(1, value))
    })
}

fn masked(list: Attributes, mask: &[u8]) -> Attributes {
    one(list, "bitwise", |data| {
        data.with(1, &VALUE.to_be_bytes())
            .with(2, &VALUE.to_be_bytes())
            .with(3, &(mask.len() as u32).to_be_bytes())
            .with_nested(4, |inside| inside.with(1, mask))
            .with_nested(5, |inside| inside.with(1, &vec![0; mask.len()]))
    })
}

/// One of these bits is in the state of the connection.
fn connection(list: Attributes, bits: u32) -> Attributes {
    let list = one(list, "ct", |data| data.with(1, &VALUE.to_be_bytes()).with(2, &0_u32.to_be_bytes()));
    comparison(masked(list, &bits.to_ne_bytes()), 1, &[0; 4])
}

fn between(list: Attributes, least: u8, most: u8) -> Attributes {
    if least == most {
        return compare(list, &[least]);
    }
    // Greater or equal, less or equal.
    comparison(comparison(list, 5, &[least]), 3, &[most])
}

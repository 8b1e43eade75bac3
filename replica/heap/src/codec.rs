//! Changes as bytes: the payload of a frame, before sealing.

use crate::batch::{Batch, Change, PAGE, Page, SpaceId};

/// A page of zeros: never stored, neither in RAM nor on the medium.
pub(crate) static ZERO: Page = [0; PAGE];

const PAGE_OP: u8 = 1;
const ZERO_OP: u8 = 2;
const RESIZE_OP: u8 = 3;
const DROP_OP: u8 = 4;
const PUT_OP: u8 = 5;
const DELETE_OP: u8 = 6;

/// A change by reference, so that pages are copied once: into the frame that is sealed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Op<'a> {
    Page { space: SpaceId, page: u64, data: &'a Page },
    Zero { space: SpaceId, page: u64 },
    Resize { space: SpaceId, pages: u64 },
    Drop { space: SpaceId },
    Put { key: &'a [u8], value: &'a [u8] },
    Delete { key: &'a [u8] },
}

impl<'a> From<&'a Change> for Op<'a> {
    fn from(change: &'a Change) -> Self {
        match change {
            Change::Page { space, page, data } if **data == ZERO => Self::Zero { space: *space, page: *page },
            Change::Page { space, page, data } => Self::Page { space: *space, page: *page, data },
            Change::Resize { space, pages } => Self::Resize { space: *space, pages: *pages },
            Change::Drop { space } => Self::Drop { space: *space },
            Change::Put { key, value } => Self::Put { key, value },
            Change::Delete { key } => Self::Delete { key },
        }
    }
}

impl Batch {
    pub(crate) fn ops(&self) -> impl Iterator<Item = Op<'_>> {
        self.changes.iter().map(Op::from)
    }
}

impl Op<'_> {
    /// Encoded length in bytes.
    pub(crate) fn length(&self) -> usize {
        match self {
            Self::Page { .. } => 17 + PAGE,
            Self::Zero { .. } | Self::Resize { .. } => 17,
            Self::Drop { .. } => 9,
            Self::Put { key, value } => 7 + key.len() + value.len(),
            Self::Delete { key } => 3 + key.len(),
        }
    }

    /// Appends the encoding. Keys and values are within the limits of `Batch::check`, so lengths fit.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut numbers = |op: u8, space: SpaceId, number: u64| {
            out.push(op);
            out.extend_from_slice(&space.0.to_le_bytes());
            out.extend_from_slice(&number.to_le_bytes());
        };
        match self {
            Self::Page { space, page, data } => {
                numbers(PAGE_OP, *space, *page);
                out.extend_from_slice(data.as_slice());
            }
            Self::Zero { space, page } => numbers(ZERO_OP, *space, *page),
            Self::Resize { space, pages } => numbers(RESIZE_OP, *space, *pages),
            Self::Drop { space } => {
                out.push(DROP_OP);
                out.extend_from_slice(&space.0.to_le_bytes());
            }
            Self::Put { key, value } => {
                out.push(PUT_OP);
                out.extend_from_slice(&(key.len() as u16).to_le_bytes());
                out.extend_from_slice(&(value.len() as u32).to_le_bytes());
                out.extend_from_slice(key);
                out.extend_from_slice(value);
            }
            Self::Delete { key } => {
                out.push(DELETE_OP);
                out.extend_from_slice(&(key.len() as u16).to_le_bytes());
                out.extend_from_slice(key);
            }
        }
    }
}

/// Takes fields off the front of bytes; `None` where too few are left.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Decodes the changes of one frame; `None` if the bytes are not a whole sequence of valid changes.
pub(crate) fn decode(payload: &[u8]) -> Option<Vec<Change>> {
    let mut fields = Fields(payload);
    let mut changes = Vec::new();
    while !fields.0.is_empty() {
        let change = decode_one(&mut fields)?;
        change.check().ok()?;
        changes.push(change);
    }
    Some(changes)
}

fn decode_one(fields: &mut Fields<'_>) -> Option<Change> {
    let op = fields.byte()?;
    Some(match op {
        PAGE_OP | ZERO_OP => {
            let space = SpaceId(fields.u64()?);
            let page = fields.u64()?;
            let data = if op == PAGE_OP { fields.slice(PAGE)? } else { ZERO.as_slice() };
            // By way of a boxed slice: the page goes straight to the heap, not over the stack.
            Change::Page { space, page, data: Box::<[u8]>::from(data).try_into().ok()? }
        }
        RESIZE_OP => Change::Resize { space: SpaceId(fields.u64()?), pages: fields.u64()? },
        DROP_OP => Change::Drop { space: SpaceId(fields.u64()?) },
        PUT_OP => {
            let key = usize::from(fields.u16()?);
            let value = usize::try_from(fields.u32()?).ok()?;
            Change::Put { key: fields.slice(key)?.to_vec(), value: fields.slice(value)?.to_vec() }
        }
        DELETE_OP => {
            let key = usize::from(fields.u16()?);
            Change::Delete { key: fields.slice(key)?.to_vec() }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn change() -> impl Strategy<Value = Change> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            (any::<u64>(), 0..crate::MAX_PAGES, any::<u8>()).prop_map(|(space, page, fill)| {
                Change::Page { space: SpaceId(space), page, data: Box::new([fill; PAGE]) }
            }),
            (any::<u64>(), 0..=crate::MAX_PAGES)
                .prop_map(|(space, pages)| Change::Resize { space: SpaceId(space), pages }),
            any::<u64>().prop_map(|space| Change::Drop { space: SpaceId(space) }),
            (bytes(), bytes()).prop_map(|(key, value)| Change::Put { key, value }),
            bytes().prop_map(|key| Change::Delete { key }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(changes in prop::collection::vec(change(), 0..8)) {
            let batch = Batch { changes };
            let mut bytes = Vec::new();
            for op in batch.ops() {
                let before = bytes.len();
                op.encode(&mut bytes);
                prop_assert_eq!(bytes.len() - before, op.length());
            }
            prop_assert_eq!(decode(&bytes), Some(batch.changes));
            // Any cut within the last change is refused.
            if let Some(cut) = bytes.len().checked_sub(1) {
                prop_assert_eq!(decode(&bytes[..cut]), None);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), op in 0u8..8) {
            let _ = decode(&bytes);
            let _ = decode(&[[op].as_slice(), &bytes].concat());
        }
    }

    #[test]
    fn a_zero_page_costs_no_page() {
        let zero = Change::Page { space: SpaceId(1), page: 2, data: Box::new([0; PAGE]) };
        assert_eq!(Op::from(&zero).length(), 17);
    }
}

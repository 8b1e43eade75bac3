//! What a commit record says.

use super::batch::PAGE;
use super::block::Ref;
use super::node::Fields;

/// One change as it stands in the log: pages are already in their slots.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Page { space: u64, page: u64, reference: Ref },
    Resize { space: u64, pages: u64 },
    Delete { space: u64 },
    Clone { from: u64, to: u64 },
    Put { key: Vec<u8>, value: Meta },
    Remove { key: Vec<u8> },
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meta {
    Inline(Vec<u8>),
    Blob { length: u64, pages: Vec<Ref> },
}

/// Longest value that stands in the log and in the catalog itself.
pub(crate) const INLINE: usize = 512;

/// Most pages in one run.
const RUN: usize = u16::MAX as usize;

/// Encodes changes; consecutive pages of a space become one run.
pub(crate) fn encode(changes: &[Change], out: &mut Vec<u8>) {
    let mut rest = changes;
    while let Some(first) = rest.first() {
        let mut taken = 1;
        match first {
            Change::Page { space, page, .. } => {
                taken = rest.iter().take(RUN).zip(*page..).take_while(|(change, expected)| {
                    matches!(change, Change::Page { space: other, page, .. } if other == space && page == expected)
                }).count();
                let mut head = [1; 19];
                head[1..9].copy_from_slice(&space.to_le_bytes());
                head[9..17].copy_from_slice(&page.to_le_bytes());
                head[17..].copy_from_slice(&(taken as u16).to_le_bytes());
                out.extend_from_slice(&head);
                for change in &rest[..taken] {
                    if let Change::Page { reference, .. } = change {
                        out.extend_from_slice(&reference.encode());
                    }
                }
            }
            Change::Resize { space, pages } => numbers(2, [space, pages], out),
            Change::Delete { space } => numbers(3, [space], out),
            Change::Clone { from, to } => numbers(4, [from, to], out),
            Change::Put { key, value } => {
                out.push(match value {
                    Meta::Inline(_) => 5,
                    Meta::Blob { .. } => 6,
                });
                out.extend((key.len() as u16).to_le_bytes());
                out.extend(key);
                match value {
                    Meta::Inline(bytes) => {
                        out.extend((bytes.len() as u16).to_le_bytes());
                        out.extend(bytes);
                    }
                    Meta::Blob { length, pages } => {
                        out.extend(length.to_le_bytes());
                        pages.iter().for_each(|page| out.extend(page.encode()));
                    }
                }
            }
            Change::Remove { key } => {
                out.push(7);
                out.extend((key.len() as u16).to_le_bytes());
                out.extend(key);
            }
        }
        rest = &rest[taken..];
    }
}

fn numbers<const N: usize>(tag: u8, numbers: [&u64; N], out: &mut Vec<u8>) {
    out.push(tag);
    numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
}

/// The counterpart of [`encode`]; `None` if the bytes are not that.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Change>> {
    let mut fields = Fields(bytes);
    let mut changes = Vec::new();
    while let Some(tag) = fields.u8() {
        match tag {
            1 => {
                let (space, first) = (fields.u64()?, fields.u64()?);
                for index in 0..u64::from(fields.u16()?) {
                    let page = first.checked_add(index)?;
                    changes.push(Change::Page { space, page, reference: fields.reference()? });
                }
            }
            2 => changes.push(Change::Resize { space: fields.u64()?, pages: fields.u64()? }),
            3 => changes.push(Change::Delete { space: fields.u64()? }),
            4 => changes.push(Change::Clone { from: fields.u64()?, to: fields.u64()? }),
            5 => {
                let key = fields.bytes()?.to_vec();
                changes.push(Change::Put { key, value: Meta::Inline(fields.bytes()?.to_vec()) });
            }
            6 => {
                let (key, length) = (fields.bytes()?.to_vec(), fields.u64()?);
                let count = length.div_ceil(PAGE as u64);
                let pages = (0..count).map(|_| fields.reference()).collect::<Option<_>>()?;
                changes.push(Change::Put { key, value: Meta::Blob { length, pages } });
            }
            7 => changes.push(Change::Remove { key: fields.bytes()?.to_vec() }),
            _ => return None,
        }
    }
    Some(changes)
}

impl Change {
    /// References that the change brings.
    pub(crate) fn references(&self) -> &[Ref] {
        match self {
            Self::Page { reference, .. } if !reference.is_none() => std::slice::from_ref(reference),
            Self::Put { value: Meta::Blob { pages, .. }, .. } => pages,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_bytes_are_refused() {
        let reference = Ref::new(7, [1; 12], [2; 16]);
        let page = |page| Change::Page { space: 3, page, reference };
        let changes = vec![
            page(5),
            page(6),
            page(9),
            Change::Resize { space: 1, pages: 2 },
            Change::Delete { space: 4 },
            Change::Clone { from: 1, to: 2 },
            Change::Put { key: b"k".to_vec(), value: Meta::Inline(b"v".to_vec()) },
            Change::Put { key: b"b".to_vec(), value: Meta::Blob { length: 5000, pages: vec![reference; 2] } },
            Change::Remove { key: b"k".to_vec() },
        ];
        let mut bytes = Vec::new();
        encode(&changes, &mut bytes);
        let decoded = decode(&bytes).unwrap();
        assert_eq!(format!("{decoded:?}"), format!("{changes:?}"));
        let whole = (0..bytes.len()).filter(|length| decode(&bytes[..*length]).is_some()).count();
        assert!(whole <= changes.len(), "only whole changes decode");
        for index in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[index] ^= 1 << bit;
                let _ = decode(&damaged);
            }
        }
    }
}

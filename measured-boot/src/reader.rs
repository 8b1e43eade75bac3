//! Reading bytes from the front, without ever looking past their end.

/// Bytes ended before a field did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CutOff;

pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, length: bytes.len() }
    }

    /// How many bytes were read.
    pub(crate) fn at(&self) -> usize {
        self.length - self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], CutOff> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(CutOff)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], CutOff> {
        self.take(N)?.try_into().map_err(|_| CutOff)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CutOff> {
        Ok(self.array::<1>()?[0])
    }

    /// Little-endian, as firmware writes.
    pub(crate) fn le16(&mut self) -> Result<u16, CutOff> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn le32(&mut self) -> Result<u32, CutOff> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn le64(&mut self) -> Result<u64, CutOff> {
        self.array().map(u64::from_le_bytes)
    }

    /// Big-endian, as TPMs write.
    pub(crate) fn be16(&mut self) -> Result<u16, CutOff> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn be32(&mut self) -> Result<u32, CutOff> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn be64(&mut self) -> Result<u64, CutOff> {
        self.array().map(u64::from_be_bytes)
    }

    /// A TPM2B: two bytes of length, then as many bytes.
    pub(crate) fn sized(&mut self) -> Result<&'a [u8], CutOff> {
        let length = self.be16()?;
        self.take(length.into())
    }
}

/// A TPM2B around bytes; none of ours is as long as 64 KiB.
pub(crate) fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

//! What is on the medium: writing commits, generations and watermarks in the order that makes them safe.

use thiserror::Error;

use crate::codec::Op;
use crate::frame::{self, Cursor, Kind};
use crate::media::{Media, MediaError};
use crate::seal::{self, Keys, MacKey, SealError, Sealer};
use crate::superblock::{
    SUPERBLOCK, SUPERBLOCKS, Superblock, WATERMARKS, encode_watermark, watermark_offset,
};

/// A failure while writing; after it nothing is known about the medium.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Media(#[from] MediaError),
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// An open medium at the end of its log.
pub(crate) struct Store {
    pub(crate) media: Box<dyn Media>,
    pub(crate) keys: Keys,
    pub(crate) watermark: MacKey,
    pub(crate) superblock: Superblock,
    pub(crate) cursor: Cursor,
    pub(crate) sealer: Sealer,
    pub(crate) buffer: Vec<u8>,
}

impl Store {
    /// Initialises a blank medium; `initial` has generation 0.
    ///
    /// Until the first superblock of generation 1 is durable, the second copy says generation 0, or all else
    /// is blank; either way the next open knows that nothing was ever committed, and begins again.
    pub(crate) fn create(media: Box<dyn Media>, keys: Keys, initial: Superblock) -> Result<Self, StoreError> {
        let watermark = keys.watermark(initial.media)?;
        let sealer = Sealer::new(&keys)?;
        let cursor = Cursor::new(&initial);
        let buffer = Vec::new();
        let mut store = Self { media, keys, watermark, superblock: initial, cursor, sealer, buffer };
        store.write_superblock(1)?;
        // An earlier attempt may have left a torn first copy, which must not be completed by the one to come.
        store.media.write(SUPERBLOCKS[0], &[0; SUPERBLOCK])?;
        store.media.fence()?;
        for offset in WATERMARKS {
            store.media.write(offset, &encode_watermark(0, &store.watermark))?;
        }
        store.switch(0, std::iter::empty())?;
        Ok(store)
    }

    /// Bytes that these changes would take.
    pub(crate) fn length<'a>(&self, ops: impl Iterator<Item = Op<'a>>) -> u64 {
        frame::length(ops, &self.superblock)
    }

    /// Bytes in one arena.
    pub(crate) fn capacity(&self) -> u64 {
        let arena = self.superblock.arena();
        arena.end - arena.start
    }

    /// Appends a commit to the log; durable on return.
    ///
    /// One fence is enough: the tags prove a commit whole, so there is no commit word that could reach the
    /// medium before what it vouches for.
    pub(crate) fn append<'a>(
        &mut self,
        epoch: u64,
        ops: impl Iterator<Item = Op<'a>>,
    ) -> Result<(), StoreError> {
        self.write_frames((Kind::Commit, epoch), ops)?;
        Ok(self.media.fence()?)
    }

    /// Writes the state as the base of the next generation into the other arena and makes that the current
    /// one; durable on return.
    pub(crate) fn switch<'a>(
        &mut self,
        epoch: u64,
        ops: impl Iterator<Item = Op<'a>>,
    ) -> Result<(), StoreError> {
        let generation = self.superblock.generation + 1;
        let next = Superblock { generation, base_epoch: epoch, seed: seal::random()?, ..self.superblock };
        self.sealer = Sealer::new(&self.keys)?;
        self.cursor = Cursor::new(&next);
        self.superblock = next;
        self.write_frames((Kind::Base, epoch), ops)?;
        // The base must be durable before a superblock points at it. This fence also completes the second
        // superblock copy of the last switch, before the first copy is overwritten.
        self.media.fence()?;
        self.write_superblock(0)?;
        // One copy must be whole at any time: the first before the second is touched.
        self.media.fence()?;
        // The second copy may become durable with the next fence; until then the first one stands.
        self.write_superblock(1)
    }

    /// Notes that commits up to `epoch` are durable. The note itself becomes so with the next fence: it serves
    /// to tell damage from a torn tail, and may lag behind by one commit.
    pub(crate) fn acknowledge(&mut self, epoch: u64) -> Result<(), StoreError> {
        let cell = encode_watermark(epoch, &self.watermark);
        Ok(self.media.write(watermark_offset(epoch), &cell)?)
    }

    pub(crate) fn write_superblock(&mut self, copy: usize) -> Result<(), StoreError> {
        Ok(self.media.write(SUPERBLOCKS[copy], &self.superblock.encode(&self.keys))?)
    }

    fn write_frames<'a>(
        &mut self,
        what: (Kind, u64),
        ops: impl Iterator<Item = Op<'a>>,
    ) -> Result<(), StoreError> {
        let Self { media, sealer, cursor, buffer, .. } = self;
        frame::write(media.as_mut(), sealer, cursor, what, ops, buffer)
    }
}

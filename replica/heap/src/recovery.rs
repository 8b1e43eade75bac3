//! From a medium of unknown content to the last committed state.

use crate::batch::Change;
use crate::codec;
use crate::error::OpenError;
use crate::frame::{self, Cursor, Found, Kind};
use crate::image::Image;
use crate::media::Media;
use crate::seal::{Key, Keys, MacKey, Opener, Sealer};
use crate::store::{Store, StoreError};
use crate::superblock::{
    BLOCK, Copy, MIN_MEDIA, MediaId, SUPERBLOCKS, Superblock, WATERMARK, WATERMARKS, arena, encode_watermark,
    initial, parse_watermark,
};

/// How to open a heap.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Make a heap if the medium is blank. Whoever owns the medium can blank it, so set this only where
    /// beginning anew is acceptable, or together with `at_least`.
    pub create: bool,
    /// Refuse every medium but this one.
    pub media: Option<MediaId>,
    /// Refuse a heap that ends before this epoch: a number that the caller keeps where the owner of the
    /// medium cannot rewind it. Without one, an older image of the whole medium is not detectable.
    pub at_least: Option<u64>,
}

/// What was found at open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The medium was blank and has been initialised.
    pub created: bool,
    /// Number of the last commit found. Opening then made one of its own: see [`Heap::open`](crate::Heap::open).
    pub epoch: u64,
    /// Commits that were read from the log, beside the base.
    pub replayed: u64,
    /// Remains of a commit that was never acknowledged, which have been discarded.
    pub torn_tail: Option<TornTail>,
    /// One superblock copy was stale, torn or damaged and has been rewritten.
    pub superblock_repaired: bool,
    /// One watermark cell was behind, torn or damaged and has been rewritten.
    pub watermark_repaired: bool,
    /// The epoch was checked against an anchor. If not, a rollback of the whole medium would go unnoticed.
    pub anchored: bool,
}

/// Remains of a commit that was in flight at a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TornTail {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// The epoch it would have had.
    pub epoch: u64,
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Media(error) => Self::Media(error),
            StoreError::Seal(error) => Self::Seal(error),
        }
    }
}

/// What the superblock copies say together.
enum Head {
    /// Nothing was ever committed: initialise with this superblock of generation 0.
    New(Superblock),
    /// The newest valid superblock, and which copy differs from it.
    Current(Superblock, Option<usize>),
}

pub(crate) fn recover(
    media: Box<dyn Media>,
    key: &Key,
    options: &OpenOptions,
) -> Result<(Store, Image, Recovery), OpenError> {
    if media.len() < MIN_MEDIA {
        return Err(OpenError::TooSmall { length: media.len() });
    }
    // Writes of an earlier process may be readable and not yet durable. What is read from here on is shown to
    // the caller and built upon, so it must stay.
    media.fence()?;
    let keys = Keys::derive(key)?;
    let (superblock, stale) = match head(media.as_ref(), &keys)? {
        Head::Current(superblock, stale) => (superblock, stale),
        Head::New(superblock) => {
            anchor(0, options)?;
            if !options.create {
                return Err(OpenError::Blank);
            }
            expect_media(superblock.media, options)?;
            let store = Store::create(media, keys, superblock)?;
            let recovery = Recovery {
                created: true,
                epoch: 0,
                replayed: 0,
                torn_tail: None,
                superblock_repaired: false,
                watermark_repaired: false,
                anchored: options.at_least.is_some(),
            };
            return Ok((store, Image::default(), recovery));
        }
    };
    expect_media(superblock.media, options)?;
    if media.len() < superblock.length {
        return Err(OpenError::Truncated { recorded: superblock.length, found: media.len() });
    }
    let watermark = keys.watermark(superblock.media)?;
    let cells = read_watermarks(media.as_ref(), &watermark)?;
    let acknowledged = cells.into_iter().flatten().max().ok_or(OpenError::WatermarksDamaged)?;

    let Replayed { image, cursor, epoch, torn_tail } = replay(media.as_ref(), &keys, &superblock)?;
    if epoch < acknowledged {
        return Err(OpenError::LogDamaged { offset: cursor.offset, epoch, acknowledged });
    }
    anchor(epoch, options)?;

    let sealer = Sealer::new(&keys)?;
    let mut store = Store { media, keys, watermark, superblock, cursor, sealer, buffer: Vec::new() };
    let watermark_repaired = repair(&mut store, stale, cells, epoch)?;
    let recovery = Recovery {
        created: false,
        epoch,
        replayed: epoch - superblock.base_epoch,
        torn_tail,
        superblock_repaired: stale.is_some(),
        watermark_repaired,
        anchored: options.at_least.is_some(),
    };
    Ok((store, image, recovery))
}

fn anchor(epoch: u64, options: &OpenOptions) -> Result<(), OpenError> {
    match options.at_least {
        Some(anchor) if epoch < anchor => Err(OpenError::RolledBack { epoch, anchor }),
        _ => Ok(()),
    }
}

fn expect_media(found: MediaId, options: &OpenOptions) -> Result<(), OpenError> {
    match options.media {
        Some(expected) if expected != found => Err(OpenError::OtherMedia { found, expected }),
        _ => Ok(()),
    }
}

fn head(media: &dyn Media, keys: &Keys) -> Result<Head, OpenError> {
    let copies = [read_copy(media, keys, 0)?, read_copy(media, keys, 1)?];
    // A newer program may have begun to convert the medium: no older copy may be used then.
    for copy in copies {
        if let Copy::Version(found) = copy {
            return Err(OpenError::UnknownVersion { found });
        }
    }
    let newest = copies
        .into_iter()
        .filter_map(|copy| if let Copy::Valid(superblock) = copy { Some(superblock) } else { None })
        .max_by_key(|superblock| superblock.generation);
    if let Some(newest) = newest {
        if newest.generation == 0 {
            // Begun again under the same name.
            return Ok(Head::New(newest));
        }
        return Ok(Head::Current(newest, copies.iter().position(|copy| *copy != Copy::Valid(newest))));
    }
    // The first write of an initialisation goes to the second copy, so the first is blank if it was torn.
    if matches!(copies, [Copy::Blank, Copy::Blank | Copy::Damaged]) && blank_behind(media)? {
        return Ok(Head::New(initial(media.len(), media.kind())?));
    }
    for copy in copies {
        match copy {
            Copy::OtherKey(found) => return Err(OpenError::OtherKey { found, ours: keys.id }),
            Copy::Foreign => return Err(OpenError::Foreign),
            _ => {}
        }
    }
    Err(if copies == [Copy::Blank; 2] { OpenError::Wiped } else { OpenError::SuperblocksDamaged })
}

fn read_copy(media: &dyn Media, keys: &Keys, copy: usize) -> Result<Copy, OpenError> {
    let mut block = [0; BLOCK];
    media.read(SUPERBLOCKS[copy], &mut block)?;
    Ok(Copy::parse(&block, keys))
}

/// Whether the watermark cells and the heads of both arenas are blank, as on a medium never used.
fn blank_behind(media: &dyn Media) -> Result<bool, OpenError> {
    let arenas = [arena(media.len(), 0).start, arena(media.len(), 1).start];
    let mut block = [0; BLOCK];
    for offset in WATERMARKS.into_iter().chain(arenas) {
        media.read(offset, &mut block)?;
        if block.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read_watermarks(media: &dyn Media, key: &MacKey) -> Result<[Option<u64>; 2], OpenError> {
    let mut cells = [None; 2];
    for (cell, offset) in cells.iter_mut().zip(WATERMARKS) {
        let mut bytes = [0; WATERMARK];
        media.read(offset, &mut bytes)?;
        *cell = parse_watermark(&bytes, key);
    }
    Ok(cells)
}

/// Overwrites a stale superblock copy and brings the watermark cell of `epoch` up to date; whether a cell was
/// not. Both before the first commit: what an earlier attempt left of a superblock may lack no more than a word
/// that the next one has in common with it, and must not be completed by that.
fn repair(
    store: &mut Store,
    stale: Option<usize>,
    cells: [Option<u64>; 2],
    epoch: u64,
) -> Result<bool, OpenError> {
    if let Some(copy) = stale {
        store.write_superblock(copy)?;
    }
    // Of the cells, the damaged one first: the other must remain until the fence.
    let current = usize::from(epoch & 1 == 1);
    let other_damaged = cells[1 - current].is_none();
    if other_damaged {
        // Any epoch that was reached may stand in either cell.
        let cell = encode_watermark(epoch, &store.watermark);
        store.media.write(WATERMARKS[1 - current], &cell)?;
    }
    if stale.is_some() || other_damaged {
        store.media.fence()?;
    }
    let behind = cells[current] != Some(epoch);
    if behind {
        store.acknowledge(epoch)?;
    }
    Ok(behind || other_damaged)
}

struct Replayed {
    image: Image,
    cursor: Cursor,
    epoch: u64,
    torn_tail: Option<TornTail>,
}

/// Reads the base and as many commits behind it as are authentic and complete.
fn replay(media: &dyn Media, keys: &Keys, superblock: &Superblock) -> Result<Replayed, OpenError> {
    let mut opener = Opener::new(keys);
    let mut buffer = Vec::new();
    let mut image = Image::default();
    let mut cursor = Cursor::new(superblock);
    let mut epoch = superblock.base_epoch;
    loop {
        let offset = cursor.offset;
        match frame::read(media, &mut opener, &mut cursor, (Kind::Base, epoch), &mut buffer)? {
            Found::End { .. } => return Err(OpenError::BaseDamaged { offset }),
            Found::Frame { last } => {
                for change in changes(&buffer, offset)? {
                    image.apply(change);
                }
                if last {
                    break;
                }
            }
        }
    }
    // Frames of one commit are held back until its last one is there; the cursor follows commits only.
    let mut ahead = cursor.clone();
    let mut held = Vec::new();
    loop {
        let offset = ahead.offset;
        match frame::read(media, &mut opener, &mut ahead, (Kind::Commit, epoch + 1), &mut buffer)? {
            Found::Frame { last } => {
                held.extend(changes(&buffer, offset)?);
                if last {
                    for change in held.drain(..) {
                        image.apply(change);
                    }
                    epoch += 1;
                    cursor = ahead.clone();
                }
            }
            Found::End { torn } => {
                let torn = torn || ahead.offset != cursor.offset;
                let torn_tail = torn.then_some(TornTail { offset: cursor.offset, epoch: epoch + 1 });
                return Ok(Replayed { image, cursor, epoch, torn_tail });
            }
        }
    }
}

fn changes(payload: &[u8], offset: u64) -> Result<Vec<Change>, OpenError> {
    codec::decode(payload).ok_or(OpenError::Malformed { offset })
}

//! From a medium of unknown content to the last committed state.

use std::sync::Arc;

use super::batch::PAGE;
use super::block::{Geometry, MIN_MEDIA, RING, Ref, SUPERBLOCKS, WATERMARKS, frame_alignment};
use super::error::{OpenError, WriteError};
use super::heap::Heap;
use super::mutants::{self, Mutant};
use super::node::{Child, Tree};
use super::record::{self, Change};
use super::ring::{self, Log, Place};
use super::seal::{Key, Nonces, Protection, Sealer, random};
use super::slots::{FreeList, Slots};
use super::store::Store;
use super::superblock::{
    Copy, MediaId, SUPERBLOCK, Superblock, WATERMARK, encode_watermark, parse_watermark,
};
use super::writer::{Shares, Writer};
use crate::media::{Media, MediaKind};

/// How to open a heap.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Make a heap if the medium is blank. Whoever owns the medium can blank it, so set this only where
    /// beginning anew is acceptable, or together with `at_least`.
    pub create: bool,
    /// Refuse every medium but this one.
    pub media: Option<MediaId>,
    /// Refuse every kind of medium but this one.
    pub kind: Option<MediaKind>,
    /// Refuse a heap that ends before this epoch: a number that the caller keeps where the owner of the
    /// medium cannot rewind it. Without one, an older image of the whole medium is not detectable.
    pub at_least: Option<u64>,
    /// The key that the caller had before: a medium under it is opened, and put under the given one.
    pub former: Option<Key>,
    /// Show what can be read even if commits that were durable cannot: [`Recovery::lost`] says which. For
    /// rescuing data from a copy, never for going on: what is lost has been acknowledged.
    pub salvage: bool,
}

/// What was found at open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The medium was blank and has been initialised.
    pub created: bool,
    /// Number of the last commit found. Opening then made one of its own: see [`Heap::open`].
    pub epoch: u64,
    /// Commits that were read from the log.
    pub replayed: u64,
    /// Remains of commits that were never acknowledged have been discarded.
    pub torn_tail: bool,
    /// One superblock copy was stale, torn or damaged and has been rewritten.
    pub superblock_repaired: bool,
    /// The medium has become longer by so many bytes, which are now used.
    pub grown: u64,
    /// The epoch was checked against an anchor. If not, a rollback of the whole medium would go unnoticed.
    pub anchored: bool,
    /// The medium was under [`OpenOptions::former`] and is under the given key now.
    pub rekeyed: bool,
    /// The last commit known to have been durable, if it and others before it cannot be read. Only with
    /// [`OpenOptions::salvage`].
    pub lost: Option<u64>,
}

impl From<WriteError> for OpenError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Media(error) => Self::Media(error),
            WriteError::Seal(error) => Self::Seal(error),
            WriteError::Read(error) => Self::Index(error),
            WriteError::NoSlot | WriteError::Fault(_) => Self::NoRoom,
        }
    }
}

impl Heap {
    /// Opens the heap on a medium, and makes one if the medium is blank and [`OpenOptions::create`] is set.
    /// Costs what the tail of the log costs, whatever the heap holds.
    ///
    /// Opening an existing heap commits an empty batch (if the log has room), so the epoch goes on by one. With that, a commit in
    /// flight that was found incomplete is given up for good: its place is taken, and its epoch lies behind,
    /// so whoever kept it cannot pass it off as what was committed later.
    pub fn open(
        media: Box<dyn Media>,
        key: &Key,
        options: &OpenOptions,
    ) -> Result<(Self, Recovery), OpenError> {
        let other = |expected: &MediaKind| *expected != media.kind() && !mutants::on(Mutant::OtherKindTaken);
        if let Some(expected) = options.kind.filter(other) {
            return Err(OpenError::OtherKind { found: media.kind(), expected });
        }
        if media.len() < MIN_MEDIA {
            return Err(OpenError::TooSmall { length: media.len() });
        }
        // Writes of an earlier process may be readable and not yet durable. What is read from here on is shown
        // to the caller and built upon, so it must stay.
        if !mutants::on(Mutant::OpenFenceDropped) {
            media.fence()?;
        }
        let former = options.former.as_ref().filter(|former| former.sealed() == key.sealed());
        let (superblock, stale) = match head(media.as_ref(), key, former)? {
            Head::Current(superblock, stale) => (*superblock, stale),
            Head::New => {
                anchor(0, options)?;
                if !options.create {
                    return Err(OpenError::Blank);
                }
                let heap = create(media, key, options)?;
                let recovery = Recovery {
                    created: true,
                    epoch: 0,
                    replayed: 0,
                    torn_tail: false,
                    superblock_repaired: false,
                    grown: 0,
                    anchored: options.at_least.is_some(),
                    rekeyed: false,
                    lost: None,
                };
                return Ok((heap, recovery));
            }
        };
        let under = former.filter(|former| former.id() == superblock.key).unwrap_or(key);
        let found = examine(media.as_ref(), under, &superblock, options)?;
        let mut superblock = superblock;
        if let Some(copy) = stale.filter(|_| !mutants::on(Mutant::SuperblockNotRepaired)) {
            media.write(SUPERBLOCKS[copy], &superblock.encode(under))?;
        }
        let grown = media.len().saturating_sub(superblock.length);
        superblock.length = media.len();
        let geometry = Geometry::new(media.len(), superblock.ring, superblock.alignment.into());
        let store = Arc::new(Store::new(media, geometry, found.sealer, superblock.epoch));
        let mut heap = assemble(store, under, superblock, Log::new(found.end, superblock.log.at))?;
        let references = found.commits.iter().flatten().flat_map(Change::references);
        let Writer { store, slots, .. } = &mut heap.writer;
        slots.take_logged(store, references.map(Ref::slot))?;
        for (epoch, changes) in (superblock.epoch + 1..).zip(&found.commits) {
            heap.apply(epoch, changes)?;
        }
        heap.published = heap.live.clone();
        heap.cell = found.next_cell;
        if grown > 0 {
            // The copy just repaired must be durable before the other is touched.
            if !mutants::on(Mutant::GrowthFenceDropped) {
                heap.writer.store.media.fence()?;
            }
            heap.write_superblock(Superblock { generation: superblock.generation + 1, ..superblock })?;
        }
        if !mutants::on(Mutant::TailNotGivenUp) {
            heap.give_up_tail()?;
        }
        let recovery = Recovery {
            created: false,
            epoch: found.epoch,
            replayed: found.commits.len() as u64,
            torn_tail: found.torn,
            superblock_repaired: stale.is_some(),
            grown,
            anchored: options.at_least.is_some(),
            rekeyed: under.id() != key.id(),
            lost: found.lost,
        };
        if recovery.rekeyed {
            heap.put_under(key)?;
        }
        Ok((heap, recovery))
    }

    /// Commits an empty batch. Without room for one there is no commit to give up in the log either.
    fn give_up_tail(&mut self) -> Result<(), WriteError> {
        let Writer { store, nonces, .. } = &mut self.writer;
        if self.log.room(&store.geometry) {
            let epoch = self.live.epoch + 1;
            self.log.write(store, nonces, (epoch, self.published.epoch), &[])?;
            self.live.epoch = epoch;
        }
        self.make_durable()
    }
}

fn assemble(store: Arc<Store>, key: &Key, superblock: Superblock, log: Log) -> Result<Heap, OpenError> {
    let slots = Slots::new(store.geometry.slots, &superblock.free);
    let (height, root) = superblock.shares;
    let root = root.some().map_or(Child::None, Child::Stored);
    let shares = Shares::new(Tree { height, root });
    let writer = Writer { store, slots, nonces: Nonces::new()?, shares, dirty: 0 };
    Ok(Heap::new(writer, key.clone(), superblock, log))
}

fn anchor(epoch: u64, options: &OpenOptions) -> Result<(), OpenError> {
    match options.at_least {
        Some(anchor) if epoch < anchor && !mutants::on(Mutant::AnchorIgnored) => {
            Err(OpenError::RolledBack { epoch, anchor })
        }
        _ => Ok(()),
    }
}

/// What the superblock copies say together.
enum Head {
    /// Nothing was ever committed.
    New,
    /// The newest valid superblock, and which copy differs from it.
    Current(Box<Superblock>, Option<usize>),
}

fn head(media: &dyn Media, key: &Key, former: Option<&Key>) -> Result<Head, OpenError> {
    let mut bytes = [[0; SUPERBLOCK]; 2];
    media.read(SUPERBLOCKS[0], &mut bytes[0])?;
    media.read(SUPERBLOCKS[1], &mut bytes[1])?;
    let parse = |bytes| match (Copy::parse(bytes, key), former.map(|former| Copy::parse(bytes, former))) {
        (Copy::OtherKey(_) | Copy::Damaged, Some(valid @ Copy::Valid(_))) => valid,
        // Remains of an initialisation under the former key.
        (Copy::OtherKey(_), Some(Copy::Damaged)) => Copy::Damaged,
        (copy, _) => copy,
    };
    let first = parse(&bytes[0]);
    let second = if bytes[0] == bytes[1] { first } else { parse(&bytes[1]) };
    let copies = [first, second];
    for (back, _) in [1, 0].into_iter().zip(copies).filter(|(_, copy)| *copy == Copy::Damaged) {
        mutants::refused(back, false);
    }
    // A newer program may have begun to convert the medium: no older copy may be used then.
    for copy in copies {
        if let Copy::Version(found) = copy {
            return Err(OpenError::UnknownVersion { found });
        }
    }
    let valid = copies.iter().filter_map(|copy| match copy {
        Copy::Valid(superblock) => Some(*superblock),
        _ => None,
    });
    let rank = |superblock: &Superblock| match mutants::on(Mutant::OlderSuperblockTaken) {
        true => u64::MAX - superblock.generation,
        false => superblock.generation,
    };
    if let Some(newest) = valid.max_by_key(rank) {
        let differs = |copy: &Copy| *copy != Copy::Valid(newest);
        return Ok(Head::Current(Box::new(newest), copies.iter().position(differs)));
    }
    // An initialisation writes the second copy only once the first is durable.
    if matches!(copies, [Copy::Blank | Copy::Damaged, Copy::Blank]) && blank_behind(media)? {
        return Ok(Head::New);
    }
    for copy in copies {
        match copy {
            Copy::OtherKey(found) => return Err(OpenError::OtherKey { found, ours: key.id() }),
            Copy::Foreign => return Err(OpenError::Foreign),
            _ => {}
        }
    }
    Err(if copies == [Copy::Blank; 2] { OpenError::Wiped } else { OpenError::SuperblocksDamaged })
}

/// Whether ring and slots begin blank, as they do until the first commit.
fn blank_behind(media: &dyn Media) -> Result<bool, OpenError> {
    let mut block = [0; PAGE];
    for offset in [RING, RING + Geometry::new_ring(media.len())] {
        media.read(offset, &mut block)?;
        if block.iter().any(|byte| *byte != 0) && !mutants::on(Mutant::WipeTakenForNew) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn create(media: Box<dyn Media>, key: &Key, options: &OpenOptions) -> Result<Heap, OpenError> {
    let data_key = zeroize::Zeroizing::new(match key.0 {
        Protection::Plain => [0; 32],
        Protection::Sealed(_) => random()?,
    });
    let id = MediaId(random()?);
    if let Some(expected) = options.media {
        return Err(OpenError::OtherMedia { found: id, expected });
    }
    let alignment = frame_alignment(media.kind());
    let length = media.len();
    let geometry = Geometry::new(length, Geometry::new_ring(length), alignment);
    let superblock = Superblock {
        alignment: alignment as u32,
        key: key.id(),
        media: id,
        length,
        ring: geometry.ring,
        generation: 1,
        epoch: 0,
        data_key: key.wrap(&data_key)?,
        log: Place { at: 0, number: 0, tag: id.0 },
        free: FreeList { fresh: 1, chain: Ref::NONE, listed: 0 },
        catalog: (0, Ref::NONE),
        shares: (0, Ref::NONE),
        next_trash: 0,
    };
    let store = Arc::new(Store::new(media, geometry, key.protect(&data_key), 0));
    let mut heap = assemble(store, key, superblock, Log::new(superblock.log, 0))?;
    let Writer { store, nonces, .. } = &mut heap.writer;
    for offset in WATERMARKS {
        store.media.write(offset, &encode_watermark(&store.sealer, nonces, 0)?)?;
    }
    // What an attempt before left of a superblock must not be completed by this one.
    if !mutants::on(Mutant::RemainsNotWiped) {
        store.media.write(SUPERBLOCKS[0], &[0; SUPERBLOCK])?;
    }
    if !mutants::on(Mutant::InitialiseFenceDropped) {
        store.media.fence()?;
    }
    heap.write_superblock(superblock)?;
    Ok(heap)
}

/// What the log says.
struct Found {
    sealer: Sealer,
    commits: Vec<Vec<Change>>,
    pub(crate) epoch: u64,
    pub(crate) end: Place,
    pub(crate) torn: bool,
    lost: Option<u64>,
    next_cell: usize,
}

/// Checks a medium against its superblock and the caller's wishes, and reads the log. Changes nothing.
fn examine(
    media: &dyn Media,
    key: &Key,
    superblock: &Superblock,
    options: &OpenOptions,
) -> Result<Found, OpenError> {
    let other = |expected: &MediaId| *expected != superblock.media && !mutants::on(Mutant::OtherMediumTaken);
    if let Some(expected) = options.media.filter(other) {
        return Err(OpenError::OtherMedia { found: superblock.media, expected });
    }
    if media.len() < superblock.length && !mutants::on(Mutant::TruncationIgnored) {
        return Err(OpenError::Truncated { recorded: superblock.length, found: media.len() });
    }
    let data_key = key.unwrap(&superblock.data_key).ok_or(OpenError::SuperblocksDamaged)?;
    let sealer = key.protect(&data_key);
    let mut cells = [None; 2];
    for (cell, offset) in cells.iter_mut().zip(WATERMARKS) {
        let mut bytes = [0; WATERMARK];
        media.read(offset, &mut bytes)?;
        *cell = parse_watermark(&sealer, &bytes);
        if cell.is_none() {
            mutants::refused(0, false);
        }
    }
    let acknowledged = match cells.into_iter().flatten().max() {
        None if options.salvage || mutants::on(Mutant::WatermarksNotNeeded) => superblock.epoch,
        acknowledged => acknowledged.ok_or(OpenError::WatermarksDamaged)?,
    };
    let next_cell = usize::from(cells[0] == Some(acknowledged));
    let acknowledged = acknowledged.max(superblock.epoch);

    let geometry = Geometry::new(media.len(), superblock.ring, superblock.alignment.into());
    let mut tail = read_log(media, &geometry, &sealer, superblock)?;
    // Of commits that no fence is known to have followed, all pages must be in place.
    let known = acknowledged.max(tail.durable);
    let mut whole = usize::try_from(known.saturating_sub(superblock.epoch)).unwrap_or(usize::MAX);
    while let Some((changes, _)) = tail.commits.get(whole) {
        let believed = mutants::on(Mutant::TornPagesBelieved);
        if !believed && !in_place(media, &geometry, &sealer, changes)? {
            tail.commits.truncate(whole);
            tail.torn = true;
        }
        whole += 1;
    }
    let end = tail.commits.last().map_or(superblock.log, |(_, end)| *end);
    let epoch = superblock.epoch + tail.commits.len() as u64;
    let lost = (epoch < acknowledged).then_some(acknowledged);
    if lost.is_some() && !options.salvage && !mutants::on(Mutant::DamagedLogBelieved) {
        return Err(OpenError::LogDamaged { offset: RING + end.at % geometry.ring, epoch, acknowledged });
    }
    anchor(epoch, options)?;
    let commits = tail.commits.into_iter().map(|(changes, _)| changes).collect();
    Ok(Found { sealer, commits, epoch, end, torn: tail.torn, lost, next_cell })
}

/// The commits in the log, each with the place after it.
struct LogTail {
    commits: Vec<(Vec<Change>, Place)>,
    /// The last commit that a fence is known to have followed.
    durable: u64,
    torn: bool,
}

fn read_log(
    media: &dyn Media,
    geometry: &Geometry,
    sealer: &Sealer,
    superblock: &Superblock,
) -> Result<LogTail, OpenError> {
    let mut tail = LogTail { commits: Vec::new(), durable: superblock.epoch, torn: false };
    let mut place = superblock.log;
    // Frames of one commit are held back until its last one is there.
    let mut held = Vec::new();
    loop {
        let epoch = superblock.epoch + tail.commits.len() as u64 + 1;
        match ring::read(media, geometry, sealer, &place)? {
            Ok((frame, next)) if frame.epoch == epoch => {
                place = next;
                held.extend(frame.payload);
                if frame.last {
                    let malformed = || OpenError::Malformed { offset: RING + place.at % geometry.ring };
                    let changes = record::decode(&held).ok_or_else(malformed)?;
                    tail.durable = tail.durable.max(frame.durable);
                    tail.commits.push((changes, place));
                    held.clear();
                }
            }
            Ok(_) => break,
            Err(torn) => {
                tail.torn = torn || !held.is_empty();
                break;
            }
        }
    }
    Ok(tail)
}

fn in_place(
    media: &dyn Media,
    geometry: &Geometry,
    sealer: &Sealer,
    changes: &[Change],
) -> Result<bool, OpenError> {
    let mut block = [0; PAGE];
    for reference in changes.iter().flat_map(Change::references) {
        let Some(offset) = geometry.offset(reference.slot()) else { return Ok(false) };
        media.read(offset, &mut block)?;
        if !sealer.open_block(reference, &mut block) {
            mutants::refused(0, false);
            return Ok(false);
        }
    }
    Ok(true)
}

//! The heap: commits, and the index in RAM that they lead to.

use std::collections::{BTreeMap, HashMap, hash_map};
use std::sync::{Arc, PoisonError};

use super::batch::{Batch, InvalidBatch, MAX_KEY, MAX_PAGES, MAX_SPACE, MAX_VALUE, Op, PAGE, Page};
use super::block::{Ref, WATERMARKS};
use super::catalog::{self, meta_key, space_key, trash_key};
use super::checkpoint::Checkpoint;
use super::error::{CommitError, WriteError};
use super::mutants::{self, Mutant};
use super::node::{Tree, Value};
use super::radix;
use super::recent::{Recent, Versions};
use super::record::{self, Change, INLINE, Meta};
use super::ring::{self, Log};
use super::seal::Key;
use super::snapshot::Snapshot;
use super::superblock::{MediaId, Superblock, encode_watermark};
use super::writer::Writer;
use crate::media::MediaKind;

/// Entries that may gather before the index takes them in.
const FOLD: usize = 1024;

/// The last committed state, and the way to commit the next.
pub struct Heap {
    pub(crate) writer: Writer,
    pub(crate) key: Key,
    pub(crate) superblock: Superblock,
    pub(crate) log: Log,
    /// With all that was submitted.
    pub(crate) live: View,
    /// As far as it is durable.
    pub(crate) published: View,
    /// Lengths of spaces with all that was submitted; `None`: there is no such space.
    lengths: HashMap<u64, Option<u64>>,
    /// Entries in the live view's recent changes.
    recent: usize,
    /// Slots that the next checkpoint may take for the index on account of the recent changes: an upper bound.
    pub(crate) owed: u64,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) next_trash: u64,
    /// Whether there may be trees to be freed.
    pub(crate) trash: bool,
    /// Watermark cell to be written next.
    pub(crate) cell: usize,
    /// Bytes logged since the last step of maintenance.
    logged: u64,
    poisoned: Option<String>,
    changes: Vec<Change>,
    payload: Vec<u8>,
    /// Pages that a mutant holds back.
    late: Vec<(u32, Box<Page>)>,
}

/// One state: the index, and what was committed since it was last changed.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) epoch: u64,
    pub(crate) catalog: Tree,
    pub(crate) recent: Arc<Recent>,
}

/// Figures about a heap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What the medium is, hence what a commit survives.
    pub kind: MediaKind,
    /// Name of the medium.
    pub media: MediaId,
    /// Length of the medium in bytes.
    pub media_length: u64,
    /// Whether content is encrypted and authenticated.
    pub sealed: bool,
    /// Number of the last durable commit.
    pub epoch: u64,
    /// Number of the last durable superblock.
    pub generation: u64,
    /// Bytes that pages and index may take.
    pub capacity: u64,
    /// Bytes that they take.
    pub used: u64,
    /// Bytes of the log.
    pub log_capacity: u64,
    /// Bytes of the log that recovery would read.
    pub log_used: u64,
    /// Bytes given up that wait for a checkpoint or a snapshot.
    pub waiting: u64,
    /// Why the heap refuses commits, if it does.
    pub poisoned: Option<String>,
}

impl std::fmt::Debug for Heap {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("Heap").field(&self.status()).finish()
    }
}

/// What a batch takes at most.
#[derive(Default)]
struct Estimate {
    /// Slots for pages.
    pages: u64,
    /// Slots for the index.
    index: u64,
    /// Bytes of payload in the log.
    payload: usize,
    /// Nothing in it is new content, so it may use what is reserved.
    frees: bool,
}

impl Heap {
    pub(crate) fn new(writer: Writer, key: Key, superblock: Superblock, log: Log) -> Self {
        let tree = |(height, root): (u8, Ref)| Tree {
            height,
            root: root.some().map_or(super::node::Child::None, super::node::Child::Stored),
        };
        let view =
            View { epoch: superblock.epoch, catalog: tree(superblock.catalog), recent: Arc::default() };
        Self {
            writer,
            key,
            log,
            live: view.clone(),
            published: view,
            lengths: HashMap::new(),
            recent: 0,
            owed: 0,
            checkpoint: None,
            next_trash: superblock.next_trash,
            trash: true,
            cell: 0,
            logged: 0,
            poisoned: None,
            changes: Vec::new(),
            payload: Vec::new(),
            late: Vec::new(),
            superblock,
        }
    }

    /// Makes a batch durable as a whole or not at all, and returns its epoch: [`Heap::submit`] and
    /// [`Heap::flush`].
    pub fn commit(&mut self, batch: &Batch<'_>) -> Result<u64, CommitError> {
        self.submit(batch)?;
        self.flush()
    }

    /// Writes a batch without waiting until it is durable; [`Heap::flush`] makes all submitted batches so with
    /// one fence. Until then no snapshot shows it, and a crash may take it, with all submitted after it.
    pub fn submit(&mut self, batch: &Batch<'_>) -> Result<u64, CommitError> {
        self.usable()?;
        check(batch)?;
        let estimate = self.estimate(batch).map_err(|error| self.poison(error))?;
        self.admit(&estimate)?;
        self.owed += estimate.index;
        self.write(batch).map_err(|error| self.poison(error))
    }

    /// Makes everything submitted durable, and returns the last epoch. Also does a bounded part of what is due:
    /// taking changes into the index, writing a checkpoint, freeing slots.
    pub fn flush(&mut self) -> Result<u64, CommitError> {
        self.usable()?;
        if self.live.epoch != self.published.epoch {
            self.make_durable().map_err(|error| self.poison(error))?;
            let logged = std::mem::take(&mut self.logged);
            self.maintain_for(logged).map_err(|error| self.poison(error))?;
        }
        Ok(self.published.epoch)
    }

    /// The last durable state, to be read from any thread, for as long as it is kept.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.writer.store.clone(), self.published.clone(), self.writer.slots.moment)
    }

    /// Number of the last durable commit; 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.published.epoch
    }

    /// Figures about the heap.
    pub fn status(&self) -> Status {
        let store = &self.writer.store;
        let bytes = |slots: u64| slots * PAGE as u64;
        Status {
            kind: store.media.kind(),
            media: self.superblock.media,
            media_length: self.superblock.length,
            sealed: store.sealer.sealed(),
            epoch: self.published.epoch,
            generation: self.superblock.generation,
            capacity: bytes(self.writer.slots.total()),
            used: bytes(self.writer.slots.used()),
            log_capacity: store.geometry.ring,
            log_used: self.log.used(),
            waiting: bytes(self.writer.slots.waiting()),
            poisoned: self.poisoned.clone(),
        }
    }

    pub(crate) fn usable(&self) -> Result<(), CommitError> {
        match &self.poisoned {
            Some(reason) => Err(CommitError::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    pub(crate) fn poison(&mut self, error: WriteError) -> CommitError {
        use std::error::Error;
        let cause = error.source().map_or_else(String::new, |source| format!(": {source}"));
        self.poisoned = Some(format!("{error}{cause}"));
        match error {
            WriteError::Media(error) => CommitError::Media(error),
            WriteError::Seal(error) => CommitError::Seal(error),
            WriteError::Read(error) => CommitError::Index(error),
            WriteError::NoSlot | WriteError::Fault(_) => CommitError::Poisoned { reason: error.to_string() },
        }
    }

    fn length(&mut self, space: u64) -> Result<Option<u64>, WriteError> {
        if let Some(length) = self.lengths.get(&space) {
            return Ok(*length);
        }
        let value = catalog::get(&self.writer.store, &self.live.catalog, &space_key(space))?;
        let length = if let Some(Value::Space { pages, .. }) = value { Some(pages) } else { None };
        self.lengths.insert(space, length);
        Ok(length)
    }

    fn estimate(&mut self, batch: &Batch<'_>) -> Result<Estimate, WriteError> {
        let mut sum = Estimate { frees: true, ..Estimate::default() };
        // A path through the catalog, and one for the tree that is to be freed in consequence.
        let catalog = 2 * u64::from(self.live.catalog.height) + 2;
        // Of a node that gets an owner of its own, all that it names change their count.
        let clones = batch.ops.iter().any(|op| matches!(op, Op::Clone { .. }));
        let shared = self.writer.shares_estimate(clones);
        let mut last = None;
        for op in &batch.ops {
            match op {
                Op::Page { space, page, .. } => {
                    sum.frees = false;
                    sum.pages += 1;
                    sum.index += if shared > 0 { 2 } else { 0 };
                    sum.payload += 51;
                    let leaf = (*space, page / 128);
                    if last != Some(leaf) {
                        let end = self.length(*space)?.unwrap_or(0).max(*page);
                        sum.index += 2 * u64::from(radix::height_for(end)) * (1 + shared);
                        if last.is_none_or(|(other, _)| other != *space) {
                            sum.index += catalog;
                        }
                        last = Some(leaf);
                    }
                }
                Op::Put { key, value } => {
                    sum.payload += key.len() + value.len().min(INLINE) + 16;
                    sum.frees = false;
                    sum.index += catalog;
                    if value.len() > INLINE {
                        let pages = value.len().div_ceil(PAGE) as u64;
                        sum.pages += pages;
                        sum.index += pages / 64 + 2;
                        sum.payload += pages as usize * 32;
                    }
                }
                Op::Clone { .. } => {
                    sum.frees = false;
                    sum.index += 2 * catalog + 2 * (shared + 3);
                    sum.payload += 32;
                }
                Op::Resize { space, pages } => {
                    sum.frees &= self.length(*space)?.is_some_and(|length| *pages <= length);
                    sum.index += 2 * catalog + 24 * (1 + shared);
                    sum.payload += 32;
                }
                Op::Delete { .. } => {
                    sum.index += catalog;
                    sum.payload += 32;
                }
                Op::Remove { key } => {
                    sum.index += catalog;
                    sum.payload += key.len() + 16;
                }
            }
        }
        // Nodes that split for what is new in the catalog.
        sum.index += 8 + sum.payload as u64 / 1024;
        Ok(sum)
    }

    /// Slots that must remain after a batch.
    pub(crate) fn reserve(&self, frees: bool) -> u64 {
        let lists = self.writer.slots.waiting() / 512 + 4;
        lists + if frees { 0 } else { 32 }
    }

    fn admit(&mut self, estimate: &Estimate) -> Result<(), CommitError> {
        let geometry = self.writer.store.geometry;
        let capacity = geometry.ring;
        let needed = ring::needed(&geometry, estimate.payload);
        if needed > capacity {
            return Err(CommitError::TooLarge { needed, capacity });
        }
        let needed = |heap: &Self| estimate.pages + estimate.index + heap.owed + heap.reserve(estimate.frees);
        let fits = |heap: &Self| {
            heap.log.fits(&geometry, estimate.payload) && heap.writer.slots.available() >= needed(heap)
        };
        if fits(self) {
            return Ok(());
        }
        self.flush()?;
        // Each round frees what was given up before it; trees deleted earlier may still hold much.
        loop {
            let before = self.writer.slots.available();
            self.collect().map_err(|error| self.poison(error))?;
            if fits(self) {
                return Ok(());
            }
            if self.writer.slots.available() <= before {
                break;
            }
        }
        if !self.log.fits(&geometry, estimate.payload) {
            return Err(CommitError::TooLarge {
                needed: ring::needed(&geometry, estimate.payload),
                capacity,
            });
        }
        Err(CommitError::Full { needed: needed(self), free: self.writer.slots.available() })
    }

    /// Writes pages and record, and applies them.
    fn write(&mut self, batch: &Batch<'_>) -> Result<u64, WriteError> {
        let mut changes = std::mem::take(&mut self.changes);
        changes.clear();
        let mut scratch = [0; PAGE];
        for op in &batch.ops {
            changes.push(match op {
                Op::Page { space, page, data } => {
                    let reference =
                        if is_zero(data) { Ref::NONE } else { self.write_page(data, &mut scratch)? };
                    Change::Page { space: *space, page: *page, reference }
                }
                Op::Resize { space, pages } => Change::Resize { space: *space, pages: *pages },
                Op::Delete { space } => Change::Delete { space: *space },
                Op::Clone { from, to } => Change::Clone { from: *from, to: *to },
                Op::Put { key, value } if value.len() <= INLINE => {
                    Change::Put { key: key.to_vec(), value: Meta::Inline(value.to_vec()) }
                }
                Op::Put { key, value } => {
                    let mut pages = Vec::with_capacity(value.len().div_ceil(PAGE));
                    for part in value.chunks(PAGE) {
                        let mut page = [0; PAGE];
                        page[..part.len()].copy_from_slice(part);
                        pages.push(self.write_page(&page, &mut scratch)?);
                    }
                    let value = Meta::Blob { length: value.len() as u64, pages };
                    Change::Put { key: key.to_vec(), value }
                }
                Op::Remove { key } => Change::Remove { key: key.to_vec() },
            });
        }
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        record::encode(&changes, &mut payload);
        let epoch = self.live.epoch + 1;
        let Writer { store, nonces, .. } = &mut self.writer;
        self.logged += self.log.write(store, nonces, (epoch, self.published.epoch), &payload)?;
        self.payload = payload;
        self.apply(epoch, &changes)?;
        self.changes = changes;
        Ok(epoch)
    }

    #[inline]
    fn write_page(&mut self, data: &Page, scratch: &mut Page) -> Result<Ref, WriteError> {
        let Writer { store, slots, nonces, .. } = &mut self.writer;
        let slot = slots.take(store)?;
        let (reference, block) = store.sealer.seal_block(nonces, slot, data, scratch)?;
        if mutants::on(Mutant::PagesAfterFence) {
            self.late.push((slot, Box::new(*block)));
        } else {
            store.write(slot, block)?;
        }
        Ok(reference)
    }

    /// Fence; then what was submitted is what snapshots show.
    pub(crate) fn make_durable(&mut self) -> Result<(), WriteError> {
        if mutants::on(Mutant::WatermarkBeforeFence) {
            self.write_watermark(self.live.epoch)?;
        }
        if !mutants::on(Mutant::CommitFenceDropped) {
            self.writer.store.media.fence()?;
        }
        for (slot, page) in std::mem::take(&mut self.late) {
            self.writer.store.write(slot, &page)?;
        }
        self.publish();
        if !mutants::on(Mutant::WatermarkBeforeFence) {
            self.write_watermark(self.live.epoch)?;
        }
        Ok(())
    }

    fn write_watermark(&mut self, epoch: u64) -> Result<(), WriteError> {
        let Writer { store, nonces, .. } = &mut self.writer;
        let cell = encode_watermark(&store.sealer, nonces, epoch)?;
        // It rides on the next fence; between two writes to one cell there are two.
        store.media.write(WATERMARKS[self.cell], &cell)?;
        self.cell = 1 - self.cell;
        Ok(())
    }

    /// Shows the live view to snapshots taken from now on. All of it must be durable.
    pub(crate) fn publish(&mut self) {
        self.published = self.live.clone();
        self.writer.slots.publish();
        self.writer.slots.release(self.writer.store.pins.oldest());
    }

    /// Takes changes into the live view.
    pub(crate) fn apply(&mut self, epoch: u64, changes: &[Change]) -> Result<(), WriteError> {
        let mut rest = changes;
        while !rest.is_empty() {
            let simple = self.apply_simple(epoch, rest)?;
            rest = &rest[simple..];
            if let Some((change, after)) = rest.split_first() {
                self.apply_whole(epoch, change)?;
                rest = after;
            }
        }
        self.live.epoch = epoch;
        Ok(())
    }

    /// Takes changes to single pages and values, up to the first that concerns a whole space; their number.
    fn apply_simple(&mut self, epoch: u64, changes: &[Change]) -> Result<usize, WriteError> {
        let (store, recent) = (self.writer.store.clone(), self.live.recent.clone());
        let mut history = store.history.write().unwrap_or_else(PoisonError::into_inner);
        let mut recent = recent.write();
        let before = recent.len();
        let mut length = None;
        let mut done = 0;
        for change in changes {
            match change {
                Change::Page { space, page, reference } => {
                    let current = match length {
                        Some((of, pages)) if of == *space => pages,
                        _ => self.length(*space)?,
                    };
                    if current.is_none_or(|pages| *page >= pages) {
                        push(recent.lengths.entry(*space), epoch, page + 1);
                        self.lengths.insert(*space, Some(page + 1));
                        length = Some((*space, Some(page + 1)));
                    } else {
                        length = Some((*space, current));
                    }
                    match recent.pages.entry((*space, *page)) {
                        hash_map::Entry::Occupied(mut entry) => entry.get_mut().push(epoch, *reference),
                        hash_map::Entry::Vacant(entry) => {
                            entry.insert(Versions::new(epoch, *reference));
                        }
                    }
                    history.wrote(epoch, *space, *page);
                }
                Change::Resize { space, pages } => {
                    if self.length(*space)?.is_some_and(|length| length > *pages) {
                        break;
                    }
                    push(recent.lengths.entry(*space), epoch, *pages);
                    self.lengths.insert(*space, Some(*pages));
                    length = None;
                }
                Change::Put { key, value } => {
                    push(recent.metas.entry(key.clone()), epoch, Some(value.clone()));
                }
                Change::Remove { key } => push(recent.metas.entry(key.clone()), epoch, None),
                Change::Delete { .. } | Change::Clone { .. } => break,
            }
            done += 1;
        }
        self.recent += recent.len() - before;
        Ok(done)
    }

    /// Takes a change to a whole space, in the index itself.
    fn apply_whole(&mut self, epoch: u64, change: &Change) -> Result<(), WriteError> {
        self.fold()?;
        let changed = match change {
            Change::Resize { space, pages } => {
                let cut = catalog::update(
                    &mut self.writer,
                    &mut self.live.catalog,
                    &space_key(*space),
                    || Value::Space { pages: 0, tree: Tree::default() },
                    |writer, value| {
                        let Value::Space { pages: length, tree } = value else { return Ok(Vec::new()) };
                        *length = *pages;
                        radix::truncate(writer, tree, *pages)
                    },
                )?;
                cut.into_iter().try_for_each(|tree| self.bury_later(tree))?;
                self.lengths.insert(*space, Some(*pages));
                *space
            }
            Change::Delete { space } => {
                self.delete(*space)?;
                *space
            }
            Change::Clone { from, to } => {
                if from != to {
                    self.delete(*to)?;
                    let key = space_key(*from);
                    let value = catalog::get(&self.writer.store, &self.live.catalog, &key)?;
                    if let Some(Value::Space { pages, tree }) = value {
                        self.writer.share(&tree)?;
                        let (key, value) = (space_key(*to), Value::Space { pages, tree });
                        catalog::insert(&mut self.writer, &mut self.live.catalog, &key, value)?;
                        self.lengths.insert(*to, Some(pages));
                    }
                }
                *to
            }
            Change::Page { .. } | Change::Put { .. } | Change::Remove { .. } => return Ok(()),
        };
        let mut history = self.writer.store.history.write().unwrap_or_else(PoisonError::into_inner);
        history.broke(epoch, changed);
        Ok(())
    }

    fn delete(&mut self, space: u64) -> Result<(), WriteError> {
        self.lengths.insert(space, None);
        match catalog::remove(&mut self.writer, &mut self.live.catalog, &space_key(space))? {
            Some(Value::Space { tree, .. }) => self.bury_later(tree),
            _ => Ok(()),
        }
    }

    /// Has the slots of a tree freed in later steps.
    pub(crate) fn bury_later(&mut self, tree: Tree) -> Result<(), WriteError> {
        if tree.root.slot().is_some() {
            let key = trash_key(self.next_trash);
            self.next_trash += 1;
            catalog::insert(&mut self.writer, &mut self.live.catalog, &key, Value::Trash(tree))?;
            self.trash = true;
        }
        Ok(())
    }

    /// Takes the recent changes into the index.
    pub(crate) fn fold(&mut self) -> Result<(), WriteError> {
        if self.recent == 0 {
            return Ok(());
        }
        let folded = std::mem::take(&mut self.live.recent);
        self.recent = 0;
        let folded = folded.read();
        let mut spaces: BTreeMap<u64, Vec<(u64, &Versions<Ref>)>> = BTreeMap::new();
        for ((space, page), versions) in &folded.pages {
            spaces.entry(*space).or_default().push((*page, versions));
        }
        for space in folded.lengths.keys() {
            spaces.entry(*space).or_default();
        }
        for (space, mut pages) in spaces {
            pages.sort_unstable_by_key(|(page, _)| *page);
            let grown = folded.lengths.get(&space).map(|versions| *versions.last());
            catalog::update(
                &mut self.writer,
                &mut self.live.catalog,
                &space_key(space),
                || Value::Space { pages: 0, tree: Tree::default() },
                |writer, value| {
                    let Value::Space { pages: length, tree } = value else { return Ok(()) };
                    *length = grown.unwrap_or(*length);
                    for (page, versions) in pages {
                        for replaced in versions.replaced() {
                            if !replaced.is_none() {
                                writer.slots.give(replaced.slot());
                            }
                        }
                        if let Some(old) = radix::set(writer, tree, page, versions.last().some())? {
                            writer.disown(old.slot())?;
                        }
                    }
                    Ok(())
                },
            )?;
        }
        for (key, versions) in &folded.metas {
            for replaced in versions.replaced() {
                if let Some(Meta::Blob { pages, .. }) = replaced {
                    pages.iter().for_each(|page| self.writer.slots.give(page.slot()));
                }
            }
            self.fold_meta(key, versions.last().as_ref())?;
        }
        Ok(())
    }

    fn fold_meta(&mut self, key: &[u8], value: Option<&Meta>) -> Result<(), WriteError> {
        let key = meta_key(key);
        let (writer, catalog) = (&mut self.writer, &mut self.live.catalog);
        let old = match value {
            None => catalog::remove(writer, catalog, &key)?,
            Some(Meta::Inline(bytes)) => catalog::insert(writer, catalog, &key, catalog::inline(bytes))?,
            Some(Meta::Blob { length, pages }) => {
                let mut tree = Tree::default();
                for (page, reference) in (0..).zip(pages) {
                    radix::set(writer, &mut tree, page, Some(*reference))?;
                }
                catalog::insert(writer, catalog, &key, Value::Blob { length: *length, tree })?
            }
        };
        if let Some(Value::Blob { tree, .. }) = old {
            self.bury_later(tree)?;
        }
        Ok(())
    }

    /// Whether enough has gathered for [`Heap::fold`].
    pub(crate) fn fold_due(&self) -> bool {
        self.recent >= FOLD
    }
}

fn push<K: Ord, T>(entry: std::collections::btree_map::Entry<'_, K, Versions<T>>, epoch: u64, value: T) {
    match entry {
        std::collections::btree_map::Entry::Occupied(mut entry) => entry.get_mut().push(epoch, value),
        std::collections::btree_map::Entry::Vacant(entry) => {
            entry.insert(Versions::new(epoch, value));
        }
    }
}

fn is_zero(page: &Page) -> bool {
    // Most pages differ from zero early on.
    page.chunks_exact(64).all(|line| line.iter().fold(0, |sum, byte| sum | byte) == 0)
}

fn check(batch: &Batch<'_>) -> Result<(), InvalidBatch> {
    let space = |space: u64| match space <= MAX_SPACE {
        true => Ok(()),
        false => Err(InvalidBatch::SpaceNumber { space: super::SpaceId(space) }),
    };
    let key = |key: &[u8]| match key.len() <= MAX_KEY {
        true => Ok(()),
        false => Err(InvalidBatch::KeyTooLong { length: key.len() }),
    };
    let length = |space: u64, pages: u64| match pages <= MAX_PAGES {
        true => Ok(()),
        false => Err(InvalidBatch::SpaceTooLong { space: super::SpaceId(space), pages }),
    };
    batch.ops.iter().try_for_each(|op| match op {
        Op::Page { space: of, page, .. } => space(*of).and_then(|()| length(*of, page.saturating_add(1))),
        Op::Resize { space: of, pages } => space(*of).and_then(|()| length(*of, *pages)),
        Op::Delete { space: of } => space(*of),
        Op::Clone { from, to } => space(*from).and_then(|()| space(*to)),
        Op::Put { key: of, value } if value.len() <= MAX_VALUE => key(of),
        Op::Put { value, .. } => Err(InvalidBatch::ValueTooLong { length: value.len() }),
        Op::Remove { key: of } => key(of),
    })
}

//! What the heap and its snapshots share: the medium, its key, and index nodes read from it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use super::batch::{PAGE, Page};
use super::block::{Geometry, Ref};
use super::error::{ReadError, WriteError};
use super::mutants::{self, Mutant};
use super::node::{Kind, Node};
use super::seal::{Nonces, Sealer};
use super::sync::{Mutex, RwLock};
use crate::media::{Media, MediaError};

/// Index nodes kept for readers; 16 MiB.
const CACHE: usize = 4096;

pub(crate) struct Store {
    pub(crate) media: Box<dyn Media>,
    pub(crate) geometry: Geometry,
    pub(crate) sealer: Sealer,
    /// Nodes that are not part of the writer's tree in RAM, by slot.
    cache: Mutex<HashMap<u32, (Ref, Arc<Node>)>>,
    /// Slots that snapshots hold.
    pub(crate) pins: Pins,
    /// What was written lately.
    pub(crate) history: RwLock<super::history::History>,
}

impl Store {
    pub(crate) fn new(media: Box<dyn Media>, geometry: Geometry, sealer: Sealer, epoch: u64) -> Self {
        let history = RwLock::new(super::history::History::new(epoch));
        Self { media, geometry, sealer, cache: Mutex::default(), pins: Pins::default(), history }
    }

    /// Writes a block to a slot, protected; `next` will be written after it.
    #[inline]
    pub(crate) fn write(
        &self,
        nonces: &mut Nonces,
        slot: u32,
        block: &Page,
        next: &Page,
    ) -> Result<Ref, WriteError> {
        let place = (self.media.as_ref(), self.offset(slot));
        let (nonce, tag) = self.sealer.write_block(nonces, place, block, next)?;
        Ok(Ref::new(slot, nonce, tag))
    }

    pub(crate) fn offset(&self, slot: u32) -> u64 {
        // A slot outside can only come from a damaged plain heap; reading or writing there is refused by the
        // medium.
        self.geometry.offset(slot).unwrap_or(u64::MAX - PAGE as u64)
    }

    /// Reads a block: copied out first, then authenticated.
    pub(crate) fn read(&self, reference: &Ref, into: &mut Page) -> Result<(), ReadError> {
        let offset = self.offset(reference.slot());
        self.media.read(offset, into)?;
        if self.sealer.open_block(reference, into) || mutants::on(Mutant::BlockTagIgnored) {
            return Ok(());
        }
        mutants::refused(0, false);
        into.fill(0);
        Err(ReadError::Damaged { offset })
    }

    /// Whether a block is on the medium as it was sealed.
    pub(crate) fn check(&self, reference: &Ref) -> Result<bool, MediaError> {
        let mut block = [0; PAGE];
        match self.read(reference, &mut block) {
            Ok(()) => Ok(true),
            Err(ReadError::Media(error)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Reads an index node.
    pub(crate) fn load(&self, reference: &Ref, kind: Kind) -> Result<Arc<Node>, ReadError> {
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((cached, node)) = cache.get(&reference.slot())
                && cached == reference
                && node.body.is(kind)
            {
                return Ok(node.clone());
            }
        }
        let mut block = [0; PAGE];
        self.read(reference, &mut block)?;
        let malformed = || ReadError::Malformed { offset: self.offset(reference.slot()) };
        let node = Arc::new(Node::stored(*reference, kind, &block).ok_or_else(malformed)?);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE {
            cache.clear();
        }
        cache.insert(reference.slot(), (*reference, node.clone()));
        Ok(node)
    }

    /// Forgets a node that the writer takes over.
    pub(crate) fn forget(&self, slot: u32) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).remove(&slot);
    }
}

/// Which moments are held by snapshots. A slot given up at some moment is free once no older one is held.
#[derive(Default)]
pub(crate) struct Pins(Mutex<std::collections::BTreeMap<u64, usize>>);

impl Pins {
    pub(crate) fn hold(&self, moment: u64) {
        if mutants::on(Mutant::SnapshotsNotHeld) {
            return;
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(moment).or_default() += 1;
    }

    pub(crate) fn release(&self, moment: u64) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&moment) {
            *count -= 1;
            if *count == 0 {
                held.remove(&moment);
            }
        }
    }

    /// The oldest moment held.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().next().copied()
    }
}

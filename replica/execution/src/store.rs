//! The paged heap's interface over today's heap, which keeps the whole state in RAM.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub(crate) use heap::{CommitError, PAGE, Page, SpaceId, Status};

/// Commits of which is known what they changed.
const KNOWN: usize = 1000;

#[derive(Debug, Clone)]
enum Op<'a> {
    Page { space: SpaceId, page: u64, data: &'a Page },
    Resize { space: SpaceId, pages: u64 },
    Delete { space: SpaceId },
    Clone { from: SpaceId, to: SpaceId },
    Put { key: Cow<'a, [u8]>, value: Cow<'a, [u8]> },
    Remove { key: Cow<'a, [u8]> },
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Batch<'a> {
    ops: Vec<Op<'a>>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new() -> Self {
        Self::default()
    }
    pub(crate) fn put_page(&mut self, space: SpaceId, page: u64, data: &'a Page) -> &mut Self {
        self.ops.push(Op::Page { space, page, data });
        self
    }
    pub(crate) fn resize(&mut self, space: SpaceId, pages: u64) -> &mut Self {
        self.ops.push(Op::Resize { space, pages });
        self
    }
    pub(crate) fn delete_space(&mut self, space: SpaceId) -> &mut Self {
        self.ops.push(Op::Delete { space });
        self
    }
    pub(crate) fn clone_space(&mut self, from: SpaceId, to: SpaceId) -> &mut Self {
        self.ops.push(Op::Clone { from, to });
        self
    }
    pub(crate) fn put_meta(
        &mut self,
        key: impl Into<Cow<'a, [u8]>>,
        value: impl Into<Cow<'a, [u8]>>,
    ) -> &mut Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into() });
        self
    }
    pub(crate) fn delete_meta(&mut self, key: impl Into<Cow<'a, [u8]>>) -> &mut Self {
        self.ops.push(Op::Remove { key: key.into() });
        self
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unreachable")]
pub(crate) struct ReadError;

#[derive(Clone, Default)]
struct Space {
    pages: u64,
    present: BTreeMap<u64, Arc<Page>>,
}

#[derive(Clone, Default)]
struct Image {
    epoch: u64,
    spaces: BTreeMap<SpaceId, Space>,
    meta: BTreeMap<Vec<u8>, Arc<Vec<u8>>>,
    changes: VecDeque<(u64, BTreeMap<SpaceId, Option<Vec<u64>>>)>,
}

pub(crate) struct Heap {
    heap: heap::Heap,
    image: Arc<Image>,
}

impl Heap {
    pub(crate) fn new(heap: heap::Heap) -> Self {
        let mut image = Image { epoch: heap.epoch(), ..Image::default() };
        for (id, space) in heap.spaces() {
            let present = space.resident().map(|(page, data)| (page, Arc::new(*data))).collect();
            image.spaces.insert(id, Space { pages: space.pages(), present });
        }
        for (key, value) in heap.meta_range(b"") {
            image.meta.insert(key.to_vec(), Arc::new(value.to_vec()));
        }
        Self { heap, image: Arc::new(image) }
    }

    pub(crate) fn commit(&mut self, batch: &Batch<'_>) -> Result<u64, CommitError> {
        use heap::Change;
        let mut image = (*self.image).clone();
        let mut changes = Vec::new();
        let mut known: BTreeMap<SpaceId, Option<Vec<u64>>> = BTreeMap::new();
        for op in &batch.ops {
            match op {
                Op::Page { space, page, data } => {
                    let target = image.spaces.entry(*space).or_default();
                    target.pages = target.pages.max(page + 1);
                    target.present.insert(*page, Arc::new(**data));
                    if let Some(pages) = known.entry(*space).or_insert_with(|| Some(Vec::new())) {
                        pages.push(*page);
                    }
                    changes.push(Change::Page { space: *space, page: *page, data: Box::new(**data) });
                }
                Op::Resize { space, pages } => {
                    let target = image.spaces.entry(*space).or_default();
                    if *pages < target.pages {
                        target.present.split_off(pages);
                        known.insert(*space, None);
                    }
                    target.pages = *pages;
                    changes.push(Change::Resize { space: *space, pages: *pages });
                }
                Op::Delete { space } => {
                    image.spaces.remove(space);
                    known.insert(*space, None);
                    changes.push(Change::Drop { space: *space });
                }
                Op::Clone { from, to } => {
                    changes.push(Change::Drop { space: *to });
                    known.insert(*to, None);
                    image.spaces.remove(to);
                    if let Some(from) = image.spaces.get(from).cloned() {
                        changes.push(Change::Resize { space: *to, pages: from.pages });
                        for (page, data) in &from.present {
                            changes.push(Change::Page { space: *to, page: *page, data: Box::new(**data) });
                        }
                        image.spaces.insert(*to, from);
                    }
                }
                Op::Put { key, value } => {
                    image.meta.insert(key.to_vec(), Arc::new(value.to_vec()));
                    changes.push(Change::Put { key: key.to_vec(), value: value.to_vec() });
                }
                Op::Remove { key } => {
                    image.meta.remove(&**key);
                    changes.push(Change::Delete { key: key.to_vec() });
                }
            }
        }
        let epoch = self.heap.commit(heap::Batch { changes })?;
        image.epoch = epoch;
        image.changes.push_back((epoch, known));
        if image.changes.len() > KNOWN {
            image.changes.pop_front();
        }
        self.image = Arc::new(image);
        Ok(epoch)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot(self.image.clone())
    }

    pub(crate) fn status(&self) -> Status {
        self.heap.status()
    }
}

#[derive(Clone)]
pub(crate) struct Snapshot(Arc<Image>);

impl Snapshot {
    pub(crate) fn epoch(&self) -> u64 {
        self.0.epoch
    }
    pub(crate) fn read_page(&self, space: SpaceId, page: u64, into: &mut Page) -> Result<(), ReadError> {
        match self.0.spaces.get(&space).and_then(|space| space.present.get(&page)) {
            Some(data) => *into = **data,
            None => into.fill(0),
        }
        Ok(())
    }
    pub(crate) fn space_pages(&self, space: SpaceId) -> Result<Option<u64>, ReadError> {
        Ok(self.0.spaces.get(&space).map(|space| space.pages))
    }
    pub(crate) fn present_pages(
        &self,
        space: SpaceId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<u64>, ReadError> {
        let pages = self.0.spaces.get(&space).into_iter().flat_map(|space| space.present.range(from..));
        Ok(pages.map(|(page, _)| *page).take(limit).collect())
    }
    pub(crate) fn meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        Ok(self.0.meta.get(key).map(|value| value.to_vec()))
    }
    pub(crate) fn meta_range(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>, ReadError> {
        let range = self.0.meta.range(prefix.to_vec()..);
        let range = range.take_while(|(key, _)| key.starts_with(prefix));
        Ok(range.map(|(key, value)| (key.clone(), value.to_vec())).collect())
    }
    pub(crate) fn changed_since(&self, epoch: u64, space: SpaceId) -> Option<Vec<u64>> {
        if self.0.changes.front().is_none_or(|(first, _)| *first > epoch + 1) && epoch != self.epoch() {
            return None;
        }
        let mut pages = Vec::new();
        for (_, known) in self.0.changes.iter().filter(|(at, _)| *at > epoch) {
            match known.get(&space) {
                Some(Some(written)) => pages.extend(written),
                Some(None) => return None,
                None => {}
            }
        }
        pages.sort_unstable();
        pages.dedup();
        Some(pages)
    }
}

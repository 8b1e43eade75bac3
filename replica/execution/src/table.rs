//! Transactional tables: what a message changes stays pending until its commit is durable.

use std::collections::BTreeMap;

use candid::Principal;
use heap::{Batch, Change, Heap};
use serde::{Serialize, de::DeserializeOwned};

use crate::api::OpenError;

/// A key and its bytes in the heap's metadata; the bytes sort as the keys do where the order matters.
pub(crate) trait Key: Ord + Clone {
    fn encode(&self) -> Vec<u8>;
    fn decode(bytes: &[u8]) -> Option<Self>;
}

impl Key for u64 {
    fn encode(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
}

impl Key for [u8; 32] {
    fn encode(&self) -> Vec<u8> {
        self.to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
}

impl Key for Principal {
    fn encode(&self) -> Vec<u8> {
        self.as_slice().to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        Self::try_from_slice(bytes).ok()
    }
}

impl Key for () {
    fn encode(&self) -> Vec<u8> {
        Vec::new()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

impl<A: Key> Key for (A, [u8; 32]) {
    fn encode(&self) -> Vec<u8> {
        [self.0.encode(), self.1.to_vec()].concat()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (rest, hash) = bytes.split_last_chunk()?;
        Some((A::decode(rest)?, *hash))
    }
}

/// Records of one kind: the committed ones and the changes on top.
pub(crate) struct Table<K, V> {
    prefix: u8,
    committed: BTreeMap<K, V>,
    pending: BTreeMap<K, Option<V>>,
}

impl<K: Key, V: Clone + Serialize + DeserializeOwned> Table<K, V> {
    /// Reads all records whose key starts with `prefix`.
    pub(crate) fn load(heap: &Heap, prefix: u8) -> Result<Self, OpenError> {
        let mut committed = BTreeMap::new();
        for (key, value) in heap.meta_range(&[prefix]) {
            let fault = |why: String| {
                let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
                OpenError::Record { key, why }
            };
            let id = key.get(1..).and_then(K::decode).ok_or_else(|| fault("strange key".into()))?;
            let record = ciborium::from_reader(value).map_err(|error| fault(error.to_string()))?;
            committed.insert(id, record);
        }
        Ok(Self { prefix, committed, pending: BTreeMap::new() })
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        match self.pending.get(key) {
            Some(pending) => pending.as_ref(),
            None => self.committed.get(key),
        }
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.pending.contains_key(key) {
            let value = self.committed.get(key)?.clone();
            self.pending.insert(key.clone(), Some(value));
        }
        self.pending.get_mut(key)?.as_mut()
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.pending.insert(key, Some(value));
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        match self.pending.insert(key.clone(), None) {
            Some(pending) => pending,
            None => self.committed.get(key).cloned(),
        }
    }

    /// All records as they stand; those with pending changes come last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let untouched = self.committed.iter().filter(|(key, _)| !self.pending.contains_key(*key));
        untouched.chain(self.pending.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))))
    }

    /// The records that change with the next commit, as they are and as they will be.
    pub(crate) fn pending(&self) -> impl Iterator<Item = (&K, Option<&V>, Option<&V>)> {
        self.pending.iter().map(|(key, value)| (key, self.committed.get(key), value.as_ref()))
    }

    /// The committed records, in order of their keys.
    pub(crate) fn committed(&self) -> &BTreeMap<K, V> {
        &self.committed
    }
}

/// What a message's end does to every table, whatever it holds.
pub(crate) trait Transactional {
    /// Forgets pending changes.
    fn discard(&mut self);
    /// Adds pending changes to a batch.
    fn write(&self, batch: &mut Batch);
    /// Makes pending changes the committed state, after the batch is durable.
    fn settle(&mut self);
}

impl<K: Key, V: Serialize> Transactional for Table<K, V> {
    fn discard(&mut self) {
        self.pending.clear();
    }

    fn write(&self, batch: &mut Batch) {
        for (key, value) in &self.pending {
            let key_bytes = [vec![self.prefix], key.encode()].concat();
            match value {
                Some(value) => {
                    let mut bytes = Vec::new();
                    #[expect(
                        clippy::expect_used,
                        reason = "records are plain data, and a Vec takes any of it"
                    )]
                    ciborium::into_writer(value, &mut bytes).expect("a record encodes");
                    batch.changes.push(Change::Put { key: key_bytes, value: bytes });
                }
                // What was made and removed within the message never reached the heap.
                None if self.committed.contains_key(key) => {
                    batch.changes.push(Change::Delete { key: key_bytes });
                }
                None => {}
            }
        }
    }

    fn settle(&mut self) {
        for (key, value) in std::mem::take(&mut self.pending) {
            match value {
                Some(value) => self.committed.insert(key, value),
                None => self.committed.remove(&key),
            };
        }
    }
}

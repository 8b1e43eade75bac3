//! Transactional tables: what a message changes stays pending until its commit is durable.

use std::collections::BTreeMap;

use candid::Principal;
use serde::{Serialize, de::DeserializeOwned};

use crate::api::OpenError;
use crate::store::{Batch, ReadError, Snapshot};

/// A key and its bytes in the heap's metadata; the bytes sort as the keys do where the order matters.
pub(crate) trait Key: Ord + Clone {
    fn encode(&self, out: &mut Vec<u8>);
    fn decode(bytes: &[u8]) -> Option<Self>;
}

impl Key for u64 {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.to_be_bytes());
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
}

impl Key for [u8; 32] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self);
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
}

impl Key for Principal {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.as_slice());
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        Self::try_from_slice(bytes).ok()
    }
}

impl Key for () {
    fn encode(&self, _: &mut Vec<u8>) {}
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

impl Key for (u64, u64) {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
        self.1.encode(out);
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (first, second) = bytes.split_first_chunk()?;
        Some((u64::from_be_bytes(*first), u64::from_be_bytes(second.try_into().ok()?)))
    }
}

impl<A: Key> Key for (A, [u8; 32]) {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
        self.1.encode(out);
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (rest, hash) = bytes.split_last_chunk()?;
        Some((A::decode(rest)?, *hash))
    }
}

/// A record and its bytes in the heap's metadata.
pub(crate) trait Record: Clone {
    fn encode(&self) -> Vec<u8>;
    /// The error says what is wrong with the bytes.
    fn decode(bytes: &[u8]) -> Result<Self, String>;
}

/// Records that serde describes are CBOR.
pub(crate) fn to_cbor(record: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    #[expect(clippy::expect_used, reason = "records are plain data, and a Vec takes any of it")]
    ciborium::into_writer(record, &mut bytes).expect("a record encodes");
    bytes
}

/// The counterpart of [`to_cbor`].
pub(crate) fn from_cbor<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    ciborium::from_reader(bytes).map_err(|error| error.to_string())
}

/// Room for so many pending changes is kept from one message for the next.
const KEPT: usize = 64;

/// Records of one kind: the committed ones and the changes on top.
pub(crate) struct Table<K, V> {
    prefix: u8,
    /// Boxed, because the map makes room for several at once, and many a table has one or none.
    committed: BTreeMap<K, Box<V>>,
    /// In order of their keys; few, or new ones at the end.
    pending: Vec<(K, Option<V>)>,
}

impl<K: Key, V: Record> Table<K, V> {
    /// A table without records; their keys in the heap start with `prefix`.
    pub(crate) fn new(prefix: u8) -> Self {
        Self { prefix, committed: BTreeMap::new(), pending: Vec::new() }
    }

    fn key_bytes(&self, key: &K) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(48);
        bytes.push(self.prefix);
        key.encode(&mut bytes);
        bytes
    }

    /// Where a key's pending change is, or would be.
    fn find(&self, key: &K) -> Result<usize, usize> {
        self.pending.binary_search_by(|(other, _)| other.cmp(key))
    }

    /// Sets what is pending for a key; gives what was.
    fn set(&mut self, key: &K, value: Option<V>) -> Option<Option<V>> {
        match self.find(key) {
            Ok(at) => Some(std::mem::replace(&mut self.pending[at].1, value)),
            Err(at) => {
                self.pending.insert(at, (key.clone(), value));
                None
            }
        }
    }

    fn insert_committed(&mut self, key: &[u8], value: &[u8]) -> Result<(), OpenError> {
        let fault = |why: String| {
            let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
            OpenError::Record { key, why }
        };
        let id = key.get(1..).and_then(K::decode).ok_or_else(|| fault("strange key".into()))?;
        let record = V::decode(value).map_err(fault)?;
        self.committed.insert(id, Box::new(record));
        Ok(())
    }

    /// Reads the records whose keys start with these bytes.
    pub(crate) fn load_range(&mut self, snapshot: &Snapshot, key: &[u8]) -> Result<(), OpenError> {
        for (key, value) in snapshot.meta_range(&[&[self.prefix], key].concat()).map_err(unreadable)? {
            self.insert_committed(&key, &value)?;
        }
        Ok(())
    }

    /// Reads one record, if it is there.
    pub(crate) fn load_one(&mut self, snapshot: &Snapshot, key: &K) -> Result<(), OpenError> {
        let key = self.key_bytes(key);
        match snapshot.meta(&key).map_err(unreadable)? {
            Some(value) => self.insert_committed(&key, &value),
            None => Ok(()),
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        match self.find(key) {
            Ok(at) => self.pending[at].1.as_ref(),
            Err(_) => self.committed.get(key).map(Box::as_ref),
        }
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = match self.find(key) {
            Ok(at) => at,
            Err(at) => {
                let value = V::clone(self.committed.get(key)?);
                self.pending.insert(at, (key.clone(), Some(value)));
                at
            }
        };
        self.pending[at].1.as_mut()
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.set(&key, Some(value));
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        match self.committed.get(key) {
            Some(_) => match self.set(key, None) {
                Some(pending) => pending,
                None => self.committed.get(key).map(|value| V::clone(value)),
            },
            // What was made within the message never reached the heap.
            None => self.find(key).ok().and_then(|at| self.pending.remove(at).1),
        }
    }

    /// Forgets a record's pending change.
    pub(crate) fn forget(&mut self, key: &K) {
        if let Ok(at) = self.find(key) {
            self.pending.remove(at);
        }
    }

    /// All records as they stand; those with pending changes come last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let untouched = self.committed.iter().filter(|(key, _)| self.find(key).is_err());
        let pending = self.pending.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        untouched.map(|(key, value)| (key, &**value)).chain(pending)
    }

    /// The records that change with the next commit, as they are and as they will be.
    pub(crate) fn pending(&self) -> impl Iterator<Item = (&K, Option<&V>, Option<&V>)> {
        let before = |key| self.committed.get(key).map(Box::as_ref);
        self.pending.iter().map(move |(key, value)| (key, before(key), value.as_ref()))
    }

    /// The committed records, in order of their keys.
    pub(crate) fn committed(&self) -> &BTreeMap<K, Box<V>> {
        &self.committed
    }
}

pub(crate) fn unreadable(error: ReadError) -> OpenError {
    OpenError::Read { why: error.to_string() }
}

/// What a message's end does to every table, whatever it holds.
pub(crate) trait Transactional {
    /// Reads all records.
    fn load(&mut self, snapshot: &Snapshot) -> Result<(), OpenError>;
    /// Forgets pending changes.
    fn discard(&mut self);
    /// Adds pending changes to a batch.
    fn write(&self, batch: &mut Batch<'_>);
    /// Makes pending changes the committed state, after the batch is durable.
    fn settle(&mut self);
}

impl<K: Key, V: Record> Transactional for Table<K, V> {
    fn load(&mut self, snapshot: &Snapshot) -> Result<(), OpenError> {
        self.load_range(snapshot, b"")
    }

    fn discard(&mut self) {
        self.pending.clear();
    }

    fn write(&self, batch: &mut Batch<'_>) {
        for (key, value) in &self.pending {
            match value {
                Some(value) => batch.put_meta(self.key_bytes(key), value.encode()),
                None => batch.delete_meta(self.key_bytes(key)),
            };
        }
    }

    fn settle(&mut self) {
        for (key, value) in self.pending.drain(..) {
            match (value, self.committed.get_mut(&key)) {
                (Some(value), Some(old)) => **old = value,
                (Some(value), None) => drop(self.committed.insert(key, Box::new(value))),
                (None, _) => drop(self.committed.remove(&key)),
            }
        }
        self.pending.shrink_to(KEPT);
    }
}

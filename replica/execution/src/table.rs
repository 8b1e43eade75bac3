//! Transactional tables: what a message changes stays pending until its commit is durable.

use std::collections::BTreeMap;

use candid::Principal;
use serde::{Serialize, de::DeserializeOwned};

use crate::api::OpenError;
use crate::store::{Batch, ReadError, Snapshot};

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

impl Key for (u64, u64) {
    fn encode(&self) -> Vec<u8> {
        [self.0.to_be_bytes(), self.1.to_be_bytes()].concat()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (first, second) = bytes.split_first_chunk()?;
        Some((u64::from_be_bytes(*first), u64::from_be_bytes(second.try_into().ok()?)))
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

/// Records of one kind: the committed ones and the changes on top.
pub(crate) struct Table<K, V> {
    prefix: u8,
    committed: BTreeMap<K, V>,
    /// Boxed, because the map makes room for several at once and most messages change one.
    pending: BTreeMap<K, Option<Box<V>>>,
}

impl<K: Key, V: Record> Table<K, V> {
    /// A table without records; their keys in the heap start with `prefix`.
    pub(crate) fn new(prefix: u8) -> Self {
        Self { prefix, committed: BTreeMap::new(), pending: BTreeMap::new() }
    }

    fn key_bytes(&self, key: &[u8]) -> Vec<u8> {
        [&[self.prefix], key].concat()
    }

    fn insert_committed(&mut self, key: &[u8], value: &[u8]) -> Result<(), OpenError> {
        let fault = |why: String| {
            let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
            OpenError::Record { key, why }
        };
        let id = key.get(1..).and_then(K::decode).ok_or_else(|| fault("strange key".into()))?;
        let record = V::decode(value).map_err(fault)?;
        self.committed.insert(id, record);
        Ok(())
    }

    /// Reads the records whose keys start with these bytes.
    pub(crate) fn load_range(&mut self, snapshot: &Snapshot, key: &[u8]) -> Result<(), OpenError> {
        for (key, value) in snapshot.meta_range(&self.key_bytes(key)).map_err(unreadable)? {
            self.insert_committed(&key, &value)?;
        }
        Ok(())
    }

    /// Reads one record, if it is there.
    pub(crate) fn load_one(&mut self, snapshot: &Snapshot, key: &K) -> Result<(), OpenError> {
        let key = self.key_bytes(&key.encode());
        match snapshot.meta(&key).map_err(unreadable)? {
            Some(value) => self.insert_committed(&key, &value),
            None => Ok(()),
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        match self.pending.get(key) {
            Some(pending) => pending.as_deref(),
            None => self.committed.get(key),
        }
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.pending.contains_key(key) {
            let value = self.committed.get(key)?.clone();
            self.pending.insert(key.clone(), Some(Box::new(value)));
        }
        self.pending.get_mut(key)?.as_deref_mut()
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.pending.insert(key, Some(Box::new(value)));
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        match self.committed.get(key) {
            Some(committed) => match self.pending.insert(key.clone(), None) {
                Some(pending) => pending.map(|value| *value),
                None => Some(committed.clone()),
            },
            // What was made within the message never reached the heap.
            None => self.pending.remove(key)?.map(|value| *value),
        }
    }

    /// Forgets a record's pending change.
    pub(crate) fn forget(&mut self, key: &K) {
        self.pending.remove(key);
    }

    /// All records as they stand; those with pending changes come last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let untouched = self.committed.iter().filter(|(key, _)| !self.pending.contains_key(*key));
        untouched.chain(self.pending.iter().filter_map(|(key, value)| Some((key, value.as_deref()?))))
    }

    /// The records that change with the next commit, as they are and as they will be.
    pub(crate) fn pending(&self) -> impl Iterator<Item = (&K, Option<&V>, Option<&V>)> {
        self.pending.iter().map(|(key, value)| (key, self.committed.get(key), value.as_deref()))
    }

    /// The committed records, in order of their keys.
    pub(crate) fn committed(&self) -> &BTreeMap<K, V> {
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
            let key_bytes = self.key_bytes(&key.encode());
            match value {
                Some(value) => batch.put_meta(key_bytes, value.encode()),
                None => batch.delete_meta(key_bytes),
            };
        }
    }

    fn settle(&mut self) {
        for (key, value) in std::mem::take(&mut self.pending) {
            match value {
                Some(value) => self.committed.insert(key, *value),
                None => self.committed.remove(&key),
            };
        }
    }
}

//! One way to use all stores.

use crate::Page;
use heap::{BarMedia, Batch, FileMedia, Heap, Key, Media, OpenOptions, SpaceId};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::path::Path;

/// Why a store refused.
pub type Failure = Box<dyn std::error::Error>;

/// Makes a store in an empty directory.
pub type Make = fn(&Path) -> Result<Box<dyn Store>, Failure>;

/// A store of numbered pages.
pub trait Store {
    /// Writes all pages or none; durable on return.
    fn commit(&mut self, pages: &[(u64, &Page)]) -> Result<(), Failure>;
}

/// All of them, with what they are called.
pub const ALL: [(&str, Make); 7] = [
    ("heap, sealed", |directory| heap(directory, &Key::new([7; 32]))),
    ("heap, plain", |directory| heap(directory, &Key::plain())),
    ("redb", redb),
    ("fjall", fjall),
    ("sled", sled),
    ("SQLite", sqlite),
    ("LMDB", lmdb),
];

/// As a node would use this directory: memory as NVRAM, a disk as a file.
fn heap(directory: &Path, key: &Key) -> Result<Box<dyn Store>, Failure> {
    let (path, length) = (directory.join("heap"), 256 << 20);
    let media: Box<dyn Media> = if statfs(directory)?.filesystem_type() == TMPFS_MAGIC {
        std::fs::File::create(&path)?.set_len(length)?;
        let media = BarMedia::open(&path)?;
        // As in a node that has run for a while: no page fault at the first use of each page.
        media.prefault()?;
        Box::new(media)
    } else {
        Box::new(FileMedia::open_or_create(&path, length)?)
    };
    let options = OpenOptions { create: true, ..OpenOptions::default() };
    Ok(Box::new(Heap::open(media, key, &options)?.0))
}

impl Store for Heap {
    fn commit(&mut self, pages: &[(u64, &Page)]) -> Result<(), Failure> {
        let mut batch = Batch::new();
        for (number, page) in pages {
            batch.put_page(SpaceId(1), *number, page);
        }
        Heap::commit(self, &batch)?;
        Ok(())
    }
}

const PAGES: redb::TableDefinition<u64, &[u8]> = redb::TableDefinition::new("pages");

/// Its default durability: an fsync at each commit.
fn redb(directory: &Path) -> Result<Box<dyn Store>, Failure> {
    Ok(Box::new(redb::Database::create(directory.join("redb"))?))
}

impl Store for redb::Database {
    fn commit(&mut self, pages: &[(u64, &Page)]) -> Result<(), Failure> {
        let transaction = self.begin_write()?;
        {
            let mut table = transaction.open_table(PAGES)?;
            for (number, page) in pages {
                table.insert(number, page.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }
}

struct Fjall(fjall::Database, fjall::Keyspace);

/// A batch, then its journal is synced.
fn fjall(directory: &Path) -> Result<Box<dyn Store>, Failure> {
    let database = fjall::Database::builder(directory.join("fjall")).open()?;
    let pages = database.keyspace("pages", fjall::KeyspaceCreateOptions::default)?;
    Ok(Box::new(Fjall(database, pages)))
}

impl Store for Fjall {
    fn commit(&mut self, pages: &[(u64, &Page)]) -> Result<(), Failure> {
        let mut batch = self.0.batch();
        for (number, page) in pages {
            batch.insert(&self.1, number.to_be_bytes(), page.as_slice());
        }
        batch.commit()?;
        Ok(self.0.persist(fjall::PersistMode::SyncAll)?)
    }
}

/// A batch, then a flush.
fn sled(directory: &Path) -> Result<Box<dyn Store>, Failure> {
    Ok(Box::new(sled::open(directory.join("sled"))?))
}

impl Store for sled::Db {
    fn commit(&mut self, pages: &[(u64, &Page)]) -> Result<(), Failure> {
        let mut batch = sled::Batch::default();
        for (number, page) in pages {
            batch.insert(&number.to_be_bytes(), page.as_slice());
        }
        self.apply_batch(batch)?;
        self.flush()?;
        Ok(())
    }
}

/// Write-ahead log, synced at each commit.
fn sqlite(directory: &Path) -> Result<Box<dyn Store>, Failure> {
    let connection = rusqlite::Connection::open(directory.join("sqlite"))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute("CREATE TABLE pages (number INTEGER PRIMARY KEY, content BLOB)", ())?;
    Ok(Box::new(connection))
}

impl Store for rusqlite::Connection {
    fn commit(&mut self, pages: &[(u64, &Page)]) -> Result<(), Failure> {
        let transaction = self.transaction()?;
        {
            let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO pages VALUES (?1, ?2)")?;
            for (number, page) in pages {
                put.execute((*number as i64, page.as_slice()))?;
            }
        }
        Ok(transaction.commit()?)
    }
}

type Lmdb = heed::Database<heed::types::U64<heed::byteorder::BigEndian>, heed::types::Bytes>;

struct LmdbStore(heed::Env, Lmdb);

/// Its default durability: a sync at each commit.
#[expect(unsafe_code, reason = "heed's way to say that nobody else changes the file")]
fn lmdb(directory: &Path) -> Result<Box<dyn Store>, Failure> {
    let path = directory.join("lmdb");
    std::fs::create_dir(&path)?;
    let mut options = heed::EnvOpenOptions::new();
    options.map_size(1 << 30);
    // SAFETY: the directory was made just now and only this process knows of it.
    let environment = unsafe { options.open(path) }?;
    let mut transaction = environment.write_txn()?;
    let pages = environment.create_database(&mut transaction, None)?;
    transaction.commit()?;
    Ok(Box::new(LmdbStore(environment, pages)))
}

impl Store for LmdbStore {
    fn commit(&mut self, pages: &[(u64, &Page)]) -> Result<(), Failure> {
        let mut transaction = self.0.write_txn()?;
        for (number, page) in pages {
            self.1.put(&mut transaction, number, page.as_slice())?;
        }
        Ok(transaction.commit()?)
    }
}

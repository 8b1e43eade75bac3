//! The persistent heap: sealed, atomic, durable commits of pages and metadata to NVRAM.

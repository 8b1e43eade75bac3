//! Release manifests: hashes, measurements, m-of-n signatures. No I/O in the core.

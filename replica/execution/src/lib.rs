//! Canister execution: wasmtime, the system API, messages, the management canister.

//! Installing, reinstalling and upgrading code.

use candid::{CandidType, Principal};
use ic_management_canister_types::{
    CanisterIdRecord, CanisterInstallMode, ChunkHash, InstallChunkedCodeArgs, UpgradeFlags, UploadChunkArgs,
    WasmMemoryPersistence,
};
use serde::Deserialize;
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use super::{Done, decode, encode, not_found, nothing};
use crate::api::{ErrorCode, Reject};
use crate::engine::{Engine, Kept, NewCode};
use crate::instance::{Code, Entry, START_ENTRY};
use crate::state::{ModuleRecord, Request, World};
use crate::store::PAGE;
use crate::syscalls::{Call, Mode};

/// Largest chunk, in bytes.
const MAX_CHUNK: usize = 1 << 20;
/// Most chunks that a canister stores.
const MAX_CHUNKS: usize = 100;

/// The argument of `install_code`. The types crate's own decodes the module byte by byte, which is slow.
#[derive(CandidType, Deserialize)]
struct InstallCode {
    mode: CanisterInstallMode,
    canister_id: Principal,
    wasm_module: ByteBuf,
    arg: ByteBuf,
}

/// An installation, however the module arrived.
struct Install {
    mode: CanisterInstallMode,
    canister: Principal,
    sender: Principal,
    module: Vec<u8>,
    arg: Vec<u8>,
}

impl Engine {
    pub(super) fn install_code(&mut self, request: &Request) -> Result<Done, Reject> {
        let InstallCode { mode, canister_id, wasm_module, arg } = decode(&request.arg)?;
        let (module, arg) = (wasm_module.into_vec(), arg.into_vec());
        let install = Install { mode, canister: canister_id, sender: request.caller, module, arg };
        self.install(install, request)
    }

    pub(super) fn install_chunked_code(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: InstallChunkedCodeArgs = decode(&request.arg)?;
        let fault = |text: String| Reject::new(ErrorCode::InvalidManagementPayload, text);
        let store = args.store_canister.unwrap_or(args.target_canister);
        let number = self.chunk_store(store, request.caller)?;
        let mut module = Vec::new();
        for ChunkHash { hash } in &args.chunk_hashes_list {
            let key = <[u8; 32]>::try_from(hash.as_slice()).ok();
            let chunk = key.and_then(|hash| self.world.state.chunks.get(&(number, hash)));
            let chunk = chunk
                .ok_or_else(|| fault(format!("A chunk is not stored in canister {store}; upload it")))?;
            if module.len() + chunk.len() > self.world.config.limits.module_bytes as usize {
                return Err(fault("The chunks make too large a module".to_owned()));
            }
            module.extend_from_slice(chunk);
        }
        if Sha256::digest(&module)[..] != args.wasm_module_hash[..] {
            return Err(fault("The chunks do not make the module whose hash is given".to_owned()));
        }
        let canister = args.target_canister;
        let install = Install { mode: args.mode, canister, sender: request.caller, module, arg: args.arg };
        self.install(install, request)
    }

    fn install(&mut self, install: Install, request: &Request) -> Result<Done, Reject> {
        let canister = install.canister;
        match self.try_install(install) {
            Ok(kept) => Ok(Done { kept, ..Done::reply(request, nothing()) }),
            Err(reject) => {
                self.roll_back(canister);
                Err(reject)
            }
        }
    }

    /// All steps are one message: what the old program's `pre_upgrade` did is undone if a later step fails.
    fn try_install(&mut self, install: Install) -> Result<Kept, Reject> {
        let Install { mode, canister: id, sender, module, arg } = install;
        let installed = self.world.controlled(id, sender)?.module.is_some();
        let invalid = |why: String| {
            Reject::new(
                ErrorCode::CanisterInvalidWasm,
                format!("Error from Canister {id}: Canister's Wasm module is not valid: {why}"),
            )
        };
        let limits = self.world.config.limits.clone();
        let hash: [u8; 32] = Sha256::digest(&module).into();
        let program = self.queries.prepare(hash, &module).map_err(|error| invalid(error.to_string()))?;
        let mut code = Code::new(program);
        let upgrade = match mode {
            CanisterInstallMode::Install if installed => {
                let text = format!(
                    "Canister {id} cannot be installed because the canister is not empty; use mode reinstall or upgrade"
                );
                return Err(Reject::new(ErrorCode::CanisterNonEmpty, text));
            }
            CanisterInstallMode::Install | CanisterInstallMode::Reinstall => None,
            CanisterInstallMode::Upgrade(flags) => Some(flags.unwrap_or_default()),
        };
        let keep = match upgrade {
            Some(flags) => self.keeps_memory(id, flags, &code)?,
            None => false,
        };
        code.program.compile(&self.wasm).map_err(invalid)?;

        let mut budget = limits.install_instructions;
        if let Some(flags) = upgrade
            && !flags.skip_pre_upgrade.unwrap_or(false)
        {
            let mut call = Call::new(Mode::PreUpgrade, id, sender);
            call.limit = budget;
            let ran = self.run_code(Entry::Export("canister_pre_upgrade"), call);
            budget -= ran.instructions;
            ran.result?;
        }

        let canister = self.world.state.canisters.get_mut(&id).ok_or_else(|| not_found(id))?;
        canister.module = Some(ModuleRecord { hash, bytes: module.len() as u64 });
        let (spaces, stable) = (canister.instance_spaces(), canister.stable_space());
        if upgrade.is_none() {
            canister.certified_data.clear();
        }
        let progress = self.world.state.progress.get_mut(&id).ok_or_else(|| not_found(id))?;
        // A timer of the old program means nothing to the new one.
        progress.timer_ns = 0;
        progress.version += 1;
        if upgrade.is_none() {
            progress.stable_pages = 0;
            self.world.overlay.erase(stable);
        }
        let current = self.current.clone();
        // Memory that is kept must be there before the start function runs, and no data segment over it.
        match self.codes.get_mut(&id).filter(|_| keep) {
            Some(old) => {
                code.instantiate_keeping(&self.wasm, &limits, current, spaces, old).map_err(invalid)?
            }
            None => {
                code.instantiate(&self.wasm, &limits, current, spaces).map_err(invalid)?;
                code.write_data().map_err(invalid)?;
            }
        }
        let second = if upgrade.is_some() { "canister_post_upgrade" } else { "canister_init" };
        for (entry, mode) in [(START_ENTRY, Mode::Start), (Entry::Export(second), Mode::Init)] {
            let mut call = Call::new(mode, id, sender);
            call.limit = budget;
            if mode == Mode::Init {
                call.arg.clone_from(&arg);
            }
            let ran = code.run(&self.wasm, &mut self.world, &self.current, entry, call);
            self.instructions = self.instructions.saturating_add(ran.instructions);
            budget -= ran.instructions;
            ran.result?;
        }
        let mut module = module;
        module.resize(module.len().next_multiple_of(PAGE), 0);
        Ok(Kept::Code(Box::new(NewCode { canister: id, code, module, new_memory: !keep })))
    }

    /// Whether an upgrade keeps the wasm memory. An upgrade that would lose it by omission is refused.
    fn keeps_memory(&mut self, id: Principal, flags: UpgradeFlags, new: &Code) -> Result<bool, Reject> {
        let refuse = |text: &str| {
            let text = format!("Error from Canister {id}: {text}");
            Err(Reject::new(ErrorCode::CanisterContractViolation, text))
        };
        let Some(old) = self.codes.get(&id) else {
            let text = format!("Canister {id} has no Wasm module to upgrade; use mode install");
            return Err(Reject::new(ErrorCode::CanisterWasmModuleNotFound, text));
        };
        let old_keeps = old.program.prepared.keeps_memory();
        match flags.wasm_memory_persistence {
            None if old_keeps => refuse(
                "Missing upgrade option: Enhanced orthogonal persistence requires the `wasm_memory_persistence` upgrade option.",
            ),
            None | Some(WasmMemoryPersistence::Replace) => Ok(false),
            Some(WasmMemoryPersistence::Keep) if !new.program.prepared.keeps_memory() => refuse(
                "Invalid upgrade option: The `wasm_memory_persistence: opt Keep` upgrade option requires that the new canister module supports enhanced orthogonal persistence.",
            ),
            Some(WasmMemoryPersistence::Keep) => {
                // The old memory may not have been read since the start of the engine.
                self.attach(id)?;
                Ok(true)
            }
        }
    }

    /// The number of the canister whose chunks `caller` may use: a canister's own, or one that it controls.
    fn chunk_store(&mut self, id: Principal, caller: Principal) -> Result<u64, Reject> {
        if caller == id {
            return Ok(self.world.state.canisters.get(&id).ok_or_else(|| not_found(id))?.number);
        }
        Ok(self.world.controlled(id, caller)?.number)
    }

    pub(super) fn upload_chunk(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: UploadChunkArgs = decode(&request.arg)?;
        let number = self.chunk_store(args.canister_id, request.caller)?;
        if args.chunk.len() > MAX_CHUNK || self.world.chunks_of(number).len() >= MAX_CHUNKS {
            let text = format!("A canister stores at most {MAX_CHUNKS} chunks of at most {MAX_CHUNK} bytes");
            return Err(Reject::new(ErrorCode::InvalidManagementPayload, text));
        }
        let hash: [u8; 32] = Sha256::digest(&args.chunk).into();
        self.world.state.chunks.insert((number, hash), args.chunk.into());
        Ok(Done::reply(request, encode(ChunkHash { hash: hash.to_vec() })))
    }

    pub(super) fn stored_chunks(&mut self, request: &Request) -> Result<Done, Reject> {
        let CanisterIdRecord { canister_id } = decode(&request.arg)?;
        let number = self.chunk_store(canister_id, request.caller)?;
        let chunks = self.world.chunks_of(number).into_iter().map(|hash| ChunkHash { hash: hash.to_vec() });
        Ok(Done::reply(request, encode(chunks.collect::<Vec<_>>())))
    }

    pub(super) fn clear_chunk_store(&mut self, request: &Request) -> Result<Done, Reject> {
        let CanisterIdRecord { canister_id } = decode(&request.arg)?;
        let number = self.chunk_store(canister_id, request.caller)?;
        self.world.remove_chunks(number);
        Ok(Done::reply(request, nothing()))
    }
}

impl World {
    fn chunks_of(&self, number: u64) -> Vec<[u8; 32]> {
        let chunks = self.state.chunks.iter().map(|((owner, hash), _)| (*owner, *hash));
        chunks.filter(|(owner, _)| *owner == number).map(|(_, hash)| hash).collect()
    }

    pub(super) fn remove_chunks(&mut self, number: u64) {
        for hash in self.chunks_of(number) {
            self.state.chunks.remove(&(number, hash));
        }
    }
}

//! Canister snapshots: what a canister consists of, kept beside it and put back on demand. Pages are shared until
//! one side writes, so taking and loading cost next to nothing, whatever the size.

use candid::Principal;
use ic_management_canister_types::{
    CanisterIdRecord, DeleteCanisterSnapshotArgs, LoadCanisterSnapshotArgs, Snapshot,
    TakeCanisterSnapshotArgs,
};

use super::{Done, decode, encode, not_found, nothing};
use crate::api::{ErrorCode, Reject};
use crate::engine::{CodeChange, Engine, Kept, SpaceChange, read_module};
use crate::state::{Canister, FIRST_SNAPSHOT, Progress, Request, SnapshotRecord, World};
use crate::store::PAGE;

/// Most snapshots of one canister.
const MAX_SNAPSHOTS: usize = 10;

fn snapshot_id(canister: Principal, number: u64) -> Vec<u8> {
    [&number.to_be_bytes()[..], canister.as_slice()].concat()
}

fn described(canister: Principal, number: u64, record: &SnapshotRecord) -> Snapshot {
    Snapshot {
        id: snapshot_id(canister, number),
        taken_at_timestamp: record.taken_at_ns,
        total_size: record.total_size,
    }
}

fn refused(text: impl Into<String>) -> Reject {
    Reject::new(ErrorCode::InvalidManagementPayload, text)
}

impl World {
    /// Numbers of a canister's snapshots, oldest first.
    pub(super) fn snapshots_of(&self, number: u64) -> Vec<u64> {
        let all = self.state.snapshots.iter().map(|((owner, snapshot), _)| (*owner, *snapshot));
        let mut mine: Vec<u64> = all.filter(|(owner, _)| *owner == number).map(|(_, it)| it).collect();
        mine.sort_unstable();
        mine
    }

    /// The number of a canister's snapshot with this id.
    fn snapshot_number(&self, canister: Principal, owner: u64, id: &[u8]) -> Result<u64, Reject> {
        let number = id.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        let number = number.filter(|number| snapshot_id(canister, *number) == id);
        number
            .filter(|number| self.state.snapshots.get(&(owner, *number)).is_some())
            .ok_or_else(|| refused(format!("Canister {canister} has no such snapshot")))
    }

    fn copy_chunks(&mut self, from: u64, to: u64) {
        let chunks = self.state.chunks.iter().filter(|((owner, _), _)| *owner == from);
        let chunks: Vec<_> = chunks.map(|((_, hash), chunk)| (*hash, chunk.clone())).collect();
        for (hash, chunk) in chunks {
            self.state.chunks.insert((to, hash), chunk);
        }
    }

    /// Removes a snapshot's records; its spaces are the caller's to remove.
    pub(super) fn forget_snapshot(&mut self, owner: u64, number: u64) -> SpaceChange {
        self.state.snapshots.remove(&(owner, number));
        self.remove_chunks(number);
        SpaceChange::Delete { number }
    }

    fn size_of(&self, canister: &Canister, progress: &Progress) -> Result<u64, Reject> {
        let memory = self.snapshot.space_pages(canister.memory_space());
        let memory =
            memory.map_err(|error| Reject::new(ErrorCode::SubnetOversubscribed, error.to_string()))?;
        let chunks = self.state.chunks.iter().filter(|((owner, _), _)| *owner == canister.number);
        let chunks: u64 = chunks.map(|(_, chunk)| chunk.len() as u64).sum();
        let module = canister.module.as_ref().map_or(0, |module| module.bytes);
        Ok(memory.unwrap_or(0) * PAGE as u64
            + progress.stable_pages * crate::state::WASM_PAGE
            + progress.globals.len() as u64 * 8
            + canister.certified_data.len() as u64
            + module
            + chunks)
    }
}

impl Engine {
    pub(super) fn take_snapshot(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: TakeCanisterSnapshotArgs = decode(&request.arg)?;
        let id = args.canister_id;
        let canister = self.world.controlled(id, request.caller)?.clone();
        let owner = canister.number;
        let Some(module) = canister.module.clone() else {
            let text = format!("Canister {id} contains no Wasm module, so there is nothing to take");
            return Err(Reject::new(ErrorCode::CanisterWasmModuleNotFound, text));
        };
        let replaced = match &args.replace_snapshot {
            Some(replaced) => Some(self.world.snapshot_number(id, owner, replaced)?),
            None => None,
        };
        if replaced.is_none() && self.world.snapshots_of(owner).len() >= MAX_SNAPSHOTS {
            return Err(refused(format!(
                "Canister {id} has {MAX_SNAPSHOTS} snapshots, which is the most; delete or replace one"
            )));
        }
        let progress = self.world.state.progress.get(&id).cloned().unwrap_or_default();
        let total_size = self.world.size_of(&canister, &progress)?;
        let record = SnapshotRecord {
            module,
            globals: progress.globals,
            stable_pages: progress.stable_pages,
            certified_data: canister.certified_data.clone(),
            taken_at_ns: self.world.now_ns,
            total_size,
        };
        let number = FIRST_SNAPSHOT + self.world.state.fresh_id();
        let reply = described(id, number, &record);
        self.world.state.snapshots.insert((owner, number), record);
        self.world.copy_chunks(owner, number);
        let mut changes = vec![SpaceChange::Clone { from: owner, to: number }];
        changes.extend(replaced.map(|replaced| self.world.forget_snapshot(owner, replaced)));
        let mut code = CodeChange::Same;
        if args.uninstall_code.unwrap_or(false) {
            self.world.empty(id);
            self.world.close_contexts(id);
            changes.push(SpaceChange::Delete { number: owner });
            code = CodeChange::Gone(id);
        }
        Ok(Done { kept: Kept::Spaces(changes, code), ..Done::reply(request, encode(reply)) })
    }

    pub(super) fn load_snapshot(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: LoadCanisterSnapshotArgs = decode(&request.arg)?;
        let id = args.canister_id;
        let owner = self.world.controlled(id, request.caller)?.number;
        let number = self.world.snapshot_number(id, owner, &args.snapshot_id)?;
        let record = self.world.state.snapshots.get(&(owner, number)).cloned();
        let record = record.ok_or_else(|| not_found(id))?;
        // Of a canister like this one, but for the number, hence for where the module lies.
        let source = Canister { module: Some(record.module.clone()), ..Canister::new(number, [].into(), 0) };
        let broken = |why: String| Reject::new(ErrorCode::CanisterInvalidWasm, why);
        let module = read_module(&self.world.snapshot, &source).map_err(|error| broken(error.to_string()))?;
        let program = self.queries.prepare(record.module.hash, &module.unwrap_or_default());
        let program = program.map_err(|error| broken(error.to_string()))?;
        let canister = self.world.controlled(id, request.caller)?;
        canister.module = Some(record.module);
        canister.certified_data = record.certified_data;
        if let Some(progress) = self.world.state.progress.get_mut(&id) {
            let (globals, stable_pages) = (record.globals, record.stable_pages);
            *progress = Progress { version: progress.version + 1, timer_ns: 0, stable_pages, globals };
        }
        self.world.remove_chunks(owner);
        self.world.copy_chunks(number, owner);
        let changes = vec![SpaceChange::Clone { from: number, to: owner }];
        let kept = Kept::Spaces(changes, CodeChange::New(id, program));
        Ok(Done { kept, ..Done::reply(request, nothing()) })
    }

    pub(super) fn list_snapshots(&mut self, request: &Request) -> Result<Done, Reject> {
        let CanisterIdRecord { canister_id: id } = decode(&request.arg)?;
        let owner = self.world.controlled(id, request.caller)?.number;
        let numbers = self.world.snapshots_of(owner);
        let snapshots = &self.world.state.snapshots;
        let list = numbers.iter().filter_map(|number| {
            snapshots.get(&(owner, *number)).map(|record| described(id, *number, record))
        });
        Ok(Done::reply(request, encode(list.collect::<Vec<_>>())))
    }

    pub(super) fn delete_snapshot(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: DeleteCanisterSnapshotArgs = decode(&request.arg)?;
        let id = args.canister_id;
        let owner = self.world.controlled(id, request.caller)?.number;
        let number = self.world.snapshot_number(id, owner, &args.snapshot_id)?;
        let changes = vec![self.world.forget_snapshot(owner, number)];
        Ok(Done { kept: Kept::Spaces(changes, CodeChange::Same), ..Done::reply(request, nothing()) })
    }
}

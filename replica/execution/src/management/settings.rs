//! Settings of canisters and their status.

use std::collections::BTreeSet;
use std::sync::Arc;

use candid::{Nat, Principal};
use ic_management_canister_types::{
    CanisterIdRecord, CanisterInfoArgs, CanisterInfoResult, CanisterSettings, CanisterStatusResult,
    CanisterStatusType, DefiniteCanisterSettings, EnvironmentVariable, LogVisibility, MemoryMetrics,
    QueryStats, UpdateSettingsArgs,
};

use super::{Done, decode, encode, not_found, nothing};
use crate::api::{ErrorCode, Reject};
use crate::engine::Engine;
use crate::instance::Program;
use crate::state::{Canister, Request, Run, Settings, WASM_PAGE, World};
use crate::store::PAGE;

const MAX_CONTROLLERS: usize = 10;
const MAX_VARIABLES: usize = 20;
/// Most bytes of a variable's name or value.
const MAX_VARIABLE: usize = 128;
/// Seconds; the Internet Computer's default of 30 days, shown although nothing freezes.
const FREEZING_THRESHOLD: u128 = 2_592_000;

fn invalid(text: impl Into<String>) -> Reject {
    Reject::new(ErrorCode::InvalidManagementPayload, text)
}

/// Applies those settings that are given.
pub(super) fn apply(canister: &mut Canister, settings: &CanisterSettings) -> Result<(), Reject> {
    if let Some(controllers) = &settings.controllers {
        if controllers.len() > MAX_CONTROLLERS {
            return Err(invalid(format!("A canister has at most {MAX_CONTROLLERS} controllers")));
        }
        canister.controllers = BTreeSet::from_iter(controllers.iter().copied());
    }
    let numbers = [
        ("compute_allocation", &settings.compute_allocation, 100),
        ("memory_allocation", &settings.memory_allocation, 1 << 48),
        ("freezing_threshold", &settings.freezing_threshold, u128::from(u64::MAX)),
        ("reserved_cycles_limit", &settings.reserved_cycles_limit, u128::MAX),
        ("minimum_incoming_canister_call_cycles", &settings.minimum_incoming_canister_call_cycles, u128::MAX),
        ("log_memory_limit", &settings.log_memory_limit, 1 << 48),
        ("wasm_memory_limit", &settings.wasm_memory_limit, 1 << 48),
        ("wasm_memory_threshold", &settings.wasm_memory_threshold, u128::from(u64::MAX)),
    ];
    for (name, value, most) in numbers {
        let Some(value) = value else { continue };
        match u128::try_from(value.0.clone()) {
            Ok(value) if value <= most => canister.settings.numbers.insert(name.to_owned(), value),
            _ => return Err(invalid(format!("{name} must be at most {most}, not {value}"))),
        };
    }
    if let Some(visibility) = &settings.log_visibility {
        canister.settings.public_logs = *visibility == LogVisibility::Public;
    }
    if let Some(variables) = &settings.environment_variables {
        let long =
            |variable: &EnvironmentVariable| variable.name.len().max(variable.value.len()) > MAX_VARIABLE;
        if variables.len() > MAX_VARIABLES || variables.iter().any(long) {
            return Err(invalid(format!(
                "At most {MAX_VARIABLES} environment variables of at most {MAX_VARIABLE} bytes are allowed"
            )));
        }
        let pairs = variables.iter().map(|variable| (variable.name.clone(), variable.value.clone()));
        canister.settings.environment = pairs.collect();
        if canister.settings.environment.len() < variables.len() {
            return Err(invalid("An environment variable is given twice"));
        }
    }
    Ok(())
}

fn definite(canister: &Canister) -> DefiniteCanisterSettings {
    let Settings { numbers, public_logs, environment } = &canister.settings;
    let number = |name: &str, default: u128| Nat::from(numbers.get(name).copied().unwrap_or(default));
    let variables = environment.iter();
    DefiniteCanisterSettings {
        controllers: canister.controllers.iter().copied().collect(),
        compute_allocation: number("compute_allocation", 0),
        memory_allocation: number("memory_allocation", 0),
        freezing_threshold: number("freezing_threshold", FREEZING_THRESHOLD),
        reserved_cycles_limit: number("reserved_cycles_limit", 0),
        minimum_incoming_canister_call_cycles: number("minimum_incoming_canister_call_cycles", 0),
        log_visibility: if *public_logs { LogVisibility::Public } else { LogVisibility::Controllers },
        log_memory_limit: number("log_memory_limit", 0),
        wasm_memory_limit: number("wasm_memory_limit", 0),
        wasm_memory_threshold: number("wasm_memory_threshold", 0),
        environment_variables: variables
            .map(|(name, value)| EnvironmentVariable { name: name.clone(), value: value.clone() })
            .collect(),
        ..DefiniteCanisterSettings::default()
    }
}

impl Engine {
    pub(super) fn update_settings(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: UpdateSettingsArgs = decode(&request.arg)?;
        let canister = self.world.controlled(args.canister_id, request.caller)?;
        apply(canister, &args.settings)?;
        if let Some(progress) = self.world.state.progress.get_mut(&args.canister_id) {
            progress.version += 1;
        }
        Ok(Done::reply(request, nothing()))
    }

    pub(super) fn info(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: CanisterInfoArgs = decode(&request.arg)?;
        let id = args.canister_id;
        let canister = self.world.state.canisters.get(&id).ok_or_else(|| not_found(id))?;
        // The history of changes is not kept.
        let info = CanisterInfoResult {
            total_num_changes: 0,
            recent_changes: Vec::new(),
            module_hash: canister.module.as_ref().map(|module| module.hash.to_vec()),
            controllers: canister.controllers.iter().copied().collect(),
        };
        Ok(Done::reply(request, encode(info)))
    }
}

impl World {
    /// The reply of `canister_status`, which a canister may ask of itself too.
    pub(crate) fn status_reply(
        &mut self,
        caller: Principal,
        arg: &[u8],
        program: impl Fn(&Principal) -> Option<Arc<Program>>,
    ) -> Result<Vec<u8>, Reject> {
        let CanisterIdRecord { canister_id: id } = decode(arg)?;
        if caller != id {
            self.controlled(id, caller)?;
        }
        let canister = self.state.canisters.get(&id).ok_or_else(|| not_found(id))?;
        let progress = self.state.progress.get(&id).ok_or_else(|| not_found(id))?;
        let bytes_of = |space| match self.snapshot.space_pages(space) {
            Ok(pages) => Ok(pages.unwrap_or(0) * PAGE as u64),
            Err(error) => Err(Reject::new(ErrorCode::SubnetOversubscribed, error.to_string())),
        };
        let sections = program(&id).map_or(0, |program| {
            let sections = program.prepared.metadata.iter();
            sections.map(|(name, section)| (name.len() + section.content.len()) as u64).sum()
        });
        let chunks = self.state.chunks.iter();
        let chunks = chunks.filter(|((number, _), _)| *number == canister.number);
        let (memory, stable) = (bytes_of(canister.memory_space())?, progress.stable_pages * WASM_PAGE);
        let snapshots = self.state.snapshots.iter();
        let snapshots = snapshots.filter(|((owner, _), _)| *owner == canister.number);
        let snapshots: u64 = snapshots.map(|(_, record)| record.total_size).sum();
        let globals = progress.globals.len() as u64 * 8;
        let module = canister.module.as_ref().map_or(0, |module| module.bytes);
        let chunks: u64 = chunks.map(|(_, chunk)| chunk.len() as u64).sum();
        let status = CanisterStatusResult {
            status: match canister.run {
                Run::Running => CanisterStatusType::Running,
                Run::Stopping(_) => CanisterStatusType::Stopping,
                Run::Stopped => CanisterStatusType::Stopped,
            },
            ready_for_migration: false,
            version: progress.version,
            settings: definite(canister),
            module_hash: canister.module.as_ref().map(|module| module.hash.to_vec()),
            memory_size: Nat::from(memory + stable + globals + module + chunks + snapshots),
            memory_metrics: MemoryMetrics {
                wasm_memory_size: memory.into(),
                stable_memory_size: stable.into(),
                global_memory_size: globals.into(),
                wasm_binary_size: module.into(),
                custom_sections_size: Nat::from(sections),
                canister_history_size: 0u32.into(),
                wasm_chunk_store_size: chunks.into(),
                snapshots_size: snapshots.into(),
                log_memory_store_size: 0u32.into(),
            },
            cycles: canister.cycles.into(),
            reserved_cycles: 0u32.into(),
            idle_cycles_burned_per_day: 0u32.into(),
            query_stats: QueryStats {
                num_calls_total: 0u32.into(),
                num_instructions_total: 0u32.into(),
                request_payload_bytes_total: 0u32.into(),
                response_payload_bytes_total: 0u32.into(),
            },
        };
        self.discard();
        Ok(encode(status))
    }
}

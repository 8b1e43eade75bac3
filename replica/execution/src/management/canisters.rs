//! The life of canisters: made, started, stopped, emptied, deleted.

use std::collections::BTreeSet;

use candid::Principal;
use ic_management_canister_types::{
    CanisterIdRecord, CanisterSettings, CreateCanisterArgs, DepositCyclesArgs,
    ProvisionalCreateCanisterWithCyclesArgs, ProvisionalTopUpCanisterArgs, StartCanisterArgs,
    StopCanisterArgs, UninstallCodeArgs,
};

use super::{Done, decode, encode, not_found, nothing, settings};
use crate::api::{ErrorCode, Reject};
use crate::engine::{CodeChange, Engine, Kept, SpaceChange};
use crate::state::{Progress, Request, Run, Waiting};

/// Cycles of a canister that is made without saying how many.
const DEFAULT_CYCLES: u128 = 100_000_000_000_000;

/// The number in the id of a canister, if the id has the form that [`crate::canister_id`] gives.
fn number_of(id: Principal) -> Option<u64> {
    let number = u64::from_be_bytes(*id.as_slice().first_chunk()?);
    (crate::canister_id(number) == id).then_some(number)
}

impl Engine {
    pub(super) fn create(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: CreateCanisterArgs = decode(&request.arg)?;
        let reply = self.create_with(request.caller, args.settings, request.cycles, None)?;
        Ok(Done { refund: 0, ..Done::reply(request, reply) })
    }

    pub(super) fn provisional_create(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: ProvisionalCreateCanisterWithCyclesArgs = decode(&request.arg)?;
        let cycles = match args.amount {
            Some(amount) => u128::try_from(amount.0).map_err(|_| too_many())?,
            None => DEFAULT_CYCLES,
        };
        let reply = self.create_with(request.caller, args.settings, cycles, args.specified_id)?;
        Ok(Done::reply(request, reply))
    }

    fn create_with(
        &mut self,
        caller: Principal,
        settings: Option<CanisterSettings>,
        cycles: u128,
        wanted: Option<Principal>,
    ) -> Result<Vec<u8>, Reject> {
        let fault = |text: String| Reject::new(ErrorCode::InvalidManagementPayload, text);
        let number = match wanted {
            None => None,
            Some(id) => {
                Some(number_of(id).ok_or_else(|| fault(format!("{id} is not the id of a canister")))?)
            }
        };
        let Some(id) = self.world.create_canister(BTreeSet::from([caller]), cycles, number) else {
            return Err(fault("The id is taken, or not one of this subnet's canister range".to_owned()));
        };
        if let (Some(settings), Some(canister)) = (settings, self.world.state.canisters.get_mut(&id)) {
            settings::apply(canister, &settings)?;
        }
        Ok(encode(CanisterIdRecord { canister_id: id }))
    }

    pub(super) fn provisional_top_up(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: ProvisionalTopUpCanisterArgs = decode(&request.arg)?;
        let amount = u128::try_from(args.amount.0).map_err(|_| too_many())?;
        self.add_cycles(args.canister_id, amount)?;
        Ok(Done::reply(request, nothing()))
    }

    pub(super) fn deposit(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: DepositCyclesArgs = decode(&request.arg)?;
        self.add_cycles(args.canister_id, request.cycles)?;
        Ok(Done { refund: 0, ..Done::reply(request, nothing()) })
    }

    fn add_cycles(&mut self, id: Principal, amount: u128) -> Result<(), Reject> {
        let canister = self.world.state.canisters.get_mut(&id).ok_or_else(|| not_found(id))?;
        canister.cycles = canister.cycles.checked_add(amount).ok_or_else(too_many)?;
        Ok(())
    }

    pub(super) fn start_canister(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: StartCanisterArgs = decode(&request.arg)?;
        let canister = self.world.controlled(args.canister_id, request.caller)?;
        if let Run::Stopping(waiting) = std::mem::replace(&mut canister.run, Run::Running) {
            for waiting in waiting {
                let text = format!("Canister {} was started while it was stopping", args.canister_id);
                let reject = Reject::new(ErrorCode::CanisterStoppingCancelled, text);
                self.world.respond(&waiting.origin, Err(reject), waiting.cycles);
            }
        }
        Ok(Done::reply(request, nothing()))
    }

    pub(super) fn stop_canister(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: StopCanisterArgs = decode(&request.arg)?;
        let canister = self.world.controlled(args.canister_id, request.caller)?;
        let waiting = Waiting { origin: request.origin.clone(), cycles: request.cycles };
        match &mut canister.run {
            Run::Stopped => return Ok(Done::reply(request, nothing())),
            Run::Stopping(others) => others.push(waiting),
            Run::Running => canister.run = Run::Stopping(vec![waiting]),
        }
        self.world.complete_stop(args.canister_id);
        Ok(Done { reply: None, kept: Kept::Nothing, refund: 0 })
    }

    pub(super) fn delete(&mut self, request: &Request) -> Result<Done, Reject> {
        let CanisterIdRecord { canister_id: id } = decode(&request.arg)?;
        let canister = self.world.controlled(id, request.caller)?;
        if !matches!(canister.run, Run::Stopped) {
            let text = format!("Canister {id} must be stopped before it is deleted");
            return Err(Reject::new(ErrorCode::CanisterNotStopped, text));
        }
        let number = canister.number;
        self.world.state.canisters.remove(&id);
        self.world.state.progress.remove(&id);
        self.world.remove_chunks(number);
        let mut changes = vec![SpaceChange::Delete { number }];
        for snapshot in self.world.snapshots_of(number) {
            changes.push(self.world.forget_snapshot(number, snapshot));
        }
        let kept = Kept::Spaces(changes, CodeChange::Gone(id));
        Ok(Done { kept, ..Done::reply(request, nothing()) })
    }

    pub(super) fn uninstall(&mut self, request: &Request) -> Result<Done, Reject> {
        let args: UninstallCodeArgs = decode(&request.arg)?;
        let id = args.canister_id;
        let canister = self.world.controlled(id, request.caller)?;
        let number = canister.number;
        self.world.empty(id);
        self.world.close_contexts(id);
        let kept = Kept::Spaces(vec![SpaceChange::Delete { number }], CodeChange::Gone(id));
        Ok(Done { kept, ..Done::reply(request, nothing()) })
    }
}

impl crate::state::World {
    /// Takes the code of a canister away, and what belongs to it.
    pub(super) fn empty(&mut self, id: Principal) {
        if let Some(canister) = self.state.canisters.get_mut(&id) {
            canister.module = None;
            canister.certified_data.clear();
        }
        if let Some(progress) = self.state.progress.get_mut(&id) {
            *progress = Progress { version: progress.version + 1, ..Progress::default() };
        }
    }

    /// Answers all open calls of a canister whose code is gone; responses to its own calls find nothing.
    pub(super) fn close_contexts(&mut self, id: Principal) {
        let open = self.state.contexts.iter().filter(|(_, context)| context.canister == id);
        let open: Vec<u64> = open.map(|(key, _)| *key).collect();
        for key in open {
            if let Some(context) = self.state.contexts.remove(&key)
                && !context.answered
            {
                let text = format!("Canister {id} was uninstalled");
                let reject = Reject::new(ErrorCode::CanisterWasmModuleNotFound, text);
                self.respond(&context.origin, Err(reject), context.cycles);
            }
        }
        let waiting = self.state.callbacks.iter().filter(|(_, callback)| callback.canister == id);
        let waiting: Vec<u64> = waiting.map(|(key, _)| *key).collect();
        for key in waiting {
            self.state.callbacks.remove(&key);
        }
        self.complete_stop(id);
    }
}

fn too_many() -> Reject {
    Reject::new(ErrorCode::InvalidManagementPayload, "An amount of cycles must fit 128 bits")
}

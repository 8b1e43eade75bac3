//! The management canister, `aaaaa-aa`: what controllers do with canisters, and what programs ask of the engine.

mod canisters;
mod install;
mod settings;
mod snapshots;

use candid::utils::{ArgumentDecoder, decode_args_with_config};
use candid::{CandidType, DecoderConfig, Principal};
use ic_management_canister_types::ProvisionalCreateCanisterWithCyclesArgs;
use serde::Deserialize;
use serde_bytes::ByteBuf;

use crate::api::{ErrorCode, Reject};
use crate::engine::{Engine, Kept};
use crate::state::{Canister, Origin, Request, World};

/// What a method did.
struct Done {
    /// The reply; none if it comes later.
    reply: Option<Vec<u8>>,
    kept: Kept,
    /// Cycles that came with the call and go back.
    refund: u128,
}

impl Done {
    fn reply(request: &Request, reply: Vec<u8>) -> Self {
        Self { reply: Some(reply), kept: Kept::Nothing, refund: request.cycles }
    }
}

/// Methods that anyone may call from outside.
const OPEN: [&str; 2] = ["provisional_create_canister_with_cycles", "provisional_top_up_canister"];
/// Methods that controllers of the canister they name may call, from outside too.
const CONTROLLED: [&str; 15] = [
    "canister_status",
    "clear_chunk_store",
    "delete_canister",
    "delete_canister_snapshot",
    "install_chunked_code",
    "install_code",
    "list_canister_snapshots",
    "load_canister_snapshot",
    "start_canister",
    "stop_canister",
    "stored_chunks",
    "take_canister_snapshot",
    "uninstall_code",
    "update_settings",
    "upload_chunk",
];

/// The canister that a call to the management canister is about: what the URL of the call must name. None if
/// the method may not be called from outside or its argument does not name one; the engine will say so.
pub fn effective_canister_id(method: &str, arg: &[u8]) -> Option<Principal> {
    /// The long fields are named here only because skipping what is not named costs far more than reading it.
    #[derive(CandidType, Deserialize)]
    struct Named {
        canister_id: Option<Principal>,
        target_canister: Option<Principal>,
        wasm_module: Option<ByteBuf>,
        arg: Option<ByteBuf>,
        chunk: Option<ByteBuf>,
    }
    match method {
        // There is no canister yet: the URL names the one wanted, or the management canister.
        "provisional_create_canister_with_cycles" => {
            let args: ProvisionalCreateCanisterWithCyclesArgs = decode(arg).ok()?;
            Some(args.specified_id.unwrap_or(Principal::management_canister()))
        }
        "install_chunked_code" => decode::<Named>(arg).ok()?.target_canister,
        _ if OPEN.contains(&method) || CONTROLLED.contains(&method) => decode::<Named>(arg).ok()?.canister_id,
        _ => None,
    }
}

/// The encoding of an empty result.
pub(crate) fn nothing() -> Vec<u8> {
    encode_args(())
}

fn encode_args(values: impl candid::utils::ArgumentEncoder) -> Vec<u8> {
    #[expect(
        clippy::expect_used,
        reason = "the types are those of the management canister, and all have a form"
    )]
    candid::encode_args(values).expect("the result has a Candid form")
}

fn encode<T: CandidType>(value: T) -> Vec<u8> {
    encode_args((value,))
}

/// Decodes an argument, with work bounded by its length.
fn decode<T: CandidType + for<'a> Deserialize<'a>>(arg: &[u8]) -> Result<T, Reject> {
    let (value,): (T,) = decode_arguments(arg)?;
    Ok(value)
}

fn decode_arguments<T: for<'a> ArgumentDecoder<'a>>(arg: &[u8]) -> Result<T, Reject> {
    let mut config = DecoderConfig::new();
    config.set_decoding_quota(100_000 + 64 * arg.len()).set_skipping_quota(100_000 + 64 * arg.len());
    decode_args_with_config(arg, &config).map_err(|error| {
        let text = format!("Error decoding candid: {error}");
        Reject::new(ErrorCode::InvalidManagementPayload, text)
    })
}

fn not_found(canister: Principal) -> Reject {
    Reject::new(ErrorCode::CanisterNotFound, format!("Canister {canister} not found"))
}

impl World {
    /// The record of a canister that `caller` controls.
    fn controlled(&mut self, canister: Principal, caller: Principal) -> Result<&mut Canister, Reject> {
        let record = self.state.canisters.get(&canister).ok_or_else(|| not_found(canister))?;
        if !record.controllers.contains(&caller) {
            let text =
                format!("Only controllers of canister {canister} can call this method; {caller} is none");
            return Err(Reject::new(ErrorCode::CanisterInvalidController, text));
        }
        self.state.canisters.get_mut(&canister).ok_or_else(|| not_found(canister))
    }
}

impl Engine {
    /// Executes a call to the management canister.
    pub(crate) fn manage(&mut self, request: &Request) -> Result<Kept, Reject> {
        let done = self.dispatch(request)?;
        if let Some(reply) = done.reply {
            self.world.respond(&request.origin, Ok(reply), done.refund);
        }
        Ok(done.kept)
    }

    fn dispatch(&mut self, request: &Request) -> Result<Done, Reject> {
        let method = request.method.as_str();
        let from_outside = matches!(request.origin, Origin::Ingress(_));
        if from_outside && !OPEN.contains(&method) && !CONTROLLED.contains(&method) {
            return Err(unknown(method));
        }
        match method {
            "provisional_create_canister_with_cycles" => self.provisional_create(request),
            "provisional_top_up_canister" => self.provisional_top_up(request),
            "create_canister" => self.create(request),
            "deposit_cycles" => self.deposit(request),
            "canister_status" => {
                let codes = &self.codes;
                let program = |id: &Principal| codes.get(id).map(|code| code.program.clone());
                let reply = self.world.status_reply(request.caller, &request.arg, program)?;
                Ok(Done::reply(request, reply))
            }
            "canister_info" => self.info(request),
            "update_settings" => self.update_settings(request),
            "start_canister" => self.start_canister(request),
            "stop_canister" => self.stop_canister(request),
            "delete_canister" => self.delete(request),
            "uninstall_code" => self.uninstall(request),
            "install_code" => self.install_code(request),
            "install_chunked_code" => self.install_chunked_code(request),
            "upload_chunk" => self.upload_chunk(request),
            "stored_chunks" => self.stored_chunks(request),
            "clear_chunk_store" => self.clear_chunk_store(request),
            "take_canister_snapshot" => self.take_snapshot(request),
            "load_canister_snapshot" => self.load_snapshot(request),
            "list_canister_snapshots" => self.list_snapshots(request),
            "delete_canister_snapshot" => self.delete_snapshot(request),
            "raw_rand" => {
                let () = decode_arguments(&request.arg)?;
                let bytes = (self.randomness)();
                Ok(Done::reply(request, encode(serde_bytes::Bytes::new(&bytes))))
            }
            _ => Err(unknown(method)),
        }
    }

    /// Whether an ingress message to the management canister is to be taken.
    pub(crate) fn accept_management(
        &mut self,
        sender: Principal,
        method: &str,
        arg: &[u8],
    ) -> Result<(), Reject> {
        if OPEN.contains(&method) {
            return Ok(());
        }
        if !CONTROLLED.contains(&method) {
            return Err(unknown(method));
        }
        let Some(canister) = effective_canister_id(method, arg) else {
            let text = format!("The argument of {method} does not name a canister");
            return Err(Reject::new(ErrorCode::InvalidManagementPayload, text));
        };
        let result = self.world.controlled(canister, sender).map(|_| ());
        self.world.discard();
        result
    }
}

pub(crate) fn unknown(method: &str) -> Reject {
    let text = format!("Management canister has no method '{method}', or not for this kind of caller");
    Reject::new(ErrorCode::UnknownManagementMessage, text)
}

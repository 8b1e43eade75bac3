//! Messages: calls, their contexts, and the answers to them.

use candid::Principal;

use crate::api::{ErrorCode, IngressStatus, Reject, RejectCode};
use crate::engine::{Engine, Kept};
use crate::instance::{Entry, Program, Ran};
use crate::prepare::MethodKind;
use crate::state::{
    CallContext, Callback, Canister, Closure, Message, Origin, Request, Response, Run, World,
};
use crate::syscalls::{Call, Mode};

/// Export that runs when a canister's timer is due.
pub(crate) const TIMER: &str = "canister_global_timer";
/// Export that runs from time to time.
pub(crate) const HEARTBEAT: &str = "canister_heartbeat";

/// How long the answer to an ingress message is kept, in ns.
const KEEP_ANSWER_NS: u64 = 300_000_000_000;

impl World {
    /// Gives the answer to whoever waits for it, with the cycles that were not accepted.
    pub(crate) fn respond(&mut self, origin: &Origin, result: Result<Vec<u8>, Reject>, refund: u128) {
        match origin {
            Origin::Ingress(id) => {
                let keep_until_ns = self.now_ns.saturating_add(KEEP_ANSWER_NS);
                if let Some(record) = self.state.statuses.get_mut(id) {
                    record.status = match result {
                        Ok(reply) => IngressStatus::Replied(reply),
                        Err(reject) => IngressStatus::Rejected(reject),
                    };
                    record.keep_until_ns = record.keep_until_ns.max(keep_until_ns);
                }
            }
            Origin::Canister { caller, callback } => {
                let result = result.map(Into::into);
                let response = Response { canister: *caller, callback: *callback, result, refund };
                self.state.enqueue(Message::Response(response));
            }
            Origin::System => {}
        }
    }

    fn open_context(&mut self, canister: Principal, origin: Origin, caller: Principal, cycles: u128) -> u64 {
        let id = self.state.fresh_id();
        let context = CallContext {
            canister,
            origin,
            caller,
            answered: false,
            cycles,
            outstanding: 0,
            instructions: 0,
        };
        self.state.contexts.insert(id, context);
        id
    }

    /// Ends one execution in a call context: passes the answer on, if there is one, and closes the context if
    /// no answer can come any more; `failure` is why, if the execution failed.
    fn finish(&mut self, id: u64, ran: Option<Ran>, failure: Option<Reject>) {
        let Some(context) = self.state.contexts.get_mut(&id) else { return };
        let canister = context.canister;
        let mut answer = None;
        if let Some(ran) = ran {
            context.instructions = context.instructions.saturating_add(ran.instructions);
            answer = ran.call.answer.map(|answer| answer.map_err(rejected));
        }
        let done = context.outstanding == 0;
        if done && !context.answered && answer.is_none() {
            answer = Some(Err(failure.unwrap_or_else(|| {
                let text = format!("Error from Canister {canister}: Canister did not reply to the call");
                Reject::new(ErrorCode::CanisterDidNotReply, text)
            })));
        }
        if let Some(answer) = answer {
            context.answered = true;
            let (origin, refund) = (context.origin.clone(), std::mem::take(&mut context.cycles));
            self.respond(&origin, answer, refund);
        }
        if done {
            self.state.contexts.remove(&id);
            self.state.give_back_id(id);
            self.complete_stop(canister);
        }
    }

    /// Stops a stopping canister once all its calls are answered.
    pub(crate) fn complete_stop(&mut self, id: Principal) {
        let stopping = self.state.canisters.get(&id).is_some_and(|it| matches!(it.run, Run::Stopping(_)));
        if !stopping || self.state.contexts.iter().any(|(_, context)| context.canister == id) {
            return;
        }
        let Some(canister) = self.state.canisters.get_mut(&id) else { return };
        if let Run::Stopping(waiting) = std::mem::replace(&mut canister.run, Run::Stopped) {
            for waiting in waiting {
                self.respond(&waiting.origin, Ok(crate::management::nothing()), waiting.cycles);
            }
        }
    }

    /// Clears the timer that is about to run: it is not tried again, even if it fails.
    pub(crate) fn begin_task(&mut self, canister: Principal, export: &str) {
        let waits = self.state.progress.get(&canister).is_some_and(|progress| progress.timer_ns > 0);
        if export == TIMER
            && waits
            && let Some(progress) = self.state.progress.get_mut(&canister)
        {
            progress.timer_ns = 0;
        }
    }

    /// Takes a response that cannot be executed.
    pub(crate) fn drop_response(&mut self, response: &Response, reject: Reject) {
        if let Some(callback) = self.take_response(response) {
            self.finish(callback.context, None, Some(reject));
        }
    }

    /// Forgets the caller's wait for a response; the refund is the canister's from now on.
    fn take_response(&mut self, response: &Response) -> Option<Callback> {
        let callback = self.state.callbacks.remove(&response.callback);
        if let Some(callback) = &callback
            && let Some(context) = self.state.contexts.get_mut(&callback.context)
        {
            context.outstanding -= 1;
        }
        if response.refund > 0
            && let Some(canister) = self.state.canisters.get_mut(&response.canister)
        {
            canister.cycles = canister.cycles.saturating_add(response.refund);
        }
        callback
    }
}

/// How a method of a canister may be called, if it may at all.
pub(crate) fn method_of(
    id: Principal,
    canister: Option<&Canister>,
    program: Option<&Program>,
    method: &str,
) -> Result<MethodKind, Reject> {
    let Some(canister) = canister else {
        return Err(Reject::new(ErrorCode::CanisterNotFound, format!("Canister {id} not found")));
    };
    let reject = |code, text: String| Err(Reject::new(code, format!("Error from Canister {id}: {text}")));
    match canister.run {
        Run::Running => {}
        Run::Stopping(_) => return reject(ErrorCode::CanisterStopping, "Canister is stopping".into()),
        Run::Stopped => return reject(ErrorCode::CanisterStopped, "Canister is stopped".into()),
    }
    let Some(program) = program else {
        let text = "Attempted to execute a message, but the canister contains no Wasm module".into();
        return reject(ErrorCode::CanisterWasmModuleNotFound, text);
    };
    match program.prepared.methods.get(method) {
        Some(kind) => Ok(*kind),
        None => reject(ErrorCode::CanisterMethodNotFound, format!("Canister has no method '{method}'")),
    }
}

/// The reject that a program asked for.
pub(crate) fn rejected(message: String) -> Reject {
    Reject { code: RejectCode::CanisterReject, message, error_code: ErrorCode::CanisterRejectedMessage }
}

impl Engine {
    /// Executes one message of the queue.
    pub(crate) fn process(&mut self, message: Message) -> Kept {
        match message {
            Message::Request(request) => self.request(request),
            Message::Response(response) => self.response(&response),
            Message::Ingress(ingress) => {
                let id = ingress.request_id;
                if self.world.now_ns > ingress.expiry_ns {
                    let text = "The ingress message expired before it was started; send it again";
                    let reject = Reject::new(ErrorCode::IngressMessageTimeout, text);
                    self.world.respond(&Origin::Ingress(id), Err(reject), 0);
                    return Kept::Nothing;
                }
                let kept = self.request(Request::from(ingress));
                if let Some(record) = self.world.state.statuses.get_mut(&id)
                    && record.status == IngressStatus::Received
                {
                    record.status = IngressStatus::Processing;
                }
                kept
            }
        }
    }

    fn request(&mut self, mut request: Request) -> Kept {
        let result = if request.callee == Principal::management_canister() {
            self.manage(&request)
        } else {
            let arg = std::mem::take(&mut request.arg);
            self.call(&request, arg)
        };
        result.unwrap_or_else(|reject| {
            self.world.discard();
            self.world.respond(&request.origin, Err(reject), request.cycles);
            Kept::Nothing
        })
    }

    /// How a method may be called, if it may at all.
    pub(crate) fn method(&self, canister: Principal, method: &str) -> Result<MethodKind, Reject> {
        let program = self.codes.get(&canister).map(|code| &*code.program);
        method_of(canister, self.world.state.canisters.get(&canister), program, method)
    }

    /// Runs code of a canister that has some.
    pub(crate) fn run_code(&mut self, entry: Entry<'_>, call: Call) -> Ran {
        match self.codes.get_mut(&call.canister) {
            Some(code) => {
                let ran = code.run(&self.wasm, &mut self.world, &self.current, entry, call);
                self.instructions = self.instructions.saturating_add(ran.instructions);
                ran
            }
            None => {
                let reject = Reject::new(ErrorCode::CanisterWasmModuleNotFound, "the canister has no code");
                Ran { call, result: Err(reject), instructions: 0 }
            }
        }
    }

    /// Undoes whatever the current message did, in state, stable memory and the canister's instance.
    pub(crate) fn roll_back(&mut self, canister: Principal) {
        self.world.discard();
        let progress = self.world.state.progress.committed().get(&canister);
        if let (Some(progress), Some(code)) = (progress, self.codes.get_mut(&canister)) {
            code.roll_back(&self.wasm, &self.world.config.limits, &progress.globals);
        }
    }

    fn call(&mut self, request: &Request, arg: Vec<u8>) -> Result<Kept, Reject> {
        let canister = request.callee;
        let (mode, export) = match self.method(canister, &request.method)? {
            MethodKind::Update => (Mode::Update, "canister_update"),
            MethodKind::Query => (Mode::ReplicatedQuery, "canister_query"),
            MethodKind::CompositeQuery => {
                let text = format!(
                    "Error from Canister {canister}: composite query '{}' can be called as a query only",
                    request.method
                );
                return Err(Reject::new(ErrorCode::CanisterMethodNotFound, text));
            }
        };
        let mut call = Call::new(mode, canister, request.caller);
        call.method.clone_from(&request.method);
        call.arg = arg;
        call.limit = self.world.config.limits.update_instructions;
        let context =
            self.world.open_context(canister, request.origin.clone(), request.caller, request.cycles);
        call.context = context;
        let ran = self.run_code(Entry::Export(&format!("{export} {}", request.method)), call);
        if let Err(reject) = &ran.result {
            self.roll_back(canister);
            return Err(reject.clone());
        }
        if mode == Mode::Update {
            self.world.finish(context, Some(ran), None);
            return Ok(Kept::Memory(canister));
        }
        // A query leaves no trace, even when it is called as an update.
        self.roll_back(canister);
        let context =
            self.world.open_context(canister, request.origin.clone(), request.caller, request.cycles);
        self.world.finish(context, Some(ran), None);
        Ok(Kept::Nothing)
    }

    fn response(&mut self, response: &Response) -> Kept {
        // None if the canister lost its code meanwhile.
        let Some(callback) = self.world.take_response(response) else { return Kept::Nothing };
        let (canister, context) = (response.canister, callback.context);
        let (mode, closure) = match &response.result {
            Ok(_) => (Mode::ReplyCallback, callback.reply),
            Err(_) => (Mode::RejectCallback, callback.reject),
        };
        let ran = self.run_callback(mode, closure, &callback, response);
        let Err(failure) = ran.result.clone() else {
            self.world.finish(context, Some(ran), None);
            return Kept::Memory(canister);
        };
        self.roll_back(canister);
        self.world.take_response(response);
        if let Some(cleanup) = callback.cleanup {
            let ran = self.run_callback(Mode::Cleanup, cleanup, &callback, response);
            if ran.result.is_ok() {
                self.world.finish(context, Some(ran), Some(failure));
                return Kept::Memory(canister);
            }
            self.roll_back(canister);
            self.world.take_response(response);
        }
        self.world.finish(context, None, Some(failure));
        Kept::Nothing
    }

    fn run_callback(
        &mut self,
        mode: Mode,
        closure: Closure,
        callback: &Callback,
        response: &Response,
    ) -> Ran {
        let caller = self.world.state.contexts.get(&callback.context).map(|context| context.caller);
        let mut call = Call::new(mode, response.canister, caller.unwrap_or(Principal::anonymous()));
        match &response.result {
            Ok(reply) => call.arg = reply.to_vec(),
            Err(reject) => call.reject = Some(reject.clone()),
        }
        call.refunded = response.refund;
        call.context = callback.context;
        call.limit = self.world.config.limits.update_instructions;
        self.run_code(Entry::Closure(closure), call)
    }

    /// Runs [`TIMER`] or [`HEARTBEAT`].
    pub(crate) fn task(&mut self, canister: Principal, export: &str) -> Kept {
        self.world.begin_task(canister, export);
        let management = Principal::management_canister();
        let context = self.world.open_context(canister, Origin::System, management, 0);
        let mut call = Call::new(Mode::Task, canister, management);
        call.context = context;
        call.limit = self.world.config.limits.update_instructions;
        let ran = self.run_code(Entry::Export(export), call);
        if let Err(reject) = &ran.result {
            tracing::info!(%canister, "{export} failed: {}", reject.message);
            self.roll_back(canister);
            self.world.begin_task(canister, export);
            return Kept::Nothing;
        }
        self.world.finish(context, Some(ran), None);
        Kept::Memory(canister)
    }

    /// Asks `canister_inspect_message`, if there is one, whether to take a message.
    pub(crate) fn inspect(
        &mut self,
        canister: Principal,
        sender: Principal,
        method: &str,
        arg: &[u8],
    ) -> Result<(), Reject> {
        if !self.codes.get(&canister).is_some_and(|code| code.program.prepared.inspects) {
            return Ok(());
        }
        let mut call = Call::new(Mode::Inspect, canister, sender);
        call.method = method.to_owned();
        call.arg = arg.to_vec();
        call.limit = self.world.config.limits.inspect_instructions;
        let ran = self.run_code(Entry::Export("canister_inspect_message"), call);
        self.roll_back(canister);
        ran.result?;
        if ran.call.accepted {
            return Ok(());
        }
        Err(rejected(format!("Error from Canister {canister}: Canister rejected the message")))
    }
}

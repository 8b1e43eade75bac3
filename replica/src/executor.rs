//! The executor: the one thread that owns the engine, and some that answer queries. Messages come in by a bounded
//! queue and are taken in batches; what a batch did is durable, then certified and shown to queries, then answered,
//! in this order.

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use execution::{
    Engine, IngressMessage, IngressStatus, Queries, QueryMessage, QueryReply, Reject, RequestId, RunError,
    SubmitError,
};
use tokio::sync::oneshot;

use crate::authentication::{Authenticated, Call, Query};
use crate::certified_state::{CertifiedState, Change};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::pulse::Pulse;

/// Messages taken from the queue before the engine runs.
const BATCH: usize = 64;
/// Longest sleep, so that time which a timer waits for is noticed.
const NAP: Duration = Duration::from_secs(1);
/// An idle query thread looks this often whether it shall end.
const LOOK_UP: Duration = Duration::from_millis(100);
/// wasmtime executes programs on this thread's stack; the memory is used only as far as they go.
const STACK: usize = 64 << 20;

/// The executor does not take a message now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too much waits.
    #[error("too many requests wait for the executor; try again in a second")]
    Busy,
    /// It stopped.
    #[error("the replica is stopping; try again when it is back")]
    Stopped,
}

/// The executor cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("the executor's thread cannot be started; raise the limit of threads or memory")]
pub struct SpawnError(#[from] io::Error);

/// What became of an update call that was handed in.
#[derive(Debug)]
pub enum Submitted {
    /// It is durable; the receiver tells when it has finished.
    Accepted(oneshot::Receiver<()>),
    /// It was refused before it became part of the state.
    Rejected(Reject),
}

/// What the engine's thread is to do, and who waits to hear what became of it.
enum Command {
    Call(Authenticated<Call>, oneshot::Sender<Result<Submitted, Unavailable>>),
    Rekey(heap::Key, oneshot::Sender<Result<(), heap::CommitError>>),
}

/// The heap could not be put under another key.
#[derive(Debug, thiserror::Error)]
pub enum RekeyError {
    /// Nobody did.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The heap could not.
    #[error(
        "the heap could not be put under another key; it may be under either of both: start the replica with heap.key \
         and heap.former_key"
    )]
    Heap(#[from] heap::CommitError),
}

/// A query, and who waits for the answer.
struct Question(Authenticated<Query>, oneshot::Sender<QueryReply>);

/// Hands messages to the executor.
#[derive(Clone)]
pub struct Executor {
    commands: SyncSender<Command>,
    questions: SyncSender<Question>,
    stopping: Arc<AtomicBool>,
}

impl Executor {
    /// Starts the thread. It ends when told to [`stop`](Self::stop), or when the engine cannot go on.
    pub fn spawn(
        engine: Engine,
        certified: Arc<CertifiedState>,
        clock: Clock,
        pulse: Arc<Pulse>,
        metrics: Arc<Metrics>,
        queue: usize,
    ) -> Result<(Self, JoinHandle<Result<(), RunError>>), SpawnError> {
        let (commands, received) = sync_channel(queue);
        let (questions, asked) = sync_channel(queue);
        let stopping = Arc::new(AtomicBool::new(false));
        let gate = Arc::new(RwLock::new(()));
        let readers = Readers {
            queries: engine.queries(),
            certified: certified.clone(),
            clock: clock.clone(),
            gate: gate.clone(),
            questions: Arc::new(Mutex::new(asked)),
            stopping: stopping.clone(),
        };
        let mut worker = Worker {
            engine,
            certified,
            clock,
            pulse,
            metrics,
            waiting: HashMap::new(),
            gate,
            commands: received,
            stopping: stopping.clone(),
        };
        // What was certified at the start is what the heap held.
        worker.publish();
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let mut reading = Vec::with_capacity(processors);
        for number in 0..processors {
            let readers = readers.clone();
            let builder = std::thread::Builder::new().name(format!("queries-{number}")).stack_size(STACK);
            reading.push(builder.spawn(move || readers.work())?);
        }
        let stop = stopping.clone();
        let thread =
            std::thread::Builder::new().name("executor".into()).stack_size(STACK).spawn(move || {
                let outcome = worker.work();
                // Whoever waits for this thread may open the heap again: nobody reads it any more then.
                stop.store(true, Ordering::Relaxed);
                for reader in reading {
                    // One that panicked reads nothing either.
                    let _ = reader.join();
                }
                outcome
            })?;
        Ok((Self { commands, questions, stopping }, thread))
    }

    /// Hands in an update call.
    pub async fn call(&self, call: Authenticated<Call>) -> Result<Submitted, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.commands.try_send(Command::Call(call, answer)).map_err(unavailable)?;
        answered.await.unwrap_or(Err(Unavailable::Stopped))
    }

    /// Puts the heap under another key, between two messages.
    pub async fn rekey(&self, key: heap::Key) -> Result<(), RekeyError> {
        let (answer, answered) = oneshot::channel();
        self.commands.try_send(Command::Rekey(key, answer)).map_err(unavailable)?;
        Ok(answered.await.map_err(|_| Unavailable::Stopped)??)
    }

    /// Asks a query.
    pub async fn query(&self, query: Authenticated<Query>) -> Result<QueryReply, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.questions.try_send(Question(query, answer)).map_err(unavailable)?;
        answered.await.map_err(|_| Unavailable::Stopped)
    }

    /// Ends the thread after its current step, within a second if there is none. What is queued is durable.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

fn unavailable<T>(error: TrySendError<T>) -> Unavailable {
    match error {
        TrySendError::Full(_) => Unavailable::Busy,
        TrySendError::Disconnected(_) => Unavailable::Stopped,
    }
}

/// What answers queries, one thread for each processor.
#[derive(Clone)]
struct Readers {
    queries: Queries,
    certified: Arc<CertifiedState>,
    clock: Clock,
    gate: Arc<RwLock<()>>,
    questions: Arc<Mutex<Receiver<Question>>>,
    stopping: Arc<AtomicBool>,
}

impl Readers {
    fn work(self) {
        while !self.stopping.load(Ordering::Relaxed) {
            let asked = self.questions.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(LOOK_UP);
            match asked {
                // Whoever gave up waiting for an answer is not told.
                Ok(Question(query, answer)) => drop(answer.send(self.answer(query))),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn answer(&self, query: Authenticated<Query>) -> QueryReply {
        let now_ns = (self.clock)();
        let sender = query.sender();
        let Query { canister, method, arg } = query.into_content();
        // The certificate is about the state that the query reads.
        let (state, certificate) = {
            let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            (self.queries.published(), self.certified.data_certificate(&canister, now_ns))
        };
        let data_certificate = Some(certificate);
        let message = QueryMessage { sender, canister, method, arg, data_certificate };
        self.queries.query_at(&state, message, now_ns)
    }
}

struct Worker {
    engine: Engine,
    certified: Arc<CertifiedState>,
    clock: Clock,
    pulse: Arc<Pulse>,
    metrics: Arc<Metrics>,
    /// Who wants to know when a request has finished.
    waiting: HashMap<RequestId, Vec<oneshot::Sender<()>>>,
    /// Closed while what queries read and what is certified about it change.
    gate: Arc<RwLock<()>>,
    commands: Receiver<Command>,
    stopping: Arc<AtomicBool>,
}

impl Worker {
    fn work(mut self) -> Result<(), RunError> {
        let mut idle = false;
        while !self.stopping.load(Ordering::Relaxed) {
            let pause = if idle { self.pause() } else { Duration::ZERO };
            self.pulse.idle();
            self.pulse.committed(self.engine.epoch());
            let first = match self.commands.recv_timeout(pause) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            self.pulse.busy();
            let more: Vec<_> = self.commands.try_iter().take(BATCH).collect();
            let mut submitted = Vec::new();
            for command in first.into_iter().chain(more) {
                match command {
                    Command::Call(call, answer) => submitted.push((answer, self.submit(call))),
                    Command::Rekey(key, answer) => drop(answer.send(self.engine.rekey(&key))),
                }
            }
            // Who is told that a message is accepted finds it in the state tree.
            if !submitted.is_empty() {
                self.publish();
            }
            for (answer, outcome) in submitted {
                // Whoever gave up waiting for an answer is not told.
                drop(answer.send(outcome));
            }
            idle = self.engine.run((self.clock)())?.idle;
            self.publish();
            self.answer();
        }
        self.pulse.committed(self.engine.epoch());
        Ok(())
    }

    /// How long there is nothing to do unless a message comes.
    fn pause(&self) -> Duration {
        let wakeup =
            self.engine.next_wakeup().map(|at| Duration::from_nanos(at.saturating_sub((self.clock)())));
        wakeup.map_or(NAP, |wakeup| wakeup.min(NAP))
    }

    fn submit(&mut self, call: Authenticated<Call>) -> Result<Submitted, Unavailable> {
        let now_ns = (self.clock)();
        let (request_id, sender, expiry_ns) = (call.request_id(), call.sender(), call.expiry_ns());
        // A request that is known is not judged again: whoever repeats it waits for the same outcome.
        if self.engine.status(&request_id).is_none() {
            let Call { canister, method, arg } = call.into_content();
            let message = IngressMessage { request_id, sender, canister, method, arg, expiry_ns };
            if let Err(reject) = self.engine.accept(&message, now_ns) {
                return Ok(Submitted::Rejected(reject));
            }
            match self.engine.submit(message, now_ns) {
                Ok(()) | Err(SubmitError::Duplicate) => {}
                Err(SubmitError::Refused(reject)) => return Ok(Submitted::Rejected(reject)),
                Err(SubmitError::Commit(error)) => {
                    tracing::error!("a message could not be made durable: {error}");
                    return Err(Unavailable::Busy);
                }
            }
        }
        let (done, finished) = oneshot::channel();
        self.waiting.entry(request_id).or_default().push(done);
        Ok(Submitted::Accepted(finished))
    }

    /// Shows what was committed.
    fn publish(&mut self) {
        let changes = self.engine.take_changes();
        let engine = &self.engine;
        let requests = changes.requests.iter().map(|id| match (engine.status(id), engine.requester(id)) {
            (Some(status), Some((sender, canister))) => Change::Request { id: *id, status, sender, canister },
            _ => Change::NoRequest(*id),
        });
        let canisters = changes.canisters.iter().map(|id| match engine.canister(id) {
            Some(view) => Change::Canister(view),
            None => Change::NoCanister(*id),
        });
        {
            let _closed = self.gate.write().unwrap_or_else(PoisonError::into_inner);
            self.certified.update(requests.chain(canisters));
            engine.publish();
        }
        self.metrics.memory_lazy.store(engine.lazy_memory().into(), Ordering::Relaxed);
        let heap = engine.heap_status();
        self.metrics.heap_epoch.store(heap.epoch, Ordering::Relaxed);
        self.metrics.heap_used.store(heap.used, Ordering::Relaxed);
        self.metrics.heap_capacity.store(heap.capacity, Ordering::Relaxed);
        self.metrics.heap_medium.get_or_init(|| heap.kind);
    }

    /// Tells those who wait for requests that have finished, or whose answer is gone.
    fn answer(&mut self) {
        let Self { waiting, engine, .. } = self;
        waiting.retain(|id, senders| {
            let open = matches!(engine.status(id), Some(IngressStatus::Received | IngressStatus::Processing));
            if open {
                senders.retain(|sender| !sender.is_closed());
            } else {
                for sender in senders.drain(..) {
                    let _ = sender.send(());
                }
            }
            !senders.is_empty()
        });
    }
}

//! Carrying out orders: the way from the operators' interface and the console to the agent, PID 1, the firmware and the
//! drives.

use super::orders::{Action, Challenge, Challenges, Holder, Order, OrderRefusal};
use crate::decommission::Signed;
use crate::power::{self, Power};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// What the agent's main loop is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Start the guest again.
    RestartGuest,
    /// End the guest, then the node; the answer is the statement, or why it failed.
    Decommission { operator: String, answer: oneshot::Sender<Result<Signed, String>> },
}

/// What a node can do, shared by all who may order it.
#[derive(Clone)]
pub(crate) struct Orders(Arc<Inner>);

struct Inner {
    challenges: Mutex<Challenges>,
    started: Instant,
    /// Fingerprint of the operator's key that the node was installed with.
    installed: Option<[u8; 32]>,
    /// The line to PID 1, on a machine of its own.
    power: Option<Power>,
    agent: mpsc::Sender<Command>,
}

impl Orders {
    pub(crate) fn new(
        node: String,
        installed: Option<[u8; 32]>,
        power: Option<Power>,
        agent: mpsc::Sender<Command>,
    ) -> Self {
        let challenges = Mutex::new(Challenges::new(node));
        Self(Arc::new(Inner { challenges, started: Instant::now(), installed, power, agent }))
    }

    pub(crate) fn installed(&self) -> Option<[u8; 32]> {
        self.0.installed
    }

    pub(crate) fn challenge(&self, holder: Holder) -> Result<Challenge, String> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| error.to_string())?;
        let mut challenges = self.0.challenges.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(challenges.give(holder, random, self.0.started.elapsed()))
    }

    pub(crate) fn judge(&self, order: &Order, holder: Holder) -> Result<Action, OrderRefusal> {
        let mut challenges = self.0.challenges.lock().unwrap_or_else(PoisonError::into_inner);
        challenges.take(order, holder, self.0.started.elapsed())
    }

    /// Does what was judged; `operator` is for the log. Restarts of the machine begin after this has returned.
    pub(crate) async fn carry_out(
        &self,
        action: Action,
        operator: &str,
    ) -> Result<Option<Signed>, OrderRefusal> {
        tracing::warn!(operator, %action, "an operator's order is carried out");
        let not_possible = |why: String| {
            tracing::error!(operator, %action, why, "an operator's order failed");
            OrderRefusal::NotPossible { action, why }
        };
        let machine = || {
            let why = "it is a process on somebody's machine; use `redoubt down` there";
            self.0.power.as_ref().ok_or_else(|| not_possible(why.into()))
        };
        let end = |then: power::Action| {
            machine()?
                .request(then, &format!("{operator} ordered it"))
                .map_err(|error| not_possible(error.to_string()))
        };
        let gone = |_| not_possible("the agent is ending".into());
        match action {
            Action::Reboot => end(power::Action::Reboot)?,
            Action::PowerOff => end(power::Action::PowerOff)?,
            Action::StartOtherSlot => {
                machine()?;
                crate::slots::start_other_next().map_err(|error| not_possible(error.to_string()))?;
                end(power::Action::Reboot)?;
            }
            Action::RestartGuest => {
                self.0
                    .agent
                    .send(Command::RestartGuest)
                    .await
                    .map_err(|_| not_possible("the agent is ending".into()))?;
            }
            Action::Decommission => {
                let (answer, statement) = oneshot::channel();
                let command = Command::Decommission { operator: operator.to_owned(), answer };
                self.0.agent.send(command).await.map_err(|_| not_possible("the agent is ending".into()))?;
                return statement.await.map_err(gone)?.map(Some).map_err(not_possible);
            }
        }
        Ok(None)
    }
}

//! Drives an upgrade: does what the present phase asks for, and keeps the phase that follows before it acts on it.
//!
//! After a start it goes on from the phase that was kept, so a crash needs no code of its own.

use super::hand_over::CarryError;
use super::host::Host;
use super::store::Store;
use super::{Order, UpgradeError, probe};
use crate::attest::{chain, unix_time};
use crate::bundle::{self, LaunchedAs};
use crate::check::{CheckError, Checked, Options, Target, check};
use crate::http::Shared;
use crate::node::{NodeDir, NodeLock, Place};
use host_guest::ToGuest;
use release::Digest;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use upgrade::audit::Head;
use upgrade::machine::{Content, Event, Part, Phase, Slot};
use upgrade::node::Which;

/// How often the node is looked at while a release is tried.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// How often a release that is tried is sent a call.
const PROBE: Duration = Duration::from_secs(2);
/// How often the release that runs is held against its blessing.
pub(super) const JUDGE: Duration = Duration::from_secs(30);
/// Name of the reason that a release ended.
pub(super) const DOES_NOT_RUN: &str = "release-does-not-run";
/// After an error of the disk.
const PAUSE: Duration = Duration::from_secs(10);

/// What the driver asks of the agent.
pub(crate) enum Command {
    /// Start this guest beside the one that runs, tell it these documents, and carry what the two say to each other.
    HandOver {
        checked: Box<Checked>,
        documents: ToGuest,
        answer: oneshot::Sender<Result<Duration, CarryError>>,
    },
    /// Run this guest from now on. Answered when the one that ran is gone.
    Switch { checked: Box<Checked>, answer: oneshot::Sender<()> },
}

pub(crate) struct Driver {
    pub(crate) store: Store,
    pub(crate) options: Options,
    pub(crate) node: NodeDir,
    pub(crate) lock: Arc<NodeLock>,
    pub(crate) shared: Shared,
    pub(crate) agent: mpsc::Sender<Command>,
    pub(crate) sequence: u64,
    pub(crate) part: Part<Digest>,
    /// Which release runs.
    pub(crate) running: Place,
    /// How often the guest had been started again when it was last well.
    pub(crate) last_well: u64,
    /// The recovery release was to be started and may not be.
    pub(crate) recovery_refused: bool,
    /// When the release that runs was last held against its blessing.
    pub(crate) judged: Option<Instant>,
    /// The host's part, on a machine of its own.
    pub(crate) host: Option<Host>,
}

/// How a release that was tried does.
pub(super) enum Verdict {
    /// Well, for the set time.
    Healthy,
    /// It may not run any more.
    Withdrawn(UpgradeError),
    /// Not well: why.
    Ill(Reason),
}

/// Why a phase could not be left as planned: a short fixed name, and words.
pub(super) type Reason = (String, String);

pub(super) fn reason(error: &UpgradeError) -> Reason {
    (error.code().to_owned(), chain(error))
}

impl Driver {
    /// On a thread of its own: it writes and flushes files, for which the guest's watchdog must not wait.
    pub(crate) fn start(self) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("upgrade".to_owned());
        thread.spawn(move || runtime.block_on(self.run())).map(drop)
    }

    /// Until the agent ends.
    async fn run(mut self) {
        self.show("");
        // What a power cut left of a key that is not to be there, or not known to be whole.
        let other = self.part.active.other();
        if self.running == Place::Slot(self.part.active)
            && !self.part.has_key(other)
            && let Err(error) = self.store.erase_key(other)
        {
            tracing::error!("{}", chain(&error));
        }
        self.show_log();
        loop {
            if let Err(error) = self.advance().await {
                let (code, why) = reason(&error);
                tracing::error!(code, why, "the upgrade cannot go on");
                self.shared.update(|status| status.upgrade.step = why);
                sleep(PAUSE).await;
            }
            if self.agent.is_closed() {
                return;
            }
        }
    }

    /// Does what the present phase asks for. The host goes first: it has to run the release that the guest has now in any case,
    /// since it may come back to it.
    pub(super) async fn advance(&mut self) -> Result<(), UpgradeError> {
        self.judge_what_runs();
        if self.host.as_ref().is_some_and(|host| !host.part.phase.is_settled())
            && self.part.phase.is_settled()
        {
            return self.advance_host().await;
        }
        if self.running == Place::Recovery {
            return self.rescue().await;
        }
        match self.part.phase {
            Phase::Idle | Phase::Failed => self.fetch().await,
            Phase::Fetched => match self.verify() {
                Ok(release) => {
                    self.keep(Event::VerifyOk, &format!("release {} is verified", release.manifest().version))
                }
                Err(error) => self.give_up(Event::VerifyRefused, reason(&error)),
            },
            Phase::Verified => self.stage(),
            Phase::Staged => self.try_out().await,
            Phase::Trying => self.observe().await,
            Phase::Healthy => self.keep(Event::Commit, "the tried release stays"),
            Phase::Committed => {
                self.commit()?;
                self.store.erase_key(self.part.active.other())?;
                self.done();
                self.keep(Event::OldKeyErased, "the key of the old release is erased")
            }
            Phase::Reverting => {
                self.step("going back to the committed release");
                match self.switch(self.part.active, false).await {
                    Err(error) if error.is_of_release() && self.part.recovery.is_some() => {
                        return self.recover(reason(&error)).await;
                    }
                    switched => switched?,
                }
                self.store.erase_key(self.part.active.other())?;
                self.keep(Event::Reverted, "the committed release runs again")
            }
        }
    }

    /// Waits for an order and fetches what it asks for.
    async fn fetch(&mut self) -> Result<(), UpgradeError> {
        if let Some(why) = self.has_given_up() {
            return self.recover(why).await;
        }
        let Some(order) = self.order()? else {
            sleep(LOOK).await;
            return Ok(());
        };
        if self.part.phase == Phase::Failed {
            self.keep(Event::Acknowledge, "a new upgrade is asked for")?;
        }
        self.store.keep_failure(None)?;
        self.shared.update(|status| {
            let upgrade = &mut status.upgrade;
            (upgrade.code, upgrade.reason, upgrade.moved) = (String::new(), String::new(), 0);
            upgrade.phase = "fetching".to_owned();
        });
        self.audit(&format!("fetching {}", order.source.manifest))?;
        match self.fetch_all(&order.source).await {
            Ok(release) => {
                let text = format!("release {} is here", release.manifest().version);
                if self.new_host(&release)?.is_some()
                    && let Some(host) = &mut self.host
                {
                    host.fetched(release.digest(), &text)?;
                    self.show("");
                    return Ok(());
                }
                if self.host.is_some()
                    && *self.part.content(self.part.active) == Content::Release(release.digest())
                {
                    return self.carried_out("the node runs this release already");
                }
                self.keep_release(Event::FetchDone, Some(release.digest()), &text)
            }
            Err(error) => {
                // Nothing was begun: the phase stays, and what is here serves the next order.
                let why = reason(&error);
                self.done();
                self.audit(&format!("not fetched: {}: {}", why.0, why.1))?;
                self.store.keep_failure(Some(&why))?;
                self.show("");
                Ok(())
            }
        }
    }

    fn stage(&mut self) -> Result<(), UpgradeError> {
        let other = self.part.active.other();
        // Again: what lies on a disk may have changed since.
        let release = match self.verify() {
            Ok(release) => release,
            Err(error) => return self.give_up(Event::Withdrawn, reason(&error)),
        };
        if !matches!(self.part.content(other), Content::Partial) {
            self.keep(Event::StageBegun, "the other slot is emptied")?;
        }
        self.store.erase_key(other)?;
        self.step("writing the release into the other slot");
        match self
            .roots()
            .and_then(|roots| Ok(self.store.stage(&release, other, &roots, self.options.profile)?))
        {
            Ok(()) => self.keep(Event::StageDone, "the release is in the other slot"),
            Err(error) => {
                let why = reason(&error);
                self.give_up(Event::StageFailed, why)
            }
        }
    }

    /// Hands the key over, waits for the time that was set, and starts the trial.
    async fn try_out(&mut self) -> Result<(), UpgradeError> {
        let other = self.part.active.other();
        if let Err(error) = self.staged(other) {
            return self.give_up(Event::Withdrawn, reason(&error));
        }
        let not_before = self.order()?.map_or(0, |order| order.not_before);
        while unix_time() < not_before {
            self.step(&format!("waiting until {not_before} (seconds since 1970)"));
            sleep(LOOK).await;
        }
        if !self.part.has_key(other) {
            while self.shared.read().state != "ready" {
                if let Some(why) = self.has_given_up() {
                    return self.give_up(Event::KeyRefused, why);
                }
                sleep(LOOK).await;
            }
            let target = Target::of_slot(&self.options, &self.store, other, true);
            let given = match self.give_recovery().await {
                Ok(()) => {
                    self.step("the running guest hands its key to the new release");
                    self.hand_over(target).await
                }
                refused => refused,
            };
            return match given {
                Ok(()) => self.keep(Event::KeyGiven, "the new release has the key"),
                // The next start begins it again.
                Err(UpgradeError::AgentEnded) => Err(UpgradeError::AgentEnded),
                Err(error) => self.give_up(Event::KeyRefused, reason(&error)),
            };
        }
        // The record says that the other slot is tried before anything of it runs.
        self.keep(Event::Try, "the new release is tried")?;
        self.begin_trial().await
    }

    async fn begin_trial(&mut self) -> Result<(), UpgradeError> {
        match self.switch(self.part.active.other(), true).await {
            Ok(()) => Ok(()),
            Err(UpgradeError::AgentEnded) => Err(UpgradeError::AgentEnded),
            Err(error) => self.give_up(Event::HealthLost, reason(&error)),
        }
    }

    /// Has the guest that runs hand the key to a release that was staged.
    pub(super) async fn hand_over(&mut self, target: Target) -> Result<(), UpgradeError> {
        let documents = self.documents(&target)?;
        let checked = self.checked(target.receiving()).await?;
        let (answer, answered) = oneshot::channel();
        let asked = Command::HandOver { checked: Box::new(checked), documents, answer };
        self.agent.send(asked).await.map_err(|_| UpgradeError::AgentEnded)?;
        let took = answered.await.map_err(|_| UpgradeError::AgentEnded)??;
        self.shared.update(|status| status.upgrade.hand_over_ms = took.as_millis() as u64);
        Ok(())
    }

    /// Checks what is to be launched, on a thread that may block.
    pub(super) async fn checked(&self, target: Target) -> Result<Checked, UpgradeError> {
        let (options, node, lock) = (self.options.clone(), self.node.clone(), self.lock.clone());
        let checking =
            move || check(&options, &node, &lock, target, &|step| tracing::info!(step, "checking"));
        let checked = tokio::task::spawn_blocking(checking).await;
        Ok(checked.unwrap_or_else(|error| Err(CheckError::Interrupted(error.to_string())))?)
    }

    /// Keeps what the committed release forbids, such as lower epochs.
    fn commit(&self) -> Result<(), UpgradeError> {
        let path = self.store.manifest(self.part.active, &self.options.manifest);
        let release = self.manifest(&path)?;
        bundle::admit(&self.roots()?, &path, &release, self.node.path(), LaunchedAs::Committed)?;
        Ok(())
    }

    /// Looks at the guest's release that is tried.
    async fn observe(&mut self) -> Result<(), UpgradeError> {
        let other = self.part.active.other();
        if self.running != Place::Slot(other) {
            // Its files are no longer what they were, so the committed release was started.
            let why = "the release that is tried cannot be started any more; the log says why".to_owned();
            return self.give_up(Event::HealthLost, (DOES_NOT_RUN.to_owned(), why));
        }
        match self.trial(|driver| driver.staged(other).map(drop)).await {
            Verdict::Healthy => {
                self.keep(Event::HealthOk, "the tried release serves, is attested and answers")
            }
            Verdict::Withdrawn(error) => self.give_up(Event::Withdrawn, reason(&error)),
            Verdict::Ill(why) if why.0 == DOES_NOT_RUN => self.give_up(Event::BootFailed, why),
            Verdict::Ill(why) => self.give_up(Event::HealthLost, why),
        }
    }

    /// Looks at the node until it has been healthy long enough, or for too long not. `may_run` is asked now and then.
    pub(super) async fn trial(&mut self, may_run: impl Fn(&Self) -> Result<(), UpgradeError>) -> Verdict {
        let patience = self.options.trial;
        let mut judged = Instant::now();
        let end = Instant::now() + patience.trial;
        let starts = self.shared.read().restarts;
        let (mut healthy_since, mut probed): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            let status = self.shared.read();
            if judged.elapsed() > JUDGE {
                judged = Instant::now();
                if let Err(error) = may_run(self) {
                    return Verdict::Withdrawn(error);
                }
            }
            if status.state == "failed" || status.restarts > starts {
                let why = status.reasons.last().map(|last| last.reason.clone()).unwrap_or_default();
                return Verdict::Ill((DOES_NOT_RUN.to_owned(), why));
            }
            // Through the attested way.
            let serves = status.state == "ready" && status.attested.is_some();
            if !serves {
                (healthy_since, probed) = (None, None);
            } else if probed.is_none_or(|last| last.elapsed() >= PROBE) {
                let answers = probe::answers(status.ports.http).await;
                healthy_since = answers.then(|| healthy_since.unwrap_or_else(Instant::now));
                probed = Some(Instant::now());
            }
            match healthy_since {
                Some(since) if since.elapsed() >= patience.healthy => return Verdict::Healthy,
                _ if Instant::now() > end => {
                    let why = format!(
                        "the new release was not healthy for {} s within {} s; last state: {} {}",
                        patience.healthy.as_secs(),
                        patience.trial.as_secs(),
                        status.state,
                        status.attestation_error
                    );
                    return Verdict::Ill(("release-unhealthy".to_owned(), why));
                }
                since => self.step(&match since {
                    Some(since) => format!("healthy for {} s", since.elapsed().as_secs()),
                    None => format!("waiting for health, state {}", status.state),
                }),
            }
            sleep(LOOK).await;
        }
    }

    /// Has the agent run what is in a slot from now on.
    pub(super) async fn switch(&mut self, slot: Slot, tried: bool) -> Result<(), UpgradeError> {
        if self.running == Place::Slot(slot) {
            return Ok(());
        }
        let checked = self.checked(Target::of_slot(&self.options, &self.store, slot, tried)).await?;
        self.run_from_now(checked).await
    }

    /// Has the agent run what was checked from now on.
    pub(super) async fn run_from_now(&mut self, checked: Checked) -> Result<(), UpgradeError> {
        let place = checked.target.place;
        let (answer, answered) = oneshot::channel();
        let asked = Command::Switch { checked: Box::new(checked), answer };
        self.agent.send(asked).await.map_err(|_| UpgradeError::AgentEnded)?;
        answered.await.map_err(|_| UpgradeError::AgentEnded)?;
        self.running = place;
        self.last_well = self.shared.read().restarts;
        Ok(())
    }

    pub(super) fn order(&self) -> Result<Option<Order>, UpgradeError> {
        let order = self.store.ordered();
        if let Err(UpgradeError::Malformed(_)) = order {
            self.done();
        }
        order
    }

    /// The order is carried out, or cannot be.
    pub(super) fn done(&self) {
        // If it stays, the same release is fetched again, which changes nothing.
        let _ = std::fs::remove_file(self.store.order());
    }

    /// Nothing of the order is left to do.
    pub(super) fn carried_out(&mut self, text: &str) -> Result<(), UpgradeError> {
        self.done();
        self.audit(text)?;
        self.show("");
        Ok(())
    }

    /// The machine goes down, and this program with it.
    pub(super) async fn until_the_end(&self) {
        while !self.agent.is_closed() {
            sleep(LOOK).await;
        }
    }

    fn give_up(&mut self, event: Event, (code, why): Reason) -> Result<(), UpgradeError> {
        tracing::warn!(code, why, "the upgrade is given up");
        self.keep(event, &format!("{code}: {why}"))?;
        // Another try of the same release goes on by itself.
        if self.part.phase != Phase::Trying {
            self.done();
            self.store.keep_failure(Some(&(code, why)))?;
            self.show("");
        }
        if self.part.phase == Phase::Failed {
            self.store.erase_key(self.part.active.other())?;
        }
        Ok(())
    }

    pub(super) fn keep(&mut self, event: Event, text: &str) -> Result<(), UpgradeError> {
        self.keep_release(event, None, text)
    }

    /// Keeps what follows from an event, then its line in the audit log.
    pub(super) fn keep_release(
        &mut self,
        event: Event,
        release: Option<Digest>,
        text: &str,
    ) -> Result<(), UpgradeError> {
        let next = self.part.step(event, release)?;
        self.sequence = self.store.save(Which::Guest, self.sequence, &next)?;
        self.part = next;
        self.show("");
        self.audit(&format!("{event:?}: {text}"))
    }

    pub(super) fn audit(&self, text: &str) -> Result<(), UpgradeError> {
        tracing::info!(text, "upgrade");
        let head = self.store.audit(unix_time(), text)?;
        self.show_audit(&head);
        Ok(())
    }

    fn show_audit(&self, head: &Head) {
        self.shared.update(|status| {
            status.upgrade.audit_entries = head.entries;
            status.upgrade.audit_digest = head.digest.to_string();
        });
    }

    pub(super) fn step(&self, text: &str) {
        self.shared.update(|status| text.clone_into(&mut status.upgrade.step));
    }

    pub(super) fn show_log(&self) {
        match self.store.head() {
            Ok(head) => self.show_audit(&head),
            Err(error) => tracing::error!("{}", chain(&error)),
        }
    }

    pub(super) fn show(&self, text: &str) {
        let part = &self.part;
        let (ordered, host, why) =
            (self.store.order().exists(), self.host_status(), self.store.failure().unwrap_or_default());
        self.shared.update(|status| {
            let upgrade = &mut status.upgrade;
            upgrade.phase = format!("{:?}", part.phase).to_lowercase();
            text.clone_into(&mut upgrade.step);
            upgrade.active = format!("{:?}", part.active).to_lowercase();
            upgrade.recovery = part.recovery.map(|digest| digest.to_string()).unwrap_or_default();
            upgrade.incoming = part.incoming.map(|digest| digest.to_string()).unwrap_or_default();
            (upgrade.ordered, upgrade.host) = (ordered, host);
            (upgrade.code, upgrade.reason) = why;
        });
    }
}

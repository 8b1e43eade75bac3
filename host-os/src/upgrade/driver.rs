//! Drives an upgrade: does what the present phase asks for, and keeps the phase that follows before it acts on it.
//!
//! After a start it goes on from the phase that was kept, so a crash needs no code of its own.

use super::UpgradeError;
use super::fetch::{self, FetchError, Source};
use super::hand_over::CarryError;
use super::store::Store;
use crate::attest::{chain, unix_time};
use crate::bundle::{self, ReleaseError, ReleaseFiles};
use crate::check::{CheckError, Checked, Options, Target, check};
use crate::http::Shared;
use crate::node::{NodeDir, NodeLock, write_atomically};
use host_guest::{Task, ToGuest};
use release::{ApprovedManifest, BLESSING_FILE, Digest, MAX_DOCUMENT};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use upgrade::machine::{Boot, Content, Event, Part, Phase, Slot};

/// How often the node is looked at while a release is tried.
const LOOK: Duration = Duration::from_millis(500);
/// How often a release that is tried is held against its blessing.
const JUDGE: Duration = Duration::from_secs(30);
/// After an error of the disk.
const PAUSE: Duration = Duration::from_secs(10);

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Where the release is.
    pub source: Source,
    /// Not tried before this time (seconds since 1970): a schedule is given from outside, so that not all nodes of a subnet
    /// are down at once. The release is fetched and staged at once.
    #[serde(default)]
    pub not_before: u64,
}

/// How an upgrade goes, for status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeStatus {
    /// "idle", "fetching", "fetched", "verified", "staged", "trying", "healthy", "committed", "reverting" or "failed".
    pub phase: String,
    /// What is being done, in words.
    pub step: String,
    /// The committed slot: "a" or "b".
    pub active: String,
    /// Digest of the release that is being brought.
    pub incoming: String,
    /// Bytes of it that are here, and all.
    pub fetched: (u64, u64),
    /// Bytes that came over the network for it; less where a difference served.
    pub moved: u64,
    /// How long the last hand-over of the key took, from when the new guest was there: milliseconds.
    pub hand_over_ms: u64,
    /// Orders since the agent started.
    pub orders: u64,
    /// Why the last upgrade was given up, with a short fixed name; empty if it was not.
    pub code: String,
    /// The same in words.
    pub reason: String,
    /// Entries of the audit log.
    pub audit_entries: u64,
    /// Digest of its last entry.
    pub audit_digest: String,
}

impl UpgradeStatus {
    /// Whether nothing is under way.
    pub fn is_settled(&self) -> bool {
        matches!(self.phase.as_str(), "idle" | "failed" | "")
    }
}

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

/// When a tried release has to be healthy, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// From the start to health.
    pub trial: Duration,
    /// How long it has to last.
    pub healthy: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { trial: Duration::from_secs(900), healthy: Duration::from_secs(30) }
    }
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
    /// The slot whose release runs.
    pub(crate) running: Slot,
}

/// Why a phase could not be left as planned.
type Reason = (String, String);

fn reason(error: &UpgradeError) -> Reason {
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
        if let Some(why) = self.store.failure() {
            self.shared.update(|status| (status.upgrade.code, status.upgrade.reason) = why);
        }
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

    /// Does what the present phase asks for.
    async fn advance(&mut self) -> Result<(), UpgradeError> {
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
                self.switch(self.part.active, false).await?;
                self.store.erase_key(self.part.active.other())?;
                self.keep(Event::Reverted, "the committed release runs again")
            }
        }
    }

    /// Waits for an order and fetches what it asks for.
    async fn fetch(&mut self) -> Result<(), UpgradeError> {
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
            upgrade.orders += 1;
            upgrade.phase = "fetching".to_owned();
        });
        self.audit(&format!("fetching {}", order.source.manifest))?;
        match self.fetch_all(&order.source).await {
            Ok(release) => {
                let version = &release.manifest().version;
                self.keep_release(
                    Event::FetchDone,
                    Some(release.digest()),
                    &format!("release {version} is here"),
                )
            }
            Err(error) => {
                // Nothing was begun: the phase stays, and what is here serves the next order.
                let why = reason(&error);
                self.done();
                self.audit(&format!("not fetched: {}: {}", why.0, why.1))?;
                self.shared.update(|status| (status.upgrade.code, status.upgrade.reason) = why);
                self.show("");
                Ok(())
            }
        }
    }

    async fn fetch_all(&self, source: &Source) -> Result<ApprovedManifest, UpgradeError> {
        let directory = self.store.incoming();
        let io = |source| UpgradeError::Fetch(FetchError::Disk { path: directory.clone(), source });
        std::fs::create_dir_all(&directory).map_err(io)?;
        let manifest = fetch::document(&source.manifest, MAX_DOCUMENT).await?;
        write_atomically(&directory.join("manifest.json"), &manifest).map_err(io)?;
        let root = self.options.root.load(self.options.profile)?;
        let path = directory.join("manifest.json");
        let release = bundle::manifest(&path, &root, self.options.profile)?;
        for name in [BLESSING_FILE, release::ID_BLOCK_FILE] {
            let mut found = Err(FetchError::Address(name.to_owned()));
            for address in source.addresses(name) {
                found = fetch::document(&address, MAX_DOCUMENT).await;
                if found.is_ok() {
                    break;
                }
            }
            match found {
                Ok(bytes) => write_atomically(&directory.join(name), &bytes).map_err(io)?,
                // Signatures of ID blocks are not part of every release.
                Err(_) if name != BLESSING_FILE => {}
                Err(error) => return Err(error.into()),
            }
        }
        let guest = &release.manifest().guest.files;
        let files = [&guest.kernel, &guest.initrd, &guest.firmware];
        // The committed release, from which differences start; its own bytes are not believed, only what comes out.
        let path = self.store.manifest(self.part.active, &self.options.manifest);
        let runs = bundle::manifest(&path, &root, self.options.profile).ok();
        let former = |index: usize| {
            let guest = &runs.as_ref()?.manifest().guest.files;
            let file = [&guest.kernel, &guest.initrd, &guest.firmware][index];
            Some((file, path.with_file_name(&file.path)))
        };
        let all: u64 = files.iter().map(|file| file.size).sum();
        let mut before = 0;
        for (index, file) in files.into_iter().enumerate() {
            self.shared.update(|status| {
                status.upgrade.step = format!("fetching {}", file.path);
                status.upgrade.fetched = (before, all);
            });
            let shared = self.shared.clone();
            let progress = move |have| shared.update(|status| status.upgrade.fetched = (before + have, all));
            let former = former(index);
            let former = former.as_ref().map(|(file, path)| (*file, path.as_path()));
            let moved = fetch::file(source, file, former, &directory, &progress).await?;
            before += file.size;
            self.shared.update(|status| status.upgrade.moved += moved);
            tracing::info!(file = file.path, size = file.size, moved, "fetched");
        }
        self.shared.update(|status| status.upgrade.fetched = (all, all));
        Ok(release)
    }

    /// Holds what was fetched against root, blessing and measurement.
    fn verify(&self) -> Result<ApprovedManifest, UpgradeError> {
        self.step("verifying");
        let path = self.store.incoming().join("manifest.json");
        let root = self.options.root.load(self.options.profile)?;
        let release = bundle::manifest(&path, &root, self.options.profile)?;
        if self.part.incoming != Some(release.digest()) {
            return Err(UpgradeError::AnotherRelease);
        }
        bundle::admissible(&root, &path, &release, self.node.path())?;
        ReleaseFiles::read(&path, release.clone())?.check_all()?;
        Ok(release)
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
        match self.store.stage(&release, other, &self.options.root, self.options.profile) {
            Ok(()) => self.keep(Event::StageDone, "the release is in the other slot"),
            Err(error) => {
                let why = reason(&error.into());
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
            self.step("the running guest hands its key to the new release");
            while self.shared.read().state != "ready" {
                sleep(LOOK).await;
            }
            return match self.hand_over(other).await {
                Ok(()) => self.keep(Event::KeyGiven, "the new release has the key"),
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
            Err(error) => self.give_up(Event::HealthLost, reason(&error)),
        }
    }

    /// Has the guest that runs hand the key to the release in a slot.
    async fn hand_over(&mut self, slot: Slot) -> Result<(), UpgradeError> {
        let documents = self.documents(slot)?;
        let mut target = Target::of_slot(&self.options, &self.store, slot, true);
        target.task = Task::Receive;
        let checked = self.checked(target).await?;
        let (answer, answered) = oneshot::channel();
        let asked = Command::HandOver { checked: Box::new(checked), documents, answer };
        self.agent.send(asked).await.map_err(|_| UpgradeError::AgentEnded)?;
        let took = answered.await.map_err(|_| UpgradeError::AgentEnded)??;
        self.shared.update(|status| status.upgrade.hand_over_ms = took.as_millis() as u64);
        Ok(())
    }

    /// What the new guest is told: its own release, and that of the guest that has the key.
    fn documents(&self, slot: Slot) -> Result<ToGuest, UpgradeError> {
        let text = |path: std::path::PathBuf| {
            let failed = |source| ReleaseError::Unreadable { path: path.clone(), source };
            Ok::<_, UpgradeError>(std::fs::read_to_string(&path).map_err(failed)?)
        };
        let manifest = |slot| self.store.manifest(slot, &self.options.manifest);
        Ok(ToGuest::TakeOver {
            giver: text(manifest(self.running))?,
            roots: Vec::new(),
            manifest: text(manifest(slot))?,
            blessing: text(manifest(slot).with_file_name(BLESSING_FILE))?,
        })
    }

    /// Checks what is to be launched, on a thread that may block.
    async fn checked(&self, target: Target) -> Result<Checked, UpgradeError> {
        let (options, node, lock) = (self.options.clone(), self.node.clone(), self.lock.clone());
        let checking =
            move || check(&options, &node, &lock, target, &|step| tracing::info!(step, "checking"));
        let checked = tokio::task::spawn_blocking(checking).await;
        Ok(checked.unwrap_or_else(|error| Err(CheckError::Interrupted(error.to_string())))?)
    }

    /// Keeps what the committed release forbids, such as lower epochs.
    fn commit(&self) -> Result<(), UpgradeError> {
        let path = self.store.manifest(self.part.active, &self.options.manifest);
        let root = self.options.root.load(self.options.profile)?;
        let release = bundle::manifest(&path, &root, self.options.profile)?;
        bundle::admit(&root, &path, &release, self.node.path(), false)?;
        Ok(())
    }

    /// Looks at a release that is tried until it has been healthy long enough, or for too long not.
    async fn observe(&mut self) -> Result<(), UpgradeError> {
        let other = self.part.active.other();
        if self.running != other {
            // Its files are no longer what they were, so the committed release was started.
            let why = "the release that is tried cannot be started any more; the log says why".to_owned();
            return self.give_up(Event::HealthLost, ("release-does-not-run".to_owned(), why));
        }
        let patience = self.options.trial;
        let mut judged = Instant::now();
        let end = Instant::now() + patience.trial;
        let starts = self.shared.read().restarts;
        let mut healthy_since: Option<Instant> = None;
        loop {
            let status = self.shared.read();
            if judged.elapsed() > JUDGE {
                judged = Instant::now();
                if let Err(error) = self.staged(other) {
                    return self.give_up(Event::Withdrawn, reason(&error));
                }
            }
            if status.state == "failed" || status.restarts > starts {
                let why = status.reasons.last().map(|last| last.reason.clone()).unwrap_or_default();
                return self.give_up(Event::BootFailed, ("release-does-not-run".to_owned(), why));
            }
            let probed = status.state == "ready" && status.attested.is_some() && self.probe(&status).await;
            healthy_since = probed.then(|| healthy_since.unwrap_or_else(Instant::now));
            match healthy_since {
                Some(since) if since.elapsed() >= patience.healthy => {
                    return self.keep(Event::HealthOk, "the tried release serves, is attested and answers");
                }
                _ if Instant::now() > end => {
                    let why = format!(
                        "the new release was not healthy for {} s within {} s; last state: {} {}",
                        patience.healthy.as_secs(),
                        patience.trial.as_secs(),
                        status.state,
                        status.attestation_error
                    );
                    return self.give_up(Event::HealthLost, ("release-unhealthy".to_owned(), why));
                }
                since => self.step(&match since {
                    Some(since) => format!("healthy for {} s", since.elapsed().as_secs()),
                    None => format!("waiting for health, state {}", status.state),
                }),
            }
            sleep(LOOK).await;
        }
    }

    /// Whether the replica answers through the attested way.
    async fn probe(&self, status: &crate::status::Status) -> bool {
        let ask = async {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", status.ports.http)).await.ok()?;
            crate::http::get_once(stream, "127.0.0.1", "/api/v2/status", 64 * 1024).await.ok()
        };
        matches!(tokio::time::timeout(Duration::from_secs(20), ask).await, Ok(Some(_)))
    }

    /// The release in a slot, if it may run now.
    fn staged(&self, slot: Slot) -> Result<ApprovedManifest, UpgradeError> {
        let path = self.store.manifest(slot, &self.options.manifest);
        let root = self.options.root.load(self.options.profile)?;
        let release = bundle::manifest(&path, &root, self.options.profile)?;
        if *self.part.content(slot) != Content::Release(release.digest()) {
            return Err(UpgradeError::AnotherRelease);
        }
        bundle::admissible(&root, &path, &release, self.node.path())?;
        Ok(release)
    }

    /// Has the agent run what is in a slot from now on.
    async fn switch(&mut self, slot: Slot, tried: bool) -> Result<(), UpgradeError> {
        if self.running == slot {
            return Ok(());
        }
        let checked = self.checked(Target::of_slot(&self.options, &self.store, slot, tried)).await?;
        let (answer, answered) = oneshot::channel();
        let asked = Command::Switch { checked: Box::new(checked), answer };
        self.agent.send(asked).await.map_err(|_| UpgradeError::AgentEnded)?;
        answered.await.map_err(|_| UpgradeError::AgentEnded)?;
        self.running = slot;
        Ok(())
    }

    fn order(&self) -> Result<Option<Order>, UpgradeError> {
        let order = self.store.ordered();
        if let Err(UpgradeError::Malformed(_)) = order {
            self.done();
        }
        order
    }

    /// The order is carried out, or cannot be.
    fn done(&self) {
        // If it stays, the same release is fetched again, which changes nothing.
        let _ = std::fs::remove_file(self.store.order());
    }

    fn give_up(&mut self, event: Event, (code, why): Reason) -> Result<(), UpgradeError> {
        tracing::warn!(code, why, "the upgrade is given up");
        self.keep(event, &format!("{code}: {why}"))?;
        // Another try of the same release goes on by itself.
        if self.part.phase != Phase::Trying {
            self.done();
            let why = (code, why);
            self.store.keep_failure(Some(&why))?;
            self.shared.update(|status| (status.upgrade.code, status.upgrade.reason) = why);
        }
        if self.part.phase == Phase::Failed {
            self.store.erase_key(self.part.active.other())?;
        }
        Ok(())
    }

    fn keep(&mut self, event: Event, text: &str) -> Result<(), UpgradeError> {
        self.keep_release(event, None, text)
    }

    /// Keeps what follows from an event, then its line in the audit log.
    fn keep_release(
        &mut self,
        event: Event,
        release: Option<Digest>,
        text: &str,
    ) -> Result<(), UpgradeError> {
        let next = self.part.step(event, release)?;
        self.sequence = self.store.save(self.sequence, &next)?;
        self.part = next;
        self.show("");
        self.audit(&format!("{event:?}: {text}"))
    }

    fn audit(&self, text: &str) -> Result<(), UpgradeError> {
        tracing::info!(text, "upgrade");
        let head = self.store.audit(unix_time(), text)?;
        self.shared.update(|status| {
            status.upgrade.audit_entries = head.entries;
            status.upgrade.audit_digest = head.digest.to_string();
        });
        Ok(())
    }

    fn step(&self, text: &str) {
        self.shared.update(|status| text.clone_into(&mut status.upgrade.step));
    }

    fn show(&self, text: &str) {
        let part = &self.part;
        self.shared.update(|status| {
            let upgrade = &mut status.upgrade;
            upgrade.phase = format!("{:?}", part.phase).to_lowercase();
            text.clone_into(&mut upgrade.step);
            upgrade.active = format!("{:?}", part.active).to_lowercase();
            upgrade.incoming = part.incoming.map(|digest| digest.to_string()).unwrap_or_default();
        });
    }
}

/// What a node begins with.
pub(crate) struct Begin {
    /// Of the record; 0 before the first upgrade, which makes it.
    pub(crate) sequence: u64,
    /// The state, after whatever ended the last run.
    pub(crate) part: Part<Digest>,
    /// What is started.
    pub(crate) checked: Checked,
}

/// Where a node begins: what is to run, and the state after the crash, power cut or stop that ended the last run. Blocks.
pub(crate) fn begin(
    options: &Options,
    node: &NodeDir,
    lock: &NodeLock,
    progress: &dyn Fn(&str),
) -> Result<Begin, UpgradeError> {
    let store = Store::of(node);
    let Some((sequence, part)) = store.load()? else {
        let checked = check(options, node, lock, Target::of_slot(options, &store, Slot::A, false), progress)?;
        let part = Part::installed(checked.release.manifest().digest());
        return Ok(Begin { sequence: 0, part, checked });
    };
    let part = part.step(Event::Crash, None)?;
    let sequence = store.save(sequence, &part)?;
    store.audit(unix_time(), &format!("the agent starts; an upgrade is {:?}", part.phase))?;
    let tried = matches!(part.phase, Phase::Trying | Phase::Healthy).then(|| part.active.other());
    // What was looked at: the first that may run, and why the others may not.
    let (usable, refused) = (RefCell::new(None), RefCell::new(None));
    let may_run = |slot: Slot, digest: Digest| {
        let target = Target::of_slot(options, &store, slot, tried == Some(slot));
        match check(options, node, lock, target, progress) {
            Ok(checked) if checked.release.manifest().digest() == digest => {
                usable.replace(Some(checked));
                true
            }
            Ok(_) => {
                refused.replace(Some(UpgradeError::AnotherRelease));
                false
            }
            Err(error) => {
                tracing::error!(?slot, "{}", chain(&error));
                refused.replace(Some(error.into()));
                false
            }
        }
    };
    match (part.boot(may_run), usable.into_inner()) {
        (Boot::Slot(_), Some(checked)) => Ok(Begin { sequence, part, checked }),
        _ => {
            let why = refused.into_inner().unwrap_or(UpgradeError::NothingBoots);
            let failed = part.step(Event::NothingBoots, None)?;
            store.save(sequence, &failed)?;
            store.audit(unix_time(), &format!("nothing boots: {}: {}", why.code(), chain(&why)))?;
            Err(why)
        }
    }
}

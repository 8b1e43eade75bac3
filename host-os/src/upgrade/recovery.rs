//! The recovery release: it gets its key beside each upgrade, is started when no slot can be, and then waits for an operator to
//! bring a release, to which it hands the key.
//!
//! What operators see and order is what every node shows and does (`operator`): logs and support bundle, and the node's end. There
//! is no other way in.

#[cfg(test)]
mod tests;

use super::driver::{DOES_NOT_RUN, Driver, LOOK, Reason, reason};
use super::hand_over::CarryError;
use super::{UpgradeError, store};
use crate::bundle::ReleaseFiles;
use crate::check::Target;
use crate::node::Place;
use release::{ApprovedManifest, Purpose};
use tokio::time::sleep;
use upgrade::machine::{Event, Phase};

/// State of a recovery guest that holds the key.
const HOLDS_KEY: &str = "recovery";

impl Driver {
    /// Holds the recovery release that was fetched against root, blessing and measurement; none if the blessing names none.
    pub(super) fn verified_recovery(&self) -> Result<Option<ApprovedManifest>, UpgradeError> {
        let path = self.store.incoming_recovery().join("manifest.json");
        if !path.exists() {
            return Ok(None);
        }
        let release = self.manifest(&path)?;
        self.admissible(&path, &release, Purpose::Recovery)?;
        ReleaseFiles::read(&path, release.clone())?.check_all()?;
        Ok(Some(release))
    }

    /// Has the guest that runs hand the key to the recovery release that came, which then takes the place of the one before. If
    /// the blessing names none, the one before would not be started any more: its key goes.
    pub(super) async fn give_recovery(&mut self) -> Result<(), UpgradeError> {
        // Again: what lies on a disk may have changed since.
        let Some(release) = self.verified_recovery()? else {
            self.store.drop_recovery()?;
            return match self.part.recovery {
                Some(_) => self.keep(Event::RecoveryDropped, "the blessing names no recovery release"),
                None => Ok(()),
            };
        };
        let place = Place::NextRecovery;
        self.step("the running guest hands its key to the recovery release");
        self.store.erase_key(place)?;
        self.store.stage(&release, place, &self.roots()?, self.options.profile)?;
        let target = Target { manifest: self.store.staged(place), place, ..Target::of_recovery(&self.store) };
        self.hand_over(target).await?;
        self.store.take_next_recovery()?;
        let text = format!("the recovery release {} has the key", release.manifest().version);
        self.keep_release(Event::RecoveryGiven, Some(release.digest()), &text)
    }

    /// Why the guest in the committed slot counts as one that does not work: the agent has given it up, or has started it so often
    /// without its having been well.
    pub(super) fn has_given_up(&mut self) -> Option<Reason> {
        let status = self.shared.read();
        if status.state == "ready" {
            self.last_well = status.restarts;
            self.recovery_refused = false;
        }
        let starts = status.restarts.saturating_sub(self.last_well);
        let crashes = self.options.policy.crashes as u64;
        let given_up = status.state == "failed" || starts >= crashes;
        let why = status.reasons.last().map(|last| last.reason.clone()).unwrap_or_default();
        (given_up && self.part.recovery.is_some() && !self.recovery_refused)
            .then(|| (DOES_NOT_RUN.to_owned(), format!("the guest was started {} times: {why}", starts + 1)))
    }

    /// Starts the recovery release in place of a guest that does not work.
    pub(super) async fn recover(&mut self, (code, why): Reason) -> Result<(), UpgradeError> {
        self.step("starting the recovery release");
        let checked = match self.checked(Target::of_recovery(&self.store)).await {
            Ok(checked) => checked,
            Err(error) => {
                // Once is enough: the guest is tried on as long as there is nothing else.
                self.recovery_refused = true;
                self.step("");
                return Err(error);
            }
        };
        self.keep(Event::NothingBoots, &format!("{code}: {why}; the recovery release is started"))?;
        self.store.keep_failure(Some(&(code, why)))?;
        self.run_from_now(checked).await?;
        // Of a release that was tried last.
        self.store.erase_key(self.part.active.other())?;
        self.show("");
        Ok(())
    }

    /// While the recovery release runs: waits for an order, brings what it asks for into the committed slot, and has the key handed to
    /// it. A refusal leaves the recovery release running. The same order goes on after a power cut.
    pub(super) async fn rescue(&mut self) -> Result<(), UpgradeError> {
        if self.part.phase != Phase::Failed {
            return self.leave_recovery().await;
        }
        let Some(order) = self.order()? else {
            sleep(LOOK).await;
            return Ok(());
        };
        // Before the entry in the log, by which whoever waits sees that this order is carried out.
        self.show("");
        let rescued = match &order.operator {
            Some(operator) => {
                self.audit(&format!("{operator} brings {} to the node in recovery", order.source.manifest))?;
                self.bring_to_recovery(&order.source).await
            }
            None => Err(UpgradeError::NoOperator),
        };
        match rescued {
            // The next start begins it again.
            Err(UpgradeError::AgentEnded) => Err(UpgradeError::AgentEnded),
            Err(error) => {
                let (code, why) = reason(&error);
                tracing::warn!(code, why, "nothing is brought to the node in recovery");
                self.done();
                self.audit(&format!("not brought: {code}: {why}"))?;
                self.store.keep_failure(Some(&(code, why)))?;
                self.show("");
                Ok(())
            }
            Ok(release) => {
                self.store.keep_failure(None)?;
                let text = format!("release {} has the key", release.manifest().version);
                self.keep_release(Event::Rescued, Some(release.digest()), &text)?;
                self.done();
                self.leave_recovery().await
            }
        }
    }

    /// Fetches, verifies and stages a release, and has the recovery guest hand the key to it.
    async fn bring_to_recovery(&mut self, source: &super::Source) -> Result<ApprovedManifest, UpgradeError> {
        let active = self.part.active;
        self.shared.update(|status| status.upgrade.moved = 0);
        let release = self.fetch_node(source).await?;
        self.step("verifying");
        let path = self.store.incoming().join("manifest.json");
        self.admissible(&path, &release, Purpose::Node)?;
        ReleaseFiles::read(&path, release.clone())?.check_all()?;
        self.step("writing the release into the committed slot");
        // Its vault stays until the new one is written over it: a power cut in between leaves a slot that is refused for its
        // files, or one that starts as it was.
        self.store.stage(&release, active, &self.roots()?, self.options.profile)?;
        self.step("the recovery guest hands its key to the release");
        loop {
            match self.shared.read().state.as_str() {
                HOLDS_KEY => break,
                // An operator's order to start the guest again helps, or a restart.
                "failed" => return Err(CarryError::Silent("recovery").into()),
                _ if self.agent.is_closed() => return Err(UpgradeError::AgentEnded),
                _ => sleep(LOOK).await,
            }
        }
        self.hand_over(Target::of_slot(&self.options, &self.store, active, true)).await?;
        Ok(release)
    }

    /// Starts the release that was brought; if its files are bad again, recovery goes on.
    async fn leave_recovery(&mut self) -> Result<(), UpgradeError> {
        let (active, other) = (self.part.active, self.part.active.other());
        self.store.erase_key(other)?;
        match self.switch(active, false).await {
            Err(error) if error.is_of_release() => {
                let (code, why) = reason(&error);
                self.keep(Event::NothingBoots, &format!("{code}: {why}"))?;
                Ok(self.store.keep_failure(Some(&(code, why)))?)
            }
            switched => {
                self.show("");
                switched
            }
        }
    }

    /// Fetches the recovery releases that the blessing in `incoming/` names: the one beside the release. What it has in common with
    /// that, or with the recovery release before, is not fetched again.
    pub(super) async fn fetch_recovery(&self, source: &super::Source) -> Result<(), UpgradeError> {
        let directory = self.store.incoming_recovery();
        if !self.names_recovery()? {
            return Ok(store::remove(&directory)?);
        }
        let release = self.fetch_guest(&source.within(store::RECOVERY), &directory).await?;
        tracing::info!(version = release.manifest().version, "the recovery release is here");
        Ok(())
    }

    /// Whether the blessing in `incoming/` names a recovery release. One that is refused is refused where it is judged.
    fn names_recovery(&self) -> Result<bool, UpgradeError> {
        use release::{Authority, BLESSING_FILE};
        let path = self.store.incoming().join(BLESSING_FILE);
        let failed = |source| crate::bundle::ReleaseError::Unreadable { path: path.clone(), source };
        let statement = std::fs::read(&path).map_err(failed)?;
        Ok(self
            .roots()?
            .present()
            .authenticate(&statement)
            .is_ok_and(|blessing| blessing.releases.values().any(|purpose| *purpose == Purpose::Recovery)))
    }
}

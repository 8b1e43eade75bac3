//! The driver's side of the host's upgrade: what it knows of releases, of health and of time.

use super::machine::{self, HostError, check, files, root_device};
use super::{Host, Incoming, Next};
use crate::attest::chain;
use crate::bundle;
use crate::check::Options;
use crate::power::{Action, Power};
use crate::upgrade::driver::{Driver, LOOK, Verdict};
use crate::upgrade::status::HostStatus;
use crate::upgrade::{Store, UpgradeError};
use installer::parts::Parts;
use release::{ApprovedManifest, Digest, File, HostImages};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::sleep;
use upgrade::machine::{Content, Event, Phase, Slot};

/// The images of a host, and the root that runs, from which a difference to theirs begins: what it should be, and where.
type NewHost = (HostImages, Option<(File, PathBuf)>);

/// Releases as the driver judges them.
struct Judge<'a>(&'a Driver);

impl Judge<'_> {
    fn images(&self, release: &ApprovedManifest) -> Result<HostImages, UpgradeError> {
        let none = || installer::parts::ReleaseError::NoHost(release.manifest().version.clone());
        Ok(release.manifest().host.clone().ok_or_else(none).map_err(HostError::Parts)?)
    }
}

impl Incoming for Judge<'_> {
    fn verify(&self, digest: Digest) -> Result<HostImages, UpgradeError> {
        let release = self.0.arrived(digest)?;
        let images = self.images(&release)?;
        let directory = self.0.store.incoming();
        let files = files(&directory, release.manifest())?;
        check(&files, &images)?;
        let roots = self.0.roots()?;
        Parts::of(files, roots.present(), self.0.options.profile).map_err(HostError::Parts)?;
        Ok(images)
    }

    fn admissible(&self, digest: Digest) -> Result<HostImages, UpgradeError> {
        let release = self.0.arrived(digest)?;
        self.images(&release)
    }
}

impl Driver {
    /// Does what the host's phase asks for.
    pub(in crate::upgrade) async fn advance_host(&mut self) -> Result<(), UpgradeError> {
        let not_before = self.order()?.map_or(0, |order| order.not_before);
        let Some(mut host) = self.host.take() else { return Ok(()) };
        if host.part.phase == Phase::Staged
            && let Err(error) = self.store.keep_installed(&self.options.manifest)
        {
            self.host = Some(host);
            return Err(error);
        }
        self.step(match host.part.phase {
            Phase::Fetched => "verifying the host's files",
            Phase::Verified => "writing the host into the other slot",
            Phase::Staged => "preparing the machine for the new host",
            Phase::Reverting => "going back to the committed host",
            _ => "",
        });
        let before = host.part.phase;
        let next = host.advance(&Judge(self), &self.part, not_before);
        let follows = (before, host.part.phase) == (Phase::Committed, Phase::Idle);
        let release = *host.part.content(host.part.active);
        self.host = Some(host);
        self.show("");
        self.show_log();
        match next? {
            Next::Nothing => {}
            Next::Advance if follows => self.guest_follows(release)?,
            Next::Advance => {}
            Next::NotYet => {
                self.step(&format!("waiting until {not_before} (seconds since 1970)"));
                sleep(LOOK).await;
            }
            Next::Observe => self.observe_host().await?,
            Next::Restart => {
                self.step("the machine restarts");
                self.until_the_end().await;
            }
        }
        Ok(())
    }

    /// The release's other part.
    fn guest_follows(&mut self, release: Content<Digest>) -> Result<(), UpgradeError> {
        let Content::Release(digest) = release else { return Ok(()) };
        if self.order()?.is_none() || *self.part.content(self.part.active) == release {
            return self.carried_out("the guest's release is that of the host");
        }
        if self.part.phase == Phase::Failed {
            self.keep(Event::Acknowledge, "the guest follows the host")?;
        }
        self.keep_release(Event::FetchDone, Some(digest), "the guest follows the host")
    }

    async fn observe_host(&mut self) -> Result<(), UpgradeError> {
        let Some(Content::Release(digest)) =
            self.host.as_ref().map(|host| *host.part.content(host.part.active.other()))
        else {
            return Ok(());
        };
        let verdict = self.trial(|driver| driver.arrived(digest).map(drop)).await;
        let health = match verdict {
            Verdict::Healthy => Ok(()),
            Verdict::Withdrawn(error) => Err(error),
            Verdict::Ill(why) => Err(HostError::Unhealthy(why.1).into()),
        };
        if let Some(host) = &mut self.host {
            host.observed(health)?;
        }
        self.show("");
        Ok(())
    }

    /// The release that was fetched, if it is this one and may be brought to this node now.
    fn arrived(&self, digest: Digest) -> Result<ApprovedManifest, UpgradeError> {
        let path = self.store.incoming().join("manifest.json");
        let release = self.manifest(&path)?;
        if release.digest() != digest {
            return Err(UpgradeError::AnotherRelease);
        }
        self.admissible(&path, &release, release::Purpose::Node)?;
        Ok(release)
    }

    /// The host that a release brings, if it is not the one that runs.
    pub(in crate::upgrade) fn new_host(
        &self,
        release: &ApprovedManifest,
    ) -> Result<Option<NewHost>, UpgradeError> {
        let Some(host) = &self.host else { return Ok(None) };
        let Some(images) = release.manifest().host.clone() else { return Ok(None) };
        let running = self.manifest(&self.options.manifest)?;
        let running = running.manifest().host.as_ref();
        if running.is_some_and(|running| running.uki == images.uki) || !host.is_new(release.digest()) {
            return Ok(None);
        }
        Ok(Some((images, running.map(|running| running.root.clone()).zip(root_device()))))
    }

    pub(in crate::upgrade) fn host_status(&self) -> Option<HostStatus> {
        let host = self.host.as_ref()?;
        let slot = |slot: Slot| format!("{slot:?}").to_lowercase();
        Some(HostStatus {
            phase: format!("{:?}", host.part.phase).to_lowercase(),
            active: slot(host.part.active),
            running: slot(host.machine.running()),
            tries: host.part.tries,
            release: match host.part.content(host.part.active) {
                Content::Release(digest) => digest.to_string(),
                Content::Partial => String::new(),
            },
        })
    }
}

/// Where the host's upgrade goes on, on a machine of its own; `None`, with the reason in the log, where it cannot.
pub(crate) fn begin(options: &Options, store: &Store) -> Option<Host> {
    let power = options.power.clone()?;
    match of_machine(options, store, power.clone()) {
        Ok(host) => {
            if let Some(decided) = host.fuse() {
                tokio::spawn(burn(decided, power, 2 * (options.trial.trial + options.trial.healthy)));
            }
            Some(host)
        }
        Err(error) => {
            let why = chain(&error);
            tracing::error!(code = error.code(), why, "this host cannot be upgraded by the node itself");
            None
        }
    }
}

fn of_machine(options: &Options, store: &Store, power: Power) -> Result<Host, UpgradeError> {
    let running = machine::running().ok_or(HostError::NoSlot)?;
    let roots = store.roots(&options.root, options.profile)?;
    // What runs and cannot be named must still be left if it is only tried.
    let release =
        bundle::manifest(&options.manifest, &roots, options.profile).map(|manifest| manifest.digest());
    let release = release.unwrap_or_else(|error| {
        tracing::error!(why = chain(&error), "the release of the host that runs is unknown");
        Digest([0; 32])
    });
    let machine = machine::Own {
        running,
        store: store.clone(),
        root: options.root.clone(),
        profile: options.profile,
        power,
    };
    Host::begin(store.clone(), Box::new(machine), release)
}

/// Restarts the machine, which leads back to the old host, if nobody decides about the new one: whatever hangs, it is not tried
/// for ever.
async fn burn(decided: Arc<AtomicBool>, power: Power, limit: Duration) {
    sleep(limit).await;
    if !decided.load(Ordering::Relaxed)
        && let Err(error) = power.request(Action::Reboot, "nothing decides about the new host")
    {
        tracing::error!("{}", chain(&error));
    }
}

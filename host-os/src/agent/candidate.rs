//! The guest that takes over the node's key from the one that runs, beside it.

use super::Agent;
use crate::attest::chain;
use crate::check::{Checked, Options};
use crate::confine::find_program;
use crate::guest::{Guest, Reports, SpawnError, Welcome, channels};
use crate::launch::Launch;
use crate::node::NodeDir;
use crate::upgrade::hand_over::{self, CarryError};
use host_guest::ToGuest;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Memory: kernel, initrd and little else.
pub(super) const MEMORY_MIB: u32 = 512;
/// For a guest that has the key to power off.
const LAST_WORDS: Duration = Duration::from_secs(20);

impl Agent {
    /// Starts a guest that takes over the key of the one that runs, and carries their messages until it has it.
    pub(super) fn hand_over(
        &mut self,
        options: &Options,
        node: &NodeDir,
        checked: &Checked,
        documents: ToGuest,
        answer: oneshot::Sender<Result<Duration, CarryError>>,
    ) {
        let Some(old) = self.guest.as_ref().map(Guest::to_guest) else {
            let _ = answer.send(Err(CarryError::Silent("old")));
            return;
        };
        let (reports, inbox) = mpsc::channel(16);
        let mut candidate = match self.candidate(options, node, checked, &reports) {
            Ok(candidate) => candidate,
            Err(error) => {
                let _ = answer.send(Err(CarryError::NotStarted(chain(&error))));
                return;
            }
        };
        drop(reports);
        let (giving, heard) = mpsc::channel(16);
        self.giving = Some(giving);
        // Tasks of a current-thread runtime run on its thread, where QEMU's parent has to be.
        tokio::spawn(async move {
            let new = candidate.to_guest();
            let end = hand_over::carry(old, heard, new, inbox, documents).await;
            if end.is_ok() {
                // It powers off by itself once the key is in its vault.
                let _ = tokio::time::timeout(LAST_WORDS, candidate.ended()).await;
            }
            let _ = answer.send(end);
        });
    }

    /// Without network and NVRAM.
    fn candidate(
        &self,
        options: &Options,
        node: &NodeDir,
        checked: &Checked,
        reports: &Reports,
    ) -> Result<Guest, SpawnError> {
        let (ends, _qemu_ends, channels) = channels()?;
        let connected = checked.platform.connect()?;
        let launch = Launch {
            platform: connected.platform,
            measured: checked.release.measured().clone(),
            memory_mib: MEMORY_MIB.min(options.memory_mib),
            disk: checked.disk.clone(),
            serving: None,
            channels,
        };
        let qemu = find_program(&options.qemu);
        let plan = self.confine(options, &qemu, &launch, "candidate");
        let welcome = Welcome { config: checked.config.clone(), certificates: connected.certificates };
        let log = node.candidate_log();
        let mut guest = Guest::spawn(&qemu, &launch, &plan, ends, &log, welcome, self.number, reports)?;
        guest.attach(connected.task);
        tracing::info!(pid = guest.pid(), "the guest that takes over runs");
        Ok(guest)
    }
}

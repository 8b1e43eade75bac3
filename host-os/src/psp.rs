//! Serves the simulated secure processor to one guest. Only in builds for virtual nodes.

use crate::bundle::CheckedRelease;
use crate::config::ConfigText;
use crate::guest::next_frame;
use crate::node::NodeDir;
use attestation::report::GuestPolicy;
use simulated_psp::chip::{Chip, ChipError, LaunchContext, Psp};
use simulated_psp::protocol::{Request, Response};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// The node's simulated chip, and what is launched on it.
#[derive(Debug)]
pub struct SimulatedProcessor {
    chip: Chip,
    context: LaunchContext,
}

impl SimulatedProcessor {
    /// Opens the node's chip.
    pub(crate) fn open(
        node: &NodeDir,
        release: &CheckedRelease,
        config: &ConfigText,
    ) -> Result<Self, ChipError> {
        let mut context = LaunchContext::new(*release.measurement(), config.host_data());
        context.policy = GuestPolicy(release.manifest().manifest().guest.policy);
        Ok(Self { chip: Chip::open_or_create(&node.chip())?, context })
    }

    /// The certificates that endorse the reports.
    pub(crate) fn certificate_table(&self) -> &[u8] {
        self.chip.certificate_table()
    }

    /// Begins the life of one guest.
    pub(crate) fn launch(&self) -> Result<Psp, ChipError> {
        self.chip.launch(self.context.clone())
    }
}

/// Answers requests until the guest is gone or sends something that is no request.
pub(crate) async fn serve(mut stream: UnixStream, psp: Psp) {
    let mut buffer = Vec::new();
    loop {
        let request = match next_frame::<Request>(&mut stream, &mut buffer).await {
            Ok(request) => request,
            Err(error) => return tracing::debug!(%error, "the simulated secure processor's port ended"),
        };
        let mut response = psp.handle(&request);
        // QEMU has no way to put certificates beside a report: as on hardware they take the agent's own channel.
        if let Response::Report { certificates, .. } = &mut response {
            certificates.0.clear();
        }
        let response = match host_guest::encode(&response) {
            Ok(frame) => stream.write_all(&frame).await.map_err(Into::into),
            Err(error) => Err(error),
        };
        if let Err(error) = response {
            return tracing::warn!(%error, "the simulated secure processor cannot answer");
        }
    }
}

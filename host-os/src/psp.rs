//! Serves the simulated secure processor to one guest. Only in builds for virtual nodes.

use crate::bundle::CheckedRelease;
use crate::check::CheckError;
use crate::config::ConfigText;
use crate::guest::next_frame;
use crate::node::NodeDir;
use simulated_psp::chip::{Chip, LaunchContext, Psp};
use simulated_psp::protocol::Request;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// One launch's processor: the same for every start of the same release and configuration.
pub(crate) type SharedPsp = Arc<Psp>;

/// The node's simulated chip, told what is launched on it.
pub(crate) fn open(
    node: &NodeDir,
    release: &CheckedRelease,
    config: &ConfigText,
) -> Result<SharedPsp, CheckError> {
    let chip = Chip::open_or_create(&node.chip()).map_err(|error| CheckError::Chip(error.to_string()))?;
    let context = LaunchContext {
        measurement: *release.measurement(),
        host_data: config.host_data(),
        policy: release.manifest().manifest().guest.policy,
    };
    Ok(Arc::new(chip.launch(context)))
}

/// Answers requests until the guest is gone or sends something that is no request.
pub(crate) async fn serve(mut stream: UnixStream, psp: SharedPsp) {
    let mut buffer = Vec::new();
    loop {
        let request = match next_frame::<Request>(&mut stream, &mut buffer).await {
            Ok(request) => request,
            Err(error) => return tracing::debug!(%error, "the simulated secure processor's port ended"),
        };
        let response = match host_guest::encode(&psp.handle(&request)) {
            Ok(frame) => stream.write_all(&frame).await.map_err(Into::into),
            Err(error) => Err(error),
        };
        if let Err(error) = response {
            return tracing::warn!(%error, "the simulated secure processor cannot answer");
        }
    }
}

//! The listener: TLS, limits, one task for each connection.

use super::api::{ClientKey, router};
use super::carry::Orders;
use super::identity::{Identity, ed25519_of, key_of};
use super::keys::ShownKey;
use crate::http::Shared;
use crate::node::NodeDir;
use axum::Extension;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

/// Connections at the same time; more wait in the listener's queue.
const CONNECTIONS: usize = 32;
/// For the handshake, and for the head of each request.
const PATIENCE: Duration = Duration::from_secs(10);
/// For a whole connection.
const LIFETIME: Duration = Duration::from_secs(300);

/// What the routes show.
#[derive(Clone)]
pub(crate) struct Interface {
    pub(crate) shared: Shared,
    pub(crate) node: NodeDir,
    pub(crate) orders: Orders,
}

/// Serves until the task is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    identity: Identity,
    interface: Interface,
) -> Result<(), rustls::Error> {
    let acceptor = TlsAcceptor::from(super::tls::server_config(&identity)?);
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let attestation = crate::tpm::serve::routes(identity.key_sha256, crate::tpm::serve::Machine::own());
    let routes = router(interface).merge(attestation);
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return Ok(()) };
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, "the operators' port cannot accept");
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (acceptor, routes) = (acceptor.clone(), routes.clone());
        tokio::spawn(async move {
            // Whatever a stranger sends costs one connection for a while, and nothing else.
            let _ = timeout(LIFETIME, connection(client, acceptor, routes)).await;
            drop(permit);
        });
    }
}

async fn connection(client: TcpStream, acceptor: TlsAcceptor, routes: axum::Router) {
    let Ok(Ok(stream)) = timeout(PATIENCE, acceptor.accept(client)).await else { return };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let key = ClientKey(shown.and_then(|certificate| match ed25519_of(certificate) {
        Some(public_key) => Some(ShownKey::ed25519(&public_key)),
        None => Some(ShownKey { key_sha256: key_of(certificate).ok()?, fingerprint: None }),
    }));
    let service = TowerToHyperService::new(routes.layer(Extension(key)));
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

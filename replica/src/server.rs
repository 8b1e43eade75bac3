//! The sockets: TLS or plain, connections with limits, graceful end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::config::Limits;
use crate::metrics::Metrics;
use crate::tls::TlsIdentity;

/// TLS handshake and request headers must be done within this time.
const HEADER_TIME: Duration = Duration::from_secs(15);
/// An HTTP/2 connection is asked at this interval whether the client is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Requests under way get this time when the replica stops.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A listening socket.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    metrics: Arc<Metrics>,
}

impl Server {
    /// Listens.
    pub async fn bind(
        address: SocketAddr,
        tls: Option<&TlsIdentity>,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener, tls: tls.map(TlsIdentity::acceptor), limits, metrics })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` comes, then lets requests under way finish for a moment.
    pub async fn serve(self, router: Router, stop: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(self.limits.connections));
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .max_concurrent_streams(self.limits.streams);
        let builder = Arc::new(builder);
        let graceful = GracefulShutdown::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let accept = async {
                let place = places.clone().acquire_owned().await;
                (place, self.listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = &mut stop => break,
                accepted = accept => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, or the client is gone already: neither ends the service.
                    tracing::debug!("a connection could not be taken: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            Metrics::count(&self.metrics.connections);
            let _ = stream.set_nodelay(true);
            let (tls, router, builder) = (self.tls.clone(), router.clone(), builder.clone());
            let watcher = graceful.watcher();
            tokio::spawn(async move {
                let _place = place;
                match tls {
                    None => talk(stream, router, &builder, watcher).await,
                    Some(tls) => match timeout(HEADER_TIME, tls.accept(stream)).await {
                        Ok(Ok(stream)) => talk(stream, router, &builder, watcher).await,
                        Ok(Err(error)) => tracing::debug!("a TLS handshake failed: {error}"),
                        Err(_) => tracing::debug!("a TLS handshake took too long"),
                    },
                }
            });
        }
        drop(self.listener);
        let _ = timeout(DRAIN_TIME, graceful.shutdown()).await;
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    builder: &auto::Builder<TokioExecutor>,
    watcher: Watcher,
) {
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = watcher.watch(connection.into_owned()).await {
        tracing::debug!("a connection ended early: {error}");
    }
}

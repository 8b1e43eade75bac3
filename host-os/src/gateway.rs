//! Plain HTTP on this machine's loopback, attested TLS to the guest.
//!
//! Bytes are copied as they are. While no evidence has been verified, and when the guest shows another TLS key
//! than the one proved, a request is answered with 502 and a reason, and nothing of it reaches the guest.

use crate::attest::Pin;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

/// Connections at the same time; more wait in the listener's queue.
const CONNECTIONS: usize = 128;
/// A connection on which nothing moved for so long is closed.
const IDLE: Duration = Duration::from_secs(300);
/// Patience for the connection and TLS handshake with an emulated guest.
const CONNECT: Duration = Duration::from_secs(20);

/// Serves `listener` until the task is dropped.
pub(crate) async fn serve(listener: TcpListener, guest: SocketAddr, pin: watch::Receiver<Option<Pin>>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                // Out of descriptors, most likely: trying again at once would only burn time.
                tracing::warn!(%error, "the gateway cannot accept");
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let pin = pin.borrow().clone();
        tokio::spawn(async move {
            connection(client, guest, pin).await;
            drop(permit);
        });
    }
}

async fn connection(client: TcpStream, guest: SocketAddr, pin: Option<Pin>) {
    let Some(pin) = pin else {
        return refuse(client, "the guest is not attested yet; `redoubt status` says how far it is").await;
    };
    let server = timeout(CONNECT, async {
        let stream = TcpStream::connect(guest).await?;
        stream.set_nodelay(true)?;
        pin.connector().connect(guest.ip(), stream).await
    });
    match server.await {
        Ok(Ok(server)) => copy(client, server).await,
        Ok(Err(error)) => refuse(client, &format!("no attested connection to the guest: {error}")).await,
        Err(_) => refuse(client, "the guest does not answer").await,
    }
}

/// Answers 502. The request is read first, and what follows it for a moment: closing a socket with unread bytes
/// resets the connection, and the client would never see the reason.
async fn refuse(mut client: TcpStream, reason: &str) {
    let answer = async {
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 16 * 1024 {
            if client.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        let body = format!("redoubt gateway: {reason}\n");
        let head = format!(
            "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        client.write_all((head + &body).as_bytes()).await?;
        client.shutdown().await?;
        let mut rest = [0; 4096];
        while client.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    // Whether the client stayed to hear it is the client's business.
    let _ = timeout(Duration::from_secs(2), answer).await;
}

async fn copy(client: TcpStream, server: impl AsyncRead + AsyncWrite) {
    let activity = Activity::new();
    let (client_reader, client_writer) = client.into_split();
    let (server_reader, server_writer) = tokio::io::split(server);
    let idle = async {
        loop {
            match IDLE.checked_sub(activity.idle()) {
                Some(left) if !left.is_zero() => sleep(left).await,
                _ => return,
            }
        }
    };
    let both = async {
        tokio::try_join!(
            pump(client_reader, server_writer, &activity),
            pump(server_reader, client_writer, &activity)
        )
    };
    tokio::select! {
        _ = both => {}
        () = idle => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &Activity,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
        activity.touch();
    }
}

/// When something last moved, in either direction.
struct Activity {
    start: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { start: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn touch(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn idle(&self) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed)))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing;

    /// A gateway in front of a TLS server that answers every request with "hello".
    async fn gateway(pin: impl FnOnce(&testing::Server) -> Option<Pin>) -> SocketAddr {
        let server = testing::Server::start("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
        let (_sender, pin) = watch::channel(pin(&server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, server.address, pin));
        address
    }

    async fn ask(address: SocketAddr) -> String {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_pinned_guest_is_reached() {
        let address = gateway(|server| Some(Pin::of(server.key_hash).unwrap())).await;
        assert!(ask(address).await.ends_with("\r\n\r\nhello"));
    }

    #[tokio::test]
    async fn without_evidence_nothing_passes() {
        let address = gateway(|_| None).await;
        let answer = ask(address).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains("not attested yet"), "{answer}");
    }

    #[tokio::test]
    async fn a_guest_with_another_key_is_refused() {
        let address = gateway(|_| Some(Pin::of([7; 32]).unwrap())).await;
        let answer = ask(address).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains("not the one that its evidence proved"), "{answer}");
    }
}

//! The guest's port on the machine's own addresses: connections are handed on as they are. TLS ends in the guest, so the host
//! sees and changes nothing but bytes that the guest's key protects.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Connections at the same time; more wait in the listener's queue.
const CONNECTIONS: usize = 512;
/// Patience for the connection to the guest.
const CONNECT: Duration = Duration::from_secs(20);
/// A connection ends after so long, whatever it does: agents open new ones.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Serves until the task is dropped.
pub(crate) async fn serve(listener: TcpListener, guest: SocketAddr) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, "the guest's port cannot accept");
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        tokio::spawn(async move {
            // Its end is all that there is to say to either side.
            let _ = timeout(LIFETIME, connection(client, guest)).await;
            drop(permit);
        });
    }
}

async fn connection(mut client: TcpStream, guest: SocketAddr) -> std::io::Result<()> {
    let mut server = timeout(CONNECT, TcpStream::connect(guest)).await??;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bytes_go_through_both_ways_and_a_silent_guest_is_only_an_end() {
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = guest.local_addr().unwrap();
        let listener = TcpListener::bind("[::]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve(listener, address));
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut there, _) = guest.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        let mut read = [0; 8];
        there.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"question");
        there.write_all(b"answer").await.unwrap();
        drop(there);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        drop(guest);
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // Nobody is there any more.
        assert_eq!(client.read(&mut read).await.unwrap_or(0), 0);
    }
}

//! Strangers: what comes in at a port that the world can reach.

use anyhow::{Context, Result, ensure};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

/// To each port.
const MALFORMED: u64 = 10_000;
/// At the same time.
const STRANGERS: u64 = 8;

/// Sends garbage, half of it with the beginning of something sensible, and reads what comes.
fn stranger(port: u16, seed: u64, count: u64) -> Result<()> {
    const BEGINNINGS: [&[u8]; 6] = [
        b"",
        b"GET / HTTP/1.1\r\nno header\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
        b"POST /api/v2/canister/aaaaa-aa/call HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        // A TLS record of a client's greeting, too long.
        &[0x16, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xfb, 3, 3],
        b"\xd9\xd9\xf7\xa3",
    ];
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..count {
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut bytes = BEGINNINGS[(next() % 6) as usize].to_vec();
        bytes.extend((0..next() % 200).map(|_| next() as u8));
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        // The other side may have hung up already.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..length]);
        ensure!(!answer.starts_with("HTTP/1.1 2"), "port {port} takes garbage: {answer}");
    }
    Ok(())
}

/// Sends ten thousand malformed requests to a port of this machine; an error if one of them is taken for a good one.
pub fn strangers(port: u16) -> Result<()> {
    let threads = (0..STRANGERS)
        .map(|number| std::thread::spawn(move || stranger(port, number + 1, MALFORMED / STRANGERS)));
    for thread in threads.collect::<Vec<_>>() {
        thread.join().ok().context("a stranger panicked")??;
    }
    Ok(())
}

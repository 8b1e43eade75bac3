//! A server of releases over plain HTTP, with the faults that networks have.

use anyhow::{Context, Result};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Serves the files of a directory until the process ends.
pub struct Mirror {
    /// Its address, without a slash at the end.
    pub url: String,
    state: Arc<State>,
}

struct State {
    directory: PathBuf,
    /// Bytes of bodies that were sent.
    sent: AtomicU64,
    /// After so many bytes of a body the next connection breaks; 0 for never.
    cut: AtomicU64,
}

impl Mirror {
    /// Serves this directory.
    pub fn of(directory: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let state = Arc::new(State {
            directory: directory.to_owned(),
            sent: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        });
        let served = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = served.clone();
                // A client that goes away is no error of the server.
                std::thread::spawn(move || drop(state.answer(stream)));
            }
        });
        Ok(Self { url, state })
    }

    /// Bytes of bodies that were sent since this was asked last.
    pub fn sent(&self) -> u64 {
        self.state.sent.swap(0, Ordering::Relaxed)
    }

    /// The next body longer than this breaks off after as many bytes, once.
    pub fn cut_after(&self, bytes: u64) {
        self.state.cut.store(bytes, Ordering::Relaxed);
    }
}

impl State {
    fn answer(&self, stream: TcpStream) -> Result<()> {
        let (mut path, mut start, mut line) = (String::new(), 0_usize, String::new());
        let mut reader = BufReader::new(&stream);
        while reader.read_line(&mut line)? > 2 {
            if let Some(rest) = line.strip_prefix("GET /") {
                path = rest.split(' ').next().unwrap_or_default().to_owned();
            }
            let lower = line.to_lowercase();
            if let Some(range) = lower.strip_prefix("range: bytes=") {
                start = range.trim_end().trim_end_matches('-').parse().context("a range")?;
            }
            line.clear();
        }
        let mut stream = &stream;
        let Ok(content) = fs::read(self.directory.join(&path)) else {
            return Ok(stream
                .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?);
        };
        let body = content.get(start..).unwrap_or_default();
        let status = match start {
            0 => "200 OK\r\n".to_owned(),
            _ => format!(
                "206 Partial Content\r\nContent-Range: bytes {start}-{}/{}\r\n",
                content.len().saturating_sub(1),
                content.len()
            ),
        };
        write!(stream, "HTTP/1.1 {status}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
        let cut = self.cut.load(Ordering::Relaxed);
        let part = match cut {
            1.. if body.len() as u64 > cut => {
                self.cut.store(0, Ordering::Relaxed);
                &body[..usize::try_from(cut)?]
            }
            _ => body,
        };
        stream.write_all(part)?;
        self.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

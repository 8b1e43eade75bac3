//! Looking at a machine's screen and typing on its keyboard, as somebody who stands before it does.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Screen and keyboard of a machine in QEMU, by its QMP socket.
pub struct Screen {
    answers: BufReader<UnixStream>,
}

impl Screen {
    /// Connects to QEMU's control socket.
    pub fn of(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut screen = Self { answers: BufReader::new(stream) };
        screen.ask("qmp_capabilities", json!({}))?;
        Ok(screen)
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<()> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.answers.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut line = String::new();
            ensure!(self.answers.read_line(&mut line)? > 0, "QEMU has hung up");
            let answer: Value = serde_json::from_str(&line)?;
            if answer["error"].is_object() {
                bail!("{command}: {answer}");
            }
            // Greetings and events come between.
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    /// Presses a key by QEMU's name for it: a digit, a small letter, or such as `ret`.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let keys = json!({ "keys": [{ "type": "qcode", "data": key }], "hold-time": 20 });
        self.ask("send-key", keys)?;
        // The keyboard's queue is short, and the machine is translated.
        std::thread::sleep(Duration::from_millis(80));
        Ok(())
    }

    /// Types digits and small letters.
    pub fn write(&mut self, text: &str) -> Result<()> {
        text.chars().try_for_each(|key| self.press(key.encode_utf8(&mut [0; 4])))
    }

    /// What the code on the screen says, as a camera would read it; waits for one that begins so.
    pub fn code(&mut self, beginning: &str, limit: Duration) -> Result<String> {
        let folder = tempfile::tempdir()?;
        let picture = folder.path().join("screen.ppm");
        let end = Instant::now() + limit;
        loop {
            self.ask("screendump", json!({ "filename": picture }))?;
            let read = Command::new("zbarimg").args(["--raw", "--quiet"]).arg(&picture).output();
            let read = read.context("cannot run zbarimg; `cargo xtask setup` installs it")?;
            let text = String::from_utf8_lossy(&read.stdout).trim().to_owned();
            if text.starts_with(beginning) {
                return Ok(text);
            }
            ensure!(Instant::now() < end, "no code {beginning}... on the screen, but {text:?}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

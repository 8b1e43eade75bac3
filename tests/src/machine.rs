//! A whole virtual machine: `redoubt up --full --keep`, and what its operator does with it.

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::Setup;

/// A machine that runs until it is dropped, which is a power cut.
pub struct Machine<'a> {
    setup: &'a Setup,
    up: Child,
    /// What `redoubt up` printed.
    pub reply: Value,
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let id = Pid::from_raw(self.up.id().cast_signed());
        // It may have ended by itself.
        let _ = signal::kill(id, Signal::SIGTERM);
        let _ = self.up.wait();
    }
}

impl<'a> Machine<'a> {
    /// Starts the machine in this folder, installs it if it is new, and waits until its guest is verified.
    pub fn start(setup: &'a Setup, folder: &Path, limit: Duration) -> Result<Self> {
        let seconds = limit.as_secs().to_string();
        let mut up = Command::new(setup.program("redoubt"));
        up.args(["--json", "up", "--full", "--keep", "--timeout", &seconds, "--release"]);
        up.arg(&setup.release).arg("--machine").arg(folder);
        let mut up = up.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let output = up.stdout.take().context("no output")?;
        let mut errors = up.stderr.take().context("no errors")?;
        let (sender, printed) = mpsc::channel();
        std::thread::spawn(move || {
            // The reply ends with the first line that closes its first brace.
            let mut reply = String::new();
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                reply.push_str(&line);
                if line == "}" {
                    break;
                }
            }
            let _ = sender.send(reply);
        });
        let complaints = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let printed = printed.recv_timeout(limit + Duration::from_secs(30));
        let mut machine = Self { setup, up, reply: Value::Null };
        match serde_json::from_str::<Value>(&printed.unwrap_or_default()) {
            Ok(reply) if reply["error"].is_null() => {
                machine.reply = reply;
                Ok(machine)
            }
            other => {
                drop(machine);
                bail!("{other:?}: {}", complaints.join().unwrap_or_default())
            }
        }
    }

    /// A text of what `redoubt up` printed.
    pub fn said(&self, name: &str) -> Result<&str> {
        self.reply[name].as_str().with_context(|| {
            let console = self.reply["machine"].as_str().map(|folder| Path::new(folder).join("console.log"));
            let said = console.and_then(|path| fs::read(path).ok()).unwrap_or_default();
            format!("no {name}: {:#}\nThe console: {}", self.reply, String::from_utf8_lossy(&said))
        })
    }

    /// HOST:PORT of its operators' interface.
    pub fn operators(&self) -> Result<&str> {
        self.reply["urls"]["operators"].as_str().context("no operators' port")
    }

    /// A file of the machine.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        Ok(Path::new(self.said("machine")?).join(name))
    }

    /// `redoubt COMMAND` about this node, by its operator.
    pub fn operate(&self, command: &[&str]) -> Result<Output> {
        let key = self.path("operator.pem")?;
        let key = key.to_str().context("a path")?;
        let rest =
            ["--node", self.operators()?, "--node-key", self.said("host_key")?, "--key", key, "--json"];
        self.setup.redoubt(command.iter().chain(&rest))
    }

    /// Waits until the machine's console says this.
    pub fn until_said(&self, text: &str, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while !String::from_utf8_lossy(&fs::read(self.path("console.log")?)?).contains(text) {
            ensure!(Instant::now() < end, "the console never says {text:?}");
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }
}

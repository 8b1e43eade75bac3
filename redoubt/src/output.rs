//! What commands print and how they end.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done; what was asked for holds
  1  refused or failed; the error says what and what to do
  2  the command line was wrong, or a file that it names cannot be read";

/// What a command has to say.
#[derive(Debug)]
pub(crate) struct Reply {
    /// For people.
    pub(crate) text: String,
    /// For programs.
    pub(crate) json: Value,
    /// Whether what was asked for holds.
    pub(crate) good: bool,
}

impl Reply {
    pub(crate) fn good(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json, good: true }
    }

    /// A command that printed everything itself.
    pub(crate) fn silent() -> Self {
        Self::good("", Value::Null)
    }
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Fixed name, in kebab-case.
    pub(crate) code: String,
    /// What happened, to what, and what to do.
    pub(crate) message: String,
    /// Whether the command line, or a file that it names, is at fault: exit code 2.
    usage: bool,
}

impl Failure {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), usage: false }
    }

    /// The command line, or a file that it names, is at fault.
    pub(crate) fn usage(code: &str, message: impl Into<String>) -> Self {
        Self { usage: true, ..Self::new(code, message) }
    }

    /// From an error with its causes.
    pub(crate) fn of(code: &str, error: &dyn std::error::Error) -> Self {
        Self::new(code, host_os::attest::chain(error))
    }
}

impl From<host_os::bundle::ReleaseError> for Failure {
    fn from(error: host_os::bundle::ReleaseError) -> Self {
        Self::of(error.code(), &error)
    }
}

impl From<host_os::upgrade::UpgradeError> for Failure {
    fn from(error: host_os::upgrade::UpgradeError) -> Self {
        Self::of(error.code(), &error)
    }
}

impl From<host_os::node::NodeDirError> for Failure {
    fn from(error: host_os::node::NodeDirError) -> Self {
        Self::of(error.code(), &error)
    }
}

/// The form of the output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a reply.
    pub(crate) fn print(&self, reply: &Reply) {
        if self.json && !reply.json.is_null() {
            print_line(&format!("{:#}", reply.json));
        } else if !self.json && !reply.text.is_empty() {
            print_line(&reply.text);
        }
    }

    /// Prints how the command ended and gives its exit code.
    pub(crate) fn finish(&self, result: Result<Reply, Failure>) -> ExitCode {
        match result {
            Ok(reply) => {
                self.print(&reply);
                ExitCode::from(u8::from(!reply.good))
            }
            Err(Failure { code, message, usage }) => {
                if self.json {
                    print_line(&format!("{:#}", json!({ "error": { "code": code, "message": message } })));
                }
                eprintln!("error: {message}\n({code})");
                ExitCode::from(if usage { 2 } else { 1 })
            }
        }
    }
}

/// Prints a line; false when nobody reads any more, as after `| head`.
pub(crate) fn print_line(text: &str) -> bool {
    writeln!(std::io::stdout(), "{text}").is_ok()
}

/// Steps of a long command: a spinner on a terminal, else one line each, always on standard error.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    current: Option<(String, Instant)>,
    done: Vec<(String, Duration)>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, current: None, done: Vec::new() }
    }

    /// Ends the present step and begins this one, unless it is the present one.
    pub(crate) fn step(&mut self, name: &str) {
        if self.current.as_ref().is_some_and(|(current, _)| current == name) {
            return;
        }
        self.end_step();
        self.current = Some((name.to_owned(), Instant::now()));
        match &self.bar {
            Some(bar) => {
                bar.reset_elapsed();
                bar.set_message(name.to_owned());
            }
            None => eprintln!("{name} ..."),
        }
    }

    /// How far the present step, or the whole command, is. Only on a terminal.
    pub(crate) fn percent(&self, percent: u64) {
        if let (Some(bar), Some((name, _))) = (&self.bar, &self.current) {
            bar.set_message(format!("{name}, {percent} %"));
        }
    }

    /// A line beside the steps.
    pub(crate) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Ends the last step; the steps with their times in seconds, in order.
    pub(crate) fn finish(&mut self) -> Vec<(String, f64)> {
        self.end_step();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.done
            .iter()
            .map(|(name, time)| (name.clone(), (time.as_secs_f64() * 100.0).round() / 100.0))
            .collect()
    }

    fn end_step(&mut self) {
        if let Some((name, start)) = self.current.take() {
            let time = start.elapsed();
            if let Some(bar) = &self.bar {
                bar.println(format!("  {name}: {:.1} s", time.as_secs_f64()));
            }
            self.done.push((name, time));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

//! Progress of long work: a bar for each step that runs where there is a terminal, plain lines where there is none.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal,
    sync::LazyLock,
    time::{Duration, Instant},
};

/// The bars of all steps that run.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// One step that takes time.
pub struct Step {
    bar: ProgressBar,
    name: String,
    started: Instant,
    plain: bool,
}

impl Step {
    /// Starts a step; `length` is its expected number of ticks, 0 when nobody knows.
    pub fn start(name: &str, length: u64) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if length == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(length) };
        if plain {
            bar.set_draw_target(ProgressDrawTarget::hidden());
            eprintln!("{name} ...");
        } else {
            BARS.add(bar.clone());
            let template = if length == 0 {
                "{spinner} {prefix}: {msg}"
            } else {
                "{bar:30} {percent:>3}% {prefix}: {msg}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Self { bar, name: name.to_owned(), started: Instant::now(), plain }
    }

    /// Says what the step does now.
    pub fn say(&self, what: &str) {
        if self.plain {
            eprintln!("{}: {what}", self.name);
        } else {
            self.bar.set_message(what.to_owned());
        }
    }

    /// Moves the bar by one; every hundredth tick shows as a line where there is no terminal.
    pub fn tick(&self) {
        self.bar.inc(1);
        let (position, length) = (self.bar.position(), self.bar.length().unwrap_or(0));
        if self.plain && position.is_multiple_of(400) {
            eprintln!("{}: {position} of about {length}", self.name);
        }
    }

    /// Ends the step and says how it ended.
    pub fn done(self, how: &str) {
        self.bar.finish_and_clear();
        // Below no other step's bar.
        BARS.suspend(|| eprintln!("{}: {how} ({:.1} s)", self.name, self.started.elapsed().as_secs_f64()));
    }
}

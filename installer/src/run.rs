//! Carrying out a plan: what differs is written, flushed, and read back from the medium.
//!
//! There is no record of progress beside the disk: what is there already, from an attempt that was cut off, is compared and
//! left alone. So a second run resumes, whatever the first one left.

use crate::plan::{Plan, Step};
use std::io;
use std::time::{Duration, Instant};

/// Bytes that are read and written at once.
pub const CHUNK: usize = 1 << 20;

/// Something that a plan is carried out on.
pub trait Medium {
    /// Length in bytes.
    fn size(&self) -> u64;
    /// Reads the bytes at an offset, from the medium itself once it was flushed.
    fn read(&mut self, at: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes bytes at an offset; they may be lost until the next flush.
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns when everything written is safe from a power cut.
    fn flush(&mut self) -> io::Result<()>;
}

/// A plan was not carried out. The disk is as after a power cut: running it again continues.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The disk refused.
    #[error("{action} the disk at byte {at} failed ({step}): {source}; the disk fails, replace it")]
    Io {
        /// What was done.
        action: &'static str,
        /// For what.
        step: &'static str,
        /// Where, in bytes.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// The disk did not keep what was written.
    #[error("the disk did not keep what was written at byte {at} ({step}); the disk fails, replace it")]
    NotKept {
        /// For what.
        step: &'static str,
        /// Where, in bytes.
        at: u64,
    },
}

impl RunError {
    /// A short fixed name, for scripts and tests.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "disk-fails",
            Self::NotKept { .. } => "disk-forgets",
        }
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is written now.
    pub step: &'static str,
    /// Bytes that are written, or were there, and verified.
    pub done: u64,
    /// Bytes of the whole plan.
    pub total: u64,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes that were written.
    pub written: u64,
    /// Bytes that were there already.
    pub kept: u64,
    /// Time that went into reading: what was there before, and what was written.
    pub reading: Duration,
}

/// Reads, and adds the time that it took.
fn read(medium: &mut dyn Medium, at: u64, bytes: &mut [u8], took: &mut Duration) -> io::Result<()> {
    let started = Instant::now();
    let result = medium.read(at, bytes);
    *took += started.elapsed();
    result
}

/// Carries out a plan.
pub fn run(
    plan: &Plan,
    medium: &mut dyn Medium,
    report: &mut dyn FnMut(Progress),
) -> Result<Outcome, RunError> {
    let total = plan.bytes();
    let (mut outcome, mut done) = (Outcome::default(), 0);
    let mut buffer = vec![0; CHUNK];
    for step in &plan.steps {
        report(Progress { step: step.name, done, total });
        let mut changed = Vec::new();
        for (at, chunk) in chunks(step) {
            let found = &mut buffer[..chunk.len()];
            read(medium, at, found, &mut outcome.reading).map_err(failed("reading", step, at))?;
            if found == chunk {
                outcome.kept += chunk.len() as u64;
                done += chunk.len() as u64;
            } else {
                medium.write(at, chunk).map_err(failed("writing", step, at))?;
                outcome.written += chunk.len() as u64;
                changed.push((at, chunk));
                report(Progress { step: step.name, done: done + sum(&changed) / 2, total });
            }
        }
        // A step that found everything in place ends an attempt that may not have been flushed.
        medium.flush().map_err(failed("flushing", step, 0))?;
        for (at, chunk) in changed {
            let found = &mut buffer[..chunk.len()];
            read(medium, at, found, &mut outcome.reading).map_err(failed("reading", step, at))?;
            if found != chunk {
                return Err(RunError::NotKept { step: step.name, at });
            }
            done += chunk.len() as u64;
            report(Progress { step: step.name, done, total });
        }
    }
    Ok(outcome)
}

fn sum(chunks: &[(u64, &[u8])]) -> u64 {
    chunks.iter().map(|(_, chunk)| chunk.len() as u64).sum()
}

fn chunks<'a>(step: &'a Step<'_>) -> impl Iterator<Item = (u64, &'a [u8])> {
    let of = |write: &'a crate::plan::Write<'_>| {
        let starts = (write.at..).step_by(CHUNK);
        starts.zip(write.bytes.chunks(CHUNK))
    };
    step.writes.iter().flat_map(of)
}

fn failed(action: &'static str, step: &Step<'_>, at: u64) -> impl FnOnce(io::Error) -> RunError {
    let step = step.name;
    move |source| RunError::Io { action, step, at, source }
}

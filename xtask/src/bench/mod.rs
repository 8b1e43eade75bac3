//! `cargo xtask bench NAME`: figures as ratios against a reference in the same run, with their targets.

mod attest;
mod boot;
mod execution;
mod heap;
mod host;
mod image;
mod measure;
mod plot;
mod table;
mod upgrade;

use crate::Consent;
use anyhow::Result;

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to measure
    #[arg(value_enum)]
    name: Name,
    /// Print the table as JSON
    #[arg(long)]
    json: bool,
    /// Runs of each boot; the median counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Image: also build everything from an empty cache, which takes about an hour on two cores
    #[arg(long)]
    full: bool,
    /// Also write the page and its plots in docs (heap only)
    #[arg(long)]
    docs: bool,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Name {
    /// Verifying a report, beside other verifiers; the launch measurement, beside bare hashing
    Attest,
    /// Image size, time to the first answer, memory at idle
    Boot,
    /// The heap, execution on it, and other embedded stores
    Heap,
    /// Memory of the host's agent, time to the guest's launch, flashing, open ports
    Host,
    /// Building the images: times and sizes
    Image,
    /// Upgrades: time without answers, bytes moved, the hand-over of the key
    Upgrade,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let table = match options.name {
        Name::Attest => {
            let mut table = attest::measure()?;
            measure::measure(&mut table)?;
            table
        }
        Name::Boot => boot::measure(options.consent, options.runs)?,
        Name::Heap => heap::measure(options.docs)?,
        Name::Host => host::measure(options.consent, options.runs)?,
        Name::Upgrade => upgrade::measure(options.consent, options.runs)?,
        Name::Image => image::measure(options.consent, options.full, options.runs)?,
    };
    table.print(options.json)
}

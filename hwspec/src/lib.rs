//! Node hardware specifications as data, a probe of the running machine, and checks with a fix text each.
//!
//! - A [`Spec`] is a TOML file: a list of checks, each a condition on one [`Fact`] with its severity, the fix in
//!   words and the source of the requirement. `gen1`, `gen2` and `virtual` are built in ([`Spec::named`]); users can
//!   write their own ([`Spec::from_toml`]). `spec.schema.json` ([`schema`]) describes the files for editors.
//! - A [`Probe`] is what a machine was found to have. [`probe::this_machine`] takes one; it travels as JSON, so
//!   that a machine can be judged elsewhere and recorded probes are test data. What could not be found out is
//!   `{"unknown": "why"}`. A probe is hostile input.
//! - [`check`] judges a probe by a spec. It is pure: the same code runs wherever a verdict is shown.
//!
//! # Spec files
//!
//! ```toml
//! name = "example"
//! description = "One line."
//!
//! [[check]]
//! id = "memory"                     # unique; a-z 0-9 -
//! fact = "memory-total"             # see Fact
//! at_least = 8_589_934_592          # the condition, see Condition
//! severity = "required"             # or "recommended": not met, it warns
//! fix = "Fit more memory."          # what to do, in words
//! source = "Our tender of 2026."    # optional: where the requirement comes from
//! ```

mod calendar;
mod check;
mod fact;
mod found;
mod linux;
pub mod nvme;
pub mod probe;
mod schema;
mod seen;
pub mod sev;
pub mod smbios;
mod spec;

pub use check::{Check, Report, Status, Verdict, check};
pub use fact::{Fact, Kind, Unit};
pub use probe::{Probe, ProbeError};
pub use schema::schema;
pub use seen::Seen;
pub use spec::{Condition, MAX_SPEC, Problem, Requirement, Severity, Share, Spec, SpecError};

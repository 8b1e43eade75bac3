//! The verdict on evidence: authentic, in date, and as the policy demands.

use crate::{
    Authentic, Evidence, EvidenceKind, Measurement, Policy, Product, Refusal, Report, TrustAnchors,
    authenticity::{Examined, examine},
    failure::{Code, Failures},
};

/// Evidence that passed every check. Made by [`verify`] only.
#[derive(Debug, Clone)]
pub struct Verified(Authentic);

impl Verified {
    /// What made the report. Of [`EvidenceKind::SimSnp`] it proves nothing.
    #[must_use]
    pub const fn kind(&self) -> EvidenceKind {
        self.0.kind()
    }

    /// Product of the machine.
    #[must_use]
    pub const fn product(&self) -> Product {
        self.0.product()
    }

    /// The report.
    #[must_use]
    pub const fn report(&self) -> &Report {
        self.0.report()
    }

    /// Which of the allowed guests runs.
    #[must_use]
    pub fn measurement(&self) -> Measurement {
        self.report().measurement()
    }
}

/// Judges evidence at a time, given in seconds since 1970. A refusal lists everything that is wrong.
pub fn verify(
    evidence: &Evidence,
    policy: &Policy,
    anchors: &TrustAnchors,
    now_unix_s: u64,
) -> Result<Verified, Refusal> {
    let mut failures = Failures::default();
    let examined = examine(evidence, anchors, &mut failures);
    // A time beyond i64 is later than every certificate.
    let now = i64::try_from(now_unix_s).unwrap_or(i64::MAX);
    check_dates(&examined, now, &mut failures);
    policy.check(&examined, now, &mut failures);
    failures.conclude(examined.authentic().map(Verified))
}

fn check_dates(examined: &Examined, now: i64, failures: &mut Failures) {
    for (name, certificate) in &examined.certificates {
        failures.require(
            certificate.not_before <= now,
            Code::CertificateNotYetValid,
            format_args!("{name} valid at {now} (seconds since 1970)"),
            format_args!("valid from {}", certificate.not_before),
            "set this machine's clock",
        );
        failures.require(
            now <= certificate.not_after,
            Code::CertificateExpired,
            format_args!("{name} valid at {now} (seconds since 1970)"),
            format_args!("valid until {}", certificate.not_after),
            "set this machine's clock, or fetch a new certificate from AMD's key distribution service",
        );
    }
}

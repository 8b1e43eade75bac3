//! Where the evidence comes from, and whose roots are believed.

use super::fetch::Record;
use super::trust_anchors;
use crate::output::Failure;
use attestation::{Evidence, TrustAnchors};
use clap::Args;
use host_os::attest::{Fetched, unix_time};
use host_os::cli::ProfileArg;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Evidence as files.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// Records of `redoubt attest fetch`
    #[arg(value_name = "RECORD", required_unless_present = "report", conflicts_with = "report")]
    files: Vec<PathBuf>,
    /// A report alone: the 1184 bytes as the guest's firmware gives them
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The certificate of the key that signed the report (VCEK or VLEK), DER or PEM
    #[arg(long, value_name = "FILE", requires = "report")]
    vek: Option<PathBuf>,
    /// The root certificate [default: AMD's, built in]
    #[arg(long, value_name = "FILE", requires = "report")]
    ark: Option<PathBuf>,
    /// The certificate between, ASK or ASVK [default: AMD's, built in]
    #[arg(long, value_name = "FILE", requires = "report")]
    ask: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) roots: Roots,
    /// The time of the verdict, such as 2026-11-23T12:00:00Z [default: now]
    #[arg(long, value_name = "RFC3339", value_parser = seconds)]
    at: Option<u64>,
}

/// Whose word counts.
#[derive(Debug, Args)]
pub(crate) struct Roots {
    /// Kind of node: AMD's roots are believed for production, the development root for virtual
    #[arg(long, value_enum)]
    pub(crate) profile: Option<ProfileArg>,
    /// A revocation list of AMD's, DER or PEM; may be given more than once
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
}

/// One piece of evidence.
pub(crate) struct Piece {
    /// From where.
    pub(crate) file: PathBuf,
    pub(crate) evidence: Evidence,
    /// What it has to be bound to, for a record.
    pub(crate) record: Option<Fetched>,
    /// When a record was fetched, in seconds since 1970.
    pub(crate) fetched_unix_s: Option<u64>,
}

fn seconds(text: &str) -> Result<u64, String> {
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|error| error.to_string())?;
    u64::try_from(time.unix_timestamp()).map_err(|_| "it is before 1970".to_owned())
}

/// Seconds since 1970 as people read them.
pub(crate) fn date(unix_s: u64) -> String {
    let time = i64::try_from(unix_s).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{unix_s} s after 1970"))
}

/// Reads a file that the command line names.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        let message = format!("cannot read {}: {error}; check the path and its permissions", path.display());
        Failure::usage("file-unreadable", message)
    })
}

impl Source {
    /// The time of the verdict, in seconds since 1970.
    pub(crate) fn at(&self) -> u64 {
        self.at.unwrap_or_else(unix_time)
    }

    /// Reads the files. What is in them is judged later, but for records that are none.
    pub(crate) fn pieces(&self) -> Result<Vec<Piece>, Failure> {
        let Some(path) = &self.report else { return self.files.iter().map(|path| record(path)).collect() };
        let optional = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        let (vek, ark, ask) = (optional(&self.vek)?, optional(&self.ark)?, optional(&self.ask)?);
        // Without an endorsement certificate the evidence is refused for that.
        let vek = vek.unwrap_or_default();
        let evidence = Evidence::from_parts(read(path)?, &vek, ark.as_deref(), ask.as_deref());
        Ok(vec![Piece { file: path.clone(), evidence, record: None, fetched_unix_s: None }])
    }
}

fn record(path: &Path) -> Result<Piece, Failure> {
    let refused = |reason: String| {
        let message = format!(
            "{} is no record of evidence: {reason}; give a file that `redoubt attest fetch` wrote, or --report",
            path.display()
        );
        Failure::new("record-refused", message)
    };
    let record: Record = serde_json::from_slice(&read(path)?).map_err(|error| refused(error.to_string()))?;
    let fetched_unix_s = Some(record.fetched_unix_s);
    let fetched = record.fetched().map_err(refused)?;
    Ok(Piece {
        file: path.to_owned(),
        evidence: fetched.evidence.clone(),
        record: Some(fetched),
        fetched_unix_s,
    })
}

impl Roots {
    /// The trust anchors of this profile, with the revocation lists that were given.
    pub(crate) fn anchors(&self, profile: release::Profile) -> Result<TrustAnchors, Failure> {
        self.crl.iter().try_fold(trust_anchors(profile)?, |anchors, path| Ok(anchors.with_crl(&read(path)?)))
    }

    /// The profile that was given.
    pub(crate) fn profile(&self) -> Option<release::Profile> {
        self.profile.map(ProfileArg::profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(seconds("2026-11-15T00:00:00Z"), Ok(1_794_700_800));
        assert_eq!(seconds("2026-11-15T01:00:00+01:00"), Ok(1_794_700_800));
        assert_eq!(date(1_794_700_800), "2026-11-15T00:00:00Z");
        for bad in ["", "2026-11-15", "1794700800", "1969-12-31T23:59:59Z", "2026-13-01T00:00:00Z"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}

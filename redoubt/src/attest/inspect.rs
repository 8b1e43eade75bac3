//! `redoubt attest inspect`: what a report says, field by field, and who made it.

use super::handshake;
use super::source::{Piece, Source, date};
use crate::output::{Failure, Reply};
use attestation::handshake::MAX_AGE;
use attestation::report::{Field, describe};
use attestation::{Failure as Reason, Report, TrustAnchors, authenticate};
use clap::Args;
use serde_json::{Value, json};

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    source: Source,
}

pub(super) fn run(args: &Inspect) -> Result<Reply, Failure> {
    let profile = args.source.roots.profile().unwrap_or(release::Profile::Production);
    let anchors = args.source.roots.anchors(profile)?;
    let (mut authentic, mut texts, mut all) = (true, Vec::new(), Vec::new());
    for piece in args.source.pieces()? {
        let (good, text, json) = inspect(&piece, &anchors, args.source.at());
        authentic &= good;
        texts.push(text);
        all.push(json);
    }
    let json = json!({ "authentic": authentic, "reports": all });
    Ok(Reply { text: texts.join("\n\n"), json, good: authentic })
}

fn inspect(piece: &Piece, anchors: &TrustAnchors, at: u64) -> (bool, String, Value) {
    let Piece { file, evidence, fetched_unix_s, .. } = piece;
    let verdict = authenticate(evidence, anchors);
    let shown = handshake(piece, |presented, fetched| presented.authenticate(anchors, fetched, MAX_AGE));
    let mut reasons = verdict.as_ref().map_or_else(|refusal| refusal.failures().to_vec(), |_| Vec::new());
    for reason in shown.as_ref().err().into_iter().flatten() {
        if !reasons.contains(reason) {
            reasons.push(reason.clone());
        }
    }
    let good = reasons.is_empty();
    // A report that cannot be parsed has no fields; the reasons say why.
    let fields = Report::parse(&evidence.report).map(|report| describe(&report)).unwrap_or_default();
    let late = out_of_date(evidence, anchors, at);

    let mut lines = vec![file.display().to_string()];
    lines.extend(fields.iter().map(line));
    lines.push(String::new());
    match &verdict {
        Ok(authentic) if good => {
            let kind = authentic.kind();
            lines.push(format!(
                "AUTHENTIC: signed by a {} of kind {kind}, in canonical form, with a chain to a pinned root",
                authentic.product()
            ));
        }
        _ => {
            lines.push("NOT AUTHENTIC:".to_owned());
            lines.extend(reasons.iter().map(|reason| format!("- {reason}")));
        }
    }
    if let Ok(Some((issued, _))) = &shown {
        lines.push(format!(
            "the TLS certificate carries authentic evidence for its key, issued {}",
            date(*issued)
        ));
    }
    lines.push("This says nothing of what runs there: `redoubt attest verify` does.".to_owned());
    if !late.is_empty() {
        lines.push(format!("Dates at {}, which do not count here:", date(at)));
        lines.extend(late.iter().map(|reason| format!("- {reason}")));
    }
    let json = json!({
        "file": file,
        "authentic": good,
        "kind": evidence.kind,
        "product": verdict.as_ref().ok().map(|authentic| authentic.product()),
        "failures": reasons,
        "fields": fields,
        "dates": { "at_unix_s": at, "failures": late },
        "handshake_issued_unix_s": shown.ok().flatten().map(|(issued, _)| issued),
        "fetched_unix_s": fetched_unix_s,
    });
    (good, lines.join("\n"), json)
}

/// One field: long values are cut, JSON has all of them.
fn line(field: &Field) -> String {
    const SHOWN: usize = 32;
    let raw = if field.raw.len() > SHOWN { format!("{}…", &field.raw[..SHOWN]) } else { field.raw.clone() };
    format!("  {:#05x} {:<20} {raw:<33}  {}", field.offset, field.name, field.meaning)
}

/// The certificates that are out of date at this time. For information: dates do not make a report less authentic.
fn out_of_date(evidence: &attestation::Evidence, anchors: &TrustAnchors, at: u64) -> Vec<Reason> {
    let verdict = attestation::verify(evidence, &attestation::Policy::default(), anchors, at);
    let failures = verdict.map_or_else(|refusal| refusal.failures().to_vec(), |_| Vec::new());
    let of_dates = ["certificate-expired", "certificate-not-yet-valid"];
    failures.into_iter().filter(|failure| of_dates.contains(&failure.code)).collect()
}

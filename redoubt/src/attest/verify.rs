//! `redoubt attest verify`: recorded evidence, or a bare report, against a policy or a release.

use super::demands::{Demanded, Demands};
use super::source::{Piece, Source, date};
use super::{handshake, handshake_words, proof, words};
use crate::output::{Failure, Reply};
use attestation::handshake::MAX_AGE;
use attestation::policy::Demand;
use attestation::{Failure as Reason, verify};
use clap::Args;
use serde_json::{Value, json};

#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    demands: Demands,
    /// Seconds that the evidence in a record's TLS certificate may have been old when it was fetched
    #[arg(long, value_name = "SECONDS", default_value_t = MAX_AGE)]
    max_age: u64,
}

pub(super) fn run(args: &Verify) -> Result<Reply, Failure> {
    let demanded = args.demands.load(&args.source.roots)?;
    let at = args.source.at();
    let (mut accepted, mut texts, mut verdicts) = (true, Vec::new(), Vec::new());
    for piece in args.source.pieces()? {
        let (good, text, json) = judge(&piece, &demanded, at, args.max_age)?;
        accepted &= good;
        texts.push(text);
        verdicts.push(json);
    }
    let json = json!({ "accepted": accepted, "at_unix_s": at, "verdicts": verdicts });
    Ok(Reply { text: texts.join("\n"), json, good: accepted })
}

fn judge(
    piece: &Piece,
    demanded: &Demanded,
    at: u64,
    max_age: u64,
) -> Result<(bool, String, Value), Failure> {
    let Demanded { expected, manifest } = demanded;
    let Piece { file, evidence, record, fetched_unix_s } = piece;
    let listed = matches!(&expected.policy.report_data, Demand::OneOf(values) if !values.is_empty());
    if record.is_some() && manifest.is_none() && listed {
        let message = "the policy lists REPORT_DATA, but that of a record follows from its nonce and TLS key; leave it out";
        return Err(Failure::usage("policy-unusable", message));
    }
    let verdict = match record {
        Some(record) => host_os::attest::verify(record, expected, at),
        None => verify(evidence, &expected.policy, &expected.anchors, at),
    };
    // The certificate was shown when the record was made, so its evidence was fresh then or never.
    let shown = handshake(piece, |presented, fetched| {
        presented.verify(&expected.policy, &expected.anchors, fetched, max_age)
    });
    let mut reasons = verdict.as_ref().map_or_else(|refusal| refusal.failures().to_vec(), |_| Vec::new());
    for reason in shown.as_ref().err().into_iter().flatten() {
        // What is wrong with both is said once.
        if !reasons.contains(reason) {
            reasons.push(reason.clone());
        }
    }
    let mut heading = file.display().to_string();
    if let Some(fetched) = fetched_unix_s {
        heading.push_str(&format!(" (recorded {})", date(*fetched)));
    }
    let good = reasons.is_empty();
    let (outcome, said, proof) = match &verdict {
        Ok(verified) if good => {
            let mut said = words(manifest.as_ref(), verified, record.as_ref().map(|record| &record.nonce));
            said.extend(
                shown.as_ref().ok().and_then(|shown| handshake_words(shown.as_ref(), record.is_some())),
            );
            ("accepted", said, Some(proof(verified)))
        }
        _ => ("REFUSED", reasons.iter().map(Reason::to_string).collect(), None),
    };
    let json = json!({
        "file": file,
        "accepted": good,
        "failures": reasons,
        "proof": proof,
        "handshake_issued_unix_s": shown.ok().flatten().map(|(issued, _)| issued),
        "fetched_unix_s": fetched_unix_s,
    });
    Ok((good, format!("{heading}: {outcome}\n  {}", said.join("\n  ")), json))
}

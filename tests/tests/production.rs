//! Production programs know nothing of the simulation: no byte of its root, its keys or the development keys is in
//! them, and they refuse its evidence.
//!
//! `cargo xtask test` builds the programs without default features and names their directory in
//! `REDOUBT_PRODUCTION_BIN`.

use anyhow::{Context, Result, ensure};
use attestation::{Evidence, EvidenceKind, Measurement, binding};
use serde_json::{Value, json};
use simulated_psp::chip::{Chip, LaunchContext};
use simulated_psp::protocol::{Bytes, Request, Response};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What must not be in them. Each is in the programs for virtual nodes, or this test could not fail.
const TRACES: [(&str, &[u8]); 7] = [
    ("the simulation's root certificate", include_bytes!("../../simulated-psp/development/ark.der")),
    ("its intermediate certificate", include_bytes!("../../simulated-psp/development/ask.der")),
    ("the private key of its intermediate", include_bytes!("../../simulated-psp/development/ask.pkcs8.der")),
    ("the name of its root", b"SIM-ARK-NOT-AMD"),
    ("the name of its intermediate", b"SIM-ASK-NOT-AMD"),
    ("the label of its derived keys", b"redoubt SIMULATED derived key"),
    ("the development root of releases", include_bytes!("../../release/development/root.json")),
];

/// The part of the root's public key that no other key has: 64 bytes out of the middle of its modulus.
fn modulus() -> Result<&'static [u8]> {
    let root = TRACES[0].1;
    // RSAPublicKey of PKCS#1: SEQUENCE, then INTEGER of 513 bytes with a leading zero.
    let header = [0x02, 0x82, 0x02, 0x01, 0x00];
    let at = root.windows(header.len()).position(|window| window == header).context("no RSA-4096 key")?;
    root.get(at + 200..at + 264).context("a short key")
}

fn traces_in(program: &Path) -> Result<Vec<&'static str>> {
    let bytes = std::fs::read(program).with_context(|| format!("no program {}", program.display()))?;
    let holds = |trace: &[u8]| memchr::memmem::find(&bytes, trace).is_some();
    let mut found: Vec<_> = TRACES.iter().filter(|(_, trace)| holds(trace)).map(|(name, _)| *name).collect();
    if holds(modulus()?) {
        found.push("the public key of its root");
    }
    Ok(found)
}

/// Directories of the programs for production and for virtual nodes.
fn programs() -> Option<[PathBuf; 2]> {
    let of = |name| std::env::var_os(name).map(PathBuf::from);
    let both = of("REDOUBT_PRODUCTION_BIN").zip(of("REDOUBT_BIN")).map(|(one, other)| [one, other]);
    if both.is_none() {
        // Past what captures the output of tests.
        use std::io::Write;
        let _ =
            writeln!(std::io::stderr(), "SKIPPED: needs the programs that `cargo xtask test` builds first");
    }
    both
}

#[test]
fn no_trace_of_the_simulation_is_in_them() -> Result<()> {
    let Some([production, virtual_]) = programs() else { return Ok(()) };
    for program in ["redoubt", "host-os", "guest-os"] {
        let found = traces_in(&production.join(program))?;
        ensure!(found.is_empty(), "{program} for production holds {found:?}");
    }
    for program in ["redoubt", "host-os"] {
        let found = traces_in(&virtual_.join(program))?;
        ensure!(found.len() == TRACES.len() + 1, "{program} for virtual nodes holds only {found:?}");
    }
    Ok(())
}

/// A record as `redoubt attest fetch` makes it, of a simulated chip, with a plain certificate.
fn record(kind: EvidenceKind) -> Result<Value> {
    let (nonce, key) = ([7; 32], b"a TLS key");
    let folder = tempfile::tempdir()?;
    let psp =
        Chip::open_or_create(folder.path())?.launch(LaunchContext::new(Measurement([1; 48]), [0; 32]))?;
    let report_data = Bytes(binding::report_data(kind, &nonce, key));
    let Response::Report { report, certificates } = psp.handle(&Request::Report { report_data, vmpl: 0 })
    else {
        anyhow::bail!("no report")
    };
    let evidence = Evidence::from_tsm(kind, report.0.to_vec(), &certificates.0)?;
    let certificate = rcgen::generate_simple_self_signed(["guest".to_owned()])?;
    Ok(json!({
        "version": 2,
        "evidence": serde_json::from_str::<Value>(&evidence.to_json()?)?,
        "nonce": hex::encode(nonce),
        "tls_key": base64(key),
        "certificate": base64(certificate.cert.der()),
        "fetched_unix_s": 1_794_700_800_u64,
    }))
}

fn base64(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

fn attest(bin: &Path, arguments: &[&str], file: &Path) -> Result<(Output, Vec<String>)> {
    let output = Command::new(bin.join("redoubt"))
        .args(["attest", "--json"])
        .args(arguments)
        .args(["--at", "2026-11-15T00:00:00Z"])
        .arg(file)
        .stdin(Stdio::null())
        .output()?;
    let json: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no JSON: {}", String::from_utf8_lossy(&output.stderr)))?;
    let failures = json.pointer("/reports/0/failures").or_else(|| json.pointer("/verdicts/0/failures"));
    let failures = failures.and_then(Value::as_array).cloned().unwrap_or_default();
    let mut codes: Vec<String> =
        failures.iter().filter_map(|f| f["code"].as_str()).map(str::to_owned).collect();
    codes.extend(json.pointer("/error/code").and_then(Value::as_str).map(str::to_owned));
    Ok((output, codes))
}

/// A policy that demands nothing that it can do without.
const POLICY: &str = r#"
measurements = "any"
[revocation]
crl = "ignore"
"#;

#[test]
fn they_refuse_its_evidence() -> Result<()> {
    let Some([production, virtual_]) = programs() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (file, policy) = (folder.path().join("record.json"), folder.path().join("policy.toml"));
    std::fs::write(&policy, POLICY)?;
    let policy = policy.to_str().context("a path without UTF-8")?;
    let verify = ["verify", "--policy", policy];

    // The same evidence passes where the simulation is believed, so that it is refused for nothing else.
    std::fs::write(&file, record(EvidenceKind::SimSnp)?.to_string())?;
    for command in [&["inspect"][..], &verify] {
        let (output, codes) = attest(&virtual_, &[command, &["--profile", "virtual"]].concat(), &file)?;
        ensure!(output.status.code() == Some(0) && codes.is_empty(), "{command:?}: {codes:?}");
        let (output, codes) = attest(&production, command, &file)?;
        ensure!(output.status.code() == Some(1), "{command:?}: {output:?}");
        for code in ["kind-not-allowed", "unknown-root"] {
            ensure!(codes.iter().any(|c| c == code), "{command:?}: no {code} in {codes:?}");
        }
        let (output, codes) = attest(&production, &[command, &["--profile", "virtual"]].concat(), &file)?;
        ensure!(output.status.code() == Some(1) && codes == ["no-trust-anchors"], "{command:?}: {codes:?}");
    }
    // And where it says that it is of a real processor, with REPORT_DATA to match.
    std::fs::write(&file, record(EvidenceKind::Snp)?.to_string())?;
    for bin in [&production, &virtual_] {
        for command in [&["inspect"][..], &verify] {
            let (output, codes) = attest(bin, command, &file)?;
            ensure!(output.status.code() == Some(1), "{command:?}: {output:?}");
            ensure!(codes.iter().any(|c| c == "unknown-root"), "{command:?}: {codes:?}");
            ensure!(!codes.iter().any(|c| c == "kind-not-allowed"), "{command:?}: {codes:?}");
        }
    }
    Ok(())
}

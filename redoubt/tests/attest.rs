//! `redoubt attest inspect` and `verify` as an auditor uses them: on files, with exit codes and JSON.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const AT: [&str; 2] = ["--at", "2026-11-15T00:00:00Z"];
const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../attestation/policies/all-products.toml");

/// Exit code, JSON, and the words on standard error.
fn attest(arguments: &[&str]) -> (i32, Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redoubt"));
    let output = command.args(["attest", "--json"]).args(arguments).output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), json, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Reports of real processors and forgeries of them, which not everyone has.
fn fixtures() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/sev/fixtures");
    if !folder.is_dir() {
        // Past what captures the output of tests.
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "SKIPPED: {} is not there", folder.display());
        return None;
    }
    Some(folder)
}

/// Rows of the fixtures' table, by column name.
fn manifest(folder: &Path) -> Vec<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(folder.join("manifest.csv")).unwrap();
    // Quoted cells hold commas and no quotes.
    let cells = |line: &str| -> Vec<String> {
        let parts = line.split('"').enumerate();
        let line: String = parts
            .map(|(at, part)| if at % 2 == 0 { part.replace(',', "\n") } else { part.to_owned() })
            .collect();
        line.split('\n').map(str::to_owned).collect()
    };
    let mut lines = text.lines().map(cells);
    let header = lines.next().unwrap();
    lines.map(|row| header.iter().cloned().zip(row).collect()).collect()
}

/// Arguments that name the files of one folder.
fn files(folder: &Path) -> Vec<String> {
    let candidates =
        [("--report", "report.bin"), ("--vek", "vek.der"), ("--ark", "ark.pem"), ("--ask", "ask.pem")];
    let there = candidates.iter().filter(|(_, file)| folder.join(file).exists());
    there.flat_map(|(option, file)| [(*option).to_owned(), folder.join(file).display().to_string()]).collect()
}

fn codes(json: &Value, pointer: &str) -> Vec<String> {
    let failures = json.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    failures.map(|failure| failure["code"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_fixture_gets_its_verdict_in_both_senses() {
    let Some(folder) = fixtures() else { return };
    let mut accepted = [0, 0];
    for row in manifest(&folder) {
        let id = &row["id"];
        let files = files(&folder.join(id));
        let files: Vec<&str> = files.iter().map(String::as_str).chain(AT).collect();

        let (exit, json, _) = attest(&[&["inspect"], &files[..]].concat());
        let authentic = row["crypto_verdict"] == "authentic";
        assert_eq!((exit, &json["authentic"]), (i32::from(!authentic), &authentic.into()), "{id}: {json:#}");
        assert_eq!(codes(&json, "/reports/0/failures").is_empty(), authentic, "{id}");
        let fields = json["reports"][0]["fields"].as_array().unwrap();
        assert!(fields.iter().all(|field| !field["meaning"].as_str().unwrap().is_empty()), "{id}");
        assert!(!authentic || fields.len() > 20, "{id}: every field");

        let (exit, json, _) = attest(&[&["verify", "--policy", POLICY], &files[..]].concat());
        let passes = row["strict_policy_verdict"] == "pass";
        assert_eq!((exit, &json["accepted"]), (i32::from(!passes), &passes.into()), "{id}: {json:#}");
        assert_eq!(codes(&json, "/verdicts/0/failures").is_empty(), passes, "{id}");
        accepted[0] += usize::from(authentic);
        accepted[1] += usize::from(passes);
    }
    assert!(accepted[0] > 10 && accepted[1] > 5, "{accepted:?}");
}

#[test]
fn pem_and_der_are_one_and_dates_count_for_the_verdict_only() {
    let Some(folder) = fixtures() else { return };
    let report = folder.join("oak-genoa-oc/report.bin").display().to_string();
    let vek = folder.join("oak-genoa-oc/vek.der");
    let root = |name: &str| folder.join("roots").join(name).display().to_string();
    let temporary = tempfile::tempdir().unwrap();
    let pem = temporary.path().join("vek.pem");
    let der = std::fs::read(&vek).unwrap();
    let text: Vec<u8> = base64(&der).into_bytes();
    let lines: Vec<&str> = text.chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let armoured = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    std::fs::write(&pem, armoured).unwrap();
    for vek in [vek.display().to_string(), pem.display().to_string()] {
        let (ark, ask) = (root("ARK-Genoa.pem"), root("SEV-Genoa.pem"));
        let given = ["--report", &report, "--vek", &vek, "--ark", &ark, "--ask", &ask];
        assert_eq!(attest(&[&["inspect"][..], &given].concat()).0, 0);
        let verify = |at: &str| attest(&[&["verify", "--policy", POLICY, "--at", at][..], &given].concat());
        assert_eq!(verify(AT[1]).0, 0);
        let (exit, json, _) = verify("2040-01-01T00:00:00Z");
        assert_eq!((exit, codes(&json, "/verdicts/0/failures")), (1, vec!["certificate-expired".to_owned()]));
        let (exit, json, _) = attest(&[&["inspect", "--at", "2040-01-01T00:00:00Z"][..], &given].concat());
        assert_eq!((exit, codes(&json, "/reports/0/dates/failures").len()), (0, 1));
    }
    // Another product's intermediate.
    let wrong = root("SEV-Milan.pem");
    let vek = vek.display().to_string();
    let (exit, json, _) = attest(&["inspect", "--report", &report, "--vek", &vek, "--ask", &wrong]);
    assert_eq!(exit, 1);
    assert!(codes(&json, "/reports/0/failures").contains(&"chain-broken".to_owned()), "{json:#}");
}

fn base64(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

/// What a file holds is evidence to be judged (1); what the command line says is not (2).
#[test]
fn malformed_evidence_is_refused_and_wrong_usage_is_told_from_it() {
    let temporary = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = temporary.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (report, vek) = (file("report", b"no report"), file("vek", b"no certificate"));
    let given = ["--report", &report, "--vek", &vek];
    for (command, failures) in
        [(&["inspect"][..], "/reports/0/failures"), (&["verify", "--policy", POLICY], "/verdicts/0/failures")]
    {
        let (exit, json, _) = attest(&[command, &given].concat());
        assert_eq!(exit, 1, "{json:#}");
        let codes = codes(&json, failures);
        for code in ["report-length", "certificate-malformed"] {
            assert!(codes.iter().any(|found| found == code), "{code} in {codes:?}");
        }
        let (exit, json, _) = attest(&[command, &[&file("record", b"{}")]].concat());
        assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("record-refused")));
        for usage in [
            &["--report", "/nowhere", "--vek", &vek][..],
            &["/nowhere"],
            &["--report", &report, "--vek", &vek, "--at", "today"],
            &["--report", &report, "--vek", &vek, "--crl", "/nowhere"],
            &["--vek", &vek],
            &[],
        ] {
            let (exit, _, words) = attest(&[command, usage].concat());
            assert_eq!(exit, 2, "{command:?} {usage:?}: {words}");
        }
    }
    for policy in ["measurements = \"any\"\nmeasurements = []", "unknown = 1", "vmpl = [\"any\"]"] {
        let policy = file("policy.toml", policy.as_bytes());
        let (exit, json, words) = attest(&[&["verify", "--policy", &policy][..], &given].concat());
        assert_eq!((exit, json["error"]["code"].as_str()), (2, Some("policy-unusable")), "{words}");
    }
    assert_eq!(attest(&[&["verify"][..], &given].concat()).0, 2, "neither policy nor manifest");
}

//! The must-fail suite of attestation on a live node: true evidence is accepted in both ways, by nonce and in the TLS
//! handshake, and each change to it, or to what is expected of it, is refused by its own name.

mod relay;

use anyhow::{Context, Result, bail, ensure};
use attestation::binding::{Binding, Freshness, Role};
use attestation::report::GuestPolicy;
use attestation::{Certificates, Evidence, EvidenceKind, Measurement, Report, handshake::Presented};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use simulated_psp::chip::{Chip, LaunchContext};
use simulated_psp::protocol::{Bytes, Request, Response};
use std::{ffi::OsStr, path::Path, time::Duration};
use tests::{Node, Setup, json, signed_by_development_keys, text};

/// What `redoubt attest fetch` wrote, taken apart so that it can be changed.
#[derive(Clone)]
struct Record {
    json: Value,
    evidence: Evidence,
}

impl Record {
    fn fetch(setup: &Setup, url: &str) -> Result<Self> {
        let json = json(setup.redoubt(["attest", "fetch", "--json", url])?)?;
        let evidence = Evidence::from_json(json["evidence"].to_string().as_bytes())?;
        Ok(Self { json, evidence })
    }

    fn bytes(&self, field: &str) -> Result<Vec<u8>> {
        Ok(STANDARD.decode(self.json[field].as_str().with_context(|| format!("no {field}"))?)?)
    }

    fn nonce(&self) -> Result<[u8; 32]> {
        let mut nonce = [0; 32];
        hex::decode_to_slice(self.json["nonce"].as_str().context("no nonce")?, &mut nonce)?;
        Ok(nonce)
    }

    /// What the guest bound into this record's report.
    fn binding<'a>(&self, key: &'a [u8]) -> Result<Binding<'a>> {
        let freshness = Freshness::Nonce(self.nonce()?);
        Ok(Binding { kind: EvidenceKind::SimSnp, role: Role::Replica, freshness, key, peer: None })
    }

    fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = self.json.clone();
        json["evidence"] = serde_json::from_str(&self.evidence.to_json()?)?;
        Ok(serde_json::to_vec(&json)?)
    }
}

/// Codes of the failures that a command names; none when it accepts.
fn codes(setup: &Setup, arguments: &[&OsStr]) -> Result<Vec<String>> {
    let output = setup.redoubt(["attest", "--json"].map(OsStr::new).iter().chain(arguments))?;
    let json: Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
    let failures = json.pointer("/verdicts/0/failures").and_then(Value::as_array);
    let mut codes: Vec<String> =
        failures.into_iter().flatten().filter_map(|f| f["code"].as_str()).map(str::to_owned).collect();
    codes.extend(json.pointer("/error/code").and_then(Value::as_str).map(str::to_owned));
    match output.status.code() {
        Some(0) if codes.is_empty() => Ok(codes),
        Some(1) if !codes.is_empty() => Ok(codes),
        code => bail!("exit code {code:?}: {}", text(&output)),
    }
}

/// `redoubt attest verify` on a record, against a release.
fn verify(setup: &Setup, record: &Record, release: &Path, more: &[&OsStr]) -> Result<Vec<String>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("record.json");
    std::fs::write(&file, record.to_json()?)?;
    let fixed = [OsStr::new("verify"), OsStr::new("--manifest"), release.as_os_str(), file.as_os_str()];
    codes(setup, &[&fixed, more].concat())
}

/// `redoubt attest connect`, against a release.
fn connect(setup: &Setup, url: &str, release: &Path, more: &[&str]) -> Result<Vec<String>> {
    let fixed = ["connect", url, "--manifest"].map(OsStr::new);
    let more: Vec<&OsStr> = more.iter().map(OsStr::new).collect();
    codes(setup, &[&fixed, &[release.as_os_str()][..], &more].concat())
}

/// A node's processor in the hands of somebody who has its keys, as its hardware never would be.
struct Stolen {
    chip: Chip,
    context: LaunchContext,
}

impl Stolen {
    fn of(node: &Node, record: &Record) -> Result<Self> {
        let report = Report::parse(&record.evidence.report)?;
        let mut context = LaunchContext::new(report.measurement(), report.host_data());
        context.policy = report.policy();
        Ok(Self { chip: Chip::open_or_create(&node.chip())?, context })
    }

    /// Evidence with a good signature of the node's own chip.
    fn evidence(
        &self,
        binding: &Binding<'_>,
        vmpl: u32,
        change: impl FnOnce(&mut LaunchContext),
    ) -> Result<Evidence> {
        let mut context = self.context.clone();
        change(&mut context);
        let request = Request::Report { report_data: Bytes(binding.report_data()), vmpl };
        let Response::Report { report, certificates } = self.chip.launch(context)?.handle(&request) else {
            bail!("no report")
        };
        Ok(Evidence::from_tsm(EvidenceKind::SimSnp, report.0.to_vec(), &certificates.0)?)
    }
}

fn certificates_of_another_chip() -> Result<Certificates> {
    let folder = tempfile::tempdir()?;
    let chip = Chip::open_or_create(folder.path())?;
    Ok(attestation::certificate_table::decode(chip.certificate_table())?)
}

#[test]
fn true_evidence_is_accepted_and_every_change_is_named() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    let up = node.up()?;
    let url = up["urls"]["https"].as_str().context("no HTTPS address")?;
    let release = setup.release.as_path();
    let (record, later) = (Record::fetch(&setup, url)?, Record::fetch(&setup, url)?);
    let accepted: [&str; 0] = [];
    ensure!(verify(&setup, &record, release, &[])? == accepted);
    ensure!(record.json["nonce"] != later.json["nonce"], "the nonce is not fresh");
    ensure!(connect(&setup, url, release, &[])? == accepted);

    by_nonce(&setup, &node, &record, &later)?;
    in_the_handshake(&setup, &node, url, &record)?;

    // What the verifier expects, not the evidence, is of something else.
    let other = setup.copy_of_release()?;
    signed_by_development_keys(other.path(), 2, |manifest| {
        for entry in &mut manifest.guest.measurements {
            entry.measurement.0[0] ^= 1;
        }
    })?;
    ensure!(verify(&setup, &record, other.path(), &[])? == ["measurement-not-allowed"]);
    ensure!(connect(&setup, url, other.path(), &[])? == ["measurement-not-allowed"]);
    let config = other.path().join("config.json");
    std::fs::write(&config, "{}")?;
    let more = [OsStr::new("--config"), config.as_os_str()];
    ensure!(verify(&setup, &record, release, &more)? == ["host-data-mismatch"]);
    Ok(())
}

/// Tampered variants of evidence for a nonce.
fn by_nonce(setup: &Setup, node: &Node, record: &Record, later: &Record) -> Result<()> {
    let release = setup.release.as_path();
    let expect = |what: &str, codes: &[&str], change: &dyn Fn(&mut Record) -> Result<()>| -> Result<()> {
        let mut copy = record.clone();
        change(&mut copy)?;
        let found = verify(setup, &copy, release, &[])?;
        ensure!(found == codes, "{what}: expected {codes:?}, got {found:?}");
        Ok(())
    };
    let flipped = |at: usize| {
        move |r: &mut Record| {
            r.evidence.report[at] ^= 1;
            Ok(())
        }
    };
    expect("old evidence for a new nonce", &["report-data-mismatch"], &|r| {
        r.json["nonce"] = later.json["nonce"].clone();
        Ok(())
    })?;
    // Somebody between, who shows his own key to the client and the guest's evidence: the certificate does not fit
    // either, but says the same.
    expect("evidence over another TLS key", &["report-data-mismatch", "report-data-mismatch"], &|r| {
        let mut key = r.bytes("tls_key")?;
        key[60] ^= 1;
        r.json["tls_key"] = STANDARD.encode(key).into();
        Ok(())
    })?;
    // Offsets in the report (AMD 56860, table ATTESTATION_REPORT).
    expect("another measurement", &["signature-invalid", "measurement-not-allowed"], &flipped(0x90))?;
    expect("other report data", &["signature-invalid", "report-data-mismatch"], &flipped(0x51))?;
    expect("another instance", &["signature-invalid"], &flipped(0x140))?;
    expect("another signature", &["signature-invalid"], &flipped(0x2a0))?;
    expect("a reserved byte", &["report-not-canonical"], &flipped(0x4c))?;
    expect("padding of the signature", &["report-not-canonical"], &flipped(0x2a0 + 48))?;
    expect("a short report", &["report-length"], &|r| {
        r.evidence.report.pop();
        Ok(())
    })?;
    expect("simulated evidence that calls itself real", &["kind-not-allowed"], &|r| {
        r.evidence.kind = EvidenceKind::Snp;
        Ok(())
    })?;
    expect("another chip's certificate", &["vek-binding", "signature-invalid"], &|r| {
        r.evidence.certificates.vek = certificates_of_another_chip()?.vek;
        Ok(())
    })?;
    expect("the root in place of the intermediate", &["chain-broken"], &|r| {
        r.evidence.certificates.ask = r.evidence.certificates.ark.clone();
        Ok(())
    })?;
    expect("another root", &["unknown-root", "chain-broken", "product-mismatch"], &|r| {
        r.evidence.certificates.ark = r.evidence.certificates.ask.clone();
        Ok(())
    })?;
    expect("a certificate with another byte", &["certificate-malformed"], &|r| {
        r.evidence.certificates.vek[2] ^= 1;
        Ok(())
    })?;

    // Good signatures of the node's own chip do not help: what they sign is looked at.
    let stolen = Stolen::of(node, record)?;
    let key = record.bytes("tls_key")?;
    let binding = record.binding(&key)?;
    let signed = |what: &str, codes: &[&str], evidence: Evidence| {
        expect(what, codes, &|r| {
            r.evidence = evidence.clone();
            Ok(())
        })
    };
    signed("the same again", &[], stolen.evidence(&binding, 0, |_| ())?)?;
    signed(
        "a debugged guest",
        &["debug-allowed"],
        stolen.evidence(&binding, 0, |c| c.policy.0 |= GuestPolicy::DEBUG)?,
    )?;
    let migrating = |c: &mut LaunchContext| c.policy.0 |= GuestPolicy::MIGRATE_MA;
    signed("a guest that can be moved", &["migration-allowed"], stolen.evidence(&binding, 0, migrating)?)?;
    let host_data = stolen.evidence(&binding, 0, |c| c.host_data[0] ^= 1)?;
    signed("another configuration", &["host-data-mismatch"], host_data)?;
    let measurement = stolen.evidence(&binding, 0, |c| c.measurement = Measurement([9; 48]))?;
    signed("another guest", &["measurement-not-allowed"], measurement)?;
    signed("another privilege level", &["vmpl-mismatch"], stolen.evidence(&binding, 1, |_| ())?)?;
    for role in [Role::Host, Role::HandOverOld, Role::HandOverNew] {
        let evidence = stolen.evidence(&Binding { role, ..binding }, 0, |_| ())?;
        signed(role.name(), &["report-data-mismatch"], evidence)?;
    }
    let for_a_peer = stolen.evidence(&Binding { peer: Some(b"a peer's key"), ..binding }, 0, |_| ())?;
    signed("evidence for a peer", &["report-data-mismatch"], for_a_peer)?;
    let real = stolen.evidence(&Binding { kind: EvidenceKind::Snp, ..binding }, 0, |_| ())?;
    signed("REPORT_DATA as real processors make it", &["report-data-mismatch"], real)?;

    for (at, code) in [
        ("2060-01-01T00:00:00Z", "certificate-expired"),
        ("2020-01-01T00:00:00Z", "certificate-not-yet-valid"),
    ] {
        let found = verify(setup, record, release, &["--at", at].map(OsStr::new))?;
        ensure!(found.iter().all(|found| found == code) && !found.is_empty(), "{at}: {found:?}");
    }
    Ok(())
}

/// Tampered variants of evidence in the TLS certificate.
fn in_the_handshake(setup: &Setup, node: &Node, url: &str, record: &Record) -> Result<()> {
    let release = setup.release.as_path();
    let presented = Presented::from_certificate(&record.bytes("certificate")?)?;
    // Ages are in whole seconds: let the evidence be older than none.
    std::thread::sleep(Duration::from_millis(2100));
    ensure!(connect(setup, url, release, &["--max-age", "0"])? == ["handshake-stale"]);
    let mut old = record.clone();
    old.json["fetched_unix_s"] = (presented.issued_unix_s + 7200).into();
    ensure!(verify(setup, &old, release, &[])? == ["handshake-stale"], "a record of stale evidence");

    // Somebody between client and guest with a key of his own.
    let through = |certificate: relay::Certificate, codes: &[&str]| -> Result<()> {
        let relay = relay::Relay::start(url, certificate)?;
        let found = connect(setup, &relay.url, release, &[])?;
        ensure!(found == codes, "{found:?}");
        ensure!(relay.requests() == 0, "something was sent to a server that did not prove its key");
        // With a nonce he is noticed too, when it is verified: `fetch` itself says it of the certificate.
        let file = tempfile::NamedTempFile::new()?;
        let fetch = ["attest", "fetch", "--out"].map(OsStr::new);
        let output =
            setup.redoubt([&fetch[..], &[file.path().as_os_str(), OsStr::new(&relay.url)]].concat())?;
        ensure!(output.status.code() == Some(1) && relay.requests() == 1, "{}", text(&output));
        let fixed =
            [OsStr::new("verify"), OsStr::new("--manifest"), release.as_os_str(), file.path().as_os_str()];
        let found = self::codes(setup, &fixed)?;
        ensure!(found.iter().any(|code| code == "report-data-mismatch"), "{found:?}");
        Ok(())
    };
    through(relay::Certificate::Plain, &["handshake-evidence"])?;
    through(relay::Certificate::Copied(presented.clone()), &["report-data-mismatch"])?;
    // With a stolen chip, too, but for another role.
    let stolen = Stolen::of(node, record)?;
    let freshness = Freshness::IssuedAt(presented.issued_unix_s);
    let issued_unix_s = presented.issued_unix_s;
    let of_a_host = move |key: &[u8]| {
        let binding = Binding { kind: EvidenceKind::SimSnp, role: Role::Host, freshness, key, peer: None };
        let evidence = stolen.evidence(&binding, 0, |_| ())?;
        Ok(Presented { evidence, key: key.to_vec(), issued_unix_s })
    };
    through(relay::Certificate::Made(Box::new(of_a_host)), &["report-data-mismatch"])
}

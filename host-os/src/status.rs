//! What the agent shows: `GET /status` as JSON and `GET /metrics` as Prometheus text. Pure.

use crate::attest::Attested;
use crate::console::printable;
use crate::launch::Accel;
use crate::machine::State;
use crate::node::Ports;
use crate::samples::Sample;
use host_guest::{Health, Phase};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// JSON schema of [`Status`] in its present version. Fields may be added without another one.
pub const SCHEMA: &str = include_str!("../status.schema.json");

/// The answer to `GET /status`. Times are seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// Version of this structure: 1.
    #[cfg_attr(test, schemars(range(min = 1, max = 1)))]
    pub version: u32,
    /// Process of the agent.
    pub pid: u32,
    /// The node's name, if it was installed: its public key, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// State of the machine that watches the guest: "checking", "launching", "booting", "ready", "recovery", "unhealthy",
    /// "backoff", "stopping", "stopped", "failed".
    pub state: String,
    /// What is being done in this state, in words; may be empty.
    pub step: String,
    /// What the guest says about itself; nobody should trust it.
    pub guest: Option<Health>,
    /// What the guest's evidence proved, absent while nothing is proved.
    pub attested: Option<AttestedStatus>,
    /// Why the last attestation failed; empty when it did not.
    pub attestation_error: String,
    /// Ports on 127.0.0.1.
    pub ports: Ports,
    /// URLs to use.
    pub urls: Urls,
    /// How often the guest was started again.
    pub restarts: u64,
    /// Why the guest was last unhealthy, restarted or given up, oldest first.
    pub reasons: Vec<ReasonStatus>,
    /// The release, once it is verified.
    pub release: Option<ReleaseStatus>,
    /// How the guest is executed, once it is known.
    pub accel: Option<Accel>,
    /// Why it is executed so.
    pub accel_reason: String,
    /// Size of the guest's memory in MiB.
    pub memory_mib: u32,
    /// How the machine was started, by its TPM; absent where the agent is an ordinary process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_boot: Option<crate::tpm::attest::MeasuredBootStatus>,
    /// What confines QEMU, and what does not and why; empty before the first launch.
    #[serde(default)]
    pub confinement: Vec<crate::confine::Measure>,
    /// The host beside its guest; absent where the agent is an ordinary process.
    #[serde(default)]
    pub system: Option<crate::system::SystemStatus>,
    /// How an upgrade goes, or how the last one ended.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "std::collections::BTreeMap<String, serde_json::Value>"))]
    pub upgrade: crate::upgrade::UpgradeStatus,
    /// Where operators may connect, if the node has any.
    pub operator: Option<OperatorStatus>,
    /// How this machine compares with its hardware specification, once that was checked.
    pub hardware: Option<HardwareStatus>,
    /// The last figures of the host.
    pub sample: Sample,
    /// Seconds since the agent started.
    pub uptime_s: u64,
}

/// The operators' port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OperatorStatus {
    /// Address and port.
    pub address: String,
    /// SHA-256 of the host's TLS key (SubjectPublicKeyInfo), hexadecimal.
    pub key_sha256: String,
}

/// How the machine compares with a hardware specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HardwareStatus {
    /// Name of the specification.
    pub spec: String,
    /// "pass", "warn", "unknown" or "fail".
    pub verdict: String,
    /// The checks that did not pass.
    pub findings: Vec<Finding>,
}

/// One check that did not pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Finding {
    /// Name of the check.
    pub id: String,
    /// Expected, found, and the fix, in words.
    pub text: String,
}

impl From<&hwspec::Report> for HardwareStatus {
    fn from(report: &hwspec::Report) -> Self {
        let failed = report.checks.iter().filter(|check| check.status != hwspec::Status::Pass);
        let finding = |check: &hwspec::Check| Finding {
            id: check.id.clone(),
            text: format!("expected {}, found {}; {}", check.expected, check.found, check.fix),
        };
        Self {
            spec: report.spec.clone(),
            verdict: report.verdict.to_string(),
            findings: failed.map(finding).collect(),
        }
    }
}

/// What was proved by evidence that the guest gave over the very TLS connection it is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AttestedStatus {
    /// Seconds since 1970 of the verification.
    pub at_unix_s: u64,
    /// Kind of the evidence: "snp" or "sim-snp".
    pub kind: String,
    /// Measurement in the report, hexadecimal.
    pub measurement: String,
    /// HOST_DATA in the report, hexadecimal.
    pub host_data: String,
    /// SHA-256 of the TLS key (SubjectPublicKeyInfo) in the report, hexadecimal.
    pub tls_key_sha256: String,
    /// Chip that signed, hexadecimal.
    pub chip_id: String,
}

impl From<&Attested> for AttestedStatus {
    fn from(attested: &Attested) -> Self {
        let report = attested.verified.report();
        Self {
            at_unix_s: attested.at_unix_s,
            kind: attested.verified.kind().to_string(),
            measurement: report.measurement().to_string(),
            host_data: hex::encode(report.host_data()),
            tls_key_sha256: hex::encode(attested.pin.key_hash()),
            chip_id: hex::encode(report.chip_id()),
        }
    }
}

/// Where to reach the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Urls {
    /// The guest itself; its certificate is proved by evidence, not by a certification authority.
    pub https: String,
    /// Gateway of this machine: plain HTTP in, attested TLS out.
    pub http: String,
    /// Status and metrics.
    pub status: String,
}

impl From<Ports> for Urls {
    fn from(ports: Ports) -> Self {
        Self {
            https: format!("https://127.0.0.1:{}", ports.https),
            http: format!("http://127.0.0.1:{}", ports.http),
            status: format!("http://127.0.0.1:{}", ports.status),
        }
    }
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReasonStatus {
    /// Seconds after the agent's start.
    pub at_s: u64,
    /// In words.
    pub reason: String,
}

/// The release that was verified and is launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseStatus {
    /// Its version.
    pub version: String,
    /// "virtual" or "production".
    pub profile: String,
    /// SHA-256 of what was signed, hexadecimal.
    pub digest: String,
    /// Number of keys that signed.
    pub signatures: usize,
    /// Security epoch.
    pub security_epoch: u64,
    /// Number of virtual processors.
    pub vcpus: u32,
    /// Launch measurement, recomputed from the launched bytes, hexadecimal.
    pub measurement: String,
    /// Hash of the guest's configuration, hexadecimal.
    pub host_data: String,
}

/// The guest's words, made fit to be shown: short, and without control characters.
pub fn shown(health: Health) -> Health {
    let Health { phase, uptime_s, replica_restarts, memory_used, addresses, heap, error } = health;
    Health {
        phase,
        uptime_s,
        replica_restarts,
        memory_used,
        addresses: addresses.iter().take(16).map(|address| printable(address, 64)).collect(),
        heap: printable(&heap, 200),
        error: printable(&error, 500),
    }
}

/// A label's value (Prometheus, exposition formats: backslash, quote and line feed are escaped).
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The metrics, as Prometheus text (exposition format 0.0.4).
pub fn metrics(status: &Status) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
        // Writing to a string does not fail.
        let _ = write!(text, "# HELP redoubt_{name} {help}\n# TYPE redoubt_{name} {kind}\n");
        for (labels, value) in samples {
            let _ = writeln!(text, "redoubt_{name}{labels} {value}");
        }
    };
    let one = |value: f64| [(String::new(), value)];

    let states: Vec<_> = State::NAMES
        .iter()
        .map(|name| (format!("{{state=\"{name}\"}}"), f64::from(u8::from(*name == status.state))))
        .collect();
    metric("guest_state", "gauge", "1 for the state the guest is in, as the host sees it.", &states);
    metric(
        "guest_restarts_total",
        "counter",
        "How often the guest was started again.",
        &one(status.restarts as f64),
    );
    if let Some(attested) = &status.attested {
        metric(
            "guest_attested_timestamp_seconds",
            "gauge",
            "When the guest's evidence was verified, in seconds since 1970.",
            &one(attested.at_unix_s as f64),
        );
    }
    let attested = f64::from(u8::from(status.attested.is_some()));
    metric("guest_attested", "gauge", "1 while the guest's evidence is verified.", &one(attested));
    metric("agent_uptime_seconds", "gauge", "Seconds since the agent started.", &one(status.uptime_s as f64));
    let sample = &status.sample;
    let figures = [
        ("host_cpu_busy_percent", "Part of the processors' time that was not idle.", sample.cpu_percent),
        ("host_memory_used_percent", "Part of the memory that is not available.", sample.memory_percent),
        ("agent_resident_bytes", "Memory of the agent.", sample.agent_bytes.map(|bytes| bytes as f64)),
        (
            "nvme_wear_percent",
            "Endurance that the most worn drive has used.",
            sample.nvme_wear_percent.map(f64::from),
        ),
    ];
    for (name, help, value) in figures {
        if let Some(value) = value {
            metric(name, "gauge", help, &one(value));
        }
    }
    if let Some(release) = &status.release {
        let labels = format!(
            "{{version=\"{}\",profile=\"{}\",measurement=\"{}\"}}",
            label(&release.version),
            label(&release.profile),
            release.measurement
        );
        metric("release_info", "gauge", "The release that is launched.", &[(labels, 1.0)]);
        metric("release_security_epoch", "gauge", "Its security epoch.", &one(release.security_epoch as f64));
    }
    if let Some(guest) = &status.guest {
        let ready = f64::from(u8::from(guest.phase == Phase::Ready));
        metric("replica_ready", "gauge", "1 while the guest says that its replica answers.", &one(ready));
        let restarts = f64::from(guest.replica_restarts);
        metric(
            "replica_restarts_total",
            "counter",
            "Restarts of the replica, as the guest says.",
            &one(restarts),
        );
        let used = guest.memory_used as f64;
        metric("guest_memory_used_bytes", "gauge", "Memory in use, as the guest says.", &one(used));
        metric("guest_uptime_seconds", "gauge", "Uptime, as the guest says.", &one(guest.uptime_s as f64));
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Status {
        let ports = Ports { https: 1, http: 2, status: 3 };
        Status {
            version: 1,
            pid: 7,
            node: None,
            state: "ready".into(),
            step: String::new(),
            guest: Some(Health {
                phase: Phase::Ready,
                uptime_s: 12,
                replica_restarts: 1,
                memory_used: 1 << 20,
                addresses: vec!["10.0.2.15".into()],
                heap: "bar".into(),
                error: String::new(),
            }),
            attested: None,
            attestation_error: "x".into(),
            ports,
            urls: ports.into(),
            restarts: 2,
            reasons: vec![ReasonStatus { at_s: 5, reason: "because".into() }],
            release: None,
            accel: Some(Accel::Tcg),
            accel_reason: "as asked".into(),
            memory_mib: 1024,
            confinement: Vec::new(),
            system: None,
            measured_boot: None,
            upgrade: crate::upgrade::UpgradeStatus::default(),
            operator: None,
            hardware: None,
            sample: Sample::default(),
            uptime_s: 20,
        }
    }

    #[test]
    fn status_survives_json() {
        let status = example();
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
        let schema = serde_json::from_str(SCHEMA).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let mut json = serde_json::to_value(&status).unwrap();
        assert!(validator.is_valid(&json));
        for (field, value) in [("version", 2.into()), ("restarts", "no".into()), ("urls", 1.into())] {
            let right = std::mem::replace(&mut json[field], value);
            assert!(!validator.is_valid(&json), "{field}");
            json[field] = right;
        }
    }

    /// To write it anew: `UPDATE_SCHEMA=1 cargo test -p host-os schema`.
    #[test]
    fn the_schema_is_the_types() {
        let settings = schemars::generate::SchemaSettings::draft2020_12();
        let schema = settings.into_generator().into_root_schema_for::<Status>();
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/status.schema.json"), &text).unwrap();
        } else {
            assert_eq!(SCHEMA, text, "run with UPDATE_SCHEMA=1");
        }
    }

    #[test]
    fn exactly_one_state_is_set_in_the_metrics() {
        let text = metrics(&example());
        let set: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("redoubt_guest_state{") && line.ends_with(" 1"))
            .collect();
        assert_eq!(set, ["redoubt_guest_state{state=\"ready\"} 1"]);
        assert!(text.contains("\nredoubt_guest_restarts_total 2\n"));
        assert!(text.contains("\nredoubt_guest_attested 0\n"));
        assert!(text.contains("\nredoubt_guest_memory_used_bytes 1048576\n"));
        assert_eq!(label("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }

    #[test]
    fn a_hostile_guest_cannot_steer_the_terminal() {
        let mut health = example().guest.unwrap();
        health.error = format!("\x1b[2Jgone\n{}", "x".repeat(100_000));
        health.addresses = vec!["\u{202e}1".into(); 1000];
        let health = shown(health);
        assert!(health.error.starts_with("[2Jgonex") && health.error.len() <= 500);
        assert_eq!(health.addresses, vec!["1"; 16]);
    }
}

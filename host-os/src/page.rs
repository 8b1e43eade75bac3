//! The status page: what the console shows, and plots of the last hour, as one document without a script. Pure.
//!
//! Much of what it shows was said by the guest, whom nobody should trust, so every value is escaped, and the
//! browser is told to run and load nothing.

use crate::samples::{History, Sample};
use crate::status::Status;
use sha2::{Digest, Sha256};
use std::fmt::{self, Display, Write};

const STYLE: &str = "\
:root{color-scheme:light dark;font:15px/1.45 system-ui,sans-serif}\
body{max-width:62rem;margin:1.5rem auto;padding:0 1rem}\
h1{font-size:1.35rem;margin:0 0 1rem}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}\
.state{padding:.1rem .6rem;border-radius:.3rem;color:#fff;background:#8a6100}\
.state.good{background:#1b6e3c}.state.bad{background:#a4262c}\
dl{display:grid;grid-template-columns:11rem 1fr;gap:.2rem 1rem;margin:0}\
dt{opacity:.7}dd{margin:0;overflow-wrap:anywhere}\
code{font:.9em ui-monospace,monospace}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}td:first-child{width:11rem}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:1rem}\
figure{margin:0}figcaption{font-size:.9em}svg{width:100%;height:5rem;background:#8881}\
polyline{fill:none;stroke:#2a78d6;stroke-width:1.5;vector-effect:non-scaling-stroke}\
footer{margin-top:2rem;opacity:.7;font-size:.9em}\
@media(max-width:40rem){dl{grid-template-columns:1fr}dt{margin-top:.4rem}}";

/// Seconds after which a browser asks again.
const REFRESH_S: u64 = 10;

/// Value of the header `Content-Security-Policy`: this one style, and nothing else.
pub fn content_security_policy() -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let style = STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// Text between tags or in a quoted attribute.
struct Text<T>(T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.to_string().chars() {
            match character {
                '&' => out.write_str("&amp;")?,
                '<' => out.write_str("&lt;")?,
                '>' => out.write_str("&gt;")?,
                '"' => out.write_str("&quot;")?,
                '\'' => out.write_str("&#39;")?,
                other => out.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// The page; `now_unix_s` is the present time in seconds since 1970.
pub fn page(status: &Status, history: &History, now_unix_s: u64) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, status, history, now_unix_s);
    out
}

fn write(out: &mut String, status: &Status, history: &History, now: u64) -> fmt::Result {
    let class = match status.state.as_str() {
        "ready" if status.attested.is_some() => "state good",
        "failed" | "recovery" | "unhealthy" | "backoff" | "stopped" => "state bad",
        _ => "state",
    };
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Redoubt: {state}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><meta http-equiv=\"refresh\" content=\"{REFRESH_S}\">\
         <style>{STYLE}</style></head><body>\n<h1>Redoubt node <span class=\"{class}\" id=\"state\">{state}</span></h1>\n",
        state = Text(&status.state),
    )?;
    identity(out, status, now)?;
    guest(out, status)?;
    hardware(out, status)?;
    plots(out, history)?;
    reasons(out, status)?;
    write!(
        out,
        "<footer>As of {} s after the agent's start. The host shows this, and the host is trusted for availability \
         only: verify the node yourself with <code>redoubt attest fetch</code>. The same as \
         <a href=\"/status\">JSON</a> and as <a href=\"/metrics\">metrics</a>.</footer>\n</body></html>\n",
        status.uptime_s
    )
}

/// Rows of a name and a value.
fn facts(out: &mut String, title: &str, rows: &[(&str, String)]) -> fmt::Result {
    write!(out, "<h2>{title}</h2>\n<dl>")?;
    for (name, value) in rows {
        write!(out, "<dt>{name}</dt><dd>{}</dd>", Text(value))?;
    }
    out.write_str("</dl>\n")
}

fn identity(out: &mut String, status: &Status, now: u64) -> fmt::Result {
    let mut rows = Vec::new();
    if let Some(node) = &status.node {
        rows.push(("Node", node.clone()));
    }
    match &status.attested {
        Some(attested) => {
            let age = now.saturating_sub(attested.at_unix_s);
            rows.push(("Attested", format!("yes ({}), {age} s ago", attested.kind)));
            rows.push(("Measurement", attested.measurement.clone()));
            rows.push(("TLS key (SHA-256)", attested.tls_key_sha256.clone()));
            rows.push(("Chip", attested.chip_id.clone()));
        }
        None if status.attestation_error.is_empty() => rows.push(("Attested", "not yet".into())),
        None => rows.push(("Attested", format!("no: {}", status.attestation_error))),
    }
    if let Some(release) = &status.release {
        let text = format!(
            "{} ({}), security epoch {}, {} signatures",
            release.version, release.profile, release.security_epoch, release.signatures
        );
        rows.push(("Release", text));
        rows.push(("Manifest", release.digest.clone()));
        rows.push(("Expected measurement", release.measurement.clone()));
    }
    if !status.upgrade.no_keys.is_empty() {
        rows.push(("Keys", format!("none are given: {}", status.upgrade.no_keys)));
    }
    if let Some(operator) = &status.operator {
        rows.push(("Operators' port", operator.address.clone()));
        rows.push(("Host's key (SHA-256)", operator.key_sha256.clone()));
    }
    facts(out, "Identity", &rows)
}

fn guest(out: &mut String, status: &Status) -> fmt::Result {
    let mut rows = vec![("State", status.state.clone())];
    if !status.step.is_empty() {
        rows.push(("Doing", status.step.clone()));
    }
    if let Some(guest) = &status.guest {
        rows.push(("It says", format!("{:?}, up {} s", guest.phase, guest.uptime_s)));
        rows.push(("Memory", format!("{} of {} MiB", guest.memory_used >> 20, status.memory_mib)));
        rows.push(("Addresses", guest.addresses.join(", ")));
        rows.push(("Heap", guest.heap.clone()));
        if !guest.error.is_empty() {
            rows.push(("Error", guest.error.clone()));
        }
    }
    if let Some(accel) = status.accel {
        rows.push(("Execution", format!("{accel}: {}", status.accel_reason)));
    }
    rows.push(("Restarts", status.restarts.to_string()));
    facts(out, "Guest", &rows)
}

fn hardware(out: &mut String, status: &Status) -> fmt::Result {
    let Some(hardware) = &status.hardware else { return Ok(()) };
    let rows = [("Specification", hardware.spec.clone()), ("Verdict", hardware.verdict.clone())];
    facts(out, "Hardware", &rows)?;
    if hardware.findings.is_empty() {
        return Ok(());
    }
    out.write_str("<table><tr><th>Check</th><th>Finding</th></tr>")?;
    for finding in &hardware.findings {
        write!(out, "<tr><td><code>{}</code></td><td>{}</td></tr>", Text(&finding.id), Text(&finding.text))?;
    }
    out.write_str("</table>\n")
}

fn reasons(out: &mut String, status: &Status) -> fmt::Result {
    if status.reasons.is_empty() {
        return Ok(());
    }
    out.write_str("<h2>Last errors</h2>\n<table>")?;
    for reason in &status.reasons {
        write!(out, "<tr><td>after {} s</td><td>{}</td></tr>", reason.at_s, Text(&reason.reason))?;
    }
    out.write_str("</table>\n")
}

fn plots(out: &mut String, history: &History) -> fmt::Result {
    out.write_str("<h2>Last hour</h2>\n<div class=\"plots\">")?;
    type Value = fn(&Sample) -> Option<f64>;
    let all: [(&str, &str, Option<f64>, Value); 5] = [
        ("Host processors", "%", Some(100.0), |sample| sample.cpu_percent),
        ("Host memory", "%", Some(100.0), |sample| sample.memory_percent),
        ("NVMe wear", "%", Some(100.0), |sample| sample.nvme_wear_percent.map(f64::from)),
        ("Guest restarts", "", None, |sample| Some(sample.restarts as f64)),
        ("Attestation age", "s", None, |sample| sample.attestation_age_s.map(|age| age as f64)),
    ];
    for (name, unit, full, value) in all {
        let samples: Vec<(f64, f64)> = history
            .iter()
            .filter_map(|sample| Some((sample.at_s as f64, value(sample).filter(|value| value.is_finite())?)))
            .collect();
        plot(out, name, unit, full, &samples)?;
    }
    out.write_str("</div>\n")
}

/// One plot of (seconds, value); `full` is the value at the top, or the largest one.
fn plot(out: &mut String, name: &str, unit: &str, full: Option<f64>, samples: &[(f64, f64)]) -> fmt::Result {
    let Some((last_time, last)) = samples.last().copied() else {
        return write!(out, "<figure><figcaption>{name}: not known</figcaption></figure>");
    };
    let largest = samples.iter().fold(0.0_f64, |largest, (_, value)| largest.max(*value));
    let top = full.unwrap_or(0.0).max(largest).max(1.0);
    write!(
        out,
        "<figure><figcaption>{name}: {last:.0} {unit}</figcaption><svg viewBox=\"0 0 3600 100\" \
         preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{name}, last hour, 0 to {top:.0} {unit}\">\
         <polyline points=\""
    )?;
    for (time, value) in samples {
        write!(out, "{:.0},{:.1} ", 3600.0 - (last_time - time), 99.0 - 98.0 * value / top)?;
    }
    out.write_str("\"/></svg></figure>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::example;

    #[test]
    fn the_facts_are_there_without_a_script() {
        let mut history = History::default();
        for at_s in [0, 10, 20] {
            history.push(Sample { at_s, cpu_percent: Some(42.0), restarts: at_s, ..Sample::default() });
        }
        let text = page(&example(), &history, 100);
        for wanted in [
            "id=\"state\">ready<",
            "Host processors: 42 %",
            "points=\"3580,57.8 3590,57.8 3600,57.8 \"",
            "NVMe wear: not known",
            "because",
            "no: x",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in {text}");
        }
        assert!(!text.contains("<script"));
    }

    #[test]
    fn a_hostile_guest_cannot_add_to_the_page() {
        let attack = "</dd><script>alert(1)</script><img src=x onerror='alert(1)' a=\"";
        let mut status = example();
        let plain = page(&status, &History::default(), 0);
        if let Some(guest) = &mut status.guest {
            guest.error = attack.into();
            guest.heap = attack.into();
            guest.addresses = vec![attack.into()];
        }
        status.attestation_error = attack.into();
        status.reasons[0].reason = attack.into();
        let text = page(&status, &History::default(), 0);
        // One more row for the error, and otherwise not a tag more.
        let tags = |text: &str| text.matches('<').count();
        assert_eq!(tags(&text), tags(&plain) + "<dt></dt><dd></dd>".matches('<').count());
        assert!(!text.contains("<script") && !text.contains("<img"));
        assert!(!content_security_policy().contains("unsafe"));
    }
}

//! A node's operators: who may ask it anything, what they see, and that Prometheus and a browser see it too.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    ffi::OsStr,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tests::{Node, Setup, get, is_status, json, script, text};

/// For Prometheus to have asked a node.
const SCRAPED: Duration = Duration::from_secs(60);

/// For a node to have plots to show.
const PLOTTED: Duration = Duration::from_secs(90);

/// A node that runs, and the way to it from elsewhere.
struct Elsewhere<'a> {
    setup: &'a Setup,
    node: Node<'a>,
    address: String,
    key: String,
}

impl Elsewhere<'_> {
    fn ask(&self, command: &[&str], key: Option<&Path>) -> Result<Output> {
        let whose = ["--json", "--node", &self.address, "--node-key", &self.key];
        let mut words: Vec<&OsStr> = command.iter().chain(&whose).map(OsStr::new).collect();
        words.extend(key.iter().flat_map(|key| [OsStr::new("--key"), key.as_os_str()]));
        self.setup.redoubt(words)
    }

    fn refused(&self, command: &[&str], key: Option<&Path>, code: &str) -> Result<()> {
        let output = self.ask(command, key)?;
        let answer: Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
        ensure!(answer["error"]["code"] == code, "{command:?}: {code}, not {answer:#}");
        ensure!(output.status.code() == Some(1), "{command:?}: {}", text(&output));
        Ok(())
    }
}

/// Makes a key; its file and its SHA-256.
fn key(setup: &Setup, folder: &Path, name: &str) -> Result<(PathBuf, String)> {
    let file = folder.join(name);
    let made = json(setup.redoubt(["--json", "operator", "key", file.to_str().context("a path")?])?)?;
    Ok((file, made["key_sha256"].as_str().context("no key")?.to_owned()))
}

#[test]
fn who_may_operate_a_node_and_what_they_see() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let out = |name: &str| folder.path().join(name);
    let (alice, alice_sha256) = key(&setup, folder.path(), "alice")?;
    let (stranger, _) = key(&setup, folder.path(), "stranger")?;
    let (late, late_sha256) = key(&setup, folder.path(), "late")?;
    let (former, former_sha256) = key(&setup, folder.path(), "former")?;
    let node = Node::new(&setup)?;
    node.allow("alice", &alice_sha256, &[])?;
    node.allow("late", &late_sha256, &["--not-after", "1"])?;
    node.allow("former", &former_sha256, &[])?;
    let revoke = |sha256: &str| json(node.operator(&["--json", "revoke", sha256].map(OsStr::new))?);
    revoke(&former_sha256)?;
    node.up()?;
    let status = node.status()?;
    let of = |name: &str| status["operator"][name].as_str().map(str::to_owned).context("no operators' port");
    let elsewhere = Elsewhere { setup: &setup, address: of("address")?, key: of("key_sha256")?, node };

    let bundle = out("bundle.tar");
    let support = ["support", "--out", bundle.to_str().context("a path")?];
    let commands: [&[&str]; 6] = [
        &["status"],
        &["logs"],
        &support,
        &["reboot"],
        &["reboot", "--guest"],
        &["decommission", "--confirm", "00000000"],
    ];
    for command in commands {
        elsewhere.refused(command, None, "operator-key-missing")?;
        elsewhere.refused(command, Some(&stranger), "operator-key-unknown")?;
        elsewhere.refused(command, Some(&late), "operator-key-expired")?;
        elsewhere.refused(command, Some(&former), "operator-key-revoked")?;
    }
    ensure!(!bundle.exists());
    let mistaken = Elsewhere { key: "00".repeat(32), ..elsewhere };
    mistaken.refused(&["status"], Some(&alice), "node-key-differs")?;
    let elsewhere = Elsewhere { key: of("key_sha256")?, ..mistaken };

    let seen = json(elsewhere.ask(&["status"], Some(&alice))?)?;
    ensure!(seen["version"] == 1 && seen["state"] == "ready", "{seen:#}");
    let log = elsewhere.ask(&["logs", "-n", "5"], Some(&alice))?;
    ensure!(
        log.status.success() && String::from_utf8_lossy(&log.stdout).lines().count() == 5,
        "{}",
        text(&log)
    );
    json(elsewhere.ask(&support, Some(&alice))?)?;
    let listed = Command::new("tar").arg("tf").arg(&bundle).output()?;
    for part in ["status.json", "metrics.txt", "history.json"] {
        ensure!(text(&listed).contains(part), "no {part} in the bundle: {}", text(&listed));
    }
    // A process on somebody's machine does not restart that machine.
    elsewhere.refused(&["reboot"], Some(&alice), "order-not-possible")?;
    elsewhere.refused(&["decommission", "--confirm", "00000000"], Some(&alice), "not-confirmed")?;

    let urls = &status["urls"]["status"];
    let url = urls.as_str().context("no address for status")?;
    is_status(&setup, &serde_json::from_str(&get(&format!("{url}/status"))?)?)?;
    checked_by_promtool(&get(&format!("{url}/metrics"))?)?;
    let measurement = status["attested"]["measurement"].as_str().context("not attested")?;
    for scripts in ["with", "without"] {
        shown_by_a_browser(url, scripts, measurement)?;
    }

    let config = out("prometheus");
    let written = ["operator", "prometheus", "--out", config.to_str().context("a path")?];
    json(elsewhere.ask(&written, Some(&alice))?)?;
    let prometheus = Prometheus::start(&config)?;
    prometheus.until("up{job=\"redoubt\"}", "1")?;
    prometheus.until("redoubt_guest_state{state=\"ready\"}", "1")?;
    json(elsewhere.node.operator(&["--json", "revoke", &alice_sha256].map(OsStr::new))?)?;
    elsewhere.refused(&["status"], Some(&alice), "operator-key-revoked")?;
    prometheus.until("up{job=\"redoubt\"}", "0")
}

/// Names, types, helps and units as Prometheus wants them.
fn checked_by_promtool(metrics: &str) -> Result<()> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run promtool; `cargo xtask setup` installs it")?;
    promtool.stdin.take().context("no input")?.write_all(metrics.as_bytes())?;
    let said = promtool.wait_with_output()?;
    ensure!(said.status.success(), "promtool: {}{metrics}", text(&said));
    Ok(())
}

/// What people see is there without a script, and nothing on the page breaks its own rules.
fn shown_by_a_browser(url: &str, scripts: &str, measurement: &str) -> Result<()> {
    let started = Instant::now();
    // A plot needs two samples of its figure.
    let seen = loop {
        let seen = script("browser.mjs", &[url, scripts])?;
        if seen["plots"].as_array().is_some_and(|plots| plots.len() >= 3) || started.elapsed() > PLOTTED {
            break seen;
        }
    };
    ensure!(seen["scripts"] == (scripts == "with"), "{seen:#}");
    let page = seen["html"].as_str().context("no page")?;
    for wanted in [measurement, "id=\"state\">ready<", "Host processors: ", "<polyline points="] {
        ensure!(page.contains(wanted), "the page lacks {wanted}: {page}");
    }
    ensure!(!page.contains("<script"), "a script on the page: {page}");
    ensure!(seen["complaints"].as_array().is_some_and(Vec::is_empty), "the browser complains: {seen:#}");
    let plots = seen["plots"].as_array().context("no plots")?;
    ensure!(plots.len() >= 3 && plots.iter().all(|plot| plot[0].as_u64() > Some(0)), "{seen:#}");
    Ok(())
}

/// A real one, with the configuration that `redoubt operator prometheus` writes.
struct Prometheus {
    process: Child,
    address: String,
    log: PathBuf,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    fn start(folder: &Path) -> Result<Self> {
        let file = folder.join("prometheus.yml");
        // It asks every minute, which is long for a test.
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        config["global"]["scrape_interval"] = "1s".into();
        std::fs::write(&file, config.to_string())?;
        let address = format!("127.0.0.1:{}", tests::free_port()?);
        let log = folder.join("log");
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .context("cannot run prometheus; `cargo xtask setup` installs it")?;
        Ok(Self { process, address, log })
    }

    /// Asks until the query has this value.
    fn until(&self, query: &str, value: &str) -> Result<()> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let url = format!("http://{}/api/v1/query?query={encoded}", self.address);
        let end = Instant::now() + SCRAPED;
        loop {
            // It takes a while to listen.
            let answer = get(&url).unwrap_or_else(|error| error.to_string());
            let parsed: Value = serde_json::from_str(&answer).unwrap_or_default();
            if parsed["data"]["result"][0]["value"][1] == value {
                return Ok(());
            }
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            ensure!(Instant::now() < end, "{query} is not {value}: {answer}\n{log}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

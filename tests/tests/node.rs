//! A whole node: boot, attest, deploy, call; then crashes and power cuts.

use anyhow::{Context, Result, ensure};
use std::{
    io::{BufRead, BufReader},
    process::Command,
    time::Duration,
};
use tests::{
    Node, Setup, call, check_interface, deploy_counter, number, runs, start_stream, text, with_command_line,
};

/// Generous: the guest is emulated, and other tests may share the machine.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn boot_attest_deploy_call_and_stop() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    let up = node.up()?;
    ensure!(up["verified"].as_array().is_some_and(|lines| !lines.is_empty()), "nothing verified: {up:#}");
    let url = node.url()?;
    let counter = deploy_counter(&url)?;
    ensure!(call(&url, &counter, "inc")? == 1);
    ensure!(call(&url, &counter, "inc")? == 2);
    ensure!(call(&url, &counter, "get")? == 2, "the query sees another state than the updates");

    check_interface(&url, &counter)?;

    let status = up["urls"]["status"].as_str().context("no address for status")?;
    let metrics = get(&format!("{status}/metrics"))?;
    ensure!(metrics.contains("# TYPE "), "no Prometheus text: {metrics}");

    // What people see is there without a script, and nothing on the page breaks its own rules.
    let measurement = node.status()?["attested"]["measurement"].as_str().context("not attested")?.to_owned();
    let (page, said) = in_a_browser(&format!("{status}/"))?;
    for wanted in [measurement.as_str(), "id=\"state\">ready<", "Host processors: ", "<polyline points="] {
        ensure!(page.contains(wanted), "the page lacks {wanted}: {page}");
    }
    ensure!(!page.contains("<script"), "a script on the page: {page}");
    ensure!(!said.contains("Content Security Policy"), "the browser complains: {said}");

    let qemu = node.qemu()?;
    node.down()?;
    ensure!(!runs(qemu), "QEMU {qemu} is still there after down");
    Ok(())
}

#[test]
fn no_acknowledged_update_is_lost_in_a_power_cut() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    node.up()?;
    let counter = deploy_counter(&node.url()?)?;
    let mut last = 0;
    for round in 1..=3u64 {
        let mut stream = start_stream(&node.url()?, &counter)?;
        let mut lines = BufReader::new(stream.stdout.take().context("no output")?).lines();
        // Some updates into the stream, a different number each round.
        for _ in 0..3 + round {
            last = number(&serde_json::from_str(&lines.next().context("the stream ended")??)?)?;
        }
        node.cut_power()?;
        // What was acknowledged before the client noticed counts as well.
        for line in lines {
            last = number(&serde_json::from_str(&line?)?)?;
        }
        stream.wait()?;
        let wanted = round;
        node.wait_for("the restart after the power cut", LIMIT, |s| {
            s["restarts"].as_u64() >= Some(wanted) && s["state"] == "ready" && !s["attested"].is_null()
        })?;
        let kept = call(&node.url()?, &counter, "get")?;
        // One update may have been executed without its reply reaching the client.
        ensure!(
            kept == last || kept == last + 1,
            "acknowledged {last}, found {kept} after power cut {round}"
        );
        last = kept;
    }
    Ok(())
}

#[test]
fn state_survives_down_and_up_and_the_agents_death_takes_qemu_along() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    node.up()?;
    let counter = deploy_counter(&node.url()?)?;
    ensure!(call(&node.url()?, &counter, "inc")? == 1);
    node.down()?;

    node.up()?;
    ensure!(call(&node.url()?, &counter, "inc")? == 2);
    let qemu = node.kill_agent()?;
    for _ in 0..50 {
        if !runs(qemu) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(!runs(qemu), "QEMU {qemu} outlived its agent");

    node.up()?;
    ensure!(call(&node.url()?, &counter, "inc")? == 3);
    Ok(())
}

#[test]
fn another_guest_cannot_open_the_storage_and_leaves_it_as_it_was() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    node.up()?;
    let counter = deploy_counter(&node.url()?)?;
    ensure!(call(&node.url()?, &counter, "inc")? == 1);
    node.down()?;

    // The same files with another command line: blessed, but another measurement.
    let other = setup.copy_of_release()?;
    with_command_line(other.path(), "redoubt.watchdog=61")?;
    let output = node.up_with(other.path(), &[])?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
    ensure!(answer["error"]["code"] == "guest-does-not-start", "{answer:#}");
    ensure!(text(&output).contains("vault sealed to another guest"), "{answer:#}");

    node.up()?;
    ensure!(call(&node.url()?, &counter, "inc")? == 2);
    Ok(())
}

/// What a browser makes of a page, and what it says about it.
fn in_a_browser(url: &str) -> Result<(String, String)> {
    let profile = tempfile::tempdir()?;
    let output = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(url)
        .output()
        .context("cannot run chromium; `cargo xtask setup` installs it")?;
    ensure!(output.status.success(), "chromium failed: {}", text(&output));
    Ok((String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// The body of a loopback HTTP address.
fn get(url: &str) -> Result<String> {
    use std::io::{Read, Write};
    let rest = url.strip_prefix("http://").context("not http")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = std::net::TcpStream::connect(host).with_context(|| format!("cannot reach {url}"))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

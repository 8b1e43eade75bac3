//! A whole node: boot, attest, deploy, call; then crashes and power cuts.

use anyhow::{Context, Result, ensure};
use std::{
    io::{BufRead, BufReader},
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
fn state_survives_down_and_up_and_the_agents_death_and_no_older_image_passes_for_it() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    node.up()?;
    let counter = deploy_counter(&node.url()?)?;
    ensure!(call(&node.url()?, &counter, "inc")? == 1);
    node.down()?;
    let older = std::fs::read(node.nvram())?;

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
    node.down()?;

    // Whoever owns the machine puts the NVRAM back to what it was.
    let present = std::fs::read(node.nvram())?;
    std::fs::write(node.nvram(), older)?;
    let output = node.up_with(&setup.release, &[])?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
    ensure!(answer["error"]["code"] == "guest-failed", "{answer:#}");
    ensure!(text(&output).contains("older image of the heap"), "{answer:#}");
    std::fs::write(node.nvram(), present)?;
    node.up()?;
    ensure!(call(&node.url()?, &counter, "inc")? == 4);
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

//! `cargo xtask up`: from a fresh checkout to a canister that answers on an attested node.

use crate::{Consent, setup, tools};
use anyhow::{Context, Result};
use serde_json::Value;
use std::sync::mpsc;

/// Options of `cargo xtask up`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    consent: Consent,
    /// Leave the node running and return; `redoubt down` stops it
    #[arg(long)]
    detach: bool,
    /// Erase the node's disk, NVRAM and simulated chip first
    #[arg(long)]
    fresh: bool,
    /// Print the result as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut steps = tools::Steps::default();
    steps.step("set-up", || setup::run(options.consent, &[setup::FOR_BUILD, setup::FOR_UP]))?;
    steps.step("npm packages", tools::npm_packages)?;
    steps.step("tools", tools::build_tools)?;
    let release = steps.step("guest image", tools::build_release)?;
    let node: Value = steps.step("boot and attest", || {
        let mut up = tools::command(tools::binary("redoubt"));
        up.args(["up", "--json", "--detach", "--release"]).arg(&release);
        if options.fresh {
            up.arg("--fresh");
        }
        serde_json::from_str(&tools::output(&mut up)?).context("redoubt up printed no JSON")
    })?;
    let url = node["urls"]["http"].as_str().context("redoubt up names no address")?.to_owned();
    let deployed =
        steps.step("deploy the counter", || script("deploy.mjs", &[&url, "tests/canisters/counter.mo"]))?;
    let canister = deployed["canister_id"].as_str().context("deploy.mjs names no canister")?.to_owned();
    let called = steps.step("call the counter", || script("call.mjs", &[&url, &canister, "inc"]))?;

    if options.json {
        let result = serde_json::json!({
            "node": node, "canister_id": canister, "answer": called, "seconds": steps.json(),
        });
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        print_summary(&node, &url, &canister, &called, &steps);
    }
    if options.detach { Ok(()) } else { wait_and_stop() }
}

fn print_summary(node: &Value, url: &str, canister: &str, called: &Value, steps: &tools::Steps) {
    let redoubt = tools::binary("redoubt");
    let redoubt = redoubt.display();
    println!("\nA confidential node (virtual profile) runs and was verified:");
    for line in node["verified"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        println!("  {line}");
    }
    println!("\nThe Motoko counter {canister} was installed and called with the official agent:");
    println!("  inc() = {}", called["result"].as_str().unwrap_or("no number"));
    println!("\nTime per step\n{}", steps.table());
    println!("\nAddresses");
    for (name, address) in node["urls"].as_object().into_iter().flatten() {
        println!("  {name:<8}{}", address.as_str().unwrap_or_default());
    }
    println!("\nTry next");
    println!("  node tests/js/call.mjs {url} {canister} inc");
    println!("  {redoubt} status      # what the node says of itself");
    println!("  {redoubt} logs        # the agent's log; --console for the guest's");
    println!("  {redoubt} down        # stop it; its state stays");
}

/// Runs one of the JavaScript clients; they print one JSON object.
fn script(name: &str, arguments: &[&str]) -> Result<Value> {
    let printed = tools::output(tools::command("node").arg(format!("tests/js/{name}")).args(arguments))?;
    serde_json::from_str(&printed).with_context(|| format!("{name} printed no JSON"))
}

fn wait_and_stop() -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    ctrlc::set_handler(move || {
        // A second Ctrl-C finds the channel full of intent already; nothing more to do then.
        let _ = sender.send(());
    })
    .context("cannot wait for Ctrl-C")?;
    eprintln!("\nCtrl-C stops the node.");
    receiver.recv().context("nothing left to wait for")?;
    tools::run(tools::command(tools::binary("redoubt")).arg("down"))
}

//! Upgrades: how long nobody answers, beside a plain restart; how many bytes move for a small change; how long the key takes.
//!
//! The two releases differ by one line of the replica. What is measured on the node is the example `upgrade_figures` of the
//! crate `tests`.

use super::{
    image,
    table::{Table, row},
};
use crate::{Consent, setup, tools};
use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Measures all figures.
pub(crate) fn measure(consent: Consent, runs: usize) -> Result<Table> {
    setup::run(consent, &[setup::FOR_BUILD, setup::FOR_UP, setup::FOR_TEST])?;
    tools::npm_packages()?;
    tools::build_tools()?;
    let (old, new, _) = image::changed(&tools::target().join("bench-upgrade"), &["--guest-only"])?;
    let redoubt = tools::binary("redoubt");
    let made =
        tools::output(tools::command(&redoubt).args(["--json", "release", "delta"]).arg(&old).arg(&new))?;
    let output = tools::output(
        tools::command("cargo")
            .args(["run", "--locked", "--quiet", "-p", "tests", "--example", "upgrade_figures", "--"])
            .arg(&old)
            .arg(&new)
            .arg(runs.to_string())
            .env("REDOUBT_BIN", tools::target().join("debug"))
            .env("REDOUBT_RELEASE", &old),
    )?;
    let figures: Value = serde_json::from_str(&output).with_context(|| output.clone())?;
    let seconds = |name: &str| -> Result<f64> {
        let mut all: Vec<f64> =
            figures[name].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().with_context(|| format!("no {name} in {figures}"))
    };
    let one = |name: &str| figures[name].as_f64().with_context(|| format!("no {name} in {figures}"));
    let explored = tools::output(tools::command("cargo").args([
        "test",
        "--locked",
        "--quiet",
        "-p",
        "upgrade",
        "--test",
        "explore",
        "--test",
        "recovery",
        "--",
        "--nocapture",
    ]))?;
    let explored: Vec<&str> = explored.lines().filter(|line| line.contains(" transitions")).collect();
    let [product, recovery] = explored[..] else { bail!("not two counts of transitions: {explored:?}") };
    Ok(Table {
        rows: vec![
            row(
                "no answers during an upgrade, against an ordered restart",
                "s",
                seconds("upgrade_s")?,
                Some(seconds("restart_s")?),
                1.2,
                true,
            ),
            row("bytes moved for one line of the replica, of the image", "MB", one("moved")? / 1e6, Some(one("image")? / 1e6), 0.15, true),
            row("hand-over of the key, with attestation", "s", seconds("hand_over_s")?, None, 1.0, false),
        ],
        notes: vec![
            format!("medians of {runs} upgrades and {runs} restarts, alternating; TCG, 2 vCPU; asked for every 20 ms"),
            "limit of the upgrade: the restart of one guest; everything else happens while the old one serves".into(),
            format!("differences: {}", made.trim()),
            format!("state machine of host and guest, explored whole: {}", product.trim()),
            format!("of a guest with its recovery release: {}", recovery.trim()),
        ],
    })
}

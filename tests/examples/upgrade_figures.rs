//! Figures of upgrades of a running node, for `cargo xtask bench upgrade`. Arguments: two releases, number of runs.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tests::{Node, Setup, blessing::Words, get, mirror::Mirror};

const PATIENCE: Duration = Duration::from_secs(300);

/// The longest time without an answer of the node while `work` is done and until it answers again.
fn without_answers(url: &str, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let (stop, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Duration::ZERO)));
    let asking = {
        let (stop, longest, url) = (stop.clone(), longest.clone(), format!("{url}/api/v2/status"));
        std::thread::spawn(move || {
            let mut last = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                if get(&url).is_ok() {
                    let mut longest = longest.lock().unwrap_or_else(PoisonError::into_inner);
                    *longest = (*longest).max(last.elapsed());
                    last = Instant::now();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    };
    let done = work();
    stop.store(true, Ordering::Relaxed);
    asking.join().ok().context("the thread that asks panicked")?;
    done?;
    Ok(*longest.lock().unwrap_or_else(PoisonError::into_inner))
}

fn ready(node: &Node, restarts: u64) -> Result<Value> {
    let status = node.wait_for("a guest that serves", PATIENCE, |status| {
        status["state"] == "ready" && !status["attested"].is_null() && status["restarts"] == restarts
    })?;
    // The gateway answers again.
    let url = node.url()?;
    while get(&format!("{url}/api/v2/status")).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(status)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("usage: upgrade_figures OLD NEW RUNS");
    let releases: [PathBuf; 2] = [next()?.into(), next()?.into()];
    let runs: u64 = next()?.parse()?;
    let setup = Setup::find().context("REDOUBT_BIN and REDOUBT_RELEASE are not set")?;
    let keys = tempfile::tempdir()?;
    let key = keys.path().join("operator");
    let made = tests::json(setup.redoubt([
        OsStr::new("--json"),
        "operator".as_ref(),
        "key".as_ref(),
        key.as_ref(),
    ])?)?;
    let node = Node::new(&setup)?;
    node.allow("bench", made["key_sha256"].as_str().context("no key")?, &[])?;
    tests::json(node.up_with(&releases[0], &["--healthy", "1"])?)?;
    let url = node.url()?;
    let operator = node.status()?["operator"].clone();
    let (mut upgrades, mut restarts, mut hand_overs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut moved, mut image) = (0, 0);
    for run in 0..runs {
        let count = 2 * run;
        let order = || {
            let text = |name: &str| operator[name].as_str().unwrap_or_default().to_owned();
            let whose =
                ["--node", &text("address"), "--node-key", &text("key_sha256"), "--key"].map(String::from);
            let words = ["--json", "reboot", "--guest"].map(String::from);
            let mut command: Vec<std::ffi::OsString> =
                words.into_iter().chain(whose).map(Into::into).collect();
            command.push(key.clone().into());
            tests::json(setup.redoubt(command)?)?;
            ready(&node, count + 1).map(drop)
        };
        restarts.push(without_answers(&url, order)?.as_secs_f64());
        // There, and back again.
        let to: &Path = &releases[usize::try_from((run + 1) % 2)?];
        Words::version(run + 2).beside(&[to, &releases[usize::try_from(run % 2)?]])?;
        let server = Mirror::of(to)?;
        let manifest = format!("{}/manifest.json", server.url);
        let time = without_answers(&url, || {
            let words = ["--json", "--wait", &manifest].map(OsStr::new);
            let said = tests::json(node.redoubt("upgrade", &words)?)?;
            ensure!(said["code"] == "", "{said:#}");
            ready(&node, count + 2).map(drop)
        })?;
        upgrades.push(time.as_secs_f64());
        let status = node.status()?;
        hand_overs.push(status["upgrade"]["hand_over_ms"].as_f64().unwrap_or_default() / 1000.0);
        if run == 0 {
            moved = status["upgrade"]["moved"].as_u64().unwrap_or_default();
            image = status["upgrade"]["fetched"][1].as_u64().unwrap_or_default();
        }
        eprintln!(
            "run {} of {runs}: restart {:.1} s, upgrade {:.1} s",
            run + 1,
            restarts[restarts.len() - 1],
            time.as_secs_f64()
        );
    }
    println!(
        "{}",
        json!({ "upgrade_s": upgrades, "restart_s": restarts, "hand_over_s": hand_overs, "moved": moved, "image": image })
    );
    Ok(())
}

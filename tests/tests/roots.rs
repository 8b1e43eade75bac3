//! Owners of releases replace their keys: a running node follows their roots, by the old keys' consent only, and what it runs goes on.

use anyhow::{Context, Result, ensure};
use release::{BLESSING_FILE, SigningKey, root_file};
use serde_json::Value;
use std::{ffi::OsStr, fs, path::Path, time::Duration};
use tempfile::TempDir;
use tests::{
    Node, Setup,
    blessing::{Words, digest, root_of},
    call, deploy_counter, json,
    mirror::Mirror,
    signed_by, with_command_line,
};

/// For a guest under translation, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// A release that is this one with another measurement, signed by these keys.
fn other(setup: &Setup, watchdog: u32, keys: &[SigningKey]) -> Result<TempDir> {
    let copy = setup.copy_of_release()?;
    with_command_line(copy.path(), &format!("redoubt.watchdog={watchdog}"))?;
    signed_by(copy.path(), keys, |_| {})?;
    Ok(copy)
}

fn upgrade(node: &Node, server: &Mirror) -> Result<Value> {
    let manifest = format!("{}/manifest.json", server.url);
    let words = ["--json", "--wait", &manifest].map(OsStr::new);
    let output = node.redoubt("upgrade", &words)?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {}", tests::text(&output)))
}

fn runs(node: &Node, release: &Path) -> Result<()> {
    let status = node.wait_for("the release", PATIENCE, |status| {
        status["state"] == "ready" && !status["attested"].is_null()
    })?;
    ensure!(status["release"]["digest"] == digest(release)?.to_string(), "{status:#}");
    Ok(())
}

#[test]
fn a_node_follows_new_roots_by_the_old_keys_consent_only() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let development = release::development::signing_keys()?;
    let keys = [7, 8].map(|seed| SigningKey::from_bytes(&[seed; 32]));
    // The release that runs, and its blessing, are the old keys'.
    let first = setup.copy_of_release()?;
    Words::version(2).beside(&[first.path()])?;
    let node = Node::new(&setup)?;
    let up = || -> Result<String> {
        json(node.up_with(first.path(), &["--healthy", "2"])?)?;
        node.url()
    };
    let canister = deploy_counter(&up()?)?;
    ensure!(call(&node.url()?, &canister, "inc")? == 1);

    // The next one and its blessing are the new keys', of whom this node knows nothing.
    let good = other(&setup, 61, &keys)?;
    Words::version(1).by(&keys).beside(&[good.path(), first.path()])?;
    let server = Mirror::of(good.path())?;
    let said = upgrade(&node, &server)?;
    ensure!(said["code"] == "manifest-unknown-key", "{said:#}");

    // Roots that the old keys did not agree to, or too few of them.
    let root = good.path().join(root_file(2));
    for signers in [&[][..], &[1]] {
        fs::write(&root, root_of(&keys, signers)?)?;
        let said = upgrade(&node, &server)?;
        ensure!(said["code"] == "root-not-by-predecessor", "by {signers:?}: {said:#}");
    }
    // One was left out.
    let later = {
        let mut content =
            release::Signed::<release::RootContent>::from_bytes(&root_of(&keys, &[0, 1])?)?.content().clone();
        content.version = 3;
        let mut later = release::Signed::new(content)?;
        for key in development[..2].iter().chain(&keys) {
            release::sign(&mut later, key)?;
        }
        later.to_bytes()
    };
    fs::write(&root, later)?;
    let said = upgrade(&node, &server)?;
    ensure!(said["code"] == "root-version", "{said:#}");
    ensure!(!node.path().join("roots").exists(), "a refused root was kept");
    let status = node.status()?;
    ensure!(status["restarts"] == 0 && status["state"] == "ready", "a refusal cost a restart: {status:#}");
    ensure!(status["upgrade"]["no_keys"].is_null(), "{status:#}");

    // It is followed whatever becomes of the release that it came with. From then on the old keys bring nothing.
    fs::write(&root, root_of(&keys, &[0, 2])?)?;
    let stale = other(&setup, 62, &keys)?;
    Words { expires: 2, ..Words::version(1).by(&keys) }.beside(&[stale.path()])?;
    fs::copy(&root, stale.path().join(root_file(2)))?;
    let said = upgrade(&node, &Mirror::of(stale.path())?)?;
    ensure!(said["code"] == "blessing-expired", "{said:#}");
    ensure!(node.path().join("roots").join(root_file(2)).exists(), "the root was not kept");
    let old = other(&setup, 63, &development[..2])?;
    Words::version(3).beside(&[old.path(), first.path()])?;
    let said = upgrade(&node, &Mirror::of(old.path())?)?;
    ensure!(said["code"] == "blessing-unknown-key", "{said:#}");
    Words::version(2).by(&keys).beside(&[old.path(), first.path()])?;
    let said = upgrade(&node, &Mirror::of(old.path())?)?;
    ensure!(said["code"] == "release-keys-replaced", "{said:#}");

    // What it runs goes on, though its keys are out: also after a restart.
    node.down()?;
    up()?;
    runs(&node, first.path())?;
    ensure!(call(&node.url()?, &canister, "inc")? == 2, "the heap did not survive");
    let no_keys = |status: &Value| status["upgrade"]["no_keys"].as_str().unwrap_or_default().to_owned();
    node.wait_for("the word that it gets no keys", PATIENCE, |status| no_keys(status).contains("blessing"))?;

    // The running guest follows the roots too: it hands the key to what the new keys signed.
    let said = upgrade(&node, &server)?;
    ensure!(said["code"] == "" && said["active"] == "b" && said["phase"] == "idle", "{said:#}");
    runs(&node, good.path())?;
    ensure!(call(&node.url()?, &canister, "inc")? == 3, "the heap did not survive");
    node.down()?;
    up()?;
    runs(&node, good.path())?;
    node.wait_for("keys", PATIENCE, |status| no_keys(status).is_empty())?;

    // And the next guest believes one whose release only the new keys signed; nobody fetches the root any more.
    let next = other(&setup, 64, &keys)?;
    Words::version(2).by(&keys).beside(&[next.path(), good.path()])?;
    let said = upgrade(&node, &Mirror::of(next.path())?)?;
    ensure!(said["code"] == "" && said["active"] == "a" && said["phase"] == "idle", "{said:#}");
    runs(&node, next.path())?;
    ensure!(call(&node.url()?, &canister, "inc")? == 4, "the heap did not survive");
    // Without the roots that it followed it is not taken back to the old keys.
    node.down()?;
    fs::remove_dir_all(node.path().join("roots"))?;
    let refused: Value = serde_json::from_slice(&node.up_with(first.path(), &["--healthy", "2"])?.stdout)?;
    ensure!(refused["error"]["code"] == "manifest-unknown-key", "{refused:#}");
    ensure!(first.path().join(BLESSING_FILE).exists());
    Ok(())
}

//! Hosts that lie while a key is handed over, on a running node: no lie gets the key, each is refused by its name, and the
//! guest that has the key keeps serving.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::{ffi::OsStr, fs, path::Path, time::Duration};
use tests::{
    Node, Setup,
    blessing::{Words, next_root, now},
    call, deploy_counter, json,
    lies::{Liar, Lie},
    signed_by_development_keys, with_command_line,
};

/// Bits of a guest's policy (SEV-SNP firmware ABI, section 4.3).
const MIGRATE_MA: u64 = 1 << 18;
const DEBUG: u64 = 1 << 19;

fn upgrade(node: &Node, release: &Path) -> Result<Value> {
    let manifest = release.join("manifest.json");
    let words = [OsStr::new("--json"), OsStr::new("--wait"), manifest.as_os_str()];
    let output = node.redoubt("upgrade", &words)?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {}", tests::text(&output)))
}

fn documents(name: &str, value: Value) -> Lie {
    Lie::Documents(Map::from_iter([(name.to_owned(), value)]))
}

fn text(path: &Path) -> Result<Value> {
    Ok(json!(fs::read_to_string(path)?))
}

#[test]
fn no_lie_of_the_host_gets_the_key() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let liar = Liar::new(env!("CARGO_BIN_EXE_lying-host"))?;
    let node = Node::new(&setup)?;
    let mut options = vec!["--healthy", "2"];
    let stand_in = liar.arguments()?;
    options.extend(stand_in.iter().map(String::as_str));
    json(node.up_with(&setup.release, &options)?)?;
    let url = node.url()?;
    let canister = deploy_counter(&url)?;
    ensure!(call(&url, &canister, "inc")? == 1);

    let other = |watchdog: u32| {
        let copy = setup.copy_of_release()?;
        with_command_line(copy.path(), &format!("redoubt.watchdog={watchdog}"))?;
        anyhow::Ok(copy)
    };
    let (good, another) = (other(61)?, other(62)?);
    let words = Words::version(3);
    words.beside(&[good.path(), another.path(), &setup.release])?;
    let unsigned = setup.copy_of_release()?;
    signed_by_development_keys(unsigned.path(), 0, |_| {})?;
    let blessing = |words: &Words| -> Result<Value> {
        Ok(json!(String::from_utf8(words.of(&[good.path(), &setup.release])?)?))
    };
    let foreign = tempfile::tempdir()?;
    let launch = |chip: &Path, policy, another| Lie::Launch { chip: chip.to_owned(), policy, another };
    let own = node.chip();

    let lies = [
        ("another chip", "hand-over-other-chip", launch(foreign.path(), 0, false)),
        ("a guest that may be debugged", "hand-over-debug-guest", launch(&own, DEBUG, false)),
        ("a policy that is not the release's", "hand-over-not-the-policy", launch(&own, MIGRATE_MA, false)),
        ("an unblessed measurement", "hand-over-unblessed", launch(&own, 0, true)),
        ("the manifest of another blessed release", "hand-over-unblessed", {
            documents("manifest", text(&another.path().join("manifest.json"))?)
        }),
        ("an unsigned manifest", "manifest-threshold-not-met", {
            documents("manifest", text(&unsigned.path().join("manifest.json"))?)
        }),
        ("an expired blessing", "blessing-expired", {
            documents("blessing", blessing(&Words { expires: now() - 10, ..words.clone() })?)
        }),
        ("a blessing that revokes its signer", "release-key-revoked", {
            documents("blessing", blessing(&Words { revoked: vec![0], version: 9, ..words.clone() })?)
        }),
        ("a blessing that asks for more", "release-below-epoch", {
            documents("blessing", blessing(&Words { epoch: 9, version: 9, ..words.clone() })?)
        }),
        ("a root without the old keys", "hand-over-roots", {
            documents("roots", json!([next_root(now() + 1000, &[0])?]))
        }),
        ("an expired root", "root-expired", documents("roots", json!([next_root(now() - 10, &[0, 1])?]))),
        ("a key of the host's", "hand-over-replayed", Lie::Key),
        ("a report that was changed", "hand-over-evidence", Lie::Report),
        ("a request that is broken", "hand-over-message", Lie::Replay),
        ("the request of an earlier hand-over", "hand-over-replayed", Lie::Replay),
    ];
    for (what, code, lie) in &lies {
        liar.says(lie)?;
        let said = upgrade(&node, good.path())?;
        ensure!(said["code"] == *code, "{what}: {said:#}");
    }
    liar.says(&Lie::None)?;

    // Nothing is a lie, but the release allows more than the one that runs.
    let weaker = other(63)?;
    signed_by_development_keys(weaker.path(), 2, |manifest| manifest.guest.policy |= MIGRATE_MA)?;
    Words::version(4).beside(&[weaker.path(), &setup.release])?;
    let said = upgrade(&node, weaker.path())?;
    ensure!(said["code"] == "hand-over-weaker-policy", "{said:#}");

    let status = node.status()?;
    ensure!(status["restarts"] == 0 && status["state"] == "ready", "a lie cost a restart: {status:#}");
    ensure!(call(&url, &canister, "inc")? == 2);

    // The truth gets it, and from then on an older statement is no way back.
    Words::version(5).beside(&[good.path(), another.path()])?;
    let said = upgrade(&node, good.path())?;
    ensure!(said["code"] == "" && said["phase"] == "idle", "{said:#}");
    node.wait_for("the new release", Duration::from_secs(300), |status| {
        status["state"] == "ready" && !status["attested"].is_null()
    })?;
    ensure!(call(&url, &canister, "inc")? == 3, "the heap did not survive");
    Words::version(6).beside(&[another.path()])?;
    let older = Words::version(4).of(&[another.path()])?;
    liar.says(&documents("blessing", json!(String::from_utf8(older)?)))?;
    let said = upgrade(&node, another.path())?;
    ensure!(said["code"] == "blessing-rolled-back", "{said:#}");
    Ok(())
}

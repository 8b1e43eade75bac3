//! When both slots fail: the recovery release runs, shows operators what happened, hands the key to a release that they bring, and
//! ends the node if they want that; and nobody else gets anything of it.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tests::{
    Node, Setup,
    blessing::{Words, digest},
    call, deploy_counter, json,
    lies::{Liar, Lie},
    mirror::Mirror,
    signed_by_development_keys, text, with_command_line,
};

/// For a guest under translation, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// A release that is this one with another measurement.
fn other(setup: &Setup, watchdog: u32) -> Result<TempDir> {
    let copy = setup.copy_of_release()?;
    with_command_line(copy.path(), &format!("redoubt.watchdog={watchdog}"))?;
    Ok(copy)
}

/// Puts a release beside another as its recovery release.
fn with_recovery(release: &Path, recovery: &Path) -> Result<()> {
    let to = release.join("recovery");
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    fs::create_dir(&to)?;
    for entry in fs::read_dir(recovery)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// What `redoubt upgrade --wait` says on the node's own machine.
fn upgrade(node: &Node, release: &Path) -> Result<Value> {
    let manifest = release.join("manifest.json");
    let words = [OsStr::new("--json"), OsStr::new("--wait"), manifest.as_os_str()];
    let output = node.redoubt("upgrade", &words)?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {}", text(&output)))
}

fn flip(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(fs::write(path, bytes)?)
}

/// Who operates the node, and who does not.
struct Operators {
    alice: PathBuf,
    stranger: PathBuf,
}

impl Operators {
    fn of(setup: &Setup, node: &Node, folder: &Path) -> Result<Self> {
        let key = |name: &str| -> Result<(PathBuf, String)> {
            let file = folder.join(name);
            let words = ["--json", "operator", "key", file.to_str().context("a path")?];
            let made = json(setup.redoubt(words)?)?;
            Ok((file, made["key_sha256"].as_str().context("no key")?.to_owned()))
        };
        let ((alice, alice_sha256), (stranger, _)) = (key("alice")?, key("stranger")?);
        node.allow("alice", &alice_sha256, &[])?;
        Ok(Self { alice, stranger })
    }
}

/// Asks the node as somebody elsewhere does.
fn ask(setup: &Setup, node: &Node, words: &[&str], key: &Path) -> Result<Output> {
    let status = node.status()?;
    let of = |name: &str| status["operator"][name].as_str().map(str::to_owned).context("no operators' port");
    let (address, node_key) = (of("address")?, of("key_sha256")?);
    let whose = ["--json", "--node", &address, "--node-key", &node_key, "--key"];
    let words: Vec<&OsStr> = words.iter().chain(&whose).map(OsStr::new).chain([key.as_os_str()]).collect();
    setup.redoubt(words)
}

/// The fixed name of the refusal that a command ended with.
fn refusal(output: &Output) -> Result<String> {
    let answer: Value = serde_json::from_slice(&output.stdout).with_context(|| text(output))?;
    ensure!(output.status.code() == Some(1), "{}", text(output));
    let code = answer["error"]["code"].as_str().or(answer["code"].as_str());
    Ok(code.with_context(|| format!("no code: {answer:#}"))?.to_owned())
}

/// Starts a node that comes up in recovery.
fn up_in_recovery(setup: &Setup, node: &Node) -> Result<Value> {
    let output = node.up_with(&setup.release, &["--healthy", "2"])?;
    ensure!(refusal(&output)? == "node-in-recovery", "{}", text(&output));
    node.wait_for("recovery", PATIENCE, |status| status["state"] == "recovery")
}

/// A change to a release with a recovery release beside it, what its blessing says, and the name of the refusal.
type Refused<'a> = (&'static str, &'static str, Box<dyn Fn(&Path) -> Result<()> + 'a>);

#[test]
fn both_slots_bad_and_an_operator_brings_the_node_back() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let node = Node::new(&setup)?;
    let operators = Operators::of(&setup, &node, folder.path())?;
    json(node.up_with(&setup.release, &["--healthy", "2"])?)?;
    let url = node.url()?;
    let canister = deploy_counter(&url)?;
    ensure!(call(&url, &canister, "inc")? == 1);

    let (good, rescue, stranger) = (other(&setup, 61)?, other(&setup, 65)?, other(&setup, 66)?);
    let rescue_digest = digest(rescue.path())?;
    let words = |version, recovery: &[&Path]| -> Result<Words> {
        let recovery = recovery.iter().map(|release| digest(release)).collect::<Result<_>>()?;
        Ok(Words { recovery, ..Words::version(version) })
    };
    let refused: Vec<Refused<'_>> = vec![
        ("a recovery release that nobody blessed", "release-not-blessed", {
            Box::new(|dir| {
                with_recovery(dir, stranger.path())?;
                words(2, &[rescue.path()])?.beside(&[dir, &setup.release])
            })
        }),
        ("one that is blessed as a node only", "release-other-purpose", {
            Box::new(|dir| {
                with_recovery(dir, stranger.path())?;
                words(2, &[rescue.path()])?.beside(&[dir, stranger.path(), &setup.release])
            })
        }),
        ("a recovery release in the node's place", "release-other-purpose", {
            Box::new(|dir| {
                with_recovery(dir, rescue.path())?;
                let words = words(2, &[rescue.path(), dir])?;
                let statement = words.of(&[&setup.release])?;
                Ok(fs::write(dir.join("blessing.json"), statement)?)
            })
        }),
        ("one of a lower epoch", "release-below-epoch", {
            Box::new(|dir| {
                signed_by_development_keys(dir, 2, |manifest| manifest.security_epoch += 1)?;
                with_recovery(dir, rescue.path())?;
                Words { epoch: 2, ..words(2, &[rescue.path()])? }.beside(&[dir, &setup.release])
            })
        }),
        ("one that is blessed and not there", "fetch-failed", {
            Box::new(|dir| words(2, &[rescue.path()])?.beside(&[dir, &setup.release]))
        }),
        ("an unsigned one", "manifest-threshold-not-met", {
            Box::new(|dir| {
                let unsigned = other(&setup, 65)?;
                signed_by_development_keys(unsigned.path(), 1, |_| {})?;
                with_recovery(dir, unsigned.path())?;
                words(2, &[rescue.path()])?.beside(&[dir, &setup.release])
            })
        }),
    ];
    for (what, code, change) in &refused {
        let bad = other(&setup, 61)?;
        change(bad.path()).context(*what)?;
        let said = upgrade(&node, bad.path())?;
        ensure!(said["code"] == *code, "{what}: {said:#}");
    }
    ensure!(!node.path().join("disk-r.img").exists(), "a refused recovery release has a disk");

    // A good one has its key before the new release is tried.
    with_recovery(good.path(), rescue.path())?;
    words(3, &[rescue.path()])?.beside(&[good.path(), &setup.release])?;
    let said = upgrade(&node, good.path())?;
    ensure!(said["code"] == "" && said["active"] == "b", "{said:#}");
    ensure!(said["recovery"] == rescue_digest.to_string(), "{said:#}");
    ensure!(call(&url, &canister, "inc")? == 2, "the heap did not survive");

    // Slot A lost its key at the commit; now slot B rots too.
    node.down()?;
    flip(&node.path().join("slot-b/initrd.zst"))?;
    let status = up_in_recovery(&setup, &node)?;
    ensure!(status["release"]["digest"] == rescue_digest.to_string(), "{status:#}");
    ensure!(status["upgrade"]["code"] == "file-wrong-hash", "{status:#}");
    ensure!(status["attested"].is_null() && status["guest"]["phase"] == "recovery", "{status:#}");

    // Operators export what happened; nobody else does.
    let bundle = folder.path().join("bundle.tar");
    let support = ["support", "--out", bundle.to_str().context("a path")?];
    let denied = ask(&setup, &node, &support, &operators.stranger)?;
    ensure!(refusal(&denied)? == "operator-key-unknown" && !bundle.exists());
    json(ask(&setup, &node, &support, &operators.alice)?)?;
    let log = Command::new("tar").args(["xOf"]).arg(&bundle).arg("redoubt-support/audit.log").output()?;
    ensure!(text(&log).contains("nothing boots: file-wrong-hash"), "{}", text(&log));
    let console = ask(&setup, &node, &["logs", "--console"], &operators.alice)?;
    ensure!(text(&console).contains("recovery: waiting"), "{}", text(&console));

    // Nothing is brought without an operator, nothing unblessed by one, and no recovery release becomes the node.
    let newest = other(&setup, 62)?;
    words(4, &[rescue.path()])?.beside(&[newest.path()])?;
    let unsigned = upgrade(&node, newest.path())?;
    ensure!(unsigned["code"] == "recovery-without-operator", "{unsigned:#}");
    let server = Mirror::of(newest.path())?;
    let bring = |server: &Mirror, key: &Path| {
        let manifest = format!("{}/manifest.json", server.url);
        ask(&setup, &node, &["upgrade", "--wait", &manifest], key)
    };
    ensure!(refusal(&bring(&server, &operators.stranger)?)? == "operator-key-unknown");
    fs::copy(newest.path().join("blessing.json"), stranger.path().join("blessing.json"))?;
    let unblessed = bring(&Mirror::of(stranger.path())?, &operators.alice)?;
    ensure!(refusal(&unblessed)? == "release-not-blessed", "{}", text(&unblessed));
    fs::copy(newest.path().join("blessing.json"), rescue.path().join("blessing.json"))?;
    let as_node = bring(&Mirror::of(rescue.path())?, &operators.alice)?;
    ensure!(refusal(&as_node)? == "release-other-purpose", "{}", text(&as_node));
    let status = node.status()?;
    ensure!(status["state"] == "recovery" && status["restarts"] == 0, "a refusal cost a restart: {status:#}");

    // The agent is killed; the node is in recovery again.
    node.kill_agent()?;
    up_in_recovery(&setup, &node)?;

    // An operator brings a release, and the node is what it was.
    let said = json(bring(&server, &operators.alice)?)?;
    ensure!(said["code"] == "" && said["phase"] == "idle", "{said:#}");
    let back = node.wait_for("the release that was brought", PATIENCE, |status| {
        status["state"] == "ready" && !status["attested"].is_null()
    })?;
    ensure!(back["release"]["digest"] == digest(newest.path())?.to_string(), "{back:#}");
    ensure!(back["upgrade"]["recovery"] == rescue_digest.to_string(), "{back:#}");
    let url = node.url()?;
    ensure!(call(&url, &canister, "inc")? == 3, "the heap did not survive");

    // A guest that ends again and again leads to recovery while the node runs; a restart tries it again.
    let end = Instant::now() + PATIENCE;
    while node.status()?["state"] != "recovery" {
        ensure!(Instant::now() < end, "the node goes on with a guest that ends again and again");
        // Between two guests there is none.
        let _ = node.cut_power();
        std::thread::sleep(Duration::from_millis(200));
        if node.status()?["release"]["digest"] == rescue_digest.to_string() {
            node.wait_for("recovery", PATIENCE, |status| status["state"] == "recovery")?;
        }
    }
    ensure!(node.status()?["upgrade"]["code"] == "release-does-not-run");
    node.down()?;
    json(node.up_with(&setup.release, &["--healthy", "2"])?)?;
    ensure!(call(&node.url()?, &canister, "inc")? == 4, "the heap did not survive");

    // Nobody knows any more what is in the slots; an operator ends the node, and no key is left.
    node.down()?;
    fs::write(node.path().join("upgrade.record"), [7; 8192])?;
    let status = up_in_recovery(&setup, &node)?;
    let name = status["operator"]["key_sha256"].as_str().context("no name")?;
    let wipe = ["decommission", "--confirm", &name[..8]];
    ensure!(refusal(&ask(&setup, &node, &wipe, &operators.stranger)?)? == "operator-key-unknown");
    ensure!(node.path().join("disk-r.img").exists());
    let statement = json(ask(&setup, &node, &wipe, &operators.alice)?)?;
    let erased = statement["statement"]["erased"].as_array().context("nothing erased")?;
    ensure!(erased.iter().any(|one| one["what"] == "the recovery guest's vault" && one["bytes"] != 0));
    for disk in ["disk.img", "disk-b.img", "disk-r.img"] {
        ensure!(!node.path().join(disk).exists(), "{disk} is still there");
    }
    Ok(())
}

/// A host that says of a guest what its blessing does not: the guest that has the key refuses by itself.
#[test]
fn no_lie_of_the_host_turns_a_recovery_release_into_a_node() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let liar = Liar::new(env!("CARGO_BIN_EXE_lying-host"))?;
    let node = Node::new(&setup)?;
    let stand_in = liar.arguments()?;
    let mut options = vec!["--healthy", "2"];
    options.extend(stand_in.iter().map(String::as_str));
    json(node.up_with(&setup.release, &options)?)?;
    let (good, rescue) = (other(&setup, 61)?, other(&setup, 65)?);
    let says = |recovery: bool| {
        liar.says(&Lie::Documents(Map::from_iter([("recovery".to_owned(), json!(recovery))])))
    };

    // A node's release asks as one for recovery.
    Words::version(2).beside(&[good.path(), &setup.release])?;
    says(true)?;
    let said = upgrade(&node, good.path())?;
    ensure!(said["code"] == "release-other-purpose", "{said:#}");
    // A recovery release asks as a node.
    with_recovery(good.path(), rescue.path())?;
    Words { recovery: vec![digest(rescue.path())?], ..Words::version(3) }
        .beside(&[good.path(), &setup.release])?;
    says(false)?;
    let said = upgrade(&node, good.path())?;
    ensure!(said["code"] == "release-other-purpose", "{said:#}");
    let status = node.status()?;
    ensure!(status["restarts"] == 0 && status["state"] == "ready", "a lie cost a restart: {status:#}");
    Ok(())
}

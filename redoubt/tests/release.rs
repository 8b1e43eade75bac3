//! `redoubt release` as the holders of keys use it: files in, files out, exit codes and JSON.
#![cfg(feature = "virtual")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

#[path = "../../host-os/tests/agent/made_up.rs"]
mod made_up;

use image_build::host::{pe, verity};
use release::{Digest, Envelope, File, HostImages};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder in which people exchange files.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs words of a command line in the folder: exit code, JSON.
    fn run(&self, words: &str) -> (i32, Value) {
        let output = Command::new(env!("CARGO_BIN_EXE_redoubt"))
            .current_dir(self.0.path())
            .args(["--json", "release"])
            .args(words.split_whitespace())
            .output()
            .unwrap();
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{words}: no JSON ({error}): {}", String::from_utf8_lossy(&output.stderr));
        });
        (output.status.code().unwrap(), json)
    }

    #[track_caller]
    fn good(&self, words: &str) -> Value {
        let (exit, json) = self.run(words);
        assert_eq!(exit, 0, "{words}: {json}");
        json
    }

    #[track_caller]
    fn refused(&self, words: &str, code: &str) {
        let (exit, json) = self.run(words);
        assert_eq!((exit, json["error"]["code"].as_str()), (1, Some(code)), "{words}: {json}");
    }

    /// A guest and a host that belong together, as a build leaves them.
    fn images(&self) {
        let mut manifest = made_up::manifest();
        let root: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).take(4096 * 30).collect();
        let tree = verity::Tree::new(&root, [5; 32]).unwrap();
        let command_line = format!("quiet dm-mod.create={}", tree.table("PARTUUID=a", "PARTUUID=b"));
        let stub = installer::pe::samples::stub();
        let uki = pe::unified_kernel_image(&stub, &[(".cmdline", command_line.as_bytes())]).unwrap();
        manifest.host = Some(HostImages {
            uki: File::describe("host.efi", &uki),
            uki_authenticode: Digest(pe::authenticode_hash(&uki).unwrap()),
            root: File::describe("host-root.erofs", &root),
            root_hash_tree: File::describe("host-root.verity", &tree.hash_area),
            verity_root_hash: Digest(tree.root),
            installer: None,
            measured: None,
        });
        made_up::write(&self.path("images"), &manifest, 0);
        for (name, content) in
            [("host.efi", uki), ("host-root.erofs", root), ("host-root.verity", tree.hash_area)]
        {
            std::fs::write(self.path("images").join(name), content).unwrap();
        }
    }

    /// Three holders, a root that two of them must sign, and a release that two of them signed.
    fn with_release() -> Desk {
        let desk = Desk::new();
        for holder in ["alice", "bob", "carol"] {
            desk.good(&format!("keygen --out {holder}.pem"));
        }
        desk.good("create-root --keys alice.pub bob.pub carol.pub --threshold 2 --expires 2099-01-01 --out root.json");
        desk.good("sign root.json --key alice.pem");
        desk.good("sign root.json --key carol.pem");
        desk.images();
        desk.good("create --images images --profile virtual --version 2.0.0 --security-epoch 3");
        desk.good("sign images --key alice.pem");
        desk.good("sign images --key bob.pem");
        desk
    }
}

const VERIFY: &str = "verify images --root root.json";

#[test]
fn from_keys_to_a_blessed_release() {
    let desk = Desk::with_release();
    let json = desk.good(VERIFY);
    assert_eq!(
        (json["version"].as_str(), json["security_epoch"].as_u64()),
        (Some("2.0.0"), Some(3)),
        "{json}"
    );
    assert_eq!(json["signers"].as_array().unwrap().len(), 2);
    desk.refused("verify images", "manifest-unknown-key");

    desk.good("bless images --root root.json --expires 2098-01-01 --security-epoch 2 --out blessing.json");
    let blessed = "verify images --root root.json --blessing blessing.json";
    desk.refused(blessed, "blessing-threshold-not-met");
    desk.good("sign blessing.json --key alice.pem --out one.json");
    desk.refused("sign one.json --key alice.pem", "not-signed");
    desk.good("sign blessing.json --key bob.pem --out two.json");
    desk.good("merge one.json two.json --out blessing.json");
    assert_eq!(desk.good(blessed)["blessed_as"], "node");
    let json = desk.good("inspect blessing.json");
    assert_eq!(
        (json["kind"].as_str(), json["content"]["version"].as_u64()),
        (Some("blessing"), Some(1)),
        "{json}"
    );

    // The epoch does not fall, and what is below it is not blessed.
    let after = "--root root.json --after blessing.json --expires 2098-01-01 --out next.json";
    desk.refused(&format!("bless {after} --security-epoch 1"), "blessing-epoch-lowered");
    desk.refused(&format!("bless images {after} --security-epoch 4"), "release-below-epoch");

    let digest = json["content"]["releases"].as_object().unwrap().keys().next().unwrap().clone();
    desk.good(&format!("revoke --after blessing.json --release {digest} --out revoked.json"));
    for key in ["bob", "carol"] {
        desk.good(&format!("sign revoked.json --key {key}.pem"));
    }
    desk.refused("verify images --root root.json --blessing revoked.json", "release-revoked");
    desk.refused("bless images --root root.json --expires 2000-01-01 --out old.json", "blessing-invalid");
}

#[test]
fn what_does_not_follow_from_the_images_is_not_signed() {
    let desk = Desk::with_release();
    let manifest = std::fs::read(desk.path("images/manifest.json")).unwrap();
    let manifest = Envelope::from_bytes(&manifest).unwrap().content().clone();
    let sign = "sign images/manifest.json --key carol.pem --out signed.json";
    desk.good(sign);
    let flip = |name: &str, at: usize| {
        let mut content = std::fs::read(desk.path("images").join(name)).unwrap();
        content[at] ^= 1;
        std::fs::write(desk.path("images").join(name), content).unwrap();
    };
    for (name, at) in
        [("vmlinuz", 0), ("initrd", 77), ("firmware", 5000), ("host.efi", 0x80), ("host-root.erofs", 9)]
    {
        flip(name, at);
        desk.refused(sign, "file-wrong-hash");
        desk.refused(VERIFY, "file-wrong-hash");
        flip(name, at);
    }
    type Forge = fn(&mut release::Manifest);
    let forgeries: [(Forge, &str); 5] = [
        (|m| m.guest.measurements[0].measurement.0[0] ^= 1, "measurement-differs"),
        (|m| m.guest.command_line += " debug", "measurement-differs"),
        (|m| m.host.as_mut().unwrap().verity_root_hash.0[0] ^= 1, "images-differ"),
        (|m| m.host.as_mut().unwrap().uki_authenticode.0[0] ^= 1, "images-differ"),
        (
            // The hash tree of another root.
            |m| {
                let host = m.host.as_mut().unwrap();
                host.root_hash_tree = host.root.clone();
                host.root_hash_tree.path = "copy".into();
            },
            "images-differ",
        ),
    ];
    std::fs::copy(desk.path("images/host-root.erofs"), desk.path("images/copy")).unwrap();
    for (forge, code) in forgeries {
        let mut forged = manifest.clone();
        forge(&mut forged);
        // Signed by another program, which checks nothing.
        let mut envelope = Envelope::new(forged).unwrap();
        for holder in ["alice", "bob"] {
            let pem = std::fs::read_to_string(desk.path(&format!("{holder}.pem"))).unwrap();
            release::sign(&mut envelope, &release::signing_key_from_pem(&pem).unwrap()).unwrap();
        }
        std::fs::write(desk.path("images/forged.json"), envelope.to_bytes()).unwrap();
        desk.refused("sign images/forged.json --key carol.pem --out signed.json", code);
        desk.refused("verify images/forged.json --root root.json", code);
    }
    // Without measurements it is not even a manifest.
    let text = std::fs::read_to_string(desk.path("images/manifest.json")).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value["signed"]["guest"]["measurements"] = serde_json::json!([]);
    std::fs::write(desk.path("images/none.json"), value.to_string()).unwrap();
    desk.refused("sign images/none.json --key carol.pem", "manifest-invalid");
    desk.refused("verify images/none.json --root root.json", "manifest-invalid");
}

#[test]
fn roots_are_rotated_by_old_and_new() {
    let desk = Desk::with_release();
    desk.good("keygen --out dave.pem");
    let alice = desk.good("inspect root.json")["content"]["roles"]["root"]["keyids"].clone();
    assert_eq!(alice.as_array().unwrap().len(), 3);
    let public = std::fs::read_to_string(desk.path("alice.pub")).unwrap();
    let keyid = release::key_id(&release::public_key_from_pem(&public).unwrap());
    let rotate = format!("rotate-root root.json --add dave.pub --remove {keyid} --expires 2099-06-01");
    assert_eq!(desk.good(&rotate)["version"], 2);
    let verify = format!("{VERIFY} --next-root 2.root.json");
    desk.good("sign 2.root.json --key dave.pem");
    desk.good("sign 2.root.json --key carol.pem");
    // Two of the new, one of the old.
    desk.refused(&verify, "root-not-by-predecessor");
    desk.good("sign 2.root.json --key bob.pem");
    // Now alice's signature counts no more.
    desk.refused(&verify, "manifest-unknown-key");
    desk.good("create --images images --profile virtual");
    desk.good("sign images --key dave.pem");
    desk.good("sign images --key bob.pem");
    assert_eq!(desk.good(&verify)["root_version"], 2);
    desk.refused(&format!("{VERIFY} --next-root 2.root.json 2.root.json"), "root-version");
    desk.refused("keygen --out alice.pem", "file-unwritable");
}

fn softhsm(desk: &Desk) -> Option<String> {
    let module = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let Some(module) = module else {
        assert!(std::env::var_os("CI").is_none(), "CI has no softhsm2: cargo xtask setup");
        // Not to a stream that the test runner captures.
        let _ = writeln!(
            std::fs::OpenOptions::new().append(true).open("/dev/stderr").unwrap(),
            "SKIPPED: keys in a token, because softhsm2 is missing; cargo xtask setup installs it"
        );
        return None;
    };
    std::fs::create_dir(desk.path("tokens")).unwrap();
    std::fs::write(
        desk.path("softhsm2.conf"),
        format!("directories.tokendir = {}\n", desk.path("tokens").display()),
    )
    .unwrap();
    let made = Command::new("softhsm2-util")
        .env("SOFTHSM2_CONF", desk.path("softhsm2.conf"))
        .args(["--init-token", "--free", "--label", "release", "--so-pin", "1111", "--pin", "2222"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(desk.path("pin"), "2222\n").unwrap();
    std::fs::write(desk.path("wrong-pin"), "3333").unwrap();
    Some(format!("--pkcs11-module {module} --pkcs11-token release --pkcs11-key alice"))
}

#[test]
fn keys_in_a_token() {
    let desk = Desk::new();
    let Some(token) = softhsm(&desk) else { return };
    let run = |words: String| {
        let output = Command::new(env!("CARGO_BIN_EXE_redoubt"))
            .current_dir(desk.0.path())
            .env("SOFTHSM2_CONF", desk.path("softhsm2.conf"))
            .args(["--json", "release"])
            .args(words.split_whitespace())
            .output()
            .unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), json)
    };
    let (exit, json) = run(format!("keygen --out alice.pem {token} --pin-file pin"));
    assert_eq!(exit, 0, "{json}");
    assert!(!desk.path("alice.pem").exists(), "the private key stays in the token");
    desk.good("create-root --keys alice.pub --threshold 1 --expires 2099-01-01 --out root.json");
    let (exit, json) = run(format!("sign root.json {token} --pin-file wrong-pin"));
    assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("token")), "{json}");
    let (exit, json) = run(format!("sign root.json {token} --pin-file pin"));
    assert_eq!(exit, 0, "{json}");
    // Verified by another library than the token's.
    release::Root::from_bytes(&std::fs::read(desk.path("root.json")).unwrap()).unwrap();
    let (exit, json) = run(format!("keygen --out other.pem {token} --pin-file pin"));
    assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("key-exists")), "{json}");
}

//! Builds a release a second time with everything varied that may not matter, and compares every artefact.
//!
//! Varied around the build: folder of the checkout, user, umask, environment, host name, number of CPUs, order of files
//! in folders (disorderfs, where the machine has FUSE), and the distribution whose tools start it: the second build runs in
//! a file system of Debian 13 and nothing else. Varied inside the build root: see `reproduce --vary`.
//!
//! The release that the rebuild is compared with has three planted differences. They must be found, at their places,
//! and nothing else: so one rebuild shows both that the build is reproducible and that a difference would be seen.

use crate::{Consent, setup, tools};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// An ordinary user who owns nothing.
const USER: &str = "65534";
/// Place of the byte that is flipped in the firmware.
const FLIPPED: usize = 0x1234;
/// Lengths of the headers of a firmware volume and of a file in it.
const VOLUME_HEADER: usize = 0x48;
const FILE_HEADER: usize = 0x18;

/// Options of `cargo xtask double-build`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    consent: Consent,
    /// Both profiles, kernels too
    #[arg(long)]
    full: bool,
}

impl Options {
    /// For `cargo xtask ci`.
    pub(crate) fn of(consent: Consent, full: bool) -> Self {
        Self { consent, full }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut steps = tools::Steps::default();
    steps.step("set-up", || {
        setup::run(options.consent, &[setup::FOR_BUILD, setup::FOR_UP, setup::FOR_TEST])
    })?;
    steps.step("tools", tools::build_tools)?;
    let release = steps.step("images, virtual", || tools::build_images("virtual"))?;
    if options.full {
        steps.step("second build, virtual", || second(&release, &[]))?;
        let production = steps.step("images, production", || tools::build_images("production"))?;
        // What was just built twice and is the same in both is not built a third time.
        let words: &[&str] =
            if kernels(&release)? == kernels(&production)? { &["--without-kernels"] } else { &[] };
        steps.step("second build, production", || second(&production, words))?;
    } else {
        steps.step("second build", || quick(&release))?;
    }
    eprintln!("\nTime per step\n{}", steps.table());
    Ok(())
}

/// Every artefact but the kernels: the virtual release, and the production profile's firmware, the only artefact of that
/// profile that takes a path of its own. What was built twice before is not built a third time.
pub(crate) fn quick(release: &Path) -> Result<()> {
    let manifest: Value = serde_json::from_str(&std::fs::read_to_string(release.join("manifest.json"))?)?;
    let (guest, host) = (&manifest["signed"]["guest"]["files"], &manifest["signed"]["host"]);
    let artefacts =
        [&guest["initrd"], &guest["firmware"], &host["uki"], &host["root"], &host["root_hash_tree"]];
    let name: Vec<&str> = artefacts.iter().filter_map(|file| file["sha256"].as_str()?.get(..16)).collect();
    ensure!(name.len() == artefacts.len(), "the manifest of the release lacks an artefact");
    let stamp = tools::target().join("double-build").join(name.join("-"));
    // The recipe pins the hash of another build: a build in other surroundings that gives the same is the second one.
    let firmware =
        || tools::run(tools::command(tools::binary("redoubt")).args(["image", "firmware", "--vary"]));
    std::thread::scope(|scope| {
        let firmware = scope.spawn(firmware);
        if stamp.exists() {
            eprintln!("these very artefacts were built twice before and were equal");
        } else {
            second(release, &["--without-kernels"])?;
            std::fs::create_dir_all(tools::target().join("double-build"))?;
            std::fs::write(&stamp, "")?;
        }
        firmware.join().unwrap_or_else(|_| bail!("the firmware's second build was cut off"))
    })
}

/// SHA-256 of the kernels of guest and host.
fn kernels(release: &Path) -> Result<[Value; 2]> {
    let manifest: Value = serde_json::from_slice(&std::fs::read(release.join("manifest.json"))?)?;
    let (guest, host) = (&manifest["signed"]["guest"], &manifest["signed"]["host"]);
    let sections = host["measured"]["sections"].as_array().into_iter().flatten();
    let mut linux = sections.filter(|section| section["name"] == ".linux");
    let host = linux.next().context("the manifest names no kernel of the host")?;
    Ok([guest["files"]["kernel"]["sha256"].clone(), host["sha256"].clone()])
}

/// Compares the release in `release` with a rebuild; `more` are further options of the rebuild.
fn second(release: &Path, more: &[&str]) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("redoubt-double-build-").tempdir_in(tools::target())?;
    let base = folder.path().canonicalize()?;
    let planted = base.join("release");
    let names = plant(release, &planted)?;
    let varied = Varied::set_up(&base)?;
    let mut words: Vec<String> =
        ["--json", "image", "reproduce", "--vary", "--any-sources", "--no-mirrors", "--repository"]
            .map(str::to_owned)
            .into();
    words.push(varied.checkout.display().to_string());
    words.extend(more.iter().map(|word| (*word).to_owned()));
    words.push(planted.join("manifest.json").display().to_string());
    let output =
        varied.command(&words)?.stderr(Stdio::inherit()).output().context("cannot start the rebuild")?;
    let verdict: Value = serde_json::from_slice(&output.stdout).context("the rebuild gave no verdict")?;
    ensure!(verdict["error"].is_null(), "the rebuild failed: {}", verdict["error"]["message"]);
    ensure!(
        output.status.code() == Some(1),
        "planted differences must end with exit code 1, not {}",
        output.status
    );
    judge(&verdict, &names)?;
    eprintln!("equal but for the planted differences, which were found; varied: {}", varied.what.join(", "));
    Ok(())
}

/// Names of the planted files.
struct Names {
    initrd: String,
    firmware: String,
    uki: String,
}

/// Text in the unified kernel image whose first byte is changed.
const NAMED: &[u8] = b"PRETTY_NAME=\"Redoubt";

/// Copies a release, flips one byte of its firmware, appends one to its initrd, changes a letter in the unified kernel
/// image, and adapts the manifest.
fn plant(release: &Path, planted: &Path) -> Result<Names> {
    std::fs::create_dir(planted)?;
    for entry in std::fs::read_dir(release).with_context(|| format!("no release in {}", release.display()))? {
        let entry = entry?;
        // Disk and medium are put together out of the other files.
        if entry.path().extension().is_none_or(|extension| extension != "img") {
            std::fs::copy(entry.path(), planted.join(entry.file_name()))?;
        }
    }
    let path = planted.join("manifest.json");
    let mut manifest = std::fs::read_to_string(&path)?;
    let value: Value = serde_json::from_str(&manifest)?;
    let file = |name: &str| -> Result<(String, String, u64)> {
        let signed = &value["signed"];
        let file = if name == "uki" { &signed["host"][name] } else { &signed["guest"]["files"][name] };
        let text = |key: &str| file[key].as_str().map(str::to_owned).context("a file without a name or hash");
        Ok((text("path")?, text("sha256")?, file["size"].as_u64().context("a file without a size")?))
    };
    let mut replace = |name: &str, change: &dyn Fn(&mut Vec<u8>)| -> Result<String> {
        let (path, sha256, size) = file(name)?;
        let mut content = std::fs::read(planted.join(&path))?;
        change(&mut content);
        std::fs::write(planted.join(&path), &content)?;
        let output = tools::output(Command::new("sha256sum").arg(planted.join(&path)))?;
        let now = output.split(' ').next().unwrap_or_default();
        manifest = manifest
            .replace(&sha256, now)
            .replace(&format!("\"size\":{size}"), &format!("\"size\":{}", content.len()));
        Ok(path)
    };
    let firmware = replace("firmware", &|content| content[FLIPPED] ^= 1)?;
    let initrd = replace("initrd", &|content| content.push(0))?;
    let uki = replace("uki", &|content| {
        if let Some(at) = content.windows(NAMED.len()).position(|window| window == NAMED) {
            content[at] ^= 1;
        }
    })?;
    std::fs::write(&path, &manifest)?;
    Ok(Names { initrd, firmware, uki })
}

/// Exactly the planted differences, each at its place.
fn judge(verdict: &Value, names: &Names) -> Result<()> {
    let artefacts = verdict["artefacts"].as_array().context("no artefacts in the verdict")?;
    let unequal: Vec<&Value> = artefacts.iter().filter(|artefact| artefact["equal"] != true).collect();
    let wrong = || format!("not the planted differences alone: {:#}", Value::from(artefacts.clone()));
    ensure!(unequal.len() == 3, wrong());
    for artefact in unequal {
        let name = artefact["name"].as_str().unwrap_or_default();
        let [difference] = artefact["differences"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            bail!(wrong())
        };
        let place: Vec<&str> =
            difference["place"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let bytes = &difference["what"]["bytes"];
        let expected: (&[&str], Option<usize>) = match name {
            // A firmware volume's files are told apart (UEFI PI, volume 3): bytes count from behind both headers.
            _ if name == names.firmware && place.len() > 1 => (
                &[name, "volume at 0x0", place[place.len() - 1]],
                Some(FLIPPED - VOLUME_HEADER - FILE_HEADER),
            ),
            _ if name == names.firmware => (&[name], Some(FLIPPED)),
            _ if name == names.initrd => (&[name, "behind the zstd frame"], None),
            _ if name == names.uki => (&[name, "section .osrel"], None),
            _ => bail!(wrong()),
        };
        ensure!(bytes["count"] == 1 && place == expected.0, wrong());
        ensure!(expected.1.is_none_or(|first| bytes["first"] == first), wrong());
    }
    Ok(())
}

/// Surroundings unlike those of the first build.
struct Varied {
    base: PathBuf,
    checkout: PathBuf,
    what: Vec<&'static str>,
}

/// Runs in namespaces for mounts and host name, as root. Arguments: the folder, then the command. The last line gives the
/// command the file system of the build root's Debian, by its bubblewrap.
const AS_ANOTHER_USER: &str = r#"
set -e
base=$1; shift
hostname elsewhere
mkdir "$base/rust" "$base/cargo" "$base/debian"
mount --bind "$RUST" "$base/rust"
mount --bind "$CARGO_HOME" "$base/cargo"
mount --bind "$DEBIAN" "$base/debian"
if [ -n "$DISORDERED" ]; then disorderfs --quiet --multi-user=yes --shuffle-dirents=yes "$base/files" "$base/another place"; fi
chown -R "$OTHER_USER:$OTHER_USER" "$base/cache"
root="$base/debian"
setpriv --reuid "$OTHER_USER" --regid "$OTHER_USER" --clear-groups \
    "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/bwrap" \
    --unshare-user --unshare-pid --die-with-parent --tmpfs / --ro-bind "$root/usr" /usr --ro-bind "$root/etc" /etc \
    --symlink usr/bin /bin --symlink usr/sbin /sbin --symlink usr/lib /lib --symlink usr/lib64 /lib64 \
    --proc /proc --dev /dev --tmpfs /tmp --bind "$base" "$base" --chdir "$base" -- "$@"
"#;

impl Varied {
    fn set_up(base: &Path) -> Result<Self> {
        let mut what =
            vec!["folder", "umask", "environment", "user, clock, jobs and locale in the build root"];
        let root = tools::output(Command::new("id").arg("-u"))?.trim() == "0";
        let disordered = root && Path::new("/dev/fuse").exists() && tools::on_path("disorderfs");
        if root {
            what.extend(["user", "host name", "distribution"]);
        }
        let checkout = base.join("another place");
        std::fs::create_dir(&checkout)?;
        let files = if disordered {
            what.push("order of files");
            base.join("files")
        } else {
            checkout.clone()
        };
        copy_checkout(&files)?;
        copy_store(&base.join("cache"))?;
        // Another user walks through it.
        std::fs::set_permissions(base, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { base: base.to_owned(), checkout, what })
    }

    fn has(&self, what: &str) -> bool {
        self.what.contains(&what)
    }

    /// The command with these arguments of `redoubt`, in these surroundings.
    fn command(&self, words: &[String]) -> Result<Command> {
        let program = self.base.join("redoubt");
        std::fs::copy(tools::binary("redoubt"), &program)?;
        let sysroot = tools::output(tools::command("rustc").args(["--print", "sysroot"]))?;
        let rust = PathBuf::from(sysroot.trim()).canonicalize().context("the Rust toolchain is not there")?;
        let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
        let cargo = cargo.or_else(home).context("no place for cargo's files: set HOME or CARGO_HOME")?;
        let inner = |rust: &Path, cargo: &Path| {
            let path = std::env::var("PATH").unwrap_or_default();
            let variables = [
                ("HOME", self.base.join("cache").display().to_string()),
                ("PATH", format!("{}:{path}", rust.join("bin").display())),
                ("CARGO_HOME", cargo.display().to_string()),
                ("REDOUBT_CACHE", self.base.join("cache").display().to_string()),
                ("CARGO_NET_OFFLINE", "true".to_owned()),
                ("LC_ALL", "C.UTF-8".to_owned()),
                ("TZ", "America/St_Johns".to_owned()),
                ("MAKEFLAGS", "-k".to_owned()),
                ("CFLAGS", "-O0".to_owned()),
                ("RUSTFLAGS", "-C opt-level=0".to_owned()),
            ];
            let mut line = vec!["env".to_owned(), "-i".to_owned()];
            line.extend(variables.map(|(name, value)| format!("{name}={value}")));
            line.extend(["sh", "-c", "umask 027; exec \"$@\"", "sh"].map(str::to_owned));
            line.push(program.display().to_string());
            line.extend(words.iter().cloned());
            line
        };
        if !self.has("user") {
            let line = inner(&rust, &cargo);
            let mut command = Command::new(&line[0]);
            command.args(&line[1..]);
            return Ok(command);
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "sh", "-c", AS_ANOTHER_USER, "sh"]).arg(&self.base);
        command.args(inner(&self.base.join("rust"), &self.base.join("cargo")));
        command.env("OTHER_USER", USER).env("RUST", rust).env("CARGO_HOME", cargo);
        command.env("DEBIAN", other_system()?);
        command.env("DISORDERED", if self.has("order of files") { "1" } else { "" });
        Ok(command)
    }
}

/// The newest root of the agent's compiler in the cache: a small Debian 13, with the libraries that `redoubt` needs.
fn other_system() -> Result<PathBuf> {
    let entries = std::fs::read_dir(cache()?)?.collect::<std::io::Result<Vec<_>>>()?;
    let roots = entries.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("agent-root-"));
    let newest = roots.max_by_key(|entry| entry.metadata().and_then(|metadata| metadata.modified()).ok());
    newest
        .map(std::fs::DirEntry::path)
        .context("no root of the agent's compiler in the cache; run 'cargo xtask up' first")
}

/// The cache that the first build used.
fn cache() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    variable("REDOUBT_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|base| base.join("redoubt")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/redoubt")))
        .context("no place for the cache: set HOME, XDG_CACHE_HOME or REDOUBT_CACHE")
}

/// Gives a new cache the fetched inputs, and nothing that was built.
pub(crate) fn copy_store(to: &Path) -> Result<()> {
    let store = to.join("store");
    std::fs::create_dir_all(&store)?;
    for entry in std::fs::read_dir(cache()?.join("store"))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), store.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Copies what git knows of this checkout, as it is now.
pub(crate) fn copy_checkout(to: &Path) -> Result<()> {
    let listed = tools::output(tools::command("git").args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (tools::repository().join(name), to.join(name));
        if from.is_file() {
            std::fs::create_dir_all(to.parent().context("a file without a folder")?)?;
            std::fs::copy(&from, &to).with_context(|| format!("cannot copy {name}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_planted_differences_alone_are_accepted_at_their_places() {
        let names = Names { initrd: "i".into(), firmware: "f".into(), uki: "u".into() };
        let difference = |place: &[&str], first: usize| {
            json!({ "name": place[0], "equal": false, "differences":
                [{ "place": place, "what": { "bytes": { "count": 1, "first": first } } }] })
        };
        let verdict = |firmware: Value| {
            let others =
                [difference(&["i", "behind the zstd frame"], 0), difference(&["u", "section .osrel"], 24)];
            json!({ "artefacts": [firmware, others[0], others[1], { "name": "k", "equal": true }] })
        };
        let good = |firmware| judge(&verdict(firmware), &names).is_ok();
        assert!(good(difference(&["f"], 0x1234)));
        assert!(good(difference(&["f", "volume at 0x0", "file x"], 4564)));
        assert!(!good(difference(&["f"], 0x1235)));
        assert!(!good(difference(&["f", "volume at 0x0", "file x"], 0x1234)));
        assert!(!good(difference(&["f", "volume at 0x8", "file x"], 4564)));
        assert!(!good(difference(&["k"], 0x1234)));
    }
}

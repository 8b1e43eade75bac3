//! A real kernel and a module that QEMU plays: this test program is the only program of a machine that starts twice.

use super::device::{System, prepare};
use super::*;
use crate::network::namespace::say;
use nix::mount::{MsFlags, mount};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const NAME: &str = "nvram::kernel_tests::a_blank_module_becomes_nvram_and_stays_it";

/// The kernel of a unified image: its section `.linux`.
fn kernel(image: &Path, to: &Path) {
    let section = format!(".linux={}", to.display());
    // It writes a copy of the image too.
    let copy = to.with_extension("copy");
    let dumped =
        Command::new("objcopy").args(["--dump-section", &section]).arg(image).arg(copy).output().unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
}

/// An archive as the kernel unpacks it (cpio, "newc"): files by name, folders before what is in them.
fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut add = |name: &str, mode: u32, content: &[u8]| {
        let fields = [0, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        write!(bytes, "070701").unwrap();
        fields.iter().for_each(|field| write!(bytes, "{field:08x}").unwrap());
        for part in [[name.as_bytes(), b"\0"].concat().as_slice(), content] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    };
    let mut folders = std::collections::BTreeSet::from(["proc".to_owned(), "sys".into(), "dev".into()]);
    for (name, _) in files {
        folders.extend(Path::new(name).ancestors().skip(1).map(|path| path.display().to_string()));
    }
    folders.iter().filter(|name| !name.is_empty()).for_each(|name| add(name, 0o40755, &[]));
    files.iter().for_each(|(name, content)| add(name, 0o100_755, content));
    add("TRAILER!!!", 0, &[]);
    bytes
}

/// This program, and every library that it needs.
fn own_files() -> Vec<(String, Vec<u8>)> {
    let own = std::env::current_exe().unwrap();
    let listed = Command::new("ldd").arg(&own).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    let mut files = vec![("init".to_owned(), std::fs::read(&own).unwrap())];
    files.extend(
        libraries.map(|path| (path.trim_start_matches('/').to_owned(), std::fs::read(path).unwrap())),
    );
    files
}

/// Inside: as the agent of a host does at each start.
fn inside() {
    let none: Option<&str> = None;
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), none).unwrap();
    }
    let found = prepare(&System::this()).unwrap();
    println!("FOUND {found:?}");
    let [one] = found.as_slice() else { panic!("one module") };
    let file = File::options().read(true).write(true).open(&one.device).unwrap();
    let node = NodeDir::at("/node");
    let lock = node.lock().unwrap();
    let nvram = provide(&node, &lock, 1 << 20, true).unwrap();
    println!("NVRAM {} {} {}", nvram.path.display(), nvram.bytes, one.uuid);
    // The same again, as the agent does when it is started again.
    assert_eq!(provide(&node, &lock, 1 << 20, true).unwrap(), nvram);
    crate::sys::zero_mapped(&file, nvram.bytes).unwrap();
    println!("DONE");
    let Err(error) = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
    panic!("{error}");
}

#[test]
fn a_blank_module_becomes_nvram_and_stays_it() {
    if std::process::id() == 1 {
        return inside();
    }
    let image = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release-images/virtual/host.efi"));
    let qemu = crate::confine::find_program("qemu-system-x86_64".as_ref());
    if !image.exists() || !qemu.exists() {
        return say(
            "no host's image is built, or no QEMU is installed: no NVDIMM is tried with a real kernel",
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    kernel(image, &path("kernel"));
    std::fs::write(path("initrd"), archive(&own_files())).unwrap();
    File::create(path("nvdimm")).unwrap().set_len(256 << 20).unwrap();
    let start = || {
        let backend =
            format!("memory-backend-file,id=nv,share=on,size=256M,mem-path={}", path("nvdimm").display());
        let append = format!(
            "console=ttyS0 panic=-1 quiet no_timer_check RUST_TEST_THREADS=1 -- --exact {NAME} --nocapture"
        );
        let output = Command::new("timeout")
            .arg("300")
            .arg(&qemu)
            .args([
                "-machine",
                "q35,nvdimm=on,nvdimm-persistence=mem-ctrl",
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
                "1G,slots=1,maxmem=2G",
            ])
            .args([
                "-object",
                &backend,
                "-device",
                "nvdimm,memdev=nv",
                "-append",
                &append,
                "-serial",
                "stdio",
            ])
            .args(["-display", "none", "-nodefaults", "-no-reboot", "-kernel"])
            .arg(path("kernel"))
            .arg("-initrd")
            .arg(path("initrd"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("DONE"), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        said.lines().find_map(|line| line.strip_prefix("NVRAM ")).unwrap().trim().to_owned()
    };
    let first = start();
    // Less than the whole: the kernel's description of it lies on it too.
    assert!(first.starts_with("/dev/dax0.0 134217728 "), "{first}");
    assert_eq!(start(), first, "another identifier after a restart");
    // Somebody else's content is left alone.
    let mut content = vec![0; 256 << 20];
    content[1080] = 0x53;
    std::fs::write(path("nvdimm"), content).unwrap();
    let refused = std::panic::catch_unwind(start).unwrap_err();
    let refused = refused.downcast_ref::<String>().unwrap();
    assert!(refused.contains("FOUND []"), "{refused}");
}

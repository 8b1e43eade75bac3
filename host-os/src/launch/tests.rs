use super::*;
use attestation::measurement::id_block::sign::{SigningKey, sign};
use attestation::measurement::id_block::{IdAuth, IdBlock};
use attestation::report::GuestPolicy;
use base64::{Engine, engine::general_purpose::STANDARD};

fn example(accel: Accel) -> Launch {
    Launch {
        platform: Platform::Virtual { accel, psp: 14 },
        measured: Measured {
            firmware: "/proc/self/fd/7".into(),
            firmware_content: Firmware::measure(&[0x90; 4096]).unwrap(),
            kernel: "/proc/self/fd/8".into(),
            kernel_sha256: [1; 32],
            initrd: "/proc/self/fd/9".into(),
            initrd_sha256: [2; 32],
            command_line: "console=ttyS0 panic=5".into(),
            vcpus: 2,
            vcpu_type: VcpuType::EPYC_V4,
            guest_features: 1,
        },
        memory_mib: 1024,
        disk: "/var/a,b/disk.img".into(),
        serving: Some(Serving {
            nvram: Nvram {
                path: "/var/a,b/nvram.img".into(),
                bytes: 512 << 20,
                nvdimm: None,
                text: String::new(),
            },
            placement: None,
            wire: Wire::Port(18443),
        }),
        channels: Channels { console: 11, qmp: 12, host: 13 },
    }
}

fn lines(arguments: Vec<OsString>) -> String {
    let mut text = String::new();
    for argument in arguments {
        let argument = argument.into_string().unwrap();
        text.push_str(if text.is_empty() || !argument.starts_with('-') { "" } else { "\n" });
        text.push_str(&argument);
        text.push(' ');
    }
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_virtual_command_line_is_as_recorded() {
    let expected = "\
-name redoubt
-machine q35,usb=off,vmport=off
-accel tcg,thread=multi,tb-size=256
-cpu max
-smp 2
-m 1024M
-nodefaults
-no-user-config
-no-reboot
-display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-bios /proc/self/fd/7
-kernel /proc/self/fd/8
-initrd /proc/self/fd/9
-append console=ttyS0 panic=5
-object memory-backend-file,id=nvram,share=on,size=536870912,mem-path=/var/a,,b/nvram.img
-device ivshmem-plain,memdev=nvram
-blockdev driver=file,node-name=disk,discard=unmap,filename=/var/a,,b/disk.img
-device virtio-blk-pci,drive=disk,serial=redoubt-disk,disable-legacy=on
-netdev user,id=net,ipv4=on,ipv6=on,restrict=on,hostfwd=tcp:127.0.0.1:18443-:8443
-device virtio-net-pci,netdev=net,romfile=,disable-legacy=on
-device virtio-serial-pci,disable-legacy=on
-chardev socket,id=console,fd=11
-chardev socket,id=qmp,fd=12
-chardev socket,id=host,fd=13
-chardev socket,id=psp,fd=14
-serial chardev:console
-mon chardev=qmp,mode=control
-device virtserialport,chardev=host,name=redoubt.host
-device virtserialport,chardev=psp,name=redoubt.psp";
    assert_eq!(lines(example(Accel::Tcg).arguments()), expected);
}

#[test]
fn kvm_changes_the_accelerator_and_nothing_else() {
    let tcg = lines(example(Accel::Tcg).arguments());
    let kvm = lines(example(Accel::Kvm).arguments());
    let changed: Vec<_> = tcg.lines().zip(kvm.lines()).filter(|(a, b)| a != b).collect();
    assert_eq!(
        changed,
        [("-accel tcg,thread=multi,tb-size=256", "-accel kvm"), ("-cpu max", "-cpu host,-tsc-deadline")]
    );
}

const ID_KEY: &str = include_str!("../../../attestation/tests/measurement/data/id-key.pem");
const AUTHOR_KEY: &str = include_str!("../../../attestation/tests/measurement/data/author-key.pem");

/// Under SEV-SNP, with an ID block for just this launch.
fn snp(with_author: bool) -> Launch {
    let mut launch = example(Accel::Kvm);
    let block = IdBlock {
        measurement: launch.measured.measurement().unwrap(),
        family_id: *b"redoubt\0\0\0\0\0\0\0\0\0",
        image_id: *b"guest-os\0\0\0\0\0\0\0\0",
        guest_svn: 3,
        policy: GuestPolicy(0x30000),
    };
    let [id_key, author_key] = [ID_KEY, AUTHOR_KEY].map(|pem| SigningKey::from_pem(pem).unwrap());
    let auth = sign(&block, &id_key, with_author.then_some(&author_key)).unwrap();
    launch.platform = Platform::Snp(Box::new(Snp {
        encryption: Encryption::EPYC,
        policy: 0x30000,
        host_data: [0xab; 32],
        identity: Some(Identity { block, auth }),
    }));
    launch
}

/// The recorded line has ID block and authentication cut out: the one follows from the measurement, the other holds
/// signatures, which are new each time.
#[test]
fn the_snp_command_line_is_as_recorded() {
    let launch = snp(true);
    let Platform::Snp(parameters) = &launch.platform else { unreachable!() };
    let Identity { block, auth } = parameters.identity.clone().unwrap();
    let found = lines(launch.arguments())
        .replace(&STANDARD.encode(block.to_bytes()), "<ID block>")
        .replace(&STANDARD.encode(auth.to_bytes().as_slice()), "<ID authentication>");
    assert_eq!(found, include_str!("snp.golden").trim_end());
}

/// What QEMU hands to the firmware is for the measurement of the very same launch.
#[test]
fn the_id_block_on_the_command_line_is_for_this_launch() {
    let launch = snp(true);
    let words = lines(launch.arguments());
    let option = |name: &str| {
        let value = words.split([',', '\n']).find_map(|part| part.strip_prefix(name)).unwrap();
        STANDARD.decode(value).unwrap()
    };
    let block = IdBlock::from_bytes(&option("id-block=")).unwrap();
    let auth = IdAuth::from_bytes(&option("id-auth=")).unwrap();
    assert_eq!(block.measurement, launch.measured.measurement().unwrap());
    auth.verify(&block).unwrap();
    assert_eq!(option("host-data="), [0xab; 32]);
}

#[test]
fn without_author_or_id_block_the_options_say_so() {
    let words = lines(snp(false).arguments());
    assert!(words.contains(",author-key-enabled=off"), "{words}");
    let mut launch = snp(false);
    let Platform::Snp(parameters) = &mut launch.platform else { unreachable!() };
    parameters.identity = None;
    let words = lines(launch.arguments());
    assert!(!words.contains("id-") && !words.contains("author"), "{words}");
}

/// Whatever of the measured part changes, both the command line and the measurement change.
#[test]
fn command_line_and_measurement_change_together() {
    type Change = fn(&mut Measured);
    let changes: [Change; 3] = [
        |measured| measured.command_line.push_str(" debug"),
        |measured| measured.vcpus = 3,
        |measured| measured.vcpu_type = "EPYC-Turin".parse().unwrap(),
    ];
    let base = snp(false);
    for change in changes {
        let mut other = base.clone();
        change(&mut other.measured);
        assert_ne!(other.arguments(), base.arguments());
        assert_ne!(other.measured.measurement(), base.measured.measurement());
    }
}

/// Values of EPYC processors; the other fields of EBX (address bits, number of VMPLs) do not matter.
#[test]
fn cpuid_tells_how_memory_is_encrypted() {
    assert_eq!(Encryption::from_cpuid(0x8000_0028, 0x0101_fd3f, 0x0000_4173), Ok(Encryption::EPYC));
    assert_eq!(Encryption::from_cpuid(0x8000_0028, 0x10, 0x2f), Ok(Encryption { c_bit: 47 }));
    assert_eq!(Encryption::from_cpuid(0x8000_001e, 0x1f, 0x73), Err(EncryptionError::NoLeaf));
    assert_eq!(Encryption::from_cpuid(0x8000_0028, 0xf, 0x73), Err(EncryptionError::NoSnp { eax: 0xf }));
}

/// Two sockets, as a specification divides them.
fn placed(mut launch: Launch, encrypted: bool) -> Launch {
    use crate::placement::{Node, plan};
    let node = |number: u32| Node {
        number,
        cores: vec![vec![2 * number, 2 * number + 4], vec![2 * number + 1, 2 * number + 5]],
        memory_mib: (4096, 4096),
        huge_pages: true,
    };
    let share = hwspec::Share { vcpus: 2, host_cores: 1, host_memory_mib: 2048, pin: true, huge_pages: true };
    let placement = plan(&share, &[node(0), node(1)], encrypted).unwrap();
    launch.memory_mib = placement.memory_mib;
    launch.serving.as_mut().unwrap().placement = Some(placement);
    launch
}

fn changes(before: Vec<OsString>, after: Vec<OsString>) -> Vec<String> {
    let (before, after) = (lines(before), lines(after));
    let before: std::collections::HashSet<_> = before.lines().collect();
    after.lines().filter(|line| !before.contains(line)).map(str::to_owned).collect()
}

/// What is measured does not change: whoever divides the machine is not trusted.
#[test]
fn a_placement_changes_names_and_memory_and_not_the_measurement() {
    let before = example(Accel::Kvm);
    let after = placed(before.clone(), false);
    assert_eq!(
        changes(before.arguments(), after.arguments()),
        [
            "-name redoubt,debug-threads=on",
            "-machine q35,usb=off,vmport=off,memory-backend=memory",
            "-object memory-backend-memfd,id=memory,size=6144M,hugetlb=on,hugetlbsize=2M,prealloc=on,prealloc-threads=2,\
             host-nodes=0-1,policy=interleave",
            "-m 6144M",
        ]
    );
    let before = snp(false);
    let after = placed(before.clone(), true);
    assert_eq!(
        changes(before.arguments(), after.arguments()),
        [
            "-name redoubt,debug-threads=on",
            "-object memory-backend-memfd,id=memory,size=6144M,share=on,prealloc=off,host-nodes=0-1,policy=interleave",
            "-m 6144M",
        ]
    );
    assert_eq!(before.measured.measurement().unwrap(), after.measured.measurement().unwrap());
}

#[test]
fn an_nvdimm_is_a_device_that_qemu_may_use() {
    use crate::confine::{Level, Plan, Right};
    let mut launch = snp(false);
    let described = vec!["/sys/devices/x/dax0.0".into(), "/sys/dev/char/252:0".into()];
    let nvdimm = crate::nvram::device::Nvdimm { described, ..Default::default() };
    launch.serving.as_mut().unwrap().nvram =
        Nvram { path: "/dev/dax0.0".into(), bytes: 1 << 34, nvdimm: Some(nvdimm), text: String::new() };
    let words = lines(launch.arguments());
    let object =
        "-object memory-backend-file,id=nvram,share=on,align=2M,size=17179869184,mem-path=/dev/dax0.0";
    assert!(words.contains(object), "{words}");
    let plan = Plan::new(Level::Full, "/usr/bin/q".as_ref(), &launch, None);
    let right =
        |path: &str| plan.files.iter().find(|file| file.path == std::path::Path::new(path)).unwrap().right;
    assert_eq!((right("/dev/dax0.0"), right("/sys/dev/char/252:0")), (Right::Device, Right::Read));
}

/// QEMU has the guest's card and no network of its own.
#[test]
fn on_a_host_the_network_is_a_device_that_qemu_inherits() {
    use crate::confine::{Level, Network, Plan};
    for (mut launch, vhost, option) in [
        (snp(false), Some(21), "-netdev tap,id=net,fd=20,vhost=on,vhostfd=21"),
        (example(Accel::Kvm), None, "-netdev tap,id=net,fd=20"),
    ] {
        let before = launch.clone();
        launch.serving.as_mut().unwrap().wire = Wire::Tap { tap: 20, vhost };
        assert_eq!(changes(before.arguments(), launch.arguments()), [option]);
        assert_eq!(Plan::new(Level::Full, "/usr/bin/q".as_ref(), &launch, None).network, Network::Device);
        assert_eq!(launch.measured.measurement().unwrap(), before.measured.measurement().unwrap());
    }
}

//! Launch digests of many made-up guests, by sev-snp-measure and by the crate `sev`.

use crate::firmware::{Shape, shape};
use crate::python;
use attestation::measurement::{Launch, VcpuType};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use sev::measurement::{
    snp::{SnpMeasurementArgs, snp_calc_launch_digest},
    vcpu_types::CpuType,
    vmsa::{GuestFeatures, VMMType},
};
use std::fs;
use std::path::{Path, PathBuf};

/// Guests that are compared.
const CASES: usize = 150;

/// A guest to measure.
#[derive(Debug, Clone)]
struct Guest {
    firmware: Vec<u8>,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    command_line: String,
    vcpus: u32,
    vcpu_type: VcpuType,
    guest_features: u64,
}

/// Sections of every kind in any order, each at its own address, with the page for kernel hashes among them.
fn sections() -> impl Strategy<Value = Vec<[u32; 3]>> {
    let kind = prop_oneof![Just(1_u32), Just(2), Just(3), Just(4)];
    let one = (kind, 1_u32..20).prop_map(|(kind, pages)| match kind {
        1 | 4 => (kind, pages * 0x1000),
        _ => (kind, 0x1000),
    });
    (proptest::collection::vec(one, 0..8), any::<proptest::sample::Index>()).prop_map(|(mut kinds, place)| {
        let place = place.index(kinds.len() + 1);
        kinds.insert(place, (0x10, 0x1000));
        let mut gpa = 0x80_0000;
        let place = |(kind, size)| {
            let section = [gpa, size, kind];
            gpa += size;
            section
        };
        kinds.into_iter().map(place).collect()
    })
}

fn firmware() -> impl Strategy<Value = Vec<u8>> {
    let pages = (2_usize..8).prop_flat_map(|pages| proptest::collection::vec(any::<u8>(), pages * 4096));
    (pages, sections(), 0_u32..=0xf40, any::<u32>(), 0_usize..0x1000).prop_map(
        |(pages, sections, offset, reset_eip, metadata)| {
            let hashes = sections.iter().find(|section| section[2] == 0x10).unwrap()[0];
            shape(
                pages,
                &Shape { sections: &sections, hash_table: Some(hashes + offset), reset_eip, metadata },
            )
        },
    )
}

fn guest() -> impl Strategy<Value = Guest> {
    let file = |least| proptest::collection::vec(any::<u8>(), least..3000);
    let vcpus = prop_oneof![8 => 1_u32..=64, 1 => 65_u32..=512];
    let features = prop_oneof![Just(0x1_u64), Just(0x21), any::<u64>().prop_map(|bits| bits | 1)];
    (
        firmware(),
        file(1),
        prop_oneof![Just(Vec::new()), file(1)],
        "[ -~]{0,120}",
        vcpus,
        proptest::sample::select(VcpuType::ALL),
        features,
    )
        .prop_map(|(firmware, kernel, initrd, command_line, vcpus, vcpu_type, guest_features)| Guest {
            firmware,
            kernel,
            initrd,
            command_line,
            vcpus,
            vcpu_type,
            guest_features,
        })
}

impl Guest {
    fn measured(&self) -> String {
        let Self { firmware, kernel, initrd, command_line, vcpus, vcpu_type, guest_features } = self;
        let (vcpus, vcpu_type, guest_features) = (*vcpus, *vcpu_type, *guest_features);
        Launch { firmware, kernel, initrd, command_line, vcpus, vcpu_type, guest_features }
            .measurement()
            .unwrap()
            .to_string()
    }

    /// The paths of its firmware, kernel and initrd.
    fn write(&self, directory: &Path, number: usize) -> [PathBuf; 3] {
        [("firmware", &self.firmware), ("kernel", &self.kernel), ("initrd", &self.initrd)].map(
            |(name, content)| {
                let path = directory.join(format!("{number}.{name}"));
                fs::write(&path, content).unwrap();
                path
            },
        )
    }
}

fn guests() -> Vec<Guest> {
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRunner::deterministic().new_rng());
    (0..CASES).map(|_| guest().new_tree(&mut runner).unwrap().current()).collect()
}

#[test]
fn agrees_with_sev_snp_measure_on_many_guests() {
    let Some(interpreter) = python::interpreter() else { return };
    let directory = tempfile::tempdir().unwrap();
    let guests = guests();
    let questions: Vec<_> = guests
        .iter()
        .enumerate()
        .map(|(number, guest)| {
            let [firmware, kernel, initrd] = guest.write(directory.path(), number);
            serde_json::json!({
                "firmware": firmware,
                "kernel": kernel,
                "initrd": if guest.initrd.is_empty() { Path::new("") } else { &initrd },
                "command_line": guest.command_line,
                "vcpus": guest.vcpus,
                "vcpu_type": guest.vcpu_type.name(),
                "guest_features": guest.guest_features,
            })
        })
        .collect();
    let answers = python::ask(&interpreter, &questions);
    for (number, (guest, answer)) in guests.iter().zip(answers).enumerate() {
        assert_eq!(answer, guest.measured(), "guest {number}: {:?}", questions[number]);
    }
}

/// A newer version of a model than the crate knows is compared under the model's own name.
fn sev_crate_model(model: VcpuType) -> CpuType {
    let name = model.name();
    CpuType::try_from(name).unwrap_or_else(|_| CpuType::try_from(name.rsplit_once('-').unwrap().0).unwrap())
}

#[test]
fn agrees_with_the_sev_crate_on_many_guests() {
    let directory = tempfile::tempdir().unwrap();
    for (number, mut guest) in guests().into_iter().enumerate() {
        // The crate leaves out white space at the ends, which QEMU and sev-snp-measure hash.
        guest.command_line = guest.command_line.trim().to_owned();
        let [firmware, kernel, initrd] = guest.write(directory.path(), number);
        let arguments = SnpMeasurementArgs {
            vcpus: guest.vcpus,
            vcpu_type: sev_crate_model(guest.vcpu_type),
            ovmf_file: firmware,
            guest_features: GuestFeatures(guest.guest_features),
            kernel_file: Some(kernel),
            initrd_file: Some(initrd).filter(|_| !guest.initrd.is_empty()),
            append: Some(&guest.command_line),
            ovmf_hash_str: None,
            vmm_type: Some(VMMType::QEMU),
        };
        let theirs = snp_calc_launch_digest(arguments).unwrap().get_hex_ld();
        assert_eq!(theirs, guest.measured(), "guest {number}");
    }
}

/// Each model by its name.
#[test]
fn models_have_the_signatures_of_the_sev_crate() {
    for model in VcpuType::ALL {
        assert_eq!(sev_crate_model(*model).sig() as u32, model.signature(), "{model}");
    }
}

//! Holds what a report says about its machine against the demands on the product.

use super::{Bit, Dotted, PlatformDemands, ProductPolicy, TcbFloor};
use crate::{
    Product, Report, advisories,
    failure::{Code, Failures},
    report::PlatformInfo,
};

/// Fix of bits that the owner of the machine sets.
const SETTING: &str = "change it in the machine's firmware set-up";

/// What a product's machine must be.
pub(super) fn check(report: &Report, product: Product, demands: &ProductPolicy, failures: &mut Failures) {
    check_platform(report.platform_info(), product, &demands.platform, failures);
    check_tcb(report, product, demands, failures);
    for (name, version) in [("running", report.current_version()), ("committed", report.committed_version())]
    {
        let version = Dotted([version.major, version.minor, version.build]);
        let Some(least) = demands.minimum_firmware else { break };
        failures.require(
            version >= least,
            Code::FirmwareTooOld,
            format_args!("{name} SNP firmware {least} or newer"),
            version,
            "update the SNP firmware of the node's machine and commit it",
        );
    }
    failures.require(
        demands.provisional_firmware
            || (report.current_tcb() == report.committed_tcb()
                && report.current_version() == report.committed_version()),
        Code::FirmwareProvisional,
        "the running firmware committed",
        format_args!(
            "running {} ({}), committed {} ({})",
            report.current_version(),
            report.current_tcb(),
            report.committed_version(),
            report.committed_tcb()
        ),
        "commit the firmware (SNP_COMMIT), after which the host cannot go back",
    );
    for (name, demanded, vector) in [
        ("LAUNCH", demands.launch_mitigations, report.launch_mit_vector()),
        ("CURRENT", demands.current_mitigations, report.current_mit_vector()),
    ] {
        failures.require(
            vector.unwrap_or(0) & demanded == demanded,
            Code::MitigationMissing,
            format_args!("{name}_MIT_VECTOR with all bits of {demanded:#x}"),
            vector.map_or("a report without one".to_owned(), |vector| format!("{vector:#x}")),
            "update the SNP firmware of the node's machine and start the guest again",
        );
    }
}

fn check_platform(info: PlatformInfo, product: Product, demands: &PlatformDemands, failures: &mut Failures) {
    let on_turin = if product == Product::Turin { Bit::Required } else { Bit::Any };
    for (demand, strict, bit, code, name, fix) in [
        (demands.smt, Bit::Any, PlatformInfo::SMT, Code::PlatformBitMissing, "SMT", SETTING),
        (
            demands.tsme,
            Bit::Any,
            PlatformInfo::TSME,
            Code::TsmeMissing,
            "TSME",
            "switch on TSME in the machine's firmware set-up",
        ),
        (demands.ecc, Bit::Required, PlatformInfo::ECC, Code::EccMissing, "ECC memory", "use ECC memory"),
        (
            demands.rapl_dis,
            on_turin,
            PlatformInfo::RAPL_DIS,
            Code::RaplEnabled,
            "RAPL switched off",
            "switch off RAPL in the platform's configuration",
        ),
        (
            demands.ciphertext_hiding,
            on_turin,
            PlatformInfo::CIPHERTEXT_HIDING,
            Code::CiphertextHidingMissing,
            "ciphertext hiding",
            "switch on ciphertext hiding in the platform's configuration",
        ),
        (
            demands.alias_check_complete,
            Bit::Required,
            PlatformInfo::ALIAS_CHECK_COMPLETE,
            Code::AliasCheckMissing,
            "the memory alias check (CVE-2024-21944)",
            "update the firmware of the machine and of the SNP firmware; a machine that fails the check may have manipulated memory modules",
        ),
        (
            demands.iommu_write_safe,
            Bit::Any,
            PlatformInfo::IOMMU_WRITE_SAFE,
            Code::IommuWriteUnsafe,
            "confined writes of the IOMMU (AMD-SB-3016)",
            "update the SNP firmware and the kernel of the host",
        ),
        (demands.tio, Bit::Any, PlatformInfo::TIO, Code::PlatformBitMissing, "trusted I/O", SETTING),
    ] {
        let (holds, code, word) = match demand.unwrap_or(strict) {
            Bit::Any => continue,
            Bit::Required => (info.has(bit), code, "with"),
            Bit::Forbidden => (!info.has(bit), Code::PlatformBitForbidden, "without"),
        };
        failures.require(
            holds,
            code,
            format_args!("a machine of {product} {word} {name}"),
            format_args!("PLATFORM_INFO {:#x}", info.0),
            fix,
        );
    }
    let unknown = info.0 & !PlatformInfo::KNOWN;
    let (holds, word) = match demands.unknown.unwrap_or(Bit::Forbidden) {
        Bit::Any => (true, ""),
        Bit::Required => (unknown != 0, "some"),
        Bit::Forbidden => (unknown == 0, "no"),
    };
    failures.require(
        holds,
        Code::PlatformBitsUnknown,
        format_args!("{word} bits of PLATFORM_INFO beyond {:#x}", PlatformInfo::KNOWN),
        format_args!("{:#x}", info.0),
        "use a verifier that knows what they mean",
    );
}

/// Each of the four TCB versions against the highest floor that anything sets, part by part.
fn check_tcb(report: &Report, product: Product, demands: &ProductPolicy, failures: &mut Failures) {
    let floors = &demands.minimum_tcb;
    let own = [floors.reported, floors.committed, floors.current, floors.launch];
    for ((name, tcb), own) in advisories::tcbs(report).into_iter().zip(own) {
        let given = [("the policy", floors.every), ("the policy", own)];
        let published = advisories::floors(&demands.advisories, product, report.cpuid());
        let below: Vec<(&str, TcbFloor)> = given
            .into_iter()
            .chain(published)
            .filter(|(_, floor)| !advisories::below(tcb, *floor).is_empty())
            .collect();
        let expected = below.iter().map(|(by, floor)| format!("{} ({by})", advisories::words(*floor)));
        failures.require(
            below.is_empty(),
            Code::TcbTooLow,
            format_args!("{name} TCB at least {}", expected.collect::<Vec<_>>().join("; ")),
            tcb,
            "update firmware and microcode of the node's machine, commit them, and start the guest again",
        );
    }
}

//! Every field of a report in words.

use super::{GuestPolicy, KeyInfo, PlatformInfo, Report, SIGNED, SigningKey, TcbVersion, offset};
use serde::Serialize;
use std::ops::Range;

/// One field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Name in the specification.
    pub name: &'static str,
    /// From the start of the report, in bytes.
    pub offset: usize,
    /// The bytes as they stand there, in hexadecimal.
    pub raw: String,
    /// What they say.
    pub meaning: String,
}

/// Every field that carries something, in the order of the report. Reserved bytes are zero, or there were no [`Report`].
#[must_use]
pub fn describe(report: &Report) -> Vec<Field> {
    let bytes = report.as_bytes();
    let field = |name, at: Range<usize>, meaning: String| Field {
        name,
        offset: at.start,
        raw: hex::encode(&bytes[at]),
        meaning,
    };
    let run =
        |name, offset: usize, length: usize, meaning: String| field(name, offset..offset + length, meaning);
    let tcb = |name, offset, tcb: TcbVersion, what: &str| run(name, offset, 8, format!("{tcb}: {what}"));
    let mut fields = vec![
        run("VERSION", offset::VERSION, 4, format!("report of version {}", report.version())),
        run(
            "GUEST_SVN",
            offset::GUEST_SVN,
            4,
            format!("security version {} of the guest, from its ID block", report.guest_svn()),
        ),
        run("POLICY", offset::POLICY, 8, guest_policy(report.policy())),
        run("FAMILY_ID", offset::FAMILY_ID, 16, set(&report.family_id(), "from the ID block", "none")),
        run("IMAGE_ID", offset::IMAGE_ID, 16, set(&report.image_id(), "from the ID block", "none")),
        run("VMPL", offset::VMPL, 4, vmpl(report.vmpl())),
        run("SIGNATURE_ALGO", offset::SIGNATURE_ALGO, 4, "ECDSA on P-384 with SHA-384".to_owned()),
        tcb("CURRENT_TCB", offset::CURRENT_TCB, report.current_tcb(), "what runs now"),
        run("PLATFORM_INFO", offset::PLATFORM_INFO, 8, platform(report.platform_info())),
        run("KEY_INFO", offset::KEY_INFO, 4, key(report.key_info())),
        run(
            "REPORT_DATA",
            offset::REPORT_DATA,
            64,
            set(
                &report.report_data(),
                "what the guest wanted bound",
                "nothing was bound: the report may be any age",
            ),
        ),
        run("MEASUREMENT", offset::MEASUREMENT, 48, "launch digest: which guest this is".to_owned()),
        run(
            "HOST_DATA",
            offset::HOST_DATA,
            32,
            set(&report.host_data(), "what the host wanted bound at launch", "nothing was bound by the host"),
        ),
        run(
            "ID_KEY_DIGEST",
            offset::ID_KEY_DIGEST,
            48,
            set(
                &report.id_key_digest(),
                "SHA-384 of the key that signed the ID block",
                "launched without an ID block",
            ),
        ),
        run(
            "AUTHOR_KEY_DIGEST",
            offset::AUTHOR_KEY_DIGEST,
            48,
            set(&report.author_key_digest(), "SHA-384 of the key that certified the ID key", "no author key"),
        ),
        run("REPORT_ID", offset::REPORT_ID, 32, "this instance of the guest; new at each launch".to_owned()),
        run(
            "REPORT_ID_MA",
            offset::REPORT_ID_MA,
            32,
            (if report.report_id_ma() == [0xff; 32] {
                "no migration agent"
            } else {
                "a migration agent is bound"
            })
            .to_owned(),
        ),
        tcb(
            "REPORTED_TCB",
            offset::REPORTED_TCB,
            report.reported_tcb(),
            "the one for which the endorsement key was issued",
        ),
    ];
    if let (Some([family, model, stepping]), Some(product)) = (report.cpuid(), report.product()) {
        let meaning = format!("family {family:#x}, model {model:#x}, stepping {stepping}: {product}");
        fields.push(run("CPUID", offset::CPUID_FAMILY, 3, meaning));
    }
    fields.extend([
        run("CHIP_ID", offset::CHIP_ID, 64, set(&report.chip_id(), "which chip", "the host hides the chip")),
        tcb(
            "COMMITTED_TCB",
            offset::COMMITTED_TCB,
            report.committed_tcb(),
            "below it the host cannot go back",
        ),
        run(
            "CURRENT_VERSION",
            offset::CURRENT_VERSION,
            3,
            format!("SNP firmware {} runs", report.current_version()),
        ),
        run(
            "COMMITTED_VERSION",
            offset::COMMITTED_VERSION,
            3,
            format!("SNP firmware {} is committed", report.committed_version()),
        ),
        tcb("LAUNCH_TCB", offset::LAUNCH_TCB, report.launch_tcb(), "the guest was started on it"),
    ]);
    for (name, offset, vector, when) in [
        (
            "LAUNCH_MIT_VECTOR",
            offset::LAUNCH_MIT_VECTOR,
            report.launch_mit_vector(),
            "when the guest was started",
        ),
        ("CURRENT_MIT_VECTOR", offset::CURRENT_MIT_VECTOR, report.current_mit_vector(), "now"),
    ] {
        fields.extend(
            vector.map(|vector| run(name, offset, 8, format!("mitigations {vector:#x} in force {when}"))),
        );
    }
    let covered = format!("over bytes {:#x} to {:#x}", SIGNED.start, SIGNED.end - 1);
    fields.push(run("SIGNATURE_R", offset::SIGNATURE_R, 72, format!("R of the signature {covered}")));
    fields.push(run("SIGNATURE_S", offset::SIGNATURE_S, 72, format!("S of the signature {covered}")));
    fields
}

fn set(bytes: &[u8], meaning: &str, absent: &str) -> String {
    (if bytes.iter().all(|byte| *byte == 0) { absent } else { meaning }).to_owned()
}

fn vmpl(vmpl: u32) -> String {
    match vmpl {
        0 => "asked for by privilege level 0, the highest".to_owned(),
        1..=3 => format!("asked for by privilege level {vmpl}"),
        u32::MAX => "asked for by the host, not by the guest".to_owned(),
        other => format!("asked for by privilege level {other}, which does not exist"),
    }
}

fn key(key: KeyInfo) -> String {
    let signer = match key.signing_key() {
        SigningKey::Vcek => "signed by the chip's key (VCEK)".to_owned(),
        SigningKey::Vlek => "signed by a cloud provider's key (VLEK)".to_owned(),
        SigningKey::None(7) => "not signed".to_owned(),
        SigningKey::None(other) => format!("signing key {other} means nothing"),
    };
    let masked = if key.chip_key_masked() { "; the host masks the chip's key" } else { "" };
    let author = if key.author_key_enabled() { "; an author key certified the ID key" } else { "" };
    format!("{signer}{masked}{author}")
}

/// What each bit says, set and clear; nothing for a bit in its usual state.
type Words = [(u64, &'static str, &'static str)];

fn bits(value: u64, words: &Words) -> Vec<String> {
    let word =
        |(bit, set, clear): &(u64, &str, &str)| (if value & bit != 0 { *set } else { *clear }).to_owned();
    words.iter().map(word).filter(|word| !word.is_empty()).collect()
}

fn guest_policy(policy: GuestPolicy) -> String {
    const WORDS: &Words = &[
        (GuestPolicy::SMT, "SMT allowed", "SMT not allowed"),
        (GuestPolicy::RESERVED_ONE, "", "reserved bit 17 clear, which firmware does not allow"),
        (GuestPolicy::MIGRATE_MA, "a migration agent may move the guest", "no migration agent"),
        (GuestPolicy::DEBUG, "THE HOST MAY READ AND WRITE THE GUEST (debug)", "no debugging"),
        (GuestPolicy::SINGLE_SOCKET, "one socket only", ""),
        (GuestPolicy::CXL_ALLOW, "CXL allowed", "no CXL"),
        (GuestPolicy::MEM_AES_256_XTS, "AES-256-XTS demanded", ""),
        (GuestPolicy::RAPL_DIS, "power readings must be off", ""),
        (GuestPolicy::CIPHERTEXT_HIDING, "ciphertext hiding demanded", ""),
        (GuestPolicy::PAGE_SWAP_DISABLE, "pages may not be swapped", ""),
    ];
    let (major, minor) = policy.abi();
    let mut words = bits(policy.0, WORDS);
    if policy.0 & GuestPolicy::RESERVED_ZERO != 0 {
        words.push("unknown bits set".to_owned());
    }
    format!("firmware ABI {major}.{minor} or newer demanded; {}", words.join("; "))
}

fn platform(info: PlatformInfo) -> String {
    const WORDS: &Words = &[
        (PlatformInfo::SMT, "SMT on", "SMT off"),
        (PlatformInfo::TSME, "TSME on", "TSME off"),
        (PlatformInfo::ECC, "ECC memory", "no ECC memory"),
        (PlatformInfo::RAPL_DIS, "power readings off", "power readings on"),
        (PlatformInfo::CIPHERTEXT_HIDING, "ciphertext hidden", "ciphertext not hidden"),
        (PlatformInfo::ALIAS_CHECK_COMPLETE, "no aliased memory found", "memory not checked for aliases"),
        (PlatformInfo::IOMMU_WRITE_SAFE, "IOMMU writes confined", ""),
        (PlatformInfo::TIO, "trusted I/O on", ""),
    ];
    let mut words = bits(info.0, WORDS);
    let unknown = info.0 & !PlatformInfo::KNOWN;
    if unknown != 0 {
        words.push(format!("unknown bits {unknown:#x}"));
    }
    words.join("; ")
}

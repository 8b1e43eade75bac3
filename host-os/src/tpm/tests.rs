//! With a real implementation of a TPM: swtpm, a process of its own for each TPM.

use super::{
    PublicKeys, Quote, Tpm, TpmError,
    anchor::{Anchor, AnchorError},
    attest::AttestError,
    client::{FetchError, fetch},
    policy,
    records::{Records, RecordsError},
    sealing::{SEALED_TO, SealError, Sealed, Secret},
    serve::{Machine, routes},
    tss::LibTss,
};
use crate::operator::{identity::Identity, tls::server_config};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use installer::record::{self, Kind};
use measured_boot::{
    Hash,
    evidence::{Believed, Bytes, Hex, Record, Refusal, Trust, Verdict},
    expected::Expected,
    key::EndorsementKey,
    log::{APPLICATION, Event, NO_ACTION, VARIABLE_CONFIG, write},
    samples::{event, expected, numbered, started, variable},
    sha256,
};
use release::Seen;
use std::{
    collections::BTreeMap,
    io::Write,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};
use tss_esapi::{
    Context, TctiNameConf,
    constants::StartupType,
    handles::{AuthHandle, PcrHandle},
    interface_types::algorithm::HashingAlgorithm,
    structures::{Digest, DigestValues},
};

/// A TPM in a process, killed at the end.
struct SwTpm {
    process: Child,
    tcti: String,
    state: Arc<tempfile::TempDir>,
}

impl Drop for SwTpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn swtpm() -> Option<SwTpm> {
    start(Arc::new(tempfile::tempdir().unwrap()))
}

/// The same TPM after the machine was restarted.
fn restarted(tpm: SwTpm) -> SwTpm {
    tpm.context(|context| context.shutdown(StartupType::Clear)).unwrap();
    let state = tpm.state.clone();
    drop(tpm);
    start(state).unwrap()
}

fn start(state: Arc<tempfile::TempDir>) -> Option<SwTpm> {
    if Command::new("swtpm").arg("--version").stdout(Stdio::null()).status().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must have swtpm");
        // Not captured, as what is printed would be.
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no swtpm; run 'cargo xtask test'");
        return None;
    }
    // libtss2 wants the port for control to be the next one.
    static PORT: AtomicU16 = AtomicU16::new(0);
    let port = std::iter::repeat_with(|| 21_000 + PORT.fetch_add(2, Ordering::Relaxed))
        .find(|port| [0, 1].iter().all(|more| TcpListener::bind(("127.0.0.1", port + more)).is_ok()))
        .unwrap();
    let mut process = Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init", "--tpmstate"])
        .arg(format!("dir={}", state.path().display()))
        .args([
            "--server",
            &format!("type=tcp,port={port}"),
            "--ctrl",
            &format!("type=tcp,port={}", port + 1),
        ])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(process.try_wait().unwrap(), None, "swtpm ended at once");
    let tpm = SwTpm { process, tcti: format!("swtpm:host=127.0.0.1,port={port}"), state };
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match tpm.context(|context| context.startup(StartupType::Clear)) {
            Ok(()) => return Some(tpm),
            // Not open yet.
            Err(error) => assert!(Instant::now() < end, "swtpm does not start: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl SwTpm {
    fn context<T>(&self, ask: impl FnOnce(&mut Context) -> tss_esapi::Result<T>) -> tss_esapi::Result<T> {
        let tcti: TctiNameConf = self.tcti.parse().unwrap();
        ask(&mut Context::new(tcti)?)
    }

    fn tpm(&self) -> LibTss {
        LibTss::named(&self.tcti).unwrap()
    }

    fn boxed(&self) -> Box<dyn Tpm> {
        Box::new(self.tpm())
    }

    fn extend(&self, pcr: u8, digest: &Hash) {
        let handle = PcrHandle::try_from(u32::from(pcr)).unwrap();
        let mut digests = DigestValues::new();
        digests.set(HashingAlgorithm::Sha256, Digest::try_from(&digest[..]).unwrap());
        self.context(|context| {
            context.execute_with_nullauth_session(|context| context.pcr_extend(handle, digests.clone()))
        })
        .unwrap();
    }

    /// Measures events, as firmware and stub do.
    fn measure(&self, events: &[Event]) {
        for event in events.iter().filter(|event| event.kind != NO_ACTION) {
            self.extend(event.pcr, &event.digest);
        }
    }

    fn fingerprint(&self) -> Hash {
        EndorsementKey::parse(&self.tpm().keys().unwrap().endorsement).unwrap().key().fingerprint()
    }

    /// Believes this TPM.
    fn trust(&self) -> Trust {
        Trust { endorsement_keys: vec![self.fingerprint()], ..Trust::default() }
    }
}

/// A host that serves evidence, as the operators' port does.
struct Host {
    address: SocketAddr,
    key: [u8; 32],
    _directory: tempfile::TempDir,
}

impl Host {
    async fn start(machine: Machine) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity::create(&directory.path().join("key.pem")).unwrap();
        let key = identity.key_sha256;
        let acceptor = tokio_rustls::TlsAcceptor::from(server_config(&identity).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let service = TowerToHyperService::new(routes(key, machine.clone()));
                let Ok(stream) = acceptor.accept(client).await else { continue };
                tokio::spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, key, _directory: directory }
    }

    async fn of(tpm: &SwTpm, log: &[Event]) -> Self {
        let (tcti, log) = (tpm.tcti.clone(), write::log(log));
        Self::start(Machine::of(move || Ok(Box::new(LibTss::named(&tcti)?)), move || Ok(log.clone()))).await
    }

    async fn fetch(&self, trust: &Trust) -> Result<Record, FetchError> {
        fetch(&self.address.to_string(), Some(self.key), trust).await
    }
}

/// A host with this TPM, that measured these events and shows its true log.
async fn record(tpm: &SwTpm, events: &[Event]) -> Record {
    tpm.measure(events);
    Host::of(tpm, events).await.fetch(&tpm.trust()).await.unwrap()
}

fn refusal(record: &Record, trust: &Trust) -> &'static str {
    record.judge(trust, &expected()).unwrap_err().code()
}

fn differences(verdict: &Verdict) -> Vec<(&'static str, u8)> {
    verdict.differences.iter().map(|difference| (difference.code, difference.pcr)).collect()
}

#[tokio::test]
async fn a_host_started_from_the_release_is_attested_over_tls() {
    let Some(tpm) = swtpm() else { return };
    let record = record(&tpm, &started()).await;
    let verdict = record.judge(&tpm.trust(), &expected()).unwrap();
    assert_eq!(differences(&verdict), []);
    assert_eq!((verdict.believed, verdict.endorsement_key), (Believed::Pinned, tpm.fingerprint()));
    // The keys stay.
    assert_eq!(tpm.tpm().keys().unwrap(), tpm.tpm().keys().unwrap());

    // Whoever knows neither this TPM nor its maker believes nothing, unless told to.
    assert_eq!(refusal(&record, &Trust::default()), "tpm-unknown");
    let any = Trust { any: true, ..Trust::default() };
    assert_eq!(record.judge(&any, &expected()).unwrap().believed, Believed::Any);

    checked_by_tpm2_tools(&record);
}

/// tpm2-tools' own verdict on the same quote.
fn checked_by_tpm2_tools(record: &Record) {
    if Command::new("tpm2_checkquote").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must have tpm2_checkquote");
        let _ = writeln!(std::io::stderr(), "SKIPPED: no program tpm2_checkquote to compare with");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    // tpm2-tools takes a TPM2B_PUBLIC.
    let area = &record.keys.attestation_key.0;
    let key = file("key", &[&(area.len() as u16).to_be_bytes()[..], area].concat());
    let quote = file("quote", &record.evidence.quote.0);
    let signature = file("signature", &record.evidence.signature.0);
    let check = |nonce: &[u8; 32]| {
        let qualifying = measured_boot::evidence::qualifying(nonce, &record.tls_key_sha256.0);
        let mut command = Command::new("tpm2_checkquote");
        command.args(["-u", &key, "-m", &quote, "-s", &signature, "-q", &hex::encode(qualifying)]);
        command.output().unwrap()
    };
    let output = check(&record.request.nonce.0);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!check(&[0; 32]).status.success());
}

#[tokio::test]
async fn an_old_quote_and_one_of_another_connection_are_refused() {
    let Some(tpm) = swtpm() else { return };
    tpm.measure(&started());
    let host = Host::of(&tpm, &started()).await;
    let (old, new) = (host.fetch(&tpm.trust()).await.unwrap(), host.fetch(&tpm.trust()).await.unwrap());
    let mut replayed = new.clone();
    replayed.evidence.quote = old.evidence.quote.clone();
    replayed.evidence.signature = old.evidence.signature.clone();
    assert_eq!(refusal(&replayed, &tpm.trust()), "quote-nonce-differs");
    let mut altogether = new.clone();
    altogether.evidence = old.evidence.clone();
    assert_eq!(refusal(&altogether, &tpm.trust()), "tpm-keys-apart");
    let mut relayed = new.clone();
    relayed.tls_key_sha256 = Hex([7; 32]);
    assert_eq!(refusal(&relayed, &tpm.trust()), "quote-nonce-differs");
    let mut values = new.clone();
    values.evidence.pcrs.insert(7, Hex([0; 32]));
    assert_eq!(refusal(&values, &tpm.trust()), "quote-values-differ");
    new.judge(&tpm.trust(), &expected()).unwrap();
}

/// Shows the endorsement key of one TPM, and the attestation key and quotes of another.
struct Mixed {
    trusted: LibTss,
    own: LibTss,
    /// Answers the challenge with something rather than nothing.
    lies: bool,
}

impl Tpm for Mixed {
    fn keys(&mut self) -> Result<PublicKeys, TpmError> {
        Ok(PublicKeys { attestation: self.own.keys()?.attestation, ..self.trusted.keys()? })
    }
    fn activate(&mut self, credential: &[u8], seed: &[u8]) -> Result<[u8; 32], TpmError> {
        let opened = self.trusted.activate(credential, seed);
        assert!(opened.is_err(), "a TPM opened a secret for a key that it does not have");
        if self.lies { Ok([0; 32]) } else { opened }
    }
    fn quote(&mut self, qualifying: &Hash) -> Result<Quote, TpmError> {
        self.own.quote(qualifying)
    }
    fn pcrs(&mut self, which: &[u8]) -> Result<BTreeMap<u8, Hash>, TpmError> {
        self.own.pcrs(which)
    }
    fn seal(&mut self, _: &[u8], _: &BTreeMap<u8, Hash>) -> Result<Vec<u8>, TpmError> {
        Err(TpmError::Absent)
    }
    fn unseal(&mut self, _: &[u8], _: &[u8]) -> Result<Vec<u8>, TpmError> {
        Err(TpmError::Absent)
    }
    fn counter(&mut self) -> Result<u64, TpmError> {
        Err(TpmError::Absent)
    }
    fn increment(&mut self) -> Result<(), TpmError> {
        Err(TpmError::Absent)
    }
}

#[tokio::test]
async fn the_attestation_key_of_another_tpm_is_refused() {
    let (Some(trusted), Some(own)) = (swtpm(), swtpm()) else { return };
    own.measure(&started());
    for (lies, code) in [(false, "tpm-failed"), (true, "tpm-keys-apart")] {
        let (a, b) = (trusted.tcti.clone(), own.tcti.clone());
        let mixed = move || -> Result<Box<dyn Tpm>, TpmError> {
            Ok(Box::new(Mixed { trusted: LibTss::named(&a)?, own: LibTss::named(&b)?, lies }))
        };
        let host = Host::start(Machine::of(mixed, || Ok(write::log(&started())))).await;
        let found = match host.fetch(&trusted.trust()).await {
            Ok(record) => refusal(&record, &trusted.trust()).to_owned(),
            Err(error) => error.code().to_owned(),
        };
        assert_eq!(found, code);
    }
}

#[tokio::test]
async fn a_host_without_a_tpm_or_a_log_says_so() {
    let host = Host::start(Machine::of(|| Err(TpmError::Absent), || Ok(Vec::new()))).await;
    assert_eq!(host.fetch(&Trust::default()).await.unwrap_err().code(), "tpm-missing");
    let Some(tpm) = swtpm() else { return };
    let tcti = tpm.tcti.clone();
    let log = || {
        let source = std::io::ErrorKind::NotFound.into();
        Err(AttestError::Log { path: "log".into(), source })
    };
    let host = Host::start(Machine::of(move || Ok(Box::new(LibTss::named(&tcti)?)), log)).await;
    assert_eq!(host.fetch(&tpm.trust()).await.unwrap_err().code(), "event-log-missing");
}

#[tokio::test]
async fn what_differs_from_the_release_is_named() {
    let Some(tpm) = swtpm() else { return };
    // A TPM that starts anew for each case takes longer than the cases together: each one's log is judged against its own
    // quote, and the first of them is the one that counts for the rest.
    let mut events = started();
    let cmdline = events.iter().position(|event| event.digest == expected().sections[2].sha256).unwrap();
    let image = events.iter().position(|event| event.kind == APPLICATION).unwrap();
    let secure = events.iter().position(|e| e.data == variable("SecureBoot", &[1])).unwrap();
    events[cmdline].digest = sha256(b"another command line");
    events[image].digest = sha256(b"another image");
    events[secure] = event(7, VARIABLE_CONFIG, &variable("SecureBoot", &[0]));
    let events = numbered(events);
    let good = record(&tpm, &events).await;
    let verdict = good.judge(&tpm.trust(), &expected()).unwrap();
    assert_eq!(
        differences(&verdict),
        [("image-differs", 4), ("secure-boot-off", 7), ("section-differs", 11)]
    );
    assert!(verdict.differences[2].what.contains(".cmdline"), "{}", verdict.differences[2]);

    // A log that hides it does not lead to what the TPM says.
    let mut hidden = good.clone();
    hidden.evidence.event_log = Bytes(write::log(&started()));
    let verdict = hidden.judge(&tpm.trust(), &expected()).unwrap();
    assert_eq!(differences(&verdict), [("log-differs", 4), ("log-differs", 7), ("log-differs", 11)]);
    for change in [
        |events: &mut Vec<Event>| drop(events.pop()),
        |events: &mut Vec<Event>| events.push(event(4, APPLICATION, b"more")),
        |events: &mut Vec<Event>| events.swap(0, 1),
    ] {
        let mut shown = events.clone();
        change(&mut shown);
        hidden.evidence.event_log = Bytes(write::log(&shown));
        let found = differences(&hidden.judge(&tpm.trust(), &expected()).unwrap());
        // Two events of different PCRs may change places; what is missing or more is told.
        assert_eq!(found.contains(&("log-differs", 4)), shown.len() != events.len(), "{found:?}");
    }
    hidden.evidence.event_log = Bytes(write::header(&[(4, 20)]));
    assert_eq!(refusal(&hidden, &tpm.trust()), "log-wrong-bank");
    hidden.evidence.event_log = Bytes(Vec::new());
    assert_eq!(refusal(&hidden, &tpm.trust()), "log-malformed");
}

#[tokio::test]
async fn a_certificate_by_the_tpms_maker_is_enough_and_others_are_not() {
    let Some(tpm) = swtpm() else { return };
    let mut record = record(&tpm, &started()).await;
    let Some((maker, certificate)) = certificates(&record.keys.endorsement_key.0) else { return };
    // The certificates are younger than the record.
    record.fetched_unix_s += 3600;
    record.keys.endorsement_certificate = Some(Bytes(certificate));
    let trust = |makers| Trust { makers, ..Trust::default() };
    let verdict = record.judge(&trust(vec![maker.clone()]), &expected()).unwrap();
    assert!(matches!(verdict.believed, Believed::Certified(_)), "{:?}", verdict.believed);
    assert_eq!(refusal(&record, &trust(vec![])), "tpm-unknown");
    let mut late = record.clone();
    late.fetched_unix_s += 200 * 86_400;
    let error = late.judge(&trust(vec![maker.clone()]), &expected()).unwrap_err();
    assert!(matches!(&error, Refusal::Tpm { reason, .. } if reason.contains("not valid now")), "{error}");
    // Another maker of the same name.
    let Some((impostor, _)) = certificates(&record.keys.endorsement_key.0) else { return };
    assert_eq!(refusal(&record, &trust(vec![impostor])), "tpm-unknown");
    // A maker's certificate for another key.
    let Some(other) = swtpm() else { return };
    record.keys.endorsement_key = Bytes(other.tpm().keys().unwrap().endorsement);
    let error = record.judge(&trust(vec![maker]), &expected()).unwrap_err();
    assert!(matches!(&error, Refusal::Tpm { reason, .. } if reason.contains("another key")), "{error}");
}

/// A maker, and its certificate for a key, by openssl.
fn certificates(area: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let key = EndorsementKey::parse(area).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    if Command::new("openssl").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must have openssl");
        let _ = writeln!(std::io::stderr(), "SKIPPED: no program openssl to make certificates");
        return None;
    }
    let modulus = hex::encode(key.modulus());
    let spki = format!(
        "asn1=SEQUENCE:key\n[key]\na=SEQUENCE:rsa\nb=BITWRAP,SEQUENCE:numbers\n[rsa]\na=OID:rsaEncryption\nb=NULL\n\
         [numbers]\nn=INTEGER:0x{modulus}\ne=INTEGER:{}\n",
        key.exponent()
    );
    std::fs::write(dir.path().join("spki.cnf"), spki).unwrap();
    openssl(&["asn1parse", "-genconf", "spki.cnf", "-noout", "-out", "key.der"]);
    openssl(&["pkey", "-pubin", "-inform", "DER", "-in", "key.der", "-out", "key.pem"]);
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=Maker",
        "-days",
        "300",
    ]);
    openssl(&[
        "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "x.key", "-out", "x.csr", "-subj",
        "/CN=TPM",
    ]);
    openssl(&[
        "x509",
        "-req",
        "-in",
        "x.csr",
        "-force_pubkey",
        "key.pem",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-out",
        "ek.der",
        "-outform",
        "DER",
        "-days",
        "100",
        "-set_serial",
        "1",
    ]);
    openssl(&["x509", "-in", "ca.pem", "-outform", "DER", "-out", "ca.der"]);
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    Some((read("ca.der"), read("ek.der")))
}

#[test]
fn the_policy_is_the_tpms_own() {
    let Some(swtpm) = swtpm() else { return };
    swtpm.measure(&started());
    let mut tpm = swtpm.tpm();
    let pcrs = tpm.pcrs(&SEALED_TO).unwrap();
    let sealed = tpm.seal(b"secret", &pcrs).unwrap();
    assert_eq!(tpm.unseal(&sealed, &SEALED_TO).unwrap(), b"secret");
    assert_eq!(tpm.unseal(&sealed, &[7, 11]), Err(TpmError::OtherStart));
    let mut other = pcrs.clone();
    other.insert(11, [1; 32]);
    assert_ne!(policy(&pcrs), policy(&other));
    let sealed = tpm.seal(b"secret", &other).unwrap();
    assert_eq!(tpm.unseal(&sealed, &SEALED_TO), Err(TpmError::OtherStart));
    for end in [0, 1, 2, sealed.len() - 1] {
        assert_eq!(tpm.unseal(&sealed[..end], &SEALED_TO), Err(TpmError::Damaged), "{end}");
    }
}

#[test]
fn the_hosts_secret_is_for_this_start_and_for_those_that_were_added() {
    let Some(swtpm) = swtpm() else { return };
    swtpm.measure(&started());
    let mut tpm = swtpm.tpm();
    let secret = Secret::new(&mut tpm).unwrap();
    let sealed = Sealed::new(&mut tpm, &secret).unwrap();
    let sealed = Sealed::parse(&sealed.to_bytes()).unwrap();
    assert_eq!(sealed.open(&mut tpm).unwrap(), secret);

    // What an upgrade does before the restart: the PCRs of the next release, from its manifest.
    let next = sha256(b"what the next release measures beside");
    let mut pcrs = tpm.pcrs(&SEALED_TO).unwrap();
    let value = pcrs.get_mut(&11).unwrap();
    *value = measured_boot::extend(value, &next);
    let renewed = sealed.clone().with(&mut tpm, &secret, pcrs).unwrap();
    assert_eq!(renewed.open(&mut tpm).unwrap(), secret, "the present release goes on");
    swtpm.extend(11, &next);
    assert_eq!(renewed.open(&mut tpm).unwrap(), secret, "so does the next one");
    let error = sealed.open(&mut tpm).unwrap_err();
    assert_eq!(error.code(), "sealed-to-other-start");
    assert!(error.to_string().contains("PCR 11 (the kernel image) differ"), "{error}");

    // Once it runs, the old release loses the secret.
    let settled = renewed.only(&mut tpm).unwrap();
    assert_eq!(settled.open(&mut tpm).unwrap(), secret);
    swtpm.extend(7, &next);
    assert_eq!(settled.open(&mut tpm).unwrap_err().code(), "sealed-to-other-start");
    assert_eq!(settled.only(&mut tpm).unwrap_err().code(), "sealed-to-other-start");
}

#[test]
fn a_cleared_tpm_and_another_one_say_so() {
    let (Some(one), Some(other)) = (swtpm(), swtpm()) else { return };
    let secret = Secret::new(&mut one.tpm()).unwrap();
    let sealed = Sealed::new(&mut one.tpm(), &secret).unwrap();
    assert_eq!(sealed.open(&mut other.tpm()).unwrap_err(), SealError::OtherTpm);
    let clear = |context: &mut Context| {
        context.execute_with_nullauth_session(|context| context.clear(AuthHandle::Lockout))
    };
    one.context(clear).unwrap();
    assert_eq!(sealed.open(&mut one.tpm()).unwrap_err().code(), "sealed-by-other-tpm");
    for bad in [&b""[..], b"{}", br#"{"version":1,"entries":[]}"#, br#"{"version":2,"entries":[]}"#] {
        assert_eq!(Sealed::parse(bad).unwrap_err().code(), "sealed-record-damaged");
    }
}

#[test]
fn what_the_secret_protects_is_for_its_purpose_only() {
    let Some(swtpm) = swtpm() else { return };
    let (secret, other) = (Secret::new(&mut swtpm.tpm()).unwrap(), Secret::new(&mut swtpm.tpm()).unwrap());
    let protected = secret.protect("identity", b"node key").unwrap();
    assert!(!protected.windows(8).any(|window| window == b"node key"));
    assert_eq!(secret.open("identity", &protected).unwrap(), b"node key");
    assert!(secret.open("state", &protected).is_err());
    assert!(other.open("identity", &protected).is_err());
    for at in 0..protected.len() {
        let mut changed = protected.clone();
        changed[at] ^= 1;
        assert_eq!(secret.open("identity", &changed).unwrap_err().code(), "protected-changed");
    }
    assert!(!format!("{secret:?}").contains(&hex::encode(secret.derive("identity"))));
}

#[test]
fn what_was_seen_cannot_be_set_back_below_the_counter() {
    let Some(swtpm) = swtpm() else { return };
    let base = swtpm.tpm().counter().unwrap();
    let mut anchor = Anchor::new(swtpm.boxed(), base);
    let seen = |security_epoch| Seen { security_epoch, ..Seen::default() };
    anchor.check(&seen(0)).unwrap();
    anchor.raise(&seen(3)).unwrap();
    anchor.raise(&seen(3)).unwrap();
    assert_eq!(swtpm.tpm().counter().unwrap(), base + 3);
    anchor.check(&seen(3)).unwrap();
    anchor.check(&seen(4)).unwrap();
    assert_eq!(anchor.check(&seen(2)), Err(AnchorError::RolledBack { found: 2, counted: 3 }));
    assert_eq!(anchor.raise(&seen(1 << 40)).unwrap_err().code(), "epoch-leap");
    // A counter that was deleted with everything else starts where the last one was, not at the beginning.
    let clear = |context: &mut Context| {
        context.execute_with_nullauth_session(|context| context.clear(AuthHandle::Lockout))
    };
    swtpm.context(clear).unwrap();
    assert!(swtpm.tpm().counter().unwrap() > base + 3);
    assert_eq!(anchor.check(&seen(3)).unwrap_err().code(), "seen-rolled-back");
}

/// A configuration partition with this key, as the installer writes it.
fn partition(directory: &tempfile::TempDir, identity: &[u8]) -> std::path::PathBuf {
    let path = directory.path().join("config");
    let mut area = vec![0; record::AREA];
    let (at, bytes) = record::write(&area, Kind::Identity, identity).unwrap();
    area[at..at + bytes.len()].copy_from_slice(&bytes);
    std::fs::write(&path, area).unwrap();
    path
}

#[test]
fn the_nodes_key_is_encrypted_at_the_first_start_and_opened_at_the_next() {
    let Some(swtpm) = swtpm() else { return };
    swtpm.measure(&started());
    let directory = tempfile::tempdir().unwrap();
    let identity = serde_json::to_vec(&installer::config::Identity::new([0xab; 32])).unwrap();
    let path = partition(&directory, &identity);
    let start = |tpm| {
        let mut records = Records::open(&path)?;
        let protection = records.protection(tpm, true)?;
        Ok::<_, RecordsError>((protection.status().sealed, records.identity(&protection)?.unwrap()))
    };
    let code = |result: Result<_, RecordsError>| result.map(|_: (bool, Vec<u8>)| ()).unwrap_err().code();
    assert_eq!(start(Ok(swtpm.boxed())).unwrap(), (true, identity.clone()));
    let secret = hex::encode([0xab; 16]);
    let disk = std::fs::read(&path).unwrap();
    assert!(!disk.windows(32).any(|window| window == secret.as_bytes()), "the key is still on the disk");
    assert_eq!(start(Ok(swtpm.boxed())).unwrap(), (true, identity.clone()));
    assert_eq!(std::fs::read(&path).unwrap(), disk, "nothing is written at later starts");

    // Never without it any more.
    assert_eq!(code(start(Err(TpmError::Absent))), "tpm-missing");
    let other = super::tests::swtpm().unwrap();
    other.measure(&started());
    assert_eq!(code(start(Ok(other.boxed()))), "sealed-by-other-tpm");

    // A release that was announced starts too, and afterwards only that one.
    let golden = release::Envelope::from_bytes(GOLDEN).unwrap().manifest().host.clone().unwrap();
    let mut records = Records::open(&path).unwrap();
    assert_eq!(records.allow(&mut swtpm.tpm(), &golden).unwrap_err().code(), "manifest-without-measurements");
    let mut next = golden;
    let section =
        |name: &str| release::MeasuredSection { name: name.into(), sha256: release::Digest([9; 32]) };
    next.measured = Some(release::Measured {
        kernel_authenticode: release::Digest([1; 32]),
        sections: vec![section(".linux")],
        certificates: Vec::new(),
    });
    records.allow(&mut swtpm.tpm(), &next).unwrap();
    assert_eq!(start(Ok(swtpm.boxed())).unwrap().1, identity, "the present release goes on");
    let later = restarted(swtpm);
    let first = started().into_iter().filter(|event| event.pcr != 11).collect::<Vec<_>>();
    later.measure(&first);
    later.extend(11, &sha256(b".linux\0"));
    assert_eq!(code(start(Ok(later.boxed()))), "sealed-to-other-start", "its name alone is not its content");
    later.extend(11, &[9; 32]);
    assert_eq!(start(Ok(later.boxed())).unwrap(), (true, identity.clone()));
    Records::open(&path).unwrap().settle(&mut later.tpm()).unwrap();
    let back = restarted(later);
    back.measure(&started());
    assert_eq!(code(start(Ok(back.boxed()))), "sealed-to-other-start");

    // Without the record of the secret nothing is made anew.
    let mut area = std::fs::read(&path).unwrap();
    area[record::AREA * 3 / 4..].fill(0);
    std::fs::write(&path, area).unwrap();
    assert_eq!(code(start(Ok(back.boxed()))), "sealed-record-removed");
    assert_eq!(code(start(Err(TpmError::Absent))), "sealed-record-removed");
}

#[test]
fn a_node_without_a_tpm_says_that_nothing_is_encrypted_or_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let identity = serde_json::to_vec(&installer::config::Identity::new([1; 32])).unwrap();
    let path = partition(&directory, &identity);
    let mut records = Records::open(&path).unwrap();
    assert_eq!(records.protection(Err(TpmError::Absent), true).unwrap_err().code(), "tpm-missing");
    let protection = records.protection(Err(TpmError::Absent), false).unwrap();
    assert_eq!(records.identity(&protection).unwrap(), Some(identity));
    let status = protection.status();
    assert!(!status.sealed && status.text.contains("NOT encrypted: this machine has no TPM"), "{status:?}");
}

const GOLDEN: &[u8] = include_bytes!("../../../release/tests/golden/manifest.json");

#[test]
fn expectations_come_from_the_manifest() {
    let mut host = release::Envelope::from_bytes(GOLDEN).unwrap().manifest().host.clone().unwrap();
    assert_eq!(super::attest::expected(&host), None);
    let Expected { images, sections, certificates } = expected();
    host.uki_authenticode = release::Digest(images[0]);
    host.measured = Some(release::Measured {
        kernel_authenticode: release::Digest(images[1]),
        sections: sections
            .iter()
            .map(|section| release::MeasuredSection {
                name: section.name.clone(),
                sha256: release::Digest(section.sha256),
            })
            .collect(),
        certificates: certificates.into_iter().map(release::Digest).collect(),
    });
    assert_eq!(super::attest::expected(&host), Some(expected()));
}

//! A whole node in this process, spoken to over its socket.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candid::{CandidType, Encode, Principal};
use ciborium::Value as Cbor;
use ic_certification::{HashTree, LookupResult, empty, fork, label, leaf, pruned};
use serde_bytes::ByteBuf;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::authentication::separated;
use crate::config::Config;
use crate::node::{EndError, Node};
use crate::signature::PublicKey;
use crate::signature::testing::Signer;
use crate::testing::{
    self, FIVE_MINUTES, Fields, NOW, blob, delegation, invocation, principal, signed, state_paths,
};

/// Counts in its memory, certifies the count, shows its certificate, and can trap.
const COUNTER: &str = r#"(module
    (import "ic0" "msg_reply" (func $reply))
    (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
    (import "ic0" "certified_data_set" (func $certify (param i32 i32)))
    (import "ic0" "data_certificate_size" (func $certificate_size (result i32)))
    (import "ic0" "data_certificate_copy" (func $certificate (param i32 i32 i32)))
    (memory (export "memory") 1)
    (func $answer (call $append (i32.const 0) (i32.const 4)) (call $reply))
    (func (export "canister_update inc")
        (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
        (call $certify (i32.const 0) (i32.const 4))
        (call $answer))
    (func (export "canister_query get") (call $answer))
    (func (export "canister_query certificate")
        (call $certificate (i32.const 8) (i32.const 0) (call $certificate_size))
        (call $append (i32.const 8) (call $certificate_size))
        (call $reply))
    (func (export "canister_update trap") (i32.store (i32.const 0) (i32.const 99)) unreachable)
    (@custom "icp:public note" "for everyone")
    (@custom "icp:private secret" "for controllers"))"#;

struct Running {
    address: SocketAddr,
    time: Arc<AtomicU64>,
    stop: oneshot::Sender<()>,
    end: JoinHandle<Result<(), EndError>>,
    subnet: Principal,
    root_key: Vec<u8>,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn cbor(&self) -> Cbor {
        assert_eq!(self.status, 200, "{}", self.text());
        ciborium::from_reader(self.body.as_slice()).unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into()
    }
}

async fn start(directory: &Path, more: &str) -> Running {
    let config = format!(
        "listen = \"127.0.0.1:0\"\ntls = false\nsecret_file = \"{0}/secret\"\ncreate_secret = true\n{more}\n\
         [heap]\nkind = \"file\"\npath = \"{0}/heap\"\nsize = 16777216",
        directory.display()
    );
    let time = Arc::new(AtomicU64::new(NOW));
    let clock = time.clone();
    let config = Config::parse(&config).unwrap();
    let node =
        Node::start(config, Arc::new(move || clock.fetch_add(1_000, Ordering::Relaxed))).await.unwrap();
    let address = node.address().unwrap();
    let (stop, stopped) = oneshot::channel();
    let end = tokio::spawn(node.serve(async {
        let _ = stopped.await;
    }));
    let mut running =
        Running { address, time, stop, end, subnet: Principal::anonymous(), root_key: Vec::new() };
    let status = running.get("/api/v2/status").await.cbor();
    assert_eq!(field(&status, "replica_health_status"), &Cbor::from("healthy"));
    running.root_key = field(&status, "root_key").as_bytes().unwrap().clone();
    running.subnet = Principal::self_authenticating(&running.root_key);
    running
}

impl Running {
    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.end.await.unwrap().unwrap();
    }

    async fn send(&self, head: String, body: Vec<u8>) -> Answer {
        let address = self.address;
        tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            let length = body.len();
            write!(stream, "{head}Host: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")
                .unwrap();
            // A server that refuses early closes before it has read everything.
            let _ = stream.write_all(&body);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
            let head = String::from_utf8(answer[..end].to_vec()).unwrap();
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            Answer { status, head: head.to_lowercase(), body: answer[end + 4..].to_vec() }
        })
        .await
        .unwrap()
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\n"), vec![]).await
    }

    async fn post(&self, path: &str, body: Vec<u8>) -> Answer {
        self.send(format!("POST {path} HTTP/1.1\r\nContent-Type: application/cbor\r\n"), body).await
    }

    /// An update call and the certified outcome.
    async fn call(&self, signer: &Signer, effective: Principal, content: Fields) -> Result<Vec<u8>, String> {
        let request_id = testing::hash(&content);
        let body = signed(content, signer, signer, vec![]);
        let answer = self.post(&format!("/api/v4/canister/{effective}/call"), body).await.cbor();
        if field(&answer, "status") != &Cbor::from("replied") {
            return Err(field(&answer, "error_code").as_text().unwrap().into());
        }
        let tree = self.verified(field(&answer, "certificate").as_bytes().unwrap());
        outcome(&tree, &request_id).unwrap()
    }

    async fn query(&self, canister: Principal, method: &str) -> Vec<u8> {
        let content = invocation("query", Principal::anonymous(), canister, method);
        let request_id = testing::hash(&content);
        let path = format!("/api/v3/canister/{canister}/query");
        let answer = self.post(&path, testing::anonymous(content)).await.cbor();
        let reply = field(field(&answer, "reply"), "arg").as_bytes().unwrap().clone();
        // The signature by a key that the subnet's certificate vouches for.
        let signature = &field(&answer, "signatures").as_array().unwrap()[0];
        let node = field(signature, "identity").as_bytes().unwrap();
        let timestamp = u64::try_from(field(signature, "timestamp").as_integer().unwrap()).unwrap();
        let hash = crate::request_id::hash_of_map(&[
            ("status", crate::request_id::Value::Text("replied")),
            ("reply", crate::request_id::Value::Map(vec![("arg", crate::request_id::Value::Blob(&reply))])),
            ("timestamp", crate::request_id::Value::Nat(timestamp)),
            ("request_id", crate::request_id::Value::Blob(&request_id)),
        ]);
        let tree = self.read(None, canister, &[&[b"subnet"]]).await.unwrap();
        let key = found(&tree, &[b"subnet", self.subnet.as_slice(), b"node", node, b"public_key"]);
        let signature = field(signature, "signature").as_bytes().unwrap();
        PublicKey::parse(&key).unwrap().verify(&separated("ic-response", &hash), signature).unwrap();
        reply
    }

    async fn read(
        &self,
        signer: Option<&Signer>,
        canister: Principal,
        paths: &[&[&[u8]]],
    ) -> Result<HashTree, u16> {
        let body = match signer {
            Some(signer) => signed(state_paths(principal(signer), paths), signer, signer, vec![]),
            None => testing::anonymous(state_paths(Principal::anonymous(), paths)),
        };
        let answer = self.post(&format!("/api/v3/canister/{canister}/read_state"), body).await;
        if answer.status != 200 {
            return Err(answer.status);
        }
        Ok(self.verified(field(&answer.cbor(), "certificate").as_bytes().unwrap()))
    }

    /// The tree of a certificate, after its signature and time were checked.
    fn verified(&self, certificate: &[u8]) -> HashTree {
        let certificate: Cbor = ciborium::from_reader(certificate).unwrap();
        let tree = tree(field(&certificate, "tree"));
        let signature = field(&certificate, "signature").as_bytes().unwrap();
        let message = separated("ic-state-root", &tree.digest());
        ic_verify_bls_signature::verify_bls_signature(signature, &message, &self.root_key[37..]).unwrap();
        let time = leb128(&found(&tree, &[b"time"]));
        let now = self.time.load(Ordering::Relaxed);
        assert!(time <= now && now - time < 1_000_000_000, "{time} at {now}");
        tree
    }

    /// A canister with the counter on it.
    async fn deploy(&self, signer: &Signer) -> Principal {
        #[derive(CandidType)]
        struct Create {}
        #[derive(CandidType, serde::Deserialize)]
        struct Created {
            canister_id: Principal,
        }
        let management = Principal::management_canister();
        let method = "provisional_create_canister_with_cycles";
        let created =
            self.call(signer, management, manage(signer, method, Encode!(&Create {}).unwrap())).await;
        let Created { canister_id } = candid::decode_one(&created.unwrap()).unwrap();
        self.call(signer, canister_id, install(signer, canister_id)).await.unwrap();
        canister_id
    }
}

fn manage(signer: &Signer, method: &str, arg: Vec<u8>) -> Fields {
    let mut content = invocation("call", principal(signer), Principal::management_canister(), method);
    content.retain(|(name, _)| *name != "arg");
    content.push(("arg", blob(arg)));
    content
}

fn install(signer: &Signer, canister_id: Principal) -> Fields {
    #[derive(CandidType)]
    #[expect(non_camel_case_types, reason = "names of the management canister")]
    enum Mode {
        install,
    }
    #[derive(CandidType)]
    struct Install {
        mode: Mode,
        canister_id: Principal,
        wasm_module: ByteBuf,
        arg: ByteBuf,
    }
    let wasm_module = ByteBuf::from(wat::parse_str(COUNTER).unwrap());
    let install = Install { mode: Mode::install, canister_id, wasm_module, arg: ByteBuf::new() };
    manage(signer, "install_code", Encode!(&install).unwrap())
}

/// A call of the counter; different numbers make different requests.
fn counting(signer: &Signer, canister: Principal, method: &str, number: u8) -> Fields {
    let mut content = invocation("call", principal(signer), canister, method);
    content.retain(|(name, _)| *name != "nonce");
    content.push(("nonce", blob([number])));
    content
}

fn field<'a>(map: &'a Cbor, name: &str) -> &'a Cbor {
    let map = match map {
        Cbor::Tag(55799, map) => map,
        map => map,
    };
    let fields = map.as_map().unwrap();
    let found = fields.iter().find(|(key, _)| key.as_text() == Some(name));
    &found.unwrap_or_else(|| panic!("no {name} in {fields:?}")).1
}

fn tree(cbor: &Cbor) -> HashTree {
    let parts = cbor.as_array().unwrap();
    let bytes = |at: usize| parts[at].as_bytes().unwrap().clone();
    match u64::try_from(parts[0].as_integer().unwrap()).unwrap() {
        0 => empty(),
        1 => fork(tree(&parts[1]), tree(&parts[2])),
        2 => label(bytes(1), tree(&parts[2])),
        3 => leaf(bytes(1)),
        4 => pruned(<[u8; 32]>::try_from(bytes(1)).unwrap()),
        other => panic!("node of kind {other}"),
    }
}

fn found(tree: &HashTree, path: &[&[u8]]) -> Vec<u8> {
    match tree.lookup_path(path) {
        LookupResult::Found(value) => value.to_vec(),
        other => panic!("{path:?}: {other:?}"),
    }
}

fn leb128(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
}

/// How a request ended by its certificate; none while it has not.
fn outcome(tree: &HashTree, request_id: &[u8; 32]) -> Option<Result<Vec<u8>, String>> {
    let at = |name: &'static [u8]| found(tree, &[b"request_status", request_id, name]);
    match at(b"status").as_slice() {
        b"replied" => Some(Ok(at(b"reply"))),
        b"rejected" => Some(Err(String::from_utf8(at(b"error_code")).unwrap())),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_certified_queries_are_signed_and_all_of_it_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path(), "").await;
    let owner = Signer::ed25519(1);
    let counter = node.deploy(&owner).await;
    for number in 1..=3 {
        let count = node.call(&owner, counter, counting(&owner, counter, "inc", number)).await.unwrap();
        assert_eq!(count, u32::from(number).to_le_bytes());
    }
    // What a trapping message wrote is gone.
    let trapped = node.call(&owner, counter, counting(&owner, counter, "trap", 1)).await;
    assert_eq!(trapped, Err("IC0502".into()));
    assert_eq!(node.query(counter, "get").await, 3u32.to_le_bytes());

    // The canister's own certificate proves what it had certified.
    let certificate = node.query(counter, "certificate").await;
    let certified =
        found(&node.verified(&certificate), &[b"canister", counter.as_slice(), b"certified_data"]);
    assert_eq!(certified, 3u32.to_le_bytes());

    let (subnet, time) = (node.subnet, node.time.load(Ordering::Relaxed));
    node.stop().await;
    let node = start(directory.path(), "").await;
    node.time.store(time, Ordering::Relaxed);
    assert_eq!(node.subnet, subnet);
    assert_eq!(node.query(counter, "get").await, 3u32.to_le_bytes());
    // The same request again, after the restart: the old answer, and nothing is counted.
    let count = node.call(&owner, counter, counting(&owner, counter, "inc", 2)).await.unwrap();
    assert_eq!(count, 2u32.to_le_bytes());
    assert_eq!(node.query(counter, "get").await, 3u32.to_le_bytes());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_authentic_or_not_acceptable_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path(), "").await;
    let (owner, other) = (Signer::ed25519(1), Signer::ed25519(2));
    let counter = node.deploy(&owner).await;
    let url = format!("/api/v4/canister/{counter}/call");
    let content = || counting(&owner, counter, "inc", 1);

    let mut flipped = signed(content(), &owner, &owner, vec![]);
    *flipped.last_mut().unwrap() ^= 1;
    let answer = node.post(&url, flipped).await;
    assert_eq!((answer.status, answer.text().contains("does not verify")), (400, true), "{}", answer.text());
    assert_eq!(node.post(&url, signed(content(), &owner, &other, vec![])).await.status, 400);
    let chain =
        vec![delegation(&owner, &other, NOW + FIVE_MINUTES, vec![("targets", Cbor::Array(vec![blob([])]))])];
    let answer = node.post(&url, signed(content(), &owner, &other, chain)).await;
    assert_eq!(
        (answer.status, answer.text().contains("not among the targets")),
        (400, true),
        "{}",
        answer.text()
    );
    let elsewhere = format!("/api/v4/canister/{}/call", execution::canister_id(77));
    let answer = node.post(&elsewhere, signed(content(), &owner, &owner, vec![])).await;
    assert_eq!(
        (answer.status, answer.text().contains("effective canister id")),
        (400, true),
        "{}",
        answer.text()
    );
    assert_eq!(node.post("/api/v4/canister/nonsense/call", vec![]).await.status, 400);
    assert_eq!(node.post(&url, vec![0xff; 100]).await.status, 400);
    assert_eq!(node.post(&url, vec![0; crate::envelope::MAX_BODY + 1]).await.status, 413);
    let plain = format!("POST {url} HTTP/1.1\r\nContent-Type: text/plain\r\n");
    assert_eq!(node.send(plain, signed(content(), &owner, &owner, vec![])).await.status, 415);

    // Refused before it becomes part of the state.
    let missing = execution::canister_id(77);
    let refused = node.call(&owner, missing, counting(&owner, missing, "inc", 1)).await;
    assert_eq!(refused, Err("IC0301".into()));
    assert!(node.call(&other, counter, install(&other, counter)).await.is_err());

    node.time.fetch_add(2 * FIVE_MINUTES, Ordering::Relaxed);
    let answer = node.post(&url, signed(content(), &owner, &owner, vec![])).await;
    assert_eq!(
        (answer.status, answer.text().contains("Invalid request expiry: ")),
        (400, true),
        "{}",
        answer.text()
    );
    assert_eq!(node.query(counter, "get").await, 0u32.to_le_bytes());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asynchronous_calls_are_polled_by_their_sender_alone() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path(), "").await;
    let (owner, other) = (Signer::ed25519(1), Signer::ed25519(2));
    let counter = node.deploy(&owner).await;
    let content = counting(&owner, counter, "inc", 1);
    let request_id = testing::hash(&content);
    let path: &[&[u8]] = &[b"request_status", &request_id];

    // Nothing is known yet, and the certificate says so to anyone.
    let before = node.read(Some(&other), counter, &[path]).await.unwrap();
    assert_eq!(before.lookup_path([b"request_status", &request_id[..], b"status"]), LookupResult::Absent);

    let answer =
        node.post(&format!("/api/v2/canister/{counter}/call"), signed(content, &owner, &owner, vec![])).await;
    assert_eq!((answer.status, answer.body.len()), (202, 0));
    let mut polls = 0;
    let reply = loop {
        let tree = node.read(Some(&owner), counter, &[path]).await.unwrap();
        if let Some(outcome) = outcome(&tree, &request_id) {
            break outcome;
        }
        polls += 1;
        assert!(polls < 500);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(reply, Ok(1u32.to_le_bytes().to_vec()));
    assert_eq!(node.read(Some(&other), counter, &[path]).await.err(), Some(403));
    assert_eq!(node.read(None, counter, &[path]).await.err(), Some(403));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_tree_shows_canister_and_subnet() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path(), "").await;
    let owner = Signer::ed25519(1);
    let counter = node.deploy(&owner).await;
    let id = counter.as_slice();
    let hash: &[&[u8]] = &[b"canister", id, b"module_hash"];
    let metadata = |name: &'static [u8]| [&b"canister"[..], id, b"metadata", name];
    let (note, secret, none) = (&metadata(b"note")[..], &metadata(b"secret")[..], &metadata(b"nothing")[..]);
    let tree = node.read(None, counter, &[hash, note, none]).await.unwrap();
    let wasm = wat::parse_str(COUNTER).unwrap();
    assert_eq!(found(&tree, hash), ring::digest::digest(&ring::digest::SHA256, &wasm).as_ref());
    assert_eq!(found(&tree, note), b"for everyone");
    assert_eq!(tree.lookup_path(none), LookupResult::Absent);
    assert_eq!(node.read(None, counter, &[secret]).await.err(), Some(403));
    let tree = node.read(Some(&owner), counter, &[secret]).await.unwrap();
    assert_eq!(found(&tree, secret), b"for controllers");

    let subnet = node.subnet.as_slice();
    let tree = node.read(None, counter, &[&[b"subnet"]]).await.unwrap();
    assert_eq!(found(&tree, &[b"subnet", subnet, b"public_key"]), node.root_key);
    let ranges: Cbor =
        ciborium::from_reader(found(&tree, &[b"subnet", subnet, b"canister_ranges"]).as_slice()).unwrap();
    let Cbor::Tag(55799, ranges) = ranges else { panic!("{ranges:?}") };
    let range = ranges.as_array().unwrap()[0].as_array().unwrap();
    assert!(range[0].as_bytes().unwrap().as_slice() <= id && id <= range[1].as_bytes().unwrap().as_slice());

    let read = |subnet: Principal| {
        let body = testing::anonymous(state_paths(
            Principal::anonymous(),
            &[&[b"canister_ranges", subnet.as_slice()]],
        ));
        node.post(format!("/api/v3/subnet/{subnet}/read_state").leak(), body)
    };
    let answer = read(node.subnet).await.cbor();
    let tree = node.verified(field(&answer, "certificate").as_bytes().unwrap());
    found(&tree, &[b"canister_ranges", subnet, range[0].as_bytes().unwrap()]);
    assert_eq!(read(counter).await.status, 404);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_operators_and_strangers_get_their_answers() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path(), "").await;
    let preflight = node.send("OPTIONS /api/v4/canister/aaaaa-aa/call HTTP/1.1\r\n".into(), vec![]).await;
    assert_eq!(preflight.status, 204);
    assert!(
        preflight.head.contains("access-control-allow-headers: ") && preflight.head.contains("content-type")
    );
    let about = node.get("/").await;
    assert!(about.head.contains("access-control-allow-origin: *"));
    assert!(about.text().contains(&node.subnet.to_text()));
    assert_eq!(node.get("/nothing").await.status, 404);
    assert_eq!(node.get("/api/v4/canister/aaaaa-aa/call").await.status, 405);
    assert_eq!(node.get(&format!("/evidence?nonce={}", "a".repeat(63))).await.status, 400);
    assert_eq!(node.get(&format!("/evidence?nonce={}", "a".repeat(64))).await.status, 404);
    let metrics = node.get("/_/metrics").await.text();
    assert!(metrics.contains("\nreplica_refused_total 4\n"), "{metrics}");
    assert!(metrics.contains("\nreplica_heap_medium{kind=\"file\"} 1\n"), "{metrics}");
    node.stop().await;
}

//! Whether a replica carries out what canisters' users send: a call that is executed, committed and certified, and changes nothing.

use crate::http::{get_once, send_once};
use ciborium::Value;
use hyper::Method;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For an emulated guest on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer that is looked at, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// How long the call may be executed: what the interface allows is five minutes.
const EXPIRY: Duration = Duration::from_secs(120);
/// A canister's call by its text form; the management canister's.
const PATH: &str = "/api/v3/canister/aaaaa-aa/call";
/// Anybody may call it, and what lacks its argument makes no canister: it is rejected when it is executed.
const METHOD: &str = "provisional_create_canister_with_cycles";
/// Principal of who does not sign (Interface Specification, "Principals").
const ANONYMOUS: [u8; 1] = [4];

/// Whether the replica behind the gateway on this port says that it is well and answers a call.
pub(super) async fn answers(port: u16) -> bool {
    let connect = || TcpStream::connect(("127.0.0.1", port));
    let ask = async {
        get_once(connect().await.ok()?, "127.0.0.1", "/api/v2/status", MAX_ANSWER).await.ok()?;
        let now = Duration::from_secs(crate::attest::unix_time());
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).ok()?;
        let body = request(u64::try_from((now + EXPIRY).as_nanos()).ok()?, nonce)?;
        let stream = connect().await.ok()?;
        let kind = "application/cbor";
        send_once(stream, "127.0.0.1", Method::POST, PATH, kind, body, MAX_ANSWER).await.ok()
    };
    matches!(timeout(PATIENCE, ask).await, Ok(Some(answer)) if is_certified(&answer))
}

/// The envelope of the call (Interface Specification, "Request: Call").
fn request(expiry_ns: u64, nonce: [u8; 16]) -> Option<Vec<u8>> {
    let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
    let content = [
        ("request_type", "call".into()),
        ("sender", bytes(&ANONYMOUS)),
        ("canister_id", bytes(&[])),
        ("method_name", METHOD.into()),
        ("arg", bytes(&[])),
        ("ingress_expiry", expiry_ns.into()),
        ("nonce", bytes(&nonce)),
    ];
    let content = Value::Map(content.map(|(name, value)| (name.into(), value)).into());
    let mut body = Vec::new();
    ciborium::into_writer(&Value::Map(vec![("content".into(), content)]), &mut body).ok()?;
    Some(body)
}

/// Whether the call was executed and its end certified: not so one that is not taken, or not finished in time. The certificate
/// is the replica's word to its users; the host has no part in verifying it.
fn is_certified(answer: &[u8]) -> bool {
    let Ok(answer) = ciborium::from_reader::<Value, _>(answer) else { return false };
    let answer = match answer {
        Value::Tag(_, inner) => *inner,
        answer => answer,
    };
    let field = |name: &str| {
        let (_, value) = answer.as_map()?.iter().find(|(key, _)| key.as_text() == Some(name))?;
        Some(value)
    };
    field("status").and_then(Value::as_text) == Some("replied")
        && field("certificate").and_then(Value::as_bytes).is_some_and(|certificate| !certificate.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_not_carried_out_is_no_health() {
        let answer = |fields: Vec<(&str, Value)>| {
            let map = fields.into_iter().map(|(name, value)| (name.into(), value)).collect();
            let mut bytes = Vec::new();
            ciborium::into_writer(&Value::Tag(55799, Box::new(Value::Map(map))), &mut bytes).unwrap();
            is_certified(&bytes)
        };
        let certificate = |bytes: &[u8]| ("certificate", Value::Bytes(bytes.to_vec()));
        assert!(answer(vec![("status", "replied".into()), certificate(&[1])]));
        assert!(!answer(vec![("status", "replied".into()), certificate(&[])]));
        assert!(!answer(vec![("status", "replied".into())]));
        assert!(!answer(vec![("status", "non_replicated_rejection".into()), certificate(&[1])]));
        assert!(!answer(vec![certificate(&[1])]));
        for bytes in [&b""[..], b"\xff", b"{}", &[0x9f; 5000]] {
            assert!(!is_certified(bytes));
        }
    }
}

//! Update calls and queries.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use candid::Principal;
use execution::{QueryReply, Reject, effective_canister_id};
use serde::Serialize;
use serde_bytes::Bytes;
use tokio::time::timeout;

use super::error::Refusal;
use super::{App, cbor_response, checked, principal};
use crate::authentication::{self, Authenticated, Call, separated};
use crate::executor::Submitted;
use crate::metrics::Metrics;
use crate::request_id::{Value, hash_of_map};

/// Methods of the management canister that make a canister, so that there is no effective canister id yet.
const CREATE: [&str; 2] = ["create_canister", "provisional_create_canister_with_cycles"];
const LIST: &str = "list_canisters";

/// A synchronous call: waits for the answer.
pub(super) async fn call(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let id = principal(&id)?;
    let call = received(&app, request).await?;
    check_effective(id, call.content().canister, &call.content().method, &call.content().arg, &CREATE)?;
    answer(&app, call).await
}

/// A synchronous call to the subnet: makes a canister.
pub(super) async fn call_subnet(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    own_subnet(&app, &id)?;
    let call = received(&app, request).await?;
    check_for_subnet(call.content().canister, &call.content().method, &CREATE)?;
    answer(&app, call).await
}

/// An asynchronous call: answers as soon as it is durable.
pub(super) async fn call_async(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let id = principal(&id)?;
    let call = received(&app, request).await?;
    check_effective(id, call.content().canister, &call.content().method, &call.content().arg, &CREATE)?;
    Ok(match app.executor.call(call).await? {
        Submitted::Accepted(_) => StatusCode::ACCEPTED.into_response(),
        Submitted::Rejected(reject) => rejection(&reject),
    })
}

async fn received(app: &App, request: Request) -> Result<Authenticated<Call>, Refusal> {
    Metrics::count(&app.metrics.calls);
    checked(app, request, authentication::call).await
}

async fn answer(app: &App, call: Authenticated<Call>) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct Replied<'a> {
        status: &'static str,
        certificate: &'a Bytes,
    }
    let request_id = call.request_id();
    let finished = match app.executor.call(call).await? {
        Submitted::Accepted(finished) => finished,
        Submitted::Rejected(reject) => return Ok(rejection(&reject)),
    };
    match timeout(app.call_wait, finished).await {
        Ok(Ok(())) => {
            let certificate = app.certified.request_certificate(&request_id, (app.clock)());
            Ok(cbor_response(&Replied { status: "replied", certificate: Bytes::new(&certificate) }))
        }
        // Still executing, or the replica is stopping: the call is durable, the client polls for its answer.
        Err(_) | Ok(Err(_)) => Ok(StatusCode::ACCEPTED.into_response()),
    }
}

fn rejection(reject: &Reject) -> Response {
    cbor_response(&Rejected {
        status: "non_replicated_rejection",
        reject_code: reject.code.number(),
        reject_message: &reject.message,
        error_code: reject.error_code.to_string(),
        signatures: None,
    })
}

#[derive(Serialize)]
struct Rejected<'a> {
    status: &'static str,
    reject_code: u8,
    reject_message: &'a str,
    error_code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    signatures: Option<[Signature; 1]>,
}

#[derive(Serialize)]
struct Signature {
    timestamp: u64,
    #[serde(with = "serde_bytes")]
    signature: Vec<u8>,
    #[serde(with = "serde_bytes")]
    identity: Vec<u8>,
}

/// A query to a canister.
pub(super) async fn query(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    Metrics::count(&app.metrics.queries);
    let id = principal(&id)?;
    let query = checked(&app, request, authentication::query).await?;
    check_effective(id, query.content().canister, &query.content().method, &query.content().arg, &[LIST])?;
    asked(&app, query).await
}

/// A query to the subnet.
pub(super) async fn query_subnet(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    Metrics::count(&app.metrics.queries);
    own_subnet(&app, &id)?;
    let query = checked(&app, request, authentication::query).await?;
    check_for_subnet(query.content().canister, &query.content().method, &[LIST])?;
    asked(&app, query).await
}

async fn asked(app: &App, query: Authenticated<authentication::Query>) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct Replied<'a> {
        status: &'static str,
        reply: Reply<'a>,
        signatures: [Signature; 1],
    }
    #[derive(Serialize)]
    struct Reply<'a> {
        arg: &'a Bytes,
    }
    let request_id = query.request_id();
    let reply = app.executor.query(query).await?;
    Ok(match reply {
        QueryReply::Replied(arg) => {
            let status = "replied";
            let signatures = sign(
                app,
                &request_id,
                vec![
                    ("status", Value::Text(status)),
                    ("reply", Value::Map(vec![("arg", Value::Blob(&arg))])),
                ],
            );
            cbor_response(&Replied { status, reply: Reply { arg: Bytes::new(&arg) }, signatures })
        }
        QueryReply::Rejected(reject) => {
            let (status, error_code) = ("rejected", reject.error_code.to_string());
            let signatures = sign(
                app,
                &request_id,
                vec![
                    ("status", Value::Text(status)),
                    ("reject_code", Value::Nat(reject.code.number().into())),
                    ("reject_message", Value::Text(&reject.message)),
                    ("error_code", Value::Text(&error_code)),
                ],
            );
            cbor_response(&Rejected {
                status,
                reject_code: reject.code.number(),
                reject_message: &reject.message,
                error_code,
                signatures: Some(signatures),
            })
        }
    })
}

/// The node's signature on an answer: it says what was answered, to which request, and when.
fn sign<'a>(app: &App, request_id: &'a [u8; 32], mut fields: Vec<(&str, Value<'a>)>) -> [Signature; 1] {
    let timestamp = (app.clock)();
    fields.extend([("timestamp", Value::Nat(timestamp)), ("request_id", Value::Blob(request_id))]);
    let signature = app.node_key.sign(&separated("ic-response", &hash_of_map(&fields)));
    [Signature { timestamp, signature, identity: app.node_id.as_slice().to_vec() }]
}

/// The canister in the URL must be the one that the request is about: boundary nodes route by it.
fn check_effective(
    url: Principal,
    canister: Principal,
    method: &str,
    arg: &[u8],
    anywhere: &[&str],
) -> Result<(), Refusal> {
    let effective = if canister != Principal::management_canister() {
        Some(canister)
    } else if anywhere.contains(&method) {
        None
    } else {
        // Where there is none, the engine says why it does not take the call.
        effective_canister_id(method, arg)
    };
    match effective {
        Some(effective) if effective != url => Err(Refusal::EffectiveCanister { url, effective }),
        _ => Ok(()),
    }
}

fn check_for_subnet(canister: Principal, method: &str, allowed: &[&str]) -> Result<(), Refusal> {
    if canister == Principal::management_canister() && allowed.contains(&method) {
        Ok(())
    } else {
        Err(Refusal::NotForSubnet { canister, method: method.chars().take(100).collect() })
    }
}

/// The subnet in the URL must be the one that this node is in.
pub(super) fn own_subnet(app: &App, id: &str) -> Result<Principal, Refusal> {
    let id = principal(id)?;
    if id == app.subnet_id { Ok(id) } else { Err(Refusal::OtherSubnet(id, app.subnet_id)) }
}

//! The routes, and who may use them.

use super::bundle;
use super::keys::{Operators, ShownKey};
use super::orders::{Action, Holder, Order, OrderRefusal};
use super::serve::Interface;
use crate::status::metrics;
use crate::upgrade::{self, UpgradeError};
use axum::Extension;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Router, body::Bytes, routing::get, routing::post};
use serde::Deserialize;
use serde_json::json;

/// The key that the client of a connection proved to hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientKey(pub(super) Option<ShownKey>);

/// An operator whose key was judged, for this one request.
#[derive(Debug, Clone)]
struct Operator {
    name: String,
    key_sha256: [u8; 32],
}

/// Longest order, in bytes.
const MAX_ORDER: usize = 4096;

pub(super) fn router(interface: Interface) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/health", get(health))
        .route("/v1/metrics", get(figures))
        .route("/v1/logs", get(logs))
        .route("/v1/support", get(support))
        .route("/v1/challenge", get(challenge))
        .route("/v1/orders", post(order))
        .route("/v1/upgrade", post(upgrade))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_ORDER))
        .fallback(async || error(StatusCode::NOT_FOUND, "no-such-path", "there is nothing at this path"))
        .layer(from_fn_with_state(interface.clone(), only_operators))
        .with_state(interface)
}

fn error(status: StatusCode, code: &str, message: impl std::fmt::Display) -> Response {
    let body = json!({ "error": { "code": code, "message": message.to_string() } }).to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Judges each request anew, by the file as it is then: a key that is revoked does not outlive it in a connection.
async fn only_operators(State(interface): State<Interface>, mut request: Request, next: Next) -> Response {
    let key = request.extensions().get::<ClientKey>().and_then(|key| key.0);
    let operators = match Operators::of_node(&interface.node, interface.orders.installed()) {
        Ok(operators) => operators,
        Err(why) => {
            let path = interface.node.operators();
            tracing::error!(path = %path.display(), why, "the list of operators cannot be used");
            return error(
                StatusCode::FORBIDDEN,
                "operators-unusable",
                "the node's list of operators cannot be used",
            );
        }
    };
    match operators.judge(key.as_ref(), std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()) {
        Ok(name) => {
            tracing::info!(operator = name, method = %request.method(), path = request.uri().path(), "operator");
            let key_sha256 = key.map(|key| key.key_sha256).unwrap_or_default();
            request.extensions_mut().insert(Operator { name, key_sha256 });
            next.run(request).await
        }
        Err(refusal) => {
            tracing::warn!(code = refusal.code(), "an operator's request is refused: {refusal}");
            error(StatusCode::FORBIDDEN, refusal.code(), refusal)
        }
    }
}

async fn challenge(State(interface): State<Interface>, Extension(operator): Extension<Operator>) -> Response {
    match interface.orders.challenge(Holder::Key(operator.key_sha256)) {
        Ok(challenge) => axum::Json(challenge).into_response(),
        Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, "no-random-numbers", why),
    }
}

async fn order(
    State(interface): State<Interface>,
    Extension(operator): Extension<Operator>,
    body: Bytes,
) -> Response {
    let holder = Holder::Key(operator.key_sha256);
    let judged = Order::parse(&body).and_then(|order| interface.orders.judge(&order, holder));
    let action = match judged {
        Ok(action) => action,
        Err(refusal) => {
            tracing::warn!(operator = operator.name, code = refusal.code(), "an order is refused: {refusal}");
            return error(StatusCode::FORBIDDEN, refusal.code(), refusal);
        }
    };
    match interface.orders.carry_out(action, &operator.name).await {
        Ok(Some(statement)) => axum::Json(statement).into_response(),
        Ok(None) => axum::Json(json!({ "version": 1, "action": action })).into_response(),
        Err(OrderRefusal::NotPossible { why, .. }) if action == Action::Decommission => {
            error(StatusCode::INTERNAL_SERVER_ERROR, "not-erased", why)
        }
        Err(refusal) => error(StatusCode::CONFLICT, refusal.code(), refusal),
    }
}

/// Only what is blessed is run, so that a request by an operator's key is enough.
async fn upgrade(
    State(interface): State<Interface>,
    Extension(operator): Extension<Operator>,
    body: Bytes,
) -> Response {
    let refused = |code: StatusCode, why: &UpgradeError| error(code, why.code(), why);
    let mut order: upgrade::Order = match serde_json::from_slice(&body) {
        Ok(order) => order,
        Err(why) => return refused(StatusCode::BAD_REQUEST, &UpgradeError::Malformed(why)),
    };
    if let Err(why) = order.source.check_remote() {
        return refused(StatusCode::BAD_REQUEST, &why.into());
    }
    let going = interface.shared.read().upgrade;
    if !going.is_settled() {
        return refused(StatusCode::CONFLICT, &UpgradeError::Running(going.phase));
    }
    tracing::warn!(operator = operator.name, manifest = order.source.manifest, "an upgrade is asked for");
    order.operator = Some(operator.name);
    match upgrade::Store::of(&interface.node).ask(&order) {
        Ok(()) => axum::Json(json!({ "version": 1, "asked": order })).into_response(),
        Err(why) => refused(StatusCode::INTERNAL_SERVER_ERROR, &why),
    }
}

async fn status(State(interface): State<Interface>) -> Response {
    axum::Json(interface.shared.read()).into_response()
}

async fn health(State(interface): State<Interface>) -> Response {
    let state = interface.shared.read().state;
    let code = if state == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{state}\n")).into_response()
}

async fn figures(State(interface): State<Interface>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics(&interface.shared.read())).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Logs {
    #[serde(default)]
    file: LogFile,
    #[serde(default = "hundred")]
    lines: usize,
    #[serde(default)]
    format: Format,
}

/// Of the agent's log; the console has lines only.
#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Text,
    /// One entry on each line.
    Json,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum LogFile {
    #[default]
    Agent,
    Console,
}

fn hundred() -> usize {
    100
}

async fn logs(State(interface): State<Interface>, Query(asked): Query<Logs>) -> Response {
    let Logs { file, lines, format } = asked;
    let read = move || match file {
        LogFile::Agent => {
            bundle::last_entries(&interface.node.agent_log(), lines, matches!(format, Format::Json))
        }
        LogFile::Console => bundle::last_lines(&interface.node.console_log(), lines),
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response(),
        Ok(Err(why)) => error(StatusCode::NOT_FOUND, "no-log", why),
        Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, "no-log", why),
    }
}

async fn support(State(interface): State<Interface>) -> Response {
    let packed = tokio::task::spawn_blocking(move || {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let Interface { shared, node, .. } = interface;
        bundle::pack(&shared.read(), &shared.history(), &node, now)
    });
    match packed.await {
        Ok(Ok(tar)) => ([(header::CONTENT_TYPE, "application/x-tar")], tar).into_response(),
        Ok(Err(why)) => error(StatusCode::INTERNAL_SERVER_ERROR, "no-bundle", why),
        Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, "no-bundle", why),
    }
}

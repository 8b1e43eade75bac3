//! The agent's read-only HTTP interface on loopback, and the one-request client that reads it or the guest's evidence.

use crate::page::{content_security_policy, page};
use crate::samples::{History, Sample};
use crate::status::{Status, metrics};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, body::Bytes};
use hyper_util::rt::TokioIo;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite};

/// The status as the agent keeps it; the uptime is filled in when it is read.
#[derive(Clone)]
pub(crate) struct Shared {
    status: Arc<Mutex<Status>>,
    history: Arc<Mutex<History>>,
    started: Instant,
}

impl Shared {
    pub(crate) fn new(status: Status, started: Instant) -> Self {
        Self { status: Arc::new(Mutex::new(status)), history: Arc::default(), started }
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Adds figures to those of the last hour.
    pub(crate) fn sample(&self, sample: Sample) {
        self.update(|status| status.sample = sample);
        self.history.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
    }

    /// The last hour, oldest first.
    pub(crate) fn history(&self) -> Vec<Sample> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    pub(crate) fn read(&self) -> Status {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.uptime_s = self.started.elapsed().as_secs();
        status
    }
}

/// The routes: `/` for people, `/status`, `/metrics`, `/healthz`.
pub(crate) fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(async |State(shared): State<Shared>| html(&shared)))
        .route("/status", get(async |State(shared): State<Shared>| json(&shared.read())))
        .route("/metrics", get(async |State(shared): State<Shared>| text(metrics(&shared.read()))))
        .route("/healthz", get(async |State(shared): State<Shared>| health(&shared.read())))
        .with_state(shared)
}

fn json(status: &Status) -> Response {
    match serde_json::to_vec_pretty(status) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn html(shared: &Shared) -> Response {
    let history = shared.history.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, content_security_policy()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (headers, page(&shared.read(), &history, now)).into_response()
}

fn text(body: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], body).into_response()
}

fn health(status: &Status) -> Response {
    let code = match status.state.as_str() {
        "ready" => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, format!("{}\n", status.state)).into_response()
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The connection failed or what came was no HTTP.
    #[error("the HTTP request failed")]
    Http(#[from] hyper::Error),
    /// The request could not be made.
    #[error("the request is malformed")]
    Request(#[from] hyper::http::Error),
    /// The body broke off or is longer than allowed.
    #[error("the answer could not be read: {0}")]
    Body(String),
    /// An answer, but not the one asked for.
    #[error("the server answered {code}: {body}")]
    Refused {
        /// HTTP status code.
        code: u16,
        /// Beginning of the body, printable.
        body: String,
    },
}

/// One GET request over `stream`; the body of the answer 200, at most `limit` bytes.
pub async fn get_once<S>(stream: S, host: &str, path: &str, limit: usize) -> Result<Bytes, GetError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    send_once(stream, host, Method::GET, path, JSON, Vec::new(), limit).await
}

/// Content type of the bodies of most requests.
pub(crate) const JSON: &str = "application/json";

/// One request over `stream`, with a body of this content type if there is one; the body of the answer 200, at most `limit` bytes.
pub(crate) async fn send_once<S>(
    stream: S,
    host: &str,
    method: Method,
    path: &str,
    content_type: &str,
    body: Vec<u8>,
    limit: usize,
) -> Result<Bytes, GetError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the connection, which ends when `sender` is dropped.
    let connection = tokio::spawn(connection);
    let mut request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close");
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, content_type);
    }
    let request = request.body(Full::new(Bytes::from(body)))?;
    let answer = sender.send_request(request).await?;
    let code = answer.status();
    let body = Limited::new(answer.into_body(), limit).collect().await;
    connection.abort();
    let body = body.map_err(|error| GetError::Body(error.to_string()))?.to_bytes();
    if code != StatusCode::OK {
        let body = crate::console::printable(&String::from_utf8_lossy(&body), 300);
        return Err(GetError::Refused { code: code.as_u16(), body });
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(status: Status, path: &str) -> Result<Bytes, GetError> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(Shared::new(status, Instant::now()));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        get_once(stream, "127.0.0.1", path, 4096).await
    }

    #[tokio::test]
    async fn status_and_health_are_served() {
        let status = crate::status::tests::example();
        let body = ask(status.clone(), "/status").await.unwrap();
        let read: Status = serde_json::from_slice(&body).unwrap();
        assert_eq!(read.reasons, status.reasons);
        assert_eq!(ask(status.clone(), "/healthz").await.unwrap(), "ready\n");
        let booting = Status { state: "booting".into(), ..status.clone() };
        let error = ask(booting, "/healthz").await.unwrap_err();
        assert!(matches!(error, GetError::Refused { code: 503, ref body } if body == "booting"), "{error}");
        assert!(matches!(ask(status, "/other").await, Err(GetError::Refused { code: 404, .. })));
    }

    #[tokio::test]
    async fn an_answer_over_the_limit_is_refused() {
        let mut status = crate::status::tests::example();
        status.step = "x".repeat(5000);
        assert!(matches!(ask(status, "/status").await, Err(GetError::Body(_))));
    }
}

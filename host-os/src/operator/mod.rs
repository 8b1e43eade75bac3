//! The operator's way to the node: HTTPS with the operator's key, whoever has none of the listed keys is refused.
//!
//! | path | gives |
//! |---|---|
//! | `GET /v1/status` | [`crate::status::Status`] as JSON |
//! | `GET /v1/health` | the state; 200 when ready, else 503 |
//! | `GET /v1/metrics` | Prometheus text |
//! | `GET /v1/logs?file=agent\|console&lines=N` | the last lines |
//! | `GET /v1/support` | a support bundle: tar of all of these, with figures of the last hour and the older logs |
//! | `GET /v1/challenge` | a number that the next order has to repeat: [`orders::Challenge`] |
//! | `POST /v1/orders` | does what [`orders::Order`] says |
//!
//! Errors are JSON: `{"error": {"code", "message"}}`. Every request and refusal is logged with the operator's name. The
//! schema is `host-os/operator.schema.json`.

mod api;
pub mod bundle;
pub(crate) mod carry;
pub mod client;
pub mod identity;
pub mod keys;
pub mod orders;
mod serve;
pub(crate) mod tls;

pub(crate) use serve::{Interface, serve};

//! Ports that the agent opens.

use super::AgentError;
use crate::check::Options;
use crate::http::Shared;
use crate::installation;
use crate::node::NodeDir;
use crate::operator::carry::{Command, Orders};
use crate::operator::identity::Identity;
use crate::operator::{self, Interface};
use crate::status::OperatorStatus;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const PREFERRED_OPERATOR: u16 = 18444;

/// Binds the port asked for; without one the preferred port, or any that is free.
pub(super) async fn listen(
    asked: Option<u16>,
    preferred: u16,
    option: &'static str,
) -> Result<(TcpListener, u16), AgentError> {
    let bind = async |port: u16| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    };
    let port = asked.unwrap_or(preferred);
    match (bind(port).await, asked) {
        (Ok(bound), _) => Ok(bound),
        (Err(source), Some(_)) => {
            Err(AgentError::Port { address: (Ipv4Addr::LOCALHOST, port).into(), option, source })
        }
        (Err(_), None) => bind(0).await.map_err(|source| AgentError::Port {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            option,
            source,
        }),
    }
}

/// Opens the operators' port, if this node has operators.
pub(super) async fn serve_operators(
    options: &Options,
    node: &NodeDir,
    installed: Option<installer::config::Configuration>,
    shared: Shared,
    commands: mpsc::Sender<Command>,
) -> Result<Option<(OperatorStatus, Orders)>, AgentError> {
    if !node.operators().exists() && installed.is_none() {
        return Ok(None);
    }
    let identity = Identity::read_or_create(&node.host_key())?;
    let port =
        |address: SocketAddr| move |source| AgentError::Port { address, option: "operator-listen", source };
    let listener = match options.ports.operator {
        Some(address) => TcpListener::bind(address).await.map_err(port(address))?,
        // A machine of its own is there to be operated from elsewhere.
        None if options.power.is_some() => {
            let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PREFERRED_OPERATOR));
            TcpListener::bind(address).await.map_err(port(address))?
        }
        None => listen(None, PREFERRED_OPERATOR, "operator-listen").await?.0,
    };
    let address = listener.local_addr().map_err(port(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
    let key_sha256 = hex::encode(identity.key_sha256);
    tracing::info!(%address, key_sha256, "operators may connect");
    let key = installed.as_ref().and_then(installation::operator);
    let name = installed.map_or_else(|| key_sha256.clone(), |configuration| configuration.node);
    let orders = Orders::new(name, key, options.power.clone(), commands);
    let interface = Interface { shared, node: node.clone(), orders: orders.clone() };
    tokio::spawn(async move {
        if let Err(error) = operator::serve(listener, identity, interface).await {
            tracing::error!(%error, "the operators' port is closed");
        }
    });
    Ok(Some((OperatorStatus { address: address.to_string(), key_sha256 }, orders)))
}

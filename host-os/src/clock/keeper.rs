//! Asks the servers from time to time, and moves the clock.

use super::authenticated::{self, Server};
use super::{Agreement, ClockStatus, Decision, Sample, agree, build_time, decide, judge, ntp};
use installer::network::Nts;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

/// NTP.
const PORT: u16 = 123;
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two rounds: until the first agreement, and after it.
const PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64()
}

/// Asks one server. Whatever comes that is no answer to this question is passed over.
async fn ask(server: SocketAddr) -> Option<Sample> {
    let own: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((own, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).ok()?;
    let (sent, start) = (now(), Instant::now());
    socket.send(&ntp::question(random)).await.ok()?;
    let mut packet = [0; 512];
    let answer = async {
        loop {
            let length = socket.recv(&mut packet).await.ok()?;
            match ntp::answer(&packet[..length], random, sent, start.elapsed().as_secs_f64()) {
                Ok(sample) => return Some(sample),
                Err(error) => tracing::debug!(%server, %error, "time"),
            }
        }
    };
    timeout(PATIENCE, answer).await.ok().flatten()
}

/// Asks all of them at the same time.
pub(crate) async fn round(servers: &[SocketAddr]) -> Option<Agreement> {
    let asked: Vec<_> = servers.iter().map(|server| tokio::spawn(ask(*server))).collect();
    let mut samples = Vec::new();
    for answer in asked {
        samples.extend(answer.await.ok().flatten());
    }
    agree(&samples, servers.len())
}

/// Runs for ever; `tell` hears each round. Servers without authentication are asked where those with it do not agree.
pub async fn keep(servers: Vec<IpAddr>, nts: &[Nts], tell: impl Fn(ClockStatus)) {
    let mut nts: Vec<_> = nts.iter().map(Server::new).collect();
    let servers: Vec<_> = servers.into_iter().map(|server| SocketAddr::from((server, PORT))).collect();
    if servers.is_empty() && nts.is_empty() {
        return tell(judge(None, None, 0));
    }
    let mut set = false;
    loop {
        let mut asked = nts.len();
        let mut agreement = authenticated::round(&mut nts).await;
        let authenticated = agreement.is_some();
        if !authenticated && !servers.is_empty() {
            asked = servers.len();
            agreement = round(&servers).await;
        }
        let decision = agreement.map(|agreement| decide(&agreement, now(), build_time(), set));
        let moved = match decision {
            Some(Decision::Step(by)) => {
                tracing::warn!(seconds = by, "the clock is set");
                crate::sys::step_clock(by)
            }
            Some(Decision::Slew(by)) => crate::sys::slew_clock(by),
            _ => Ok(()),
        };
        let mut status = judge(agreement, decision, asked);
        status.authenticated = authenticated;
        match moved {
            Ok(()) => set |= matches!(decision, Some(Decision::Step(_) | Decision::Slew(_))),
            Err(error) => status.text = format!("the clock cannot be moved: {error}"),
        }
        tell(status);
        sleep(if set { PAUSES.1 } else { PAUSES.0 }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server on the loopback whose clock is wrong by `error` seconds, or that says nothing sensible.
    async fn server(error: Option<f64>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut question = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut question).await.unwrap();
                assert_eq!(length, ntp::LENGTH);
                let mut answer = [0xff_u8; ntp::LENGTH];
                if let Some(error) = error {
                    answer = [0; ntp::LENGTH];
                    (answer[0], answer[1]) = (4 << 3 | 4, 1);
                    answer[24..32].copy_from_slice(&question[40..48]);
                    let time = now() + error + 2_208_988_800.0;
                    for at in [32, 40] {
                        answer[at..at + 4].copy_from_slice(&(time as u32).to_be_bytes());
                        let fraction = (time.fract() * 4_294_967_296.0) as u32;
                        answer[at + 4..at + 8].copy_from_slice(&fraction.to_be_bytes());
                    }
                }
                // A forgery first: it does not repeat the question's number.
                let mut forged = answer;
                forged[24..32].fill(0x55);
                socket.send_to(&forged, from).await.unwrap();
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn servers_that_lie_are_outvoted_and_their_majority_is_bounded() {
        let (good, lies) = (Some(0.0), Some(86_400.0));
        let servers = [
            server(good).await,
            server(good).await,
            server(good).await,
            server(lies).await,
            server(None).await,
        ];
        let found = round(&servers).await.unwrap();
        assert!(found.offset.abs() < 0.5 && found.members == 3, "{found:?}");
        // Two of five answer the truth: that is no majority.
        assert_eq!(round(&[servers[0], servers[1], servers[3], servers[4], servers[4]]).await, None);
        // Most of them lie together: agreed, and refused.
        let liars = [server(lies).await, server(lies).await, servers[0]];
        let found = round(&liars).await.unwrap();
        assert!((found.offset - 86_400.0).abs() < 0.5, "{found:?}");
        let decision = decide(&found, now(), build_time(), false);
        assert!(matches!(decision, Decision::FarOff(_)), "{decision:?}");
        assert_eq!(judge(Some(found), Some(decision), 3).state, "clock-far-off");
        let past = [server(Some(-1e9)).await; 3];
        let decision = decide(&round(&past).await.unwrap(), now(), build_time(), false);
        assert!(matches!(decision, Decision::BeforeBuild(_)), "{decision:?}");
    }
}

use super::*;
use crate::network::namespace::{in_namespace, skip};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

fn open(port: u16) -> OpenPort {
    OpenPort { port, interface: None, rate: 20, burst: 40, what: "operators".into() }
}

#[test]
fn what_is_shown_is_what_nft_finds() {
    let found = in_namespace(|| {
        let mut ports = vec![open(8443), open(18444)];
        ports[1].interface = Some("guest0".into());
        // Twice: the rules of before go.
        enforce(ports.clone());
        let status = enforce(ports);
        assert_eq!(status.state, "on", "{}", status.text);
        let output = match Command::new("nft").args(["list", "ruleset"]).output() {
            Ok(output) => output,
            Err(_) => return skip("nft is not installed"),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found = String::from_utf8(output.stdout).unwrap().replace(" packets 0 bytes 0", "");
        // What the address in the same rule says already, nft leaves out.
        let mut shown = status.rules;
        for family in ["meta nfproto ipv4 ", "meta nfproto ipv6 "] {
            shown = shown.replace(family, "");
        }
        assert_eq!(found, shown);
    });
    found.unwrap_or_else(|why| skip(&why));
}

#[test]
fn every_rule_but_the_first_is_bounded_or_answers() {
    let table = rules(&[open(1), open(2)]);
    assert!(table.chains.iter().any(|chain| chain.hook == Hook::Forward && chain.rules.is_empty()));
    for rule in &table.chains[0].rules {
        let opens = rule.accept && rule.matches.iter().any(|part| matches!(part, Match::New | Match::Tcp(_)));
        let limited =
            rule.matches.iter().any(|part| matches!(part, Match::PerSource { .. } | Match::Limit { .. }));
        assert!(!opens || limited, "{rule}");
    }
    for set in &table.sets {
        assert_eq!(table.sets.iter().filter(|other| other.name == set.name).count(), 1, "{}", set.name);
    }
}

/// How many of `count` connection attempts are answered.
fn connect(address: SocketAddr, count: usize) -> usize {
    let start = Instant::now();
    let attempts: Vec<_> = (0..count)
        .map(|_| {
            std::thread::spawn(move || {
                TcpStream::connect_timeout(&address, Duration::from_millis(600)).is_ok()
            })
        })
        .collect();
    let answered = attempts.into_iter().map(|attempt| attempt.join().unwrap()).filter(|ok| *ok).count();
    assert!(start.elapsed() < Duration::from_secs(20));
    answered
}

#[test]
fn only_open_ports_answer_and_a_flood_of_one_source_is_limited() {
    let done = crate::network::namespace::with_peer(|host, peer| {
        host.up("fd00::1/64", "192.0.2.1/24");
        peer.up("fd00::2/64", "192.0.2.2/24");
        let listeners = host.run(|| {
            let bind = |address: &str| TcpListener::bind(address).unwrap();
            [bind("[::]:8443"), bind("[::]:9999"), bind("0.0.0.0:8444")]
        });
        let reach = |address: &'static str, count| peer.run(move || connect(address.parse().unwrap(), count));
        // A cable needs a moment; then everything answers.
        let end = Instant::now() + Duration::from_secs(20);
        while reach("[fd00::1]:9999", 1) + reach("192.0.2.1:8444", 1) < 2 {
            assert!(Instant::now() < end, "the network of the test does not work");
        }
        let status = host.run(|| enforce(vec![open(8443), open(8444)]));
        assert_eq!(status.state, "on", "{}", status.text);
        assert_eq!(reach("[fd00::1]:8443", 1), 1);
        assert_eq!(reach("192.0.2.1:8444", 1), 1);
        for closed in ["[fd00::1]:9999", "[fd00::1]:22", "192.0.2.1:9999"] {
            assert_eq!(reach(closed, 1), 0, "{closed} answers");
        }
        // An answer to what this machine asks comes in.
        let asked = peer.run(|| TcpListener::bind("[::]:7777").unwrap());
        assert!(host.run(|| {
            TcpStream::connect_timeout(&"[fd00::2]:7777".parse().unwrap(), Duration::from_secs(2)).is_ok()
        }));
        let answered = reach("[fd00::1]:8443", 150);
        assert!((20..=80).contains(&answered), "{answered} of 150 at once");
        drop((listeners, asked));
    });
    done.unwrap_or_else(|why| skip(&why));
}

#[test]
fn refused_rules_are_an_error() {
    let refused = in_namespace(|| {
        let mut table = rules(&[open(1)]);
        // A rule that names a set which is not there: nothing of the transaction is done.
        table.sets.pop();
        let error = kernel::replace(&table).unwrap_err();
        assert_ne!(error.kind(), ErrorKind::TimedOut, "{error}");
        if let Ok(output) = Command::new("nft").args(["list", "ruleset"]).output() {
            assert_eq!(output.stdout, b"", "half of the rules");
        }
    });
    refused.unwrap_or_else(|why| skip(&why));
}

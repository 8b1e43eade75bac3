//! What may come in: rules as data, printed as `nft` prints them, and given to the kernel by netlink. The root has no `nft`.
//!
//! Everything that is not named is dropped. A source is an IPv4 address, or the first 64 bits of an IPv6 address, because
//! whoever has one address there has all of them.

pub mod kernel;
#[cfg(test)]
mod tests;

use crate::cable;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Sources that are remembered at a time; more are refused until the oldest are forgotten.
const SOURCES: u32 = 65_536;
/// A source is forgotten after so many seconds.
const FORGET_S: u64 = 10;

/// A port that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OpenPort {
    /// TCP port.
    pub port: u16,
    /// The only interface that it is open on; all of them without.
    pub interface: Option<String>,
    /// New connections per second and source.
    pub rate: u32,
    /// So many at once beyond it.
    pub burst: u32,
    /// What is there.
    pub what: String,
}

/// One table of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Where sources are remembered.
    pub sets: Vec<Set>,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// Where sources are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// What a source is.
    pub source: Source,
}

/// What a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An address.
    Four,
    /// The first 64 bits of an address.
    Six,
}

/// When a chain is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// For this machine.
    Input,
    /// Through this machine.
    Forward,
}

/// Rules in order; what none of them decides is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// When.
    pub hook: Hook,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must be true.
    pub matches: Vec<Match>,
    /// Then.
    pub accept: bool,
    /// Why.
    pub why: String,
}

/// What a packet must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// It came in by this interface.
    Interface(String),
    /// It belongs to a connection that was accepted, or is an error about one.
    Established,
    /// It belongs to no connection and cannot begin one.
    Invalid,
    /// It begins a connection.
    New,
    /// ICMP of the types from the first to the last.
    Icmp(u8, u8),
    /// ICMPv6 of the types from the first to the last.
    Icmp6(u8, u8),
    /// It was sent on this link: nobody farther away can make the hop limit 255.
    OnLink,
    /// TCP to this port.
    Tcp(u16),
    /// IPv4, for what follows.
    Four,
    /// IPv6, for what follows.
    Six,
    /// Not more than so many per second, and at once.
    Limit {
        /// Per second.
        rate: u32,
        /// At once.
        burst: u32,
    },
    /// The same for each source, remembered in a set.
    PerSource {
        /// The set.
        set: String,
        /// Of this kind.
        source: Source,
        /// Per second.
        rate: u32,
        /// At once.
        burst: u32,
    },
}

/// The host's rules with these ports open.
pub fn rules(open: &[OpenPort]) -> Table {
    let rule = |matches: Vec<Match>, accept, why: &str| Rule { matches, accept, why: why.to_owned() };
    let mut sets = vec![
        Set { name: "echo4".into(), source: Source::Four },
        Set { name: "echo6".into(), source: Source::Six },
    ];
    let mut input = vec![
        rule(vec![Match::Interface("lo".into())], true, "this machine itself"),
        rule(vec![Match::Established], true, "answers"),
        rule(vec![Match::Invalid], false, "no connection"),
        rule(
            vec![
                Match::Interface(cable::NAME.into()),
                Match::Icmp6(135, 136),
                Match::OnLink,
                Match::Limit { rate: 20, burst: 40 },
            ],
            true,
            "the guest as a neighbour",
        ),
        rule(vec![Match::Interface(cable::NAME.into())], false, "the guest begins nothing here"),
        // RFC 4890, 4.4.1: dropping these breaks connections.
        rule(vec![Match::Icmp6(1, 4)], true, "errors of IPv6"),
        rule(
            vec![Match::Icmp6(135, 136), Match::OnLink, Match::Limit { rate: 200, burst: 400 }],
            true,
            "neighbours",
        ),
        rule(
            vec![Match::Icmp6(134, 134), Match::OnLink, Match::Limit { rate: 10, burst: 20 }],
            true,
            "routers",
        ),
        rule(vec![Match::Icmp(3, 3)], true, "errors of IPv4"),
        rule(vec![Match::Icmp(11, 12)], true, "errors of IPv4"),
        rule(vec![Match::Icmp6(128, 128), per_source("echo6", Source::Six, 10, 20)], true, "echo"),
        rule(vec![Match::Icmp(8, 8), per_source("echo4", Source::Four, 10, 20)], true, "echo"),
    ];
    for OpenPort { port, interface, rate, burst, what } in open {
        for (family, source, number) in [(Match::Six, Source::Six, 6), (Match::Four, Source::Four, 4)] {
            let set = format!("port{port}_{number}");
            if !sets.iter().any(|have| have.name == set) {
                sets.push(Set { name: set.clone(), source });
            }
            let mut matches: Vec<_> = interface.clone().map(Match::Interface).into_iter().collect();
            matches.extend([family, Match::Tcp(*port), Match::New, per_source(&set, source, *rate, *burst)]);
            input.push(rule(matches, true, what));
        }
    }
    let chains = vec![
        Chain { hook: Hook::Input, rules: input },
        // A node is no router.
        Chain { hook: Hook::Forward, rules: Vec::new() },
    ];
    Table { name: "redoubt", sets, chains }
}

fn per_source(set: &str, source: Source, rate: u32, burst: u32) -> Match {
    Match::PerSource { set: set.to_owned(), source, rate, burst }
}

impl fmt::Display for Table {
    /// As `nft list table` prints it, but for counts and sources.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        for Set { name, source } in &self.sets {
            let kind = match source {
                Source::Four => "ipv4_addr",
                Source::Six => "ipv6_addr",
            };
            writeln!(
                f,
                "\tset {name} {{\n\t\ttype {kind}\n\t\tsize {SOURCES}\n\t\tflags dynamic,timeout\n\t\ttimeout {FORGET_S}s\n\t}}\n"
            )?;
        }
        for (number, Chain { hook, rules }) in self.chains.iter().enumerate() {
            let gap = if number == 0 { "" } else { "\n" };
            let name = hook.name();
            writeln!(f, "{gap}\tchain {name} {{\n\t\ttype filter hook {name} priority filter; policy drop;")?;
            for rule in rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Forward => "forward",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.matches {
            write!(f, "{part} ")?;
        }
        let verdict = if self.accept { "accept" } else { "drop" };
        write!(f, "counter {verdict} comment \"{}\"", self.why)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "iifname \"{name}\""),
            Self::Established => f.write_str("ct state established,related"),
            Self::Invalid => f.write_str("ct state invalid"),
            Self::New => f.write_str("ct state new"),
            Self::Icmp(least, most) => write!(f, "icmp type {}", range(*least, *most, icmp)),
            Self::Icmp6(least, most) => write!(f, "icmpv6 type {}", range(*least, *most, icmp6)),
            Self::OnLink => f.write_str("ip6 hoplimit 255"),
            Self::Tcp(port) => write!(f, "tcp dport {port}"),
            Self::Four => f.write_str("meta nfproto ipv4"),
            Self::Six => f.write_str("meta nfproto ipv6"),
            Self::Limit { rate, burst } => write!(f, "limit rate {rate}/second burst {burst} packets"),
            Self::PerSource { set, source, rate, burst } => {
                let key = match source {
                    Source::Four => "ip saddr",
                    Source::Six => "ip6 saddr & ffff:ffff:ffff:ffff::",
                };
                write!(f, "update @{set} {{ {key} limit rate {rate}/second burst {burst} packets }}")
            }
        }
    }
}

fn range(least: u8, most: u8, name: fn(u8) -> &'static str) -> String {
    if least == most { name(least).to_owned() } else { format!("{least}-{most}") }
}

fn icmp(kind: u8) -> &'static str {
    match kind {
        3 => "destination-unreachable",
        8 => "echo-request",
        _ => "other",
    }
}

fn icmp6(kind: u8) -> &'static str {
    match kind {
        128 => "echo-request",
        134 => "nd-router-advert",
        _ => "other",
    }
}

/// The firewall, for the status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FirewallStatus {
    /// `on`, or `off`.
    pub state: String,
    /// In words.
    pub text: String,
    /// The ports that are open.
    pub open: Vec<OpenPort>,
    /// The rules.
    pub rules: String,
}

/// Puts the rules in force, all or none of them, in the place of those before.
pub fn enforce(open: Vec<OpenPort>) -> FirewallStatus {
    let table = rules(&open);
    let rules = table.to_string();
    match kernel::replace(&table) {
        Ok(()) => {
            let ports = open.iter().map(|open| format!("{} ({})", open.port, open.what)).collect::<Vec<_>>();
            let text = format!("only these TCP ports are open: {}", ports.join(", "));
            FirewallStatus { state: "on".into(), text, open, rules }
        }
        Err(error) => {
            let text =
                format!("the kernel refuses the rules: {error}; do not connect this machine, and report it");
            tracing::error!("{text}");
            FirewallStatus { state: "off".into(), text, open, rules }
        }
    }
}

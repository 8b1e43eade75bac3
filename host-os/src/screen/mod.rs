//! The screen of a node's machine: who it is, how it is, and a menu whose every entry needs an operator's signature. What is
//! shown and what keys do is pure; [`terminal`] has the first terminal.
//!
//! A challenge that was chosen stands on the screen as text and QR code; the operator signs it elsewhere with
//! `redoubt operator sign`, and the answer is typed or pasted at the machine's keyboard, which a BMC also has.

mod render;
pub(crate) mod terminal;

pub use render::render;

use crate::operator::orders::Action;
use crate::status::Status;

/// Longest answer that is taken, in characters: a key and a signature, with room for spaces.
const MAX_ANSWER: usize = 400;

/// What the screen shows beside the status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The node's name, if it was installed.
    pub identity: Option<String>,
    /// Addresses of this machine, with their links.
    pub addresses: Vec<String>,
    /// Where the menu is.
    pub menu: Menu,
    /// What came of the last order, or why it was refused.
    pub message: String,
}

/// Where the menu is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Menu {
    /// Facts only.
    #[default]
    Closed,
    /// What can be chosen.
    Open,
    /// Something was chosen; its challenge is to be signed.
    Challenge {
        /// What.
        action: Action,
        /// What is signed, and in the QR code.
        text: String,
        /// The answer, as far as it was typed.
        typed: String,
    },
}

/// What a key leads to, outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// A challenge for this action.
    Challenge(Action),
    /// This answer is to be judged.
    Answer(Action, String),
}

/// What the menu offers. Erasing is not among it: it is ordered over the network, where the statement can be received.
pub const CHOICES: [(char, Action, &str); 4] = [
    ('1', Action::Reboot, "start the machine again"),
    ('2', Action::StartOtherSlot, "start the other slot, once (recovery)"),
    ('3', Action::RestartGuest, "start the guest again"),
    ('4', Action::PowerOff, "switch the machine off"),
];

impl View {
    /// One key. Whatever was typed is forgotten with Escape.
    pub fn key(&mut self, key: char) -> Option<Wish> {
        const ESCAPE: char = '\u{1b}';
        match (&mut self.menu, key) {
            (_, ESCAPE) => {
                self.menu = Menu::Closed;
                self.message.clear();
                None
            }
            (Menu::Closed, 'm' | 'M') => {
                self.menu = Menu::Open;
                self.message.clear();
                None
            }
            (Menu::Open, key) => CHOICES
                .iter()
                .find(|(choice, ..)| *choice == key)
                .map(|(_, action, _)| Wish::Challenge(*action)),
            (Menu::Challenge { action, typed, .. }, '\r' | '\n') => {
                Some(Wish::Answer(*action, std::mem::take(typed)))
            }
            (Menu::Challenge { typed, .. }, '\u{8}' | '\u{7f}') => {
                typed.pop();
                None
            }
            (Menu::Challenge { typed, .. }, key) if key.is_ascii_hexdigit() && typed.len() < MAX_ANSWER => {
                typed.push(key);
                None
            }
            _ => None,
        }
    }
}

/// The same in one line, for a serial console.
pub fn line(status: &Status, view: &View) -> String {
    let hardware = status.hardware.as_ref().map_or("not checked yet", |hardware| hardware.verdict.as_str());
    let attested = if status.attested.is_some() { "attested" } else { "not attested" };
    let operators = status.operator.as_ref().map_or("none", |operator| operator.address.as_str());
    let none = || "none".to_owned();
    let addresses = if view.addresses.is_empty() { none() } else { view.addresses.join(", ") };
    format!(
        "node {}: guest {}, {attested}; hardware {hardware}; addresses {addresses}; operators {operators}",
        view.identity.clone().unwrap_or_else(|| "not installed".into()),
        status.state,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lead_to_a_challenge_and_its_answer_and_escape_forgets() {
        let mut view = View::default();
        assert_eq!(view.key('1'), None, "the menu is closed");
        assert_eq!(view.key('m'), None);
        assert_eq!(view.menu, Menu::Open);
        assert_eq!(view.key('9'), None);
        assert_eq!(view.key('1'), Some(Wish::Challenge(Action::Reboot)));
        view.menu = Menu::Challenge { action: Action::Reboot, text: "T".into(), typed: String::new() };
        for key in "a0 zF\u{7f}1".chars() {
            assert_eq!(view.key(key), None);
        }
        assert_eq!(view.key('\r'), Some(Wish::Answer(Action::Reboot, "a01".into())));
        for _ in 0..1000 {
            view.key('0');
        }
        let Menu::Challenge { typed, .. } = &view.menu else { panic!() };
        assert_eq!(typed.len(), MAX_ANSWER);
        view.key('\u{1b}');
        assert_eq!(view.menu, Menu::Closed);
    }

    #[test]
    fn nothing_in_the_menu_erases() {
        assert!(CHOICES.iter().all(|(_, action, _)| *action != Action::Decommission));
    }

    #[test]
    fn the_serial_console_has_the_facts_in_one_line() {
        let view =
            View { identity: Some("ab".into()), addresses: vec!["2001:db8::1".into()], ..View::default() };
        let line = line(&crate::status::tests::example(), &view);
        for part in ["node ab", "guest ready", "2001:db8::1"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

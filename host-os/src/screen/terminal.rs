//! The first terminal: drawing, keys, and the orders that come of them.

use super::{Menu, View, Wish, line, render};
use crate::http::Shared;
use crate::node::NodeDir;
use crate::operator::carry::Orders;
use crate::operator::keys::{Operators, ShownKey};
use crate::operator::orders::{Action, Challenge, Holder, Order, OrderRefusal, console_text, verify_answer};
use nix::fcntl::OFlag;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use ratatui::{Terminal, TerminalOptions, Viewport, backend::CrosstermBackend, layout::Rect};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;
use tokio::sync::mpsc;

const TERMINAL: &str = "/dev/tty1";
/// The uptime on the screen stands still for at most this long.
const REDRAW: Duration = Duration::from_secs(1);
/// The kernel writes on the same terminal, so everything is drawn anew now and then.
const CLEAR: u32 = 10;

/// What the screen may do; without operators it only shows.
pub(crate) struct Screen {
    pub(crate) shared: Shared,
    pub(crate) node: NodeDir,
    pub(crate) identity: Option<String>,
    pub(crate) orders: Option<Orders>,
}

type Tty = Terminal<CrosstermBackend<File>>;

/// It must not become the agent's controlling terminal, whose keys send signals.
fn terminal() -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(TERMINAL)
}

/// Opens the terminal; its keys come one by one, unechoed.
fn open() -> io::Result<(Tty, File)> {
    let input = terminal()?;
    let mut settings = tcgetattr(&input)?;
    cfmakeraw(&mut settings);
    tcsetattr(&input, SetArg::TCSANOW, &settings)?;
    Ok((empty(terminal()?)?, input))
}

/// An empty screen. Its size is asked of this very terminal: crossterm would ask the controlling one, and there is none.
fn empty(mut output: File) -> io::Result<Tty> {
    let size = rustix::termios::tcgetwinsize(&output)?;
    output.write_all(b"\x1b[H\x1b[2J")?;
    let viewport = Viewport::Fixed(Rect::new(0, 0, size.ws_col, size.ws_row));
    let mut screen = Terminal::with_options(CrosstermBackend::new(output), TerminalOptions { viewport })?;
    screen.hide_cursor()?;
    Ok(screen)
}

/// Keys, from a thread that lives as long as the agent.
fn keys(mut input: File) -> mpsc::Receiver<char> {
    let (sender, keys) = mpsc::channel(256);
    std::thread::spawn(move || {
        let mut byte = [0];
        while input.read_exact(&mut byte).is_ok() {
            if sender.blocking_send(char::from(byte[0])).is_err() {
                return;
            }
        }
    });
    keys
}

/// Shows and asks for as long as the agent runs; without a terminal only the lines for a serial console.
pub(crate) async fn run(screen: Screen) {
    let mut view = View { identity: screen.identity.clone(), ..View::default() };
    let (mut tty, mut keys) = match open() {
        Ok((tty, input)) => (Some(tty), keys(input)),
        Err(error) => {
            tracing::info!(%error, "there is no screen");
            (None, mpsc::channel(1).1)
        }
    };
    let mut interval = tokio::time::interval(REDRAW);
    let (mut told, mut open_challenge) = (String::new(), None);
    let (mut ticks, mut cleared) = (0_u32, 0);
    loop {
        tokio::select! {
            _ = interval.tick() => ticks = ticks.wrapping_add(1),
            Some(key) = keys.recv() => {
                if let Some(wish) = view.key(key) {
                    screen.fulfil(wish, &mut view, &mut open_challenge).await;
                }
                // Who pastes is faster than a screen is drawn.
                if !keys.is_empty() {
                    continue;
                }
            }
        }
        view.addresses = addresses();
        let status = screen.shared.read();
        let now = line(&status, &view);
        if now != told {
            tracing::info!("{now}");
            told = now;
        }
        if cleared != ticks / CLEAR {
            cleared = ticks / CLEAR;
            tty = tty.and_then(|screen| {
                drop(screen);
                terminal().and_then(empty).ok()
            });
        }
        tty = tty.and_then(|mut screen| {
            let drawn = screen.draw(|frame| render(frame, &status, &view)).is_ok();
            drawn.then_some(screen)
        });
        // The agent has one thread, and answers PID 1 meanwhile.
        tokio::task::yield_now().await;
    }
}

impl Screen {
    async fn fulfil(&self, wish: Wish, view: &mut View, open: &mut Option<(Action, Challenge)>) {
        view.message.clear();
        let Some(orders) = &self.orders else {
            view.message = "this node has no operators, so nobody can sign".into();
            return;
        };
        match wish {
            Wish::Challenge(action) => match orders.challenge(Holder::Console(action)) {
                Ok(challenge) => {
                    let text = console_text(&challenge, action);
                    view.menu = Menu::Challenge { action, text, typed: String::new() };
                    *open = Some((action, challenge));
                }
                Err(why) => view.message = why,
            },
            Wish::Answer(action, answer) => {
                let judged = self.judge(orders, open.take(), action, &answer);
                view.menu = Menu::Closed;
                view.message = match judged {
                    Ok(operator) => match orders.carry_out(action, &operator).await {
                        Ok(_) => format!("{action}: done, as {operator} ordered"),
                        Err(refusal) => refusal.to_string(),
                    },
                    Err(why) => {
                        tracing::warn!(%action, why, "an order at the console is refused");
                        why
                    }
                };
            }
        }
    }

    /// The operator's name, if the answer is one of somebody who may order it.
    fn judge(
        &self,
        orders: &Orders,
        open: Option<(Action, Challenge)>,
        action: Action,
        answer: &str,
    ) -> Result<String, String> {
        let (asked, challenge) = open.ok_or_else(|| OrderRefusal::Challenge.to_string())?;
        let public_key =
            verify_answer(&console_text(&challenge, asked), answer).map_err(|refusal| refusal.to_string())?;
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let operators = Operators::of_node(&self.node, orders.installed())?;
        let operator = operators
            .judge(Some(&ShownKey::ed25519(&public_key)), now)
            .map_err(|refusal| refusal.to_string())?;
        let order = Order { version: 1, action, node: challenge.node, nonce: challenge.nonce };
        orders.judge(&order, Holder::Console(action)).map_err(|refusal| refusal.to_string())?;
        Ok(operator)
    }
}

/// Addresses that others can reach.
fn addresses() -> Vec<String> {
    let Ok(found) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut addresses: Vec<String> = found
        .filter_map(|found| {
            let address = found.address?;
            let address = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) if !v4.ip().is_loopback() => v4.ip().to_string(),
                (_, Some(v6)) if !v6.ip().is_loopback() && !v6.ip().is_unicast_link_local() => {
                    v6.ip().to_string()
                }
                _ => return None,
            };
            Some(format!("{} {address}", found.interface_name))
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests in CI have no controlling terminal either.
    #[test]
    fn a_terminal_that_controls_nobody_is_drawn_on_whole() {
        let size = nix::pty::Winsize { ws_row: 50, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(Some(&size), None).unwrap();
        let mut screen = empty(File::from(pair.slave)).unwrap();
        let view = View { identity: Some("0123456789abcdef".repeat(4)), ..View::default() };
        screen.draw(|frame| render(frame, &crate::status::tests::example(), &view)).unwrap();
        drop(screen);
        let mut master = File::from(pair.master);
        let (mut drawn, mut buffer) = (String::new(), [0; 4096]);
        // Ends when nobody has the other end any more.
        while let Ok(length @ 1..) = master.read(&mut buffer) {
            drawn.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        // The last line is there, so all of the size is used, and so is the code.
        for part in ["Redoubt node", "0123456789abcdef", "\u{1b}[50;", "█▀"] {
            assert!(drawn.contains(part), "{part:?} is not in {drawn:?}");
        }
    }
    use crate::operator::carry::Command;
    use crate::operator::identity::Identity;
    use crate::operator::keys::Operator;
    use crate::operator::orders::signed_bytes;
    use std::time::Instant;

    #[tokio::test]
    async fn only_an_operators_signature_of_what_stands_there_starts_anything() {
        let directory = tempfile::tempdir().unwrap();
        let node = NodeDir::at(directory.path());
        let identity = |name: &str| Identity::create(&directory.path().join(name)).unwrap();
        let (alice, mallory) = (identity("alice"), identity("mallory"));
        let operator = Operator {
            name: "alice".into(),
            key_sha256: alice.key_sha256,
            not_after_unix_s: None,
            revoked: false,
        };
        let list = Operators { version: 1, operators: vec![operator], installed: None };
        std::fs::write(node.operators(), serde_json::to_vec(&list).unwrap()).unwrap();
        let (commands, mut received) = mpsc::channel(4);
        let orders = Orders::new("ab".repeat(32), None, None, commands);
        let shared = Shared::new(crate::status::tests::example(), Instant::now());
        let screen = Screen { shared, node, identity: None, orders: Some(orders) };
        let (mut view, mut open) = (View::default(), None);
        let (alice, mallory) = (alice.into_signer().unwrap(), mallory.into_signer().unwrap());
        let action = Action::RestartGuest;
        let answer = |signer: &dyn Fn(&[u8]) -> (String, String), view: &View| {
            let Menu::Challenge { text, .. } = &view.menu else { panic!("{view:?}") };
            let (key, signature) = signer(&signed_bytes(text));
            key + &signature
        };
        for (signer, again, part) in
            [(&mallory, false, "not an operator's"), (&alice, false, "done"), (&alice, true, "challenge")]
        {
            screen.fulfil(Wish::Challenge(action), &mut view, &mut open).await;
            let answer = answer(signer, &view);
            screen.fulfil(Wish::Answer(action, answer.clone()), &mut view, &mut open).await;
            if again {
                screen.fulfil(Wish::Answer(action, answer), &mut view, &mut open).await;
            }
            assert!(view.message.contains(part), "{part}: {}", view.message);
            assert_eq!(view.menu, Menu::Closed);
        }
        // Alice's two first answers.
        for _ in 0..2 {
            assert!(matches!(received.try_recv(), Ok(Command::RestartGuest)));
        }
        assert!(received.try_recv().is_err());
        screen.fulfil(Wish::Challenge(action), &mut view, &mut open).await;
        // Alice's key, with nobody's signature.
        let forged = answer(&alice, &view)[..64].to_owned() + &"00".repeat(64);
        screen.fulfil(Wish::Answer(action, forged), &mut view, &mut open).await;
        assert!(view.message.contains("not a signature"), "{}", view.message);
    }
}

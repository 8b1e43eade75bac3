//! What the screen looks like.

use super::{CHOICES, Menu, View};
use crate::console::printable;
use crate::status::Status;
use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Style, Stylize},
    text::{Line, Text},
    widgets::{Block, Paragraph, Wrap},
};

/// How many of the last errors are shown.
const ERRORS: usize = 4;
/// Longest error.
const ERROR_WIDTH: usize = 200;

/// Draws everything.
pub fn render(frame: &mut Frame, status: &Status, view: &View) {
    let rows = [Constraint::Length(1), Constraint::Min(10), Constraint::Length(1)];
    let [title, body, foot] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Line::from(format!(" Redoubt node, up {} s", status.uptime_s)).reversed(), title);
    let code = match &view.menu {
        Menu::Challenge { text, .. } => Some(text.clone()),
        _ => view.identity.as_ref().map(|identity| identity.to_uppercase()),
    };
    let code = code.and_then(|text| drawn(&text));
    let (width, height) = code.as_ref().map_or((0, 0), |code| (code.width() as u16, code.height() as u16));
    // A code that does not fit as a whole cannot be read, so it is left out.
    let fits = body.width > width + 40 && body.height >= height;
    let [facts_area, code_area] =
        Layout::horizontal([Constraint::Min(40), Constraint::Length(if fits { width } else { 0 })])
            .areas(body);
    match &view.menu {
        Menu::Closed => facts(frame, facts_area, status, view),
        Menu::Open => menu(frame, facts_area),
        Menu::Challenge { text, typed, .. } => challenge(frame, facts_area, text, typed),
    }
    if let Some(code) = code.filter(|_| fits) {
        // Black on white, whatever the terminal's colours are: that is what readers take.
        let style = Style::new().black().on_white();
        frame.render_widget(Paragraph::new(code).style(style), Rect { height, ..code_area });
    }
    let hint = match (&view.menu, view.message.as_str()) {
        (_, message) if !message.is_empty() => format!(" {message}"),
        (Menu::Closed, _) => " m: menu; every entry needs an operator's signature".into(),
        (Menu::Open, _) => " Escape: back".into(),
        (Menu::Challenge { .. }, _) => " Enter: give the answer; Escape: back".into(),
    };
    frame.render_widget(Line::from(printable(&hint, 300)).reversed(), foot);
}

/// A QR code as text, two modules in one character.
fn drawn(text: &str) -> Option<Text<'static>> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    // Swapped, because it is drawn in black on white.
    Some(Text::from(code.render::<Dense1x2>().build()))
}

fn facts(frame: &mut Frame, area: Rect, status: &Status, view: &View) {
    let mut lines: Vec<Line> = Vec::new();
    let mut fact = |name: &str, value: &str| {
        // Some of it was said by the guest.
        lines.push(Line::from(format!("{name:<12}{}", printable(value, 300))));
    };
    fact("node", view.identity.as_deref().unwrap_or("not installed: it has no name and no operator"));
    for (number, address) in view.addresses.iter().take(6).enumerate() {
        fact(if number == 0 { "addresses" } else { "" }, address);
    }
    if view.addresses.is_empty() {
        fact("addresses", "none");
    }
    match &status.operator {
        Some(operator) => {
            fact("operators", &operator.address);
            fact("host key", &operator.key_sha256);
        }
        None => fact("operators", "nobody"),
    }
    match &status.hardware {
        Some(hardware) => fact("hardware", &format!("{}: {}", hardware.spec, hardware.verdict)),
        None => fact("hardware", "not checked yet"),
    }
    let step = if status.step.is_empty() { String::new() } else { format!(" ({})", status.step) };
    fact("guest", &format!("{}{step}, started again {} times", status.state, status.restarts));
    if let Some(release) = &status.release {
        fact("release", &format!("{} ({})", release.version, release.profile));
        fact("measurement", &release.measurement);
    }
    match &status.attested {
        Some(attested) => fact("attested", &format!("yes ({})", attested.kind)),
        None if status.attestation_error.is_empty() => fact("attested", "not yet"),
        None => fact("attested", &format!("no: {}", status.attestation_error)),
    }
    let findings = status.hardware.iter().flat_map(|hardware| &hardware.findings);
    let findings = findings.map(|finding| format!("{}: {}", finding.id, finding.text));
    let reasons =
        status.reasons.iter().rev().map(|reason| format!("after {} s: {}", reason.at_s, reason.reason));
    lines.push(Line::default());
    lines.push(Line::from("Last errors").bold());
    let errors: Vec<String> = reasons.chain(findings).take(ERRORS).collect();
    if errors.is_empty() {
        lines.push(Line::from("  none"));
    }
    lines.extend(errors.iter().map(|error| Line::from(format!("  {}", printable(error, ERROR_WIDTH)))));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
}

fn menu(frame: &mut Frame, area: Rect) {
    let mut lines =
        vec![Line::from("Choose; an operator's signature is asked for next.").bold(), Line::default()];
    lines.extend(CHOICES.iter().map(|(key, _, text)| Line::from(format!("  {key}  {text}"))));
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("Menu")), area);
}

fn challenge(frame: &mut Frame, area: Rect, text: &str, typed: &str) {
    let lines = vec![
        Line::from("To be signed by an operator, elsewhere:").bold(),
        Line::default(),
        Line::from(text.to_owned()),
        Line::default(),
        Line::from("redoubt operator sign --key FILE TEXT"),
        Line::default(),
        Line::from("Type or paste the answer, then Enter:").bold(),
        Line::from(typed.to_owned()),
    ];
    let paragraph = Paragraph::new(lines).wrap(Wrap { trim: false });
    frame.render_widget(paragraph.block(Block::bordered().title("Signature")), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::orders::Action;
    use crate::status::{ReasonStatus, tests::example};
    use ratatui::{Terminal, backend::TestBackend};

    fn shown(status: &Status, view: &View, width: u16, height: u16) -> String {
        let mut screen = Terminal::new(TestBackend::new(width, height)).unwrap();
        screen.draw(|frame| render(frame, status, view)).unwrap();
        screen.backend().to_string()
    }

    fn view() -> View {
        View {
            identity: Some("0123456789abcdef".repeat(4)),
            addresses: vec!["eth0 2001:db8::2".into(), "eth0 192.0.2.2".into()],
            ..View::default()
        }
    }

    /// The screens of a node, as they are meant to look.
    #[test]
    fn the_screens_are_the_golden_ones() {
        let mut status = example();
        status.uptime_s = 3600;
        let challenge = Menu::Challenge {
            action: Action::Reboot,
            text: format!("REDOUBT1:REBOOT:0123456789ABCDEF:{}", "07".repeat(16)),
            typed: "a0".repeat(40),
        };
        let screens = [
            ("facts", shown(&status, &view(), 128, 40)),
            ("small", shown(&status, &view(), 80, 25)),
            ("menu", shown(&status, &View { menu: Menu::Open, ..view() }, 128, 40)),
            ("challenge", shown(&status, &View { menu: challenge, ..view() }, 128, 40)),
        ];
        for (name, screen) in screens {
            let path = format!("{}/tests/golden/screen-{name}.txt", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("REDOUBT_BLESS").is_some() {
                std::fs::write(&path, &screen).unwrap();
            }
            let golden = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(screen, golden, "{path}; look at it and write it anew with REDOUBT_BLESS=1");
        }
    }

    #[test]
    fn what_the_guest_says_cannot_steer_the_terminal() {
        let mut status = example();
        let reason = "\u{1b}[2J\u{202e}evil".to_owned();
        status.reasons = vec![ReasonStatus { at_s: 1, reason }];
        let screen = shown(&status, &view(), 128, 40);
        assert!(screen.contains("evil") && !screen.contains(['\u{1b}', '\u{202e}']), "{screen}");
    }

    #[test]
    fn the_code_is_the_text_in_black_on_white() {
        let text = "REDOUBT1:REBOOT";
        let code = QrCode::with_error_correction_level(text, EcLevel::L).unwrap();
        let drawn = drawn(text).unwrap();
        let rows: Vec<Vec<char>> =
            drawn.lines.iter().map(|line| line.to_string().chars().collect()).collect();
        const QUIET: usize = 4;
        for y in 0..code.width() {
            for x in 0..code.width() {
                let cell = rows[(y + QUIET) / 2][x + QUIET];
                let dark = match cell {
                    '█' => true,
                    ' ' => false,
                    '▀' => (y + QUIET).is_multiple_of(2),
                    '▄' => (y + QUIET) % 2 == 1,
                    other => panic!("{other}"),
                };
                assert_eq!(dark, code[(x, y)] == qrcode::Color::Dark, "{x} {y}");
            }
        }
    }
}

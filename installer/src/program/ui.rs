//! Screen on the first terminal, plain lines on the console. Either may be absent.

use crate::run::Progress;
use nix::time::{ClockId, clock_gettime};
use ratatui::{
    Frame, Terminal, TerminalOptions, Viewport,
    backend::CrosstermBackend,
    layout::{Constraint, Layout, Rect},
    style::{Style, Stylize},
    text::Line,
    widgets::{Block, Gauge, List, Paragraph},
};
use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader, Write},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

const TERMINAL: &str = "/dev/tty1";
/// Fits every text console.
const SIZE: Rect = Rect { x: 0, y: 0, width: 80, height: 25 };

/// Both.
#[derive(Default)]
pub(super) struct Ui {
    screen: Option<Terminal<CrosstermBackend<File>>>,
    input: Option<Receiver<String>>,
    lines: VecDeque<String>,
    progress: Option<Progress>,
    question: String,
    /// Step and tenth that the console was told last.
    told: Option<(&'static str, u64)>,
}

impl Ui {
    /// Opens what there is, once the devices are there.
    pub(super) fn open(&mut self) {
        let options = TerminalOptions { viewport: Viewport::Fixed(SIZE) };
        self.screen = File::options().write(true).open(TERMINAL).ok().and_then(|mut file| {
            // ratatui's own way asks the controlling terminal where the cursor is, and there is none.
            file.write_all(b"\x1b[H\x1b[2J").ok()?;
            Terminal::with_options(CrosstermBackend::new(file), options).ok()
        });
        let (sender, lines) = channel();
        for path in [TERMINAL, "/dev/console"] {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let Ok(file) = File::open(path) else { return };
                for line in BufReader::new(file).lines().map_while(Result::ok) {
                    if sender.send(line.trim().to_owned()).is_err() {
                        return;
                    }
                }
            });
        }
        self.input = Some(lines);
    }

    /// One line.
    pub(super) fn say(&mut self, text: &str) {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        // One write, so that lines of the kernel do not mix with it. A console that does not work is no reason to stop.
        let line = format!("[{:5}.{:03}] installer: {text}\n", time.as_secs(), time.subsec_millis());
        let _ = std::io::stderr().write_all(line.as_bytes());
        self.lines.push_back(text.to_owned());
        while self.lines.len() > 100 {
            self.lines.pop_front();
        }
        self.draw();
    }

    /// Asks and waits for a line from either; empty if there is nobody to answer.
    pub(super) fn ask(&mut self, question: &str) -> String {
        question.clone_into(&mut self.question);
        self.say(question);
        let answer = self.input.as_ref().and_then(|input| input.recv().ok()).unwrap_or_default();
        self.question.clear();
        self.draw();
        answer
    }

    /// How far it is: the screen always, the console each tenth.
    pub(super) fn progress(&mut self, progress: Progress) {
        let tenth = progress.done * 10 / progress.total.max(1);
        self.progress = Some(progress);
        if self.told == Some((progress.step, tenth)) {
            return self.draw();
        }
        self.told = Some((progress.step, tenth));
        self.say(&format!("{:>3} % {}", progress.done * 100 / progress.total.max(1), progress.step));
    }

    fn draw(&mut self) {
        let Some(mut screen) = self.screen.take() else { return };
        if screen.draw(|frame| self.render(frame)).is_ok() {
            self.screen = Some(screen);
        }
    }

    fn render(&self, frame: &mut Frame) {
        let rows = [Constraint::Length(1), Constraint::Min(3), Constraint::Length(3), Constraint::Length(3)];
        let [title, log, bar, question] = Layout::vertical(rows).areas(frame.area());
        frame.render_widget(Line::from(" Redoubt installer").reversed(), title);
        let room = usize::from(log.height.saturating_sub(2));
        let lines = self.lines.iter().skip(self.lines.len().saturating_sub(room));
        frame.render_widget(List::new(lines.map(String::as_str)).block(Block::bordered()), log);
        if let Some(Progress { step, done, total }) = self.progress {
            let gauge =
                Gauge::default().gauge_style(Style::new().green()).block(Block::bordered().title(step));
            frame.render_widget(gauge.ratio((done as f64 / total.max(1) as f64).clamp(0.0, 1.0)), bar);
        }
        if !self.question.is_empty() {
            let block = Block::bordered().title("Type the answer, then Enter");
            frame.render_widget(Paragraph::new(self.question.as_str()).block(block), question);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::backend::TestBackend;

    #[test]
    fn the_screen_shows_log_progress_and_question() {
        let mut ui = Ui { question: "Name of the disk".into(), ..Ui::default() };
        for number in 0..50 {
            ui.lines.push_back(format!("line {number}"));
        }
        ui.progress = Some(Progress { step: "root", done: 30, total: 120 });
        let mut screen = Terminal::new(TestBackend::new(SIZE.width, SIZE.height)).unwrap();
        screen.draw(|frame| ui.render(frame)).unwrap();
        let text = screen.backend().to_string();
        for part in ["Redoubt installer", "line 49", "root", "25%", "Name of the disk"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("line 1 "), "{text}");
    }
}

//! Plots as SVG.

use super::table::Row;
use std::fmt::Write;

const WIDTH: f64 = 900.0;
const LABEL: f64 = 430.0;
const LINE: f64 = 22.0;
const OURS: &str = "#2f6f4f";
const OTHERS: &str = "#9aa5b1";
const MISSED: &str = "#b3542d";

/// Bars that belong together.
pub(crate) struct Group {
    /// What they have in common.
    pub(crate) name: String,
    /// What each is, and its value in microseconds.
    pub(crate) bars: Vec<(String, f64)>,
}

struct Plot {
    body: String,
    at: f64,
}

impl Plot {
    fn new(title: &str) -> Self {
        let mut plot = Self { body: String::new(), at: 28.0 };
        plot.text(12.0, "start", "bold", title);
        plot.at += LINE * 1.2;
        plot
    }

    fn text(&mut self, x: f64, anchor: &str, weight: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let y = self.at;
        // Writing to a string does not fail.
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-weight="{weight}">{text}</text>"#
        );
    }

    fn bar(&mut self, label: &str, length: f64, value: &str, colour: &str) {
        self.text(LABEL - 8.0, "end", "normal", label);
        let (y, height) = (self.at - 12.0, LINE - 7.0);
        let _ = writeln!(
            self.body,
            r#"<rect x="{LABEL}" y="{y:.1}" width="{length:.1}" height="{height}" fill="{colour}"/>"#
        );
        self.text(LABEL + length + 6.0, "start", "normal", value);
        self.at += LINE;
    }

    fn done(self) -> String {
        let Self { body, at } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {at:.0}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
        )
    }
}

/// Each figure as a part of its target; the line is the target.
pub(crate) fn targets(rows: &[Row]) -> String {
    const UNIT: f64 = 250.0;
    let mut plot = Plot::new("Ratio to the reference, as a part of the target (the line; less is better)");
    let top = plot.at - LINE;
    for row in rows {
        let Some(judged) = row.judged() else { continue };
        let part = judged / row.target;
        let colour = if row.met() { OURS } else { MISSED };
        let value = format!("{judged:.2} of {}", row.target);
        plot.bar(&row.figure, UNIT * part.clamp(0.0, 1.4), &value, colour);
    }
    let (x, bottom) = (LABEL + UNIT, plot.at - LINE / 2.0);
    let _ = writeln!(
        plot.body,
        r#"<line x1="{x}" y1="{top:.1}" x2="{x}" y2="{bottom:.1}" stroke="black" stroke-dasharray="4 3"/>"#
    );
    plot.done()
}

/// Times on a logarithmic scale.
pub(crate) fn rivals(groups: &[Group]) -> String {
    let all = || groups.iter().flat_map(|group| &group.bars).map(|(_, time)| *time);
    let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    let scale = (WIDTH - LABEL - 110.0) / (most / least * 2.0).log10();
    let mut plot = Plot::new("Microseconds for a durable transaction (logarithmic; less is better)");
    for group in groups {
        plot.text(12.0, "start", "bold", &group.name);
        for (name, time) in &group.bars {
            let colour = if name.starts_with("heap") { OURS } else { OTHERS };
            plot.bar(name, scale * (time / least * 2.0).log10(), &format!("{time:.1}"), colour);
        }
        plot.at += LINE / 2.0;
    }
    plot.done()
}

//! The table that every benchmark prints.

use anyhow::Result;
use serde::Serialize;

/// One figure.
#[derive(Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) figure: String,
    /// Unit of `ours` and `reference`.
    pub(crate) unit: &'static str,
    /// Our figure.
    pub(crate) ours: f64,
    /// The reference's, where there is one.
    pub(crate) reference: Option<f64>,
    /// Largest value that meets the target; of the ratio if `of_ratio`, else of `ours`.
    pub(crate) target: f64,
    /// Whether the target is one for the ratio.
    pub(crate) of_ratio: bool,
}

/// One figure; see [`Row`].
pub(crate) fn row(
    figure: &str,
    unit: &'static str,
    ours: f64,
    reference: Option<f64>,
    target: f64,
    of_ratio: bool,
) -> Row {
    Row { figure: figure.to_owned(), unit, ours, reference, target, of_ratio }
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.reference.map(|reference| self.ours / reference)
    }

    /// What the target is for.
    pub(crate) fn judged(&self) -> Option<f64> {
        if self.of_ratio { self.ratio() } else { Some(self.ours) }
    }

    pub(crate) fn met(&self) -> bool {
        self.judged().is_some_and(|value| value <= self.target)
    }

    fn verdict(&self) -> &'static str {
        if self.met() { "met" } else { "missed" }
    }

    fn shown_target(&self) -> String {
        format!("<= {}{}", self.target, if self.of_ratio { " ratio" } else { "" })
    }

    /// As a line of a table in Markdown.
    pub(crate) fn markdown(&self) -> String {
        let Self { figure, unit, ours, .. } = self;
        let (reference, ratio) = (shown(self.reference), shown(self.ratio()));
        let (target, verdict) = (self.shown_target().replace('<', "&lt;"), self.verdict());
        format!("| {figure} ({unit}) | {ours:.2} | {reference} | {ratio} | {target} | {verdict} |\n")
    }
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

/// All figures of one benchmark, with what a reader must know about them.
pub(crate) struct Table {
    /// The figures.
    pub(crate) rows: Vec<Row>,
    /// How they were measured and what limits them.
    pub(crate) notes: Vec<String>,
}

impl Table {
    /// Prints the table.
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        if json {
            let rows: Vec<serde_json::Value> = self
                .rows
                .iter()
                .map(|row| {
                    let mut value = serde_json::to_value(row)?;
                    value["ratio"] = serde_json::to_value(row.ratio())?;
                    value["met"] = row.met().into();
                    Ok(value)
                })
                .collect::<Result<_>>()?;
            println!(
                "{}",
                serde_json::to_string_pretty(&serde_json::json!({"rows": rows, "notes": self.notes}))?
            );
            return Ok(());
        }
        println!("{:<52}{:>10}{:>12}{:>8}{:>14}  verdict", "figure", "ours", "reference", "ratio", "target");
        for row in &self.rows {
            println!(
                "{:<52}{:>10.2}{:>12}{:>8}{:>14}  {}",
                format!("{} ({})", row.figure, row.unit),
                row.ours,
                shown(row.reference),
                shown(row.ratio()),
                row.shown_target(),
                row.verdict()
            );
        }
        for note in &self.notes {
            println!("  {note}");
        }
        Ok(())
    }
}

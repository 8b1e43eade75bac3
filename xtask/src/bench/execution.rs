//! Execution on the heap: marks, rollback, a durable update through the whole engine, queries beside it.

use super::table::{Row, Table};
use crate::tools;
use anyhow::{Context, Result};
use serde::Deserialize;

/// What `cargo bench -p execution` and `cargo bench -p heap` print.
#[derive(Deserialize)]
pub(super) struct Measured {
    rows: Vec<Figure>,
    notes: Vec<String>,
}

#[derive(Deserialize)]
struct Figure {
    figure: String,
    unit: String,
    ours: f64,
    reference: f64,
    target: f64,
    of_ratio: bool,
}

/// Measures execution's part of the heap's figures.
pub(crate) fn measure() -> Result<Table> {
    tools::npm_packages()?;
    let bench =
        ["bench", "--quiet", "--locked", "-p", "execution", "--features", "bench", "--bench", "execution"];
    let text = tools::output(tools::command("cargo").args(bench))?;
    let measured: Measured = serde_json::from_str(&text).context("the benchmark of execution")?;
    Ok(measured.table())
}

impl Measured {
    /// As a table.
    pub(super) fn table(self) -> Table {
        let rows = self.rows.into_iter().map(|figure| {
            let Figure { figure, unit, ours, reference, target, of_ratio } = figure;
            let unit = if unit == "ms" { "ms" } else { "us" };
            Row { figure, unit, ours, reference: Some(reference), target, of_ratio }
        });
        Table { rows: rows.collect(), notes: self.notes }
    }
}

//! The table of what must fail in docs/TESTING.md: its tests exist, and the names of errors in it stand in the code.

use anyhow::{Context, Result, ensure};
use std::{fs, path::Path};

/// What stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn it_names_tests_and_errors_that_exist() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/TESTING.md"))?;
    let (_, table) = text.split_once("<!-- must fail -->").context("no table")?;
    let (table, _) = table.split_once("<!-- end -->").context("no end of the table")?;
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    ensure!(rows.len() > 30, "only {} rows", rows.len());
    for row in rows {
        let [what, error, test] = row[..] else { anyhow::bail!("not three cells: {row:?}") };
        let (path, name) = quoted(test).next().zip(quoted(test).nth(1)).context(what.to_owned())?;
        let code = fs::read_to_string(root.join(path)).context(path.to_owned())?;
        ensure!(code.contains(&format!("fn {name}()")), "{what}: no {name} in {path}");
        for error in quoted(error) {
            // In the test itself, or in the folder with the code that names it.
            let folder = root.join(path.split('/').next().unwrap_or_default());
            ensure!(stands(&folder, error)?, "{what}: {error} is nowhere in {}", folder.display());
        }
    }
    Ok(())
}

/// Whether a program of this folder holds the text.
fn stands(folder: &Path, text: &str) -> Result<bool> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let found = match path.extension() {
            _ if path.is_dir() => stands(&path, text)?,
            Some(extension) if extension == "rs" => fs::read_to_string(&path)?.contains(text),
            _ => false,
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

//! Which way the crates depend (docs/ARCHITECTURE.md), and that production programs do without the simulation.

use anyhow::{Context, Result, ensure};
use std::{collections::BTreeSet, process::Command};

fn cargo(arguments: &[&str]) -> Result<String> {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Crates of the workspace that a crate depends on, tests left out.
fn uses(metadata: &serde_json::Value, name: &str) -> Result<BTreeSet<String>> {
    let packages = metadata["packages"].as_array().context("no packages")?;
    let members: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let package = packages.iter().find(|p| p["name"] == name).with_context(|| format!("no crate {name}"))?;
    let dependencies = package["dependencies"].as_array().context("no dependencies")?;
    Ok(dependencies
        .iter()
        .filter(|d| d["kind"] != "dev")
        .filter_map(|d| d["name"].as_str())
        .filter(|d| members.contains(d))
        .map(str::to_owned)
        .collect())
}

#[test]
fn arrows_go_one_way() -> Result<()> {
    let metadata = serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])?)?;
    for (name, allowed) in [
        ("attestation", &[][..]),
        ("measured-boot", &[]),
        ("release", &[]),
        ("hwspec", &[]),
        ("upgrade", &["attestation", "release"]),
        ("host-guest", &[]),
        ("heap", &[]),
        ("execution", &["heap"]),
        ("replica", &["execution", "heap"]),
        ("simulated-psp", &["attestation", "host-guest"]),
        ("installer", &["hwspec", "release"]),
        ("image-build", &["attestation", "hwspec", "installer", "measured-boot", "release"]),
        ("guest-os", &["attestation", "host-guest", "release", "simulated-psp", "upgrade"]),
        (
            "host-os",
            &[
                "attestation",
                "host-guest",
                "hwspec",
                "installer",
                "measured-boot",
                "release",
                "simulated-psp",
                "upgrade",
            ],
        ),
        (
            "redoubt",
            &[
                "attestation",
                "heap",
                "host-guest",
                "host-os",
                "hwspec",
                "image-build",
                "installer",
                "measured-boot",
                "release",
            ],
        ),
    ] {
        let allowed: BTreeSet<String> = allowed.iter().map(|a| (*a).to_owned()).collect();
        let uses = uses(&metadata, name)?;
        let extra: Vec<&String> = uses.difference(&allowed).collect();
        ensure!(extra.is_empty(), "{name} must not depend on {extra:?}");
    }
    Ok(())
}

#[test]
fn production_programs_do_not_link_the_simulated_processor() -> Result<()> {
    let linked = |package: &str, more: &[&str]| -> Result<bool> {
        let mut arguments =
            vec!["tree", "--locked", "--prefix", "none", "--edges", "normal", "--package", package];
        arguments.extend(more);
        Ok(cargo(&arguments)?.lines().any(|line| line.starts_with("simulated-psp ")))
    };
    ensure!(linked("guest-os", &["--features", "virtual"])?, "this test does not see the simulation at all");
    for package in ["guest-os", "host-os", "redoubt", "replica"] {
        ensure!(!linked(package, &["--no-default-features"])?, "{package} links the simulation");
    }
    Ok(())
}

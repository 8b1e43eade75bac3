//! Records a probe of this machine as JSON: `cargo run -p hwspec --example probe [DIRECTORY]`.

use std::path::Path;

fn main() -> serde_json::Result<()> {
    let directory = std::env::args_os().nth(1).unwrap_or_else(|| ".".into());
    println!("{:#}", serde_json::to_value(hwspec::probe::this_machine(Path::new(&directory)))?);
    Ok(())
}

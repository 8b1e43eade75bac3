//! `redoubt reboot` and `redoubt decommission`: what is done to a node elsewhere.

use crate::operator::Remote;
use crate::output::{Failure, Reply};
use clap::Args;
use host_os::decommission::Signed;
use host_os::operator::orders::Action;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

/// How much of a node's name is typed to confirm.
const TYPED: usize = 8;

/// Starts a node's machine again, in order: the guest ends first
#[derive(Debug, Args)]
pub(crate) struct Reboot {
    #[command(flatten)]
    remote: Remote,
    /// Only the guest; also one that the node has given up
    #[arg(long, conflicts_with_all = ["off", "other_slot"])]
    guest: bool,
    /// Switch the machine off instead
    #[arg(long, conflicts_with = "other_slot")]
    off: bool,
    /// Start, once, the system in the other slot: recovery
    #[arg(long)]
    other_slot: bool,
}

const DECOMMISSION_HELP: &str = "\
The guest ends, then its keys, the node's own key, its configuration and its list of operators are overwritten, flushed and
read back from the drive, and the machine is switched off. The answer is a statement of what was erased, under the node's own
key, which goes last. A power cut costs nothing: the node goes on erasing when it starts. There is no way back.

Exit codes: 0 erased, and the statement holds; 1 refused or failed; 2 the command line was wrong";

/// Erases a node's keys for good and proves it
#[derive(Debug, Args)]
#[command(after_help = DECOMMISSION_HELP)]
pub(crate) struct Decommission {
    #[command(flatten)]
    remote: Remote,
    /// The first 8 or more digits of the node's name, instead of typing them
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// Where the statement goes, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn reboot(args: &Reboot) -> Result<Reply, Failure> {
    let action = match args {
        Reboot { guest: true, .. } => Action::RestartGuest,
        Reboot { off: true, .. } => Action::PowerOff,
        Reboot { other_slot: true, .. } => Action::StartOtherSlot,
        _ => Action::Reboot,
    };
    args.remote.order(action, |_| Ok(()))?;
    let text = match action {
        Action::RestartGuest => "the guest ends and starts again",
        Action::PowerOff => "the machine ends and stays off",
        Action::StartOtherSlot => "the machine ends and starts the other slot, once",
        Action::Reboot | Action::Decommission => "the machine ends and starts again",
    };
    Ok(Reply::good(text, json!({ "action": action })))
}

pub(crate) fn decommission(args: &Decommission) -> Result<Reply, Failure> {
    let signed = args.remote.order(Action::Decommission, |node| confirm(node, args.confirm.as_deref()))?;
    let signed = signed.ok_or_else(|| Failure::new("node-answer-unusable", "the node gave no statement"))?;
    if let Some(path) = &args.out {
        let bytes = serde_json::to_vec_pretty(&signed).unwrap_or_default();
        std::fs::write(path, bytes).map_err(|error| {
            Failure::new("statement-not-written", format!("cannot write {}: {error}", path.display()))
        })?;
    }
    if !args.remote.is_signer(&signed) {
        let message = "the node's statement does not hold: it lacks the node's signature, or something was not read back";
        return Err(Failure::new("statement-does-not-hold", message));
    }
    Ok(Reply::good(describe(&signed), json!(signed)))
}

fn describe(signed: &Signed) -> String {
    let mut text = format!("The node {} is decommissioned. Erased and read back:\n", signed.statement.node);
    for erased in &signed.statement.erased {
        match erased.bytes {
            0 => text.push_str(&format!("  {}: was not there\n", erased.what)),
            bytes => text.push_str(&format!("  {}: {bytes} bytes\n", erased.what)),
        }
    }
    text.push_str("Signed with the node's own key, which was erased last.");
    text
}

/// Whether somebody typed the beginning of the node's name.
fn confirm(node: &str, given: Option<&str>) -> Result<(), Failure> {
    let typed = match given {
        Some(typed) => typed.to_owned(),
        None if !std::io::stdin().is_terminal() => String::new(),
        None => {
            eprint!(
                "All that the node {node} keeps will be lost for good. Type the first {TYPED} digits of its name: "
            );
            let mut line = String::new();
            let _ = std::io::stderr().flush();
            std::io::stdin().read_line(&mut line).map_err(|error| Failure::of("not-confirmed", &error))?;
            line
        }
    };
    let typed = typed.trim().to_lowercase();
    if typed.len() >= TYPED && node.starts_with(&typed) {
        return Ok(());
    }
    let message = format!("nothing was erased; confirm with --confirm {}", node.get(..TYPED).unwrap_or(node));
    Err(Failure::new("not-confirmed", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginning_of_the_nodes_own_name_confirms() {
        let node = "ab12cd34".repeat(8);
        for good in ["ab12cd34", "AB12CD34ab\n", node.as_str()] {
            assert!(confirm(&node, Some(good)).is_ok(), "{good}");
        }
        for bad in ["", "ab12cd3", "yes", "b12cd34a", "ab12cd35"] {
            assert_eq!(confirm(&node, Some(bad)).unwrap_err().code, "not-confirmed", "{bad}");
        }
    }
}

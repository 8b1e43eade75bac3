//! `redoubt`: the one command that people type.

mod attest;
mod flash;
mod full;
mod hardware;
mod heap;
mod id_block;
mod image;
mod logs;
mod node;
mod operator;
mod orders;
mod output;
mod prometheus;
mod releases;
mod support;
mod up;
mod upgrade;

use clap::{Parser, Subcommand};
use output::Output;
use std::process::ExitCode;

/// Runs, watches and verifies confidential nodes
#[derive(Parser)]
#[command(version, after_help = output::EXIT_CODES)]
struct Cli {
    /// Print JSON on standard output instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a node on this machine, wait until it serves, and verify its evidence
    Up(Box<up::Up>),
    /// Say how the node is
    Status(node::Status),
    /// Show the agent's log, or the guest's console
    Logs(logs::Logs),
    /// Pack what helps to understand a node's trouble
    Support(support::Support),
    /// Start a node elsewhere again, its guest only, or from its other slot; or switch it off
    Reboot(orders::Reboot),
    /// Bring a node a new release, or show how that goes
    Upgrade(Box<upgrade::Upgrade>),
    /// Erase the keys of a node elsewhere for good, and prove it
    Decommission(orders::Decommission),
    /// Stop the node; what it stored stays
    Down(node::Down),
    /// Keys of those who may operate a node from elsewhere
    #[command(subcommand)]
    Operator(operator::Operator),
    /// Fetch and verify the evidence of any node
    #[command(subcommand)]
    Attest(attest::Attest),
    /// Look at this machine and compare it with a hardware specification
    #[command(subcommand)]
    Hw(hardware::Hw),
    /// Make, sign, bless and verify releases
    #[command(subcommand)]
    Release(releases::Releases),
    /// Build releases from locked inputs; rebuild and compare them
    #[command(subcommand)]
    Image(image::Image),
    /// Write the installer to a USB stick or into a file
    Flash(flash::Flash),
    /// Look at a heap's medium, check it, rescue what it holds; never changes it
    #[command(subcommand)]
    Heap(heap::HeapCommand),
    /// The host agent itself, as `up` starts it
    #[command(hide = true)]
    HostOs(Box<host_os::cli::RunArgs>),
}

fn main() -> ExitCode {
    if let Some(code) = host_os::confine::launcher::run_if_asked() {
        return code;
    }
    let Cli { json, command } = Cli::parse();
    let output = Output::new(json);
    let result = match command {
        Command::Up(args) => up::run(*args, &output),
        Command::Status(args) => node::status(&args),
        Command::Logs(args) => logs::run(&args, &output),
        Command::Support(args) => support::run(&args),
        Command::Reboot(args) => orders::reboot(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Decommission(args) => orders::decommission(&args),
        Command::Down(args) => node::down(&args),
        Command::Operator(command) => operator::run(command),
        Command::Attest(args) => attest::run(args),
        Command::Hw(args) => hardware::run(&args),
        Command::Release(args) => releases::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Flash(args) => flash::run(&args, &output),
        Command::Heap(args) => heap::run(&args),
        Command::HostOs(args) => return ExitCode::from(host_os::cli::run(&args)),
    };
    output.finish(result)
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_command_line_is_whole() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_node_is_here_or_elsewhere() {
        let elsewhere = ["redoubt", "status", "--node", "h:1", "--node-key", &"00".repeat(32)];
        assert!(Cli::try_parse_from(elsewhere).is_ok());
        assert!(Cli::try_parse_from([&elsewhere[..], &["--node-dir", "d"]].concat()).is_err());
    }
}

//! `host-os`: the host agent.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The host agent of a Redoubt node
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<host_os::cli::RunArgs>),
}

fn main() -> ExitCode {
    if let Some(code) = host_os::confine::launcher::run_if_asked() {
        return code;
    }
    if std::process::id() == 1 {
        // The kernel gives PID 1 what it does not understand of its command line; it is read from /proc.
        host_os::pid1::run();
    }
    let Command::Run(args) = Cli::parse().command;
    ExitCode::from(host_os::cli::run(&args))
}

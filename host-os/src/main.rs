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
    let Command::Run(args) = Cli::parse().command;
    ExitCode::from(host_os::cli::run(&args))
}

//! `replica --config FILE`: serves the Internet Computer's interface for the canisters on one heap.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use replica::config::{Config, LogFormat};
use replica::node::{Node, Rotation, StartError};
use tokio::signal::unix::{Signal, SignalKind, signal};

// Whoever builds this together with the crash simulator would get its seeded faults into the product.
#[cfg(not(debug_assertions))]
const _: () = assert!(!heap::mutants::BUILT_IN, "build the replica without the feature heap/mutants");

/// Serves the Internet Computer's interface for the canisters on one persistent heap.
#[derive(Parser)]
#[command(
    version,
    after_help = "SIGHUP: reads the configuration again and puts the heap under the key that heap.key says, without a \
    pause; other changes wait for the next start.\n\nExit codes:\n  0  stopped as asked (SIGTERM, SIGINT)\n  1  execution could not go on: \
    check the heap's medium and the log\n  2  wrong arguments\n  3  the configuration cannot be used\n  4  a part \
    could not be opened: secret, heap, canisters, TLS or the socket\n  5  the heap's medium is an older image: it ends \
    before the commit heap.at_least"
)]
struct Arguments {
    /// Configuration (TOML); examples/laptop.toml explains each key.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

const ENDED: u8 = 1;
const BAD_CONFIG: u8 = 3;
const NOT_OPENED: u8 = 4;
const OLDER_MEDIUM: u8 = 5;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::read(&arguments.config) {
        Ok(config) => config,
        Err(error) => return failed(&error, BAD_CONFIG),
    };
    log_to_stdout(config.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error, NOT_OPENED),
    };
    let code = runtime.block_on(run(config, arguments.config));
    // An executor in the middle of a message does not hold up the end.
    runtime.shutdown_background();
    code
}

async fn run(config: Config, path: PathBuf) -> ExitCode {
    // Before anything is served, so that a signal is never missed.
    let signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let (mut terminate, mut interrupt, hangup) = match signals {
        [Ok(terminate), Ok(interrupt), Ok(hangup)] => (terminate, interrupt, hangup),
        [Err(error), ..] | [_, Err(error), _] | [.., Err(error)] => return failed(&error, NOT_OPENED),
    };
    let node = match Node::start(config, replica::clock::system()).await {
        Ok(node) => node,
        Err(error) => {
            let older = matches!(error, StartError::Heap(heap::OpenError::RolledBack { .. }));
            return failed(&error, if older { OLDER_MEDIUM } else { NOT_OPENED });
        }
    };
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::spawn(follow(hangup, path, node.rotation()));
    match node.serve(stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, ENDED),
    }
}

/// Reads the configuration again whenever it is asked to, and has the heap go on under the key that it names.
async fn follow(mut hangup: Signal, path: PathBuf, mut rotation: Rotation) {
    while hangup.recv().await.is_some() {
        let config = match Config::read(&path) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!("the heap stays under its key: {error}");
                continue;
            }
        };
        let key = config.heap.key;
        match rotation.rotate(key).await {
            Ok(true) => tracing::info!(key, "the heap goes on under another key"),
            Ok(false) => tracing::info!(key, "the heap's key is the same"),
            Err(error) => tracing::error!("the heap stays under its key: {error}"),
        }
    }
}

/// Prints an error with its causes.
fn failed(error: &dyn Error, code: u8) -> ExitCode {
    eprintln!("replica: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::from(code)
}

/// Log lines on standard output; RUST_LOG chooses what, "info" if it is not set.
fn log_to_stdout(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    match format {
        LogFormat::Plain => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}

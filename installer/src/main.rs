//! The installer: PID 1 of its own initrd.

fn main() {
    if std::process::id() == 1 {
        installer::program::run();
    }
    eprintln!(
        "error: this program is the first process of the installer's medium; write that with `redoubt flash`"
    );
    std::process::exit(2);
}

//! The `runbook` program: everything is in the library.

fn main() {
    std::process::exit(runbook::cli::main());
}

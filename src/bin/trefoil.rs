//! The command line. See `trefoil::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    trefoil::cli::main()
}

//! The program `lp-exporter`: see the library's documentation for how it is laid out.

use std::process::ExitCode;

fn main() -> ExitCode {
    lp_exporter::run(std::env::args_os())
}

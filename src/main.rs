//! The process: panic hook and allocator first, then the command line.

use std::process::ExitCode;

/// Clears every block of memory before it goes back to the system's allocator.
#[global_allocator]
static ALLOCATOR: nullhop::hygiene::WipingAllocator = nullhop::hygiene::WipingAllocator;

fn main() -> ExitCode {
    nullhop::main()
}

//! What the daemon has put into the kernel outlives it, and the next daemon takes it over. Run with `--test-threads=1`.

mod lost;
mod restart;
mod upgrade;

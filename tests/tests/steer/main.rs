//! What the kernel does with connections, as their callers notice it. Run with `--test-threads=1`.

mod addresses;
mod callers;
mod counts;
mod drained;
mod elsewhere;
mod floor;
mod leases;
mod lives;
mod modes;
mod policies;
mod strangers;
mod trace;

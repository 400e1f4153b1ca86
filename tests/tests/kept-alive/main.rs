//! Kept-alive connections: drained without a lost request, whatever load balancer keeps them, and without touching any other.
//!
//! Quick by default; `--full` has all repeats.

mod balancers;
mod closings;
mod empty;
mod hot;
mod others;
mod pauses;
mod redirected;
mod scene;
mod streams;
mod tls;
mod twin;

/// Whether the long variants are wanted.
fn full() -> bool {
    std::env::var_os("DEPLOYER_FULL").is_some()
}

/// Rolls in a row.
fn rolls() -> usize {
    if full() { 5 } else { 2 }
}

//! What the eBPF programs and user space share: the layout of the tables, and the steering decision.
//!
//! Everything here is `no_std`, `repr(C)` and free of padding (asserted at compile time), and the decision is a pure
//! function over the trait [`decide::Tables`]: the very code that runs inside `connect()` is property-tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod decide;
pub mod endpoint;
pub mod histogram;
pub mod lanes;
pub mod layout;
#[cfg(feature = "user")]
mod pod;
pub mod protect;
pub mod reap;
pub mod word;

#[cfg(test)]
mod tests;

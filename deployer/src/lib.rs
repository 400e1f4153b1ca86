//! deployer: rolls the workers of an appserver without losing a request.
//!
//! ARCHITECTURE.md in the repository's root tells how it works and why.

mod admission;
pub mod api;
pub mod check;
pub mod cli;
mod command;
pub mod config;
pub mod daemon;
pub mod deploy;
pub mod failpoint;
pub mod fleet;
pub mod framing;
pub mod journal;
pub mod keepalive;
pub mod kernel;
mod launch;
pub mod log;
pub mod metrics;
mod panics;
pub mod report;
pub mod roll;
pub mod service;
pub mod trust;
pub mod version;
pub mod warm;
pub mod workers;

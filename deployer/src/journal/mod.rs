//! The journal: what outlives the daemon, in one directory.
//!
//! `state` is what is written down, `file` how a state file is read and replaced, `folder` the directory with its lock,
//! `writer` the one thread that writes, `disk` the one that writes all else, `events` the log of each roll, `history` that of the host, `recover` what a start makes of intent and fact.
//!
//! Intent comes before effect: what a roll is about to do to a worker is in the file before the kernel's word or the
//! process is touched. Facts (a worker is up, and runs v2) may come later than they happen, since a start trusts what it
//! sees more than what it reads.

pub mod disk;
pub mod events;
pub mod file;
pub mod folder;
pub mod history;
mod log;
pub mod recover;
pub mod state;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

pub use folder::{Folder, OpenError};
pub use history::History;
pub use state::{ByHand, FleetEnd, FleetMemory, Hand, LaneState, RollState, ServiceState, State, WorkerState};
pub use writer::{HANG_PATIENCE, Journal, PATIENCE, Store};

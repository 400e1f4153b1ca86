//! The roll: which workers, in which order, what becomes of a failure.
//!
//! `machine` decides and touches nothing; `worker` takes one worker through its restart, in a `world`; `run` connects the
//! two, and `record` is what it tells.

mod command;
pub mod machine;
pub mod record;
pub mod run;
pub(crate) mod start;
mod worker;
pub mod world;

pub use record::Record;

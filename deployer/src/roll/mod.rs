//! The roll: which workers, in which order, what becomes of a failure.
//!
//! `machine` decides and touches nothing; `worker` takes one worker through its restart; `run` connects the two.

pub mod machine;
pub mod record;
pub mod run;
mod start;
mod worker;

pub use record::Record;

//! The roll: which workers, in which order, what becomes of a failure.
//!
//! `machine` decides and touches nothing; `worker` takes one worker through its restart, in a `world`; `run` connects the
//! two, batch by batch, and `record` is what it tells; `left` holds the workers that were left. `journaled` waits for the journal. `deploy` does what a deploy has more
//! than a roll, with its `flip` and its `bake`, and `orders` is what it is asked for meanwhile.

mod bake;
pub mod barrier;
mod batch;
mod command;
mod deploy;
mod flip;
mod journaled;
mod kept;
mod left;
pub mod machine;
pub mod orders;
pub mod record;
pub mod run;
pub(crate) mod start;
mod told;
mod worker;
pub mod world;

pub use record::Record;

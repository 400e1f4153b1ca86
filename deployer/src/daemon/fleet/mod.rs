//! This host as one of a fleet.

mod agent;
mod drive;
mod hand;
mod local;
mod publish;
mod register;

pub(super) use hand::Fleet;

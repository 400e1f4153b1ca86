//! This host as one of a fleet.

mod agent;
mod asked;
mod drive;
mod hand;
mod local;
mod publish;
mod register;
mod shown;

pub(super) use hand::Fleet;

//! Many hosts as one: they flip together, by ZooKeeper's barriers, and are published in server sets.
//!
//! A service's hosts follow one node, `state`, which says in which phase the fleet is and what it serves. What a host does
//! about it is a pure function ([`member`]); so is what becomes of the state ([`driver`]). ZooKeeper is behind
//! [`coordinator::Coordinator`], and nothing that is served depends on it.

pub mod alone;
pub mod barrier;
pub mod board;
pub mod coordinator;
pub mod driver;
pub mod member;
pub mod paths;
pub mod serverset;
pub mod sound;
pub mod state;
pub mod turns;
pub mod zookeeper;

#[cfg(test)]
mod tests;

//! ZooKeeper as a fleet's coordinator, without a daemon: real servers, which are restarted, suspended and killed.

mod access;
mod barriers;
mod kazoo;
mod nodes;
mod outages;
mod scene;
mod sets;
mod watches;

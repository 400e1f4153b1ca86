//! ZooKeeper as a fleet's coordinator, without a daemon: real servers, which are restarted, suspended and killed.

mod access;
mod balancer;
mod barriers;
mod kazoo;
mod nodes;
mod orders;
mod outages;
mod rolls;
mod scene;
mod sets;
mod watches;

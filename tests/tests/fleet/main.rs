//! Five hosts that flip together: real daemons, workers, nginx and ZooKeeper, with a load through Varnish.

mod cell;
mod clocks;
mod deploys;
mod joins;
mod load;
mod operators;
mod outages;
mod spread;

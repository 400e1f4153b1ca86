//! Five hosts that flip together: real daemons, workers, nginx and ZooKeeper, with a load through Varnish.

mod load;

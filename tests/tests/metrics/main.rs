//! What Prometheus is told: the page, and Debian's Prometheus with the shipped rules beside rolls, faults and crowds.

mod clean;
mod deploys;
mod faults;
mod page;
mod restart;
mod shipped;
mod thousand;

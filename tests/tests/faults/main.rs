//! What goes wrong in a roll, under load: nothing is lost, the roll stops and says which worker and why, the failed one
//! is out and all others serve on. Run with `--test-threads=1`.

mod crash;
mod daemon;
mod drains;
mod floor;
mod gone;
mod hung;
mod late;
mod leave;
mod manager;
mod policies;
mod tasks;
mod workers;

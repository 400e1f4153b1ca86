//! What outlives the daemon: rolls, failed workers, operators' drains; and what becomes of a state directory that is
//! damaged, missing, full or of another version. Run with `--test-threads=1`.

mod disk;
mod files;
mod hands;
mod history;
mod log;
mod rolls;

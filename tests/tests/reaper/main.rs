//! The reaper by itself, without a daemon: what it closes, and what it leaves alone. Run with `--test-threads=1`.

mod closes;
mod ends;
mod spares;
mod storm;

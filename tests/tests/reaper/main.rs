//! The reaper by itself, without a daemon: what it closes, and what it leaves alone.

mod closes;
mod crowd;
mod ends;
mod spares;
mod storm;

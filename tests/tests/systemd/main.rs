//! systemd as the process manager: a real one, with a real bus, and workers that are units of a template. Run with
//! `--test-threads=1`.

mod failures;
mod rolls;
mod scene;
mod shipped;

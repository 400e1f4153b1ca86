//! The process managers, each with its real parts: what all of them must do alike (`cases`), and what only one of them
//! does.
//!
//! A manager takes part by a file with a [`scene::Fixture`] and `super::cases::suite!(ITS_TYPE)`. Run with `--test-threads=1`.

mod addresses;
mod builtin;
mod cases;
mod daemon;
mod exec;
mod scene;
mod supervisord;
mod surge;
mod systemd;
mod tls;

//! What a local user without privileges may try against a daemon beside him, and what comes of it: nothing.

mod api;
mod commands;
mod drains;
mod identity;
mod logs;
mod protect;
mod trust;

//! What the watch of HTTP framing makes of real connections over a real loopback device, and what it costs.
//! Run with `--test-threads=1`.

mod cost;
mod joined;
mod scene;
mod streams;
mod whole;

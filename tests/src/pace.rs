//! How slow this machine is: where nothing runs at its usual speed, the harness waits longer and asks for less.

use std::env;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Result, bail};

/// Names how many times slower than a usual machine this one is: a whole number, 1 to [`MOST`]; 1 if it is not set.
///
/// By this factor the harness waits longer for what must become ready or answer, its loads send fewer requests a second,
/// and the usual service's configuration has later deadlines. What a test asserts of itself stays as it is, unless it
/// asks for [`patient`]. `cargo xtask test kernels` sets it where it has to emulate the processor.
pub const VARIABLE: &str = "DEPLOYER_SLOW";
/// Nobody waits longer than that.
pub const MOST: u32 = 100;

/// What takes a moment has happened within this time, also on a machine that has much else to do: a process that was
/// started is ready, a request has reached its worker.
pub const SOON: Duration = Duration::from_secs(60);

/// The factor.
///
/// # Errors
/// When the variable holds anything but such a number.
pub fn factor() -> Result<u32> {
    match env::var_os(VARIABLE) {
        None => Ok(1),
        Some(text) => parse(&text.to_string_lossy()),
    }
}

fn parse(text: &str) -> Result<u32> {
    match text.parse() {
        Ok(factor) if (1..=MOST).contains(&factor) => Ok(factor),
        _ => bail!("{VARIABLE}={text}: set it to a whole number, 1 to {MOST}, or not at all"),
    }
}

/// Read once. A wrong value was refused when the sandbox was made.
fn known() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| factor().unwrap_or(1))
}

/// So long is waited here for what takes at most `limit` on a usual machine.
pub fn patient(limit: Duration) -> Duration {
    limit * known()
}

/// So many requests a second are sent here instead of `rate`.
pub fn gentle(rate: f64) -> f64 {
    rate / f64::from(known())
}

/// Whether the long variants are asked for (`cargo xtask test --full`).
#[must_use]
pub fn is_full() -> bool {
    std::env::var_os("DEPLOYER_FULL").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_in_range_is_a_factor() {
        assert_eq!(parse("1").ok(), Some(1));
        assert_eq!(parse("100").ok(), Some(100));
        for wrong in ["", "0", "101", "-1", "1.5", "ten", "99999999999"] {
            let error = parse(wrong).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(&format!("{VARIABLE}={wrong}:")), "{wrong:?}: {error:?}");
        }
    }
}

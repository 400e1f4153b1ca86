//! `deployer unit`: the systemd unit that is shipped, to be installed or compared with the one in place.

use super::out;
use crate::api::Exit;

/// The file as shipped.
const UNIT: &str = include_str!("../../deployer.service");

pub(super) fn run() -> Exit {
    match out::say(UNIT) {
        Ok(exit) => exit,
        Err(failure) => {
            out::error(&failure.message);
            failure.exit
        }
    }
}

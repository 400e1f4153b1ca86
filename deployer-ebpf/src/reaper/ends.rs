//! The two ends of a socket, as the table of targets has them.

use deployer_common::{endpoint::MAPPED, reap::Ends};

use crate::fields::{
    OFF_SK_ADDR4, OFF_SK_ADDR6, OFF_SK_DADDR4, OFF_SK_DADDR6, OFF_SK_DPORT, OFF_SK_FAMILY, OFF_SK_NUM, read, value,
};

const AF_INET6: u16 = 10;

/// The ends of a socket: its own as the caller's, the other as the worker's.
#[inline(always)]
pub fn of(sk: u64) -> Ends {
    let mut ends = Ends {
        caller_port: value::<u16>(sk, &OFF_SK_NUM).into(),
        worker_port: u16::from_be(value(sk, &OFF_SK_DPORT)).into(),
        ..Ends::default()
    };
    if value::<u16>(sk, &OFF_SK_FAMILY) == AF_INET6 {
        ends.caller = read(sk, &OFF_SK_ADDR6).unwrap_or_default();
        ends.worker = read(sk, &OFF_SK_DADDR6).unwrap_or_default();
    } else {
        ends.caller = [0, 0, MAPPED, value(sk, &OFF_SK_ADDR4)];
        ends.worker = [0, 0, MAPPED, value(sk, &OFF_SK_DADDR4)];
    }
    ends
}

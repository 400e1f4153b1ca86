//! Addresses, as the tables hold them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use deployer_common::endpoint::MAPPED;

/// An address from how the tables hold it.
#[must_use]
pub fn address(words: [u32; 4]) -> IpAddr {
    let mut bytes = [0; 16];
    for (word, bytes) in words.iter().zip(bytes.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(bytes).to_canonical()
}

/// An address as the tables hold it.
pub(in crate::kernel) fn words(ip: IpAddr) -> [u32; 4] {
    match ip {
        IpAddr::V4(ip) => [0, 0, MAPPED, u32::from_ne_bytes(ip.octets())],
        IpAddr::V6(ip) => {
            let bytes = ip.octets();
            std::array::from_fn(|nth| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[4 * nth + byte])))
        }
    }
}

/// The spellings of an address that reach the same listener: 127.0.0.1, `localhost` (which is ::1 too) and, as Linux
/// has it, connecting to 0.0.0.0 or `::`.
pub(super) fn spellings(at: SocketAddr) -> Vec<SocketAddr> {
    let all: &[IpAddr] = match at.ip() {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => &[
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ],
        IpAddr::V6(Ipv6Addr::LOCALHOST) => &[IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
        _ => return vec![at],
    };
    all.iter().map(|ip| SocketAddr::new(*ip, at.port())).collect()
}

//! Addresses as table keys.

/// An address and port in one network namespace: the key of the frontend and listener tables.
///
/// IPv4 is kept in its IPv6-mapped form (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2), so that a dual-stack socket that dials
/// `::ffff:127.0.0.1` and one that dials `127.0.0.1` meet the same entry.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// `SO_NETNS_COOKIE` of the namespace; never reused while the machine runs.
    pub netns: u64,
    /// The address in network byte order, as the kernel holds it.
    pub addr: [u32; 4],
    /// The port in host byte order, 1-65535.
    pub port: u32,
    /// Always 0: keys are compared byte by byte.
    pub zero: u32,
}

const _: () = assert!(size_of::<Endpoint>() == 32);

/// Second and third word of every IPv4-mapped address, in network byte order.
pub const MAPPED: u32 = 0xffff_u32.to_be();

impl Endpoint {
    /// From an IPv4 address in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(netns: u64, addr: u32, port: u32) -> Self {
        Self::v6(netns, [0, 0, MAPPED, addr], port)
    }

    /// From an IPv6 address in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v6(netns: u64, addr: [u32; 4], port: u32) -> Self {
        Self { netns, addr, port, zero: 0 }
    }

    /// Whether it is an IPv4 address in mapped form.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(addr: &[u32; 4]) -> bool {
        addr[0] == 0 && addr[1] == 0 && addr[2] == MAPPED
    }
}

//! The address in a context. The verifier allows its words to be read and written one by one only, hence volatile.

use core::array::from_fn;

use aya_ebpf::bindings::bpf_sock_addr;

/// The IPv6 address, network byte order.
#[inline(always)]
pub fn ip6(sa: &bpf_sock_addr) -> [u32; 4] {
    // SAFETY: a field of a live reference.
    from_fn(|nth| unsafe { (&raw const sa.user_ip6[nth]).read_volatile() })
}

/// Sets the IPv6 address, network byte order.
#[inline(always)]
pub fn set_ip6(sa: &mut bpf_sock_addr, addr: [u32; 4]) {
    for (nth, word) in addr.into_iter().enumerate() {
        // SAFETY: a field of a live reference.
        unsafe { (&raw mut sa.user_ip6[nth]).write_volatile(word) };
    }
}

/// The port, host byte order.
#[inline(always)]
pub fn port(sa: &bpf_sock_addr) -> u32 {
    u32::from(u16::from_be(sa.user_port as u16))
}

/// Sets the port, host byte order.
#[inline(always)]
pub fn set_port(sa: &mut bpf_sock_addr, port: u32) {
    sa.user_port = u32::from((port as u16).to_be());
}

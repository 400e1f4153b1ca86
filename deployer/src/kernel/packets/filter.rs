//! The filter of a packet socket: a program of classic BPF (Documentation/networking/filter.rst), which sees packets from
//! the network header on.

use socket2::SockFilter;

/// The most ranges of ports: three operations each, for either end, of at most 4,096 (`BPF_MAXINSNS`).
const MOST_RANGES: usize = 600;

// Classes, sizes, modes and operations of `linux/bpf_common.h`.
const LD_B_ABS: u16 = 0x30;
const LD_H_ABS: u16 = 0x28;
const LD_H_IND: u16 = 0x48;
const LD_B_IND: u16 = 0x50;
const LD_W_LEN: u16 = 0x80;
const LDX_IMM: u16 = 0x01;
const LDX_MEM: u16 = 0x61;
/// X becomes four times the low half of the byte there: the length of an IPv4 header.
const LDX_B_MSH: u16 = 0xb1;
const ST: u16 = 0x02;
const STX: u16 = 0x03;
const ADD_X: u16 = 0x0c;
const SUB_X: u16 = 0x1c;
const AND: u16 = 0x54;
const RSH: u16 = 0x74;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const RET: u16 = 0x06;

/// FIN, SYN, RST.
const MILESTONES: u32 = 0x07;
const FRAGMENT: u32 = 0x1fff;

/// Lets pass what is TCP, has one of these ports at either end, and carries data or begins or ends a connection.
pub(super) fn program(ports: &[u16]) -> Vec<SockFilter> {
    let version4 = joined([must(LD_B_ABS, 9, 6), must_not_have(LD_H_ABS, 6, FRAGMENT), vec![op(LDX_B_MSH, 0)]]);
    let version6 = version6();
    let mut program = vec![op(LD_B_ABS, 0), op(RSH, 4), jump(JEQ, 4, 0, version4.len() as u8 + 1)];
    program.extend(version4);
    program.push(op(JA, version6.len() as u32));
    program.extend(version6);
    program.extend(carries());
    program.extend(has_port(ports));
    program
}

fn op(code: u16, k: u32) -> SockFilter {
    SockFilter::new(code, 0, 0, k)
}

fn joined<const N: usize>(parts: [Vec<SockFilter>; N]) -> Vec<SockFilter> {
    parts.into_iter().flatten().collect()
}

/// Goes on `yes` or `no` operations further than the next.
fn jump(code: u16, k: u32, yes: u8, no: u8) -> SockFilter {
    SockFilter::new(code, yes, no, k)
}

fn reject() -> SockFilter {
    op(RET, 0)
}

/// Rejects unless what is loaded is `value`.
fn must(load: u16, at: u32, value: u32) -> Vec<SockFilter> {
    vec![op(load, at), jump(JEQ, value, 1, 0), reject()]
}

/// Rejects if what is loaded has any of these bits.
fn must_not_have(load: u16, at: u32, bits: u32) -> Vec<SockFilter> {
    vec![op(load, at), jump(JSET, bits, 0, 1), reject()]
}

/// Version 6, with TCP at once or, in packets of more than 64 KiB, behind a hop-by-hop header of 8 bytes; X becomes
/// where TCP begins. What is loaded is the version.
fn version6() -> Vec<SockFilter> {
    let hop_by_hop = joined([must(LD_B_ABS, 40, 6), must(LD_B_ABS, 41, 0), vec![op(LDX_IMM, 48)]]);
    let mut program = vec![jump(JEQ, 6, 1, 0), reject(), op(LD_B_ABS, 6), jump(JEQ, 6, 0, 2), op(LDX_IMM, 40)];
    program.push(op(JA, hop_by_hop.len() as u32 + 2));
    program.extend([jump(JEQ, 0, 1, 0), reject()]);
    program.extend(hop_by_hop);
    program
}

/// Rejects what neither carries data nor has a flag of a connection's begin or end. X is where TCP begins, and stays so.
fn carries() -> Vec<SockFilter> {
    let data = [
        op(STX, 0),
        op(LD_B_IND, 12),
        op(AND, 0xf0),
        op(RSH, 2),
        op(ADD_X, 0),
        op(ST, 1),
        op(LDX_MEM, 1),
        op(LD_W_LEN, 0),
        op(SUB_X, 0),
        jump(JEQ, 0, 0, 1),
        reject(),
        op(LDX_MEM, 0),
    ];
    let mut program = vec![op(LD_B_IND, 13), jump(JSET, MILESTONES, data.len() as u8, 0)];
    program.extend(data);
    program
}

/// Accepts if a port is one of these, else rejects.
fn has_port(ports: &[u16]) -> Vec<SockFilter> {
    let ranges = ranges(ports);
    let each = 3 * ranges.len();
    let mut program = Vec::with_capacity(2 * each + 4);
    for (end, at) in [0, 2].into_iter().enumerate() {
        program.push(op(LD_H_IND, at));
        for (n, (low, high)) in ranges.iter().enumerate() {
            // To the end: over the other ranges, for the first port also over those of the second, and over `reject`.
            let rest = each - 3 * (n + 1) + (1 - end) * (each + 1) + 1;
            let accept = op(JA, rest as u32);
            program.extend([jump(JGE, (*low).into(), 0, 2), jump(JGT, (*high).into(), 1, 0), accept]);
        }
    }
    program.extend([reject(), op(RET, u32::MAX)]);
    program
}

/// The ports as ranges. Where these are too many, the nearest are made one: packets of the ports between them are
/// sorted out later.
fn ranges(ports: &[u16]) -> Vec<(u16, u16)> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    let mut gaps: Vec<u16> = ports.windows(2).map(|pair| pair[1] - pair[0]).filter(|gap| *gap > 1).collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    let join = gaps.get(MOST_RANGES - 1).copied().unwrap_or(1);
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, high)) if port - *high <= join => *high = port,
            _ => ranges.push((port, port)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::{io, os::unix::net::UnixDatagram};

    use super::*;

    const ACK: u8 = 0x10;

    fn v4(ports: (u16, u16), flags: u8, protocol: u8, options: usize, payload: &[u8]) -> Vec<u8> {
        // Two words of options behind the IP header.
        let mut bytes = vec![0x47, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        bytes.extend([0; 16]);
        bytes.extend(tcp(ports, flags, options, payload));
        bytes
    }

    fn v6(ports: (u16, u16), flags: u8, next: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next[0], 64];
        bytes.extend([0; 32]);
        bytes.extend(&next[1..]);
        bytes.extend(tcp(ports, flags, 0, payload));
        bytes
    }

    fn tcp((from, to): (u16, u16), flags: u8, options: usize, payload: &[u8]) -> Vec<u8> {
        let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
        bytes.extend([0; 8]);
        bytes.extend([((5 + options) << 4) as u8, flags, 0, 0, 0, 0, 0, 0]);
        bytes.extend(vec![1; options * 4]);
        bytes.extend(payload);
        bytes
    }

    /// The kernel's own judgement: a filter can be attached to any socket.
    fn passes(ports: &[u16], packet: &[u8]) -> io::Result<bool> {
        let (sender, receiver) = UnixDatagram::pair()?;
        socket2::SockRef::from(&receiver).attach_filter(&program(ports))?;
        receiver.set_nonblocking(true)?;
        // Refused by the filter is an error here.
        let sent = sender.send(packet);
        let mut buffer = [0; 2048];
        match receiver.recv(&mut buffer) {
            Ok(len) => {
                assert_eq!((sent?, &buffer[..len]), (packet.len(), packet), "not cut");
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    #[test]
    fn the_kernel_lets_pass_what_it_should() -> io::Result<()> {
        let hop_by_hop = [0, 6, 0, 0xc2, 4, 0, 1, 0, 0];
        let ports = [8000, 8001, 8002, 9000];
        let cases = [
            (v4((43210, 8000), ACK, 6, 0, b"x"), true),
            (v4((8002, 43210), ACK, 6, 3, b"x"), true),
            (v4((43210, 9000), ACK, 6, 10, b"x"), true),
            (v4((43210, 8003), ACK, 6, 0, b"x"), false),
            (v4((7999, 43210), ACK, 6, 0, b"x"), false),
            (v4((43210, 9001), ACK, 6, 0, b"x"), false),
            (v4((43210, 8000), ACK, 17, 0, b"x"), false),
            (v4((43210, 8000), ACK, 6, 0, b""), false),
            (v4((43210, 8000), ACK, 6, 3, b""), false),
            (v4((43210, 8000), 0x02, 6, 5, b""), true),
            (v4((8000, 43210), ACK | 0x01, 6, 3, b""), true),
            (v4((8000, 43210), 0x04, 6, 0, b""), true),
            (v6((43210, 8000), ACK, &[6], b"x"), true),
            (v6((43210, 8000), ACK, &[6], b""), false),
            (v6((43210, 8003), ACK, &[6], b"x"), false),
            (v6((8001, 43210), ACK, &[17], b"x"), false),
            (v6((8001, 43210), ACK, &hop_by_hop, b"x"), true),
            (v6((8001, 43210), ACK, &hop_by_hop, b""), false),
            (vec![0x50; 60], false),
            (vec![0x45; 3], false),
            (vec![], false),
        ];
        for (packet, expected) in cases {
            assert_eq!(passes(&ports, &packet)?, expected, "{packet:x?}");
        }
        assert!(!passes(&[], &v4((43210, 8000), ACK, 6, 0, b"x"))?);
        let mut fragment = v4((43210, 8000), ACK, 6, 0, b"x");
        fragment[7] = 1;
        assert!(!passes(&ports, &fragment)?);
        Ok(())
    }

    #[test]
    fn many_ports_are_ranges() -> io::Result<()> {
        assert_eq!(ranges(&[3, 1, 2, 9, 9, 11]), [(1, 3), (9, 9), (11, 11)]);
        assert_eq!(ranges(&[0, u16::MAX]), [(0, 0), (u16::MAX, u16::MAX)]);
        let every: Vec<u16> = (0..20_000).map(|n| n * 3).collect();
        assert!(ranges(&every).len() <= MOST_RANGES);
        // Every second port, and the longest program: the kernel takes it.
        let most: Vec<u16> = (0..MOST_RANGES as u16).map(|n| 10_000 + n * 2).collect();
        assert_eq!(ranges(&most).len(), MOST_RANGES);
        assert!(passes(&most, &v4((43210, 10_000), ACK, 6, 0, b"x"))?);
        assert!(passes(&most, &v4((11_198, 43210), ACK, 6, 0, b"x"))?);
        assert!(!passes(&most, &v4((43210, 10_001), ACK, 6, 0, b"x"))?);
        Ok(())
    }
}

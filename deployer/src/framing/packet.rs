//! A packet's IP and TCP headers, from the network header on. Whatever is not TCP, or not whole, is `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;
/// TCP option of Multipath TCP (RFC 8684, section 3).
const MULTIPATH: u8 = 30;

/// A TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// Sequence number of the first byte, or of the SYN.
    pub(super) seq: u32,
    /// The next sequence number that is expected from the other end.
    pub(super) ack: u32,
    pub(super) flags: u8,
    /// Has the option of Multipath TCP.
    pub(super) multipath: bool,
    pub(super) payload: &'a [u8],
    /// Not all of the payload was received.
    pub(super) is_cut: bool,
}

impl<'a> Segment<'a> {
    /// Reads a packet of `len` bytes, of which `bytes` were received.
    pub(super) fn parse(bytes: &'a [u8], len: usize) -> Option<Self> {
        let (from, to, rest, missing) = match bytes.first()? >> 4 {
            4 => ipv4(bytes, len)?,
            6 => ipv6(bytes, len)?,
            _ => return None,
        };
        let header = rest.get(..20)?;
        let options = usize::from(header[12] >> 4) * 4;
        let options = (20..=rest.len()).contains(&options).then_some(options)?;
        Some(Self {
            from: SocketAddr::new(from, short(header, 0)?),
            to: SocketAddr::new(to, short(header, 2)?),
            seq: long(header, 4)?,
            ack: long(header, 8)?,
            flags: header[13],
            multipath: has_option(&rest[20..options], MULTIPATH),
            payload: &rest[options..],
            is_cut: missing,
        })
    }

    /// The first packet of a connection.
    pub(super) fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// The worker's answer to it.
    pub(super) fn is_syn_ack(&self) -> bool {
        self.flags & (SYN | ACK) == SYN | ACK
    }

    pub(super) fn is_fin(&self) -> bool {
        self.flags & FIN != 0
    }

    pub(super) fn is_rst(&self) -> bool {
        self.flags & RST != 0
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.flags & URG != 0
    }

    #[cfg(test)]
    pub(super) fn made(from: SocketAddr, to: SocketAddr, numbers: (u32, u32), flags: u8, payload: &'a [u8]) -> Self {
        let (seq, ack) = numbers;
        Self { from, to, seq, ack, flags, multipath: false, payload, is_cut: false }
    }
}

/// The two ends, what follows the header, and whether some of it is missing.
type Network<'a> = (IpAddr, IpAddr, &'a [u8], bool);

fn ipv4(bytes: &[u8], len: usize) -> Option<Network<'_>> {
    let header = bytes.get(..20)?;
    // A fragment: more are to come, or it is not the first.
    if header[9] != TCP || short(header, 6)? & 0x3fff != 0 {
        return None;
    }
    let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(long(header, at)?)));
    // 0 in packets longer than the field can say (BIG TCP, Linux 6.3).
    let total = match short(header, 2)? {
        0 => len,
        total => total.into(),
    };
    let (rest, missing) = body(bytes, usize::from(header[0] & 0xf) * 4, total, 20)?;
    Some((address(12)?, address(16)?, rest, missing))
}

fn ipv6(bytes: &[u8], len: usize) -> Option<Network<'_>> {
    let header = bytes.get(..40)?;
    let address = |at: usize| {
        let bytes: [u8; 16] = header[at..at + 16].try_into().ok()?;
        Some(Ipv6Addr::from(bytes).to_canonical())
    };
    // BIG TCP says 0, and the length in a hop-by-hop option (RFC 2675), or nowhere.
    let total = match short(header, 4)? {
        0 => len,
        payload => usize::from(payload) + 40,
    };
    let start = match header[6] {
        TCP => 40,
        HOP_BY_HOP if bytes.get(40..42)? == [TCP, 0] => 48,
        _ => return None,
    };
    let (rest, missing) = body(bytes, start, total, 40)?;
    Some((address(8)?, address(24)?, rest, missing))
}

/// What lies between the header and the packet's end, and whether some of that was not received.
fn body(bytes: &[u8], start: usize, total: usize, least: usize) -> Option<(&[u8], bool)> {
    let end = total.min(bytes.len());
    (start >= least).then_some(())?;
    Some((bytes.get(start..end)?, end < total))
}

fn has_option(mut options: &[u8], wanted: u8) -> bool {
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => return false,
            (1, rest) => rest,
            (kind, [len, ..]) if *len >= 2 => {
                if *kind == wanted {
                    return true;
                }
                options.get(usize::from(*len)..).unwrap_or_default()
            }
            _ => return false,
        };
    }
    false
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Port 43210 to 8000, sequence number 1000, acknowledges 2000, with an option of no operation and one of `option`.
    fn tcp(flags: u8, option: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = [43210_u16.to_be_bytes(), 8000_u16.to_be_bytes()].concat();
        bytes.extend(1000_u32.to_be_bytes());
        bytes.extend(2000_u32.to_be_bytes());
        bytes.extend([6 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend([1, option, 3, 7]);
        bytes.extend(payload);
        bytes
    }

    fn v4(total: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0];
        bytes.extend(total.to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, TCP, 0, 0, 127, 0, 0, 1, 127, 0, 0, 2]);
        bytes.extend(body);
        bytes
    }

    fn v6(payload: u16, next: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(payload.to_be_bytes());
        bytes.extend([next, 64]);
        bytes.extend(Ipv6Addr::LOCALHOST.octets());
        bytes.extend(Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn headers_are_read() {
        let body = tcp(ACK, 8, b"hello");
        let v4 = v4(49, &body);
        let segment = Segment::parse(&v4, v4.len()).unwrap();
        assert_eq!((segment.from, segment.to), ("127.0.0.1:43210".parse().unwrap(), "127.0.0.2:8000".parse().unwrap()));
        assert_eq!((segment.seq, segment.ack, segment.payload), (1000, 2000, &b"hello"[..]));
        assert!(!(segment.is_cut || segment.multipath || segment.is_syn() || segment.is_fin() || segment.is_rst()));
        let v6 = v6(29, TCP, &body);
        let segment = Segment::parse(&v6, v6.len()).unwrap();
        assert_eq!((segment.from, segment.to), ("[::1]:43210".parse().unwrap(), "127.0.0.1:8000".parse().unwrap()));
        assert_eq!(segment.payload, b"hello");
        assert!(Segment::parse(&v4, v4.len()).is_some_and(|segment| segment.payload == b"hello"));
    }

    #[test]
    fn the_length_is_the_packet_s_own() {
        let body = tcp(ACK, MULTIPATH, b"hello");
        let payload = |bytes: &[u8], len: usize| {
            Segment::parse(bytes, len).map(|segment| (segment.payload.to_vec(), segment.is_cut, segment.multipath))
        };
        // Padded, whole, and cut short on the way to us.
        assert_eq!(payload(&[v4(49, &body), vec![0; 6]].concat(), 55), Some((b"hello".to_vec(), false, true)));
        assert_eq!(payload(&v4(49, &body)[..46], 49), Some((b"he".to_vec(), true, true)));
        // Longer than the field can say.
        assert_eq!(payload(&v4(0, &body), 49), Some((b"hello".to_vec(), false, true)));
        assert_eq!(payload(&v4(0, &body), 70_000), Some((b"hello".to_vec(), true, true)));
        let jumbo = [&[TCP, 0, 0xc2, 4, 0, 1, 0x12, 0x34], &body[..]].concat();
        assert_eq!(payload(&v6(0, HOP_BY_HOP, &jumbo), 77), Some((b"hello".to_vec(), false, true)));
        // A fragment, and other protocols.
        let mut fragment = v4(49, &body);
        fragment[6] = 0x20;
        assert_eq!(payload(&fragment, 49), None);
        assert_eq!(payload(&v6(29, 17, &body), 69), None);
    }

    proptest! {
        #[test]
        fn garbage_is_read_or_refused(bytes: Vec<u8>, len: usize, version in prop_oneof![Just(0x45_u8), Just(0x60)]) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = version; }
            if let Some(protocol) = bytes.get_mut(if version == 0x45 { 9 } else { 6 }) { *protocol = TCP; }
            let _ = Segment::parse(&bytes, len);
        }

        #[test]
        fn garbled_options_are_skipped_or_end(options: Vec<u8>) {
            let _ = has_option(&options, MULTIPATH);
        }
    }
}

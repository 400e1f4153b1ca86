//! When connections were made, and last used. It costs more than to know that they are there, so it is asked for only where
//! somebody wants to see it.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

use deployer_common::layout::SockNote;
use rustix::time::{ClockId, clock_gettime};

use super::{MESSAGE, dump, open, request, states, u32_at};
use crate::kernel::tables::address;

/// `INET_DIAG_INFO`: `struct tcp_info`, as an extension of a request and as an attribute of an answer.
const INFO: u16 = 2;
/// Of `struct tcp_info`: milliseconds since data was last sent, and received.
const LAST_SENT: usize = 44;
const LAST_RECEIVED: usize = 52;
/// `INET_DIAG_REQ_SK_BPF_STORAGES` and, in it, `SK_DIAG_BPF_STORAGE_REQ_MAP_FD`.
pub(super) const REQ_STORAGES: u16 = 2;
pub(super) const REQ_STORAGE_MAP: u16 = 1;
/// `INET_DIAG_SK_BPF_STORAGES`, in it `SK_DIAG_BPF_STORAGE`, in it `SK_DIAG_BPF_STORAGE_MAP_VALUE`.
pub(super) const STORAGES: u16 = 20;
const STORAGE: u16 = 1;
const STORAGE_VALUE: u16 = 3;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` are no part of an attribute's type.
const TYPE: u16 = 0x3fff;

/// What is known of a socket's past.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Since data was last sent or received; `None`: it is not established yet.
    pub idle: Option<Duration>,
    /// Since it was established. Known of workers' ends that were made under the programs.
    pub age: Option<Duration>,
    /// What its caller has dialled, where it was steered elsewhere. Known of callers' ends.
    pub dialled: Option<SocketAddr>,
}

/// The connections of a port, at either end, by their sockets' cookies. `notes`: the programs' notes on sockets, which know
/// their ages.
///
/// # Errors
/// When netlink fails, or the answer is garbled.
pub fn activity(port: u16, notes: Option<BorrowedFd<'_>>) -> io::Result<HashMap<u64, Activity>> {
    let storages =
        notes.map(|notes| attribute(REQ_STORAGES, &attribute(REQ_STORAGE_MAP, &notes.as_raw_fd().to_ne_bytes())));
    let asked = ask(port, &storages.unwrap_or_default());
    // Who may not read the notes still sees the rest.
    if asked.is_err() && notes.is_some() { ask(port, &[]) } else { asked }
}

fn ask(port: u16, more: &[u8]) -> io::Result<HashMap<u64, Activity>> {
    let (netlink, mut found) = (open()?, HashMap::new());
    let now = clock_gettime(ClockId::Monotonic);
    let now_ns = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
    let request = request(states::ALIVE, Some(port), 1 << (INFO - 1), more);
    dump(&netlink, &request, &mut |message| {
        let cookie = u64::from(u32_at(message, 44)) | u64::from(u32_at(message, 48)) << 32;
        found.insert(cookie, read(message, now_ns));
    })?;
    Ok(found)
}

/// `message` is at least [`MESSAGE`] long; whatever comes after that is looked at with care.
fn read(message: &[u8], now_ns: u64) -> Activity {
    let mut activity = Activity::default();
    let is_established = message[1] == 1 || message[1] == 8;
    for (kind, value) in Attributes(&message[MESSAGE..]) {
        match kind {
            INFO if is_established && value.len() >= LAST_RECEIVED + 4 => {
                let last = u32_at(value, LAST_SENT).min(u32_at(value, LAST_RECEIVED));
                activity.idle = Some(Duration::from_millis(last.into()));
            }
            STORAGES => {
                activity.age = since(value).map(|since| Duration::from_nanos(now_ns.saturating_sub(since)));
                activity.dialled = dialled(value);
            }
            _ => {}
        }
    }
    activity
}

/// When a worker's end was established, as the programs have noted it.
fn since(storages: &[u8]) -> Option<u64> {
    let note = sock_note(storages)?;
    (note.counted > 0 && note.since() > 0).then(|| note.since())
}

/// What a caller has dialled that was steered elsewhere.
fn dialled(storages: &[u8]) -> Option<SocketAddr> {
    let note = sock_note(storages)?;
    let port = u16::try_from(note.dialled_port).ok().filter(|port| *port != 0 && note.counted == 0)?;
    Some(SocketAddr::new(address(note.dialled), port))
}

/// The programs' note on a socket, from the attribute that has its storages.
pub(super) fn sock_note(storages: &[u8]) -> Option<SockNote> {
    let (_, storage) = Attributes(storages).find(|(kind, _)| *kind == STORAGE)?;
    let (_, value) = Attributes(storage).find(|(kind, _)| *kind == STORAGE_VALUE)?;
    if value.len() < size_of::<SockNote>() {
        return None;
    }
    let words: [u32; 12] = std::array::from_fn(|nth| u32_at(value, 4 * nth));
    let short = |at: usize| u16::from_ne_bytes([value[at], value[at + 1]]);
    Some(SockNote {
        dialled: std::array::from_fn(|nth| words[nth]),
        target: std::array::from_fn(|nth| words[4 + nth]),
        dialled_port: words[8],
        target_port: short(36),
        to: short(38),
        ticket: words[10],
        counted: words[11],
    })
}

/// An attribute: its length, its type, its value up to the next multiple of four.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut attribute = Vec::with_capacity(len.next_multiple_of(4));
    attribute.extend((len as u16).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(len.next_multiple_of(4), 0);
    attribute
}

/// Attributes one after the other, up to the first that does not fit.
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those that follow the socket in a message, which is at least [`MESSAGE`] long.
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self(&message[MESSAGE..])
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, kind) = (self.0.get(..2)?, self.0.get(2..4)?);
        let len = usize::from(u16::from_ne_bytes([len[0], len[1]]));
        let kind = u16::from_ne_bytes([kind[0], kind[1]]) & TYPE;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
        thread::sleep,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::kernel::diag::sockets;

    /// One that was used just now, and one that was not.
    #[test]
    fn what_was_used_last() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let at = listener.local_addr()?;
        let (mut used, unused) = (TcpStream::connect(at)?, TcpStream::connect(at)?);
        let kept = [listener.accept()?, listener.accept()?];
        sleep(Duration::from_millis(300));
        used.write_all(b"x")?;
        let (found, activity) = (sockets(states::ALIVE, Some(at.port()))?, activity(at.port(), None)?);
        let idle = |end: &TcpStream| {
            let local = end.local_addr().ok()?;
            let socket = found.iter().find(|socket| socket.local == local)?;
            activity.get(&socket.cookie)?.idle
        };
        let (used, unused) = (idle(&used), idle(&unused));
        assert!(unused >= Some(Duration::from_millis(290)), "{unused:?}");
        assert!(used.is_some() && used < unused, "{used:?}, {unused:?}");
        assert!(activity.values().all(|activity| activity.age.is_none()), "{activity:?}");
        drop(kept);
        Ok(())
    }

    #[test]
    fn a_note_has_the_age() {
        let mut note = SockNote { counted: 3, ..SockNote::default() };
        note.set_since(7 << 33 | 5);
        let storages = |note: &SockNote| {
            let words = [note.dialled[0], note.dialled[1], 0, 0, 0, 0, 0, 0, 0, 0, 0, note.counted];
            let value: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            attribute(STORAGE, &[attribute(2, &[1, 0, 0, 0]), attribute(STORAGE_VALUE, &value)].concat())
        };
        assert_eq!(since(&storages(&note)), Some(7 << 33 | 5));
        assert_eq!(sock_note(&storages(&note)).map(|note| note.counted), Some(3));
        // A caller's end has dialled somebody.
        assert_eq!(since(&storages(&SockNote { counted: 0, ..note })), None);
        let all = storages(&note);
        (0..all.len()).for_each(|len| assert_eq!(since(&all[..len]), None, "cut after {len}"));
    }

    #[test]
    fn a_callers_note_has_what_was_dialled() {
        let storages = |port: u32, counted: u32| {
            let ip = u32::from_ne_bytes([127, 0, 0, 1]);
            let words = [0, 0, deployer_common::endpoint::MAPPED, ip, 0, 0, 0, 0, port, 0, 0, counted];
            let value: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            attribute(STORAGE, &attribute(STORAGE_VALUE, &value))
        };
        assert_eq!(dialled(&storages(9000, 0)), Some("127.0.0.1:9000".parse().unwrap()));
        assert_eq!(
            (dialled(&storages(0, 0)), dialled(&storages(9000, 1)), dialled(&storages(1 << 16, 0))),
            (None, None, None)
        );
    }

    proptest! {
        #[test]
        fn garbage_is_nothing(message in prop::collection::vec(any::<u8>(), MESSAGE..300)) {
            let _ = read(&message, 0);
        }
    }
}

//! What goes on on the connections to workers, as sock_diag tells of their callers' ends: on every kernel, with or without
//! the reaper.

use std::{io, net::SocketAddr, time::Duration};

use super::{
    Pair,
    diag::{self, MESSAGE, is_end, states},
};

/// `INET_DIAG_INFO` (`linux/inet_diag.h`): the attribute that holds a `struct tcp_info`, and the bit that asks for it.
const INFO: u16 = 2;
const ASK_INFO: u8 = 1 << (INFO - 1);

/// A connection to a worker, seen from its caller's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// Its ends.
    pub pair: Pair,
    /// Its socket at the caller's end.
    pub socket: diag::Socket,
    /// How long ago the caller last sent data; since the connection was made, if never. To a tick of the kernel (1-10 ms).
    pub sent_ago: Duration,
    /// The same of what the caller received.
    pub received_ago: Duration,
    /// Bytes that the caller has written and the worker's end has not acknowledged.
    pub unacknowledged: u32,
    /// Bytes that have come and the caller has not read.
    pub unread: u32,
    /// Bytes that the caller has sent so far, and that were acknowledged; one for the connection itself is among them.
    pub bytes_sent: u64,
    /// Bytes that have come from the worker.
    pub bytes_received: u64,
}

impl Activity {
    /// How long nothing has gone either way.
    #[must_use]
    pub fn quiet_for(&self) -> Duration {
        self.sent_ago.min(self.received_ago)
    }

    /// Whether everything written was acknowledged, and everything received read.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.unacknowledged == 0 && self.unread == 0
    }

    /// Whether what was sent last was the worker's, or nothing was sent at all; `None`: within one tick, so it cannot be
    /// told. Half an answer is the worker's last word, too.
    #[must_use]
    pub fn is_answered(&self) -> Option<bool> {
        if self.bytes_sent <= 1 && self.bytes_received == 0 {
            return Some(true);
        }
        (self.received_ago != self.sent_ago).then(|| self.received_ago < self.sent_ago)
    }
}

/// The connections whose callers are in this network namespace, to any of these workers. With `wildcard` a worker listens
/// on every address, so that only its port counts.
///
/// # Errors
/// When netlink fails, or the answer is garbled.
pub fn callers(workers: &[SocketAddr], wildcard: bool) -> io::Result<Vec<Activity>> {
    let mut ports: Vec<_> = workers.iter().map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    let mut found = Vec::new();
    // The filter's jumps are limited to 16 bits.
    for ports in ports.chunks(1024) {
        diag::callers(states::ALIVE, ports, ASK_INFO, &mut |message| found.extend(activity(message)))?;
    }
    let is_to = |socket: &diag::Socket, worker: &SocketAddr| {
        wildcard && socket.peer.port() == worker.port() || is_end(socket.peer, socket.local, *worker)
    };
    found.retain(|activity| workers.iter().any(|worker| is_to(&activity.socket, worker)));
    Ok(found)
}

/// `None`: the kernel says nothing of its traffic, since it is being closed.
fn activity(message: &[u8]) -> Option<Activity> {
    let socket = diag::socket(message);
    let info = attribute(&message[MESSAGE..], INFO)?;
    // `struct tcp_info` (`linux/tcp.h`), which only grows at its end.
    let short = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    let ago = |at: usize| short(at).map(|ms| Duration::from_millis(ms.into()));
    Some(Activity {
        pair: Pair { caller: socket.local, worker: socket.peer },
        sent_ago: ago(44)?,
        received_ago: ago(52)?,
        // `idiag_wqueue` and `idiag_rqueue` of `struct inet_diag_msg`.
        unacknowledged: diag::u32_at(message, 60),
        unread: diag::u32_at(message, 56),
        bytes_sent: long(120)?,
        bytes_received: long(128)?,
        socket,
    })
}

/// What an attribute of a kind holds.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let header = attributes.get(..4)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..len)?;
        if u16::from_ne_bytes([header[2], header[3]]) == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread::sleep,
    };

    use proptest::prelude::*;

    use super::*;

    fn seen(caller: &TcpStream) -> io::Result<Activity> {
        let (local, worker) = (caller.local_addr()?, caller.peer_addr()?);
        // Among other ports, in front of it and behind it.
        let workers = [1, worker.port(), 2].map(|port| SocketAddr::new(worker.ip(), port));
        let found = callers(&workers, false)?;
        Ok(found.into_iter().find(|one| one.pair == Pair { caller: local, worker }).expect("a connection"))
    }

    #[test]
    fn tells_what_goes_on() -> io::Result<()> {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(at)?;
            let mut caller = TcpStream::connect(listener.local_addr()?)?;
            let (mut worker, _) = listener.accept()?;
            let fresh = seen(&caller)?;
            assert!(fresh.is_settled() && fresh.is_answered() == Some(true), "{fresh:?}");
            sleep(Duration::from_millis(30));
            caller.write_all(b"asked")?;
            worker.read_exact(&mut [0; 5])?;
            let asked = seen(&caller)?;
            assert!(asked.is_settled() && asked.is_answered() == Some(false), "{asked:?}");
            assert_eq!((asked.bytes_sent, asked.bytes_received), (6, 0));
            sleep(Duration::from_millis(30));
            worker.write_all(b"answered")?;
            let answered = seen(&caller)?;
            assert_eq!((answered.unread, answered.is_answered()), (8, Some(true)), "{answered:?}");
            assert!(answered.sent_ago >= Duration::from_millis(20) && answered.quiet_for() < answered.sent_ago);
            caller.read_exact(&mut [0; 8])?;
            assert!(seen(&caller)?.is_settled());
            assert_eq!(seen(&caller)?.bytes_received, 8);
        }
        assert_eq!(callers(&[], true)?, vec![]);
        Ok(())
    }

    proptest! {
        #[test]
        fn garbage_is_nothing(mut message in proptest::collection::vec(any::<u8>(), MESSAGE..400)) {
            let _ = activity(&message);
            message.truncate(MESSAGE);
            prop_assert_eq!(activity(&message), None);
        }
    }
}

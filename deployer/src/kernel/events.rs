//! What the programs tell as it happens.
#![expect(unsafe_code, reason = "the reactor is given a descriptor that somebody else owns")]

use std::io;

use anyhow::Result;
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use deployer_common::layout::Event;
use tokio::io::unix::AsyncFd;

use super::tables::take;

/// The events that nobody has fetched yet; those of the time without a daemon are among them.
pub struct Events(AsyncFd<RingBuf<MapData>>);

impl Events {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let ring = RingBuf::try_from(take(ebpf, "EVENTS")?)?;
        // SAFETY: the ring owns its descriptor, which stays the same and open until it is dropped with this.
        Ok(Self(unsafe { AsyncFd::register(ring) }?))
    }

    /// The next event, as soon as there is one.
    ///
    /// # Errors
    /// When the reactor is gone.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            while let Some(item) = ready.get_inner_mut().next() {
                if let Some(event) = parse(&item) {
                    return Ok(event);
                }
            }
            ready.clear_ready();
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Event> {
    let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let short = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some(Event {
        at_ns: long(0)?,
        kind: short(8)?,
        worker: short(12)?,
        pid: short(16)?,
        port: short(20)?,
        addr: [short(24)?, short(28)?, short(32)?, short(36)?],
        value: long(40)?,
    })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn fields_stand_where_they_are_read() {
        let words: Vec<u8> = (0..12_u32).flat_map(u32::to_ne_bytes).collect();
        let event = parse(&words).unwrap();
        let word = |offset: usize| (offset / 4) as u32;
        assert_eq!(event.kind, word(offset_of!(Event, kind)));
        assert_eq!(event.worker, word(offset_of!(Event, worker)));
        assert_eq!(event.pid, word(offset_of!(Event, pid)));
        assert_eq!(event.port, word(offset_of!(Event, port)));
        assert_eq!(event.addr[0], word(offset_of!(Event, addr)));
        assert_eq!(event.value as u32, word(offset_of!(Event, value)));
        assert_eq!(offset_of!(Event, at_ns), 0);
        assert!(parse(&words[..47]).is_none());
    }
}

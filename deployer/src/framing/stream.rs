//! One direction of a connection, put in order: what was sent again is dropped, what comes early is held for a moment.

use super::verdict::Why;

/// What may be held until the packets before it come. Over loopback they come late by microseconds, if two processors
/// send at the same time, or are sent again, if the kernel had no room for them.
const MOST_HELD: usize = 4;
const MOST_HELD_BYTES: usize = 512 * 1024;

/// Whether sequence number `a` lies before `b`: they wrap around (RFC 9293, section 3.4).
pub(super) fn is_before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

/// The sequence number `len` bytes on.
pub(super) fn after(seq: u32, len: usize) -> u32 {
    // The length of a packet; whatever is longer wraps around, as the numbers do.
    seq.wrapping_add(len as u32)
}

/// The bytes that one end sends.
#[derive(Debug)]
pub(super) struct Stream {
    next: u32,
    held: Vec<(u32, Box<[u8]>)>,
}

impl Stream {
    /// One whose next byte has this number.
    pub(super) fn at(next: u32) -> Self {
        Self { next, held: Vec::new() }
    }

    /// The number of the next byte.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Whether something was sent before which something is missing.
    pub(super) fn has_gap(&self) -> bool {
        !self.held.is_empty()
    }

    /// Bytes that are held.
    pub(super) fn held(&self) -> usize {
        self.held.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Takes a segment, and gives `each` what continues the stream.
    ///
    /// # Errors
    /// [`Why::Missed`] when too much is held; what `each` says.
    pub(super) fn push(
        &mut self,
        seq: u32,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), Why>,
    ) -> Result<(), Why> {
        if is_before(self.next, seq) {
            return self.hold(seq, bytes);
        }
        self.go_on(seq, bytes, &mut each)?;
        while let Some(at) = self.held.iter().position(|(seq, _)| !is_before(self.next, *seq)) {
            let (seq, bytes) = self.held.swap_remove(at);
            self.go_on(seq, &bytes, &mut each)?;
        }
        Ok(())
    }

    /// A segment that begins at the next byte, or before.
    fn go_on(&mut self, seq: u32, bytes: &[u8], each: impl FnOnce(&[u8]) -> Result<(), Why>) -> Result<(), Why> {
        let known = self.next.wrapping_sub(seq) as usize;
        match bytes.get(known..) {
            Some(fresh) if !fresh.is_empty() => {
                self.next = after(self.next, fresh.len());
                each(fresh)
            }
            _ => Ok(()),
        }
    }

    fn hold(&mut self, seq: u32, bytes: &[u8]) -> Result<(), Why> {
        if self.held.iter().any(|(held, there)| *held == seq && there.len() >= bytes.len()) {
            return Ok(());
        }
        if self.held.len() == MOST_HELD || self.held() + bytes.len() > MOST_HELD_BYTES {
            return Err(Why::Missed);
        }
        self.held.push((seq, bytes.into()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_wrap_around() {
        assert!(is_before(1, 2) && is_before(u32::MAX, 0) && !is_before(0, u32::MAX) && !is_before(7, 7));
        assert_eq!(after(u32::MAX, 3), 2);
    }

    #[test]
    fn a_gap_that_stays_is_missed() {
        let mut stream = Stream::at(0);
        let mut push = |seq, bytes: &[u8]| stream.push(seq, bytes, |_| Ok(()));
        for n in 1..=4 {
            assert_eq!(push(n * 10, b"0123456789"), Ok(()));
            assert_eq!(push(n * 10, b"0123456789"), Ok(()), "the same again");
        }
        assert_eq!(push(50, b"0123456789"), Err(Why::Missed));
        assert!(stream.has_gap());
        assert_eq!(Stream::at(0).push(1, &vec![0; MOST_HELD_BYTES + 1], |_| Ok(())), Err(Why::Missed));
    }

    proptest! {
        /// Cut anywhere, sent again, with neighbours swapped: every byte once, in order.
        #[test]
        fn puts_in_order(start: u32, cuts in prop::collection::vec((1..50_usize, 0..3_u8, 0..60_usize), 1..40)) {
            let total: usize = cuts.iter().map(|(len, _, _)| len).sum();
            let sent: Vec<u8> = (0..total).map(|n| n as u8).collect();
            let (mut segments, mut at, mut swapped) = (Vec::<(usize, usize)>::new(), 0, true);
            for (len, how, back) in cuts {
                let begin = if how == 1 { at - back.min(at) } else { at };
                segments.push((begin, at + len));
                // Never the same one twice: it would come too late.
                swapped = how == 2 && !swapped;
                if swapped {
                    let last = segments.len() - 1;
                    segments.swap(last, last - 1);
                }
                at += len;
            }
            let mut stream = Stream::at(start);
            let mut got: Vec<u8> = Vec::new();
            for (begin, end) in segments {
                let result = stream.push(after(start, begin), &sent[begin..end], |bytes| { got.extend(bytes); Ok(()) });
                prop_assert_eq!(result, Ok(()));
                prop_assert_eq!(stream.next(), after(start, got.len()));
            }
            prop_assert!(got == sent && !stream.has_gap() && stream.held() == 0);
        }
    }
}

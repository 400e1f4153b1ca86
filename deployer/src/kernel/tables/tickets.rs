//! Which processes hold tickets.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use deployer_common::layout::TicketHolder;

use super::{super::bpf, Tables};

impl Tables {
    /// The processes that hold tickets, of all workers; `None`: this kernel cannot tell. A process stands here once for each
    /// descriptor of a socket. A stale ticket stays stale until its socket is dialled again. Blocks while the kernel goes through all open files of the machine: some milliseconds, as a rule.
    ///
    /// # Errors
    /// When the iterator fails.
    pub fn ticket_holders(&self) -> io::Result<Option<Vec<TicketHolder>>> {
        let run = |ticketed: &OwnedFd| bpf::run(bpf::iterator(ticketed.as_fd())?.as_fd());
        Ok(self.iterators.ticketed.as_ref().map(run).transpose()?.map(|written| holders(&written)))
    }
}

/// What the iterator's program has written; half a record at the end is none.
fn holders(written: &[u8]) -> Vec<TicketHolder> {
    let word = |bytes: &[u8], nth: usize| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[4 * nth + byte]));
    let records = written.chunks_exact(size_of::<TicketHolder>());
    let holder = |bytes: &[u8]| TicketHolder {
        sk: u64::from_ne_bytes(std::array::from_fn(|byte| bytes[byte])),
        pid: word(bytes, 2),
        worker: word(bytes, 3),
        outsider: word(bytes, 4),
        stale: word(bytes, 5),
    };
    records.map(holder).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_are_read_one_after_the_other() {
        let words = [1_u32, 1, 7, 2, 1, 0, 2, 0, 8, 5, 0, 1, 9];
        let written: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (first, second) = if cfg!(target_endian = "little") { (1 << 32 | 1, 2) } else { (1 << 32 | 1, 2 << 32) };
        let expected = [
            TicketHolder { sk: first, pid: 7, worker: 2, outsider: 1, stale: 0 },
            TicketHolder { sk: second, pid: 8, worker: 5, outsider: 0, stale: 1 },
        ];
        assert_eq!(holders(&written), expected);
    }

    proptest! {
        #[test]
        fn garbage_is_read_as_far_as_it_goes(written: Vec<u8>) {
            prop_assert_eq!(holders(&written).len(), written.len() / 24);
        }
    }
}

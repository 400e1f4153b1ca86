//! Hands the lines out, as fast as they are taken: the youngest from memory, older ones from the files. A reader holds a
//! chunk at a time and two open files, however slow it is.

use std::sync::Arc;

use super::{History, Shared, files::Reading};
use crate::service::blocking;

/// Bytes that are handed out at a time, or a line more.
const CHUNK: usize = 64 << 10;

/// Somebody who reads.
pub struct Reader {
    shared: Arc<Shared>,
    /// The next line.
    at: u64,
    /// No line from here on.
    until: u64,
    /// Lines that memory does not have.
    old: Option<Reading>,
}

/// What memory has.
enum Young {
    /// Lines, and the number after the last.
    Lines(Vec<u8>, u64),
    /// They are in the files, up to this number.
    Older(u64),
    /// Nothing yet.
    Nothing,
}

impl History {
    /// Reads from a line on: all that there are, or, to `follow`, also those that are told later.
    #[must_use]
    pub fn reader(&self, from: u64, follow: bool) -> Reader {
        let shared = Arc::clone(&self.0);
        let until = if follow { u64::MAX } else { shared.settled.borrow().next };
        Reader { at: shared.go_on(from), shared, until, old: None }
    }
}

impl Reader {
    /// The next lines, as soon as there are any; `None`: there will be none.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        while self.at < self.until {
            match self.shared.young(self.at, self.until) {
                Young::Lines(lines, next) => {
                    (self.at, self.old) = (next, None);
                    return Some(lines);
                }
                Young::Older(first) => {
                    let (until, is_held) = (first.min(self.until), self.old.is_some());
                    if let Some(lines) = self.older(until).await {
                        return Some(lines);
                    }
                    // There may be another file since those that were held have been opened.
                    if is_held {
                        continue;
                    }
                    // What is in no file was lost, or is so old that it has been dropped.
                    self.at = until;
                }
                Young::Nothing if self.shared.has(self.at).await => {}
                Young::Nothing => return None,
            }
        }
        None
    }

    /// What the files have before `until`; `None`: nothing, and no file is held any more.
    async fn older(&mut self, until: u64) -> Option<Vec<u8>> {
        let (files, old, at) = (self.shared.files.clone(), self.old.take(), self.at);
        let read = blocking(move || {
            let mut reading = old.unwrap_or_else(|| files.open());
            let chunk = reading.chunk(at, until, CHUNK);
            Ok((reading, chunk))
        });
        let (reading, (lines, next)) = read.await.ok().and_then(|(reading, chunk)| Some((reading, chunk?)))?;
        (self.at, self.old) = (next, Some(reading));
        Some(lines)
    }
}

impl Shared {
    /// Where somebody goes on who has read the lines before `from`. If there are not so many, a former daemon told them
    /// and could not write them down; what this one tells is news.
    fn go_on(&self, from: u64) -> u64 {
        if from > self.told().next { self.first } else { from }
    }

    fn young(&self, at: u64, until: u64) -> Young {
        let settled = self.settled.borrow().next;
        let told = self.told();
        let first = told.ring.lines.front().map_or(told.next, |(seq, _)| *seq);
        if at < first {
            return Young::Older(first);
        }
        let (mut lines, mut next) = (Vec::new(), at);
        let wanted = told.ring.lines.iter().skip((at - first) as usize);
        for (seq, line) in wanted.take_while(|(seq, _)| *seq < settled.min(until)) {
            lines.extend(line.bytes());
            next = seq + 1;
            if lines.len() >= CHUNK {
                break;
            }
        }
        if lines.is_empty() { Young::Nothing } else { Young::Lines(lines, next) }
    }

    /// Whether there is such a line, as soon as there is; it is no longer waited for at the daemon's end.
    async fn has(&self, at: u64) -> bool {
        let mut settled = self.settled.subscribe();
        let told = settled.wait_for(|settled| settled.next > at || settled.over).await;
        told.is_ok_and(|settled| settled.next > at)
    }
}

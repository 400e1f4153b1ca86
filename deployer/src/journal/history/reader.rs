//! Hands the lines out, as fast as they are taken: the youngest from memory, older ones from the files. A reader holds a
//! chunk at a time and two open files, however slow it is.

use std::{sync::Arc, time::Duration};

use super::{History, Shared, files::Reading};
use crate::journal::disk::{self, Hang};

/// Bytes that are handed out at a time, or a line more.
const CHUNK: usize = 64 << 10;
/// Between two looks whether the disk hangs, so that lines are handed out that are not written.
const LOOK: Duration = Duration::from_millis(500);

/// Somebody who reads.
pub struct Reader {
    shared: Arc<Shared>,
    /// The next line.
    at: u64,
    /// No line from here on.
    until: u64,
    /// Lines that memory does not have.
    old: Option<Reading>,
    /// Lines that were read ahead.
    ahead: Option<Vec<u8>>,
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
        let until = if follow { u64::MAX } else { shared.readable() };
        Reader { at: shared.go_on(from), shared, until, old: None, ahead: None }
    }
}

impl Reader {
    /// Reads the first lines that memory does not have, if there are any.
    ///
    /// # Errors
    /// [`Hang`]: the disk does not answer.
    pub async fn look(&mut self) -> Result<(), Hang> {
        if self.at < self.until
            && let Young::Older(first) = self.shared.young(self.at, self.until)
        {
            self.ahead = self.older(first.min(self.until)).await?;
        }
        Ok(())
    }

    /// The next lines, as soon as there are any; `None`: there will be none.
    ///
    /// # Errors
    /// [`Hang`]: the disk does not answer.
    pub async fn next(&mut self) -> Option<Result<Vec<u8>, Hang>> {
        if let Some(lines) = self.ahead.take() {
            return Some(Ok(lines));
        }
        while self.at < self.until {
            match self.shared.young(self.at, self.until) {
                Young::Lines(lines, next) => {
                    (self.at, self.old) = (next, None);
                    return Some(Ok(lines));
                }
                Young::Older(first) => {
                    let (until, is_held) = (first.min(self.until), self.old.is_some());
                    match self.older(until).await {
                        Ok(None) => {}
                        Ok(Some(lines)) => return Some(Ok(lines)),
                        Err(hang) => {
                            self.until = self.at;
                            return Some(Err(hang));
                        }
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
    async fn older(&mut self, until: u64) -> Result<Option<Vec<u8>>, Hang> {
        let (files, old, at) = (self.shared.files.clone(), self.old.take(), self.at);
        let read = disk::read(self.shared.files.dir(), move || {
            let mut reading = old.unwrap_or_else(|| files.open());
            let chunk = reading.chunk(at, until, CHUNK);
            (reading, chunk)
        });
        let (reading, Some((lines, next))) = read.await? else { return Ok(None) };
        (self.at, self.old) = (next, Some(reading));
        Ok(Some(lines))
    }
}

impl Shared {
    /// Lines below this number are handed out: those that have been tried to be written. While the disk hangs, all: a client
    /// that follows is to hear of that.
    fn readable(&self) -> u64 {
        if self.is_late() { self.told().next } else { self.settled.borrow().next }
    }

    /// Where somebody goes on who has read the lines before `from`. If there are not so many, a former daemon told them
    /// and could not write them down; what this one tells is news.
    fn go_on(&self, from: u64) -> u64 {
        if from > self.told().next { self.first } else { from }
    }

    fn young(&self, at: u64, until: u64) -> Young {
        let settled = self.readable();
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
        loop {
            let told = settled.wait_for(|settled| settled.next > at || settled.over);
            if let Ok(told) = tokio::time::timeout(LOOK, told).await {
                return told.is_ok_and(|settled| settled.next > at);
            }
            if self.readable() > at {
                return true;
            }
        }
    }
}

//! The events of a roll that are in memory. A deploy may bake for weeks, and a drain may tell every second what holds it, so
//! there is a limit: the first events are kept, and the last. A reader that comes late is told how many it has missed.

use std::{collections::VecDeque, mem::discriminant};

use crate::api::{Event, What};

/// The first events of a roll: its plan, and how it began.
const FIRST: usize = 1024;
/// The last.
const LAST: usize = 4096;

/// The events of a roll, by their numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    first: Vec<Event>,
    /// The last dropped event of each kind: that something has happened is not forgotten.
    dropped: Vec<Event>,
    last: VecDeque<Event>,
}

impl Kept {
    /// How many events there have been.
    pub(super) fn len(&self) -> usize {
        self.last.back().map_or(self.first.len(), |event| event.seq as usize + 1)
    }

    /// Whether there has been none.
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Adds the next.
    pub(super) fn push(&mut self, event: Event) {
        if self.first.len() < FIRST {
            return self.first.push(event);
        }
        if self.last.len() >= LAST
            && let Some(old) = self.last.pop_front()
        {
            self.dropped.retain(|other| discriminant(&other.what) != discriminant(&old.what));
            self.dropped.push(old);
        }
        self.last.push_back(event);
    }

    /// The event of a number; in place of one that is dropped, that it and all up to the next that is kept are missing.
    pub(super) fn get(&self, seq: usize) -> Option<Event> {
        if let Some(event) = self.first.get(seq) {
            return Some(event.clone());
        }
        let front = self.last.front()?;
        let kept = front.seq as usize;
        match seq.checked_sub(kept) {
            Some(nth) => self.last.get(nth).cloned(),
            None => {
                let what = What::Skipped { events: (kept - seq) as u64 };
                Some(Event { seq: front.seq.saturating_sub(1), what, ..front.clone() })
            }
        }
    }

    /// What came first.
    pub(super) fn first(&self) -> Option<&Event> {
        self.first.first()
    }

    /// What came last.
    pub(super) fn last(&self) -> Option<&Event> {
        self.last.back().or_else(|| self.first.last())
    }

    /// All that are kept, and of those that are not one of each kind.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Event> {
        self.first.iter().chain(&self.dropped).chain(&self.last)
    }
}

impl From<Vec<Event>> for Kept {
    fn from(events: Vec<Event>) -> Self {
        let mut kept = Self::default();
        events.into_iter().for_each(|event| kept.push(event));
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: usize, what: What) -> Event {
        Event { seq: seq as u64, time_ms: 1, roll: "web-1".to_owned(), what }
    }

    fn asked() -> What {
        What::Asked { by: "me".to_owned(), what: "nothing".to_owned() }
    }

    fn kept(count: usize) -> Kept {
        // One that is to be remembered is among those that are dropped.
        (0..count)
            .map(|seq| event(seq, if seq == FIRST + 1 { What::Passed } else { asked() }))
            .collect::<Vec<_>>()
            .into()
    }

    #[test]
    fn few_events_are_all_there() {
        for count in [0, 1, FIRST, FIRST + 1, FIRST + LAST] {
            let kept = kept(count);
            assert_eq!((kept.len(), kept.is_empty(), kept.iter().count()), (count, count == 0, count));
            assert!((0..count).all(|seq| kept.get(seq).is_some_and(|event| event.seq == seq as u64)));
            assert_eq!(kept.get(count), None);
            assert_eq!(kept.last().map(|event| event.seq as usize + 1).unwrap_or_default(), count);
        }
    }

    #[test]
    fn a_late_reader_is_told_what_it_has_missed() {
        let count = 10 * LAST;
        let kept = kept(count);
        assert_eq!(kept.len(), count);
        assert!(kept.iter().count() <= FIRST + LAST + 2);
        assert!(kept.iter().any(|event| event.what == What::Passed), "forgotten");
        let (mut seq, mut missed, mut read) = (0, 0, 0);
        while let Some(event) = kept.get(seq) {
            match event.what {
                What::Skipped { events } => missed += events as usize,
                _ => read += 1,
            }
            seq = event.seq as usize + 1;
        }
        assert_eq!((seq, missed + read, read), (count, count, FIRST + LAST));
    }
}

//! Lines in memory.

use std::{collections::VecDeque, sync::Arc};

/// Lines with their numbers, and how long they are together.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) lines: VecDeque<(u64, Arc<str>)>,
    pub(super) bytes: usize,
}

impl Lines {
    /// Adds one.
    pub(super) fn push(&mut self, seq: u64, line: Arc<str>) {
        self.bytes += line.len();
        self.lines.push_back((seq, line));
    }

    /// Drops the oldest beyond so many bytes; returns how many.
    pub(super) fn keep(&mut self, bytes: usize) -> u64 {
        let before = self.lines.len();
        while self.bytes > bytes
            && let Some((_, line)) = self.lines.pop_front()
        {
            self.bytes -= line.len();
        }
        (before - self.lines.len()) as u64
    }

    /// All of them.
    pub(super) fn text(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|(_, line)| line.bytes()).collect()
    }
}

//! What a command says, kept.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

use rustix::fs::{
    FallocateFlags, MemfdFlags, OFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_getfl, fcntl_setfl, memfd_create,
};

/// Bytes of output, and of errors, that are kept: the first, and as many of the last.
pub(super) const KEPT: u64 = 16 * 1024;

/// A file in memory, and not a pipe: what a command leaves in the background keeps a pipe open, and would be killed by
/// writing to it when no process reads it any more. While the command runs it may say as much as it likes; what is too much
/// is cut out of the middle. Afterwards the file cannot grow: a process that still writes fills what is left of it, and that is all.
pub(super) struct Note(pub(super) File);

impl Note {
    pub(super) fn new() -> io::Result<Self> {
        let file = memfd_create("said", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        // Writers go on at the new end after a cut.
        fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::APPEND)?;
        Ok(Self(file.into()))
    }

    pub(super) fn cut(&self) {
        let len = self.len();
        if len <= 2 * KEPT {
            return;
        }
        // A hole: a process that writes meanwhile writes at the end, which stays where it is.
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.0, hole, KEPT, len - 2 * KEPT).is_err() {
            // At worst it is cut at the next look.
            let _ = self.0.set_len(KEPT);
        }
    }

    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |meta| meta.len())
    }

    /// What is kept of the end.
    pub(super) fn end(&self) -> String {
        self.text(self.len().saturating_sub(KEPT))
    }

    pub(super) fn text(&self, from: u64) -> String {
        let mut bytes = vec![0; KEPT as usize];
        // What cannot be read was not said.
        let length = self.0.read_at(&mut bytes, from).unwrap_or_default();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let said = self.0.metadata().map_or(KEPT, |meta| meta.len().min(KEPT));
        // Flags and offset are those of all who have the file from here. Each is a try: the seal is what matters.
        let _ = fcntl_setfl(&self.0, OFlags::RDWR);
        let _ = (&self.0).seek(SeekFrom::Start(said));
        let _ = self.0.set_len(KEPT);
        let _ = fcntl_add_seals(&self.0, SealFlags::GROW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_takes_no_memory() {
        use std::{io::Write, os::unix::fs::MetadataExt};
        let note = Note::new().unwrap();
        (&note.0).write_all(&[b'x'; 3_000_000]).unwrap();
        note.cut();
        (&note.0).write_all(b"end").unwrap();
        assert!(note.0.metadata().unwrap().blocks() * 512 <= 4 * KEPT);
        assert_eq!(note.text(0), "x".repeat(KEPT as usize));
        assert_eq!(note.end(), "x".repeat(KEPT as usize - 3) + "end");
    }
}

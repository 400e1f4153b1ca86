//! A table mapped into memory: words that programs and user space share.
#![expect(unsafe_code, reason = "mmap, and atomics in memory that the kernel shares")]

use std::{io, os::fd::BorrowedFd, ptr::NonNull, sync::atomic::AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A `BPF_F_MMAPABLE` array as a slice of atomic words.
#[derive(Debug)]
pub(super) struct Mapping {
    words: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the memory is plain shared memory of atomics, valid from any thread until the mapping is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of an array (elements follow each other, each rounded up to 8 bytes; 5.5 and later).
    pub(super) fn new(map: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else is touched.
        let at =
            unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, map, 0) }?;
        let words = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mmap gave a null pointer"))?;
        Ok(Self { words, len: bytes / size_of::<u64>() })
    }

    /// The words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, `len` words long, mapped while `self` lives; everybody accesses them atomically.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this very mapping, made in `new`; no slice of it outlives `self`.
        let _ = unsafe { munmap(self.words.as_ptr().cast(), self.len * size_of::<u64>()) };
    }
}

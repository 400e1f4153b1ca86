//! The commands of bpf(2) that aya has no wrapper for: pins of links, links' state, programs swapped under a link.
#![expect(unsafe_code, reason = "bpf(2) is reached by syscall()")]

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Commands, from `enum bpf_cmd` of `include/uapi/linux/bpf.h`.
mod command {
    pub(super) const OBJ_PIN: libc::c_int = 6;
    pub(super) const OBJ_GET: libc::c_int = 7;
    pub(super) const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    pub(super) const LINK_GET_FD_BY_ID: libc::c_int = 30;
    pub(super) const LINK_GET_NEXT_ID: libc::c_int = 31;
    pub(super) const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
    pub(super) const LINK_CREATE: libc::c_int = 28;
    pub(super) const LINK_UPDATE: libc::c_int = 29;
    pub(super) const ITER_CREATE: libc::c_int = 33;
}

/// `enum bpf_attach_type` of the hooks in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Hook {
    SockOps = 3,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    PostBind4 = 12,
    PostBind6 = 13,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    SockRelease = 34,
    Iterator = 28,
}

/// What the kernel says of a link to a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Id of the program that runs.
    pub(super) program: u32,
    /// Id of the cgroup; 0: that cgroup has been removed, and the link does nothing any more.
    pub(super) cgroup: u64,
}

/// The part of `union bpf_attr` for objects in a bpf file system.
#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
struct Create {
    program: u32,
    target: u32,
    hook: u32,
    flags: u32,
}

#[repr(C)]
struct Trace {
    name: u64,
    program: u32,
    pad: u32,
}

#[repr(C)]
struct Iterate {
    link: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that goes through ids.
#[repr(C)]
struct Id {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The beginning of `struct bpf_link_info`, for a link of type cgroup.
#[repr(C)]
#[derive(Default)]
struct CgroupLink {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    cgroup: u64,
    hook: u32,
    pad2: u32,
}

/// Opens what is pinned at `path`.
pub(super) fn get(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { path: name.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = call(command::OBJ_GET, &mut attr)?;
    // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a map, program or link at `path`, where nothing may be yet.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { path: name.as_ptr() as u64, fd: number(fd), flags: 0 };
    call(command::OBJ_PIN, &mut attr).map(drop)
}

/// Attaches a program to a cgroup, beside whatever is attached there (5.7).
pub(super) fn link(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<OwnedFd> {
    let mut attr = Create { program: number(program), target: number(cgroup), hook: hook as u32, flags: 0 };
    let fd = call(command::LINK_CREATE, &mut attr)?;
    // SAFETY: as in get().
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to the tracepoint or function that it was loaded for (5.5).
pub(super) fn trace(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = Trace { name: 0, program: number(program), pad: 0 };
    let fd = call(command::RAW_TRACEPOINT_OPEN, &mut attr)?;
    // SAFETY: as in get().
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs an iterator to its end, for what its program does (5.8).
pub(super) fn iterate(program: BorrowedFd<'_>) -> io::Result<()> {
    run(iterator(program)?.as_fd()).map(drop)
}

/// Opens an iterator over all objects of a kind (5.8).
pub(super) fn iterator(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = Create { program: number(program), target: 0, hook: Hook::Iterator as u32, flags: 0 };
    let fd = call(command::LINK_CREATE, &mut attr)?;
    // SAFETY: as in get().
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs an iterator to its end, over what the calling thread's network namespace has. Returns what its program has
/// written.
pub(super) fn run(iterator: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut attr = Iterate { link: number(iterator), flags: 0 };
    let fd = call(command::ITER_CREATE, &mut attr)?;
    // SAFETY: as in get().
    let mut run = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut written = Vec::new();
    loop {
        match run.read_to_end(&mut written) {
            // After a million objects of which nothing was written (`bpf_seq_read`, kernel/bpf/bpf_iter.c).
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(written),
        }
    }
}

/// Swaps the program under a link; no connection meets neither (5.7).
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Update { link: number(link), program: number(program), flags: 0, old_program: 0 };
    call(command::LINK_UPDATE, &mut attr).map(drop)
}

/// What a link to a cgroup is attached to.
pub(super) fn info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    about(link).map(|CgroupLink { program, cgroup, .. }| LinkInfo { program, cgroup })
}

fn about(link: BorrowedFd<'_>) -> io::Result<CgroupLink> {
    let mut found = CgroupLink::default();
    let mut attr = Info { fd: number(link), len: size_of::<CgroupLink>() as u32, info: (&raw mut found).addr() as u64 };
    call(command::OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(found)
}

/// All links to cgroups on this machine (5.8). One that goes meanwhile is left out.
pub(super) fn links() -> io::Result<Vec<LinkInfo>> {
    /// `BPF_LINK_TYPE_CGROUP`
    const CGROUP: u32 = 3;
    let (mut found, mut last) = (Vec::new(), 0);
    loop {
        let mut attr = Id { id: last, next: 0, flags: 0 };
        match call(command::LINK_GET_NEXT_ID, &mut attr) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            next => drop(next?),
        }
        last = attr.next;
        let Ok(fd) = call(command::LINK_GET_FD_BY_ID, &mut Id { id: last, next: 0, flags: 0 }) else { continue };
        // SAFETY: as in get().
        let link = unsafe { OwnedFd::from_raw_fd(fd) };
        let Ok(CgroupLink { kind: CGROUP, program, cgroup, .. }) = about(link.as_fd()) else { continue };
        found.push(LinkInfo { program, cgroup });
    }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // A descriptor is never negative.
    fd.as_raw_fd().unsigned_abs()
}

fn call<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is a prefix of the kernel's union for this command, with its size given, and what its addresses
    // point to lives in the callers above until the call returns. The kernel takes what is missing for zeros.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

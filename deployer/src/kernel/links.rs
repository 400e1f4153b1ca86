//! The programs' links to cgroups.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use anyhow::{Context, Result};

use super::{
    bpf::{self, Hook},
    load::Attachment,
    pins::Generation,
};

/// A link that there must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The name under which it is pinned.
    pub(super) pin: String,
    /// The program.
    pub(super) program: &'static str,
    /// The hook and the cgroup it is attached to; `None`: it runs for all the machine, at what it was loaded for.
    cgroup: Option<(Hook, PathBuf)>,
}

impl Wanted {
    /// Whether it is at a cgroup that is gone.
    pub(super) fn is_nowhere(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|(_, cgroup)| !cgroup.is_dir())
    }

    /// Where it is attached, in words.
    pub(super) fn place(&self) -> String {
        self.cgroup
            .as_ref()
            .map_or_else(|| "the kernel".to_owned(), |(_, cgroup)| format!("cgroup {}", cgroup.display()))
    }
}

/// The links of programs that run for all the machine.
pub(super) fn tracing(programs: impl Iterator<Item = &'static str>) -> impl Iterator<Item = Wanted> {
    programs.map(|program| Wanted { pin: format!("link-{program}"), program, cgroup: None })
}

/// All links to cgroups, the connect hooks last: what they steer is counted from the first on.
pub(super) fn wanted(attachment: &Attachment) -> Vec<Wanted> {
    let watched = attachment.watched().into_iter().enumerate();
    let sockets = watched.map(|(nth, cgroup)| Wanted {
        pin: format!("link-sockets-{nth}"),
        program: "sockets",
        cgroup: Some((Hook::SockOps, cgroup.to_owned())),
    });
    let callers = [
        ("released", Hook::SockRelease),
        ("getpeername4", Hook::GetPeerName4),
        ("getpeername6", Hook::GetPeerName6),
        ("connect4", Hook::Connect4),
        ("connect6", Hook::Connect6),
    ];
    let at_callers = callers.into_iter().map(|(program, hook)| Wanted {
        pin: format!("link-{program}"),
        program,
        cgroup: Some((hook, attachment.callers.clone())),
    });
    sockets.chain(at_callers).chain(binds(attachment)).collect()
}

/// What keeps strangers from protected addresses; a kernel may do without. [`super::load`] names them.
pub(super) const BINDS: [(&str, Hook); 4] =
    [("bind4", Hook::Bind4), ("bind6", Hook::Bind6), ("post_bind4", Hook::PostBind4), ("post_bind6", Hook::PostBind6)];

/// A stranger may be among the callers or among the workers.
fn binds(attachment: &Attachment) -> impl Iterator<Item = Wanted> {
    attachment.watched().into_iter().enumerate().flat_map(|(nth, cgroup)| {
        BINDS.map(|(program, hook)| Wanted {
            pin: format!("link-{program}-{nth}"),
            program,
            cgroup: Some((hook, cgroup.to_owned())),
        })
    })
}

/// A link that is there.
#[derive(Debug)]
pub(super) struct Link {
    /// What it is for.
    pub(super) wanted: Wanted,
    fd: OwnedFd,
}

impl Link {
    /// Takes over the pinned link, if it is attached where it should be, and swaps its program; otherwise attaches.
    pub(super) fn take(wanted: Wanted, from: &[Generation], program: BorrowedFd<'_>) -> Result<Self> {
        let Some((_, cgroup)) = &wanted.cgroup else { return Self::attach(wanted, program) };
        let mut pinned = from.iter().filter_map(|from| bpf::get(&from.path(&wanted.pin)).ok());
        if let Some(fd) = pinned.find(|fd| is_attached(fd.as_fd(), cgroup)) {
            bpf::update(fd.as_fd(), program)
                .with_context(|| format!("swapping program {} at {}", wanted.program, wanted.place()))?;
            return Ok(Self { wanted, fd });
        }
        Self::attach(wanted, program)
    }

    /// Attaches anew. The link of a tracing program takes no other program: while the former one is still attached, each
    /// process's end is seen twice, and counts once.
    pub(super) fn attach(wanted: Wanted, program: BorrowedFd<'_>) -> Result<Self> {
        let fd = match &wanted.cgroup {
            None => bpf::trace(program),
            Some((hook, path)) => {
                let cgroup = File::open(path).with_context(|| format!("opening cgroup {}", path.display()))?;
                bpf::link(program, cgroup.as_fd(), *hook)
            }
        };
        let fd = fd.with_context(|| format!("attaching program {} to {}", wanted.program, wanted.place()))?;
        Ok(Self { wanted, fd })
    }

    /// Pins it.
    pub(super) fn pin(&self, to: &Generation) -> Result<()> {
        let path = to.path(&self.wanted.pin);
        bpf::pin(self.fd.as_fd(), &path).with_context(|| format!("pinning {}", path.display()))
    }

    /// Whether it still does something: a link whose cgroup was removed does not, even if there is another of that name.
    pub(super) fn is_attached(&self) -> bool {
        self.wanted.cgroup.as_ref().is_none_or(|(_, cgroup)| is_attached(self.fd.as_fd(), cgroup))
    }
}

/// The links of a daemon, for who has to know that connections are steered: a worker that is out is stopped only then.
#[derive(Debug, Default)]
pub(super) struct Steering {
    links: Mutex<Vec<Link>>,
    interruptions: AtomicU64,
}

impl Steering {
    pub(super) fn new(links: Vec<Link>) -> Self {
        Self { links: Mutex::new(links), interruptions: AtomicU64::new(0) }
    }

    /// The links; hold them for a moment only.
    pub(super) fn links(&self) -> MutexGuard<'_, Vec<Link>> {
        // What a panicking holder left are still links.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a link was lost for a while.
    pub(super) fn interrupted(&self) {
        self.interruptions.fetch_add(1, SeqCst);
    }

    /// How often steering has been interrupted so far, if it is not just now.
    ///
    /// # Errors
    /// What is missing, in words.
    pub(super) fn check(&self) -> Result<u64, String> {
        let links = self.links();
        if links.is_empty() {
            return Err("nothing is attached".to_owned());
        }
        match links.iter().find(|link| !link.is_attached()) {
            Some(lost) => {
                Err(format!("program {} is not attached to {} any more", lost.wanted.program, lost.wanted.place()))
            }
            None => Ok(self.interruptions.load(SeqCst)),
        }
    }
}

fn is_attached(link: BorrowedFd<'_>, cgroup: &Path) -> bool {
    let id = fs::metadata(cgroup).map(|found| found.ino()).ok();
    bpf::info(link).is_ok_and(|info| info.cgroup != 0 && Some(info.cgroup) == id)
}

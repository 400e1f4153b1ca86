//! A process held by a pidfd: it cannot be mistaken for another that got its number later.
#![expect(unsafe_code, reason = "tokio's AsyncFd has no safe constructor")]

use std::{io, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A process, running or ended.
#[derive(Debug)]
pub struct Pidfd(AsyncFd<OwnedFd>);

impl Pidfd {
    /// Whoever has this number now. To be called in a tokio runtime, in which its end is waited for.
    ///
    /// # Errors
    /// `ESRCH` when nobody has it.
    pub fn open(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or_else(|| io::Error::other(format!("{pid} is no process id")))?;
        let fd = pidfd_open(number, PidfdFlags::empty())?;
        // SAFETY: an `OwnedFd` is open, always the same, and not closed before it is dropped; it is nobody else's.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Sends it a signal. That it has ended is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.0.get_ref(), signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Waits for its end, with any number of others.
    pub async fn ended(&self) {
        loop {
            match self.0.readable().await {
                // Left as it is, since it stays so.
                Ok(_) if self.has_ended() => return,
                Ok(mut guard) => guard.clear_ready(),
                // The runtime goes down, and who waits with it.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Whether all its threads have ended (it is readable then, see pidfd_open(2)).
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.0.get_ref(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_process_s_end() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pidfd = Pidfd::open(child.id()).unwrap();
        assert!(!pidfd.has_ended());
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), pidfd.ended()).await;
        assert!(early.is_err());
        pidfd.signal(Signal::TERM).unwrap();
        tokio::join!(pidfd.ended(), pidfd.ended());
        assert!(pidfd.has_ended());
        child.wait().unwrap();
        pidfd.signal(Signal::TERM).unwrap();
        assert_eq!(Pidfd::open(child.id()).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(Pidfd::open(0).is_err() && Pidfd::open(u32::MAX).is_err());
    }
}

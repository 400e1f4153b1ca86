//! Lines go to standard error through a thread of their own: a log that is not read (journald stands still with its disk), or
//! a file on a disk that hangs, must not stop the tasks that log.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait, in bytes. What comes beyond that is lost, and counted.
const MOST: usize = 1 << 20;

/// Hands lines to the thread.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    lost: u64,
    /// The thread has lines that it has not written yet.
    is_busy: bool,
}

impl Lines {
    /// Starts the thread, which writes to `to`.
    pub(super) fn start(to: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new() });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || theirs.run(to))?;
        Ok(Self(shared))
    }

    /// Waits until all lines are written, but not longer than `within`.
    pub(super) fn flush(&self, within: Duration) {
        let until = Instant::now() + within;
        loop {
            let is_done = {
                let queue = self.0.queue();
                queue.lines.is_empty() && !queue.is_busy
            };
            if is_done || Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn push(&self, line: &[u8]) {
        let mut queue = self.0.queue();
        if queue.bytes + line.len() > MOST {
            queue.lost += 1;
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        self.0.wake.notify_one();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut to: impl Write) {
        loop {
            let (lines, lost) = {
                let mut queue = self.queue();
                queue.is_busy = false;
                let is_idle = |queue: &mut Queue| queue.lines.is_empty() && queue.lost == 0;
                queue = self.wake.wait_while(queue, is_idle).unwrap_or_else(PoisonError::into_inner);
                (queue.is_busy, queue.bytes) = (true, 0);
                (std::mem::take(&mut queue.lines), std::mem::take(&mut queue.lost))
            };
            // There is no place to tell of an error here.
            lines.iter().for_each(|line| drop(to.write_all(line)));
            if lost > 0 {
                drop(writeln!(to, "deployer: {lost} lines of the log are lost: standard error was not read in time"));
            }
        }
    }
}

impl Write for Lines {
    /// A whole line, as tracing hands it over.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Stands still until it may write.
    struct Slow(Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (Lines, Sender<()>, Arc<Mutex<Vec<u8>>>) {
        let (go, may) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        (Lines::start(Slow(may, Arc::clone(&written))).unwrap(), go, written)
    }

    #[test]
    fn lines_come_in_their_order() {
        let (lines, go, written) = slow();
        (0..100).for_each(|nth| lines.push(format!("{nth}\n").as_bytes()));
        drop(go);
        lines.flush(Duration::from_secs(5));
        let expected: String = (0..100).map(|nth| format!("{nth}\n")).collect();
        assert_eq!(String::from_utf8(written.lock().unwrap().clone()).unwrap(), expected);
    }

    #[test]
    fn a_log_that_is_not_read_stops_no_task_and_what_is_lost_is_counted() {
        let (lines, go, written) = slow();
        let long = vec![b'x'; MOST / 4];
        let begun = Instant::now();
        (0..20).for_each(|_| lines.push(&long));
        lines.flush(Duration::from_millis(10));
        assert!(begun.elapsed() < Duration::from_secs(2));
        drop(go);
        lines.flush(Duration::from_secs(5));
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(text.len() <= 9 * long.len() && text.contains(" lines of the log are lost"));
    }
}

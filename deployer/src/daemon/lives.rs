//! What the kernel tells of workers' processes, told on: to the watch, which looks at once; to the log; to a roll that runs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use deployer_common::layout::{EVENT_CLOSED, EVENT_CUT, EVENT_KILLED, EVENT_LISTENS, Event};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tracing::{error, info, warn};

use super::Daemon;
use crate::{
    api::{Phase, What},
    kernel::{Events, address},
};

/// The connections of a process are closed one after the other: what comes so soon after is told with it.
const GATHER: Duration = Duration::from_millis(200);
/// So long the files of a process that is killed are waited for: its memory is given back first.
const CLOSES_WITHIN: Duration = Duration::from_secs(5);
/// After so long an end is no longer that of a worker which was retired.
const RETIRED: Duration = Duration::from_secs(2);
/// Callers that are named.
const NAMED: usize = 8;

/// Ends that are still to be told. Those that are left when the daemon stops are told as far as they are known.
struct Ends<'a> {
    daemon: &'a Daemon,
    ends: BTreeMap<u32, End>,
}

/// The end of a worker's process, as far as it has been told.
#[derive(Debug)]
struct End {
    /// How; `None`: the kernel had it down already, as a roll had stopped it.
    how: Option<String>,
    cut: usize,
    callers: Vec<String>,
    /// Its files are still open.
    closes: bool,
    /// When it is told on.
    due: Instant,
}

impl Daemon {
    /// Listens for ever.
    pub(super) async fn hear(self: Arc<Self>, events: Arc<tokio::sync::Mutex<Events>>, news: Arc<Notify>) {
        // One that was started anew goes on with the same events.
        let mut events = events.lock().await;
        let mut ends = Ends { daemon: &self, ends: BTreeMap::new() };
        loop {
            let due = ends.ends.values().map(|end| end.due).min();
            let far = Instant::now() + Duration::from_secs(3600);
            match timeout_at(due.unwrap_or(far), events.next()).await {
                Ok(Ok(event)) => {
                    news.notify_one();
                    if event.kind != EVENT_LISTENS {
                        ends.ends.entry(event.worker).or_insert_with(End::new).take(&event);
                    }
                }
                Ok(Err(error)) => return error!(%error, "what the kernel tells of workers cannot be read any more"),
                Err(_) => ends.tell(Some(Instant::now())),
            }
        }
    }

    fn tell_end(&self, index: u32, End { how, cut, callers, .. }: End) {
        let services = self.registry.services();
        let found = services.values().find_map(|service| {
            let worker = service.members().find(|worker| worker.index == index)?;
            Some((service, worker))
        });
        // One that is no longer configured, or the self-test's.
        let Some((service, worker)) = found else { return };
        let is_news = how.is_some();
        let text = how.unwrap_or_else(|| "was stopped".to_owned());
        let (name, at) = (&service.config.name, worker.at);
        let span = worker.control().span().entered();
        if cut > 0 {
            warn!(service = name, worker = %at, cut, callers = callers.join("; "), "worker {text}; connections were open in it");
        } else {
            info!(service = name, worker = %at, "worker {text}; no connection was open in it");
        }
        drop(span);
        // A roll that has stopped it itself says so in its own words.
        let is_planned = cut == 0 && {
            let control = worker.control();
            let begins = matches!(control.phase, Phase::Stopping | Phase::Starting | Phase::Listening | Phase::Warming);
            // Of a spare, or a pool, that is retired.
            let retired =
                control.phase == Phase::Down && control.reason.is_empty() && control.entered.elapsed() < RETIRED;
            begins && control.roll().is_some() || retired
        };
        if !is_planned && (cut > 0 || is_news) {
            self.tell_process_ended(worker, &text, cut, &callers);
        }
        if let Some(roll) = self.running(name).filter(|_| !is_planned) {
            roll.add(What::Ended { worker: at, text, cut, callers });
        }
    }
}

impl Ends<'_> {
    /// Tells those that are due by then, or all.
    fn tell(&mut self, by: Option<Instant>) {
        let is_due = |_: &u32, end: &mut End| by.is_none_or(|by| end.due <= by);
        for (index, end) in self.ends.extract_if(.., is_due) {
            self.daemon.tell_end(index, end);
        }
    }
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.tell(None);
    }
}

impl End {
    fn new() -> Self {
        Self { how: None, cut: 0, callers: Vec::new(), closes: false, due: Instant::now() + GATHER }
    }

    fn take(&mut self, event: &Event) {
        match event.kind {
            EVENT_KILLED => {
                let what = format!("has ended: its process {} is being killed, or ends by itself", event.pid);
                self.how = Some(what);
                self.closes = true;
                self.due = Instant::now() + CLOSES_WITHIN;
            }
            EVENT_CLOSED => {
                let what = || format!("has closed the socket on which it listened (process {})", event.pid);
                self.how.get_or_insert_with(what);
                self.closes = false;
            }
            EVENT_CUT => {
                self.cut += 1;
                if self.callers.len() < NAMED {
                    self.callers.push(caller(event));
                }
            }
            _ => {}
        }
        if !self.closes {
            self.due = Instant::now() + GATHER;
        }
    }
}

fn caller(event: &Event) -> String {
    let ip: IpAddr = address(event.addr);
    let at = SocketAddr::new(ip, event.port as u16);
    format!("{at}, open for {:.1} s", Duration::from_nanos(event.value).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use deployer_common::endpoint::MAPPED;

    use super::*;

    const CALLER: [u32; 4] = [0, 0, MAPPED, 0x7f00_0001_u32.to_be()];

    fn event(kind: u32) -> Event {
        Event { kind, pid: 7, port: 43210, addr: CALLER, value: 1_310_000_000, ..Event::default() }
    }

    fn told(kinds: &[u32]) -> End {
        let mut end = End::new();
        kinds.iter().for_each(|kind| end.take(&event(*kind)));
        end
    }

    #[test]
    fn an_end_is_told_with_what_was_cut() {
        let end = told(&[EVENT_KILLED, EVENT_CUT, EVENT_CLOSED, EVENT_CUT]);
        assert_eq!((end.cut, end.callers[0].as_str()), (2, "127.0.0.1:43210, open for 1.3 s"));
        assert!(end.how.unwrap().contains("process 7 is being killed"));
        assert!(end.due <= Instant::now() + GATHER);
    }

    #[test]
    fn it_is_not_told_before_its_files_are_closed() {
        let end = told(&[EVENT_KILLED, EVENT_CUT]);
        assert!(end.due > Instant::now() + 2 * GATHER);
    }

    #[test]
    fn only_some_are_named() {
        let end = told(&[EVENT_CUT; 100]);
        assert_eq!((end.cut, end.callers.len(), end.how), (100, NAMED, None));
    }
}

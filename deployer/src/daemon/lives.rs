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
    api::What,
    kernel::{Events, address},
};

/// The connections of a process are closed one after the other: what comes so long after its end is told with it.
const GATHER: Duration = Duration::from_millis(200);
/// Callers that are named.
const NAMED: usize = 8;

/// The end of a worker's process, as far as it has been told.
#[derive(Debug, Default, PartialEq, Eq)]
struct End {
    /// How; `None`: the kernel had it down already, as a roll had stopped it.
    how: Option<String>,
    cut: usize,
    callers: Vec<String>,
}

impl Daemon {
    /// Listens for ever.
    pub(super) async fn hear(self: Arc<Self>, mut events: Events, news: Arc<Notify>) {
        let mut ends: BTreeMap<u32, End> = BTreeMap::new();
        let mut due: Option<Instant> = None;
        loop {
            let far = Instant::now() + Duration::from_secs(3600);
            match timeout_at(due.unwrap_or(far), events.next()).await {
                Ok(Ok(event)) => {
                    news.notify_one();
                    if event.kind != EVENT_LISTENS {
                        due.get_or_insert_with(|| Instant::now() + GATHER);
                        take(ends.entry(event.worker).or_default(), &event);
                    }
                }
                Ok(Err(error)) => return error!(%error, "what the kernel tells of workers cannot be read any more"),
                Err(_) => {
                    due = None;
                    std::mem::take(&mut ends).into_iter().for_each(|(worker, end)| self.tell_end(worker, end));
                }
            }
        }
    }

    fn tell_end(&self, index: u32, End { how, cut, callers }: End) {
        let services = self.registry.services();
        let found = services.values().find_map(|service| {
            let worker = service.members().find(|worker| worker.index == index)?;
            Some((service, worker))
        });
        // One that is no longer configured, or the self-test's.
        let Some((service, worker)) = found else { return };
        let text = how.unwrap_or_else(|| "was stopped".to_owned());
        let (name, at) = (&service.config.name, worker.at);
        if cut > 0 {
            warn!(service = name, worker = %at, cut, callers = callers.join("; "), "worker {text}; connections were open in it");
        } else {
            info!(service = name, worker = %at, "worker {text}; no connection was open in it");
        }
        if let Some(roll) = self.running(name) {
            roll.add(What::Ended { worker: at, text, cut, callers });
        }
    }
}

fn take(end: &mut End, event: &Event) {
    match event.kind {
        EVENT_KILLED => {
            end.how = Some(format!("has ended: its process {} is being killed, or ends by itself", event.pid))
        }
        EVENT_CLOSED => {
            // An exit has been told before its sockets are closed.
            end.how
                .get_or_insert_with(|| format!("has closed the socket on which it listened (process {})", event.pid));
        }
        EVENT_CUT => {
            end.cut += 1;
            if end.callers.len() < NAMED {
                end.callers.push(caller(event));
            }
        }
        _ => {}
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

    #[test]
    fn an_end_is_told_with_what_was_cut() {
        let mut end = End::default();
        for kind in [EVENT_KILLED, EVENT_CUT, EVENT_CUT, EVENT_CLOSED] {
            take(&mut end, &event(kind));
        }
        assert_eq!((end.cut, end.callers[0].as_str()), (2, "127.0.0.1:43210, open for 1.3 s"));
        assert!(end.how.unwrap().contains("process 7 is being killed"));
    }

    #[test]
    fn only_some_are_named() {
        let mut end = End::default();
        (0..100).for_each(|_| take(&mut end, &event(EVENT_CUT)));
        assert_eq!((end.cut, end.callers.len(), end.how), (100, NAMED, None));
    }
}

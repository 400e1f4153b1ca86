//! `deployer trace`: decisions as they are made, to one listener at a time.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::OwnedMutexGuard,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::info;

use super::{Daemon, error::Refusal};
use crate::{
    api::{At, Outcome, TraceRequest, Traced},
    kernel::{Decision, Decisions, Wanted, Why, host},
    roll::record::unix_ms,
    service::{Service, named::NotNamed},
};

/// Between two allowances.
const PACE: Duration = Duration::from_millis(100);
/// So many decisions are told in that time, at the most: a thousand a second. The rest is counted.
const ALLOWED: u32 = 100;
/// The programs fall silent so long after the last allowance: also when this daemon is killed.
const LEASE: Duration = Duration::from_secs(1);
/// How long a reader may take for what is left when time is over.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Daemon {
    /// Has decisions told to a listener, a line each, until it goes, or time is over.
    ///
    /// # Errors
    /// When there is no such service, the request makes no sense, or somebody else listens.
    pub(super) fn trace(&self, name: &str, asked: &TraceRequest, by: &str, to: DuplexStream) -> Result<(), Refusal> {
        let service = self.service(name)?;
        if asked.duration_ms == 0 || asked.duration_ms > TraceRequest::LONGEST_MS || asked.every == 0 {
            let most = TraceRequest::LONGEST_MS / 60_000;
            let error = format!("a trace takes 1 ms to {most} min, and tells one decision in 1 or more");
            return Err(Refusal::usage(error));
        }
        let (port, worker) = asked.port.map_or(Ok((None, None)), |at| dialled(&service, at))?;
        let decisions = Arc::clone(&self.decisions).try_lock_owned();
        let decisions = decisions.map_err(|_| {
            Refusal::busy("somebody else is tracing, and there is one trace at a time; try again when it has ended")
        })?;
        let wanted = Wanted { service: service.index, port, worker, every: asked.every };
        info!(service = name, by, ?asked, "decisions are traced");
        tokio::spawn(Tracing { service, decisions, to, told: 0 }.run(wanted, Duration::from_millis(asked.duration_ms)));
        Ok(())
    }
}

/// The port and the worker whose decisions are wanted.
fn dialled(service: &Service, at: At) -> Result<(Option<u32>, Option<u32>), Refusal> {
    let name = &service.config.name;
    let found: Vec<_> = service.members().filter(|worker| at.is(worker.at)).collect();
    let is_frontend = service.config.address.is_some_and(|address| at.is(address));
    let port = Some(u32::from(at.port()));
    match (&found[..], at) {
        ([], _) if is_frontend => Ok((port, None)),
        ([], At::Port(port)) => Err(Refusal::usage(format!(
            "{name} has no worker at port {port}, and no service address; deployer status lists them"
        ))),
        ([], At::Address(at)) => Err(Refusal::usage(format!(
            "{name} has no worker at {at}, and that is not its service address; deployer status lists them"
        ))),
        ([worker], At::Port(_)) => Ok((port, Some(worker.index))),
        ([worker, ..], At::Address(_)) => Ok((Some(Wanted::NO_PORT), Some(worker.index))),
        (several, At::Port(port)) => {
            let all = several.iter().map(|worker| worker.at).collect();
            Err(Refusal::usage(NotNamed::Several { port, service: name.clone(), all }.to_string()))
        }
    }
}

/// A trace that runs.
struct Tracing {
    service: Arc<Service>,
    decisions: OwnedMutexGuard<Decisions>,
    to: DuplexStream,
    told: u64,
}

impl Tracing {
    async fn run(mut self, wanted: Wanted, duration: Duration) {
        self.decisions.begin(&wanted);
        // A reader that does not read holds this up, and the programs fall silent; in the end it is given up.
        let _ = timeout(duration + LAST_WORDS, self.tell_all(Instant::now() + duration)).await;
        self.decisions.end();
    }

    async fn tell_all(&mut self, end: Instant) -> std::io::Result<()> {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.allow();
        self.write(&Traced::Begun).await?;
        while Instant::now() < end {
            let heard = tokio::select! {
                _ = pace.tick() => {
                    self.allow();
                    continue;
                }
                // It says nothing. It has gone.
                _ = self.to.read_u8() => return Ok(()),
                heard = self.decisions.next() => heard?,
            };
            self.tell(heard).await?;
        }
        self.decisions.end();
        let rest = self.decisions.rest();
        self.tell(rest).await?;
        let (seen, skipped) = self.decisions.counted();
        let told = self.told;
        self.write(&Traced::End { seen, told, skipped }).await
    }

    fn allow(&self) {
        self.decisions.allow(ALLOWED, lease());
    }

    async fn tell(&mut self, heard: Vec<Decision>) -> std::io::Result<()> {
        for decision in heard {
            self.told += 1;
            let line = traced(&decision, &self.service);
            self.write(&line).await?;
        }
        Ok(())
    }

    async fn write(&mut self, line: &Traced) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(line)?;
        line.push(b'\n');
        let written = self.to.write_all(&line);
        tokio::pin!(written);
        loop {
            // A reader that does not read is told nothing more meanwhile, but what it misses is counted.
            match timeout(PACE, &mut written).await {
                Ok(written) => return written,
                Err(_) => self.decisions.allow(0, lease()),
            }
        }
    }
}

/// The end of a lease that begins now.
fn lease() -> u64 {
    host::now_ms() + LEASE.as_millis() as u64
}

fn traced(decision: &Decision, service: &Service) -> Traced {
    let at = |index: u32| service.members().find(|worker| worker.index == index).map(|worker| worker.at);
    let (outcome, chosen, reason) = judged(decision, at);
    let age = host::now_ms().saturating_sub(decision.at_ns / 1_000_000);
    let len = decision.command.iter().position(|byte| *byte == 0).unwrap_or(decision.command.len());
    Traced::Decision {
        time_ms: unix_ms().saturating_sub(age),
        pid: decision.pid,
        command: String::from_utf8_lossy(&decision.command[..len]).into_owned(),
        dialled: decision.dialled,
        outcome,
        chosen,
        reason,
    }
}

/// What came of it, who got it, and why.
fn judged(decision: &Decision, at: impl Fn(u32) -> Option<SocketAddr>) -> (Outcome, Option<SocketAddr>, String) {
    let own = decision.own.and_then(&at);
    let passed = |reason: &str| (Outcome::Passed, own, reason.to_owned());
    match decision.why {
        Why::Bypassed => passed("steering is bypassed"),
        Why::Daemon => passed("it is the daemon's own connection"),
        Why::Unsteered => passed("this caller is not steered"),
        Why::Decided => decided(decision, own, at),
        Why::Observed => {
            let (outcome, chosen, reason) = decided(decision, own, at);
            let to = chosen.map(|chosen| format!(" to {chosen}")).unwrap_or_default();
            (Outcome::Passed, own, format!("the service is observed; would be {}{to}: {reason}", outcome.word()))
        }
    }
}

fn decided(
    decision: &Decision,
    own: Option<SocketAddr>,
    at: impl Fn(u32) -> Option<SocketAddr>,
) -> (Outcome, Option<SocketAddr>, String) {
    let state = format!("{:?}", decision.state).to_lowercase();
    let chosen = decision.chosen.and_then(at);
    let best = match decision.rank {
        _ if decision.floor => "; fewer than min_up are up, so one that is draining got it",
        1 => "; nobody is up, so one that is draining got it",
        2 => "; nobody is up or draining, so one that is cold got it",
        _ => "",
    };
    match (decision.own, decision.chosen) {
        (Some(own), Some(chosen_index)) if own == chosen_index => {
            (Outcome::Direct, chosen, format!("it is {state}{best}"))
        }
        (Some(_), Some(_)) => (Outcome::Steered, chosen, format!("it is {state}{best}")),
        (None, Some(_)) => (Outcome::Picked, chosen, format!("the service address was dialled{best}")),
        // As in deployer-ebpf's `may_be_back`.
        (Some(_), None) if decision.rank == 3 && state == "down" => {
            (Outcome::Passed, own, "it was last seen down, and nobody else can take it: its port answers".to_owned())
        }
        (Some(_), None) if decision.rank == 3 => {
            (Outcome::Refused, None, format!("it is {state}, and nobody else can take it"))
        }
        (Some(_), None) => (Outcome::Refused, None, format!("it is {state}, and the policy is to refuse")),
        (None, None) => (Outcome::Refused, None, "nobody can take it".to_owned()),
    }
}

//! What a daemon finds when it begins with a service: workers that serve go on serving.

use std::{collections::BTreeSet, time::Duration};

use deployer_common::word::State;

use super::{
    super::{
        Worker,
        identity::{self, Listening, seen::Listens},
        put_up,
        registry::Registry,
    },
    seed,
};
use crate::{
    api::Phase,
    kernel::{Tables, diag, host},
};

/// How long the managers may take to say whose the listeners are, before the daemon begins without that.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// Finds the state of every worker of services that are new here, but for `known` ones: what listens has been serving,
/// and goes on, unless it is a stranger. A spare has served nobody, nor has the pool that is not current: the watch warms
/// them first.
///
/// # Errors
/// When sock_diag fails.
pub async fn adopt(registry: &Registry, tables: &Tables, known: &BTreeSet<String>) -> std::io::Result<()> {
    let listening = Listening::look().await?;
    let services = registry.services();
    let new = || services.values().filter(|service| !known.contains(&service.config.name));
    identity::look_first(new().map(|service| &**service), &listening, FIRST_LOOK).await;
    for service in new() {
        for worker in service.workers() {
            // What a roll had in hand, or had given up, is not to be judged by its listening.
            let untouched = !matches!(tables.word(worker.index).state(), State::Stopping | State::Failed);
            if untouched && worker.control().phase == Phase::Down {
                adopt_one(worker, tables, &listening).await?;
            }
        }
    }
    Ok(())
}

async fn adopt_one(worker: &Worker, tables: &Tables, listening: &Listening) -> std::io::Result<()> {
    let found = listening.at(worker.at);
    let listens = worker.seen().listens(&found, worker.at);
    let (own, reason) = match listens {
        Listens::Worker(own) => (own, "found serving".to_owned()),
        Listens::Unknown(why) => {
            worker.seen().found(&found);
            let why = why.unwrap_or_else(|| "its manager has not answered yet".to_owned());
            let reason =
                format!("found serving; whether it is the worker will be looked at when that can be asked: {why}");
            (found.iter().map(|socket| socket.cookie).collect(), reason)
        }
        Listens::Stranger(who) => {
            tables.publish(worker.index, State::Stranger, 0);
            worker.enter(Phase::Stranger, &who);
            return Ok(());
        }
        // The watch goes on with it.
        Listens::Doubtful(_) | Listens::Nothing => return Ok(()),
    };
    put_up(tables, worker, own, &reason);
    seed(worker, tables, u64::MAX).await
}

/// Takes over the workers of services that an earlier daemon has left in the tables, by what their words say of them.
///
/// # Errors
/// When sock_diag fails.
pub async fn take_over(registry: &Registry, tables: &Tables, inherited: &BTreeSet<String>) -> std::io::Result<()> {
    let listening = Listening::look().await?;
    let services = registry.services();
    let left = || services.values().filter(|service| inherited.contains(&service.config.name));
    identity::look_first(left().map(|service| &**service), &listening, FIRST_LOOK).await;
    for service in left() {
        for worker in service.members() {
            take_over_one(worker, tables, &listening.at(worker.at));
        }
    }
    Ok(())
}

fn take_over_one(worker: &Worker, tables: &Tables, found: &[diag::Socket]) {
    let listens = worker.seen().listens(found, worker.at);
    let (stored, word) = (tables.word(worker.index).state(), tables.word(worker.index).at(host::now_ms()));
    match (word, listens) {
        (State::Failed, _) => {
            worker.enter(Phase::Failed, "failed before this daemon was started");
        }
        (State::Stopping, _) => {}
        (_, Listens::Stranger(who)) => {
            tables.publish(worker.index, State::Stranger, 0);
            worker.enter(Phase::Stranger, &who);
        }
        (State::Up | State::Draining, Listens::Nothing) => {
            tables.publish(worker.index, State::Down, 0);
        }
        // It has come while no daemon ran, and its quarantine has run out: the watch looks at it first.
        (State::Up, Listens::Doubtful(_)) if stored == State::Cold => {
            tables.publish(worker.index, State::Cold, worker.quarantine(tables));
        }
        // Whether a drain goes on, the journal says; until then its word stays.
        (State::Up | State::Draining, _) => {
            // A quarantine that has run out is none: callers have been let in.
            if stored == State::Cold {
                tables.publish(worker.index, State::Up, 0);
            }
            worker.seen().found(found);
            worker.control().listeners = found.iter().map(|socket| socket.cookie).collect();
            worker.enter(Phase::Up, "serving, as the daemon before this one has left it");
        }
        // The watch warms what listens, once nobody else has laid hands on it.
        (State::Absent | State::Cold | State::Down | State::Stranger, _) => {}
    }
}

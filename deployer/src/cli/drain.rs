//! `deployer drain` and `deployer enable`: one worker out of rotation, and back.

use std::time::Duration;

use super::{
    Worker,
    client::{Client, Failure, encoded},
    out,
};
use crate::{
    api::{Done, DrainRequest, EnableRequest, Exit},
    config::duration,
};

/// The daemon waits no longer where the command line names no limit: twice `warm.within`, which is an hour at most.
const LONGEST: Duration = Duration::from_secs(2 * 3600);

pub(super) async fn drain(client: &Client, worker: &Worker, for_ms: Option<u64>, force: bool) -> Result<Exit, Failure> {
    let path = format!("/v1/services/{}/drain", encoded(&worker.service));
    let done: Done = client.post(&path, &DrainRequest { port: worker.worker, for_ms, force }).await?;
    out::say(&out::clean(&done.done))
}

/// Waits until the worker is up: the daemon answers then, or when its limit is over.
pub(super) async fn enable(client: &Client, worker: &Worker, within_ms: Option<u64>) -> Result<Exit, Failure> {
    let limit = within_ms.map_or(LONGEST, Duration::from_millis);
    let mut client = client.clone();
    client.answer_within = client.answer_within.saturating_add(limit);
    let path = format!("/v1/services/{}/enable", encoded(&worker.service));
    let done: Done = client.post(&path, &EnableRequest { port: worker.worker, within_ms }).await?;
    out::say(&out::clean(&done.done))
}

/// A time on the command line, in milliseconds.
pub(super) fn time(text: &str) -> Result<u64, String> {
    let time = duration(text).ok_or("write a whole number and ms, s, m or h: 10m")?;
    match u64::try_from(time.as_millis()) {
        Ok(0) => Err("it would be over at once".to_owned()),
        Ok(milliseconds) => Ok(milliseconds),
        Err(_) => Err("that is too long".to_owned()),
    }
}

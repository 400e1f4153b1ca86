//! `deployer drain` and `deployer enable`: one worker out of rotation, and back.

use super::{
    Worker,
    client::{Client, Failure, encoded},
    out,
};
use crate::{
    api::{Done, DrainRequest, EnableRequest, Exit},
    config::duration,
};

pub(super) async fn drain(client: &Client, worker: &Worker, for_ms: Option<u64>, force: bool) -> Result<Exit, Failure> {
    let path = format!("/v1/services/{}/drain", encoded(&worker.service));
    let done: Done = client.post(&path, &DrainRequest { port: worker.port, for_ms, force }).await?;
    out::say(&out::clean(&done.done))
}

pub(super) async fn enable(client: &Client, worker: &Worker) -> Result<Exit, Failure> {
    let path = format!("/v1/services/{}/enable", encoded(&worker.service));
    let done: Done = client.post(&path, &EnableRequest { port: worker.port }).await?;
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

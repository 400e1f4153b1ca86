//! A job that systemd has taken on, and its end.

use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};
use zbus::{MessageStream, OwnedObjectPath};

use super::{LOOK, bus::Bus, unit::Unit};
use crate::workers::ManagerError;

/// A job, with the signals of its unit since before it was asked for.
pub(super) struct Job<'a> {
    bus: &'a Bus<'a>,
    unit: String,
    path: OwnedObjectPath,
    signals: MessageStream,
}

/// How the wait for a job ended.
pub(super) enum End {
    /// The unit is as it was to be, or the job was done.
    Done,
    /// The job came to this instead.
    Not(String),
    /// It has not ended yet.
    Late,
}

impl<'a> Job<'a> {
    pub(super) fn new(bus: &'a Bus<'a>, unit: String, path: OwnedObjectPath, signals: MessageStream) -> Self {
        Self { bus, unit, path, signals }
    }

    /// Waits until it ends, the unit is as wanted, or there is no time left; and the unit as it then is.
    pub(super) async fn end(
        &mut self,
        tried: &str,
        until: Instant,
        is_as_wanted: fn(&Unit) -> bool,
    ) -> Result<(Unit, End), ManagerError> {
        loop {
            let heard = timeout(LOOK, self.result()).await;
            let now = self.bus.unit(&self.unit, tried).await?;
            match heard {
                _ if is_as_wanted(&now) => return Ok((now, End::Done)),
                Ok(Some(result)) if result == "done" => return Ok((now, End::Done)),
                Ok(Some(result)) => {
                    let said = format!("its job ended as `{result}`, and the unit is {}", now.state());
                    return Ok((now, End::Not(said)));
                }
                // No more signals come; the looks go on.
                Ok(None) => sleep(LOOK).await,
                Err(_) => {}
            }
            if Instant::now() >= until {
                return Ok((now, End::Late));
            }
        }
    }

    /// Its result: `done`, `canceled`, `timeout`, `failed`, `dependency`, `skipped`…; `None`: the connection is gone. May
    /// be given up and called again.
    async fn result(&mut self) -> Option<String> {
        loop {
            // An error is a connection that breaks; the look at the unit says so in better words.
            let message = self.signals.next().await?.ok()?;
            // What is not understood is not a signal of systemd's.
            let body = message.body();
            let Ok((_, path, _, result)) = body.deserialize::<(u32, OwnedObjectPath, String, String)>() else {
                continue;
            };
            if path == self.path {
                return Some(result);
            }
        }
    }
}

//! Events, over restarts of the daemon: each comes once.

use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::{sync::mpsc::Sender, time::sleep};

use super::client::{Client, Failure, Numbered, Received};
use crate::api::{Event, Exit};

/// Between two looks for a daemon that has gone.
const LOOK: Duration = Duration::from_millis(200);

/// What is heard.
#[derive(Debug)]
pub(super) enum Heard<T = Event> {
    Event(Received<T>),
    /// No daemon answers; said again with every look.
    Gone(Failure),
    /// There is no use in waiting; the last.
    Refused(Failure),
}

/// Passes events on from a number on, until nobody wants them; `path` is without that number.
pub(super) async fn run<T: Numbered + DeserializeOwned>(
    client: Client,
    path: String,
    mut next: u64,
    to: Sender<Heard<T>>,
) {
    loop {
        let failure = match stream(&client, &path, &mut next, &to).await {
            Err(failure) if failure.exit != Exit::NoDaemon => {
                let _ = to.send(Heard::Refused(failure)).await;
                return;
            }
            Err(failure) => failure,
            Ok(()) => Failure::new(Exit::NoDaemon, "its events ended too early"),
        };
        if to.send(Heard::Gone(failure)).await.is_err() {
            return;
        }
        sleep(LOOK).await;
    }
}

/// One connection's events.
async fn stream<T: Numbered + DeserializeOwned>(
    client: &Client,
    path: &str,
    next: &mut u64,
    to: &Sender<Heard<T>>,
) -> Result<(), Failure> {
    let mut events = client.events::<T>(&format!("{path}from={next}")).await?;
    while let Some(event) = events.next().await {
        let received = event?;
        *next = received.event.seq().saturating_add(1);
        if to.send(Heard::Event(received)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

//! Events of a roll, over restarts of the daemon: each comes once.

use std::time::Duration;

use tokio::{sync::mpsc::Sender, time::sleep};

use super::client::{Client, Failure, Received};
use crate::api::Exit;

/// Between two looks for a daemon that has gone.
const LOOK: Duration = Duration::from_millis(200);

/// What is heard of a roll.
#[derive(Debug)]
pub(super) enum Heard {
    Event(Received),
    /// No daemon answers; said again with every look.
    Gone(Failure),
    /// There is no use in waiting; the last.
    Refused(Failure),
}

/// Passes events on, until nobody wants them.
pub(super) async fn run(client: Client, roll: String, to: Sender<Heard>) {
    let mut next = 0;
    loop {
        let failure = match stream(&client, &roll, &mut next, &to).await {
            Err(failure) if failure.exit != Exit::NoDaemon => {
                let _ = to.send(Heard::Refused(failure)).await;
                return;
            }
            Err(failure) => failure,
            Ok(()) => Failure::new(Exit::NoDaemon, "its events ended before the roll had"),
        };
        if to.send(Heard::Gone(failure)).await.is_err() {
            return;
        }
        sleep(LOOK).await;
    }
}

/// One connection's events.
async fn stream(client: &Client, roll: &str, next: &mut u64, to: &Sender<Heard>) -> Result<(), Failure> {
    let mut events = client.events(roll, *next).await?;
    while let Some(event) = events.next().await {
        let received = event?;
        *next = received.event.seq + 1;
        if to.send(Heard::Event(received)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

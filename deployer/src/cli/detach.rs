//! `deployer detach`: everything out of the kernel.

use std::path::Path;

use super::{
    client::{Client, Failure},
    out,
};
use crate::{
    api::{DetachRequest, Done, Exit},
    kernel,
};

pub(super) async fn run(client: &Client, force: bool, pins: &Path) -> Result<Exit, Failure> {
    match client.post::<Done>("/v1/detach", &DetachRequest { force }).await {
        Ok(done) => out::say(&out::clean(&done.done)),
        Err(failure) if failure.exit == Exit::NoDaemon => leftovers(pins, &failure),
        Err(failure) => Err(failure),
    }
}

/// Without a daemon: what one has left, which steers on.
fn leftovers(pins: &Path, no_daemon: &Failure) -> Result<Exit, Failure> {
    let shown = pins.display();
    match kernel::detach_leftovers(pins) {
        Ok(true) => out::say(&format!(
            "no daemon runs; what one had left in {shown} is out of the kernel, and connections go where they are dialled"
        )),
        Ok(false) => {
            let text =
                format!("{}; and nothing is pinned in {shown}: nothing of deployer's is attached", no_daemon.message);
            Err(Failure::new(Exit::NoDaemon, text))
        }
        Err(error) => Err(Failure::new(Exit::Failed, format!("{error:#}"))),
    }
}

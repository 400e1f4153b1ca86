//! `deployer detach`: everything out of the kernel.

use super::{
    client::{Client, Failure},
    out,
};
use crate::api::{DetachRequest, Done, Exit};

pub(super) async fn run(client: &Client, force: bool) -> Result<Exit, Failure> {
    let done: Done = client.post("/v1/detach", &DetachRequest { force }).await?;
    out::say(&out::clean(&done.done))
}

//! `deployer bypass`: every connection goes where it was dialled, and back.

use super::{
    client::{Client, Failure},
    out,
};
use crate::api::{BypassRequest, Done, Exit};

pub(super) async fn run(client: &Client, service: Option<String>, on: bool, force: bool) -> Result<Exit, Failure> {
    let done: Done = client.post("/v1/bypass", &BypassRequest { service, on, force }).await?;
    out::say(&out::clean(&done.done))
}

//! `deployer fleet`: the hosts that flip together, and what they are at. `order` begins deploys and rolls of them, `follow`
//! watches these to their end, `lines` says what happens, `view` shows it, `status` has the tables.

mod follow;
mod lines;
mod order;
mod status;
#[cfg(test)]
mod tests;
mod view;

use std::time::Duration;

use clap::{Subcommand, builder::NonEmptyStringValueParser};
use serde_json::json;

pub(super) use self::order::{Barriers, DeployFlags, Following, RollFlags, deploy, roll, rollback};
use super::{
    EXIT_CODES,
    client::{Client, Failure, encoded},
    out,
    roll::patience,
};
use crate::api::{Done, Exit};

/// What can be asked about the fleet, and of it.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show the fleet: the connection, its services, what is under way and who is waited for
    #[command(after_help = EXIT_CODES)]
    Status {
        /// Only this service, with all that is known of it
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        service: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the hosts: who is enabled, who is there, what they serve, and how true their clocks are
    #[command(after_help = EXIT_CODES)]
    Hosts {
        /// Print one JSON object a host, a line each
        #[arg(long)]
        json: bool,
    },
    /// Follow the deploy or roll that is under way, whoever has begun it
    #[command(after_help = EXIT_CODES)]
    Watch {
        /// The service
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        service: String,
        /// Print how it stands as one JSON object a line, at each change
        #[arg(long)]
        json: bool,
        /// How long to wait for a daemon that goes away in the middle: 30s, 5m
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = patience)]
        wait: Duration,
    },
    /// End what is under way: before the flip nobody meets the new version; afterwards every host returns to the old one
    #[command(after_help = EXIT_CODES)]
    Abort {
        /// The service
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        service: String,
    },
    /// Have this host's daemon drive what is under way, if nobody else does
    #[command(after_help = EXIT_CODES)]
    Resume {
        /// The service
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        service: String,
    },
    /// Put a host into the roster: deploys wait for it from the next one on
    #[command(after_help = EXIT_CODES)]
    Enable {
        /// The host, as `deployer fleet hosts` names it
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        host: String,
    },
    /// Have a host stand aside: it is in no server set, and no deploy waits for it
    #[command(after_help = EXIT_CODES)]
    Drain {
        /// The host, as `deployer fleet hosts` names it
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        host: String,
    },
    /// Take a host that is gone for good out of the roster
    #[command(after_help = EXIT_CODES)]
    Forget {
        /// The host, as `deployer fleet hosts` names it
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        host: String,
    },
    /// Accept that a server set has shrunk below half, or to nothing: it is followed again
    #[command(after_help = EXIT_CODES)]
    AcceptShrink {
        /// The service
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        service: String,
    },
}

pub(super) async fn run(client: &Client, verb: &Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Status { service, json } => status::run(client, service.as_deref(), *json).await,
        Verb::Hosts { json } => status::hosts(client, *json).await,
        Verb::Watch { service, json, wait } => follow::watch(client, service, *json, *wait).await,
        Verb::Abort { service } => of_service(client, service, "abort").await,
        Verb::Resume { service } => of_service(client, service, "resume").await,
        Verb::AcceptShrink { service } => of_service(client, service, "accept-shrink").await,
        Verb::Enable { host } => of_host(client, host, "enable").await,
        Verb::Drain { host } => of_host(client, host, "drain").await,
        Verb::Forget { host } => of_host(client, host, "forget").await,
    }
}

async fn of_service(client: &Client, service: &str, what: &str) -> Result<Exit, Failure> {
    let done: Done = client.post(&format!("{}/{what}", path(service)), &json!({})).await?;
    out::say(&out::clean(&done.done))
}

async fn of_host(client: &Client, host: &str, what: &str) -> Result<Exit, Failure> {
    let done: Done = client.post(&format!("/v1/fleet/hosts/{}/{what}", encoded(host)), &json!({})).await?;
    out::say(&out::clean(&done.done))
}

/// Where a service of the fleet is asked for.
fn path(service: &str) -> String {
    format!("/v1/fleet/services/{}", encoded(service))
}

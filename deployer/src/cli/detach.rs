//! `deployer detach`: everything out of the kernel.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{
    client::{Client, Failure},
    out,
};
use crate::{
    api::{DetachRequest, Done, Exit},
    config::{self, DEFAULT_PINS},
    kernel::{self, host, leftovers},
    service::uses::{RECENT_ALONE, Used},
};

/// What to take out.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also where a service address is in use: connections to it will be refused
    #[arg(long)]
    force: bool,
    /// Where programs and tables are pinned, if no daemon runs that knows it [default: as the configuration says, or
    /// /sys/fs/bpf/deployer]
    #[arg(long, value_name = "DIR")]
    pins: Option<PathBuf>,
    /// The daemon's configuration: names its socket and its pins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) async fn run(client: Client, options: &Options) -> Result<Exit, Failure> {
    let named = options.config.as_deref().map(named).transpose()?;
    let pins = options.pins.clone().or_else(|| named.as_ref().map(|named| named.pins.clone()));
    let pins = pins.unwrap_or_else(|| DEFAULT_PINS.into());
    let client = named.map_or(client, |named| Client::new(named.socket));
    match client.post::<Done>("/v1/detach", &DetachRequest { force: options.force }).await {
        Ok(done) => out::say(&out::clean(&done.done)),
        Err(failure) if failure.exit == Exit::NoDaemon => leftovers(&pins, options.force, &failure),
        Err(failure) => Err(failure),
    }
}

fn named(file: &Path) -> Result<config::Named, Failure> {
    let read = std::fs::read_to_string(file);
    read.map(|text| config::named(&text))
        .map_err(|error| Failure::new(Exit::Usage, format!("{}: cannot be read: {error}", file.display())))
}

/// Without a daemon: what one has left, which steers on.
fn leftovers(pins: &Path, force: bool, no_daemon: &Failure) -> Result<Exit, Failure> {
    let shown = pins.display();
    let failed = |error: anyhow::Error| Failure::new(Exit::Failed, format!("{error:#}"));
    let survey = kernel::survey(pins)
        .map_err(|error| Failure::new(Exit::Failed, format!("{shown} cannot be looked at: {error}")))?;
    match survey {
        Some(survey) if survey.live || survey.held || survey.leftovers > 0 => {}
        _ => return Err(nothing_pinned(pins, no_daemon)),
    }
    if survey.is_some_and(|survey| survey.held) {
        let text = format!(
            "a daemon runs that holds the pins in {shown}, and it does not answer at the socket that was asked. Next: name \
             its socket with --socket PATH, or its configuration with --config FILE; {}",
            no_daemon.message
        );
        return Err(Failure::new(Exit::NoDaemon, text));
    }
    if !force {
        is_free(pins)?;
    }
    leftovers::detach_leftovers(pins).map_err(failed)?;
    out::say(&format!(
        "no daemon runs; what one had left in {shown} is out of the kernel, and connections go where they are dialled"
    ))
}

/// Whether no address is in use at which nothing listens without steering.
fn is_free(pins: &Path) -> Result<(), Failure> {
    let verb = format!("detach --pins {}", pins.display());
    let uses = leftovers::uses(pins).map_err(|error| {
        let text = format!(
            "no daemon runs, and it cannot be told whether a service address is in use: {error:#}. Next: start the daemon \
             and ask it, or accept refused connections: deployer {verb} --force"
        );
        Failure::new(Exit::Failed, text)
    })?;
    for leftovers::Use { address, last_ms, open } in uses {
        let used = Used::at(last_ms, host::now_ms(), open);
        if used.is_in_use(RECENT_ALONE) {
            let why = match address {
                Some(address) => used.refuse_address(&address.to_string(), RECENT_ALONE, &verb),
                None => used.refuse_pool(" of a service", RECENT_ALONE, &verb),
            };
            return Err(Failure::new(Exit::Failed, format!("no daemon runs, and {why}")));
        }
    }
    Ok(())
}

/// Nothing is pinned there. Programs may be attached all the same: pinned elsewhere, or held by a daemon.
fn nothing_pinned(pins: &Path, no_daemon: &Failure) -> Failure {
    let shown = pins.display();
    let found = match leftovers::attached() {
        Ok(found) if found.is_empty() => "no program of deployer is attached on this machine".to_owned(),
        Ok(found) => {
            let each: Vec<_> = found.iter().map(place).collect();
            format!("programs of deployer ARE attached: {}", each.join("; "))
        }
        Err(error) => format!("whether programs of deployer are attached elsewhere cannot be told: {error:#}"),
    };
    Failure::new(Exit::NoDaemon, format!("{}. Nothing is pinned in {shown}; {found}", no_daemon.message))
}

fn place(leftovers::Attached { cgroup, pins }: &leftovers::Attached) -> String {
    let at = cgroup.as_ref().map_or_else(
        || "to a cgroup that cannot be seen from here".to_owned(),
        |cgroup| format!("to cgroup {}", cgroup.display()),
    );
    match pins {
        Some(pins) => format!("{at}, pinned in {0} (to take them out: deployer detach --pins {0})", pins.display()),
        None => format!("{at}, pinned in no bpf file system that is mounted here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_programs_are_attached_is_said_with_the_way_out() {
        let (cgroup, pins) = (Some(PathBuf::from("/c/x")), Some(PathBuf::from("/b/web")));
        let said = place(&leftovers::Attached { cgroup: cgroup.clone(), pins });
        assert_eq!(said, "to cgroup /c/x, pinned in /b/web (to take them out: deployer detach --pins /b/web)");
        let said = place(&leftovers::Attached { cgroup, pins: None });
        assert!(said.contains("/c/x, pinned in no bpf file system"), "{said}");
    }

    #[test]
    fn a_configuration_that_is_not_there_is_said() {
        assert_eq!(named(Path::new("/nonexistent")).unwrap_err().exit, Exit::Usage);
    }
}

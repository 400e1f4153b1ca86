//! Keeps the file up to date. What cannot be read, or must not be believed, leaves it as it is.

use std::process::Stdio;
use std::time::Duration;

use super::{Source, vcl::Vcl};
use crate::{
    api::Exit,
    cli::{client::Failure, out},
    fleet::coordinator::Trouble,
};

/// What no watch has told of is seen after this time at the latest.
const LOOK: Duration = Duration::from_secs(10);
/// Several hosts that come or go together are one change.
const SETTLE: Duration = Duration::from_millis(200);
/// A command that reloads is done by then.
const RELOAD_WITHIN: Duration = Duration::from_secs(60);

/// What was said last: each trouble is said once.
#[derive(Default)]
struct Said(Option<String>);

impl Said {
    fn say(&mut self, why: Option<String>) {
        if let Some(why) = why.as_ref().filter(|why| self.0.as_ref() != Some(*why)) {
            out::error(why);
        } else if why.is_none() && self.0.is_some() {
            out::complain("deployer: the server set is followed again");
        }
        self.0 = why;
    }
}

/// Runs until it is ended.
pub(super) async fn run(source: &mut Source<'_>, mut written: Option<Vcl>) -> Result<Exit, Failure> {
    let fleet = std::sync::Arc::clone(&source.board.coordinator);
    let mut set = fleet.watch(&source.active(), true);
    let mut roster = fleet.watch(&source.board.paths.roster(), true);
    let mut shrink = fleet.watch(&source.shrink(), false);
    let (mut said, mut is_to_reload) = (Said::default(), false);
    loop {
        let mut why = match look(source, &mut written).await {
            Ok(Ok(has_changed)) => {
                is_to_reload |= has_changed;
                None
            }
            Ok(Err(why)) => Some(why),
            Err(trouble) => Some(format!("{trouble}; backends stay as they are")),
        };
        if is_to_reload {
            match reload(source.options.reload.as_deref()).await {
                Ok(()) => is_to_reload = false,
                Err(error) => why = Some(error),
            }
        }
        said.say(why);
        tokio::select! {
            () = set.changed() => {}
            () = roster.changed() => {}
            () = shrink.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Reads the set, and writes it down. Whether Varnish has to be told; `Err` within: why it is not applied.
async fn look(source: &mut Source<'_>, written: &mut Option<Vcl>) -> Result<Result<bool, String>, Trouble> {
    let set = source.read().await?;
    if let Err(why) = source.judge(&set).await? {
        return Ok(Err(why));
    }
    let vcl = Vcl::of(source.service, &set, &source.baseline);
    if written.as_ref() == Some(&vcl) {
        return Ok(Ok(false));
    }
    let Some(file) = &source.options.out else { return Ok(Ok(false)) };
    if let Err(why) = vcl.write(file) {
        return Ok(Err(why));
    }
    let has_changed = !written.as_ref().is_some_and(|written| written.does_the_same(&vcl));
    *written = Some(vcl);
    if has_changed {
        out::complain(&format!("deployer: {} has {} backends now", file.display(), set.alive().count()));
    }
    Ok(Ok(has_changed))
}

async fn reload(command: Option<&str>) -> Result<(), String> {
    let words: Vec<_> = command.unwrap_or_default().split_whitespace().collect();
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let again = format!("it is tried again every {} s", LOOK.as_secs());
    let mut child = tokio::process::Command::new(program);
    child.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(RELOAD_WITHIN, child.status()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{}: {status}; {again}", words.join(" "))),
        Ok(Err(error)) => Err(format!("{program} cannot be run: {error}; {again}")),
        Err(_) => Err(format!("{} has not ended after {} s; {again}", words.join(" "), RELOAD_WITHIN.as_secs())),
    }
}

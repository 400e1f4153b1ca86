//! WebSockets and server-sent events: cut only as the policy says.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use deployer_tests::api::{Ending, Roll};
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::journal::monotonic_ns;
use deployer_tests::nginx::{ADDRESS, Nginx};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::streams::{Stream, Streams};
use deployer_tests::supervisor::{Options, Supervisor};

use crate::scene::all_up;

/// Streams of each kind.
const EACH: usize = 50;
/// Between two messages of those that talk.
const TALK: Duration = Duration::from_millis(300);
/// Of those that do not.
const SILENT: Duration = Duration::from_secs(600);
/// How late an event may be read, and a stream's end noticed.
const SLACK: Duration = Duration::from_secs(1);

struct Stage<'a> {
    sandbox: &'a Sandbox,
    supervisor: Supervisor<'a>,
    daemon: Daemon<'a>,
    _nginx: Nginx,
}

impl<'a> Stage<'a> {
    fn new(sandbox: &'a Sandbox, config: &ServiceConfig) -> Result<Self> {
        let app = App::new(sandbox, &["v1", "v2"])?;
        let options =
            Options { import_seconds: 0.3, cold_seconds: 0.05, start_seconds: 0, ..Options::ports(8000..=8003) };
        let supervisor = Supervisor::start(sandbox, &app, options)?;
        supervisor.wait_up()?;
        supervisor.warm()?;
        let daemon = Daemon::start(sandbox, &config.text(sandbox, &app, &supervisor))?;
        all_up(sandbox)?;
        let nginx = Nginx::start_text(sandbox, UPSTREAM, UPGRADES)?;
        Ok(Self { sandbox, supervisor, daemon, _nginx: nginx })
    }

    fn streams(&self, every: Duration) -> Result<Streams> {
        Streams::open(self.sandbox, ADDRESS, EACH, every)
    }

    fn roll(&self) -> Result<Roll> {
        let mut command = self.daemon.cli_command(&["roll", "web", "--to", "v2", "--json"]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        Roll::by(command.spawn()?)
    }

    fn ended(&self, roll: Roll) -> Result<Ending> {
        let end = roll.end().map_err(|error| error.context(self.daemon.log()))?;
        eprintln!("{end:?}");
        Ok(end)
    }

    /// Whether these streams are all there, and each hears of its worker still.
    fn all_live(&self, streams: &Streams) -> Result<()> {
        let before = streams.look();
        sleep(TALK * 10);
        for (before, after) in before.iter().zip(streams.look()) {
            ensure!(after.end.is_none() && after.messages > before.messages, "{before:?}, and then {after:?}");
            let pid = self.supervisor.pid_of(after.port)?;
            ensure!(pid == Some(after.pid), "{after:?}, whose worker is {pid:?}");
        }
        Ok(())
    }
}

const UPSTREAM: &str = "  upstream web {
    server 127.0.0.1:8000;
    server 127.0.0.1:8001;
    server 127.0.0.1:8002;
    server 127.0.0.1:8003;
    keepalive 32;
  }
  map $http_upgrade $hop {
    default Upgrade;
    \"\" \"\";
  }
";
const UPGRADES: &str = "proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $hop;";

fn cut(streams: &[Stream]) -> Vec<&Stream> {
    streams.iter().filter(|stream| stream.end.is_some()).collect()
}

/// The roll stops, and nothing is cut.
#[test]
fn stop_roll_cuts_no_stream() -> Result<()> {
    let sandbox = Sandbox::new("kept_stop")?;
    let stage = Stage::new(&sandbox, &ServiceConfig { deadline: "3s", ..ServiceConfig::default() })?;
    let streams = stage.streams(TALK)?;
    let end = stage.ended(stage.roll()?)?;
    end.must("stopped", &["not empty after 3 s"])?;
    ensure!(end.changed == 0 && end.failed.is_empty(), "{end:?}");
    all_up(&sandbox)?;
    stage.all_live(&streams)?;
    ensure!(cut(&streams.close()?).is_empty());
    Ok(())
}

/// At the deadline, and not before.
#[test]
fn kill_cuts_streams_at_the_deadline() -> Result<()> {
    let sandbox = Sandbox::new("kept_kill")?;
    let deadline = Duration::from_secs(4);
    let config = ServiceConfig { deadline: "4s", on_deadline: "kill", ..ServiceConfig::default() };
    let stage = Stage::new(&sandbox, &config)?;
    let streams = stage.streams(TALK)?;
    let mut roll = stage.roll()?;
    let mut begun = std::collections::BTreeMap::new();
    while let Some(event) = roll.event()? {
        if event["phase"] == "draining" {
            begun.insert(event["worker"].to_string(), monotonic_ns());
        }
    }
    let end = stage.ended(roll)?;
    end.must("done", &["4 workers"])?;
    let all = streams.close()?;
    ensure!(cut(&all).len() == all.len(), "all workers were killed: {:?}", all.iter().find(|s| s.end.is_none()));
    for stream in &all {
        let begun = begun.get(&format!("\"127.0.0.1:{}\"", stream.port));
        let (Some(begun), Some((ended, _))) = (begun, &stream.end) else { anyhow::bail!("{stream:?}") };
        let lasted = Duration::from_nanos(ended.saturating_sub(*begun));
        ensure!(lasted + SLACK > deadline, "cut {lasted:?} after the drain began: {stream:?}");
    }
    Ok(())
}

/// The roll gives up on workers that are left after their time, says that it is incomplete, and nothing is cut.
#[test]
fn leave_cuts_no_stream() -> Result<()> {
    let sandbox = Sandbox::new("kept_leave")?;
    let drain = "leave_max = \"3s\"";
    let config = ServiceConfig { deadline: "2s", on_deadline: "leave", drain, ..ServiceConfig::default() };
    let stage = Stage::new(&sandbox, &config)?;
    let streams = stage.streams(TALK)?;
    let end = stage.ended(stage.roll()?)?;
    end.must("incomplete", &["127.0.0.1:8000"])?;
    ensure!(end.changed == 0 && end.failed.is_empty(), "{end:?}");
    stage.all_live(&streams)?;
    ensure!(cut(&streams.close()?).is_empty());
    Ok(())
}

/// Left workers are restarted once their callers have gone.
#[test]
fn left_workers_are_restarted_when_empty() -> Result<()> {
    let sandbox = Sandbox::new("kept_left")?;
    let drain = "leave_max = \"60s\"";
    let config = ServiceConfig { deadline: "2s", on_deadline: "leave", drain, ..ServiceConfig::default() };
    let stage = Stage::new(&sandbox, &config)?;
    let streams = stage.streams(TALK)?;
    let mut roll = stage.roll()?;
    let again = roll.until(|event| event["event"] == "again")?;
    eprintln!("{again}");
    stage.all_live(&streams)?;
    ensure!(cut(&streams.close()?).is_empty());
    let end = stage.ended(roll)?;
    end.must("done", &["4 workers"])?;
    ensure!(end.changed == 4, "{end:?}");
    Ok(())
}

/// Of the batch that is drained those are closed on which nothing has passed for so long, and no others; then the deadline
/// comes for the rest.
#[test]
fn quiet_streams_are_closed_and_others_not() -> Result<()> {
    let sandbox = Sandbox::new("kept_quiet")?;
    let config = ServiceConfig { deadline: "9s", drain: "quiet_after = \"3s\"", ..ServiceConfig::default() };
    let stage = Stage::new(&sandbox, &config)?;
    let quiet = stage.streams(SILENT)?;
    let opened = monotonic_ns();
    let talking = stage.streams(TALK)?;
    let mut roll = stage.roll()?;
    let mut drained = Vec::new();
    while let Some(event) = roll.event()? {
        if event["phase"] == "draining" {
            drained.push(event["worker"].to_string());
        }
    }
    let end = stage.ended(roll)?;
    end.must("stopped", &["not empty after 9 s"])?;
    ensure!(end.changed == 0 && drained.len() == 2, "{end:?}, {drained:?}");
    stage.all_live(&talking)?;
    for stream in quiet.look() {
        let was_drained = drained.contains(&format!("\"127.0.0.1:{}\"", stream.port));
        ensure!(was_drained == stream.end.is_some(), "{stream:?}, drained {drained:?}");
        let quiet = stream.end.as_ref().map(|(ended, _)| Duration::from_nanos(ended.saturating_sub(opened)));
        ensure!(quiet.is_none_or(|quiet| quiet + SLACK > Duration::from_secs(3)), "{quiet:?}: {stream:?}");
    }
    ensure!(cut(&talking.close()?).is_empty());
    let end = stage.ended(stage.roll()?)?;
    end.must("done", &["4 workers"])?;
    quiet.close()?;
    Ok(())
}

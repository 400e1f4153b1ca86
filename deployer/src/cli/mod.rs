//! The command line: what can be asked for, and who does it. One file a verb.
//!
//! All verbs but `daemon`, `check`, `config`, `lb` and `unit` are clients of a running daemon ([`crate::api`]).

mod board;
mod bypass;
mod client;
mod config;
mod deploy;
mod detach;
mod drain;
mod events;
mod fleet;
mod happened;
mod history;
mod lb;
mod lines;
mod out;
mod pump;
mod reload;
mod report;
mod roll;
mod signals;
mod status;
mod terminal;
#[cfg(test)]
mod tests;
mod trace;
mod unit;
mod view;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, builder::NonEmptyStringValueParser};

use self::client::{Client, Failure};
use crate::{
    api::{At, Exit},
    config::ConfigError,
};

const EXIT_CODES: &str = "\
Exit codes, the same for every verb:
  0  done
  1  failed
  2  usage: the command, or what it names, makes no sense
  3  stopped, on request or at a drain's deadline; what was done stays
  4  busy: somebody else is at it
  5  failed, and what was changed has been rolled back
  6  no daemon answers
  7  incomplete: workers were left as they were, or detached, and the daemon goes on";

/// Rolls the workers of an appserver without losing a request.
#[derive(Debug, Parser)]
#[command(name = "deployer", version, about, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    /// The daemon's unix socket
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "DEPLOYER_SOCKET",
        default_value = "/run/deployer/deployer.sock"
    )]
    socket: PathBuf,

    #[command(subcommand)]
    verb: Verb,
}

// No full stop at the end of what clap shows.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon: attach, steer, answer the other verbs
    #[command(after_help = EXIT_CODES)]
    Daemon {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Look at configuration files
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Say whether this machine is fit for the daemon, and what to do where it is not
    #[command(after_help = EXIT_CODES)]
    Check {
        /// Check what this configuration needs, too
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Restart the workers of a service, batch by batch, without losing a request
    #[command(after_help = EXIT_CODES)]
    Roll(roll::Options),
    /// Start a version beside the one that serves, warm it, and flip to it at one instant; see `flip` and `rollback`
    #[command(after_help = EXIT_CODES)]
    Deploy(deploy::Options),
    /// Have a deploy flip that was begun with --hold
    #[command(after_help = EXIT_CODES)]
    Flip {
        /// The service
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        service: String,
        /// At this instant: +30s, 14:30:00Z, 2026-01-31T14:30:00Z, or seconds since 1970 [default: now]
        #[arg(long, value_name = "TIME", value_parser = deploy::instant)]
        at: Option<u64>,
    },
    /// Have the former version serve again: at once while a deploy bakes, else by a deploy of it
    #[command(after_help = EXIT_CODES)]
    Rollback(deploy::RollbackOptions),
    /// Show the hosts that flip together, and see to what they are at
    #[command(subcommand)]
    Fleet(fleet::Verb),
    /// Show what was deployed and rolled: when, by whom, from which version to which, and how it ended
    #[command(after_help = EXIT_CODES)]
    History {
        /// The service [default: all]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        service: Option<String>,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show services and workers: phases, versions, connections, where connections went
    #[command(after_help = EXIT_CODES)]
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show what became of the connections before, during and after a roll
    #[command(after_help = EXIT_CODES)]
    Report {
        /// The roll, as `deployer roll --json` and `deployer status` name it [default: the one that began last]
        #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
        roll: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the decisions of a service as they are made: who called, what it dialled, what it got, and why
    #[command(after_help = EXIT_CODES)]
    Trace(trace::Options),
    /// Show what happened on this host, when and by whom; kept over restarts of the daemon
    #[command(after_help = EXIT_CODES)]
    Events(events::Options),
    /// Take a worker out of rotation
    #[command(after_help = EXIT_CODES)]
    Drain {
        #[command(flatten)]
        worker: Worker,
        /// Put it back by itself after this long: 30s, 10m, 2h [default: when it is enabled]
        #[arg(long = "for", value_name = "TIME", value_parser = drain::time)]
        for_ms: Option<u64>,
        /// Also where fewer than min_up others are up: connections go on to it until they are
        #[arg(long)]
        force: bool,
    },
    /// Put a worker back into rotation: starts it if it is stopped, and waits until it is warm; Ctrl-C ends the wait only
    #[command(after_help = EXIT_CODES)]
    Enable {
        #[command(flatten)]
        worker: Worker,
        /// Wait no longer than this: 30s, 10m [default: twice the service's warm.within]
        #[arg(long = "within", value_name = "TIME", value_parser = drain::time)]
        within_ms: Option<u64>,
    },
    /// Let every connection go where it was dialled; with --off steer again
    #[command(after_help = EXIT_CODES)]
    Bypass {
        /// Only this service [default: all]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        service: Option<String>,
        /// Go back to steering
        #[arg(long)]
        off: bool,
        /// Also where a service address is in use: connections to it will be refused
        #[arg(long)]
        force: bool,
    },
    /// Print the names of all failpoints (tests only)
    #[cfg(feature = "failpoints")]
    Failpoints,
    /// Take everything out of the kernel, also what a daemon that has ended has left there
    #[command(after_help = EXIT_CODES)]
    Detach(detach::Options),
    /// Have the daemon read its configuration again; say what is applied, what waits until it is free, and what is refused
    #[command(after_help = EXIT_CODES)]
    Reload {
        /// Ask the daemon whose socket this configuration file names
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Become the worker that standard input describes: run by the daemon for its built-in manager
    #[command(hide = true)]
    Launch,
    /// Print the systemd unit to run the daemon by: deployer unit > /etc/systemd/system/deployer.service
    #[command(after_help = EXIT_CODES)]
    Unit,
    /// Print what a load balancer's configuration needs, and why: nginx, haproxy or varnish
    #[command(after_help = EXIT_CODES)]
    Lb(lb::Options),
    /// Dial what standard input names, for the daemon's self-test
    #[command(hide = true)]
    SelfTestProbe,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Say by line, key and reason what is wrong with a configuration file
    #[command(after_help = EXIT_CODES)]
    Check {
        /// The configuration file
        file: PathBuf,
    },
}

/// Names a worker.
#[derive(Debug, Args)]
struct Worker {
    /// The service
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    service: String,
    /// The worker's port, or its address: 8000, 127.0.0.1:8000
    #[arg(value_name = "PORT|ADDRESS")]
    worker: At,
}

/// Does what the command line asks for.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => ExitCode::from(run(cli).code()),
        Err(error) => {
            // Nobody is left to be told where standard error is closed; clap's own `exit` ignores it as well.
            let _ = error.print();
            ExitCode::from(clap_code(&error))
        }
    }
}

/// 0 for `--help` and `--version`, else 2.
fn clap_code(error: &clap::Error) -> u8 {
    if error.use_stderr() { Exit::Usage.code() } else { Exit::Done.code() }
}

fn run(cli: Cli) -> Exit {
    let Cli { socket, verb } = cli;
    let client = Client::new(socket);
    match verb {
        Verb::Daemon { config } => daemon(&config),
        Verb::Config(ConfigVerb::Check { file }) => config::check(&file),
        Verb::Check { config, json } => crate::check::main(config.as_deref(), json, &|at| status::asked(at, &client)),
        Verb::Unit => unit::run(),
        Verb::Lb(options) => lb::run(&options),
        Verb::SelfTestProbe => crate::service::selftest::probe::main(),
        Verb::Roll(options) => block_on(roll::run(&client, &options)),
        Verb::Deploy(options) => block_on(deploy::run(&client, &options)),
        Verb::Flip { service, at } => block_on(deploy::flip(&client, &service, at)),
        Verb::Rollback(options) => block_on(deploy::rollback(&client, &options)),
        Verb::Fleet(verb) => block_on(fleet::run(&client, &verb)),
        Verb::History { service, json } => block_on(history::run(&client, service.as_deref(), json)),
        Verb::Status { json } => block_on(status::run(&client, json)),
        Verb::Report { roll, json } => block_on(report::run(&client, roll.as_deref(), json)),
        Verb::Trace(options) => block_on(trace::run(&client, &options)),
        Verb::Events(options) => block_on(events::run(&client, &options)),
        Verb::Drain { worker, for_ms, force } => block_on(drain::drain(&client, &worker, for_ms, force)),
        Verb::Enable { worker, within_ms } => block_on(drain::enable(&client, &worker, within_ms)),
        Verb::Bypass { service, off, force } => block_on(bypass::run(&client, service, !off, force)),
        #[cfg(feature = "failpoints")]
        Verb::Failpoints => failpoints(),
        Verb::Detach(options) => block_on(detach::run(client, &options)),
        Verb::Reload { config, json } => {
            block_on(reload::run(&Client::new(reload::socket(config.as_deref(), client.socket)), json))
        }
        Verb::Launch => {
            crate::workers::launch();
            Exit::Failed
        }
    }
}

/// Runs a client's verb, which waits for one daemon only: a single thread will do.
fn block_on(verb: impl Future<Output = Result<Exit, Failure>>) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(verb),
        Err(error) => Err(Failure::new(Exit::Failed, format!("cannot start: no event loop: {error}"))),
    };
    result.unwrap_or_else(|failure| {
        out::error(&failure.message);
        failure.exit
    })
}

#[cfg(feature = "failpoints")]
fn failpoints() -> Exit {
    let names: Vec<_> = crate::failpoint::Point::ALL.iter().map(|point| point.name()).collect();
    out::say(&names.join("\n")).unwrap_or_else(|failure| failure.exit)
}

fn daemon(config: &Path) -> Exit {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.context("cannot start the daemon: no event loop").and_then(|runtime| {
        let result = runtime.block_on(crate::daemon::run(config));
        // Threads that wait for a disk that hangs are not waited for.
        runtime.shutdown_background();
        crate::log::flush();
        result
    });
    match result {
        Ok(()) => Exit::Done,
        Err(error) => {
            out::error(&format!("{error:#}"));
            if error.is::<ConfigError>() { Exit::Usage } else { Exit::Failed }
        }
    }
}

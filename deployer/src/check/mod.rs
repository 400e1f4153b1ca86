//! `deployer check`: is this host fit? Looks at the kernel, at privileges, and at what a configuration names; changes
//! nothing.

mod blocked;
mod cgroups;
mod kernel;
mod managers;
mod metrics;
mod names;
mod nat;
mod paths;
mod pins;
mod ports;
mod privileges;
mod programs;
mod running;
mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use serde::Serialize;

use crate::{
    api::{ErrorBody, Exit, Status},
    config::{Config, DEFAULT_PINS, Service},
};

/// Longest detail on a line; a verifier's log can have thousands of lines. `--json` has all of it.
const LINE: usize = 500;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but somebody should know. The host is fit all the same.
    Warn,
    /// The host is not fit.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What was looked at: "kernel 6.18", "127.0.0.1:8003".
    pub what: String,
    /// What was found, and what follows from it.
    pub detail: String,
    /// What to do: a command as it is to be typed, a setting, or an advice.
    pub fix: Option<String>,
    /// The word before the fix on a line.
    #[serde(skip)]
    verb: &'static str,
}

impl Finding {
    fn new(level: Level, what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { level, what: what.into(), detail: detail.into(), fix: None, verb: "" }
    }

    fn ok(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Level::Ok, what, detail)
    }

    fn warn(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Level::Warn, what, detail)
    }

    fn fail(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Level::Fail, what, detail)
    }

    /// With what to do about it; `verb` introduces it on a line ("run", "delete").
    fn fix(mut self, verb: &'static str, fix: impl Into<String>) -> Self {
        self.verb = verb;
        self.fix = Some(fix.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        write!(f, "{level:<5} {}: {}", one_line(&self.what), shortened(&one_line(&self.detail)))?;
        match &self.fix {
            Some(fix) => write!(f, "; {}: {}", self.verb, one_line(fix)),
            None => Ok(()),
        }
    }
}

/// Everything that was found, in the order of looking.
#[derive(Debug, Serialize)]
struct Report {
    /// Nothing failed.
    fit: bool,
    findings: Vec<Finding>,
}

/// The verb: looks, prints a line for each finding (with `json` one object), and says whether the host is fit.
///
/// `ask`: what the daemon at a socket says, or at the usual one; `None` where none answers.
pub fn main(config: Option<&Path>, json: bool, ask: &dyn Fn(Option<&Path>) -> Option<Status>) -> Exit {
    let path = config;
    let config = match path.map(Config::load).transpose() {
        Ok(config) => config,
        Err(error) => return unreadable(&error.to_string(), json),
    };
    let mut findings = findings(config.as_ref());
    findings.extend(path.map(paths::configuration));
    let socket = config.as_ref().map(|config| config.daemon.socket.as_path());
    let status = ask(socket);
    let page = config.as_ref().and_then(|config| config.metrics.as_ref());
    findings.extend(page.map(|page| metrics::finding(page.listen, status.as_ref())));
    findings.push(running::finding(status.as_ref()));
    findings.extend(running::callers(status.as_ref()));
    let fit = findings.iter().all(|finding| finding.level != Level::Fail);
    // A reader that has gone away does not change what was found.
    let _ = print(&Report { fit, findings }, json);
    if fit { Exit::Done } else { Exit::Failed }
}

/// Looks at everything; without a configuration, only at the kernel and at privileges.
#[must_use]
pub fn findings(config: Option<&Config>) -> Vec<Finding> {
    let mut found = kernel::findings();
    found.extend(privileges::findings());
    found.extend(pins::findings(config.map_or(Path::new(DEFAULT_PINS), |config| &config.kernel.pins)));
    let Some(config) = config else {
        found.push(Finding::ok(
            "configuration",
            "none given; cgroups, ports and nat rules are checked with --config FILE",
        ));
        return found;
    };
    let workers: Vec<_> = config.services.values().flat_map(Service::members).collect();
    found.extend(cgroups::findings(config));
    found.extend(managers::findings(config));
    found.extend(paths::findings(config));
    found.extend(tls::findings(config));
    found.extend(ports::findings(config, &workers));
    found.extend(nat::findings(&workers));
    found
}

fn unreadable(error: &str, json: bool) -> Exit {
    let exit = Exit::Usage;
    let _ = if json {
        let body = ErrorBody { error: error.to_owned(), exit };
        to_json(&body)
    } else {
        writeln!(io::stderr().lock(), "{error}")
    };
    exit
}

fn print(report: &Report, json: bool) -> io::Result<()> {
    if json {
        return to_json(report);
    }
    let mut out = io::stdout().lock();
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    out.flush()
}

fn to_json(body: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, body)?;
    writeln!(out)?;
    out.flush()
}

/// Words of tools, comments in rules and names of files may hold anything, also what a terminal would obey.
fn one_line(text: &str) -> String {
    let words: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    words.join(" ").chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

/// The beginning and, where it is long, the end: a verifier says last what it minds.
fn shortened(text: &str) -> String {
    let count = text.chars().count();
    if count <= LINE {
        return text.to_owned();
    }
    let begin: String = text.chars().take(LINE / 2).collect();
    let end: String = text.chars().skip(count - LINE / 2).collect();
    format!("{begin} … {end}")
}

/// `127.0.0.1:8000-8003,8007 [::1]:8000`.
fn addresses(all: &[SocketAddr]) -> String {
    let mut by_ip: BTreeMap<IpAddr, BTreeSet<u16>> = BTreeMap::new();
    for address in all {
        by_ip.entry(address.ip()).or_default().insert(address.port());
    }
    let parts = by_ip.into_iter().map(|(ip, ports)| match ip {
        IpAddr::V4(ip) => format!("{ip}:{}", ranges(&ports)),
        IpAddr::V6(ip) => format!("[{ip}]:{}", ranges(&ports)),
    });
    parts.collect::<Vec<_>>().join(" ")
}

/// `8000-8003,8007`, as `ip_local_reserved_ports` wants it, too.
fn ranges(ports: &BTreeSet<u16>) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => runs.push((port, port)),
        }
    }
    let parts =
        runs.into_iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;

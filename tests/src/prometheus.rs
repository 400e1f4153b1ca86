//! Debian's Prometheus, which scrapes the sandbox's daemon every second and keeps the shipped rules; and promtool.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::http::{Request, Response};
use crate::pace::{SOON, patient};
use crate::process::Process;
use crate::rig::wait;
use crate::sandbox::{Place, Sandbox};

/// Where the daemon has its figures: `[metrics] listen`.
pub const PAGE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9469);
/// Where Prometheus answers, in the sandbox's namespace.
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// The longest that an answer may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The directory of the shipped rules and dashboard.
pub fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deployer/monitoring")
}

/// The text of the shipped rules.
pub fn rules() -> Result<String> {
    fs::read_to_string(monitoring().join("alerts.yml")).context("the alert rules")
}

/// The same, where some alerts wait for less: each with its `for` as it is and as it is to be.
///
/// # Errors
/// When an alert is not there, or waits for another time.
pub fn rules_sooner(sooner: &[(&str, &str, &str)]) -> Result<String> {
    let mut text = rules()?;
    for (alert, is, to_be) in sooner {
        let name = format!("- alert: {alert}\n");
        let begin = text.find(&name).with_context(|| format!("no alert {alert}"))? + name.len();
        let end = text[begin..].find("- alert: ").map_or(text.len(), |next| begin + next);
        let line = format!("        for: {is}\n");
        let at = text[begin..end].find(&line).with_context(|| format!("{alert} does not wait for {is}"))? + begin;
        text.replace_range(at..at + line.len(), &format!("        for: {to_be}\n"));
    }
    Ok(text)
}

/// A running Prometheus in [`Place::Outside`]; its data is in the sandbox's directory.
#[derive(Debug)]
pub struct Prometheus<'a> {
    sandbox: &'a Sandbox,
    process: Process,
}

/// One series at one time.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its labels, without `__name__`, `job` and `instance`.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// A label's value; empty if it is not there, as Prometheus has it.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// An alert that is pending or firing.
#[derive(Clone, Debug, Deserialize)]
pub struct Alert {
    /// `alertname`, `severity` and those of its expression.
    pub labels: BTreeMap<String, String>,
    /// `summary` and `description`.
    pub annotations: BTreeMap<String, String>,
    /// `pending` or `firing`.
    pub state: String,
}

impl Alert {
    /// Its name.
    pub fn name(&self) -> &str {
        self.labels.get("alertname").map_or("", String::as_str)
    }
}

#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

#[derive(Deserialize)]
struct Vector {
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

#[derive(Deserialize)]
struct Alerts {
    alerts: Vec<Alert>,
}

impl<'a> Prometheus<'a> {
    /// Starts Prometheus with these rules, and waits until it has scraped the daemon, which must run.
    pub fn start(sandbox: &'a Sandbox, rules: &str) -> Result<Self> {
        let dir = sandbox.dir().join("prometheus");
        fs::create_dir_all(&dir).context("make Prometheus's directory")?;
        let config = dir.join("prometheus.yml");
        fs::write(&config, config_text()).context("write prometheus.yml")?;
        let file = dir.join("rules.yml");
        // What has not been scraped yet is absent, and there is an alert for that.
        fs::write(&file, "groups: []\n").context("write rules.yml")?;
        let mut command = sandbox.command(Place::Outside, "prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address={ADDRESS}")).arg("--log.level=warn");
        let process = Process::start("prometheus", command, &dir.join("prometheus.out"))?;
        let mut prometheus = Self { sandbox, process };
        prometheus.wait_ready()?;
        prometheus.settle().with_context(|| prometheus.process.log_tail())?;
        fs::write(&file, rules).context("write rules.yml")?;
        prometheus.process.signal(Signal::HUP)?;
        // Go's time zero: never.
        let is_time = |time: &Value| time.as_str().is_some_and(|time| !time.starts_with("0001-"));
        let evaluated = || Ok(is_time(&prometheus.ask::<Value>("/api/v1/rules")?["groups"][0]["lastEvaluation"]));
        wait("the rules to be evaluated", evaluated).with_context(|| prometheus.process.log_tail())?;
        Ok(prometheus)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let (sandbox, process) = (self.sandbox, &mut self.process);
        process.wait_ready(SOON, || get(sandbox, ADDRESS, "/-/ready").is_ok())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The value of an expression now: one sample a series.
    pub fn query(&self, expression: &str) -> Result<Vec<Sample>> {
        let answer: Vector = self.ask(&format!("/api/v1/query?query={}", encoded(expression)))?;
        let sample = |series: Series| {
            let Series { metric: mut labels, value: (_, value) } = series;
            ["__name__", "job", "instance"].iter().for_each(|name| drop(labels.remove(*name)));
            Ok(Sample { labels, value: value.parse().with_context(|| format!("{expression}: {value}"))? })
        };
        answer.result.into_iter().map(sample).collect()
    }

    /// The value of an expression that has one.
    pub fn value(&self, expression: &str) -> Result<f64> {
        let samples = self.query(expression)?;
        ensure!(samples.len() == 1, "{expression}: {samples:?}");
        Ok(samples[0].value)
    }

    /// What is pending and firing.
    pub fn alerts(&self) -> Result<Vec<Alert>> {
        Ok(self.ask::<Alerts>("/api/v1/alerts")?.alerts)
    }

    /// What is firing, by name, once each.
    pub fn firing(&self) -> Result<Vec<String>> {
        let alerts = self.alerts()?.into_iter().filter(|alert| alert.state == "firing");
        let mut names: Vec<_> = alerts.map(|alert| alert.name().to_owned()).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Waits until a scrape that began after this call is in, and returns its time, for `@` in expressions.
    pub fn settle(&self) -> Result<f64> {
        let begun = unix_seconds();
        let last =
            || Ok::<_, anyhow::Error>(self.query("timestamp(deployer_build_info)")?.first().map(|last| last.value));
        wait("a scrape of the daemon", || Ok(last()?.is_some_and(|last| last > begun)))?;
        last()?.context("no sample of the daemon")
    }

    fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let body = get(self.sandbox, ADDRESS, path)?;
        let answer: Answer<T> = serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))?;
        Ok(answer.data)
    }
}

/// The daemon's page, as anybody may read it.
pub fn page(sandbox: &Sandbox) -> Result<String> {
    get(sandbox, PAGE, "/metrics")
}

/// `promtool WORDS...` with this as its input.
pub fn promtool(words: &[&str], input: &str) -> Result<Output> {
    let mut command = Command::new("promtool");
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start promtool")?;
    // It reads all of it before it writes anything.
    child.stdin.take().context("its input")?.write_all(input.as_bytes()).context("promtool's input")?;
    child.wait_with_output().context("wait for promtool")
}

/// How long the page takes, from the call of connect() to the last byte, and how many bytes come.
pub fn page_cost(sandbox: &Sandbox) -> Result<(Duration, usize)> {
    sandbox.in_netns(|| {
        let begun = Instant::now();
        let bytes = receive(PAGE, "/metrics")?;
        Ok((begun.elapsed(), bytes.len()))
    })?
}

fn get(sandbox: &Sandbox, address: SocketAddr, path: &str) -> Result<String> {
    let bytes = sandbox.in_netns(|| receive(address, path))??;
    let answer = Response::complete(&bytes)?.with_context(|| format!("{path}: cut after {} bytes", bytes.len()))?;
    if answer.status != 200 {
        bail!("{path}: {} {}", answer.status, answer.body);
    }
    Ok(answer.body)
}

/// All that comes, from the calling thread's network namespace.
fn receive(address: SocketAddr, path: &str) -> Result<Vec<u8>> {
    let limit = patient(LIMIT);
    let mut stream = TcpStream::connect_timeout(&address, limit).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(&Request::get(path).encode()).context("send")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("the answer to {path}"))?;
    Ok(answer)
}

/// Everything but letters and digits in hexadecimal.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// Prometheus's clock.
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64())
}

/// Intervals are all that differs from what users are told.
fn config_text() -> String {
    let interval = patient(Duration::from_secs(1)).as_secs();
    format!(
        "global:
  scrape_interval: {interval}s
  scrape_timeout: {interval}s
  evaluation_interval: {interval}s
rule_files: [rules.yml]
scrape_configs:
  - job_name: deployer
    static_configs: [{{ targets: ['{PAGE}'] }}]
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_made_to_wait_for_less_and_no_other() -> Result<()> {
        let (usual, sooner) = (rules()?, rules_sooner(&[("DeployerDrainStuck", "5m", "3s")])?);
        let differ: Vec<_> = usual.lines().zip(sooner.lines()).filter(|(usual, sooner)| usual != sooner).collect();
        assert_eq!(differ, [("        for: 5m", "        for: 3s")]);
        assert!(rules_sooner(&[("DeployerDrainStuck", "6m", "3s")]).is_err());
        // It does not wait, and the next that does is not meant.
        assert!(rules_sooner(&[("DeployerWorkerCrashed", "1m", "3s")]).is_err());
        assert!(rules_sooner(&[("DeployerNobody", "1m", "3s")]).is_err());
        Ok(())
    }

    #[test]
    fn expressions_are_encoded() {
        assert_eq!(encoded("a{b=\"c\"} @ 1.5"), "a%7Bb%3D%22c%22%7D%20%40%201%2E5");
    }
}

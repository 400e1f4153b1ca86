//! `deployer trace`: every decision as it is made.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use deployer_tests::dial::{Caller, Dial};
use deployer_tests::rig::{Rig, Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};
use serde_json::Value;

const HOST: &str = "127.0.0.1";
const ADDRESS: &str = "address = \"127.0.0.1:9000\"";
/// How long the traces take that are limited.
const SECONDS: u64 = 3;

/// A trace that has begun.
struct Trace {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Trace {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().context("start a trace")?;
        let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        let first = lines.next().context("a trace has ended at once")??;
        ensure!(first.contains("begun"), "{first}");
        Ok(Self { child, lines })
    }

    fn of(rig: &Rig<'_>, options: &[&str]) -> Result<Self> {
        Self::start(rig.command(&[&["trace", "web", "--json"], options].concat())?)
    }

    /// The next line.
    fn next(&mut self) -> Result<Value> {
        Ok(serde_json::from_str(&self.lines.next().context("a trace has ended")??)?)
    }

    /// The next decision, in short: dialled, outcome, chosen.
    fn decision(&mut self) -> Result<(String, Value)> {
        let line = self.next()?;
        let text = |key: &str| line[key].as_str().unwrap_or("nobody").to_owned();
        Ok((format!("{} {} {}", text("dialled"), text("outcome"), text("chosen")), line))
    }

    /// All that is left, the end last.
    fn rest(mut self) -> Result<Vec<Value>> {
        let lines: Vec<_> =
            self.lines.by_ref().map(|line| anyhow::Ok(serde_json::from_str(&line?)?)).collect::<Result<_>>()?;
        ensure!(self.child.wait()?.success(), "{lines:?}");
        Ok(lines)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Who called, what it dialled, what it got, and why: one caller a kind of decision.
#[test]
fn every_kind_of_decision() -> Result<()> {
    let sandbox = Sandbox::new("trace")?;
    let rig = Setup { ports: 8000..=8002, extra: ADDRESS, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let mut trace = Trace::of(&rig, &["--duration", "60s"])?;
    let mut meets = |place: &Caller<'_>, port: u16, expected: &str, why: &str| -> Result<()> {
        let running = place.start(&[Dial::to(HOST, port)])?;
        let pid = running.pid();
        running.finish()?;
        let (decision, line) = trace.decision()?;
        eprintln!("{} (pid {}): {decision}: {}", line["command"], line["pid"], line["reason"]);
        ensure!(decision == expected, "{decision}, not {expected}");
        ensure!(line["reason"].as_str().is_some_and(|reason| reason.contains(why)), "{why}: {line}");
        ensure!(line["pid"] == pid && line["command"].as_str().is_some_and(|name| name.contains("python")), "{line}");
        Ok(())
    };
    meets(&caller, 8000, "127.0.0.1:8000 direct 127.0.0.1:8000", "it is up")?;
    meets(&Caller::at(&sandbox, Place::Outside), 8001, "127.0.0.1:8001 passed 127.0.0.1:8001", "not steered")?;
    rig.drain(8000)?;
    rig.drain(8001)?;
    meets(&caller, 8000, "127.0.0.1:8000 steered 127.0.0.1:8002", "it is draining")?;
    meets(&caller, 9000, "127.0.0.1:9000 picked 127.0.0.1:8002", "service address")?;
    rig.drain_by_force(8002)?;
    meets(&caller, 8001, "127.0.0.1:8001 direct 127.0.0.1:8001", "nobody is up")?;
    rig.must(&["bypass", "--force"])?;
    meets(&caller, 8000, "127.0.0.1:8000 passed 127.0.0.1:8000", "bypassed")?;
    Ok(())
}

/// Of one worker alone, whether it was dialled or chosen; and who listens second is told so.
#[test]
fn of_one_port_and_for_one_listener() -> Result<()> {
    let sandbox = Sandbox::new("trace_port")?;
    let rig = Setup { ports: 8000..=8002, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    rig.drain(8001)?;
    let trace = Trace::of(&rig, &["--port", "8001", "--duration", "3s"])?;
    let (exit, text) = rig.verb(&["trace", "web"])?;
    ensure!(exit == 4 && text.contains("somebody else is tracing"), "exit {exit}: {text}");
    for (port, times) in [(8000, 5), (8001, 7), (8002, 3)] {
        caller.once(Dial::to(HOST, port).times(times))?;
    }
    let lines = trace.rest()?;
    let (decisions, end) = lines.split_at(lines.len() - 1);
    ensure!(decisions.len() == 7 && decisions.iter().all(|line| line["dialled"] == "127.0.0.1:8001"), "{lines:?}");
    ensure!(end[0]["seen"] == 7 && end[0]["told"] == 7 && end[0]["skipped"] == 0, "{end:?}");
    let (exit, text) = rig.verb(&["trace", "web", "--port", "7"])?;
    ensure!(exit == 2 && text.contains("no worker at port 7"), "exit {exit}: {text}");
    // A listener that goes makes room for the next, before its time is over.
    drop(Trace::of(&rig, &["--duration", "1h"])?);
    wait("nobody listens", || Ok(rig.verb(&["trace", "web", "--duration", "1ms"])?.0 == 0))?;
    Ok(())
}

/// More than a thousand a second are counted, not shown; of one in ten about a tenth is.
#[test]
fn sampled_and_limited() -> Result<()> {
    let sandbox = Sandbox::new("trace_limit")?;
    let rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    // No server could answer as often: connect() is refused behind the hook, and the decision was made.
    let counts = |every: &str| -> Result<[u64; 3]> {
        let trace = Trace::of(&rig, &["--duration", &format!("{SECONDS}s"), "--every", every])?;
        caller.once(Dial { freebind: true, ..Dial::to(HOST, 8000).times(5000) })?;
        let lines = trace.rest()?;
        let end = lines.last().context("no line")?;
        let count = |key: &str| end[key].as_u64().with_context(|| end.to_string());
        let (seen, told, skipped) = (count("seen")?, count("told")?, count("skipped")?);
        eprintln!("one in {every}: {seen} seen, {told} told, {skipped} left out");
        // A slow machine may not come to the last of them in time.
        ensure!((1000..=5000).contains(&seen) && told == lines.len() as u64 - 1, "{end}");
        Ok([seen, told, skipped])
    };
    let [seen, told, skipped] = counts("1")?;
    // What is allowed in each tenth of a second, and when it began.
    ensure!(told + skipped == seen && told <= 1000 * SECONDS + 200, "{told} told, {skipped} left out");
    ensure!(skipped > 0 || seen < 1000 * SECONDS, "{told} told, {skipped} left out");
    let [seen, told, skipped] = counts("10")?;
    let of_a_tenth = (told + skipped) as f64 / (seen as f64 / 10.0);
    ensure!((0.6..1.4).contains(&of_a_tenth), "{told} told, {skipped} left out");
    Ok(())
}

//! `cargo xtask test`: the checks, the unit tests and the end-to-end suites.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::process::{Child, Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use crate::libtest::{Seen, Tally, tee};
use crate::requirements::Scope;
use crate::suites::{self, Suite};
use crate::workspace::{Workspace, shown};
use crate::{fitness, kernels, setup};

/// What everything that is tested is built with. All of it, and what clippy sees, goes by one set of packages and features:
/// cargo would build dependencies and eBPF objects once for each set.
const FEATURES: &[&str] = &["--workspace", "--features", "deployer/failpoints"];

/// The suite that needs the same source built with another layout of the tables, too, and that feature of crate deployer.
const VARIANT: (&str, &str) = ("outlive", "next-layout");

/// The checks of format, as cargo commands; each counts as one test.
const CHECKS: &[(&str, &str)] =
    &[("fmt", "fmt --all --check"), ("fmt deployer-ebpf", "fmt --manifest-path deployer-ebpf/Cargo.toml --check")];

/// How long output may stay open after the tests have ended.
const LEFTOVER_GRACE: Duration = Duration::from_secs(5);

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The suite to run; all of them when none is named, but for `kernels`, which needs a virtual machine and takes long
    #[arg(value_parser = PossibleValuesParser::new(suites::ALL.iter().map(|suite| suite.name).chain([kernels::SUITE])))]
    suite: Option<String>,
    /// The long variants, too
    #[arg(long)]
    full: bool,
}

impl Args {
    fn wants(&self, suite: &str) -> bool {
        self.suite.as_deref().is_none_or(|wanted| wanted == suite)
    }
}

/// The verb itself. Every suite runs, whatever became of those before it.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let suites: Vec<_> = suites::ALL.iter().copied().filter(|suite| args.wants(suite.name)).collect();
    let within = args.suite.as_deref() == Some(kernels::SUITE);
    let mut report = Report::default();
    if prepare(workspace, &mut report, within || suites.iter().any(|suite| suite.name != suites::UNIT)) {
        if args.wants(suites::UNIT) {
            checks(workspace, &mut report);
            if args.full {
                simulation(workspace, &mut report);
            }
        }
        run_suites(workspace, &mut report, &suites, args.full);
        if within {
            other_kernel(workspace, &mut report);
        }
    }
    print!("{report}");
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the machine is fit and has everything.
fn prepare(workspace: &Workspace, report: &mut Report, end_to_end: bool) -> bool {
    let scope = if end_to_end { Scope::All } else { Scope::Build };
    let fit = !end_to_end || report.step("machine", || fitness::check().map(|()| Tally::default()));
    fit && report.step("setup", || setup::ensure(workspace, scope).map(|()| Tally::default()))
}

fn checks(workspace: &Workspace, report: &mut Report) {
    for (name, line) in CHECKS {
        report.step(name, || {
            succeed(workspace.cargo(line.split(' ')))?;
            Ok(Tally { passed: 1, failed: 0 })
        });
    }
}

/// Thousands of fleets of a thousand hosts, which take an hour in a debug build.
fn simulation(workspace: &Workspace, report: &mut Report) {
    let line =
        ["test", "--release", "--package", "deployer", "--lib", "fleet::tests::simulation", "--", "--show-output"];
    let mut command = workspace.cargo(line);
    command.env("DEPLOYER_FULL", "1");
    let mut failures = Vec::new();
    report.step("simulation", || count(command, io::stdout(), &mut failures));
    report.failures.extend(failures);
}

fn run_suites(workspace: &Workspace, report: &mut Report, suites: &[Suite], full: bool) {
    let names: Vec<_> = suites.iter().map(|suite| suite.name).collect();
    if suites.is_empty() || !report.step("clippy, build", || build(workspace, &names).map(|()| Tally::default())) {
        return;
    }
    let run = |suite: Suite| {
        let mut ran = Ran { tally: Ok(Tally::default()), failures: Vec::new(), output: Written::default() };
        // One that is named is followed; the others tell all when they end.
        let is_followed = suites.len() == 1;
        eprintln!("== {}{}", suite.name, if is_followed { "" } else { " begins" });
        let to: Box<dyn Write + Send> = if is_followed { Box::new(io::stdout()) } else { Box::new(ran.output.clone()) };
        let counted = suite_command(workspace, suite, full).and_then(|command| count(command, to, &mut ran.failures));
        ran.tally = counted.and_then(|tally| match tally {
            Tally { passed: 0, failed: 0 } => bail!("the suite has no tests"),
            tally => Ok(tally),
        });
        ran
    };
    suites::each(suites, suites::heavy_lanes(), run, |suite, time, ran| {
        ran.output.print(suite.name);
        report.add(suite.name, time, ran.tally);
        report.failures.extend(ran.failures);
    });
}

/// What came of a suite.
struct Ran {
    tally: Result<Tally>,
    failures: Vec<String>,
    output: Written,
}

/// What a suite that ran beside others has printed.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn print(&self, suite: &str) {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !bytes.is_empty() {
            println!("== {suite}");
            // Its results count, whatever becomes of its words.
            let _ = io::stdout().write_all(&bytes);
        }
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn suite_command(workspace: &Workspace, suite: Suite, full: bool) -> Result<Command> {
    let targets = match suite.name {
        suites::UNIT => &["test", "--no-fail-fast", "--lib", "--bins"][..],
        name => &["test", "--test", name],
    };
    let mut cargo = workspace.linting_cargo(targets.iter().chain(FEATURES).copied())?;
    cargo.args(["--", "--test-threads", suite.threads, "--show-output"]);
    cargo.env("DEPLOYER_BIN", workspace.debug("deployer"));
    let mut command = with_default_signals(&cargo);
    if full {
        command.env("DEPLOYER_FULL", "1");
    }
    Ok(command)
}

/// The same command, with every signal doing what it does by default. A shell's background jobs ignore SIGINT, and so would
/// everything that they start: tests that interrupt a roll would wait for ever.
fn with_default_signals(command: &Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal").arg(command.get_program()).args(command.get_args());
    command.get_current_dir().map(|dir| env.current_dir(dir));
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => env.env(name, value),
            None => env.env_remove(name),
        };
    }
    env
}

/// Suites under Debian's own kernel.
fn other_kernel(workspace: &Workspace, report: &mut Report) {
    let mut prepared = None;
    let ready = report.step("virtual machine", || {
        prepared = Some(kernels::prepare(workspace)?);
        Ok(Tally::default())
    });
    let Some(prepared) = prepared.filter(|_| ready) else { return };
    if !report.step("build", || {
        build(workspace, &kernels::suites().iter().map(|(suite, _)| *suite).collect::<Vec<_>>())
            .map(|()| Tally::default())
    }) {
        return;
    }
    for (suite, filters) in kernels::suites() {
        let mut failures = Vec::new();
        report.step(&format!("{} {suite}", prepared.release()), || {
            let (command, exit) = kernels::command(workspace, &prepared, suite, filters, FEATURES)?;
            let tally = count(command, io::stdout(), &mut failures)?;
            if tally.failed == 0 {
                kernels::judge(&exit)?;
            }
            if tally.passed + tally.failed < filters.len() as u64 {
                bail!("{} tests ran, of {}", tally.passed + tally.failed, filters.join(", "));
            }
            Ok(tally)
        });
        report.failures.extend(failures);
    }
}

/// Builds the binary under test, last, since all variants of it are made in the same place, and the tests. The debug
/// build, whose arithmetic is checked, and which takes a quarter of the time.
fn build(workspace: &Workspace, suites: &[&str]) -> Result<()> {
    let (suite, feature) = VARIANT;
    if suites.contains(&suite) {
        succeed(workspace.cargo(["build", "--package", "deployer", "--features", feature]))?;
        let (made, kept) = (workspace.debug("deployer"), workspace.debug(&format!("deployer-{feature}")));
        fs::copy(&made, &kept).with_context(|| format!("cannot copy {} to {}", made.display(), kept.display()))?;
    }
    succeed(workspace.linting_cargo(["build", "--bins", "--tests"].into_iter().chain(FEATURES.iter().copied()))?)
}

/// Runs a command that has nothing to count.
fn succeed(mut command: Command) -> Result<()> {
    let line = shown(&command);
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs tests, passing their output on, and adds up their results; what failing ones said goes to `failures`.
fn count(mut command: Command, to: impl Write + Send + 'static, failures: &mut Vec<String>) -> Result<Tally> {
    let line = shown(&command);
    // One pipe for both, so that they stay in order.
    let (output, both) = io::pipe().context("cannot make a pipe")?;
    command.stdout(both.try_clone()?).stderr(both);
    let mut child = command.spawn().with_context(|| format!("cannot run `{line}`"))?;
    // It holds the ends for writing.
    drop(command);
    let seen = watch(&mut child, output, to).with_context(|| format!("`{line}`"))?;
    failures.extend(seen.failures);
    let mut tally = seen.tally;
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // A test program that does not compile or dies prints no result.
        eprintln!("error: `{line}` failed ({status})");
        tally.failed = 1;
    }
    Ok(tally)
}

/// Reads a child's output until it ends, but not for as long as a process that the tests left behind keeps it open.
fn watch(child: &mut Child, output: io::PipeReader, to: impl Write + Send + 'static) -> Result<Seen> {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(tee(output, to)));
    child.wait()?;
    let seen = result
        .recv_timeout(LEFTOVER_GRACE)
        .context("ended, but something that it started goes on and holds its output")?;
    Ok(seen?)
}

/// What became of the steps.
#[derive(Default)]
struct Report {
    steps: Vec<(String, Duration, Tally)>,
    /// What failing tests said.
    failures: Vec<String>,
}

impl Report {
    /// Takes a step and writes down what came of it: an error is one failure. Says whether all went well.
    fn step(&mut self, name: &str, action: impl FnOnce() -> Result<Tally>) -> bool {
        eprintln!("== {name}");
        let start = Instant::now();
        let result = action();
        self.add(name, start.elapsed(), result)
    }

    /// Writes down what came of a step.
    fn add(&mut self, name: &str, time: Duration, result: Result<Tally>) -> bool {
        let tally = result.unwrap_or_else(|error| {
            eprintln!("error: {name}: {error:#}");
            Tally { passed: 0, failed: 1 }
        });
        self.steps.push((name.to_owned(), time, tally));
        tally.failed == 0
    }

    fn total(&self) -> Tally {
        self.steps.iter().fold(Tally::default(), |mut total, (_, _, tally)| {
            total += *tally;
            total
        })
    }

    fn is_good(&self) -> bool {
        let total = self.total();
        total.failed == 0 && total.passed > 0
    }
}

/// What failing tests said, a table, and the sum alone on the last line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { passed, failed } = self.total();
        for failure in &self.failures {
            writeln!(f, "\n{failure}")?;
        }
        writeln!(f, "\n{:<20} {:>8} {:>7} {:>7}", "step", "seconds", "passed", "failed")?;
        for (name, time, tally) in &self.steps {
            writeln!(f, "{name:<20} {:>8.1} {:>7} {:>7}", time.as_secs_f64(), tally.passed, tally.failed)?;
        }
        writeln!(f, "\n{passed} passed, {failed} failed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(tallies: &[(u64, u64)]) -> Report {
        let mut report = Report::default();
        for (passed, failed) in tallies.iter().copied() {
            report.step("step", || Ok(Tally { passed, failed }));
        }
        report
    }

    #[test]
    fn the_sum_stands_alone_on_the_last_line() {
        let text = report(&[(1, 0), (12, 3), (0, 0)]).to_string();
        assert_eq!(text.lines().next_back(), Some("13 passed, 3 failed"));
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn good_is_some_passed_and_none_failed() {
        assert!(report(&[(1, 0), (0, 0)]).is_good());
        assert!(!report(&[(5, 0), (9, 1)]).is_good());
        assert!(!report(&[(0, 0)]).is_good());
        assert!(!report(&[]).is_good());
    }

    #[test]
    fn an_error_is_one_failure() {
        let mut report = report(&[(2, 0)]);
        assert!(!report.step("build", || bail!("no compiler")));
        assert_eq!(report.total(), Tally { passed: 2, failed: 1 });
    }

    #[test]
    fn tests_are_interrupted_in_a_background_job_too() {
        let ignores_sigint = |command: &Command| {
            let mut shell = Command::new("sh");
            shell.args(["-c", r#"trap "" INT; exec "$@""#, "sh"]).arg(command.get_program()).args(command.get_args());
            let output = shell.output().unwrap();
            let mask = String::from_utf8(output.stdout).unwrap();
            u64::from_str_radix(mask.split_whitespace().next_back().unwrap(), 16).unwrap() & 2 != 0
        };
        let mut status = Command::new("grep");
        status.args(["SigIgn", "/proc/self/status"]);
        assert!(ignores_sigint(&status));
        assert!(!ignores_sigint(&with_default_signals(&status)));
    }

    #[test]
    fn counts_what_a_command_prints() {
        // Into the void: an outer `cargo xtask test` must not count these lines.
        let shell = |code: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", code]);
            count(command, io::sink(), &mut Vec::new()).ok()
        };
        let line = "echo; echo 'test result: ok. 4 passed; 0 failed; 0 ignored'";
        assert_eq!(shell(line), Some(Tally { passed: 4, failed: 0 }));
        assert_eq!(shell(&format!("{line}; exit 101")), Some(Tally { passed: 4, failed: 1 }));
        assert_eq!(shell("kill -9 $$"), Some(Tally { passed: 0, failed: 1 }));
        assert!(count(Command::new("/nonexistent/program"), io::sink(), &mut Vec::new()).is_err());
    }
}

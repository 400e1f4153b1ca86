//! `cargo xtask demo`: the main job on embedded defaults, with real traffic, and a result that a person can read.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::Parser;
use deployer_tests::{
    crash::{Account, Row},
    daemon::ServiceConfig,
    rollout::{Crash, Figures, How, Rollout},
    sandbox,
};
use serde_json::json;

/// Deploys v2 over v1 under load, then kills a worker: nginx, Python workers under supervisord, and deployer in between.
#[derive(Parser)]
struct Arguments {
    /// 8 workers instead of 40: under a minute.
    #[arg(long)]
    quick: bool,
    /// One JSON object on standard output; all else goes to standard error.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match demo(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(stderr(), "demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &Arguments) -> Result<bool> {
    sandbox::clean_on_signal()?;
    let workers = if arguments.quick { 8 } else { 40 };
    let rollout = Rollout {
        config: ServiceConfig { batch: if arguments.quick { "4" } else { "8" }.to_owned(), ..ServiceConfig::default() },
        rate: if arguments.quick { 300.0 } else { 450.0 },
        before: Duration::from_secs(6),
        after: Duration::from_secs(4),
        how: How::Roll { show: true },
        crash: true,
        ..Rollout::new("demo", workers)
    };
    let figures = rollout.run(|what| drop(writeln!(stderr(), "== {what}")))?;
    let text = if arguments.json { format!("{}\n", as_json(&figures, workers)) } else { table(&figures, workers) };
    stdout().write_all(text.as_bytes())?;
    figures.crash.as_ref().map_or(Ok(()), |crash| crash.account.must_be_clean())?;
    Ok(figures.exit == 0 && figures.failed() == 0 && figures.doubled() == 0 && figures.report.cold == 0)
}

fn as_json(figures: &Figures, workers: u16) -> serde_json::Value {
    json!({
        "requests": figures.report.requests,
        "failed": figures.failed(),
        "doubled": figures.doubled(),
        "cold": figures.report.cold,
        "workers": workers,
        "seconds": figures.seconds,
        "p99_before_ms": figures.p99_ms("before"),
        "p99_during_ms": figures.p99_ms("during"),
        "p99_after_ms": figures.p99_ms("after"),
        "steered": figures.sum("steered"),
        "by_version": figures.report.by_version,
        "nginx_error_lines": figures.nginx_errors.len(),
        "crash": figures.crash.as_ref().map(crash_as_json),
        "exit": figures.exit,
    })
}

fn crash_as_json(crash: &Crash) -> serde_json::Value {
    let account = &crash.account;
    json!({
        "worker": crash.port,
        "inside": account.sum(Row::inside),
        "failed": account.sum(|row| row.failed),
        "sent_again": account.resent,
        "others_lost": others_lost(account),
        "refused": account.refused_lines,
        "cold": crash.cold,
        "seconds": crash.seconds,
    })
}

/// Requests that came to nothing, and were not inside the killed worker.
fn others_lost(account: &Account) -> usize {
    account.sum(|row| row.late) + account.unexplained.len()
}

fn crash_in_words(crash: &Crash) -> String {
    let account = &crash.account;
    format!(
        "{} requests inside it: {} lost, {} sent again by nginx; {} others lost, {} refused, {} served cold; up again after {:.1} s",
        account.sum(Row::inside),
        account.sum(|row| row.failed),
        account.resent,
        others_lost(account),
        account.refused_lines,
        crash.cold,
        crash.seconds
    )
}

fn table(figures: &Figures, workers: u16) -> String {
    let versions: Vec<_> = figures.report.by_version.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let rows = [
        ("workers restarted", format!("{workers} in {:.1} s", figures.seconds)),
        ("requests", format!("{} ({})", figures.report.requests, versions.join(", "))),
        ("failed", figures.failed().to_string()),
        ("served twice", figures.doubled().to_string()),
        ("served cold", figures.report.cold.to_string()),
        ("connections steered", figures.sum("steered").to_string()),
        ("nginx error lines", figures.nginx_errors.len().to_string()),
        (
            "99th percentile",
            format!(
                "{:.1} ms before, {:.1} ms during, {:.1} ms after",
                figures.p99_ms("before"),
                figures.p99_ms("during"),
                figures.p99_ms("after")
            ),
        ),
        ("kill -9 of a worker", figures.crash.as_ref().map(crash_in_words).unwrap_or_default()),
    ];
    rows.iter().map(|(name, value)| format!("{name:<20} {value}\n")).collect()
}

//! The judge itself: it must tell what a kill explains from what it does not.

use anyhow::{Result, ensure};
use deployer_tests::capture;
use deployer_tests::crash::{Account, Evidence, Kill, Row};
use deployer_tests::journal::{End, Entry, Journal};
use deployer_tests::report::{Outcome, Report};

const MS: u64 = 1_000_000;
/// When 8000 is killed.
const KILLED: u64 = 1000 * MS;

/// A request from so many ms before the kill (or after it) until 20 ms after it.
fn outcome(id: &str, start_ms: i64, status: u16) -> Outcome {
    let start_ns = KILLED.wrapping_add_signed(start_ms * MS as i64);
    Outcome {
        id: id.to_owned(),
        method: "GET",
        path: "/".to_owned(),
        slow: false,
        start_ns,
        end_ns: start_ns.max(KILLED) + 20 * MS,
        status: Some(status),
        error: None,
        version: "v1".to_owned(),
        port: 8001,
        cold: false,
    }
}

fn entry(id: &str, port: u16, pid: u32, end: End) -> Entry {
    let (id, version) = (id.to_owned(), "v1".to_owned());
    Entry { id, port, pid, version, cold: false, begin_ns: KILLED - MS, end, peer: 0, asked: String::new() }
}

/// Whoever sees what of some requests, one kill of 8000, and what comes of it.
fn account(outcomes: &[Outcome], entries: &[Entry], captured: &str, nginx_errors: &[&str]) -> Result<Account> {
    let kill = Kill { port: 8000, pids: vec![7], span_ns: (KILLED, KILLED), what: String::new() };
    let failed = outcomes.iter().filter(|outcome| outcome.failed()).count();
    let report = Report {
        requests: outcomes.len(),
        failed,
        cold: 0,
        by_version: [].into(),
        phases: Vec::new(),
        outcomes: outcomes.to_vec(),
    };
    let connections = capture::read(&format!("ready\n{captured}D 0 0\n"))?;
    Ok(Account::of(Evidence {
        kills: &[kill],
        report: &report,
        journal: &Journal { entries: entries.to_vec(), ..Journal::default() },
        connections: &connections,
        nginx_errors: &nginx_errors.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(),
    }))
}

/// In hand, in the accept queue, dropped before the request was sent, sent again: all inside.
#[test]
fn what_was_inside_is_explained() -> Result<()> {
    let outcomes =
        [("hand", 502), ("queue", 502), ("mute", 502), ("again", 200)].map(|(id, status)| outcome(id, -5, status));
    let entries = [
        entry("hand", 8000, 7, End::Cut),
        entry("again", 8000, 7, End::Cut),
        entry("again", 8001, 8, End::Answered(KILLED + MS)),
    ];
    let captured = "S 996000000 1 8000 1\nE 996000001 1 8000\nQ 996000002 1 8000 hand\nR 1005000000 1 8000\n\
                    S 996000000 2 8000 1\nE 996000001 2 8000\nQ 996000002 2 8000 queue\nR 1005000000 2 8000\n\
                    S 996000000 3 8000 1\nE 996000001 3 8000\nR 1005000000 3 8000\n\
                    S 996000000 4 8000 1\nE 996000001 4 8000\nQ 996000002 4 8000 again\nF 1005000000 4 8000\n\
                    S 1006000000 5 8001 1\nE 1006000001 5 8001\nQ 1006000002 5 8001 again\nA 1007000000 5 8001\nF 1007000001 5 8001\n";
    let account = account(&outcomes, &entries, captured, &["104: Connection reset by peer"])?;
    account.must_be_clean()?;
    let Row { failed, hand, queue, way, .. } = account.rows[0];
    ensure!((failed, hand, queue, way, account.resent) == (3, 2, 2, 0, 1), "{account}");
    Ok(())
}

/// The capture has seen no beginning, the worker has.
#[test]
fn what_is_older_than_the_capture_is_explained() -> Result<()> {
    let outcomes = [outcome("lost", -5000, 502), outcome("again", -5000, 200)];
    let entries = [
        entry("lost", 8000, 7, End::Cut),
        entry("again", 8000, 7, End::Cut),
        entry("again", 8001, 8, End::Answered(KILLED + MS)),
    ];
    let captured = "S 1006000000 5 8001 1\nE 1006000001 5 8001\nQ 1006000002 5 8001 again\nA 1007000000 5 8001\n";
    let account = account(&outcomes, &entries, captured, &[])?;
    account.must_be_clean()?;
    ensure!(account.rows[0].failed == 1 && account.rows[0].hand == 2 && account.resent == 1, "{account}");
    Ok(())
}

#[test]
fn what_came_after_the_signal_is_not() -> Result<()> {
    let lost = "S 1060000000 1 8000 1\nE 1060000001 1 8000\nQ 1060000002 1 8000 late\nR 1061000000 1 8000\n";
    let late = account(&[outcome("late", 59, 502)], &[], lost, &[])?;
    ensure!(late.rows[0].late == 1 && late.must_be_clean().is_err(), "{late}");
    // nginx may have tried another worker: still, somebody was refused.
    let refused = "S 1000500000 1 8000 1\nR 1000500001 1 8000\n";
    let refused = account(&[outcome("refused", -5, 200)], &[], refused, &["111: Connection refused"])?;
    ensure!(
        refused.rows[0].refused == 1 && refused.refused_lines == 1 && refused.must_be_clean().is_err(),
        "{refused}"
    );
    Ok(())
}

#[test]
fn what_no_kill_explains_is_said() -> Result<()> {
    let elsewhere = "S 996000000 1 8001 1\nE 996000001 1 8001\nQ 996000002 1 8001 other\nR 1005000000 1 8001\n";
    let before = "S 990000000 1 8000 1\nE 990000001 1 8000\nQ 990000002 1 8000 other\nR 995000000 1 8000\n";
    for captured in ["", elsewhere, before] {
        let account = account(&[outcome("other", -20, 502)], &[], captured, &[])?;
        ensure!(!account.unexplained.is_empty() && account.must_be_clean().is_err(), "{captured} {account}");
    }
    let complaint = account(&[outcome("none", -5, 200)], &[], "", &["no live upstreams while connecting to upstream"])?;
    ensure!(complaint.must_be_clean().is_err(), "{complaint}");
    let twice = [entry("twice", 8001, 8, End::Answered(KILLED)), entry("twice", 8002, 9, End::Answered(KILLED))];
    let twice = account(&[outcome("twice", -5, 200)], &twice, "", &[])?;
    ensure!(twice.doubled == ["twice"] && twice.must_be_clean().is_err(), "{twice}");
    Ok(())
}

use std::collections::BTreeMap;

use super::{super::report::text, *};
use crate::api::{Latency, Proof, Report, Tally, Window};

fn tally(version: Option<&str>, connections: u64, max_us: u64) -> Tally {
    Tally {
        version: version.map(str::to_owned),
        connections,
        latency: Some(Latency { p50_us: 6_400, p99_us: 11_200, max_us }),
        lifetimes: BTreeMap::from([(5_120, connections)]),
        ..Tally::default()
    }
}

fn window(seconds: f64, versions: Vec<Tally>) -> Window {
    Window { seconds, exhausted: 0, versions }
}

fn report() -> Report {
    Report {
        roll: "web-1".to_owned(),
        service: "web".to_owned(),
        by: "uid 0 (pid 1)".to_owned(),
        from: Some("v1".to_owned()),
        to: Some("v2".to_owned()),
        result: Some(Exit::Done),
        text: "40 workers restarted".to_owned(),
        seconds: 12.34,
        changed: 40,
        failed: Vec::new(),
        before: window(60.0, vec![tally(Some("v1"), 4_012, 14_336)]),
        during: window(12.3, vec![tally(Some("v1"), 2_100, 8_126_464), tally(Some("v2"), 1_930, 300)]),
        after: window(31.0, vec![tally(Some("v2"), 1_234_567, 400_000_000)]),
        complete: false,
        notes: Vec::new(),
        total: Some(Proof::default()),
    }
}

#[test]
fn a_clean_roll() {
    let expected = "\
roll web-1: web, v1 -> v2, done after 12.3 s, 40 workers changed: 40 workers restarted
              connections  failed  reset  closed port  cut   p50    p99     max
  before  v1        4,012       0      0            0    0  6 ms  11 ms   14 ms
  during  v1        2,100       0      0            0    0  6 ms  11 ms   8.1 s
          v2        1,930       0      0            0    0  6 ms  11 ms  0.3 ms
  after   v2    1,234,567       0      0            0    0  6 ms  11 ms   6m40s

  proof     late  to cold  fallback: draining  cold  floor  exhausted  refused
  before       0        0                   0     0      0          0        0
  during       0        0                   0     0      0          0        0
  after        0        0                   0     0      0          0        0
  in total     0        0                   0     0      0          0        0

before: 1m00s; during: 12s; after: 31s so far
p50, p99, max: how long connections lasted, seen at the worker's end, to within a fifth; of a load balancer
without upstream keep-alive, that is the latency of its requests.
";
    assert_eq!(text(&report()), expected);
}

#[test]
fn what_is_not_zero_is_explained() {
    let mut report = report();
    report.during.exhausted = 3;
    report.during.versions[0].cut = 2;
    report.during.versions[1].late = 1;
    report.after.versions[0].late = 1;
    report.total = Some(Proof { late: 9, to_cold: 5, exhausted: 3, ..Proof::default() });
    let text = text(&report);
    for line in [
        "  during       1        0                   0     0      0          3        0\n",
        "  in total     9        5                   0     0      0          3        0\n",
        "\ncut: 2 connections were open in a worker's process when it ended\nlate: 2 connections reached",
        "\nto cold: 5 connections reached a worker that was not warm yet (not around this roll)\n",
        "\nexhausted: 3 connections were refused, because no worker could take them\n",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    assert!(!text.contains("\nfailed:") && !text.contains("\nfloor:"), "{text}");
}

#[test]
fn a_roll_that_runs_and_knows_no_version() {
    let (before, during) = (window(0.0, Vec::new()), window(3.0, vec![tally(None, 7, 99)]));
    let after = Window::default();
    let (from, to, result, total) = (None, None, None, None);
    let report = Report { before, during, after, from, to, result, total, notes: vec!["a\nb".to_owned()], ..report() };
    let text = text(&report);
    assert!(text.starts_with("roll web-1: web, runs, 12.3 s so far\n"), "{text}");
    assert!(text.contains("\n  during  -            7 "), "{text}");
    assert!(text.contains("\n  in total     -        -  "), "{text}");
    assert!(text.contains("\nbefore: 0.0s; during: 3.0s so far\n") && text.ends_with("\na\\nb\n"), "{text}");
}

#[test]
fn the_roll_may_be_left_out() {
    for line in ["deployer report", "deployer report web-1", "deployer report --json web-1"] {
        assert!(parse(line).is_ok(), "{line}");
    }
    assert!(Cli::try_parse_from(["deployer", "report", ""]).is_err());
}

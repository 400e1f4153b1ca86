use super::{super::status::*, *};
use crate::api::{
    CallerStatus, Hold, LaneCounts, PoolStatus, ServiceStatus, Status, TicketHold, UnsteeredCaller, WorkerStatus,
};

fn worker(port: u16, phase: Phase, reason: &str) -> WorkerStatus {
    WorkerStatus {
        at: ([127, 0, 0, 1], port).into(),
        pool: None,
        spare: false,
        phase,
        reason: reason.to_owned(),
        for_s: 65.0,
        version: Some("v1".to_owned()),
        invalid_version: None,
        open: 12,
        tickets: 0,
        established: 100,
        direct: 90,
        away: 3,
        steered: 10,
        picked: 0,
        refused: 0,
        fallback_draining: 0,
        fallback_cold: 0,
        fallback_floor: 0,
        closed_port: 0,
        late: 0,
        to_cold: 0,
        failed: 0,
        reset: 0,
        crashes: 0,
        cut: 0,
        holds: Vec::new(),
        more_holds: 0,
        gone: 0,
        ticket_holds: Vec::new(),
        outsider_tickets: 0,
        outsiders_cut: 0,
        unnoted: 0,
        closed: 0,
    }
}

fn status() -> Status {
    let down = WorkerStatus {
        version: None,
        fallback_cold: 1,
        fallback_draining: 2,
        for_s: 0.25,
        ..worker(8001, Phase::Failed, "exit\n1")
    };
    let web = ServiceStatus {
        name: "web".to_owned(),
        mode: "enforce".to_owned(),
        policy: "steer".to_owned(),
        min_up: 1,
        address: Some(([127, 0, 0, 1], 9000).into()),
        roll: Some("web-1".to_owned()),
        pools: Vec::new(),
        lanes: None,
        workers: vec![worker(8000, Phase::Up, ""), down],
        exhausted: 0,
        unsteered: 7,
        dialled: 5,
        would_change: 0,
        callers: Vec::new(),
        unsteered_callers: Vec::new(),
        protected: false,
        binds_refused: 0,
    };
    let version = "0.1.0".to_owned();
    let callers = "/sys/fs/cgroup".to_owned();
    Status {
        version,
        pid: 42,
        attached: true,
        bypassed: false,
        callers,
        trouble: Vec::new(),
        self_test: None,
        deferred: Vec::new(),
        services: vec![web],
    }
}

#[test]
fn callers_that_are_not_steered_are_named() {
    let mut status = status();
    let caller = |caller: &str, processes, left_out| CallerStatus { caller: caller.to_owned(), processes, left_out };
    status.services[0].callers =
        vec![caller("executable /a", 0, 0), caller("executable /b", 2, 0), caller("cgroup /c", 3, 1)];
    let one = UnsteeredCaller {
        caller: "/usr/local/bin/nginx".to_owned(),
        process: Some("nginx\n".to_owned()),
        pid: Some(7),
        peer: None,
        connections: 84,
        last_s: 0.5,
    };
    status.services[0].unsteered_callers = vec![one; 10];
    let text = table(&status);
    let line = |wanted: &str| text.lines().any(|line| line.starts_with(wanted));
    assert!(line("  callers: executable /a: no process is one"), "{text}");
    assert!(!text.contains("executable /b"), "{text}");
    assert!(line("  callers: cgroup /c: 1 of 3 processes are NOT STEERED"), "{text}");
    assert!(line("  not steered in the last 5 minutes: /usr/local/bin/nginx (nginx"), "{text}");
    assert!(line("  not steered in the last 5 minutes: 2 more callers"), "{text}");
}

#[test]
fn columns_are_aligned() {
    let expected = "\
deployer 0.1.0, pid 42, callers in /sys/fs/cgroup

web: mode enforce, policy steer, address 127.0.0.1:9000, roll web-1 runs
  connections: 5 to the service address, 7 of callers that are not steered
  address         phase     for  version  open  direct  away  steered  picked  refused   fallbacks  reason
  127.0.0.1:8000  up      1m05s  v1         12      90     3       10       0        0           0
  127.0.0.1:8001  failed   0.2s  -          12      90     3       10       0        0  3 (1 cold)  exit\\n1
";
    assert_eq!(table(&status()), expected);
}

fn pool(name: &str, lane: u8) -> PoolStatus {
    PoolStatus {
        pool: name.to_owned(),
        lane,
        current: false,
        open_lane: false,
        version: None,
        up: 0,
        workers: 8,
        open: 0,
        share: None,
        age_s: 3723.0,
        former: None,
        flips_at_ms: None,
    }
}

#[test]
fn two_pools_are_a_line_each() {
    let v1 = Some("v1".to_owned());
    let old = PoolStatus {
        open_lane: true,
        version: v1,
        up: 8,
        open: 12,
        former: Some(3),
        share: Some(0.126),
        ..pool("a", 2)
    };
    let new = PoolStatus { current: true, open_lane: true, version: Some("v\n2".to_owned()), up: 7, ..pool("b", 3) };
    let mut status = status();
    let web = &mut status.services[0];
    web.pools = vec![old, PoolStatus { share: Some(0.874), age_s: 34.0, former: Some(0), ..new }];
    web.lanes = Some(LaneCounts { lane: 5, preview: 0, stale: 1, unopened: 2, moved: 4 });
    let expected = "
  pool a  lane 2  v1  by its lane  8 of 8 up  12 open  13 % of new connections  3 kept alive since before the flip  for 1h02m
  pool b  lane 3  v\\n2  current  7 of 8 up  0 open  87 % of new connections  for 34s
  lanes: 5 by their lane, 1 whose lane is retired, to the current pool, 2 whose lane has not been current, to the current \
pool, 4 that dialled the other pool, to the current one
  address ";
    assert!(table(&status).contains(expected), "{}", table(&status));
    let json = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
}

#[test]
fn a_pool_says_how_it_is_reached() {
    let armed = PoolStatus { flips_at_ms: Some(1_785_414_896_789), ..pool("b", 3) };
    for (pool, expected) in [
        (armed, "pool b  lane 3  -  current from 2026-07-30 12:34:56.789Z on  0 of 8 up"),
        (pool("b", 3), "pool b  lane 3  -  by preview  0 of 8 up"),
        (pool("b", 0), "pool b  no lane  -  retired  0 of 8 up"),
    ] {
        let mut status = status();
        status.services[0].pools = vec![pool];
        status.services[0].lanes = Some(LaneCounts::default());
        let table = table(&status);
        assert!(table.contains(expected) && !table.contains("lanes:"), "{table}");
    }
}

#[test]
fn a_spare_is_called_so() {
    let mut status = status();
    status.services[0].workers.push(WorkerStatus { spare: true, ..worker(8040, Phase::Up, "") });
    assert!(table(&status).contains("\n  spare 127.0.0.1:8040  up "), "{}", table(&status));
}

#[test]
fn what_holds_a_drain_stands_beneath_it() {
    let hold = Hold {
        peer: ([127, 0, 0, 1], 43210).into(),
        process: Some("ng\tinx".to_owned()),
        pid: Some(4711),
        user: None,
        outsider: false,
        state: "established".to_owned(),
        age_s: Some(125.0),
        idle_s: Some(3.12),
        why: "WebSocket".to_owned(),
    };
    let other = Hold {
        process: None,
        pid: None,
        age_s: None,
        idle_s: None,
        why: "not connected yet".to_owned(),
        ..hold.clone()
    };
    let mut status = status();
    let draining = worker(8000, Phase::Draining, "");
    status.services[0].workers[0] = WorkerStatus { holds: vec![hold, other], more_holds: 12, gone: 3, ..draining };
    let expected = "
      held by 127.0.0.1:43210  ng\\tinx (pid 4711)       open for 2m05s  quiet for 3.1s  WebSocket
      held by 127.0.0.1:43210  no process on this host  age unknown                     not connected yet
      and 12 more
      3 connections hold nothing: their callers are gone, and the worker has not closed them
  127.0.0.1:8001  failed";
    assert!(table(&status).contains(expected), "{}", table(&status));
    let json = serde_json::to_string(&status).unwrap();
    assert!(json.contains("\"more_holds\":12") && json.contains("\"age_s\":null"), "{json}");
    assert_eq!(json.matches("holds").count(), 2, "{json}");
    assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
}

#[test]
fn a_call_that_holds_a_drain_is_named_with_its_user() {
    let call = TicketHold { process: "py\tthon".to_owned(), pid: 7, user: Some("nobody".to_owned()), outsider: true };
    let mut status = status();
    let counted = WorkerStatus {
        tickets: 1,
        outsider_tickets: 1,
        outsiders_cut: 3,
        unnoted: 2,
        ..worker(8000, Phase::Draining, "")
    };
    status.services[0].workers[0] = WorkerStatus { ticket_holds: vec![call], ..counted };
    let text = table(&status);
    let expected =
        "held by a connect() call  py\\tthon (pid 7, user nobody)  no SYN sent yet; not one of the service's callers";
    assert!(text.contains(expected), "{text}");
    for said in ["3 of other callers cut at the deadline of a drain", "2 without a note"] {
        assert!(text.contains(said), "{text}");
    }
    let json = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
}

#[test]
fn what_is_not_steered_stands_on_top() {
    let mut status = status();
    status.services[0].mode = "bypass".to_owned();
    assert!(table(&status).starts_with("!!! web IS BYPASSED: "), "{}", table(&status));
    status.bypassed = true;
    assert!(table(&status).starts_with("!!! BYPASSED: "), "{}", table(&status));
    status.attached = false;
    assert!(table(&status).starts_with("!!! NOT ATTACHED: "), "{}", table(&status));
    status.services.clear();
    assert!(table(&status).ends_with("\nno services\n"), "{}", table(&status));
}

#[test]
fn times_are_short() {
    let times = [
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (59.9, "59s"),
        (60.0, "1m00s"),
        (3600.0, "1h00m"),
        (90_000.0, "1d01h"),
        (-1.0, "0.0s"),
        (f64::NAN, "0.0s"),
    ];
    for (seconds, expected) in times {
        assert_eq!(out::short(seconds), expected);
    }
    assert!(out::short(f64::INFINITY).ends_with('h'));
}

#[test]
fn phases_are_called_as_in_json() {
    for phase in [Phase::Up, Phase::Draining, Phase::Drained, Phase::Stopping, Phase::Starting, Phase::Listening] {
        assert_eq!(serde_json::to_value(phase).unwrap(), word(phase));
    }
    for phase in [Phase::Warming, Phase::Down, Phase::Failed] {
        assert_eq!(serde_json::to_value(phase).unwrap(), word(phase));
    }
}

//! A page of figures that we have made up.

use std::{collections::BTreeSet, time::Instant};

use super::*;
use crate::api::{LaneCounts, Phase, PoolStatus};

/// A service of so many workers, each with two versions.
fn service(name: &str, workers: u16) -> ServiceSample {
    let figures = |seed: u64| Figures(std::array::from_fn(|nth| seed * 1_000 + nth as u64));
    let worker = |nth: u16| WorkerSample {
        at: ([127, 0, 0, 1], 8000 + nth).into(),
        pool: None,
        spare: nth % 2 == 1,
        phase: Phase::Up,
        for_seconds: 12.5,
        version: Some("v2".to_owned()),
        open: 3,
        pending: 1,
        evidence: Default::default(),
        listeners: 1,
        crashes: 0,
        closed_port: 4,
        restarts: 2,
        drain_seconds: 1.5,
        warm_up_seconds: 0.25,
        versions: vec![("v2".to_owned(), figures(nth.into())), ("v1".to_owned(), figures(900))],
    };
    ServiceSample {
        name: name.to_owned(),
        mode: "enforce",
        min_up: 1,
        count: Default::default(),
        unsteered: vec![("/usr/local/bin/nginx".to_owned(), 84)],
        workers_unsteered: 1,
        callers: vec![("executable /usr/sbin/nginx".to_owned(), 0)],
        binds_refused: 0,
        moved: Default::default(),
        roll: Some(RollSample { done: 1, ..RollSample::default() }),
        last_end_ms: Some(1_700_000_000_250),
        sides: None,
        workers: (0..workers).map(worker).collect(),
    }
}

fn page(services: Vec<ServiceSample>) -> String {
    let runs = Some(vec![("connect4".to_owned(), std::time::Duration::from_millis(1_500), 7)]);
    render(&Snapshot { version: "0.1.0", attached: true, runs, services, ..Snapshot::default() }, Instant::now())
}

/// The lines of a family, of one series each.
fn series<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    page.lines()
        .filter(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")))
        .collect()
}

#[test]
fn tells_of_connections_by_version() {
    let page = page(vec![service("web", 2)]);
    let labels = r#"service="web",worker="127.0.0.1:8001""#;
    let direct = format!(r#"deployer_connections_total{{{labels},version="v2",outcome="direct"}} 1000"#);
    assert_eq!(series(&page, "deployer_connections_total").len(), 12);
    for line in [
        direct,
        format!(r#"deployer_connections_total{{{labels},version="v1",outcome="picked"}} 900002"#),
        format!(r#"deployer_connections_reaped_total{{{labels},version="v1",ground="quiet"}} 900015"#),
        format!(r#"deployer_worker_info{{{labels},version="v2",spare="true"}} 1"#),
        format!(r#"deployer_worker_phase{{{labels},phase="up"}} 1"#),
        format!(r#"deployer_worker_phase{{{labels},phase="failed"}} 0"#),
        r#"deployer_service_workers{service="web"} 1"#.to_owned(),
        r#"deployer_service_mode{service="web",mode="bypass"} 0"#.to_owned(),
        r#"deployer_rolls_total{service="web",result="rolled-back"} 0"#.to_owned(),
        r#"deployer_roll_workers{service="web",state="done"} 1"#.to_owned(),
        r#"deployer_roll_last_end_timestamp_seconds{service="web"} 1700000000.25"#.to_owned(),
        r#"deployer_bpf_program_run_seconds_total{program="connect4"} 1.5"#.to_owned(),
        r#"deployer_build_info{version="0.1.0"} 1"#.to_owned(),
        r#"deployer_unsteered_connections{service="web",caller="/usr/local/bin/nginx"} 84"#.to_owned(),
        r#"deployer_service_workers_unsteered{service="web"} 1"#.to_owned(),
        r#"deployer_caller_processes{service="web",caller="executable /usr/sbin/nginx"} 0"#.to_owned(),
        r#"deployer_worker_closed_port_total{service="web",worker="127.0.0.1:8001"} 4"#.to_owned(),
        "deployer_attached 1".to_owned(),
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\nis missing in\n{page}");
    }
}

/// The same with two pools: even workers are of the first, which is current.
fn two_pools(name: &str, workers: u16) -> ServiceSample {
    let mut service = service(name, workers);
    for (nth, worker) in service.workers.iter_mut().enumerate() {
        (worker.spare, worker.pool) = (false, Some(if nth % 2 == 0 { ("a", true) } else { ("b", false) }));
    }
    let pool = |pool: &str, lane, current| PoolStatus {
        pool: pool.to_owned(),
        lane,
        current,
        open_lane: current,
        version: None,
        up: 1,
        workers: 2,
        open: 0,
        share: None,
        age_s: 1.0,
        former: current.then_some(7),
        flips_at_ms: (!current).then_some(1_700_000_000_250),
    };
    let lanes = LaneCounts { lane: 1, preview: 2, stale: 3, unopened: 4, moved: 5 };
    service.sides = Some(Sides { pools: vec![pool("a", 3, true), pool("b", 4, false)], lanes, bakes: true });
    (service.moved.deploys, service.moved.flips, service.moved.rollbacks) = ([5, 4, 3, 2, 1], 7, 2);
    service
}

#[test]
fn tells_of_two_pools() {
    let page = page(vec![two_pools("web", 4), service("api", 1)]);
    let of_worker = r#"service="web",worker="127.0.0.1:8001",version="v2",spare="false",pool="b""#;
    for line in [
        r#"deployer_pool_current{service="web",pool="a"} 1"#,
        r#"deployer_pool_current{service="web",pool="b"} 0"#,
        r#"deployer_pool_lane{service="web",pool="b"} 4"#,
        r#"deployer_pool_lane_open{service="web",pool="b"} 0"#,
        r#"deployer_pool_workers_up{service="web",pool="a"} 1"#,
        r#"deployer_pool_workers{service="web",pool="a"} 2"#,
        r#"deployer_pool_flip_timestamp_seconds{service="web",pool="b"} 1700000000.25"#,
        r#"deployer_pool_former_connections{service="web",pool="a"} 7"#,
        r#"deployer_lane_connections_total{service="web",way="stale"} 3"#,
        r#"deployer_lane_connections_total{service="web",way="moved"} 5"#,
        r#"deployer_deploys_total{service="web",result="done"} 5"#,
        r#"deployer_deploys_total{service="web",result="rolled-back"} 2"#,
        r#"deployer_flips_total{service="web"} 7"#,
        r#"deployer_rollbacks_total{service="web"} 2"#,
        r#"deployer_deploy_baking{service="web"} 1"#,
        r#"deployer_rolls_total{service="web",result="done"} 0"#,
        r#"deployer_service_workers{service="web"} 2"#,
        &format!("deployer_worker_info{{{of_worker}}} 1"),
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\nis missing in\n{page}");
    }
    for (name, lines) in [("pool_flip_timestamp_seconds", 1), ("pool_former_connections", 1), ("deploy_baking", 1)] {
        assert_eq!(series(&page, &format!("deployer_{name}")).len(), lines, "{name}");
    }
    assert_eq!(series(&page, "deployer_lane_connections_total").len(), 5);
    assert!(!page.contains(r#"service="api",pool"#) && !page.contains(r#"service="api",way"#));
}

fn fleet() -> FleetFigures {
    let web = FleetServiceFigures {
        service: "web".to_owned(),
        epoch: 7,
        phase: crate::fleet::state::Phase::Go,
        phase_seconds: 1.5,
        marks: [5, 4, 0, 3, 0, 0, 1, 0],
        expected: 6,
        late_seconds: Some(0.0004),
        published: Some(true),
        driver: true,
    };
    let api = FleetServiceFigures { service: "api".to_owned(), ..FleetServiceFigures::default() };
    FleetFigures {
        name: "shop".to_owned(),
        host: "app17".to_owned(),
        connected: true,
        sessions_lost: 2,
        session_seconds: 60.5,
        enrolled: 6,
        alive: 5,
        services: vec![web, api],
    }
}

#[test]
fn tells_of_the_fleet() {
    let page = render(&Snapshot { fleet: Some(fleet()), ..Snapshot::default() }, Instant::now());
    for line in [
        r#"deployer_fleet_info{fleet="shop",host="app17"} 1"#,
        "deployer_fleet_connected 1",
        "deployer_fleet_sessions_lost_total 2",
        "deployer_fleet_session_age_seconds 60.5",
        r#"deployer_fleet_roster_hosts{state="enrolled"} 6"#,
        r#"deployer_fleet_roster_hosts{state="alive"} 5"#,
        r#"deployer_fleet_epoch{service="web"} 7"#,
        r#"deployer_fleet_phase{service="web",phase="go"} 1"#,
        r#"deployer_fleet_phase{service="web",phase="idle"} 0"#,
        r#"deployer_fleet_phase{service="api",phase="idle"} 1"#,
        r#"deployer_fleet_phase_seconds{service="web"} 1.5"#,
        r#"deployer_fleet_hosts{service="web",mark="confirmed"} 4"#,
        r#"deployer_fleet_hosts{service="web",mark="failed"} 1"#,
        r#"deployer_fleet_hosts_expected{service="web"} 6"#,
        r#"deployer_fleet_flip_late_seconds{service="web"} 0.0004"#,
        r#"deployer_fleet_published{service="web"} 1"#,
        r#"deployer_fleet_driver{service="web"} 1"#,
        r#"deployer_fleet_driver{service="api"} 0"#,
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\nis missing in\n{page}");
    }
    assert_eq!(series(&page, "deployer_fleet_phase").len(), 16);
    assert_eq!(series(&page, "deployer_fleet_published").len(), 1, "api has nothing to publish");
    assert!(!render(&Snapshot::default(), Instant::now()).contains("deployer_fleet"));
}

#[test]
fn no_series_is_there_twice_and_each_has_its_head() {
    let services = vec![service("web", 5), service("api", 1), two_pools("two", 4)];
    let page = render(&Snapshot { services, fleet: Some(fleet()), ..Snapshot::default() }, Instant::now());
    let lines: Vec<_> = page.lines().filter(|line| !line.starts_with('#')).collect();
    let names: BTreeSet<_> = lines.iter().filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name).collect();
    assert_eq!(names.len(), lines.len());
    let heads: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert_eq!(heads.iter().collect::<BTreeSet<_>>().len(), heads.len(), "a family is in two parts");
    for line in lines {
        let name = line.split(['{', ' ']).next().unwrap();
        let is_of = |head: &&str| head.split(' ').next().is_some_and(|family| name.starts_with(family));
        assert!(heads.iter().any(is_of), "{line}");
    }
}

#[test]
fn a_thousand_workers_take_no_time() {
    let services: Vec<_> = (0..4).map(|nth| service(&format!("web-{nth}"), 256)).collect();
    let snapshot = Snapshot { services, ..Snapshot::default() };
    let mut took = Vec::new();
    let mut bytes = 0;
    for _ in 0..9 {
        let begun = Instant::now();
        bytes = render(&snapshot, begun).len();
        took.push(begun.elapsed());
    }
    took.sort();
    println!("{bytes} bytes, written in {:?} (median), {:?} at most", took[4], took[8]);
    // Of a build without optimization, beside other work.
    assert!(took[4].as_secs() < 5, "{took:?}");
}

use super::{
    super::status::{details, host_table, table},
    *,
};
use crate::api::FleetStatus;

fn fleet() -> FleetStatus {
    let mut drained = host("app2", "idle", 4);
    (drained.roster, drained.synchronised) = ("drained".to_owned(), Some(false));
    let gone = HostStatus { host: "app3".to_owned(), roster: "enabled".to_owned(), ..HostStatus::default() };
    FleetStatus {
        name: "shop".to_owned(),
        coordinator: "zookeeper zk1:2181/deployer".to_owned(),
        host: "app1".to_owned(),
        connected: true,
        since_ms: BEGUN,
        sessions_lost: 1,
        hosts: vec![host("app1", "starting", 2), drained, gone],
        services: Vec::new(),
        trouble: Vec::new(),
    }
}

#[test]
fn a_line_a_service_and_what_is_waited_for() {
    let mut fleet = fleet();
    let mut web = service(state(Phase::Prepare));
    say(&mut web, Mark::Ready, &["app2"]);
    web.waiting_for = named(&["app1"]);
    let api = over(FleetState { other: None, ..state(Phase::Idle) }, Ended::Aborted, "aborted by uid 0");
    fleet.services = vec![ServiceFleet { service: "api".to_owned(), driver: None, ..service(api) }, web];
    fleet.trouble = vec!["a set has shrunk".to_owned()];
    let text = table(&fleet, BEGUN + 12_000);
    let expected = "\
!!! a set has shrunk
fleet shop, seen from app1: zookeeper zk1:2181/deployer, connected since 2026-01-31 14:00:00.000Z, 1 session lost
2 of 3 hosts enabled, 2 there

  service  phase    for  epoch  active       other        driver  last order
  api      idle     12s      7  v1 (lane 2)  -            -       epoch 7 aborted at 2026-01-31 14:00:12.300Z: aborted by uid 0
  web      prepare  12s      7  v1 (lane 2)  v2 (lane 3)  app1    -

web: 1 of 5 ready; waiting for app1 (starting, 2 of 4 up)
";
    assert_eq!(text, expected);
}

#[test]
fn a_fleet_that_is_away_says_so() {
    let away = FleetStatus { connected: false, ..fleet() };
    let text = table(&away, BEGUN);
    assert!(
        text.starts_with("!!! NOT CONNECTED since 2026-01-31 14:00:00.000Z: what is served stays as it is"),
        "{text}"
    );
    let local = FleetStatus { coordinator: "local".to_owned(), ..FleetStatus::default() };
    let local = FleetStatus { host: "app1".to_owned(), ..local };
    assert!(table(&local, 0).starts_with("app1 is a fleet of its own; [fleet]"));
}

#[test]
fn a_row_a_host() {
    let expected = "
  host  roster   there  web                                          clock             deployer
  app1  enabled  yes    v1 lane 2, starting, 2/4 up, published       within 0.3 ms     0.1.0
  app2  drained  yes    v1 lane 2, idle, 4/4 up, published           NOT SYNCHRONISED  0.1.0
  app3  enabled  NO     -                                            -                 -
";
    let table = host_table(&fleet().hosts);
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&table), words(expected), "{table}");
    assert_eq!(host_table(&[]), "no hosts\n");
}

#[test]
fn a_service_with_all_that_is_known() {
    let mut web = service(FleetState { members: named(&["app1"]), flip_at_ms: Some(BEGUN), ..state(Phase::Flipped) });
    say(&mut web, Mark::Flipped, &["app1"]);
    web.flips = [("app1".to_owned(), BEGUN + 1)].into();
    web.log = (0..12).map(|nth| format!("line {nth}")).collect();
    let text = details(&web, &[]);
    for said in [
        "web: FLIPPED to v1 (lane 2); BAKE: v2 (lane 3) stays beside it until 14:10:00.000Z\n",
        "  flipped 1 of 1 (spread 0 ms, the last 1 ms after the instant); driven by app1\n",
        "  active v1 (lane 2), other v2 (lane 3), epoch 7\n",
        "  flipped: app1\n",
        "  app1 has flipped at 2026-01-31 14:00:00.001Z\n",
        "  line 11\n",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
    assert!(!text.contains("line 1\n"), "{text}");
}

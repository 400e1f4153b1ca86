use super::{
    super::{
        lines::Teller,
        view::{TEMPLATES, head, rows},
    },
    *,
};
use crate::fleet::state::Wanted;

#[test]
fn a_deploy_is_told_phase_by_phase() {
    let (mut teller, all) = (Teller::default(), ["app1", "app2", "app3", "app4", "app5"]);
    let mut hosts: Vec<_> = all.iter().map(|name| host(name, "starting", 2)).collect();
    hosts[4].alive = false;
    let mut now = service(state(Phase::Prepare));
    say(&mut now, Mark::Ready, &["app1"]);
    now.waiting_for = named(&["app3", "app5", "app2", "app4"]);
    assert_eq!(
        teller.tell(&now, &hosts),
        [
            "PREPARE v2 (lane 3) beside v1 (lane 2) on 5 hosts, 4 needed; epoch 7, asked for by uid 0 on app1",
            "1 of 5 ready; waiting for app3 (starting, 2 of 4 up), app5 (not there), app2 (starting, 2 of 4 up) and 1 more",
        ]
    );
    now.waiting_for.pop();
    assert!(teller.tell(&now, &hosts).is_empty(), "nobody else is ready");
    say(&mut now, Mark::Ready, &all[..4]);
    say(&mut now, Mark::Failed, &["app5"]);
    (now.waiting_for, now.waits) = (Vec::new(), "the barrier /b is held".to_owned());
    let failed = "✗ app5 cannot go on: `deployer events` on the host says why";
    assert_eq!(teller.tell(&now, &[]), [failed, "4 of 5 ready; the barrier /b is held"]);

    now.state = FleetState {
        phase: Phase::Go,
        members: named(&all[..4]),
        flip_at_ms: Some(BEGUN + 1_802_000),
        ..now.state.clone()
    };
    assert_eq!(teller.tell(&now, &[]), ["GO: 4 hosts flip at 14:30:02.000Z, without app5"]);
    say(&mut now, Mark::Confirmed, &all[..4]);
    assert_eq!(teller.tell(&now, &[]), ["confirmed 4 of 4"]);
    say(&mut now, Mark::Flipped, &all[..4]);
    now.flips = (0..4).map(|nth| (all[nth].to_owned(), BEGUN + 1_802_000 + nth as u64)).collect();
    now.state.phase = Phase::Flipped;
    std::mem::swap(&mut now.state.active, &mut now.state.other);
    assert_eq!(
        teller.tell(&now, &[]),
        [
            "FLIPPED to v2 (lane 3); BAKE: v1 (lane 2) stays beside it until 14:40:02.000Z",
            "flipped 4 of 4 (spread 3 ms, the last 3 ms after the instant)",
        ]
    );
    (now.state.phase, now.state.other) = (Phase::Retire, None);
    assert_eq!(teller.tell(&now, &[]), ["RETIRE: v2 (lane 3) serves, all other pools end"]);
    say(&mut now, Mark::Retired, &all[..1]);
    assert_eq!(teller.tell(&now, &[]), ["retired 1 of 4"]);
    now.state = over(now.state, Ended::Done, "v2 serves on 4 of 5 hosts");
    assert_eq!(teller.tell(&now, &[]), ["done after 12s: v2 serves on 4 of 5 hosts"]);
}

#[test]
fn another_try_and_another_driver_are_told() {
    let mut teller = Teller::default();
    let mut now = service(FleetState {
        members: named(&["app1"]),
        flip_at_ms: Some(BEGUN),
        expected: named(&["app1"]),
        ..state(Phase::Go)
    });
    assert_eq!(teller.tell(&now, &[]), ["GO: 1 host flip at 14:00:00.000Z"]);
    now.state.flip_at_ms = Some(BEGUN + 1);
    (now.driver, now.state.wanted) = (None, Some(Wanted { by: "uid 1 on app2".to_owned() }));
    assert_eq!(
        teller.tell(&now, &[]),
        [
            "GO: 1 host flip at 14:00:00.001Z",
            "uid 1 on app2 wants it to end",
            "nobody drives it; another daemon takes over within seconds",
        ]
    );
    now.driver = Some("app2".to_owned());
    assert_eq!(teller.tell(&now, &[]), ["app2 drives it"]);
}

#[test]
fn what_goes_wrong_is_told() {
    let mut now = service(FleetState { why: "to be aborted, by uid 0".to_owned(), ..state(Phase::Cancel) });
    say(&mut now, Mark::Confirmed, &["app1", "app2"]);
    say(&mut now, Mark::Disarmed, &["app2"]);
    let told = Teller::default().tell(&now, &[]);
    assert_eq!(told, ["CANCEL: to be aborted, by uid 0", "taken back 1 of 2"]);
    let why = "2 of 5 hosts are ill; app1: crash\u{1b}es".to_owned();
    let back = FleetState { why, flip_at_ms: Some(BEGUN), ..state(Phase::Back) };
    let told = Teller::default().tell(&service(back), &[]);
    assert_eq!(
        told,
        ["BACK to v1 (lane 2): 2 of 5 hosts are ill; app1: crash\\u{1b}es; v2 (lane 3) stays for its pages until \
          14:10:00.000Z"]
    );
}

#[test]
fn a_roll_is_told_turn_by_turn() {
    let mut teller = Teller::default();
    let mut now = service(FleetState { other: None, ..state(Phase::Roll) });
    assert_eq!(teller.tell(&now, &[]), ["ROLL of 5 hosts to v2, 1 at a time; epoch 7, asked for by uid 0 on app1"]);
    now.state.turn = named(&["app1", "app2"]);
    now.waiting_for = named(&["app1", "app2"]);
    assert_eq!(teller.tell(&now, &[]), ["ROLL: now app1, app2; 0 of 5 are through"]);
    say(&mut now, Mark::Rolled, &["app1"]);
    now.waiting_for = named(&["app2"]);
    let told = teller.tell(&now, &[host("app2", "rolling", 3)]);
    assert_eq!(told, ["rolled 1 of 5; waiting for app2 (rolling, 3 of 4 up)"]);
}

#[test]
fn the_block_names_every_host_and_the_slowest() {
    let mut now = service(state(Phase::Prepare));
    say(&mut now, Mark::Ready, &["app1"]);
    now.waiting_for = named(&["app3", "app2"]);
    assert_eq!(head(&now), "prepare: 1 of 5 ready; slowest: app3");
    let rows = rows(&now, &[host("app1", "holding", 4), host("app3", "starting", 1)]);
    assert_eq!(rows.len(), 5);
    assert_eq!(rows["app1"], "ready      holding, 4 of 4 up");
    assert_eq!(rows["app3"], "-          starting, 1 of 4 up  <- slowest");
    assert_eq!(rows["app2"], "-          ?");
}

#[test]
fn of_many_hosts_those_are_shown_that_are_waited_for() {
    let mut now = service(state(Phase::Prepare));
    now.state.expected = (0..1000).map(|nth| format!("app{nth:04}")).collect();
    now.waiting_for = named(&["app0999", "app0500"]);
    let rows = rows(&now, &[]);
    assert!(rows.len() <= 20 && rows.contains_key("app0999") && rows.contains_key("app0500"), "{rows:?}");
}

#[test]
fn every_template_can_be_drawn() {
    for template in TEMPLATES {
        assert!(indicatif::ProgressStyle::with_template(template).is_ok(), "{template}");
    }
}

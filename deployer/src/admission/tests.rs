use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { total: 10, per_peer: 4, reserved: 3 };
const ROOT: u32 = 0;

fn open(peer: u32, phase: Phase) -> Open<u32> {
    Open { peer, is_privileged: peer == ROOT, phase }
}

#[test]
fn the_oldest_that_waits_gives_way_to_the_same_peer() {
    let all = [Phase::Busy, Phase::Sending, Phase::Waiting, Phase::Waiting].map(|phase| open(1, phase));
    assert_eq!(decide(&all, 1, false, &LIMITS), Verdict::Instead(2));
    assert_eq!(decide(&all[..2], 1, false, &LIMITS), Verdict::Admit);
    let sent = [Phase::Busy, Phase::Sending, Phase::Busy, Phase::Busy].map(|phase| open(1, phase));
    assert_eq!(decide(&sent, 1, false, &LIMITS), Verdict::Instead(1));
    let busy = [open(1, Phase::Busy); 4];
    assert_eq!(decide(&busy, 1, false, &LIMITS), Verdict::Refuse(Full::Peer(4)));
    assert_eq!(decide(&busy, 2, false, &LIMITS), Verdict::Admit);
}

#[test]
fn the_largest_crowd_gives_way_to_others() {
    let mut all = vec![open(2, Phase::Waiting)];
    all.extend([open(1, Phase::Waiting); 4]);
    all.extend([open(3, Phase::Busy); 2]);
    assert_eq!(decide(&all, 4, false, &LIMITS), Verdict::Instead(1));
    assert_eq!(decide(&all, ROOT, true, &LIMITS), Verdict::Admit);
    let busy: Vec<_> = (1..8).map(|peer| open(peer, Phase::Busy)).collect();
    assert_eq!(decide(&busy, 9, false, &LIMITS), Verdict::Refuse(Full::Total(7)));
}

#[test]
fn few_descriptors_leave_room_for_all() {
    let limits = Limits { total: 512, per_peer: 64, reserved: 64 };
    assert_eq!(limits.within(20_000, 4), limits);
    assert_eq!(limits.within(256, 4), Limits { total: 64, per_peer: 32, reserved: 16 });
    assert_eq!(limits.within(0, 4), Limits { total: 4, per_peer: 2, reserved: 1 });
}

#[test]
fn a_connection_hears_that_it_gives_way() {
    let admission = Admission::new(Limits { total: 4, per_peer: 1, reserved: 1 });
    let first = admission.admit(1, false).ok().unwrap();
    let second = admission.admit(1, false).ok().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(first.gives_way());
    second.busy();
    assert_eq!(admission.admit(1, false).err(), Some(Full::Peer(1)));
    // Its place is another's already.
    drop(first);
    drop(second);
    assert!(admission.admit(1, false).is_ok());
    assert!(admission.entries().open.is_empty());
}

proptest! {
    /// Whatever comes: the limits hold, the privileged get in, and no busy connection is sent away.
    #[test]
    fn limits_hold(events in prop::collection::vec((0_u32..5, 0_usize..3), 1..200)) {
        let mut all: Vec<Open<u32>> = Vec::new();
        for (nth, (peer, phase)) in events.into_iter().enumerate() {
            let verdict = decide(&all, peer, peer == ROOT, &LIMITS);
            match verdict {
                Verdict::Refuse(_) => {
                    let busy = all.iter().filter(|one| one.phase == Phase::Busy).count();
                    let root = all.iter().filter(|one| one.peer == ROOT && one.phase != Phase::Busy).count();
                    prop_assert!(busy + root >= LIMITS.per_peer);
                    if peer == ROOT {
                        prop_assert_eq!(busy, LIMITS.total);
                    }
                    continue;
                }
                Verdict::Instead(nth) => {
                    prop_assert!(all.remove(nth).phase != Phase::Busy);
                }
                Verdict::Admit => {}
            }
            let phase = [Phase::Waiting, Phase::Busy, Phase::Sending][phase];
            all.push(open(peer, phase));
            prop_assert!(all.len() <= LIMITS.total);
            let others = all.iter().filter(|one| one.peer != ROOT).count();
            prop_assert!(others <= LIMITS.total - LIMITS.reserved);
            for peer in 1..5 {
                prop_assert!(all.iter().filter(|one| one.peer == peer).count() <= LIMITS.per_peer);
            }
            // Some end by themselves.
            if nth % 7 == 0 {
                all.remove(0);
            }
        }
    }
}

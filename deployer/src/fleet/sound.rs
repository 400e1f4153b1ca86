//! Whether what was read from ZooKeeper can be: any client that may write there can have written it. A number that is out of
//! range is refused, and named with its node; nothing is reckoned with it.

use super::state::{FleetState, Release};

/// No epoch is above this: an order a millisecond for 8,900 years. Far below the range of its type, so that the next one
/// always is a number, too.
pub const EPOCH_MOST: u64 = 1 << 48;
/// No order comes with an epoch that is above the one before by more than this.
pub const EPOCH_STEP: u64 = 1_000_000;
/// No instant is later, milliseconds since 1970: the year 2527.
const INSTANT_MOST: u64 = 1 << 44;
/// No span is longer, milliseconds: a year.
const SPAN_MOST: u64 = 366 * 24 * 3_600_000;
/// No fleet has more hosts.
const HOSTS_MOST: usize = 100_000;

/// Whether a number can be an epoch.
///
/// # Errors
/// Why not, in words that go on after the name of the node.
pub fn epoch(epoch: u64) -> Result<u64, String> {
    if epoch <= EPOCH_MOST {
        return Ok(epoch);
    }
    Err(format!(
        "says epoch {epoch}, and none is above {EPOCH_MOST}: another program has written it; put it right, or remove it"
    ))
}

/// The epoch after another.
///
/// # Errors
/// When there is none.
pub fn next(last: u64) -> Result<u64, String> {
    let next = last.checked_add(1).filter(|next| *next <= EPOCH_MOST);
    next.ok_or_else(|| format!("there is no epoch after {last}: the highest is {EPOCH_MOST}"))
}

/// Whether a host that has acted upon epoch `acted` may act upon `epoch`.
///
/// # Errors
/// Why not, in words.
pub fn step(acted: u64, epoch: u64) -> Result<(), String> {
    if epoch < acted {
        return Err(format!("its epoch is {epoch}, and this host has acted upon {acted}; order something anew"));
    }
    // A host that has acted upon none may be new to a fleet that is old.
    if acted > 0 && epoch - acted > EPOCH_STEP {
        return Err(format!(
            "its epoch is {epoch}, and this host has acted upon {acted}: no fleet orders so often, so another program has \
             written it; put the epoch right in ZooKeeper"
        ));
    }
    Ok(())
}

/// Whether all numbers of a state can be.
///
/// # Errors
/// What cannot, in words that go on after the name of the node.
pub fn state(state: &FleetState) -> Result<(), String> {
    epoch(state.epoch)?;
    if let Some(outcome) = &state.outcome {
        epoch(outcome.epoch)?;
    }
    let order = &state.order;
    let instants = [
        ("since_ms", Some(state.since_ms)),
        ("flip_at_ms", state.flip_at_ms),
        ("order.at_ms", Some(order.at_ms)),
        ("outcome.at_ms", state.outcome.as_ref().map(|outcome| outcome.at_ms)),
    ];
    at_most(&instants.map(|(key, value)| (key, value.unwrap_or(0))), INSTANT_MOST)?;
    at_most(&[("order.lead_ms", order.lead_ms), ("order.bake_ms", order.bake_ms)], SPAN_MOST)?;
    at_most(&[("order.quorum", u64::from(order.quorum))], 100)?;
    for (key, hosts) in
        [("expected", &state.expected), ("members", &state.members), ("turn", &state.turn), ("done", &state.done)]
    {
        at_most(&[(key, hosts.len() as u64)], HOSTS_MOST as u64)?;
        // Hosts are looked up in them, and asked for by name.
        let is_set = matches!(key, "turn" | "done") || hosts.is_sorted();
        if !is_set || hosts.iter().any(|host| host.is_empty() || host.contains('/')) {
            return Err(format!(
                "has hosts in `{key}` that are out of order, or have no name; put it right, or remove it"
            ));
        }
    }
    let releases = [&state.active, &state.other, &state.former].into_iter().flatten();
    match releases.map(|Release { lane, .. }| *lane).find(|lane| *lane == 0 && state.other.is_some()) {
        Some(lane) => Err(format!("says lane {lane} of a deploy, and lanes are 1 to 255; put it right, or remove it")),
        None => Ok(()),
    }
}

fn at_most(numbers: &[(&str, u64)], most: u64) -> Result<(), String> {
    match numbers.iter().find(|(_, number)| *number > most) {
        Some((key, number)) => {
            Err(format!("says {key} = {number}, and it is at most {most}; put it right, or remove it"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::state::{Ended, Order, Outcome};

    #[test]
    fn epochs_do_not_wrap() {
        assert_eq!((epoch(0), epoch(EPOCH_MOST)), (Ok(0), Ok(EPOCH_MOST)));
        for wrong in [EPOCH_MOST + 1, u64::MAX - 1, u64::MAX] {
            assert!(epoch(wrong).unwrap_err().contains(&format!("says epoch {wrong}, and none is above")));
            assert!(next(wrong).is_err());
        }
        assert_eq!(next(7), Ok(8));
        assert!(next(EPOCH_MOST).unwrap_err().contains("there is no epoch after"));
    }

    #[test]
    fn epochs_go_forward_by_small_steps() {
        assert!(step(0, EPOCH_MOST).is_ok() && step(5, 5).is_ok() && step(5, 6).is_ok());
        assert!(step(5, 4).unwrap_err().contains("has acted upon 5; order something anew"));
        assert!(step(5, 5 + EPOCH_STEP + 1).unwrap_err().contains("no fleet orders so often"));
    }

    #[test]
    fn numbers_of_a_state_have_their_ranges() {
        let sound = FleetState { epoch: 3, expected: vec!["a".to_owned(), "b".to_owned()], ..FleetState::default() };
        assert_eq!(state(&sound), Ok(()));
        let order = |order| FleetState { order, ..sound.clone() };
        let outcome = |epoch, at_ms| {
            let outcome = Outcome { epoch, result: Ended::Done, text: String::new(), at_ms };
            FleetState { outcome: Some(outcome), ..sound.clone() }
        };
        let hosts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (wrong, why) in [
            (FleetState { epoch: u64::MAX, ..sound.clone() }, "says epoch 18446744073709551615"),
            (FleetState { since_ms: u64::MAX, ..sound.clone() }, "says since_ms"),
            (FleetState { flip_at_ms: Some(u64::MAX), ..sound.clone() }, "says flip_at_ms"),
            (outcome(u64::MAX, 0), "says epoch"),
            (outcome(1, u64::MAX), "says outcome.at_ms"),
            (order(Order { at_ms: u64::MAX, ..Order::default() }), "says order.at_ms"),
            (order(Order { lead_ms: u64::MAX, ..Order::default() }), "says order.lead_ms"),
            (order(Order { bake_ms: u64::MAX, ..Order::default() }), "says order.bake_ms"),
            (order(Order { quorum: 101, ..Order::default() }), "says order.quorum = 101, and it is at most 100"),
            (FleetState { expected: hosts(&["b", "a"]), ..sound.clone() }, "`expected`"),
            (FleetState { turn: hosts(&["a/../x"]), ..sound.clone() }, "`turn`"),
        ] {
            let said = state(&wrong).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sound_can_go_on(epoch in any::<u64>(), acted in any::<u64>()) {
            let _ = step(acted, epoch);
            if super::epoch(epoch).is_ok() && let Ok(next) = next(epoch) {
                prop_assert!(next == epoch + 1 && super::epoch(next).is_ok());
            }
        }
    }
}

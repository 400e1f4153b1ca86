//! Properties of the choice of a pool.

use proptest::prelude::*;

use crate::{
    endpoint::Endpoint,
    lanes::{Dialled, FLIP_MAX_MS, FlipWord, Way, choose, frontend_key, lane_of},
};

fn word() -> impl Strategy<Value = FlipWord> {
    let parts = (any::<[u8; 2]>(), any::<[bool; 2]>(), 0..2_u32, any::<Option<(bool, u16)>>());
    parts.prop_map(|(lanes, open, current, flip)| {
        let word = FlipWord::new(lanes, open, current);
        flip.map_or(word, |(to, at)| word.flipping(u32::from(to), u64::from(at)))
    })
}

fn address(bytes: [u8; 4]) -> Endpoint {
    Endpoint::v4(7, u32::from_ne_bytes(bytes), 9000)
}

proptest! {
    #[test]
    fn a_word_keeps_its_parts(lanes: [u8; 2], open: [bool; 2], from in 0..2_u32, to in 0..2_u32, at in 1..=FLIP_MAX_MS) {
        let word = FlipWord::new(lanes, open, from).flipping(to, at);
        prop_assert_eq!([word.lane(0), word.lane(1)], lanes);
        prop_assert_eq!((word.current(at - 1), word.current(at), word.at_ms()), (from, to, at));
        prop_assert_eq!(word.is_armed(at - 1), from != to);
        prop_assert!(!word.is_armed(at));
        for pool in 0..2 {
            prop_assert_eq!(word.is_open(pool, at - 1), open[pool as usize] || pool == from);
            prop_assert_eq!(word.is_open(pool, at), open[pool as usize] || pool == to);
        }
        prop_assert_eq!(word.unknown_zero(), 0);
    }

    /// Settling changes nothing about what is, from the instant of the flip on, and leaves no flip to come.
    #[test]
    fn settled_is_the_same(word in word(), later in 0..1_000_000_u64) {
        let now = word.at_ms() + later;
        let settled = word.settled(now);
        for pool in 0..2 {
            prop_assert_eq!(settled.is_open(pool, now), word.is_open(pool, now));
            prop_assert_eq!(settled.lane(pool), word.lane(pool));
        }
        prop_assert_eq!((settled.current(0), settled.at_ms()), (word.current(now), 0));
    }

    /// Who names a lane gets its pool or the current one; who names none gets the current one; nobody gets a pool that
    /// has not been current, unless he may.
    #[test]
    fn nobody_meets_what_he_may_not(word in word(), lane in 1..=255_u8, worker in 0..2_u32, now in 0..70_000_u64, may: bool) {
        let current = word.current(now);
        prop_assert_eq!(choose(Dialled::Current, word, now, || may), (current, Way::Current));
        for dialled in [Dialled::Lane(lane), Dialled::Worker(worker)] {
            let (pool, way) = choose(dialled, word, now, || may);
            prop_assert!(may || word.is_open(pool, now));
            prop_assert!(pool == current || way == Way::Lane || way == Way::Preview);
            if matches!(way, Way::Lane) {
                prop_assert_eq!(word.lane(pool), lane);
            }
            if way == Way::Preview {
                prop_assert!(may && !word.is_open(pool, now));
            }
        }
    }

    /// One pool, which is what an older daemon has left: nothing is chosen.
    #[test]
    fn without_lanes_all_is_current(lane in 1..=255_u8, now: u64) {
        let none = FlipWord::default();
        prop_assert_eq!(choose(Dialled::Worker(0), none, now, || false), (0, Way::Current));
        prop_assert_eq!(choose(Dialled::Current, none, now, || true), (0, Way::Current));
        prop_assert_eq!(choose(Dialled::Lane(lane), none, now, || false), (0, Way::Stale));
    }

    #[test]
    fn any_bits_are_a_flip_word(bits: u64, now: u64, lane: u8) {
        let word = FlipWord(bits);
        let (pool, _) = choose(Dialled::Lane(lane), word, now, || true);
        prop_assert!(pool < 2);
        let _ = word.settled(now);
    }

    #[test]
    fn a_lane_is_the_last_byte(bytes: [u8; 4], bucket: u8, lane: u8) {
        prop_assert_eq!(lane_of(&address([127, 77, bucket, lane])), lane);
        prop_assert_eq!(frontend_key(&address([127, 77, bucket, lane])), address([127, 77, 0, 0]));
        let is_lane = bytes[..2] == [127, 77];
        prop_assert_eq!(frontend_key(&address(bytes)), if is_lane { address([127, 77, 0, 0]) } else { address(bytes) });
    }
}

#[test]
fn an_ipv6_address_names_no_lane() {
    let bytes = u32::from_ne_bytes([127, 77, 0, 3]);
    for first in [[1, 0, crate::endpoint::MAPPED], [0, 1, crate::endpoint::MAPPED], [0, 0, 0]] {
        let address = Endpoint::v6(7, [first[0], first[1], first[2], bytes], 9000);
        assert_eq!(frontend_key(&address), address);
    }
}

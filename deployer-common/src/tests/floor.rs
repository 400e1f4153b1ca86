//! Properties of the floor.

use super::*;

/// Pools of which few are up, and some draining, more often than by chance.
fn short() -> impl Strategy<Value = Host> {
    let state = prop::sample::select(vec![State::Up, State::Draining, State::Draining, State::Cold, State::Stopping]);
    let word = (state, 0..2000_u64).prop_map(|(state, lease)| WorkerWord::new(state, lease, 0));
    let workers = prop::collection::vec((prop_oneof![word, super::word()], 0..50_u64), 1..=40);
    (workers, 0..20_u64, 0..2000_u64, any::<u32>()).prop_map(|(workers, min_up, now_ms, seed)| {
        let (words, open) = workers.into_iter().unzip();
        Host { words, open, min_up, now_ms, random: Cell::new(seed) }
    })
}

impl Host {
    /// Whether the floor holds: some are up, but fewer than must be.
    fn is_short(&self) -> bool {
        let ups = self.ranks().iter().filter(|rank| **rank == Rank::Up).count() as u64;
        0 < ups && ups < self.min_up
    }
}

fn frontend(host: &Host, nth: Option<prop::sample::Index>) -> Frontend {
    Frontend { service: 0, pool: 0, worker: nth.map_or(NO_WORKER, |nth| nth.index(host.words.len()) as u32) }
}

proptest! {
    /// Who may take a connection is the same as if, below the floor, those that are draining were up.
    #[test]
    fn below_the_floor_who_drains_is_as_good_as_up(
        host in short(), nth in prop::option::of(any::<prop::sample::Index>()), refuse: bool
    ) {
        let frontend = frontend(&host, nth);
        let mut as_if = host.clone();
        let verdict = decide(frontend, service(refuse), &host);
        if host.is_short() {
            for word in &mut as_if.words {
                let is_draining = word.at(host.now_ms) == State::Draining;
                *word = if is_draining { WorkerWord::new(State::Up, 0, 0) } else { *word };
            }
        }
        as_if.min_up = 0;
        let expected = decide(frontend, service(refuse), &as_if);
        prop_assert_eq!(verdict.worker, expected.worker);
        if verdict.worker != NO_WORKER {
            let rank = host.ranks()[verdict.worker as usize];
            prop_assert_eq!(verdict.rank, rank);
            prop_assert_eq!(verdict.floor, host.is_short() && rank == Rank::Draining);
        }
    }

    /// A caller of a draining worker is neither turned away nor sent elsewhere while too few are up, by either policy.
    #[test]
    fn below_the_floor_who_drains_keeps_its_callers(mut host in short(), nth: prop::sample::Index, refuse: bool) {
        let frontend = frontend(&host, Some(nth));
        host.words[frontend.worker as usize] = WorkerWord::new(State::Draining, host.now_ms + 1, 0);
        host.words.push(WorkerWord::new(State::Up, 0, 0));
        host.open.push(0);
        host.min_up = host.words.len() as u64;
        let verdict = decide(frontend, service(refuse), &host);
        prop_assert_eq!(verdict, Verdict { worker: frontend.worker, rank: Rank::Draining, floor: true });
    }

    /// The floor brings nobody back but those that are draining.
    #[test]
    fn the_floor_selects_nobody_else(host in short(), nth in prop::option::of(any::<prop::sample::Index>())) {
        let verdict = decide(frontend(&host, nth), service(false), &host);
        prop_assume!(host.is_short());
        let rank = host.ranks()[verdict.worker as usize];
        prop_assert!(matches!(rank, Rank::Up | Rank::Draining), "{rank:?}");
    }

    /// At the floor or above it, and with nobody up at all, it changes nothing.
    #[test]
    fn enough_are_up(host in short(), nth in prop::option::of(any::<prop::sample::Index>()), refuse: bool) {
        prop_assume!(!host.is_short());
        let frontend = frontend(&host, nth);
        let without = Host { min_up: 0, ..host.clone() };
        let verdict = decide(frontend, service(refuse), &host);
        prop_assert_eq!(verdict, decide(frontend, service(refuse), &without));
        prop_assert!(!verdict.floor);
    }
}

/// All eligible workers get their share of what dials the service address, those that are draining too.
#[test]
fn below_the_floor_all_share_evenly() {
    let states = [State::Up, State::Draining, State::Stopping, State::Draining, State::Cold, State::Up];
    let words: Vec<_> = states.iter().map(|state| WorkerWord::new(*state, 1000, 0)).collect();
    let host = Host { words, open: vec![0; 6], min_up: 3, now_ms: 0, random: Cell::new(7) };
    let mut hits = [0_u32; 6];
    for _ in 0..40_000 {
        let verdict = decide(Frontend { service: 0, pool: 0, worker: NO_WORKER }, service(false), &host);
        assert_eq!(verdict.floor, states[verdict.worker as usize] == State::Draining);
        hits[verdict.worker as usize] += 1;
    }
    assert_eq!((hits[2], hits[4]), (0, 0), "{hits:?}");
    // Binomial: 10,000 each with a standard deviation of 87; 5 of those either way.
    assert!([0, 1, 3, 5].iter().all(|nth| (9_565..=10_435).contains(&hits[*nth])), "{hits:?}");
}

//! Properties of the words and of the decision, over arbitrary tables.

mod floor;
mod lanes;

use std::cell::Cell;

use proptest::prelude::*;

use crate::{
    decide::{Rank, Tables, Verdict, decide, rank},
    layout::{Frontend, NO_WORKER},
    word::{LEASE_MAX_MS, LimitsWord, Mode, Policy, ServiceWord, State, WorkerWord},
};

const STATES: [State; 8] = [
    State::Absent,
    State::Up,
    State::Draining,
    State::Cold,
    State::Down,
    State::Stopping,
    State::Failed,
    State::Stranger,
];

#[derive(Debug, Clone)]
struct Host {
    words: Vec<WorkerWord>,
    open: Vec<u64>,
    min_up: u64,
    now_ms: u64,
    random: Cell<u32>,
}

impl Tables for Host {
    fn members(&self) -> u32 {
        self.words.len() as u32
    }
    fn member(&self, nth: u32) -> u32 {
        nth
    }
    fn word(&self, worker: u32) -> WorkerWord {
        self.words[worker as usize]
    }
    fn open(&self, worker: u32) -> u64 {
        self.open[worker as usize]
    }
    fn min_up(&self) -> u64 {
        self.min_up
    }
    fn now_ms(&self) -> u64 {
        self.now_ms
    }
    fn random(&self) -> u32 {
        self.random.set(self.random.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        self.random.get()
    }
}

impl Host {
    fn ranks(&self) -> Vec<Rank> {
        self.words.iter().map(|word| rank(*word, self.now_ms)).collect()
    }
}

fn word() -> impl Strategy<Value = WorkerWord> {
    (0..STATES.len(), 0..2000_u64, any::<u16>())
        .prop_map(|(state, lease, serial)| WorkerWord::new(STATES[state], lease, serial))
}

fn host() -> impl Strategy<Value = Host> {
    (prop::collection::vec((word(), 0..50_u64), 1..=256), 0..2000_u64, any::<u32>()).prop_map(
        |(workers, now_ms, seed)| {
            let (words, open) = workers.into_iter().unzip();
            Host { words, open, min_up: 1, now_ms, random: Cell::new(seed) }
        },
    )
}

fn service(refuse: bool) -> ServiceWord {
    ServiceWord::new(Mode::Enforce, if refuse { Policy::Refuse } else { Policy::Steer }, 3)
}

proptest! {
    #[test]
    fn worker_word_keeps_its_parts(state in 0..STATES.len(), lease in 0..=LEASE_MAX_MS, serial: u16) {
        let word = WorkerWord::new(STATES[state], lease, serial);
        prop_assert_eq!((word.state(), word.lease_ms(), word.serial()), (STATES[state], lease, serial));
        prop_assert_ne!(word.next(STATES[state], lease), word);
    }

    #[test]
    fn service_word_keeps_its_parts(slot: u16, refuse: bool) {
        let word = ServiceWord::new(Mode::Observe, if refuse { Policy::Refuse } else { Policy::Steer }, slot);
        prop_assert_eq!(word.slot(), u32::from(slot));
        prop_assert_eq!(word.mode(), Mode::Observe);
        prop_assert_eq!(word.policy() == Policy::Refuse, refuse);
    }

    #[test]
    fn limits_word_keeps_its_parts(min_up: u16, cold_limit_ms: u32) {
        let word = LimitsWord::new(min_up, cold_limit_ms);
        prop_assert_eq!((word.min_up(), word.cold_limit_ms()), (u64::from(min_up), u64::from(cold_limit_ms)));
    }

    #[test]
    fn any_bits_are_a_word(bits: u64) {
        let word = WorkerWord(bits);
        let _ = rank(word, word.lease_ms());
        let service = ServiceWord(bits);
        let _ = (service.mode(), service.policy(), service.slot());
    }

    /// The branchless rank says what the state means.
    #[test]
    fn rank_is_by_state(bits: u64, now_ms in 0..2 * LEASE_MAX_MS) {
        let word = WorkerWord(bits);
        let expected = match word.at(now_ms) {
            State::Up => Rank::Up,
            State::Draining => Rank::Draining,
            State::Cold => Rank::Cold,
            State::Absent | State::Down | State::Stopping | State::Failed | State::Stranger => Rank::None,
        };
        prop_assert_eq!(rank(word, now_ms), expected);
    }

    #[test]
    fn a_worker_that_is_up_is_left_alone(host in host(), nth: prop::sample::Index, refuse: bool) {
        let worker = nth.index(host.words.len()) as u32;
        prop_assume!(rank(host.words[worker as usize], host.now_ms) == Rank::Up);
        let verdict = decide(Frontend { service: 0, pool: 0, worker }, service(refuse), &host);
        prop_assert_eq!(verdict, Verdict { worker, rank: Rank::Up, floor: false });
    }

    #[test]
    fn the_best_rank_serves(host in host(), nth in prop::option::of(any::<prop::sample::Index>()), refuse: bool) {
        let worker = nth.map_or(NO_WORKER, |nth| nth.index(host.words.len()) as u32);
        let verdict = decide(Frontend { service: 0, pool: 0, worker }, service(refuse), &host);
        let ranks = host.ranks();
        let best = *ranks.iter().min().expect("at least one");
        let own = if worker == NO_WORKER { Rank::None } else { ranks[worker as usize] };
        if best == Rank::None {
            prop_assert_eq!(verdict, Verdict::EXHAUSTED);
        } else if own == best {
            prop_assert_eq!(verdict, Verdict { worker, rank: best, floor: false });
        } else if refuse && worker != NO_WORKER {
            prop_assert_eq!(verdict, Verdict { worker: NO_WORKER, rank: best, floor: false });
        } else {
            prop_assert_eq!(verdict.rank, best);
            prop_assert_eq!(ranks[verdict.worker as usize], best);
        }
    }

    #[test]
    fn nothing_overrides_stopping_and_failed(host in host(), refuse: bool) {
        let verdict = decide(Frontend { service: 0, pool: 0, worker: NO_WORKER }, service(refuse), &host);
        if verdict.worker != NO_WORKER {
            let state = host.words[verdict.worker as usize].state();
            prop_assert!(!matches!(state, State::Stopping | State::Failed | State::Down | State::Absent | State::Stranger));
        }
    }

    #[test]
    fn the_fullest_of_many_is_never_taken(mut host in host()) {
        prop_assume!(host.words.len() > 1);
        for word in &mut host.words {
            *word = WorkerWord::new(State::Up, 0, 0);
        }
        host.open.fill(1);
        host.open[0] = 2;
        for _ in 0..50 {
            let verdict = decide(Frontend { service: 0, pool: 0, worker: NO_WORKER }, service(false), &host);
            prop_assert_ne!(verdict.worker, 0);
        }
    }
}

#[test]
fn a_lease_runs_out() {
    let word = WorkerWord::new(State::Draining, 1000, 0);
    assert_eq!(word.at(999), State::Draining);
    assert_eq!(word.at(1000), State::Up);
    assert_eq!(WorkerWord::new(State::Stopping, 1000, 0).at(5000), State::Stopping);
}

#[test]
fn equal_workers_share_evenly() {
    let host = Host {
        words: vec![WorkerWord::new(State::Up, 0, 0); 10],
        open: vec![0; 10],
        min_up: 1,
        now_ms: 0,
        random: Cell::new(7),
    };
    let mut hits = [0_u32; 10];
    for _ in 0..100_000 {
        hits[decide(Frontend { service: 0, pool: 0, worker: NO_WORKER }, service(false), &host).worker as usize] += 1;
    }
    // Binomial: 10,000 each with a standard deviation of 95; 5 of those either way.
    assert!(hits.iter().all(|hits| (9_525..=10_475).contains(hits)), "{hits:?}");
}

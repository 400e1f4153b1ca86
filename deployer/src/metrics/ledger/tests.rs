//! A kernel of our own counts, workers are restarted, and daemons come and go.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex as StdMutex},
};

use proptest::prelude::*;

use super::*;
use crate::{config::Config, service::Service, service::manager};

const PLACES: usize = 2;
const BOOT: &str = "a-boot";

/// What the kernel has counted at each place.
type Kernel = Arc<StdMutex<[Figures; PLACES]>>;

/// A daemon over a kernel and a directory; both outlive it.
struct Scene {
    kernel: Kernel,
    dir: tempfile::TempDir,
    services: Services,
    ledger: Ledger,
}

/// Two workers that nobody has asked yet what they run.
fn services() -> Services {
    let text = "[service.web]\nworkers = \"127.0.0.1:8000-8001\"\n\
                manager = { supervisord = \"/s\", program = \"web_{port}\" }\n";
    let config = Config::parse(Path::new("f"), text).unwrap().services.remove("web").unwrap();
    let worker = |(nth, at)| Arc::new(Worker::new(nth as u32, at, "web", 0));
    let workers: Vec<_> = config.members().enumerate().map(worker).collect();
    for worker in &workers {
        worker.enter(Phase::Up, "");
    }
    let manager = manager(&config, &workers);
    let service = Service {
        index: 0,
        config,
        pools: [workers, Vec::new()],
        current: Arc::default(),
        spares: Vec::new(),
        manager,
    };
    BTreeMap::from([("web".to_owned(), Arc::new(service))])
}

fn open(kernel: &Kernel, dir: &Path, boot: &str) -> Ledger {
    let kernel = Arc::clone(kernel);
    Ledger::open(Box::new(move |place, _| kernel.lock().unwrap()[place as usize]), PLACES, dir, boot)
}

impl Scene {
    fn new() -> Self {
        let (kernel, dir, services) = (Kernel::default(), tempfile::tempdir().unwrap(), services());
        let ledger = open(&kernel, dir.path(), BOOT);
        ledger.look(&services);
        Self { kernel, dir, services, ledger }
    }

    fn worker(&self, nth: usize) -> &Arc<Worker> {
        &self.services["web"].workers()[nth]
    }

    fn says(&self, nth: usize, version: &str) {
        self.worker(nth).control().version = Some(version.into());
    }

    fn count(&self, nth: usize, which: Count, more: u64) {
        let figures = &mut self.kernel.lock().unwrap()[nth];
        figures.set(which, figures.get(which) + more);
    }

    /// Connections that are over.
    fn connect(&self, nth: usize, connections: u64) {
        self.count(nth, Count::Direct, connections);
        self.unseen(nth, connections);
    }

    /// The same by a caller for which no hook runs.
    fn unseen(&self, nth: usize, connections: u64) {
        self.count(nth, Count::Established, connections);
        let figures = &mut self.kernel.lock().unwrap()[nth];
        let mut more = Figures::default();
        more.0[LIFETIME] = connections;
        figures.add(&more);
    }

    fn restart(&self, nth: usize, to: &str) {
        let worker = self.worker(nth);
        worker.enter(Phase::Stopping, "");
        self.ledger.stopped(worker);
        worker.enter(Phase::Warming, "");
        self.ledger.look(&self.services);
        self.says(nth, to);
        self.ledger.up(worker);
        worker.enter(Phase::Up, "");
    }

    /// The next daemon, which knows what the journal said.
    fn next(&mut self, boot: &str) {
        let versions: Vec<_> = (0..PLACES).map(|nth| self.worker(nth).control().version.clone()).collect();
        self.services = services();
        self.ledger = open(&self.kernel, self.dir.path(), boot);
        for (nth, version) in versions.into_iter().enumerate() {
            self.worker(nth).control().version = version;
        }
        self.ledger.look(&self.services);
    }

    /// What a page shows: by worker and version.
    fn page(&self) -> BTreeMap<(usize, String), Figures> {
        self.ledger.look(&self.services);
        self.ledger.save();
        let of =
            |nth| self.ledger.versions(self.worker(nth)).into_iter().map(move |(version, it)| ((nth, version), it));
        (0..PLACES).flat_map(of).collect()
    }

    /// The same, of connections let through, established and over.
    fn shown(&self, nth: usize, version: &str) -> Option<[u64; 3]> {
        let figures = self.page().remove(&(nth, version.to_owned()))?;
        Some([figures.get(Count::Direct), figures.get(Count::Established), figures.closed()])
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("metrics.json")
    }
}

/// A place among the lifetimes, after the sum.
const LIFETIME: usize = Count::OWN[1] as usize + 3;

#[test]
fn connections_count_for_the_version_that_took_them() {
    let scene = Scene::new();
    scene.says(0, "v1");
    scene.connect(0, 10);
    scene.restart(0, "v2");
    scene.connect(0, 5);
    assert_eq!(scene.shown(0, "v1"), Some([10, 10, 10]));
    assert_eq!(scene.shown(0, "v2"), Some([5, 5, 5]));
    // Nobody has connected to the other one, which nobody knows.
    assert_eq!((scene.shown(1, "unknown"), scene.page().len()), (Some([0; 3]), 3));
}

#[test]
fn a_version_goes_on_when_it_comes_back_and_the_oldest_goes() {
    let scene = Scene::new();
    scene.says(0, "v1");
    scene.connect(0, 1);
    scene.restart(0, "v2");
    scene.connect(0, 2);
    scene.restart(0, "v1");
    scene.connect(0, 4);
    assert_eq!((scene.shown(0, "v1"), scene.shown(0, "v2")), (Some([5; 3]), Some([2; 3])));
    scene.restart(0, "v3");
    assert_eq!((scene.shown(0, "v3"), scene.shown(0, "v2")), (Some([0; 3]), None));
    // One that got nothing is not kept in place of one that did.
    scene.restart(0, "v4");
    assert_eq!((scene.shown(0, "v4"), scene.shown(0, "v3"), scene.shown(0, "v1")), (Some([0; 3]), None, Some([5; 3])));
}

#[test]
fn what_comes_to_a_cold_one_counts() {
    let scene = Scene::new();
    scene.ledger.stopped(scene.worker(0));
    scene.worker(0).enter(Phase::Warming, "");
    scene.unseen(0, 5);
    scene.connect(0, 2);
    scene.count(0, Count::FallbackCold, 2);
    scene.count(0, Count::Away, 9);
    scene.ledger.up(scene.worker(0));
    assert_eq!(scene.shown(0, "unknown"), Some([2, 7, 7]));
    assert_eq!(scene.page()[&(0, "unknown".to_owned())].get(Count::Away), 9);
}

#[test]
fn a_version_that_becomes_known_has_run_all_along() {
    let scene = Scene::new();
    scene.connect(0, 3);
    scene.says(0, "v1");
    assert_eq!((scene.shown(0, "v1"), scene.page().len()), (Some([3; 3]), 2));
    // A daemon that does not know yet goes on with what it was told before.
    scene.worker(0).control().version = None;
    scene.connect(0, 1);
    assert_eq!(scene.shown(0, "v1"), Some([4; 3]));
}

#[test]
fn the_next_daemon_goes_on() {
    let mut scene = Scene::new();
    scene.says(0, "v1");
    scene.connect(0, 10);
    scene.count(0, Count::ReapedQuiet, 4);
    scene.restart(0, "v2");
    scene.connect(0, 5);
    let before = scene.page();
    // While no daemon runs.
    scene.connect(0, 100);
    scene.kernel.lock().unwrap()[0].set(Count::ReapedQuiet, 0);
    scene.next(BOOT);
    assert_eq!((scene.shown(0, "v1"), scene.shown(0, "v2")), (Some([10; 3]), Some([105; 3])));
    scene.count(0, Count::ReapedQuiet, 3);
    let reaped = |page: &BTreeMap<(usize, String), Figures>, version: &str| {
        page[&(0, version.to_owned())].get(Count::ReapedQuiet)
    };
    assert_eq!((reaped(&before, "v1"), reaped(&scene.page(), "v1"), reaped(&scene.page(), "v2")), (4, 4, 3));
    // Another boot counts from zero.
    scene.next("another");
    assert_eq!((scene.shown(0, "v1"), scene.shown(0, "v2")), (None, Some([0; 3])));
}

#[test]
fn what_was_shown_of_nobodys_version_stays_there() {
    let mut scene = Scene::new();
    (0..2).for_each(|_| {
        scene.connect(0, 1);
        scene.page();
    });
    scene.says(0, "v1");
    scene.next(BOOT);
    assert_eq!(scene.shown(0, "unknown"), Some([2; 3]));
}

#[test]
fn tables_that_are_made_anew_count_from_zero() {
    let mut scene = Scene::new();
    scene.says(0, "v1");
    scene.connect(0, 10);
    scene.connect(1, 1);
    scene.page();
    scene.kernel.lock().unwrap()[0] = Figures::default();
    scene.next(BOOT);
    scene.connect(0, 2);
    assert_eq!((scene.shown(0, "v1"), scene.shown(1, "unknown")), (Some([2; 3]), Some([1; 3])));
}

#[test]
fn who_comes_to_a_place_begins_with_nothing() {
    let mut scene = Scene::new();
    scene.connect(0, 10);
    scene.page();
    scene.ledger.look(&Services::new());
    scene.services = services();
    scene.connect(0, 2);
    assert_eq!(scene.shown(0, "unknown"), Some([2; 3]));
}

#[test]
fn a_file_of_no_use_is_no_reason_not_to_begin() {
    let mut scene = Scene::new();
    scene.connect(0, 10);
    scene.page();
    let good = fs::read(scene.path()).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    let with = |from: &str, to: &str| text.replacen(from, to, 1).into_bytes();
    let all_of_it = with("\"now\":[10,", "\"now\":[11,");
    let cases: [&[u8]; 7] = [
        b"",
        &good[..good.len() / 2],
        b"\xff\xfe",
        &with("\"format\":1", "\"format\":2"),
        &with("\"place\":0", "\"place\":4711"),
        &with("\"last\":[", "\"last\":[1,"),
        &all_of_it,
    ];
    assert!(text.contains("\"now\":[10,"), "{text}");
    for bytes in cases {
        fs::write(scene.path(), bytes).unwrap();
        scene.next(BOOT);
        scene.connect(0, 1);
        assert_eq!(scene.shown(0, "unknown"), Some([1; 3]), "{}", String::from_utf8_lossy(bytes));
    }
    fs::remove_file(scene.path()).unwrap();
    fs::create_dir(scene.path()).unwrap();
    scene.next(BOOT);
    scene.connect(0, 2);
    // Nor is one that cannot be written.
    assert_eq!(scene.shown(0, "unknown"), Some([2; 3]));
    fs::remove_dir(scene.path()).unwrap();
    scene.page();
    scene.next(BOOT);
    assert_eq!(scene.shown(0, "unknown"), Some([2; 3]));
}

/// What may happen to a worker, or to all.
#[derive(Debug, Clone)]
enum Step {
    Connect(usize, u64),
    Divert(usize, u64),
    Restart(usize, u8),
    /// It was restarted by somebody, and says so later.
    Says(usize, u8),
    Look,
    Page,
    /// Another daemon, with what the file had at the last page or at some write after that.
    Next,
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    let nth = || 0..PLACES;
    prop_oneof![
        4 => (nth(), 1..50_u64).prop_map(|(nth, more)| Step::Connect(nth, more)),
        1 => (nth(), 1..50_u64).prop_map(|(nth, more)| Step::Divert(nth, more)),
        3 => (nth(), 0..3_u8).prop_map(|(nth, to)| Step::Restart(nth, to)),
        1 => (nth(), 0..3_u8).prop_map(|(nth, to)| Step::Says(nth, to)),
        1 => Just(Step::Look),
        3 => Just(Step::Page),
        2 => Just(Step::Next),
        1 => Just(Step::Lose),
    ]
}

impl Scene {
    fn play(&mut self, step: &Step) {
        match step {
            Step::Connect(nth, more) => self.connect(*nth, *more),
            Step::Divert(nth, more) => self.count(*nth, Count::Away, *more),
            Step::Restart(nth, to) => self.restart(*nth, &format!("v{to}")),
            Step::Says(nth, to) => self.says(*nth, &format!("v{to}")),
            Step::Look => self.ledger.look(&self.services),
            Step::Page => drop(self.page()),
            Step::Next => self.next(BOOT),
            Step::Lose => {
                // It may not have been written yet.
                let _ = fs::remove_file(self.path());
                self.next(BOOT);
            }
        }
    }

    /// All accounts of a worker.
    fn sum(&self, nth: usize) -> Figures {
        let mut sum = Figures::default();
        self.page().iter().filter(|((of, _), _)| *of == nth).for_each(|(_, figures)| sum.add(figures));
        sum
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_counted_twice_and_no_series_goes_back(steps in prop::collection::vec(step(), 1..60)) {
        let mut scene = Scene::new();
        let mut shown = BTreeMap::<(usize, String), Figures>::new();
        for step in &steps {
            scene.play(step);
            if matches!(step, Step::Lose) {
                shown.clear();
            }
            // One that has been dropped may begin anew.
            let kept = |nth: usize| scene.ledger.versions(scene.worker(nth)).into_iter().map(|(version, _)| version);
            shown.retain(|(nth, version), _| kept(*nth).any(|kept| kept == *version));
            if matches!(step, Step::Page | Step::Lose | Step::Next) {
                let page = scene.page();
                for (name, figures) in &page {
                    let before = shown.get(name).copied().unwrap_or_default();
                    prop_assert!(figures.since(&before).is_some(), "{name:?} after {step:?}");
                }
                for nth in 0..PLACES {
                    prop_assert!(page.keys().filter(|(of, _)| *of == nth).count() <= 2);
                    let kernel = scene.kernel.lock().unwrap()[nth];
                    prop_assert!(kernel.since(&scene.sum(nth)).is_some(), "worker {nth} after {step:?}");
                }
                shown = page;
            }
        }
    }

    /// Of two versions nothing is dropped.
    #[test]
    fn all_is_counted(
        steps in prop::collection::vec((0..PLACES, 1..50_u64, any::<bool>()), 1..30),
        is_killed in any::<bool>(),
    ) {
        let mut scene = Scene::new();
        (0..PLACES).for_each(|nth| scene.says(nth, "v1"));
        let mut is_new = [false; PLACES];
        for (nth, connections, restart) in steps {
            scene.connect(nth, connections);
            if restart {
                is_new[nth] ^= true;
                scene.restart(nth, if is_new[nth] { "v2" } else { "v1" });
            }
            if is_killed {
                scene.page();
                scene.next(BOOT);
            }
        }
        for nth in 0..PLACES {
            let (sum, kernel) = (scene.sum(nth), scene.kernel.lock().unwrap()[nth]);
            prop_assert_eq!(sum.get(Count::Direct), kernel.get(Count::Direct));
            prop_assert_eq!(sum.get(Count::Established), kernel.get(Count::Established));
            prop_assert_eq!(sum.closed(), kernel.closed());
        }
    }
}

//! A kernel of our own counts, and time passes when we say so.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{meter::Meter, *};
use crate::{
    api::{Phase, Window},
    config::Config,
    service::manager,
};

/// Counters that only grow, unless a test says otherwise.
#[derive(Default)]
struct Fake {
    workers: Mutex<BTreeMap<u32, Tally>>,
    exhausted: Mutex<u64>,
}

impl Source for Fake {
    fn worker(&self, index: u32) -> Tally {
        self.workers.lock().unwrap().get(&index).cloned().unwrap_or_default()
    }

    fn exhausted(&self, _: u32) -> u64 {
        *self.exhausted.lock().unwrap()
    }
}

impl Fake {
    fn add(&self, worker: u32, more: Tally) {
        self.workers.lock().unwrap().entry(worker).or_default().add(more);
    }

    /// Connections of 5 ms.
    fn connect(&self, worker: u32, connections: u64) {
        self.add(worker, Tally { connections, lifetimes: BTreeMap::from([(5_120, connections)]), ..Tally::default() });
    }
}

/// Two workers that run v1.
fn service() -> Service {
    let text = "[service.web]\nworkers = \"127.0.0.1:8000-8001\"\n\
                manager = { supervisord = \"/s\", program = \"web_{port}\" }\n";
    let config = Config::parse(Path::new("f"), text).unwrap().services.remove("web").unwrap();
    let worker = |(nth, at)| Arc::new(Worker::new(nth as u32, at, "web", 0));
    let workers: Vec<_> = config.members().enumerate().map(worker).collect();
    for worker in &workers {
        worker.enter(Phase::Up, "");
        worker.control().version = Some("v1".into());
    }
    let manager = manager(&config, &workers);
    Service { index: 0, config, pools: [workers, Vec::new()], current: Arc::default(), spares: Vec::new(), manager }
}

/// A meter, the seconds that have passed, and what it looks at.
struct Scene {
    fake: Fake,
    service: Service,
    meter: Meter,
    begun: Instant,
    seconds: u64,
}

impl Scene {
    fn new() -> Self {
        let (fake, service, begun) = (Fake::default(), service(), Instant::now());
        // Counted before anybody looked.
        fake.connect(0, 1000);
        let mut meter = Meter::new(begun);
        meter.tick(&fake, &service, begun);
        Self { fake, service, meter, begun, seconds: 0 }
    }

    fn now(&self) -> Instant {
        self.begun + Duration::from_secs(self.seconds)
    }

    fn tick(&mut self, seconds: u64) -> bool {
        let ticks = (0..seconds).map(|_| {
            self.seconds += 1;
            let now = self.begun + Duration::from_secs(self.seconds);
            self.meter.tick(&self.fake, &self.service, now)
        });
        ticks.fold(false, |any, is| any | is)
    }

    fn begin(&mut self, roll: &str) -> Option<Kept> {
        let now = self.now();
        self.meter.begin(&self.fake, &self.service, now, (roll, Some("v1".to_owned())))
    }

    fn end(&mut self) {
        let now = self.now();
        self.meter.end(&self.fake, &self.service, now, 1);
    }

    /// A restart; the kernel counts no connection of the daemon's own.
    fn restart(&mut self, nth: u32, to: &str) {
        let worker = &self.service.workers()[nth as usize];
        self.meter.stopped(&self.fake, worker);
        worker.enter(Phase::Warming, "");
        self.seconds += 1;
        self.meter.tick(&self.fake, &self.service, self.begun + Duration::from_secs(self.seconds));
        worker.control().version = Some(to.into());
        self.meter.up(&self.fake, worker);
        worker.enter(Phase::Up, "");
    }

    fn kept(&self) -> Kept {
        self.meter.kept().unwrap()
    }
}

/// Connections by version.
fn connections(window: &Window) -> BTreeMap<&str, u64> {
    window.versions.iter().map(|tally| (tally.version.as_deref().unwrap_or("-"), tally.connections)).collect()
}

#[test]
fn connections_go_to_the_version_that_took_them() {
    let mut scene = Scene::new();
    scene.fake.connect(0, 3);
    scene.tick(2);
    scene.fake.connect(1, 4);
    scene.begin("web-1");
    scene.fake.connect(0, 10);
    scene.fake.connect(1, 20);
    scene.restart(0, "v2");
    scene.fake.connect(0, 100);
    scene.fake.connect(1, 200);
    scene.restart(1, "v2");
    scene.fake.connect(1, 1000);
    scene.end();
    scene.fake.connect(0, 7);
    scene.tick(3);
    let kept = scene.kept();
    assert_eq!(connections(&kept.before), [("v1", 7)].into());
    assert_eq!(connections(&kept.during), [("v1", 230), ("v2", 1100)].into());
    assert_eq!(connections(&kept.after), [("v2", 7)].into());
    assert_eq!([kept.before.seconds, kept.during.seconds, kept.after.seconds], [2.0, 2.0, 3.0]);
    let lifetimes: u64 = kept.during.versions.iter().flat_map(|tally| tally.lifetimes.values()).sum();
    assert_eq!(lifetimes, 1330);
}

#[test]
fn what_comes_while_a_worker_is_warmed_goes_to_what_it_then_runs() {
    let mut scene = Scene::new();
    scene.begin("web-1");
    let worker = Arc::clone(&scene.service.workers()[0]);
    scene.meter.stopped(&scene.fake, &worker);
    worker.enter(Phase::Warming, "");
    scene.fake.add(0, Tally { connections: 2, to_cold: 2, fallback_cold: 2, late: 1, failed: 3, ..Tally::default() });
    scene.tick(1);
    worker.control().version = Some("v2".into());
    scene.meter.up(&scene.fake, &worker);
    let during = scene.kept().during;
    let expected = Tally {
        version: Some("v2".to_owned()),
        connections: 2,
        to_cold: 2,
        fallback_cold: 2,
        late: 1,
        failed: 3,
        ..Tally::default()
    };
    assert_eq!(during.versions, [expected]);
}

/// A worker that failed is warmed by an operator, long after.
#[test]
fn what_a_worker_out_has_met_is_told_at_the_end() {
    let mut scene = Scene::new();
    scene.begin("web-1");
    let worker = Arc::clone(&scene.service.workers()[0]);
    scene.meter.stopped(&scene.fake, &worker);
    worker.enter(Phase::Failed, "");
    scene.fake.add(0, Tally { connections: 9, late: 1, ..Tally::default() });
    scene.tick(5);
    scene.end();
    assert_eq!(scene.kept().during.proof().late, 1);
    worker.enter(Phase::Up, "enabled by hand");
    scene.tick(1);
    scene.fake.connect(0, 8);
    scene.tick(1);
    let kept = scene.kept();
    assert_eq!((connections(&kept.during), connections(&kept.after)), ([("v1", 9)].into(), [("v1", 8)].into()));
}

#[test]
fn before_is_a_minute_and_after_too() {
    let mut scene = Scene::new();
    for _ in 0..200 {
        scene.fake.connect(0, 1);
        scene.tick(1);
    }
    scene.begin("web-1");
    assert_eq!((scene.kept().before.seconds, connections(&scene.kept().before)), (60.0, [("v1", 60)].into()));
    scene.tick(100);
    scene.end();
    assert!(!scene.tick(59));
    assert!(scene.tick(1));
    assert!(scene.kept().complete);
    assert_eq!(scene.kept().after.seconds, 60.0);
}

#[test]
fn a_roll_ends_the_report_of_the_one_before() {
    let mut scene = Scene::new();
    scene.tick(5);
    assert_eq!(scene.begin("web-1"), None);
    scene.tick(5);
    scene.end();
    scene.fake.connect(0, 1);
    scene.tick(9);
    scene.fake.connect(0, 2);
    let former = scene.begin("web-2").unwrap();
    assert!(former.complete && former.roll == "web-1");
    assert_eq!((former.after.seconds, connections(&former.after)), (9.0, [("v1", 3)].into()));
    // Since the end of the other.
    assert_eq!((scene.kept().before.seconds, connections(&scene.kept().before)), (9.0, [("v1", 3)].into()));
}

#[test]
fn counters_may_begin_anew() {
    let mut scene = Scene::new();
    scene.begin("web-1");
    *scene.fake.exhausted.lock().unwrap() = 5;
    scene.tick(1);
    scene.fake.workers.lock().unwrap().clear();
    *scene.fake.exhausted.lock().unwrap() = 2;
    scene.fake.connect(0, 3);
    scene.tick(1);
    let during = scene.kept().during;
    assert_eq!((connections(&during), during.exhausted), ([("v1", 3)].into(), 7));
}

fn shelf() -> (tempfile::TempDir, Shelf) {
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(dir.path().join("rolls"));
    (dir, shelf)
}

/// A daemon ends, with one worker in hand and another up; connections come; the next goes on.
#[test]
fn another_daemon_misses_nothing() {
    let (_dir, shelf) = shelf();
    let mut scene = Scene::new();
    scene.begin("web-1");
    scene.fake.connect(1, 10);
    let worker = Arc::clone(&scene.service.workers()[0]);
    scene.meter.stopped(&scene.fake, &worker);
    scene.kept().write(&shelf, 1_000, false).unwrap();
    scene.fake.connect(1, 20);
    // The next daemon does not know yet what runs.
    worker.control().version = None;
    scene.service.workers()[1].control().version = None;
    worker.enter(Phase::Warming, "");
    let now = scene.now();
    scene.meter = Meter::new(now);
    let kept = Kept::read(&shelf, "web-1").unwrap();
    scene.meter.resume(kept, &scene.service, 7.0);
    scene.meter.tick(&scene.fake, &scene.service, now);
    worker.control().version = Some("v2".into());
    scene.meter.up(&scene.fake, &worker);
    worker.enter(Phase::Up, "");
    scene.fake.connect(0, 100);
    scene.tick(1);
    let kept = scene.kept();
    assert_eq!(connections(&kept.during), [("v1", 30), ("v2", 100)].into());
    assert_eq!((kept.during.seconds, kept.restarts), (8.0, 1));
}

/// The same through all of it, with a roll that had ended.
#[test]
fn reports_are_kept_and_taken_up() {
    let (_dir, shelf) = shelf();
    let fake = Arc::new(Fake::default());
    let services = Services::from([("web".to_owned(), Arc::new(service()))]);
    let web = &services["web"];
    let first = Meters::new(Arc::clone(&fake) as Arc<dyn Source>, shelf.clone());
    first.start(&services, &[]);
    fake.connect(0, 1);
    first.begin(web, "web-1");
    fake.connect(0, 2);
    first.end(web);
    fake.connect(0, 4);
    let left = Left { roll: "web-1".to_owned(), service: "web".to_owned(), runs: false };
    let second = Meters::new(Arc::clone(&fake) as Arc<dyn Source>, shelf.clone());
    second.start(&services, &[left]);
    fake.connect(0, 8);
    let kept = second.report(Some(web), "web-1").unwrap();
    let all = [&kept.before, &kept.during, &kept.after].map(|window| connections(window).into_values().sum::<u64>());
    assert_eq!((all, kept.restarts, kept.complete), ([1, 2, 12], 1, false));
    second.begin(web, "web-2");
    let kept = second.report(Some(web), "web-1").unwrap();
    assert!(kept.complete);
    assert!(matches!(second.report(Some(web), "web-3"), Err(ReadError::Missing { .. })));
    assert_eq!(second.total(web), Proof::default());
    shelf.remove("web-1");
    assert!(shelf.disk().flush_blocking(Duration::from_secs(5)));
    assert!(!shelf.report_path("web-1").exists());
}

#[test]
fn a_report_that_was_lost_is_said_to_be() {
    let (_dir, shelf) = shelf();
    let fake = Arc::new(Fake::default());
    let services = Services::from([("web".to_owned(), Arc::new(service()))]);
    let meters = Meters::new(Arc::clone(&fake) as Arc<dyn Source>, shelf.clone());
    let left = Left { roll: "web-1".to_owned(), service: "web".to_owned(), runs: true };
    meters.start(&services, &[left]);
    fake.connect(0, 8);
    let kept = meters.report(services.get("web").map(|web| &**web), "web-1").unwrap();
    assert_eq!(connections(&kept.during), [("v1", 8)].into());
    assert!(kept.missing.is_some_and(|why| why.contains("web-1.report.json")));
}

#[test]
fn damaged_reports_are_errors() {
    let (_dir, shelf) = shelf();
    let mut scene = Scene::new();
    scene.begin("web-1");
    scene.fake.connect(0, 3);
    scene.tick(1);
    scene.kept().write(&shelf, 1, true).unwrap();
    let good = shelf.report("web-1").unwrap();
    let whole = String::from_utf8(good.clone()).unwrap();
    for (bytes, why) in [
        (Vec::new(), "it is empty"),
        (good[..good.len() / 2].to_vec(), "cut short"),
        (b"nonsense".to_vec(), "not understood"),
        (b"{\"format\":1}".to_vec(), "not understood"),
        (whole.replace("\"format\":1", "\"format\":2").into_bytes(), "in format 2"),
        (whole.replace("web-1", "web-2").into_bytes(), "of roll `web-2`"),
        (whole.replace("\"connections\":3", "\"connections\":99999999999999999").into_bytes(), "more connections"),
        (whole.replace("\"seconds\":1.0", "\"seconds\":-1.0").into_bytes(), "a time"),
    ] {
        shelf.keep_report("web-1", &bytes, false).unwrap();
        let error = Kept::read(&shelf, "web-1").unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("web-1.report.json"), "{error}");
    }
}

#[test]
fn lifetimes_are_summed_up() {
    let lifetimes = BTreeMap::from([(5_120, 990), (8_388_608, 10)]);
    let window = Window { versions: vec![Tally { lifetimes, ..Tally::default() }], ..Window::default() };
    let latency = window.shown(None).versions[0].latency.unwrap();
    assert!((5_120..6_144).contains(&latency.p50_us) && latency.p99_us >= 8_388_608, "{latency:?}");
    assert!(latency.max_us >= 8_388_608, "{latency:?}");
    assert_eq!(Window { versions: vec![Tally::default()], ..Window::default() }.shown(None).versions[0].latency, None);
}

#[test]
fn versions_stand_in_the_order_of_the_roll() {
    let named = |version: Option<&str>| Tally { version: version.map(str::to_owned), ..Tally::default() };
    let versions = [None, Some("v1"), Some("v2"), Some("v9")].map(named).to_vec();
    let shown = Window { versions, ..Window::default() }.shown(Some("v9"));
    let order: Vec<_> = shown.versions.iter().map(|tally| tally.version.as_deref()).collect();
    assert_eq!(order, [Some("v9"), Some("v1"), Some("v2"), None]);
}

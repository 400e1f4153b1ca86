//! Deploys that are a fleet's, whose agent asks for the same until it is done, and whose daemon ends at any point.

use super::*;
use crate::{
    journal::{FleetEnd, FleetMemory},
    roll::{
        machine::{Deploy, FleetPart},
        orders::Order,
    },
};

const FLEET: FleetPart = FleetPart { epoch: 7, lane: 9 };
/// An hour.
const FAR_MS: u64 = 3_600_000;

/// What the agent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    /// A flip, and the end of the bake.
    Through,
    /// A flip, the way back, and its end.
    Back,
    /// A stop while it holds.
    Stop,
    /// A flip that is far, and a stop once it is armed.
    TakeBack,
    /// Nothing.
    Silent,
    /// A flip, and nothing after that.
    Bake,
    /// A flip that is near, and far by the kernel's clock, as if the time of day had been set since; the end of the bake.
    Stepped,
}

/// Two pools: the machine's workers, and what are spares elsewhere.
fn two_pools(sim: &Arc<Sim>, dir: &Path) -> Arc<Service> {
    let (last, second) = (8000 + WORKERS - 1, 8000 + WORKERS);
    let text = format!(
        "[daemon]\nstate = {dir:?}\n[service.web]\nworkers = \"127.0.0.1:8000-{last}\"\n\
         deploy = {{ second = \"127.0.0.1:{second}-{}\" }}\n\
         manager = {{ supervisord = \"/s\", program = \"web_{{port}}\" }}\n",
        second + SPARES - 1
    );
    let config = Config::parse(Path::new("f"), &text).unwrap().services.remove("web").unwrap();
    let members = config.members().enumerate();
    let mut first: Vec<_> = members.map(|(nth, at)| Arc::new(Worker::new(nth as u32, at, "web", 0))).collect();
    let second = first.split_off(WORKERS);
    let manager = Box::new(SimManager(Arc::clone(sim)));
    let service =
        Service { index: 0, config, pools: [first, second], current: Arc::default(), spares: Vec::new(), manager };
    service.set_current(sim.flip(&service).current(host::now_ms()));
    Arc::new(service)
}

fn deploy() -> Plan {
    let old = (0..WORKERS).collect();
    let deploy = Deploy { old, batch: 1, bake_ms: 1, fleet: Some(FLEET), ..Deploy::default() };
    let surge = (WORKERS..WORKERS + SPARES).collect();
    Plan { surge, max_failures: 1, deploy: Some(deploy), ..Plan::default() }
}

/// Asks for what is to be done next, again and again.
async fn agent(script: Script, journal: &Journal, record: &Record, service: &Service, world: &Arc<dyn World>) {
    let mut is_moved = false;
    let back = || Order::Return { why: "ill".to_owned() };
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let found = |state: &State| state.rolls.iter().find(|roll| roll.id == record.id).map(|it| it.machine.clone());
        let Some(machine) = journal.read(found) else { continue };
        let (word, now) = (world.flip(service), host::now_ms());
        let holds = machine.is_holding() && word.is_open(1, now);
        assert!(!holds || word.lane(1) == FLEET.lane, "{script:?}: {word:?}, {machine:?}");
        match script {
            Script::Stop if holds => record.ask_stop("the fleet"),
            Script::TakeBack if holds => record.orders().give(Order::Flip { at_ms: Some(unix_ms() + FAR_MS) }),
            Script::TakeBack if word.is_armed(now) => record.ask_stop("the fleet"),
            Script::Through | Script::Back | Script::Bake if holds => {
                record.orders().give(Order::Flip { at_ms: Some(1) });
            }
            Script::Stepped if holds => record.orders().give(Order::Flip { at_ms: Some(unix_ms() + 1000) }),
            Script::Stepped if word.is_armed(now) && !is_moved => {
                is_moved = true;
                world.publish_flip(service, word.flipping(1, now + FAR_MS));
            }
            Script::Through | Script::Stepped if machine.is_baking() => record.orders().give(Order::End),
            Script::Back if machine.is_baking() => record.orders().give(back()),
            Script::Back if machine.is_turned_back() => record.orders().give(Order::End),
            _ => {}
        }
    }
}

/// One daemon's life; returns how the deploy ended, if it did.
async fn life(sim: &Arc<Sim>, dir: &Path, script: Script, most: Duration) -> Option<Exit> {
    let (service, world) = (two_pools(sim, dir), Arc::clone(sim) as Arc<dyn World>);
    service.members().for_each(|worker| sim.adopt(worker));
    let state = match parse(&sim.written()) {
        Found::State(state) => *state,
        _ => State::new("boot"),
    };
    let shelf = Shelf::new(dir.join("rolls"));
    let former = Former {
        journal: Arc::new(Journal::start(state.clone(), SimDisk::new(sim)).unwrap()),
        shelf: shelf.clone(),
        history: Arc::new(History::open(tempfile::tempdir().unwrap().path()).unwrap()),
        warnings: Vec::new(),
        state,
        boot: String::new(),
        rebooted: false,
    };
    let services = BTreeMap::from([("web".to_owned(), Arc::clone(&service))]);
    let scene = Scene { services: &services, world: &world, lease: LEASE, on_start: OnStart::Resume };
    let mut record = None;
    let work = async {
        let resumed = former.settle(&scene).await.unwrap();
        record = resumed.records.iter().find(|record| record.by == "test").cloned();
        let mut rolls = resumed.rolls;
        if record.is_none() {
            let (id, log) = ("web-1".to_owned(), shelf.log("web-1", 0));
            let new = Arc::new(Record::resumed(id, "web".to_owned(), "test".to_owned(), Vec::new(), Some(log)));
            record = Some(Arc::clone(&new));
            rolls.push(begun(&former, &world, &service, new).await);
        }
        let record = record.clone().unwrap();
        tokio::select! {
            () = async { for roll in rolls { roll.run().await } } => {}
            () = agent(script, &former.journal, &record, &service, &world) => {}
        }
        let _ = former.journal.flush().await;
    };
    tokio::select! {
        () = work => {}
        () = sim.ended() => return None,
        () = tokio::time::sleep(most) => return None,
    }
    record.and_then(|record| record.result())
}

async fn begun(former: &Former, world: &Arc<dyn World>, service: &Arc<Service>, record: Arc<Record>) -> Roll {
    let machine = Machine::new(deploy());
    let to = Some("v2".into());
    let state = entry(&record, service, to.clone(), &machine);
    former.journal.commit(|journal| journal.rolls.push(state)).await.unwrap();
    let (world, journal, service) = (Arc::clone(world), Arc::clone(&former.journal), Arc::clone(service));
    Roll {
        world,
        journal,
        service,
        record,
        lease: LEASE,
        to,
        before: None,
        machine,
        hand: BTreeMap::new(),
        barriers: Default::default(),
    }
}

fn state(sim: &Sim) -> State {
    match parse(&sim.written()) {
        Found::State(state) => *state,
        _ => panic!("nothing is written"),
    }
}

fn begin() -> (Arc<Sim>, tempfile::TempDir) {
    let (sim, dir) = (Sim::new(&[], 0), tempfile::tempdir().unwrap());
    sim.live(None);
    let first: &dyn World = &*sim;
    first.publish_flip(&two_pools(&sim, dir.path()), FlipWord::new([1, 0], [true, false], 0));
    (sim, dir)
}

/// A run over several lives, each ended after so many effects and writes, the last not at all; how many that took.
async fn run(script: Script, lives: Vec<usize>) -> usize {
    let (sim, dir) = begin();
    let most = Duration::from_secs(60);
    for after in &lives {
        sim.live(Some(*after));
        if life(&sim, dir.path(), script, most).await.is_some() {
            break;
        }
    }
    sim.live(None);
    let end = life(&sim, dir.path(), script, most).await;
    let what = format!("{script:?}, lives {lives:?}: {sim:?}");
    assert!(sim.problems().is_empty(), "{what}");
    let expected = match script {
        Script::Through | Script::Stepped => Exit::Done,
        Script::Back => Exit::RolledBack,
        _ => Exit::Stopped,
    };
    assert_eq!(end, Some(expected), "{what}");
    let is_done = end == Some(Exit::Done);
    for (nth, word) in sim.words() {
        let right = if (nth >= WORKERS) == is_done { Word::Up } else { Word::Down };
        assert_eq!((word, sim.runs(nth)), (right, right == Word::Up), "worker {nth}; {what}");
    }
    let word = sim.flip(&two_pools(&sim, dir.path()));
    let left = if is_done { FlipWord::new([0, 9], [false, true], 1) } else { FlipWord::new([1, 0], [true, false], 0) };
    assert_eq!(word, left, "{what}");
    let fleet = state(&sim).services["web"].fleet.clone();
    let Some(FleetMemory { epoch: 7, ended: Some(FleetEnd { epoch: 7, error }) }) = fleet else {
        panic!("{fleet:?}; {what}")
    };
    assert_eq!(error.is_none(), is_done, "{error:?}; {what}");
    sim.ops()
}

#[tokio::test]
async fn a_daemon_may_end_at_any_point() {
    for script in [Script::Through, Script::Back, Script::Stop, Script::TakeBack] {
        let ops = run(script, Vec::new()).await;
        assert!(ops > 6 * SPARES, "{ops}");
        let mut runs = tokio::task::JoinSet::new();
        (0..=ops).for_each(|after| drop(runs.spawn(run(script, vec![after]))));
        (0..ops).step_by(5).for_each(|after| drop(runs.spawn(run(script, vec![after, ops / 2, after / 2]))));
        runs.join_all().await;
    }
}

/// The instant of a flip is one of the time of day, which may be set.
#[tokio::test]
async fn a_flip_that_is_armed_for_another_instant_is_armed_anew() {
    run(Script::Stepped, Vec::new()).await;
}

/// It holds, and bakes, as long as nobody says more, whatever time passes and however many daemons do.
#[tokio::test]
async fn it_waits_until_it_is_told() {
    for script in [Script::Silent, Script::Bake] {
        let (sim, dir) = begin();
        // The first has to come so far.
        for seconds in [3, 1, 1] {
            sim.live(None);
            assert_eq!(life(&sim, dir.path(), script, Duration::from_secs(seconds)).await, None, "{script:?}");
            let state = state(&sim);
            let machine = &state.rolls[0].machine;
            let (word, bakes) = (sim.flip(&two_pools(&sim, dir.path())), script == Script::Bake);
            assert_eq!((machine.is_holding(), machine.is_baking()), (!bakes, bakes), "{machine:?}");
            assert_eq!(word, FlipWord::new([1, 9], [true, true], u32::from(bakes)), "{script:?}");
            assert!((0..WORKERS + SPARES).all(|nth| sim.runs(nth)), "{sim:?}");
        }
    }
}

/// The service has other workers when the next daemon begins: nobody goes on with it.
#[tokio::test]
async fn a_lane_that_was_opened_early_is_closed_for_one_that_cannot_go_on() {
    let (sim, dir) = begin();
    assert_eq!(life(&sim, dir.path(), Script::Silent, Duration::from_secs(3)).await, None);
    let mut left = state(&sim);
    left.rolls[0].workers.pop();
    left.rolls[0].machine = {
        let mut machine = Machine::new(Plan { surge: vec![WORKERS], ..deploy() });
        machine.batch_done(vec![(WORKERS, Outcome::Changed)]);
        machine
    };
    sim.live(None);
    let (service, world) = (two_pools(&sim, dir.path()), Arc::clone(&sim) as Arc<dyn World>);
    let former = Former {
        journal: Arc::new(Journal::start(left.clone(), SimDisk::new(&sim)).unwrap()),
        shelf: Shelf::new(dir.path().join("rolls")),
        history: Arc::new(History::open(dir.path()).unwrap()),
        warnings: Vec::new(),
        state: left,
        boot: String::new(),
        rebooted: false,
    };
    let services = BTreeMap::from([("web".to_owned(), Arc::clone(&service))]);
    let scene = Scene { services: &services, world: &world, lease: LEASE, on_start: OnStart::Resume };
    former.settle(&scene).await.unwrap();
    assert_eq!(world.flip(&service), FlipWord::new([1, 9], [true, false], 0));
    let fleet = former.journal.read(|state| state.services["web"].fleet.clone()).unwrap();
    assert!(fleet.ended.is_some_and(|end| end.epoch == 7 && end.error.is_some()));
}

//! What can be told of tables without any.

use std::path::Path;

use super::*;
use crate::service::manager;

fn config(more: &str) -> config::Service {
    let text = format!(
        "[service.web]\nworkers = \"127.0.0.1:8000-8003\"\n\
         manager = {{ start = [\"a\", \"{{port}}\"], stop = [\"b\", \"{{port}}\"], status = [\"c\", \"{{port}}\"] }}\n{more}\n"
    );
    Config::parse(Path::new("f"), &text).unwrap().services.remove("web").unwrap()
}

/// Places in the tables are numbers of members, from 100 on.
fn service(more: &str) -> Service {
    let config = config(more);
    let members = config.members().enumerate();
    let mut workers: Vec<_> = members.map(|(nth, at)| Arc::new(Worker::new(100 + nth as u32, at, "web", 3))).collect();
    let second = workers.split_off(config.workers.len() + config.spares.len());
    let spares = workers.split_off(config.workers.len());
    let manager = manager(&config, &[]);
    Service { index: 3, config, pools: [workers, second], current: Arc::default(), spares, manager }
}

const TWO: &str = "address = \"127.0.0.1:9000\"\ndeploy.second = \"127.0.0.1:8100-8101\"";

fn rule(id: u64) -> CallerRule {
    CallerRule { kind: 1, place: 2, id }
}

fn places() -> Places {
    Places {
        workers: vec![false; 8],
        services: vec![false; 8],
        bypassed: BTreeSet::new(),
        rules: BTreeMap::new(),
        previewers: BTreeMap::new(),
        remembered: BTreeMap::new(),
        found: Found::default(),
    }
}

#[test]
fn a_slot_has_one_pool_behind_the_other() {
    let slot = |service: &Service| slot(service, &[rule(1)], &[rule(2), rule(3)]).unwrap();
    let two = slot(&service(TWO));
    assert_eq!((two.len, &two.members[..7]), ([4, 2], &[100, 101, 102, 103, 104, 105, 0][..]));
    assert_eq!((two.callers_len, two.previewers_len), (1, 2));
    assert_eq!(two.callers[..4].iter().map(|rule| rule.id).collect::<Vec<_>>(), [1, 2, 3, 0]);
    let one = slot(&service("spare = \"127.0.0.1:8040\""));
    assert_eq!((one.len, one.members[4], one.members[5]), ([5, 0], 104, 0), "spares are of the first");
}

#[test]
fn callers_come_before_who_previews() {
    let service = service(TWO);
    let some = |len: usize| (0..len as u64).map(rule).collect::<Vec<_>>();
    let made = slot(&service, &some(MAX_CALLERS), &some(2)).unwrap();
    assert_eq!((usize::from(made.callers_len), made.previewers_len), (MAX_CALLERS, 0));
    assert!(slot(&service, &some(MAX_CALLERS + 1), &[]).is_err());
}

#[test]
fn lanes_have_the_port_of_the_address() {
    assert_eq!(lanes(&service(TWO)), Some("127.77.0.0:9000".parse().unwrap()));
    assert_eq!(lanes(&service("address = \"127.0.0.1:9000\"")), None, "one pool has none");
    assert_eq!(lanes(&service("deploy.second = \"next\"")), None, "without an address there is no port");
}

#[test]
fn members_are_numbered_pool_by_pool() {
    let service = service(TWO);
    assert_eq!((service.numbers(0), service.numbers(1)), (0..4, 4..6));
    assert_eq!([0, 3, 4, 5].map(|nth| service.pool_of(service.member(nth).unwrap())), [0, 0, 1, 1]);
    service.set_current(1);
    assert_eq!(service.workers().len(), 2);
    assert_eq!(super::super::standby(&service).len(), 4, "the other is looked after, and not started");
}

/// Taken out of a configuration and put in again, a service begins anew: what was current long ago is not.
#[test]
fn what_is_remembered_is_for_the_first_configuration() {
    let mut places = places();
    places.remembered.insert("web".to_owned(), FlipWord::new([5, 6], [true, true], 1));
    places.free(&Gone { services: BTreeSet::new(), workers: BTreeSet::new() });
    assert!(places.remembered.is_empty());
}

//! The record of a roll: its order, its end, and what readers get after a restart of the daemon.

use super::*;

fn record(events: Vec<Event>) -> Record {
    Record::resumed("web-1".to_owned(), "web".to_owned(), "me".to_owned(), events, None)
}

fn some() -> What {
    What::Resumed { text: "goes on".to_owned() }
}

fn end() -> What {
    What::Finished { result: Exit::Done, text: String::new(), changed: 0, failed: Vec::new(), seconds: 0.0 }
}

#[test]
fn nothing_comes_after_the_end() {
    let record = record(Vec::new());
    record.add(end());
    record.ask_stop("me");
    assert!(record.stop_asked());
    assert_eq!((record.result(), record.told().events.len()), (Some(Exit::Done), 1));
}

#[test]
fn it_begins_with_its_beginning() {
    let record = record(Vec::new());
    record.ask_stop("me");
    assert!(record.is_empty() && record.stop_asked());
    let (service, by) = ("web".to_owned(), "me".to_owned());
    record.add(What::Begun { service, to: None, by, batches: Vec::new(), spares: Vec::new() });
    let events: Vec<_> = record.told().events.iter().cloned().collect();
    assert!(matches!(events[0].what, What::Begun { .. }) && matches!(events[1].what, What::StopAsked { .. }));
    assert_eq!((events[0].seq, events[1].seq, events.len()), (0, 1, 2));
}

/// The daemon is killed when the roll's own log has an event, and the history has not.
#[tokio::test]
async fn what_the_history_lacks_is_made_up() {
    let dir = tempfile::tempdir().unwrap();
    let history = Arc::new(History::open(dir.path()).unwrap());
    let (service, by) = ("web".to_owned(), "me".to_owned());
    let begun = What::Begun { service, to: None, by, batches: Vec::new(), spares: Vec::new() };
    let event = |seq, what| Event { seq, time_ms: 1, roll: "web-1".to_owned(), what };
    let (begun, ended) = (event(0, begun), event(1, end()));
    for events in [vec![begun.clone()], vec![begun.clone()], vec![begun.clone(), ended.clone()], vec![begun, ended]] {
        drop(record(events).telling(&history, None));
    }
    history.flush().await;
    let (mut reader, mut text) = (history.reader(0, false), Vec::new());
    while let Some(Ok(lines)) = reader.next().await {
        text.extend(lines);
    }
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("roll-begun") && lines[1].contains("roll-ended"), "{text}");
}

/// Of five events that a client has seen, two were written down before the daemon was killed.
#[tokio::test]
async fn a_reader_who_has_seen_more_hears_the_end() {
    let former = record(Vec::new());
    (0..2).for_each(|_| former.add(some()));
    let events = former.told().events.iter().cloned().collect();
    let record = record(events);
    assert_eq!([0, 1, 2, 5].map(|from| record.go_on(from)), [0, 1, 2, 2]);
    (0..2).for_each(|_| record.add(some()));
    record.add(end());
    for from in [5, 6, 99] {
        let event = record.event(record.go_on(from)).await.unwrap();
        assert_eq!(event.seq, 2, "from {from}");
    }
    assert_eq!(record.go_on(4), 4);
}

#[tokio::test]
async fn one_of_this_daemon_is_not_told_again() {
    let record = record(Vec::new());
    record.add(end());
    for from in [1, 7] {
        assert!(record.event(record.go_on(from)).await.is_none());
    }
}

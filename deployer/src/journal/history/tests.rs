use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{super::disk::Hang, text::TEXT, *};

mod kept;

const WEB: About<'_> = About {
    service: Some("web"),
    worker: Some(SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8000)),
    roll: None,
};

fn phase(history: &History, by: By<'_>, phase: Phase, reason: &str) {
    history.phase(by, WEB, phase, reason);
}

fn lost(history: &History, lines: u64) {
    history.tell(By::Daemon, About::default(), Change::Lost { lines });
}

/// All that is there, read as a client reads it.
async fn all(history: &History, from: u64) -> Vec<Entry> {
    history.flush().await;
    let (mut reader, mut text) = (history.reader(from, false), Vec::new());
    while let Some(Ok(lines)) = reader.next().await {
        text.extend(lines);
    }
    String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn seqs(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.seq).collect()
}

fn file(dir: &Path) -> std::path::PathBuf {
    dir.join("events.ndjson")
}

fn opened() -> (TempDir, History) {
    let dir = tempfile::tempdir().unwrap();
    let history = History::open(dir.path()).unwrap();
    (dir, history)
}

#[tokio::test]
async fn numbers_go_on_and_what_is_known_is_no_news() {
    let (dir, history) = opened();
    history.started("1", 10);
    history.found(By::Daemon, WEB, Phase::Up, "found serving");
    phase(&history, By::Roll("web-1"), Phase::Draining, "");
    phase(&history, By::Roll("web-1"), Phase::Draining, "");
    history.self_test(TestResult::Ok, "");
    history.trouble(&["a".to_owned(), "b".to_owned()]);
    history.bypass(By::Somebody("me"), About::default(), true);
    history.flush().await;
    drop(history);

    let history = History::open(dir.path()).unwrap();
    history.started("2", 11);
    history.found(By::Daemon, WEB, Phase::Draining, "as it was left");
    history.self_test(TestResult::Ok, "");
    history.trouble(&["b".to_owned()]);
    history.bypass(By::Daemon, About::default(), true);
    phase(&history, By::Watch, Phase::Up, "");
    let entries = all(&history, 0).await;
    assert_eq!(seqs(&entries), (0..entries.len() as u64).collect::<Vec<_>>());
    let was = Some("1 (pid 10), which ended without a word".to_owned());
    let news: Vec<_> = entries[7..].iter().map(|entry| entry.change.clone()).collect();
    assert_eq!(
        news,
        [
            Change::Started { version: "2".to_owned(), pid: 11, was },
            Change::Trouble { text: "a".to_owned(), on: false },
            Change::Phase { phase: Phase::Up, was: Some(Phase::Draining), reason: String::new(), reason_was: None },
        ]
    );
    assert_eq!((entries[2].by.as_str(), entries[2].roll.as_deref()), ("roll web-1", Some("web-1")));
}

#[tokio::test]
async fn another_reason_is_told_with_the_one_before() {
    let (_dir, history) = opened();
    phase(&history, By::Watch, Phase::Up, "one");
    phase(&history, By::Watch, Phase::Up, "two");
    let change = Change::Phase {
        phase: Phase::Up,
        was: Some(Phase::Up),
        reason: "two".to_owned(),
        reason_was: Some("one".to_owned()),
    };
    assert_eq!(all(&history, 0).await[1].change, change);
}

/// A worker that never passes its warm-up is warmed again every five seconds, for days.
#[tokio::test]
async fn what_is_tried_again_and_again_is_told_once() {
    let (_dir, history) = opened();
    phase(&history, By::Watch, Phase::Down, "");
    for nth in 0..1000 {
        phase(&history, By::Watch, Phase::Listening, "has started by itself");
        phase(&history, By::Watch, Phase::Warming, "");
        phase(&history, By::Watch, Phase::Listening, &format!("stays cold: {}", nth % 2));
    }
    assert_eq!(all(&history, 0).await.len(), 5);
    phase(&history, By::Watch, Phase::Up, "warm");
    phase(&history, By::Watch, Phase::Warming, "");
    assert_eq!(all(&history, 5).await.len(), 2);
    for nth in 0..1000 {
        phase(&history, By::Watch, Phase::Listening, &format!("another each time: {nth}"));
    }
    assert!(all(&history, 0).await.len() < 30);
}

/// Eight MiB on the disk, one in memory; whoever reads from the beginning gets what is left, in order.
#[tokio::test]
async fn of_the_fleet_what_is_known_is_no_news() {
    let (dir, history) = opened();
    let tell = |history: &History, text: &str| {
        history.fleet_link(Ok("zookeeper a:1/d"));
        history.fleet_phase("web", 7, "go", text);
        history.fleet_host(By::Somebody("me"), "app3", "drained");
    };
    history.fleet_link(Err("no route"));
    history.fleet_link(Err("refused"));
    tell(&history, "at one");
    tell(&history, "at two");
    assert_eq!(all(&history, 0).await.len(), 5, "another reason why there is still none is no news; another try is");
    drop(history);
    let history = History::open(dir.path()).unwrap();
    tell(&history, "at two");
    history.fleet_link(Err("no route"));
    let entries = all(&history, 5).await;
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0].change, Change::FleetLost { why: "no route".to_owned() });
    let of_web: Vec<_> = all(&history, 0).await.into_iter().filter(|entry| entry.service.is_some()).collect();
    assert!(of_web.iter().all(|entry| entry.by == "the fleet"), "{of_web:?}");
}

#[tokio::test]
async fn it_is_bounded() {
    let (dir, history) = opened();
    let text = "x".repeat(TEXT - 1);
    for nth in 0..8000 {
        phase(&history, By::Watch, if nth % 2 == 0 { Phase::Up } else { Phase::Down }, &text);
        if nth % 64 == 0 {
            history.flush().await;
        }
    }
    history.flush().await;
    let lengths = ["events.ndjson", "events.ndjson.1"].map(|name| fs::metadata(dir.path().join(name)).unwrap().len());
    assert!(lengths.iter().all(|length| *length <= 4 << 20) && lengths[1] > 3 << 20, "{lengths:?}");
    assert!(history.0.told().ring.bytes <= RING);
    let entries = all(&history, 0).await;
    let first = entries[0].seq;
    assert!(first > 3000 && first < 7000, "{first}");
    assert_eq!(seqs(&entries), (first..8000).collect::<Vec<_>>());
    assert_eq!(seqs(&all(&history, 7998).await), [7998, 7999]);
    drop(history);
    let again = History::open(dir.path()).unwrap();
    assert_eq!(seqs(&all(&again, 0).await), (first..8000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_torn_line_is_left_out() {
    let (dir, history) = opened();
    (0..3).for_each(|lines| lost(&history, lines));
    history.flush().await;
    drop(history);
    let bytes = fs::read(file(dir.path())).unwrap();
    for cut in 0..=bytes.len() {
        fs::write(file(dir.path()), &bytes[..cut]).unwrap();
        let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count() as u64;
        let history = History::open(dir.path()).unwrap();
        lost(&history, 7);
        let entries = all(&history, 0).await;
        assert_eq!(seqs(&entries), (0..=whole).collect::<Vec<_>>(), "cut at {cut}");
        assert_eq!(entries.last().unwrap().change, Change::Lost { lines: 7 });
        drop(history);
        let again = History::open(dir.path()).unwrap();
        assert_eq!(all(&again, 0).await, entries, "cut at {cut}");
    }
}

/// Nothing can be written for a while: what is young is written later, the rest is counted.
#[tokio::test]
async fn a_full_disk_costs_lines_and_says_so() {
    let (dir, history) = opened();
    fs::create_dir(file(dir.path())).unwrap();
    let text = "x".repeat(TEXT - 1);
    for nth in 0..400 {
        phase(&history, By::Watch, if nth % 2 == 0 { Phase::Up } else { Phase::Down }, &text);
    }
    history.flush().await;
    assert!(history.unwritten().unwrap().contains("events.ndjson cannot be written"));
    // They are read all the same.
    assert_eq!(all(&history, 0).await.len(), 400);
    assert!(history.0.told().backlog.bytes <= BACKLOG);
    fs::remove_dir(file(dir.path())).unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while history.unwritten().is_some() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lost(&history, 0);
    history.flush().await;
    drop(history);
    let again = History::open(dir.path()).unwrap();
    let entries = all(&again, 0).await;
    let told =
        entries.iter().find_map(|entry| if let Change::Lost { lines } = entry.change { Some(lines) } else { None });
    assert_eq!(told, Some(entries[0].seq));
    assert!(entries[0].seq > 200, "{}", entries[0].seq);
}

#[tokio::test]
async fn who_follows_gets_each_once_and_is_sent_away_at_the_end() {
    let (_dir, history) = opened();
    (0..3).for_each(|lines| lost(&history, lines));
    history.flush().await;
    let mut reader = history.reader(1, true);
    let lines =
        |text: Option<Result<Vec<u8>, Hang>>| text.unwrap().unwrap().iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines(reader.next().await), 2);
    let waits = tokio::spawn(async move { (reader.next().await, reader.next().await) });
    lost(&history, 3);
    history.flush().await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    history.dismiss();
    let (next, end) = waits.await.unwrap();
    assert_eq!((lines(next), end), (1, None));
}

/// He has read more than the next daemon knows of: what that tells bears the same numbers, and is news.
#[tokio::test]
async fn who_is_ahead_hears_this_daemon_from_its_first() {
    let (dir, history) = opened();
    (0..3).for_each(|lines| lost(&history, lines));
    history.flush().await;
    drop(history);
    let history = History::open(dir.path()).unwrap();
    (0..2).for_each(|lines| lost(&history, lines));
    assert_eq!(seqs(&all(&history, 99).await), [3, 4]);
    assert_eq!(seqs(&all(&history, 5).await), Vec::<u64>::new());
}

#[tokio::test]
async fn what_is_removed_is_made_anew() {
    let (dir, history) = opened();
    lost(&history, 1);
    history.flush().await;
    fs::remove_file(file(dir.path())).unwrap();
    lost(&history, 2);
    history.flush().await;
    assert_eq!(fs::read_to_string(file(dir.path())).unwrap().lines().count(), 1);
}

/// A drain below the floor, twice: the second is told like the first.
#[tokio::test]
async fn who_is_let_in_no_longer_is_once_the_drain_is_over() {
    let (_dir, history) = opened();
    let let_in = |now: bool| history.let_in(WEB, now.then_some("too few are up"));
    for _ in 0..2 {
        phase(&history, By::Daemon, Phase::Draining, "");
        let_in(true);
        phase(&history, By::Daemon, Phase::Up, "");
    }
    let_in(false);
    let told = all(&history, 0).await;
    let told: Vec<_> = told.iter().filter(|entry| matches!(entry.change, Change::LetIn { .. })).collect();
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|entry| matches!(&entry.change, Change::LetIn { now: Some(_), was: None })));
}

proptest! {
    #[test]
    fn any_bytes_are_read(noise in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (dir, history) = opened();
            (0..3).for_each(|lines| lost(&history, lines));
            history.flush().await;
            drop(history);
            let mut bytes = fs::read(file(dir.path())).unwrap();
            let at = at.index(bytes.len());
            bytes.splice(at..at, noise);
            fs::write(file(dir.path()), &bytes).unwrap();
            let history = History::open(dir.path()).unwrap();
            lost(&history, 9);
            let entries = all(&history, 0).await;
            assert!(seqs(&entries).is_sorted());
            assert_eq!(entries.last().unwrap().change, Change::Lost { lines: 9 });
        });
    }
}

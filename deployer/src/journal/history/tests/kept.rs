//! What is kept of lines that are cut, given up, or read slowly.

use super::{
    super::files::{Files, LINE_MOST},
    *,
};

/// What was told once is known for good, however many lines have come since.
#[tokio::test]
async fn what_is_known_outlives_its_lines() {
    let (dir, history) = opened();
    let (mode, policy) = ("enforce".to_owned(), "steer".to_owned());
    let (workers, spares) = ("127.0.0.1:8000".to_owned(), String::new());
    let service = Configured { mode, policy, min_up: 1, address: None, workers, spares, second: String::new() };
    let other = About::worker("web", "127.0.0.1:8001".parse().unwrap());
    let roll = About { roll: Some("web-1"), ..About::service("web") };
    let begun = || Change::RollBegun { to: None, was: None, workers: 1, batches: 1 };
    let again = |history: &History| {
        history.configured(By::Daemon, &[("web", service.clone())]);
        history.phase(By::Daemon, other, Phase::Draining, "by hand");
        history.let_in(other, Some("too few"));
        history.bypass(By::Daemon, About::default(), true);
        history.bypass(By::Daemon, About::service("web"), true);
        history.trouble(&["a".to_owned()]);
        history.self_test(TestResult::Ok, "fine");
    };
    history.started("1", 10);
    again(&history);
    history.tell(By::Daemon, roll, begun());
    let text = "x".repeat(TEXT - 1);
    for nth in 0..8000 {
        phase(&history, By::Watch, if nth % 2 == 0 { Phase::Up } else { Phase::Down }, &text);
        if nth % 64 == 0 {
            history.flush().await;
        }
    }
    history.flush().await;
    let next = history.0.told().next;
    drop(history);
    let history = History::open(dir.path()).unwrap();
    assert_eq!(history.0.told().next, next);
    again(&history);
    assert!(history.has_roll("web-1") && !history.has_roll("web-2"));
    history.started("2", 11);
    let told = all(&history, next).await;
    let was = Some("1 (pid 10), which ended without a word".to_owned());
    assert_eq!(
        told.iter().map(|entry| &entry.change).collect::<Vec<_>>(),
        [&Change::Started { version: "2".to_owned(), pid: 11, was }]
    );
    drop(history);
    // Without the lines that followed it says nothing of today.
    ["events.ndjson", "events.ndjson.1"].iter().for_each(|name| fs::remove_file(dir.path().join(name)).unwrap());
    let history = History::open(dir.path()).unwrap();
    assert!(!history.has_roll("web-1"));
}

/// Whatever a text holds, the line can be read by the next daemon.
#[tokio::test]
async fn long_texts_are_cut() {
    let (dir, history) = opened();
    let long = "\u{1}".repeat(200 << 10);
    history.tell(By::Hangup, About::default(), Change::Reloaded { error: Some(long.clone()) });
    let (which, argv) = ("switch".to_owned(), vec![long.clone(); 100]);
    history.tell(By::Daemon, WEB, Change::RollCommand { which, argv, error: Some(long.clone()) });
    history.tell(By::Kernel, WEB, Change::ProcessEnded { text: long.clone(), cut: 1, callers: vec![long; 8] });
    let entries = all(&history, 0).await;
    drop(history);
    let text = fs::read_to_string(file(dir.path())).unwrap();
    assert!(text.lines().all(|line| (line.len() as u64) < LINE_MOST));
    assert_eq!(all(&History::open(dir.path()).unwrap(), 0).await, entries);
    assert_eq!(seqs(&entries), [0, 1, 2]);
}

/// Somebody has written a long piece of something else behind the lines, which stay.
#[tokio::test]
async fn a_long_foreign_tail_costs_no_lines() {
    let (dir, history) = opened();
    (0..3).for_each(|lines| lost(&history, lines));
    history.flush().await;
    drop(history);
    let mut bytes = fs::read(file(dir.path())).unwrap();
    bytes.resize(bytes.len() + 2 * LINE_MOST as usize, b'x');
    fs::write(file(dir.path()), &bytes).unwrap();
    let history = History::open(dir.path()).unwrap();
    lost(&history, 3);
    assert_eq!(seqs(&all(&history, 0).await), [0, 1, 2, 3]);
}

/// The disk was full from line 2 to line 5; lines from 4 on are in memory, and in the file.
#[test]
fn a_chunk_ends_before_the_first_line_that_is_not_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let line = |seq: u64| {
        let entry = serde_json::json!({"seq": seq, "time_ms": 1, "by": "me", "event": "lost", "lines": seq});
        format!("{entry}\n")
    };
    fs::write(file(dir.path()), [0, 1, 6, 7].map(line).concat()).unwrap();
    let mut reading = Files::new(dir.path()).open();
    let (chunk, next) = reading.chunk(0, 4, 1 << 20).unwrap();
    assert_eq!((chunk, next), ([0, 1].map(line).concat().into_bytes(), 4));
    // What was read beyond is not missing from what comes next: it has to be opened anew.
    assert!(reading.chunk(4, 8, 1 << 20).is_none());
}

/// Somebody reads so slowly that the files are exchanged twice meanwhile, and memory has only younger lines.
#[tokio::test]
async fn a_slow_reader_misses_no_line_that_is_there() {
    let (_dir, history) = opened();
    let text = "x".repeat(TEXT - 1);
    let mut nth = 0;
    let mut some = async |count: usize| {
        for _ in 0..count {
            phase(&history, By::Watch, if nth % 2 == 0 { Phase::Up } else { Phase::Down }, &text);
            nth += 1;
            if nth % 64 == 0 {
                history.flush().await;
            }
        }
        history.flush().await;
    };
    some(1500).await;
    let mut reader = history.reader(0, true);
    let mut bytes = reader.next().await.unwrap().unwrap();
    let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
    // One rotation: the file that is held becomes the former one, and what follows is in another.
    some(2400).await;
    while lines(&bytes) < 3900 {
        bytes.extend(reader.next().await.unwrap().unwrap());
    }
    let seqs: Vec<_> = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice::<Entry>(line).unwrap().seq)
        .collect();
    assert_eq!(seqs, (0..3900).collect::<Vec<_>>());
}

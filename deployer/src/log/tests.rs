use std::{
    fs::File,
    io::{self, Write},
    sync::{Arc, Mutex},
};

use tracing::{info, subscriber::with_default};

use super::*;

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Kept {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn json(&self) -> impl Subscriber + Send + Sync + use<> {
        let kept = self.clone();
        let builder = tracing_subscriber::fmt().with_writer(move || kept.clone());
        builder.fmt_fields(JsonFields::new()).event_format(Json).finish()
    }

    fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn some() {
    info!(n = 1, "outside");
    let _roll = of_roll("web-1").entered();
    info!(said = "a \"b\"\n", "inside");
    info!(roll = "web-1", "about itself");
    let _again = of_roll("web-1").entered();
    info!("deeper");
}

#[test]
fn text_bears_the_roll_once() {
    let kept = Kept::default();
    let writer = kept.clone();
    let builder = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
    with_default(builder.event_format(Text).finish(), some);
    let text = kept.text();
    let lines: Vec<_> = text.lines().map(|line| line.split_once("  INFO ").unwrap().1).collect();
    let said = r#"inside said="a \"b\"\n" roll=web-1"#;
    assert_eq!(lines, ["outside n=1", said, "about itself roll=\"web-1\"", "deeper roll=web-1"]);
}

#[test]
fn colours_are_for_terminals() {
    let kept = Kept::default();
    let writer = kept.clone();
    let builder = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(true);
    with_default(builder.event_format(Text).finish(), some);
    assert!(kept.text().contains("\x1b[32m INFO\x1b[0m "), "{:?}", kept.text());
}

#[test]
fn json_has_it_on_top() {
    let kept = Kept::default();
    with_default(kept.json(), some);
    let lines = kept.lines();
    assert_eq!(lines[0].get(ROLL), None);
    assert_eq!((&lines[0]["fields"]["message"], &lines[0]["fields"]["n"]), (&"outside".into(), &1.into()));
    assert_eq!((&lines[0]["level"], &lines[0]["target"]), (&"INFO".into(), &"deployer::log::tests".into()));
    for line in &lines[1..] {
        assert_eq!(line[ROLL], "web-1");
        assert_eq!(line["fields"].get(ROLL), None, "{line}");
    }
    assert_eq!(lines[1]["fields"]["said"], "a \"b\"\n");
}

/// A span that a filter has switched off would leave its lines without their roll.
#[test]
fn a_filter_leaves_the_roll() {
    for asked in ["error", "deployer::log::tests=error", "deployer::log::tests=error,deployer=off", "off,[roll]=error"]
    {
        let kept = Kept::default();
        let writer = kept.clone();
        let builder =
            tracing_subscriber::fmt().with_env_filter(filter(Some(asked))).with_writer(move || writer.clone());
        with_default(builder.fmt_fields(JsonFields::new()).event_format(Json).finish(), || {
            let _roll = of_roll("web-1").entered();
            info!("not to be seen");
            tracing::error!("to be seen");
        });
        let rolls: Vec<_> =
            kept.lines().iter().map(|line| line[ROLL].as_str().unwrap_or_default().to_owned()).collect();
        assert_eq!(rolls, ["web-1"], "{asked}");
    }
}

#[test]
fn only_the_journals_own_stream_gets_json() {
    let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let named = |file: &File| {
        let stat = fstat(file).unwrap();
        format!("{}:{}", stat.st_dev, stat.st_ino)
    };
    assert!(is_journal(Some(OsStr::new(&named(&one))), &one));
    assert!(!is_journal(Some(OsStr::new(&named(&one))), &other));
    for nonsense in ["", ":", "8", "1:2:3", "x:y", "-1:-1"] {
        assert!(!is_journal(Some(OsStr::new(nonsense)), &one), "{nonsense}");
    }
    assert!(!is_journal(None, &one));
}

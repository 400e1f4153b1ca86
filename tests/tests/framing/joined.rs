//! Connections that are older than the watch.

use std::time::Duration;

use anyhow::{Result, ensure};
use deployer::framing::{Framing, Kind, What, Why};

use crate::scene::{COMPLETE, Talk, Watch, get, with_server};

const OLDER: Framing = Framing::Unknown(Why::Older);

/// An answer that was under way pauses in the middle: nothing is known until the next request.
#[test]
fn in_the_middle_of_an_answer() -> Result<()> {
    with_server("joined", || {
        for (path, end) in [("/length", "xxxxx"), ("/chunked", "\r\n0\r\n\r\n")] {
            let mut talk = Talk::begin()?;
            talk.exchange()?;
            talk.send(&get(&format!("{path}?pause_ms=2000")))?;
            talk.read_to("xxxxx")?;
            let watch = Watch::start()?;
            ensure!(watch.now(&talk) == Framing::Unwatched);
            let rest = talk.read_to(end)?;
            ensure!(watch.told(&talk, OLDER)? == [OLDER], "after {rest:?}");
            std::thread::sleep(Duration::from_millis(100));
            ensure!(watch.now(&talk) == OLDER);
            talk.send(&get("/length?pause_ms=100"))?;
            let told = watch.told(&talk, COMPLETE)?;
            let (asked, answer) = (Framing::Pending(What::Asked), Framing::Pending(What::Answer));
            ensure!(told == [asked, answer, COMPLETE], "{path}: {told:?}");
        }
        Ok(())
    })
}

/// One that nobody uses stays unwatched, and is known as soon as somebody does, once the worker has had the last word.
#[test]
fn while_it_is_idle() -> Result<()> {
    with_server("idle", || {
        let mut talk = Talk::begin()?;
        talk.exchange()?;
        let watch = Watch::start()?;
        std::thread::sleep(Duration::from_millis(100));
        ensure!(watch.now(&talk) == Framing::Unwatched);
        // Nobody knows what went before: that might be the body of a request that looks like one.
        talk.exchange()?;
        ensure!(watch.told(&talk, OLDER)? == [OLDER]);
        talk.exchange()?;
        watch.told(&talk, COMPLETE)?;
        Ok(())
    })
}

/// Streams that are older are never taken for anything else.
#[test]
fn streams() -> Result<()> {
    with_server("joinstream", || {
        let mut socket = Talk::begin()?;
        socket.send("GET /socket HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
        socket.read_to("\r\n\r\n")?;
        let mut events = Talk::begin()?;
        events.send(&get("/events"))?;
        events.read_to("data: x\n\n")?;
        let watch = Watch::start()?;
        for _ in 0..5 {
            socket.send("\u{1}\u{5}hello")?;
            socket.read_to("hello")?;
            events.read_to("data: x\n\n")?;
        }
        for talk in [&socket, &events] {
            watch.until(talk, OLDER)?;
            ensure!(!matches!(watch.now(talk), Framing::Stream(Kind::Upgraded)));
        }
        Ok(())
    })
}

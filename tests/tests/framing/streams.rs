//! Connections that leave requests and answers behind, and those that end.

use std::time::Duration;

use anyhow::{Result, ensure};
use deployer::framing::{Framing, Kind, What};

use crate::scene::{COMPLETE, Talk, Watch, get, with_server};

#[test]
fn events_and_websockets() -> Result<()> {
    with_server("streams", || {
        let watch = Watch::start()?;
        let (mut events, mut socket) = (Talk::begin()?, Talk::begin()?);
        for talk in [&mut events, &mut socket] {
            talk.exchange()?;
            watch.until(talk, COMPLETE)?;
        }
        events.send(&get("/events"))?;
        events.read_to("data: x\n\n")?;
        watch.until(&events, Framing::Stream(Kind::EventStream))?;
        socket.send("GET /socket HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
        socket.read_to("\r\n\r\n")?;
        watch.until(&socket, Framing::Stream(Kind::WebSocket))?;
        // What goes over it may look like a request, and an answer.
        let looks = [get("/"), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into()].concat();
        for _ in 0..3 {
            socket.send(&looks)?;
            socket.read_to(&looks)?;
            std::thread::sleep(Duration::from_millis(50));
            ensure!(watch.now(&socket) == Framing::Stream(Kind::WebSocket));
            ensure!(watch.now(&events) == Framing::Stream(Kind::EventStream));
        }
        Ok(())
    })
}

/// An answer that ends with the connection is under way until then; a connection that is gone is forgotten.
#[test]
fn until_the_end() -> Result<()> {
    with_server("close", || {
        let watch = Watch::start()?;
        let mut talk = Talk::begin()?;
        talk.send(&get("/close?pause_ms=300"))?;
        watch.told(&talk, Framing::Pending(What::UntilClose))?;
        talk.read_all()?;
        ensure!(watch.told(&talk, Framing::Pending(What::Closing))?.len() == 1);
        let pair = talk.pair;
        drop(talk);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while watch.framing.framing(&pair).framing != Framing::Unwatched {
            ensure!(std::time::Instant::now() < deadline, "it is still known");
            std::thread::sleep(Duration::from_millis(5));
        }
        ensure!(watch.framing.all(pair.worker).is_empty(), "{:?}", watch.framing.all(pair.worker));
        Ok(())
    })
}

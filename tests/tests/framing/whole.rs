//! Connections that are watched from their beginning: each step is told, and none is left out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer::framing::{Framing, What, Why};

use crate::scene::{COMPLETE, Talk, Watch, get, with_server};

const UNUSED: Framing = Framing::Unused { asked: 0, answered: 0 };
const OPENING: Framing = Framing::Pending(What::Opening);
const REQUEST: Framing = Framing::Pending(What::Request);
const ASKED: Framing = Framing::Pending(What::Asked);
const ANSWER: Framing = Framing::Pending(What::Answer);
const GAP: Framing = Framing::Pending(What::Gap);
const CONTINUE: Framing = Framing::Pending(What::Continue);
const PIPELINED: Framing = Framing::Pending(What::Pipelined);

/// Answers that pause in the middle are complete at their last byte, and not before.
#[test]
fn answers_with_pauses() -> Result<()> {
    with_server("pauses", || {
        let watch = Watch::start()?;
        let mut talk = Talk::begin()?;
        ensure!(watch.told(&talk, UNUSED)? == [OPENING, UNUSED]);
        talk.exchange()?;
        watch.told(&talk, COMPLETE)?;
        let long = "x".repeat(3_000_000);
        for (path, end) in [
            ("/length?pause_ms=50", "xxxxxxxxxx"),
            ("/chunked?pause_ms=1000", "\r\n0\r\n\r\n"),
            ("/length?size=3000000&pause_ms=1000", &long),
        ] {
            talk.send(&get(path))?;
            talk.read_to(end)?;
            let mut told = watch.told(&talk, COMPLETE)?;
            // Of many packets, some may come out of order.
            told.retain(|framing| *framing != GAP);
            told.dedup();
            ensure!(told == [ASKED, ANSWER, COMPLETE], "{path}: {told:?}");
        }
        Ok(())
    })
}

/// Requests in parts, with a body, with leave asked for; HEAD; several at once.
#[test]
fn requests_of_all_kinds() -> Result<()> {
    with_server("requests", || {
        let watch = Watch::start()?;
        let mut talk = Talk::begin()?;
        watch.told(&talk, UNUSED)?;
        let pause = || std::thread::sleep(Duration::from_millis(100));
        for part in ["POST /len", "gth HTTP/1.1\r\nContent-Length: 4\r\n", "\r\nab"] {
            talk.send(part)?;
            pause();
            watch.until(&talk, REQUEST).with_context(|| format!("after {part:?}"))?;
        }
        talk.send("cd")?;
        watch.told(&talk, COMPLETE)?;
        talk.read_to("xxxxxxxxxx")?;

        talk.send("POST /length?think_ms=100 HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")?;
        talk.read_to("100 Continue\r\n\r\n")?;
        talk.send("abcd")?;
        let told = watch.told(&talk, COMPLETE)?;
        ensure!(told == [CONTINUE, REQUEST, ASKED, ANSWER, COMPLETE], "{told:?}");
        talk.read_to("xxxxxxxxxx")?;

        talk.send("HEAD /length?size=100000 HTTP/1.1\r\n\r\n")?;
        ensure!(watch.told(&talk, COMPLETE)? == [ASKED, COMPLETE]);
        talk.read_to("\r\n\r\n")?;

        talk.send(&[get("/length?think_ms=200"), get("/length?pause_ms=200")].concat())?;
        let told = watch.told(&talk, COMPLETE)?;
        ensure!(told == [PIPELINED, ASKED, ANSWER, COMPLETE], "{told:?}");
        Ok(())
    })
}

/// The numbers are the bytes' own: they move by what was sent.
#[test]
fn numbers_move_by_what_is_sent() -> Result<()> {
    with_server("numbers", || {
        let watch = Watch::start()?;
        let mut talk = Talk::begin()?;
        let request = get("/length?size=5");
        let mut before = None;
        for _ in 0..50 {
            talk.send(&request)?;
            let answer = talk.read_to("\r\n\r\nxxxxx")?;
            watch.told(&talk, COMPLETE)?;
            let Framing::Complete { asked, answered } = watch.framing.framing(&talk.pair).framing else {
                anyhow::bail!("it was complete");
            };
            if let Some((a, b)) = before {
                let moved: (u32, u32) = (asked - a, answered - b);
                ensure!(moved == (request.len() as u32, answer.len() as u32), "{moved:?}");
            }
            before = Some((asked, answered));
        }
        ensure!(watch.framing.all(talk.pair.worker).len() == 1);
        Ok(())
    })
}

/// What is no HTTP/1 is nothing that anybody could judge.
#[test]
fn other_protocols() -> Result<()> {
    with_server("others", || {
        let watch = Watch::start()?;
        for text in ["\u{16}\u{3}\u{1}\u{2}", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\r\nGET / HTTP/1.1\r\n\r\n"] {
            let mut talk = Talk::begin()?;
            talk.send(text)?;
            watch.told(&talk, Framing::Unknown(Why::NotRequest))?;
        }
        let mut talk = Talk::begin()?;
        talk.send("POST /length HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        watch.told(&talk, Framing::Unknown(Why::Ambiguous))?;
        Ok(())
    })
}

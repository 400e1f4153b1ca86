//! On what ground a kept-alive connection of a worker that is drained may be closed.

use std::time::{Duration, Instant};

use crate::{
    config::POOLED_QUIET,
    framing::{Framing, Kind, Seen, Why},
    kernel::{Answer, Ground},
};

/// How long a connection is left alone on which both ends have said hello and nothing else: its caller may be about to
/// send its first request.
const UNUSED_QUIET: Duration = Duration::from_secs(1);

/// The ground, by what was seen of the connection; `None`: it holds the drain. `quiet_after` is the service's.
///
/// A request or answer of HTTP/1 that is under way is never cut, however long it is silent. Where the framing is unknown,
/// the worker must have had the last word: it might be a request's answer that is waited for. A WebSocket and its like
/// have no last word; TLS has. A connection of which the watch has seen nothing is pooled, or a stream that says something every so
/// often: the socket knows how long it has been quiet. One that was used once since is no different: what looked like a
/// request need not have been one.
pub(super) fn ground(seen: &Seen, now: Instant, quiet_after: Option<Duration>) -> Option<Ground> {
    let quiet = |after, answered| Ground::Quiet { for_ms: milliseconds(after), answered };
    match seen.framing {
        Framing::Complete { asked, answered } => Some(Ground::Complete { asked, answered }),
        Framing::Unused { asked, answered } => {
            (seen.quiet(now) >= UNUSED_QUIET).then_some(Ground::Complete { asked, answered })
        }
        Framing::Unwatched | Framing::Unknown(Why::UsedOnce) => Some(quiet(quiet_after.unwrap_or(POOLED_QUIET), true)),
        Framing::Unknown(_) => Some(quiet(quiet_after?, true)),
        // Under TLS, too, requests are asked and answered: behind the worker's last word none waits.
        Framing::Stream(kind) => Some(quiet(quiet_after?, kind == Kind::Tls)),
        Framing::Pending(_) => None,
    }
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// Why a connection holds a drain: what is known of it, and what the last strike said.
pub(super) fn why(seen: &Seen, answer: Option<Answer>) -> String {
    let framing = match seen.framing {
        Framing::Unknown(why) => format!("its framing is not known: {why}"),
        framing => framing.to_string(),
    };
    match (seen.framing, answer) {
        // That it has not been quiet for long enough goes without saying.
        (_, None | Some(Answer::NotQuiet | Answer::Missing | Answer::Changing | Answer::MovedOn)) => framing,
        (Framing::Pending(_), _) => framing,
        (_, Some(answer)) => format!("{framing}; {answer}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::framing::What;

    fn seen(framing: Framing) -> Seen {
        Seen { framing, last: None, since: Instant::now() }
    }

    /// The ground at once.
    fn ground(seen: &Seen, quiet_after: Option<Duration>) -> Option<Ground> {
        super::ground(seen, seen.since, quiet_after)
    }

    /// The ground after so many seconds of silence.
    fn after(seen: &Seen, seconds: u64, quiet_after: Option<Duration>) -> Option<Ground> {
        super::ground(seen, seen.since + Duration::from_secs(seconds), quiet_after)
    }

    fn quiet(seconds: u32, answered: bool) -> Option<Ground> {
        Some(Ground::Quiet { for_ms: seconds * 1000, answered })
    }

    #[test]
    fn complete_is_enough() {
        let framing = Framing::Complete { asked: 7, answered: u32::MAX };
        assert_eq!(ground(&seen(framing), None), Some(Ground::Complete { asked: 7, answered: u32::MAX }));
    }

    #[test]
    fn what_is_under_way_is_never_cut() {
        for what in [What::Opening, What::Request, What::Continue, What::Asked, What::Answer, What::UntilClose] {
            assert_eq!(ground(&seen(Framing::Pending(what)), Some(Duration::from_secs(1))), None, "{what}");
        }
    }

    #[test]
    fn others_hold_unless_the_service_says_for_how_long() {
        let five = Some(Duration::from_secs(5));
        for framing in [Framing::Stream(Kind::WebSocket), Framing::Stream(Kind::EventStream)] {
            assert_eq!((ground(&seen(framing), None), ground(&seen(framing), five)), (None, quiet(5, false)));
        }
        for framing in [Framing::Unknown(Why::NotRequest), Framing::Stream(Kind::Tls)] {
            assert_eq!((ground(&seen(framing), None), ground(&seen(framing), five)), (None, quiet(5, true)));
        }
    }

    #[test]
    fn a_pooled_connection_is_closed_at_last() {
        let pooled = seen(Framing::Unwatched);
        let five = Some(Duration::from_secs(5));
        assert_eq!((ground(&pooled, None), ground(&pooled, five)), (quiet(45, true), quiet(5, true)));
        let once = seen(Framing::Unknown(Why::UsedOnce));
        assert_eq!((ground(&once, None), ground(&once, five)), (quiet(45, true), quiet(5, true)));
        let unused = seen(Framing::Unused { asked: 3, answered: 4 });
        let bare = Some(Ground::Complete { asked: 3, answered: 4 });
        assert_eq!((ground(&unused, None), after(&unused, 1, None)), (None, bare));
    }

    #[test]
    fn says_why() {
        let stream = seen(Framing::Stream(Kind::WebSocket));
        assert_eq!(why(&stream, None), "a WebSocket");
        let done = seen(Framing::Complete { asked: 1, answered: 1 });
        assert_eq!(why(&done, Some(Answer::Threads)), "answered; its caller has several threads");
        assert_eq!(why(&done, Some(Answer::MovedOn)), "answered");
    }
}

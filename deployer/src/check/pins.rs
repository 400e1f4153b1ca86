//! What outlives the daemon: is there a place for it, and what lies there?

use std::path::Path;

use super::Finding;
use crate::kernel::{Survey, is_bpffs, survey};

pub(super) fn findings(pins: &Path) -> Vec<Finding> {
    let parent = pins.parent().unwrap_or(pins);
    let mut found = vec![mounted(parent, is_bpffs(parent))];
    found.extend(match survey(pins) {
        Ok(survey) => survey.map(|survey| lies(pins, survey)),
        Err(error) => {
            Some(Finding::warn(format!("pins in {}", pins.display()), format!("cannot be looked at: {error}")))
        }
    });
    found
}

fn mounted(parent: &Path, is: bool) -> Finding {
    let shown = parent.display();
    if is {
        return Finding::ok("bpf file system", format!("mounted at {shown}"));
    }
    Finding::ok("bpf file system", format!("none at {shown} yet; the daemon mounts one"))
}

fn lies(pins: &Path, survey: Survey) -> Finding {
    let what = format!("pins in {}", pins.display());
    let Survey { live, held, leftovers } = survey;
    let remove = format!("deployer detach --pins {}", pins.display());
    match (live, held) {
        (true, true) => Finding::ok(what, "a daemon runs, and holds them"),
        (false, true) => Finding::ok(what, "a daemon runs, and has nothing attached"),
        (true, false) => {
            let detail = "left by a daemon that has ended, and steering: the next daemon takes them over";
            Finding::warn(what, detail).fix("to end that run", remove)
        }
        (false, false) if leftovers > 0 => {
            let detail = format!("{leftovers} left by a daemon that died while it was starting or stopping");
            Finding::warn(what, detail).fix("run", remove)
        }
        (false, false) => Finding::ok(what, "nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn tells_what_lies_there() {
        let level = |live, held, leftovers| lies(Path::new("/pins"), Survey { live, held, leftovers }).level;
        assert_eq!(level(true, true, 0), Level::Ok);
        assert_eq!(level(true, false, 0), Level::Warn);
        assert_eq!(level(false, false, 1), Level::Warn);
        assert_eq!(level(false, false, 0), Level::Ok);
    }

    #[test]
    fn says_how_to_remove_it() {
        let shown = lies(Path::new("/pins"), Survey { live: true, held: false, leftovers: 0 }).to_string();
        assert!(shown.contains("deployer detach --pins /pins"), "{shown}");
    }
}

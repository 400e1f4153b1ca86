//! Who is steered: a service's `callers`, as rules for the kernel.
//!
//! An executable is more than the file that has its name now: a load balancer goes on to run the file that an upgrade has
//! replaced, and one in a container runs a file of another mount namespace. Each gets a rule of its own while it runs.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use deployer_common::layout::{CALLER_CGROUP, CALLER_EXECUTABLE, CallerRule, MAX_CALLERS, Unsteered, UnsteeredKey};

use crate::{
    config::Caller,
    kernel::{
        cgroup,
        executables::{self, Running},
    },
};

/// A rule that fits no process: without any rule, every process is steered.
const NONE: CallerRule = CallerRule { kind: 0, place: 0, id: 0 };

/// What the rules of a service's callers are made of: one look at the host.
pub struct Host<'a> {
    /// The root of the cgroup v2 hierarchy.
    pub root: &'a Path,
    /// What every process runs.
    pub running: &'a Running,
    /// The callers of the service that the programs have not steered.
    pub unsteered: &'a [(UnsteeredKey, Unsteered)],
}

/// The rules as of now, and what cannot be made a rule.
#[derive(Debug, Default)]
pub struct Rules {
    /// At least one, at most as many as there is room for.
    pub rules: Vec<CallerRule>,
    /// What an operator must know, in sentences.
    pub trouble: Vec<String>,
}

/// The last rule that each caller had.
#[derive(Debug, Default)]
pub struct Known(Vec<(Caller, CallerRule)>);

impl Known {
    fn last(&self, caller: &Caller) -> Option<CallerRule> {
        self.0.iter().find(|(known, _)| known == caller).map(|(_, rule)| *rule)
    }

    fn note(&mut self, caller: &Caller, rule: CallerRule) {
        match self.0.iter_mut().find(|(known, _)| known == caller) {
            Some((_, last)) => *last = rule,
            None => self.0.push((caller.clone(), rule)),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::Executable(path) => write!(f, "executable {}", path.display()),
        }
    }
}

/// The rules as of now. A cgroup or file that is missing fits no process until it is there: the daemon asks again every
/// second, since a restarted unit gets a new cgroup and an upgraded package a new file under the same name. A look that
/// fails for another reason says nothing about the callers: the last rule stays, and the trouble is told.
#[must_use]
pub fn rules(callers: &[Caller], host: &Host<'_>, known: &mut Known) -> Rules {
    let mut found = Rules::default();
    for caller in callers {
        match rule(caller, host.root) {
            Ok(rule) => {
                known.note(caller, rule);
                found.rules.push(rule);
            }
            Err(error) if is_missing(caller) => tracing::debug!(%caller, %error, "no such caller yet"),
            Err(error) => {
                let kept = known.last(caller);
                let then = if kept.is_some() { "its last rule stays" } else { "its processes are not steered" };
                found.trouble.push(format!(
                    "callers: {caller} cannot be looked up, so {then}: {error}. Next: mend that; the daemon looks again \
                     every second"
                ));
                found.rules.extend(kept);
            }
        }
    }
    let running = callers.iter().flat_map(|caller| of_processes(caller, host));
    for (caller, pid, rule) in running {
        match rule {
            Ok(rule) if found.rules.contains(&rule) => {}
            Ok(rule) if found.rules.len() < MAX_CALLERS => found.rules.push(rule),
            Ok(_) => found.trouble.push(format!(
                "callers: {caller}: process {pid} runs another file of that name, and there is no room for its rule (the \
                 most is {MAX_CALLERS}): its connections are not steered. Next: restart it, or name its cgroup instead"
            )),
            // It has ended since.
            Err(error) => tracing::debug!(%caller, pid, %error, "a process cannot be looked up"),
        }
    }
    if found.rules.is_empty() {
        found.rules.push(NONE);
    }
    found.rules.truncate(MAX_CALLERS);
    found.rules.dedup();
    found
}

fn rule(caller: &Caller, root: &Path) -> std::io::Result<CallerRule> {
    match caller {
        Caller::Cgroup(path) => {
            let found = cgroup::id(root, path)?;
            Ok(CallerRule { kind: CALLER_CGROUP, place: found.depth, id: found.id })
        }
        Caller::Executable(path) => executables::rule(path),
    }
}

fn is_missing(caller: &Caller) -> bool {
    let (Caller::Cgroup(path) | Caller::Executable(path)) = caller;
    path.metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// The rules of the processes that run an executable under its name, whatever file that is. As the programs have seen them
/// where they have (some file systems show user space other numbers than programs see).
fn of_processes<'a>(
    caller: &'a Caller,
    host: &'a Host<'_>,
) -> impl Iterator<Item = (&'a Caller, u32, std::io::Result<CallerRule>)> + 'a {
    let path = match caller {
        Caller::Executable(path) => Some(path.as_path()),
        Caller::Cgroup(_) => None,
    };
    let pids = path.into_iter().flat_map(|path| host.running.of(path));
    pids.flat_map(move |pid| {
        let seen = host.unsteered.iter().filter(move |(key, seen)| seen.pid == pid && key.id != 0);
        let seen = seen.map(|(key, _)| Ok(CallerRule { kind: CALLER_EXECUTABLE, place: key.place, id: key.id }));
        [executables::rule_of(pid)].into_iter().chain(seen).map(move |rule| (caller, pid, rule))
    })
}

/// Which of the processes that a caller means the published rules do not fit, and whether there are any at all.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// Processes that the caller means.
    pub processes: usize,
    /// Those of them that no rule fits.
    pub left_out: Vec<u32>,
}

/// Compares what a caller means with the rules that are published.
#[must_use]
pub fn fit(caller: &Caller, published: &[CallerRule], root: &Path, running: &Running) -> Fit {
    match caller {
        Caller::Executable(path) => {
            let mut fit = Fit::default();
            for pid in running.of(path) {
                let Ok(rule) = executables::rule_of(pid) else { continue };
                fit.processes += 1;
                if !published.contains(&rule) {
                    fit.left_out.push(pid);
                }
            }
            fit
        }
        Caller::Cgroup(path) => {
            let pids = processes_below(path);
            let is_published = rule(caller, root).is_ok_and(|rule| published.contains(&rule));
            Fit { processes: pids.len(), left_out: if is_published { Vec::new() } else { pids } }
        }
    }
}

/// The processes in a cgroup and below it; no more than one of each directory is needed to tell that there are some.
fn processes_below(cgroup: &Path) -> Vec<u32> {
    let (mut found, mut ahead) = (Vec::new(), vec![cgroup.to_owned()]);
    while let Some(dir) = ahead.pop() {
        let text = crate::kernel::host::text(dir.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
        let below = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        ahead.extend(below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
    }
    found
}

/// Whether the published rules steer a process: as the connect hook, which runs below `attached` only, would say.
#[must_use]
pub fn steers(published: &[CallerRule], pid: u32, root: &Path, attached: &Path) -> bool {
    let Some(below) = cgroup::of_process(pid) else { return false };
    let own = root.join(&below);
    if !own.starts_with(attached) {
        return false;
    }
    published.is_empty()
        || published.iter().any(|rule| match rule.kind {
            CALLER_CGROUP => {
                let at: PathBuf = root.components().chain(below.components().take(rule.place as usize)).collect();
                below.components().count() >= rule.place as usize
                    && cgroup::id(root, &at).is_ok_and(|found| found.id == rule.id)
            }
            CALLER_EXECUTABLE => executables::rule_of(pid).is_ok_and(|its| its == *rule),
            _ => false,
        })
}

/// The rules to publish after those in force: what a process that still runs the former file was steered by stays,
/// behind the new, as far as there is room.
#[must_use]
pub fn succeed(before: &[CallerRule], now: &[CallerRule], room: usize) -> Vec<CallerRule> {
    let old = before.iter().filter(|rule| rule.kind != 0 && !now.contains(rule));
    now.iter().chain(old).take(room).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(callers: &[Caller], root: &Path, known: &mut Known) -> Rules {
        let running = Running::look().unwrap();
        rules(callers, &Host { root, running: &running, unsteered: &[] }, known)
    }

    #[test]
    fn what_is_missing_fits_no_process_and_is_no_trouble() {
        let missing = Caller::Executable("/nonexistent".into());
        let found = look(&[missing], Path::new("/sys/fs/cgroup"), &mut Known::default());
        assert_eq!((found.rules, found.trouble), (vec![NONE], Vec::new()));
    }

    #[test]
    fn a_look_that_fails_keeps_the_last_rule_and_says_so() {
        // A directory that is there, and no cgroup.
        let dir = tempfile::tempdir().unwrap();
        let (odd, root) = (Caller::Cgroup(dir.path().to_owned()), Path::new("/sys/fs/cgroup"));
        let mut known = Known::default();
        let found = look(std::slice::from_ref(&odd), root, &mut known);
        assert_eq!(found.rules, [NONE]);
        assert!(found.trouble[0].contains("its processes are not steered"), "{:?}", found.trouble);
        let last = CallerRule { kind: CALLER_CGROUP, place: 1, id: 7 };
        known.note(&odd, last);
        let found = look(std::slice::from_ref(&odd), root, &mut known);
        assert_eq!(found.rules, [last]);
        assert!(found.trouble[0].contains("its last rule stays"), "{:?}", found.trouble);
    }

    #[test]
    fn what_runs_under_a_name_has_a_rule() {
        let own = std::env::current_exe().unwrap();
        let (pid, running) = (std::process::id(), Running::look().unwrap());
        let caller = Caller::Executable(own);
        // The file is replaced; the process runs on.
        let of_process = executables::rule_of(pid).unwrap();
        let fits = fit(&caller, &[of_process], Path::new("/"), &running);
        assert!(fits.processes > 0 && fits.left_out.is_empty(), "{fits:?}");
        let fits = fit(&caller, &[NONE], Path::new("/"), &running);
        assert!(fits.left_out.contains(&pid), "{fits:?}");
        let host = Host { root: Path::new("/"), running: &running, unsteered: &[] };
        assert!(rules(&[caller], &host, &mut Known::default()).rules.contains(&of_process));
    }

    #[test]
    fn the_programs_own_numbers_count_where_they_differ() {
        let own = std::env::current_exe().unwrap();
        let running = Running::look().unwrap();
        let key = UnsteeredKey { place: 5, id: 77, ..UnsteeredKey::default() };
        let seen = Unsteered { pid: std::process::id(), ..Unsteered::default() };
        let host = Host { root: Path::new("/"), running: &running, unsteered: &[(key, seen)] };
        let found = rules(&[Caller::Executable(own)], &host, &mut Known::default());
        assert!(found.rules.iter().any(|rule| (rule.place, rule.id) == (5, 77)), "{found:?}");
        let host = Host { unsteered: &[(key, Unsteered::default())], ..host };
        let own = Caller::Executable(std::env::current_exe().unwrap());
        assert!(rules(&[own], &host, &mut Known::default()).rules.iter().all(|rule| rule.id != 77));
    }
}

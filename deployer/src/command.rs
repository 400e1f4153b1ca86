//! Runs a command of the operator's to its end and keeps what it says.
//!
//! It runs in a session and a cgroup of its own, with an environment that does not depend on how the daemon was started,
//! and as another user where that is configured. One that takes too long is killed with all that it has started; one that
//! ends by itself may leave processes behind, such as a worker.

mod group;
mod note;

use std::{
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use tokio::process::{Child, Command};

use self::{group::Group, note::Note};
use crate::{
    kernel::cgroup,
    launch::{self, AskError, Output, Plan, Streams, account::Accounts},
};
/// What it is spoken to in.
const LANG: &str = "C.UTF-8";
/// Between two looks at what is too much of its output.
const LOOK: Duration = Duration::from_millis(50);
/// Characters of them in a message.
const SAID: usize = 400;

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The first that it said.
    pub(crate) output: String,
    pub(crate) errors: String,
    output_end: String,
    errors_end: String,
}

/// Why a command has not ended by itself.
#[derive(Debug)]
pub(crate) enum CommandError {
    NotRun(io::Error),
    /// It was ended.
    Late,
}

impl Ended {
    /// What it said, errors before output, in one line.
    pub(crate) fn said(&self) -> String {
        let said = if self.errors.trim().is_empty() { &self.output } else { &self.errors };
        one_line(said).chars().take(SAID).collect()
    }

    /// The end of what it said, in one line: of its errors, then of its output, where a test says what has failed.
    pub(crate) fn said_last(&self) -> String {
        let ends = [&self.errors_end, &self.output_end].map(|said| {
            let said = one_line(said);
            let skipped = said.chars().count().saturating_sub(SAID);
            if skipped == 0 { said } else { format!("...{}", said.chars().skip(skipped).collect::<String>()) }
        });
        let said: Vec<_> = ends.into_iter().filter(|end| !end.is_empty()).collect();
        said.join(" | ")
    }
}

/// Lines as one, of characters that do nothing to a terminal.
fn one_line(said: &str) -> String {
    let words: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    words.join("; ").chars().filter(|char| !char.is_control()).collect()
}

/// What becomes a command, in the daemon.
static GROUND: OnceLock<Ground> = OnceLock::new();

struct Ground {
    launcher: PathBuf,
    /// Where commands get cgroups of their own: the daemon's.
    above: Option<PathBuf>,
}

/// Has commands be started by this program, which has the verb `launch`, and in cgroups of their own, where the daemon may
/// make some. To be called at the start of the daemon. Without it, in tests of parts, a command gets a process group only,
/// and cannot have another user.
pub(crate) fn launched_by(launcher: &Path) {
    let above = cgroup::own().and_then(|own| group::sweep(&own).map(|()| own));
    let above = above.map_err(|error| {
        tracing::info!(%error, "commands get no cgroup of their own; what a late one leaves is found by its environment");
    });
    let _ = GROUND.set(Ground { launcher: launcher.to_owned(), above: above.ok() });
}

/// A command that is to be run.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub(crate) argv: &'a [String],
    /// What it finds in its environment beside what every process of its user does.
    pub(crate) environment: &'a [(&'a str, String)],
    /// As which user it runs; `None`: the daemon's.
    pub(crate) user: Option<&'a str>,
    pub(crate) within: Duration,
}

/// Runs it for so long at most. It has ended when its process has, whatever that leaves behind in the background. Where it
/// takes longer, and where this future is dropped, it is killed with all that it has started.
pub(crate) async fn run(call: &Call<'_>) -> Result<Ended, CommandError> {
    let not_run = CommandError::NotRun;
    let (output, errors) = (Note::new().map_err(not_run)?, Note::new().map_err(not_run)?);
    let ground = GROUND.get();
    let group = Group::make(ground.and_then(|ground| ground.above.as_deref()));
    let ended = tokio::time::timeout(call.within, async {
        let mut child = start(call, ground, &group, &output, &errors).await?;
        group.leads(&child);
        loop {
            tokio::select! {
                status = child.wait() => break status,
                () = tokio::time::sleep(LOOK) => {
                    output.cut();
                    errors.cut();
                }
            }
        }
    });
    match ended.await {
        Err(_) => {
            group.kill().await;
            Err(CommandError::Late)
        }
        Ok(Err(error)) => Err(not_run(error)),
        Ok(Ok(status)) => {
            group.release().await;
            Ok(Ended {
                status,
                output: output.text(0),
                errors: errors.text(0),
                output_end: output.end(),
                errors_end: errors.end(),
            })
        }
    }
}

async fn start(
    call: &Call<'_>,
    ground: Option<&Ground>,
    group: &Group,
    output: &Note,
    errors: &Note,
) -> io::Result<Child> {
    let Some((program, arguments)) = call.argv.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no words"));
    };
    let (output, errors) = (Stdio::from(output.0.try_clone()?), Stdio::from(errors.0.try_clone()?));
    let accounts = Accounts::read()?;
    let user = accounts.user_or_own(call.user)?;
    let mut environment = user.environment();
    environment.insert("LANG".to_owned(), LANG.to_owned());
    let own = call.environment.iter().cloned().chain(group.mark());
    environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
    let identity = call.user.map(|_| accounts.identity(&user, None)).transpose().map_err(io::Error::other)?;
    let Some(ground) = ground else {
        if identity.is_some() {
            return Err(io::Error::other("another user is taken only by commands of the daemon"));
        }
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&environment).process_group(0).kill_on_drop(true);
        return command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
    };
    let plan = Plan {
        cgroup: group.cgroup().map(Path::to_owned),
        identity,
        directory: PathBuf::from("/"),
        argv: call.argv.to_vec(),
        environment,
        output: Output::Inherited,
    };
    launched(ground, &plan, Streams { output, errors, kill_on_drop: true }).await
}

async fn launched(ground: &Ground, plan: &Plan, streams: Streams) -> io::Result<Child> {
    launch::ask(&ground.launcher, plan, streams).await.map_err(|error| match error {
        AskError::NotRun(error) => error,
        AskError::Failed(report) if report.tried.starts_with("run ") => report.error(),
        AskError::Failed(report) => {
            let error = report.error();
            io::Error::new(error.kind(), format!("trying to {}: {error}", report.tried))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Instant};

    use super::{note::KEPT, *};

    async fn of(argv: &[&str], environment: &[(&str, String)], within: Duration) -> Result<Ended, CommandError> {
        let argv: Vec<_> = argv.iter().map(ToString::to_string).collect();
        run(&Call { argv: &argv, environment, user: None, within }).await
    }

    async fn sh(script: &str, within: Duration) -> Result<Ended, CommandError> {
        of(&["/bin/sh", "-c", script], &[], within).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_it_leaves_behind_is_not_waited_for() {
        let begun = Instant::now();
        let ended = sh("sleep 100 & echo $!; echo bad >&2; exit 3", LONG).await.unwrap();
        assert!(begun.elapsed() < LONG / 2);
        assert_eq!((ended.status.code(), ended.said()), (Some(3), "bad".to_owned()));
        let pid = rustix::process::Pid::from_raw(ended.output.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    /// It neither is killed for writing, nor fills the memory.
    #[tokio::test]
    async fn what_it_leaves_behind_has_the_room_that_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let wrote = folder.path().join("wrote");
        let late = "until test -e $0.go; do sleep 0.05; done; echo late && echo one > $0.new; \
                    head -c 20000 /dev/zero 2> /dev/null || echo two >> $0.new; mv $0.new $0";
        let script = format!("echo early; sh -c '{}' {} &", late.replace('\'', "'\\''"), wrote.display());
        assert_eq!(sh(&script, LONG).await.unwrap().output, "early\n");
        std::fs::write(wrote.with_extension("go"), "").unwrap();
        let begun = Instant::now();
        while !wrote.exists() && begun.elapsed() < LONG {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(std::fs::read_to_string(&wrote).unwrap(), "one\ntwo\n");
    }

    #[tokio::test]
    async fn it_may_say_much() {
        let script = "yes first | head -c 3000000; sleep 0.2; yes then | head -c 300000 && echo bad >&2";
        let ended = sh(script, LONG).await.unwrap();
        assert!(ended.status.success(), "{}", ended.errors);
        assert_eq!((ended.output.len() as u64, ended.errors.as_str()), (KEPT, "bad\n"));
        assert!(ended.output.starts_with("first\nfirst\n"));
    }

    #[tokio::test]
    async fn the_end_of_much_is_known() {
        let script = "yes first | head -c 3000000; sleep 0.2; yes then | head -c 300000; echo 7 of 9 failed";
        let ended = sh(script, LONG).await.unwrap();
        let end = ended.said_last();
        assert!(end.starts_with("...") && end.ends_with("then; then; 7 of 9 failed"), "{end}");
        assert_eq!(end.chars().count(), SAID + 3);
        assert!(ended.output.starts_with("first\nfirst\n"));
        let both = sh("echo 1 of 2 failed; echo old browser >&2", LONG).await.unwrap();
        assert_eq!(both.said_last(), "old browser | 1 of 2 failed");
        assert_eq!(sh("exit 1", LONG).await.unwrap().said_last(), "");
    }

    #[tokio::test]
    async fn its_environment_is_its_own() {
        let given = [("DEPLOYER_LANE", "3".to_owned())];
        let ended = of(&["/usr/bin/env"], &given, LONG).await.unwrap();
        let names: BTreeSet<_> = ended.output.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        let expected = ["DEPLOYER_COMMAND", "DEPLOYER_LANE", "HOME", "LANG", "LOGNAME", "PATH", "USER"];
        assert_eq!(names, BTreeSet::from(expected), "nothing of the daemon's");
        assert!(ended.output.contains("DEPLOYER_LANE=3\n") && ended.output.contains("LANG=C.UTF-8\n"));
        let odd = of(&["/usr/bin/env"], &[("DEPLOYER_VERSION", "a\0b".to_owned())], LONG).await;
        assert!(matches!(odd, Err(CommandError::NotRun(_))));
    }

    /// Whether processes with this as their last argument run.
    fn sleeps(seconds: &str) -> bool {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines.into_iter().any(|line| line.ends_with(format!("\0{seconds}\0").as_bytes()))
    }

    #[tokio::test]
    async fn one_that_is_late_leaves_no_process_behind() {
        let script = "sleep 1000.25 & setsid sleep 1000.25 & (setsid sh -c 'sleep 1000.25 & exec sleep 1000.25' &) & \
                      sleep 1000.25";
        let begun = Instant::now();
        assert!(matches!(sh(script, Duration::from_millis(300)).await, Err(CommandError::Late)));
        assert!(!sleeps("1000.25") && begun.elapsed() < LONG / 2);
        // Also where its future is dropped: the daemon gives up on it.
        let dropped = tokio::time::timeout(Duration::from_millis(300), sh(&script.replace("25", "75"), LONG)).await;
        assert!(dropped.is_err());
        let until = Instant::now() + LONG / 2;
        while sleeps("1000.75") {
            assert!(Instant::now() < until, "it was dropped, and runs on");
            tokio::time::sleep(LOOK).await;
        }
    }

    #[tokio::test]
    async fn it_ends_in_time_or_is_ended() {
        assert!(matches!(sh("exec sleep 100", Duration::from_millis(50)).await, Err(CommandError::Late)));
        assert!(matches!(of(&[], &[], LONG).await, Err(CommandError::NotRun(_))));
        assert!(matches!(of(&["/nonexistent"], &[], LONG).await, Err(CommandError::NotRun(_))));
    }
}

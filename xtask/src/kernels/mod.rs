//! `cargo xtask test kernels`: suites under Debian's own kernel, in a virtual machine.
//!
//! Nothing is installed for it: the kernel, busybox, and qemu where this machine has none, are unpacked below the target
//! directory. The virtual machine sees this machine's files, read-only, under a layer of memory that ends with it, and has
//! no network but its own loopback.

mod image;
mod machine;
mod packages;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, output_of};

/// The suite's name.
pub(crate) const SUITE: &str = "kernels";

/// End-to-end suites that run there, and which of their tests: all that hold a filter. Without a processor that can
/// virtualize everything takes ten times as long, so these are few.
const WITHIN: &[(&str, &[&str])] = &[
    ("harness", &["runs_a_daemon_and_its_command_line"]),
    ("roll", &["one_server_line_is_enough", "a_drain_takes_about_one_request"]),
    ("steer", &["policies::refuse", "open_is_what_ss_sees", "one_that_came_later_is_killed", "every_kind_of_decision"]),
    ("kept-alive", &["stop_roll_cuts_no_stream"]),
    ("crash", &["children_that_share_a_listener"]),
];

/// A virtual machine that is ready to be started.
pub(crate) struct Prepared {
    parts: packages::Parts,
    image: PathBuf,
    work: PathBuf,
}

impl Prepared {
    /// The kernel's release, as `uname -r` says it there.
    pub(crate) fn release(&self) -> &str {
        &self.parts.release
    }
}

/// Gets what is missing and makes the image that the kernel starts from.
///
/// # Errors
/// When a package cannot be had, which names it, or the image cannot be written.
pub(crate) fn prepare(workspace: &Workspace) -> Result<Prepared> {
    let work = workspace.kernels();
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let parts = packages::get(workspace, &work)?;
    let image = image::make(&parts, &work)?;
    Ok(Prepared { parts, image, work })
}

/// The command that runs one suite there, and the file to which its exit code is written.
///
/// # Errors
/// When the suite was not built, or the script cannot be written.
pub(crate) fn command(
    workspace: &Workspace,
    prepared: &Prepared,
    suite: &str,
    filters: &[&str],
    features: &[&str],
) -> Result<(Command, PathBuf)> {
    let test = executable(workspace, suite, features)?;
    let (out, script) = (prepared.work.join("out"), prepared.work.join("suite.sh"));
    fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    let exit = out.join("exit");
    let _ = fs::remove_file(&exit);
    let text = machine::script(&prepared.parts, &workspace.debug("deployer"), &test, filters);
    fs::write(&script, text).with_context(|| format!("writing {}", script.display()))?;
    Ok((machine::start(&prepared.parts, &prepared.image, &script, &out), exit))
}

/// The suites that run there.
pub(crate) fn suites() -> &'static [(&'static str, &'static [&'static str])] {
    WITHIN
}

/// Fails unless the suite has ended by itself with exit code 0.
///
/// # Errors
/// With the exit code; or when there is none, because the virtual machine ended before the suite.
pub(crate) fn judge(exit: &Path) -> Result<()> {
    match fs::read_to_string(exit) {
        Ok(code) if code.trim() == "0" => Ok(()),
        Ok(code) => bail!("the suite ended with exit code {} there", code.trim()),
        Err(_) => bail!("the virtual machine ended, or came to its time limit, before the suite did"),
    }
}

/// Where cargo has put a suite's program.
fn executable(workspace: &Workspace, suite: &str, features: &[&str]) -> Result<PathBuf> {
    let args = ["test", "--no-run", "--message-format=json", "--test", suite];
    let mut command = workspace.linting_cargo(args.into_iter().chain(features.iter().copied()))?;
    let said = output_of(&mut command).with_context(|| format!("cargo does not build the suite {suite}"))?;
    named(&said, suite).with_context(|| format!("cargo does not say where the suite {suite} is"))
}

/// The executable in cargo's message about the integration test of this name.
fn named(messages: &str, suite: &str) -> Option<PathBuf> {
    let name = format!("\"name\":\"{suite}\"");
    let is_it = |line: &&str| line.contains("\"kind\":[\"test\"]") && line.contains(&name);
    let line = messages.lines().find(is_it)?;
    let (_, rest) = line.split_once("\"executable\":\"")?;
    Some(PathBuf::from(rest.split_once('"')?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_suite_among_cargos_messages() {
        let messages = concat!(
            r#"{"target":{"kind":["bin"],"name":"roll"},"executable":"/t/roll"}"#,
            "\n",
            r#"{"target":{"kind":["test"],"name":"steer"},"executable":"/t/steer-1"}"#,
            "\n",
            r#"{"target":{"kind":["test"],"name":"roll"},"executable":"/t/roll-1"}"#,
        );
        assert_eq!(named(messages, "roll"), Some("/t/roll-1".into()));
        assert_eq!(named(messages, "absent"), None);
    }

    #[test]
    fn no_exit_code_is_a_failure() {
        assert!(judge(Path::new("/nonexistent/exit")).is_err());
    }
}

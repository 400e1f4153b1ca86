//! A kernel that calls itself old, as distributions' do that bring later features to an earlier release.

use anyhow::{Context, Result, ensure};
use deployer_tests::daemon::DeployerBin;
use deployer_tests::sandbox::{Place, Sandbox};

/// What `deployer check` says of the kernel, by lines.
fn kernel(sandbox: &Sandbox, arguments: &[&str]) -> Result<Vec<String>> {
    let bin = DeployerBin::find()?;
    let (program, arguments) = arguments.split_first().context("a program")?;
    let output = sandbox.command(Place::Daemon, program).args(arguments).arg(bin.path()).arg("check").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let about = ["kernel", "eBPF programs", "killed workers", "refused connections"];
    // After the level, which takes six columns.
    let is_about = |line: &&str| about.iter().any(|about| line.get(6..).is_some_and(|rest| rest.starts_with(about)));
    let lines: Vec<_> = text.lines().filter(is_about).map(str::to_owned).collect();
    ensure!(lines.len() >= about.len(), "{text}");
    Ok(lines)
}

#[test]
fn a_kernel_is_judged_by_what_it_can_do() -> Result<()> {
    let sandbox = Sandbox::new("release")?;
    let plain = kernel(&sandbox, &["env"])?;
    // Such a process is told that it runs on Linux 2.6 (personality(2), UNAME26).
    let old = kernel(&sandbox, &["setarch", "--uname-2.6"])?;
    ensure!(old[0].contains(" 2.6."), "{old:?}");
    ensure!(old.iter().all(|line| !line.starts_with("FAIL")), "{old:#?}");
    // But for the release nothing differs.
    ensure!(old[0].get(..6) == plain[0].get(..6) && old[1..] == plain[1..], "{old:#?}, without: {plain:#?}");
    Ok(())
}

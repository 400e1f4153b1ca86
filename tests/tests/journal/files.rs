//! State directories as nobody wants to find them: each has its answer.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount, mount_remount};

use deployer_tests::daemon::ServiceConfig;
use deployer_tests::rig::{Rig, Setup, wait};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

/// A rig whose daemon has ended, with a worker drained for good.
fn ended(sandbox: &Sandbox) -> Result<Rig<'_>> {
    let mut rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(sandbox)?;
    rig.drain(8000)?;
    rig.daemon.stop(Duration::from_secs(10))?;
    Ok(rig)
}

fn kept(dir: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    Ok(names.into_iter().filter(|name| name.starts_with("state.json.corrupt-")).collect())
}

#[test]
fn damaged() -> Result<()> {
    let sandbox = Sandbox::new("damaged")?;
    let mut rig = ended(&sandbox)?;
    let file = rig.state().join("state.json");
    let whole = fs::read(&file)?;
    let half = whole[..whole.len() / 2].to_vec();
    let typed = String::from_utf8(whole)?.replace("\"services\":{", "\"services\":[{");
    let deep = format!("{{\"format\":1,\"boot\":{}", "[".repeat(100_000));
    let cases: [(&str, &[u8]); 5] = [
        ("it is empty", b""),
        ("cut short", &half),
        ("not understood", b"\x00\xff\xfe nonsense"),
        ("not understood", typed.as_bytes()),
        ("cut short", deep.as_bytes()),
    ];
    for (nth, (why, bytes)) in cases.into_iter().enumerate() {
        fs::write(&file, bytes)?;
        rig.succeed()?;
        let trouble = rig.status()?.trouble;
        eprintln!("{trouble:?}");
        ensure!(trouble.len() == 1 && trouble[0].contains(why), "{why}: {trouble:?}");
        ensure!(rig.daemon.log().contains(why), "{}", rig.daemon.log());
        // What was read of it is gone, and all workers serve.
        rig.wait_phase(8000, "up")?;
        let saved = kept(&rig.state())?;
        ensure!(saved.len() == (nth + 1).min(4), "{saved:?}");
        let same = saved.iter().map(|name| fs::read(rig.state().join(name))).any(|it| it.is_ok_and(|it| it == bytes));
        ensure!(same, "{why}: it was not kept");
        rig.daemon.stop(Duration::from_secs(10))?;
    }
    Ok(())
}

#[test]
fn of_another_kind() -> Result<()> {
    let sandbox = Sandbox::new("kind")?;
    let mut rig = ended(&sandbox)?;
    let file = rig.state().join("state.json");
    fs::remove_file(&file)?;
    fs::create_dir(&file)?;
    rig.succeed()?;
    let trouble = rig.status()?.trouble;
    ensure!(trouble.len() == 1 && trouble[0].contains("is no regular file"), "{trouble:?}");
    ensure!(file.is_file() && kept(&rig.state())?.len() == 1);
    Ok(())
}

/// A later deployer's: nothing is touched, and steering goes on as it was.
#[test]
fn from_the_future() -> Result<()> {
    let sandbox = Sandbox::new("future")?;
    let mut rig = ended(&sandbox)?;
    let file = rig.state().join("state.json");
    let future = r#"{"format":7,"written_by":"9.1.0","whatever":[1,2]}"#;
    fs::write(&file, future)?;
    let error = rig.succeed().err().context("it starts")?.to_string();
    eprintln!("{error}");
    ensure!(error.contains("was written by deployer 9.1.0 in format 7, and this one knows formats up to 1"), "{error}");
    ensure!(fs::read_to_string(&file)? == future && kept(&rig.state())?.is_empty());
    fs::rename(&file, rig.state().join("elsewhere"))?;
    rig.succeed()?;
    ensure!(rig.status()?.trouble.is_empty());
    Ok(())
}

#[test]
fn missing() -> Result<()> {
    let sandbox = Sandbox::new("missing")?;
    let mut rig = ended(&sandbox)?;
    fs::remove_dir_all(rig.state())?;
    rig.succeed()?;
    ensure!(rig.status()?.trouble.is_empty() && rig.state().join("state.json").is_file());
    ensure!(fs::metadata(rig.state())?.permissions().mode() & 0o777 == 0o711);
    // Removed while it is in use: made again.
    fs::remove_dir_all(rig.state())?;
    rig.drain(8001)?;
    ensure!(rig.state().join("state.json").is_file());
    Ok(())
}

#[test]
fn another_daemons() -> Result<()> {
    let sandbox = Sandbox::new("theirs")?;
    let mut rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    let pid = rig.daemon.pid();
    let other = Setup { name: "other", ports: 8100..=8101, state: Some("state-web"), ..Setup::default() };
    let error = other.start(&sandbox).err().context("it starts")?.to_string();
    eprintln!("{error}");
    ensure!(error.contains(&format!("another daemon (pid {pid}) works with the state directory")), "{error}");
    ensure!(rig.daemon.exited()?.is_none());
    Ok(())
}

/// A file system of the test's own at the state directory, gone with the sandbox.
fn mounted(sandbox: &Sandbox, options: &str) -> Result<()> {
    fs::create_dir_all(sandbox.state())?;
    let options = std::ffi::CString::new(options)?;
    mount("none", sandbox.state(), "tmpfs", MountFlags::empty(), Some(options.as_c_str())).context("mount a tmpfs")
}

/// Read-only at the start: it serves, says so, and refuses rolls until it can write.
#[test]
fn read_only() -> Result<()> {
    let sandbox = Sandbox::new("readonly")?;
    let stage = Stage::new(&sandbox)?;
    mounted(&sandbox, "size=1m")?;
    mount_remount(sandbox.state(), MountFlags::RDONLY, "").context("remount")?;
    let daemon = stage.daemon(&ServiceConfig::default())?;
    let status = stage.api().status()?;
    ensure!(status["trouble"][0].as_str().is_some_and(|it| it.contains("cannot be written")), "{status}");
    let refused = daemon.cli(&["roll", "web", "--to", "v2"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && said.contains("cannot be written"), "{said}");
    mount_remount(sandbox.state(), MountFlags::empty(), "").context("remount")?;
    writable_again(&stage)?;
    stage.roll(&daemon, &["--to", "v2"])?.end()?.must("done", &["4 workers"])?;
    stage.unharmed("read-only")?;
    Ok(())
}

/// The disk fills up in the middle of a roll: who is in hand is brought through, and the roll stops.
#[test]
fn full() -> Result<()> {
    let sandbox = Sandbox::new("full")?;
    let stage = Stage::new(&sandbox)?;
    mounted(&sandbox, "size=256k")?;
    let daemon = stage.daemon(&ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() })?;
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    roll.until_phase(8000, "stopping")?;
    let filler = sandbox.state().join("filler");
    // As much as goes in.
    fs::write(&filler, vec![0; 1 << 20]).err().context("it is not full")?;
    let end = roll.end()?;
    eprintln!("{end:?}");
    end.must(
        "stopped",
        &["nothing was done to it", "cannot be written", "No space left", "1 of 4 workers are changed"],
    )?;
    stage.only_failed(&[])?;
    stage.all_serve()?;
    fs::remove_file(&filler)?;
    writable_again(&stage)?;
    stage.roll(&daemon, &["--to", "v2"])?.end()?.must("done", &["4 workers"])?;
    let log = daemon.log();
    ensure!(log.contains("the journal can be written again"), "{log}");
    stage.unharmed("full")?;
    Ok(())
}

fn writable_again(stage: &Stage<'_>) -> Result<()> {
    let none = serde_json::Value::Array(Vec::new());
    wait("the journal to be written", || Ok(stage.api().status()?["trouble"] == none)).map(drop)
}

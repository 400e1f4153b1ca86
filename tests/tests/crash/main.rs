//! Workers that are killed without a word (SIGKILL) under load, at random: who is lost was inside the killed worker when
//! the signal was sent; nobody is refused, and nobody is served cold, although supervisord restarts the worker at once.
//! The twin, without deployer, refuses and serves cold.
//!
//! 20 kills; 100 with `--full`. `CRASH_SEED=n` repeats a run's choices.

mod account;
mod anywhere;
mod children;
mod killer;
mod scene;

use anyhow::{Result, ensure};
use deployer_tests::crash::Row;
use deployer_tests::sandbox::Sandbox;

use killer::Killer;
use scene::Scene;

/// So that every loss can be seen, and nothing is sent again: a request inside a killed worker is one failure. As it
/// comes, nginx sends GETs to the next worker when it was refused or dropped, and leaves out for 10 s whom it found dead.
const STRICT: (&str, &str) = ("max_fails=0", "proxy_next_upstream off;");
/// nginx as it comes.
const PLAIN: (&str, &str) = ("", "");

/// So many of a test's kills, or all of them with `--full`.
fn kills(quick: usize, full: usize) -> usize {
    if std::env::var_os("DEPLOYER_FULL").is_some() { full } else { quick }
}

#[test]
fn who_is_lost_was_inside_the_killed_worker() -> Result<()> {
    let sandbox = Sandbox::new("kills")?;
    let scene = Scene::steered(&sandbox, STRICT)?;
    let mut killer = Killer::new()?;
    killer.run(&scene, kills(20, 100), 200..=1200)?;
    scene.recover_from(&killer.kills)?;
    let account = scene.end(killer.kills)?;
    account.must_be_clean()?;
    ensure!(account.requests > 1500, "hardly any load: {account}");
    ensure!(account.sum(|row| row.failed) == account.sum(Row::inside), "{account}");
    ensure!(account.sum(|row| row.hand) > 0 && account.sum(|row| row.queue) > 0, "the load proves nothing: {account}");
    ensure!(account.resent == 0, "{account}");
    // Both have been there: listeners older than the programs, and those that the programs have seen come.
    let old = account.rows.iter().filter(|row| row.kill.what.contains(scene::OLDER)).count();
    ensure!(old > 0 && old < account.rows.len(), "{old} kills of workers older than the daemon: {account}");
    ensure!(account.rows.iter().any(|row| row.kill.what.contains("MB")), "{account}");
    Ok(())
}

/// nginx sends GETs again that were inside the killed worker; nobody else's requests.
#[test]
fn nginx_as_it_comes() -> Result<()> {
    let sandbox = Sandbox::new("plain")?;
    let scene = Scene::steered(&sandbox, PLAIN)?;
    let mut killer = Killer::new()?;
    // Few at a time: it leaves each out for 10 s, and answers 502 when it has left out all.
    killer.run(&scene, kills(5, 20), 2500..=3500)?;
    scene.recover_from(&killer.kills)?;
    let account = scene.end(killer.kills)?;
    account.must_be_clean()?;
    ensure!(account.requests > 750, "hardly any load: {account}");
    ensure!(account.resent > 0, "nginx sends GETs again: {account}");
    ensure!(account.sum(|row| row.failed) + account.resent <= account.sum(Row::inside), "{account}");
    Ok(())
}

/// The twin.
#[test]
fn without_steering_the_same_kills_refuse_and_serve_cold() -> Result<()> {
    let sandbox = Sandbox::new("unsteered")?;
    let scene = Scene::unsteered(&sandbox, STRICT)?;
    let mut killer = Killer::new()?;
    killer.run(&scene, kills(6, 20), 200..=1200)?;
    scene.recover_from(&killer.kills)?;
    let account = scene.end(killer.kills)?;
    ensure!(account.refused_lines > 0 && account.sum(|row| row.refused) > 0, "{account}");
    ensure!(account.cold > 0, "{account}");
    ensure!(account.must_be_clean().is_err(), "{account}");
    Ok(())
}

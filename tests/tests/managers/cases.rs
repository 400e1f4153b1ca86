//! What every manager must do.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deployer::workers::ProcessPhase;
use tokio::time::sleep;

use super::scene::{Fixture, PORTS, STOP_WITHIN, at, is_alive, kill, play};

/// The tests of a manager.
macro_rules! suite {
    ($fixture:ty) => {
        super::cases::suite!(
            $fixture,
            from_nothing,
            started_twice,
            stopped_twice,
            deaf,
            slow_to_end,
            crashed,
            crashes_at_start,
            outlives_the_manager,
            all_at_once,
        );
    };
    ($fixture:ty, $($case:ident,)*) => {
        $(#[test]
        fn $case() -> anyhow::Result<()> {
            super::cases::$case::<$fixture>()
        })*
    };
}
pub(crate) use suite;

pub(crate) fn from_nothing<F: Fixture>() -> Result<()> {
    play::<F>(async |scene| {
        let workers: Vec<_> = PORTS.map(at).collect();
        scene.manager.check(&workers).await?;
        let status = scene.status(8000).await?;
        ensure!(status.phase == ProcessPhase::Stopped && status.pid.is_none(), "{status:?}");
        scene.up(8000).await?;
        let status = scene.until(8000, ProcessPhase::Running).await?;
        ensure!(status.pid.is_some_and(is_alive), "{status:?}");
        ensure!(scene.status(8001).await?.phase == ProcessPhase::Stopped, "its sibling");
        scene.manager.check(&workers).await?;
        Ok(())
    })
}

pub(crate) fn started_twice<F: Fixture>() -> Result<()> {
    play::<F>(async |scene| {
        let pid = scene.up(8000).await?;
        ensure!(scene.up(8000).await? == pid, "another process");
        // Where starting takes a moment, the second start comes into the first.
        let (first, second) = tokio::join!(scene.manager.start(at(8001)), scene.manager.start(at(8001)));
        let pid = scene.answers(8001, None).await?;
        // One that cannot be told apart from a process of its own is refused, at most.
        ensure!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
        sleep(Duration::from_millis(500)).await;
        ensure!(scene.answers(8001, None).await? == pid, "another process");
        Ok(())
    })
}

pub(crate) fn stopped_twice<F: Fixture>() -> Result<()> {
    play::<F>(async |scene| {
        // Never started.
        scene.manager.stop(at(8000)).await?;
        let pid = scene.up(8000).await?;
        scene.manager.stop(at(8000)).await?;
        ensure!(!is_alive(pid), "{pid} runs");
        scene.manager.stop(at(8000)).await?;
        scene.stays_stopped(8000).await?;
        let next = scene.up(8000).await?;
        ensure!(next != pid, "the same process");
        Ok(())
    })
}

/// Where nobody kills it, the stop may come yet: the worker is kept out, but not forgotten.
pub(crate) fn deaf<F: Fixture>() -> Result<()> {
    play::<F>(async |scene| {
        scene.fault(8000, "deaf")?;
        let pid = scene.up(8000).await?;
        let result = scene.manager.stop(at(8000)).await;
        if F::KILLS {
            result?;
            ensure!(!is_alive(pid), "{pid} runs");
            return scene.stays_stopped(8000).await;
        }
        let Err(error) = result else { anyhow::bail!("stopped, though it is deaf") };
        eprintln!("{error}");
        let within = format!("within {} s", STOP_WITHIN.as_secs());
        ensure!(error.may_come_yet() && error.to_string().contains(&within), "{error}");
        ensure!(is_alive(pid) && scene.status(8000).await?.pid == Some(pid));
        kill(pid).await?;
        scene.manager.stop(at(8000)).await?;
        Ok(())
    })
}

pub(crate) fn slow_to_end<F: Fixture>() -> Result<()> {
    play::<F>(async |scene| {
        scene.fault(8000, "slow")?;
        let pid = scene.up(8000).await?;
        let begun = Instant::now();
        let (stopped, during) = tokio::join!(scene.manager.stop(at(8000)), async {
            sleep(Duration::from_millis(500)).await;
            (scene.status(8000).await, is_alive(pid))
        });
        stopped?;
        ensure!(begun.elapsed() >= Duration::from_secs(1) && !is_alive(pid), "returned before its end");
        let (status, alive) = during;
        let status = status?;
        ensure!(status.phase != ProcessPhase::Stopped || !alive, "{status:?} of a process that runs");
        Ok(())
    })
}

pub(crate) fn crashed<F: Fixture>() -> Result<()> {
    play::<F>(async |scene| {
        let pid = scene.up(8000).await?;
        // Long enough for a supervisord to have taken it for started.
        sleep(Duration::from_millis(1200)).await;
        scene.until(8000, ProcessPhase::Running).await?;
        kill(pid).await?;
        if !F::RESTARTS {
            return scene.stays_stopped(8000).await;
        }
        let next = scene.answers(8000, Some(pid)).await?;
        let status = scene.until(8000, ProcessPhase::Running).await?;
        ensure!(status.pid == Some(next), "{status:?}");
        scene.manager.stop(at(8000)).await?;
        scene.stays_stopped(8000).await
    })
}

pub(crate) fn crashes_at_start<F: Fixture>() -> Result<()> {
    play::<F>(async |scene| {
        scene.fault(8000, "crash")?;
        scene.manager.start(at(8000)).await?;
        if F::RESTARTS {
            let status = scene.until(8000, ProcessPhase::Failed).await?;
            eprintln!("{status:?}");
            ensure!(!status.detail.is_empty() && status.pid.is_none(), "{status:?}");
        } else {
            scene.until(8000, ProcessPhase::Stopped).await?;
        }
        scene.fault(8000, "")?;
        scene.up(8000).await?;
        Ok(())
    })
}

pub(crate) fn outlives_the_manager<F: Fixture>() -> Result<()> {
    play::<F>(async |scene| {
        let pid = scene.up(8000).await?;
        scene.replace_manager()?;
        scene.manager.adopt(&[at(8000)], &[]).await?;
        let status = scene.until(8000, ProcessPhase::Running).await?;
        ensure!(status.pid == Some(pid), "{status:?}");
        ensure!(scene.up(8000).await? == pid, "another process");
        scene.manager.stop(at(8000)).await?;
        ensure!(!is_alive(pid), "{pid} runs");
        Ok(())
    })
}

/// A batch of a roll.
pub(crate) fn all_at_once<F: Fixture>() -> Result<()> {
    play::<F>(async |scene| {
        let manager = &scene.manager;
        for round in 0..2 {
            let (a, b, c, d) = tokio::join!(
                manager.start(at(8000)),
                manager.start(at(8001)),
                manager.start(at(8002)),
                manager.start(at(8003))
            );
            [a, b, c, d].into_iter().collect::<Result<(), _>>()?;
            for port in PORTS {
                scene.answers(port, None).await?;
            }
            let (a, b, c, d) = tokio::join!(
                manager.stop(at(8000)),
                manager.stop(at(8001)),
                manager.stop(at(8002)),
                manager.stop(at(8003))
            );
            [a, b, c, d].into_iter().collect::<Result<(), _>>()?;
            for port in PORTS {
                ensure!(scene.answer(port).await.is_none(), "{port} answers in round {round}");
            }
        }
        Ok(())
    })
}

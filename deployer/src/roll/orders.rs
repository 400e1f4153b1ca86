//! What somebody asks of a deploy that is under way.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::sync::Notify;

/// What a deploy is asked to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Order {
    /// Nothing.
    #[default]
    None,
    /// Flip; at an instant in milliseconds since 1970, or as planned.
    Flip {
        /// The instant.
        at_ms: Option<u64>,
    },
    /// Go back to the old pool.
    Rollback {
        /// Who asks.
        by: String,
    },
    /// Go back to the old pool, by the fleet.
    Return {
        /// Why.
        why: String,
    },
    /// The bake is over, or the time of what was turned back, by the fleet.
    End,
    /// Make room for another deploy.
    Supersede {
        /// Who asks.
        by: String,
    },
}

/// The orders that a deploy has not heard yet.
#[derive(Debug, Default)]
pub struct Orders {
    flip: Mutex<Order>,
    /// The order to flip has been heard, and is being done.
    taken: AtomicBool,
    /// A flip that is armed, or is to be, is to be taken back.
    disarm: AtomicBool,
    after: Mutex<Order>,
    news: Notify,
}

impl Orders {
    /// Gives an order. A rollback stands above another deploy: what is asked for last counts otherwise.
    pub fn give(&self, order: Order) {
        match order {
            Order::None => return,
            Order::Flip { .. } => *lock(&self.flip) = order,
            Order::Rollback { .. } | Order::Return { .. } => *lock(&self.after) = order,
            Order::Supersede { .. } | Order::End => {
                let mut after = lock(&self.after);
                if *after == Order::None {
                    *after = order;
                }
            }
        }
        self.news.notify_one();
    }

    /// Takes the order to flip, if there is one.
    pub fn take_before_flip(&self) -> Order {
        let mut flip = lock(&self.flip);
        self.taken.store(*flip != Order::None, SeqCst);
        std::mem::take(&mut *flip)
    }

    /// Whether a flip is ordered, or being armed.
    #[must_use]
    pub fn is_to_flip(&self) -> bool {
        let flip = lock(&self.flip);
        *flip != Order::None || self.taken.load(SeqCst)
    }

    /// A flip that is armed (`is_flipping`), or is to be, is to be taken back.
    pub fn disarm(&self, is_flipping: bool) {
        let mut flip = lock(&self.flip);
        *flip = Order::None;
        self.disarm.store(is_flipping || self.taken.load(SeqCst), SeqCst);
        drop(flip);
        self.news.notify_one();
    }

    /// Whether it is to be taken back.
    #[must_use]
    pub fn is_disarmed(&self) -> bool {
        self.disarm.load(SeqCst)
    }

    /// It holds (again): nothing is armed.
    pub fn holds(&self) {
        let _flip = lock(&self.flip);
        self.taken.store(false, SeqCst);
        self.disarm.store(false, SeqCst);
    }

    /// Takes what was asked for after the flip.
    pub fn take_after_flip(&self) -> Order {
        std::mem::take(&mut *lock(&self.after))
    }

    /// Has who waits look again.
    pub fn wake(&self) {
        self.news.notify_one();
    }

    /// Waits for an order, at most so long.
    pub async fn wait(&self, most: Duration) {
        let _ = tokio::time::timeout(most, self.news.notified()).await;
    }
}

fn lock(order: &Mutex<Order>) -> MutexGuard<'_, Order> {
    // A panic elsewhere leaves it as good as it was.
    order.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn rollback() -> Order {
        Order::Rollback { by: "him".to_owned() }
    }

    fn supersede(by: &str) -> Order {
        Order::Supersede { by: by.to_owned() }
    }

    #[test]
    fn a_flip_is_not_taken_for_what_comes_after_it() {
        let orders = Orders::default();
        orders.give(Order::None);
        assert_eq!((orders.take_before_flip(), orders.take_after_flip()), (Order::None, Order::None));
        orders.give(Order::Flip { at_ms: None });
        orders.give(rollback());
        orders.give(Order::Flip { at_ms: Some(7) });
        assert_eq!(orders.take_before_flip(), Order::Flip { at_ms: Some(7) }, "the last counts");
        assert_eq!(orders.take_before_flip(), Order::None, "an order is heard once");
        assert_eq!((orders.take_after_flip(), orders.take_after_flip()), (rollback(), Order::None));
    }

    #[test]
    fn a_rollback_stands_above_another_deploy() {
        let orders = Orders::default();
        for given in [[supersede("me"), rollback()], [rollback(), supersede("me")]] {
            given.into_iter().for_each(|order| orders.give(order));
            assert_eq!(orders.take_after_flip(), rollback());
        }
        orders.give(supersede("me"));
        orders.give(supersede("her"));
        assert_eq!(orders.take_after_flip(), supersede("me"), "who asks first is named");
    }

    #[test]
    fn a_flip_is_taken_back_also_where_it_is_on_its_way() {
        let orders = Orders::default();
        orders.holds();
        assert!(!orders.is_to_flip());
        orders.give(Order::Flip { at_ms: None });
        assert!(orders.is_to_flip());
        orders.disarm(false);
        assert!(!orders.is_to_flip() && !orders.is_disarmed(), "nobody has heard it, and nobody will");
        orders.give(Order::Flip { at_ms: None });
        assert_ne!(orders.take_before_flip(), Order::None);
        orders.disarm(false);
        assert!(orders.is_to_flip() && orders.is_disarmed(), "until whoever arms it holds again");
        orders.holds();
        assert!(!orders.is_to_flip() && !orders.is_disarmed());
        orders.disarm(true);
        assert!(orders.is_disarmed(), "armed by a daemon before");
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let (orders, begun) = (Orders::default(), Instant::now());
        // Also by what was given before it waits.
        orders.give(rollback());
        orders.wait(Duration::from_secs(60)).await;
        orders.wake();
        orders.wait(Duration::from_secs(60)).await;
        assert!(begun.elapsed() < Duration::from_secs(30));
        orders.wait(Duration::from_millis(10)).await;
    }
}
